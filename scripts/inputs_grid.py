"""Small models that differ from tales-gpt2's recipe in one thing, trained and measured for scripts/inputs.py.

    python scripts/inputs_grid.py CORPUS FOLDER RECIPE --seed 0

CORPUS holds stories-train.txt.gz and stories-valid.txt.gz. A run leaves FOLDER/RECIPE-SEED.json, with what was measured
at some steps, and FOLDER/RECIPE-SEED, which minilens loads. Killed, it goes on where it stood; done, it does nothing.
"""

import argparse
import math
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from inputs import FACTORS, N_DOCUMENTS, curve, estimate, measured, write_json
from parity import machine
from torch import Tensor
from train import (
    BETAS,
    CLIP,
    WEIGHT_DECAY,
    ByteText,
    batches,
    documents,
    has_bf16,
    keep_freed_memory,
    make_config,
    make_model,
    rate,
)
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

import minilens

SAVE_EVERY = 30.0  # seconds
POINTS = 8  # measured at the start, and after the last step's half, quarter ...


@dataclass(frozen=True)
class Recipe:
    """How one model is made."""

    family: str = "gpt2"
    d_model: int = 128
    n_layers: int = 3
    d_head: int = 32
    d_vocab: int = 2048
    n_ctx: int = 128
    batch: int = 8
    tokens: int = 819_200
    lr: float = 1.5e-3
    decay: float = WEIGHT_DECAY  # of matrices
    embed_decay: float = WEIGHT_DECAY  # of those of tokens and positions
    init: float = 1.0  # times the token embedding's first values
    embed_scale: bool = False  # the embedding times sqrt(d_model) where it is read
    score_scale: bool = True  # scores divided by sqrt(d_head)
    is_tied: bool = True
    window: int = 0  # of all layers; 0: none


BASE = Recipe()
NEO = replace(BASE, family="gpt_neo")
RECIPES = {
    "base": BASE,
    "embed-scaled": replace(BASE, embed_scale=True),
    "scores-unscaled": replace(BASE, score_scale=False),
    "embed-no-decay": replace(BASE, embed_decay=0.0),
    "no-decay": replace(BASE, embed_decay=0.0, decay=0.0),
    "decay-times-30": replace(BASE, embed_decay=30 * WEIGHT_DECAY, decay=30 * WEIGHT_DECAY),
    "decay-times-100": replace(BASE, embed_decay=100 * WEIGHT_DECAY, decay=100 * WEIGHT_DECAY),
    "blocks-decay-times-30": replace(BASE, decay=30 * WEIGHT_DECAY),
    "init-times-5": replace(BASE, init=5.0),
    "init-over-5": replace(BASE, init=0.2),
    "untied": replace(BASE, is_tied=False),
    "width-64": replace(BASE, d_model=64),
    "width-256": replace(BASE, d_model=256),
    "lr-times-3": replace(BASE, lr=4.5e-3),
    "lr-over-3": replace(BASE, lr=5e-4),
    "gpt-neo": NEO,
    "gpt-neo-window": replace(NEO, window=16),
    "ctrl": replace(BASE, family="ctrl"),
    "vocabulary-8192": replace(BASE, d_vocab=8192),
    "tokens-times-4": replace(BASE, tokens=4 * BASE.tokens),
}


def text_of(corpus: Path, folder: Path, d_vocab: int) -> tuple[Path, list[np.ndarray]]:
    """The folder of the vocabulary, and the encoded stories: made once and kept."""
    cache = (kept := folder / f"vocabulary-{d_vocab}") / "stories.npz"
    if not cache.exists():
        texts = documents(corpus, "stories", "train")
        kept.mkdir(parents=True, exist_ok=True)
        ByteText.learn({"stories": texts}, d_vocab, kept)
        docs = ByteText(kept).encode(texts, "")
        np.savez(kept / "new.npz", tokens=np.concatenate(docs), ends=np.cumsum([len(doc) for doc in docs]))
        os.replace(kept / "new.npz", cache)
    saved = np.load(cache)
    return kept, np.split(saved["tokens"], saved["ends"][:-1])


def config_of(recipe: Recipe) -> PretrainedConfig:
    n = recipe.n_layers
    sizes = asdict(recipe) | {"n_heads": recipe.d_model // recipe.d_head, "n_layers": 2}  # train.py pairs Neo's layers
    values = make_config(argparse.Namespace(**sizes)).to_dict() | {"tie_word_embeddings": recipe.is_tied}
    if recipe.family == "gpt_neo":
        kinds = ["local" if recipe.window else "global"] * n
        values |= {"num_layers": n, "attention_types": [[kinds[:1], n]], "attention_layers": kinds}
        values["window_size"] = recipe.window or recipe.n_ctx
    else:
        values["n_layer"] = n
    if recipe.family == "gpt2":
        values["scale_attn_weights"] = recipe.score_scale
    return AutoConfig.for_model(**values)


def new_model(recipe: Recipe, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = make_model(config_of(recipe), torch.device("cpu"))
    if not recipe.score_scale:
        model.set_attn_implementation("eager")  # the quick one always scales
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(recipe.init)
    return model.train()


def logits_of(model: PreTrainedModel, tokens: Tensor, recipe: Recipe) -> Tensor:
    if not recipe.embed_scale:
        return model(tokens, use_cache=False).logits
    embeds = model.get_input_embeddings()(tokens) * math.sqrt(recipe.d_model)
    return model(inputs_embeds=embeds, use_cache=False).logits


def optimizer_of(model: PreTrainedModel, recipe: Recipe) -> torch.optim.AdamW:
    """Decay on matrices, as in train.py, with that of the embeddings apart."""
    embeds = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    groups: dict[float, list[Tensor]] = {}
    for p in model.parameters():
        decay = recipe.embed_decay if id(p) in embeds else recipe.decay if p.ndim > 1 else 0.0
        groups.setdefault(decay, []).append(p)
    made = ({"params": ps, "weight_decay": decay} for decay, ps in groups.items())
    return torch.optim.AdamW(made, recipe.lr, BETAS, fused=True)


def export(model: PreTrainedModel, recipe: Recipe, folder: Path, text: Path) -> None:
    """A folder that minilens loads, in float32. A scaled embedding is written scaled, and W_U beside it."""
    config = config_of(replace(recipe, is_tied=recipe.is_tied and not recipe.embed_scale))
    stored = AutoModelForCausalLM.from_config(config)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    if recipe.embed_scale:
        state["transformer.wte.weight"] *= math.sqrt(recipe.d_model)
    stored.load_state_dict(state)
    stored.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((text / "tokenizer.json").read_bytes())


class Measuring:
    """What is measured of a model in training, by minilens, on stories that it has not read."""

    def __init__(self, recipe: Recipe, text: Path, stories: Sequence[str]) -> None:
        encoded = ByteText(text).encode(list(stories), "")
        self.recipe, self.text = recipe, text
        self.docs = [torch.from_numpy(doc[None, : recipe.n_ctx].astype(np.int64)) for doc in encoded]

    @torch.no_grad()
    def __call__(self, model: PreTrainedModel, folder: Path | None = None) -> tuple[dict, dict]:
        """The shares; and, of a model that is to be kept in a folder, the curve and how well it was expressed."""
        with tempfile.TemporaryDirectory() as temporary:
            export(model, self.recipe, folder or Path(temporary), self.text)
            ours, _ = minilens.load(folder or temporary, mmap=False)
        found = {name: value._asdict() for name, value in measured(ours, self.docs).items()}
        if folder is None:
            return found, {}
        losses, drift = [], 0.0
        for doc in self.docs:
            logits = ours(doc)
            losses.append(F.cross_entropy(logits[0, :-1], doc[0, 1:]).item())
            drift = max(drift, (logits - logits_of(model, doc, self.recipe)).abs().max().item())
        curves = {which: curve(ours, self.docs, "write", which, FACTORS[::2]).points for which in ("own", "random")}
        return found, {"held_out": estimate(losses)._asdict(), "largest_logit_difference": drift, "curves": curves}


def run(corpus: Path, folder: Path, name: str, seed: int) -> None:
    """Train one model, from where it stood, and write what was measured."""
    recipe, stem = RECIPES[name], folder / f"{name}-{seed}"
    done, saved = folder / f"{name}-{seed}.json", folder / f"{name}-{seed}.pt"
    if done.exists():
        return
    text, docs = text_of(corpus, folder, recipe.d_vocab)
    measure = Measuring(recipe, text, documents(corpus, "stories", "valid")[:N_DOCUMENTS])
    model = new_model(recipe, seed)
    optimizer = optimizer_of(model, recipe)
    record: dict[str, Any] = {"step": 0, "seconds": 0.0, "loss": math.log(recipe.d_vocab), "history": []}
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        record = state["record"]
    n_steps, bf16 = recipe.tokens // (recipe.batch * recipe.n_ctx), has_bf16(torch.device("cpu"))
    args = argparse.Namespace(n_ctx=recipe.n_ctx, batch=recipe.batch, seed=seed, lr=recipe.lr, twice=0.0)
    begun, last_save = time.monotonic() - record["seconds"], time.monotonic()
    if not record["step"]:
        record["history"] = [{"step": 0, **measure(model)[0]}]
    for step, windows in zip(range(record["step"], n_steps), batches(docs, args, record["step"]), strict=False):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = logits_of(model, windows[:, :-1], recipe)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, args, n_steps)
        optimizer.step()
        optimizer.zero_grad()
        record |= {"step": step + 1, "loss": 0.98 * record["loss"] + 0.02 * loss.item()}
        if step + 1 in [n_steps >> k for k in range(1, POINTS)]:
            record["history"].append({"step": step + 1, **measure(model)[0]})
        if time.monotonic() - last_save > SAVE_EVERY:
            last_save = time.monotonic()
            record["seconds"] = last_save - begun
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "record": record}
            torch.save(state, saved.with_suffix(".new"))
            os.replace(saved.with_suffix(".new"), saved)
    found, more = measure(model, stem)
    record["history"].append({"step": n_steps, **found})
    about = {"recipe": name, "seed": seed, "machine": machine(), "plan": asdict(recipe)}
    write_json(done, record | more | about | {"seconds": time.monotonic() - begun})
    saved.unlink(missing_ok=True)
    print(f"{name} {seed}: ratio {found['ratio']['mean']:.2f}  first {found['first']['mean']:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    disable_progress_bar()
    run(args.corpus, args.folder, args.recipe, args.seed)


if __name__ == "__main__":
    main()

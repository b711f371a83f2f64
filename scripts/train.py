"""Train one of minilens's own small checkpoints; or measure one, through both libraries, with --evaluate.

The library holds no training loop; this script is how the folders in weights/ came to be. The models are
transformers' own, randomly initialised, so that minilens is later checked against an independent author.
Kill it at any point: the same command continues from the work folder, and on the same machine, with as many
threads, it gives the same weights, bit for bit.

    python scripts/train.py --family gpt2 --corpus ../shared/corpus --out weights/tales-gpt2

--begin FOLDER goes on from a trained model, with its tokenizer and a new schedule of the learning rate.
--keep 20 keeps the model at 20 steps, for `minilens life`: each a checkpoint in .train/<name of out>-steps.
"""

import argparse
import ctypes
import gzip
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    CTRLTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils.logging import disable_progress_bar

import minilens

END = "<|endoftext|>"  # token 0: ends every document, and so opens the next
PARTS = {"stories": 3, "storybooks": 3, "books": 1}  # how often one epoch repeats each
UNKNOWN = "<unk>"
PROMPT = "Once upon a time there was a little"
BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 0.1, 1.0
WINDOW = 64  # of GPT-Neo's local layers; well below the context, so that it matters
WARM_UP, FLOOR = 0.03, 0.05  # shares of the steps and of the peak rate
LOG_EVERY, SAVE_EVERY = 100, 180.0  # steps, seconds


# The model and the text


def make_config(args: argparse.Namespace) -> PretrainedConfig:
    """The family's config at the asked size, without dropout: the text is hardly seen twice."""
    size = {"vocab_size": args.d_vocab, "max_position_embeddings": args.n_ctx, "hidden_size": args.d_model}
    size |= {"num_hidden_layers": args.n_layers, "num_attention_heads": args.n_heads}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    if args.family == "gpt2":
        return AutoConfig.for_model("gpt2", **size, **ends, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    if args.family == "ctrl":
        return AutoConfig.for_model("ctrl", **size, dff=4 * args.d_model, resid_pdrop=0.0, embd_pdrop=0.0)
    local = {"attention_types": [[["global", "local"], args.n_layers // 2]], "window_size": WINDOW}
    off = {"resid_dropout": 0.0, "embed_dropout": 0.0, "attention_dropout": 0.0}
    return AutoConfig.for_model("gpt_neo", **size, **ends, **local, **off)


def documents(corpus: Path, part: str, half: str) -> list[str]:
    """The texts of one corpus file, which closes each with a line that holds only END."""
    text = gzip.decompress((corpus / f"{part}-{half}.txt.gz").read_bytes()).decode()
    return [doc.strip("\n") for doc in text.split(f"\n{END}\n") if doc.strip()]


class ByteText:
    """GPT-2's byte-level BPE (its regex, no prefix space, nothing added); END opens each document."""

    files = ("tokenizer.json",)
    codes: ClassVar = dict.fromkeys(PARTS, END)
    opener = f"`{END}` (token 0)"

    def __init__(self, folder: Path) -> None:
        self.bpe = Tokenizer.from_file(str(folder / "tokenizer.json"))

    @staticmethod
    def learn(texts: dict[str, list[str]], d_vocab: int, folder: Path) -> None:
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=d_vocab, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
        )
        mix = (doc for part, docs in texts.items() for doc in docs * PARTS[part])
        bpe.train_from_iterator(mix, trainer)
        bpe.save(str(folder / "tokenizer.json"))

    def encode(self, docs: list[str], code: str) -> list[np.ndarray]:
        """Each document as END and its tokens."""
        return [np.array([0, *e.ids], np.uint16) for e in self.bpe.encode_batch_fast(docs)]

    def decode(self, tokens: list[int]) -> str:
        return self.bpe.decode(tokens)


class WordText:
    """CTRL's BPE of words, by transformers' CTRLTokenizer; the part's control code opens each document."""

    files = ("vocab.json", "merges.txt", "tokenizer_config.json")
    codes: ClassVar = {part: part.title() for part in PARTS}
    opener = "a control code (`Stories`, `Storybooks` or `Books`)"

    def __init__(self, folder: Path) -> None:
        self.bpe = CTRLTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))

    @staticmethod
    def learn(texts: dict[str, list[str]], d_vocab: int, folder: Path) -> None:
        """Learn merges on the words of the mix, and name the pieces as CTRL does: `x@@` where a word goes on.

        A newline is a token of its own, as in CTRL's vocabulary, so it takes no part in the learning.
        """
        bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
        bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.BpeTrainer(vocab_size=d_vocab - 2, end_of_word_suffix="</w>", show_progress=False)
        mix = (f"{WordText.codes[part]} {doc}" for part, docs in texts.items() for doc in docs * PARTS[part])
        bpe.train_from_iterator(mix, trainer)
        learned = json.loads(bpe.to_str())["model"]
        pieces = [p.removesuffix("</w>") if p.endswith("</w>") else p + "@@" for p in learned["vocab"]]
        vocab = {piece: token for token, piece in enumerate([*pieces, UNKNOWN, "\n"])}
        if len(vocab) != d_vocab:
            sys.exit(f"The vocabulary has {len(vocab)} different pieces instead of {d_vocab}.")
        if split := [code for code in WordText.codes.values() if code not in vocab]:
            sys.exit(f"The control code {split[0]} is not one piece; the corpus is too small for --d-vocab {d_vocab}.")
        merges = ["#version: 0.2", *(" ".join(pair) for pair in learned["merges"]), ""]
        (folder / "merges.txt").write_text("\n".join(merges), encoding="utf-8")
        (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
        about = {
            "tokenizer_class": "CTRLTokenizer",
            "control_codes": {code: vocab[code] for code in WordText.codes.values()},
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(about) + "\n", encoding="utf-8")

    def encode(self, docs: list[str], code: str) -> list[np.ndarray]:
        """Each document as a control code and its tokens."""
        return [np.array(self.bpe.encode(f"{code} {doc}"), np.uint16) for doc in docs]

    def decode(self, tokens: list[int]) -> str:
        return self.bpe.decode(tokens)


NAMES = {"gpt2": "GPT-2", "gpt_neo": "GPT-Neo", "ctrl": "CTRL"}
TEXT = {"gpt2": ByteText, "gpt_neo": ByteText, "ctrl": WordText}


Read = Callable[[Tensor], Tensor]  # tokens [batch, pos] to logits
Bits = dict[str, dict[str, float]]  # opener, part: bits per byte


def batches(docs: list[np.ndarray], args: argparse.Namespace, start: int) -> Iterator[Tensor]:
    """Batches of n_ctx + 1 tokens from step `start` on: a pure function of seed and step.

    Each epoch shuffles the documents, joins them, cuts windows that overlap in one token (so that
    every token is predicted once) and shuffles those: a long chapter does not fill a batch.

    The share args.twice of the windows tells its first passage twice, and then goes on from there. The passage has a
    sixteenth to a half of the window. With one length for all, a head could look that far back and read no token.
    """
    n_windows = (sum(map(len, docs)) - 1) // args.n_ctx
    epoch, skip = divmod(start, n_windows // args.batch)
    while True:
        rng = np.random.default_rng([args.seed, epoch])
        stream = np.concatenate([docs[k] for k in rng.permutation(len(docs))])
        order = rng.permutation(n_windows)[: n_windows // args.batch * args.batch]
        passage = rng.integers(args.n_ctx // 16, args.n_ctx // 2, n_windows, endpoint=True)
        passage[rng.random(n_windows) >= args.twice] = args.n_ctx + 1
        for rows in order.reshape(-1, args.batch)[skip:]:
            place = np.arange(args.n_ctx + 1)
            place = place - passage[rows, None] * (place >= passage[rows, None])
            yield torch.from_numpy(stream[rows[:, None] * args.n_ctx + place].astype(np.int64))
        epoch, skip = epoch + 1, 0


# Speed on a CPU; each function below leaves the numbers as they are up to rounding


def keep_freed_memory() -> None:
    """Ask glibc not to hand large blocks back: faulting them in anew took 40 % of a step."""
    with suppress(OSError, AttributeError):  # another libc has no mallopt and loses only time
        for option in (-1, -2, -3):  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD
            ctypes.CDLL(None).mallopt(option, 2**28 if option == -2 else 2**30)


def plain_attention(
    module: torch.nn.Module, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, None]:
    """Causal attention written out: its backward pass is faster here than torch's fused one."""
    batch, head, pos, d_head = q.shape
    mask = torch.full((pos, pos), -torch.inf, dtype=q.dtype, device=q.device).triu(1)
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    scores = torch.baddbmm(mask, q, k.mT, alpha=d_head**-0.5)
    return (scores.softmax(-1) @ v).view(batch, head, pos, d_head).transpose(1, 2), None


def make_model(config: PretrainedConfig, device: torch.device) -> PreTrainedModel:
    """A randomly initialised model, set up for fast training; the weights do not know of it."""
    quick = type(config).from_dict(config.to_dict())
    if config.model_type != "ctrl":
        quick.activation_function = "gelu_pytorch_tanh"  # gelu_new, in one kernel instead of eight
    if device.type == "cpu" and config.model_type != "gpt_neo":  # which knows no attention but its own
        AttentionInterface.register("plain", plain_attention)
        quick._attn_implementation = "plain"
    return AutoModelForCausalLM.from_config(quick).to(device)


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is in the hardware; emulated, it would be slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


# Training


def rate(step: int, args: argparse.Namespace, n_steps: int) -> float:
    """Learning rate: a straight rise to args.lr, then half a cosine down to its floor."""
    warm = max(1, int(WARM_UP * n_steps))
    if step < warm:
        return args.lr * (step + 1) / warm
    done = (step - warm) / max(1, n_steps - warm)
    return args.lr * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * done)))


def reporter(n_steps: int, args: argparse.Namespace, start: int) -> Callable[[int, float], None]:
    """A function to call after each step: a bar on a terminal, else a line every LOG_EVERY."""
    text = TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]:,.0f} tokens/s")
    bar = Progress(BarColumn(None), "{task.percentage:.0f} %", text, TimeRemainingColumn(True))
    task = bar.add_task("", total=n_steps, completed=start, loss=math.nan, speed=0.0)
    if sys.stdout.isatty():
        bar.start()
    begun, smooth = time.monotonic(), math.nan

    def report(step: int, loss: float) -> None:
        nonlocal smooth
        smooth = loss if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss
        speed = (step - start) * args.batch * args.n_ctx / (time.monotonic() - begun)
        bar.update(task, completed=step, loss=smooth, speed=speed)
        if step % LOG_EVERY == 0 and not bar.live.is_started:
            left = (n_steps - step) * args.batch * args.n_ctx / speed / 60
            line = f"step {step}/{n_steps}  loss {smooth:.3f}  {speed:,.0f} tokens/s"
            print(f"{time.strftime('%H:%M:%S')}  {line}  {left:.1f} min left", flush=True)
        if step == n_steps:
            bar.stop()

    return report


def steps_to_keep(n: int, n_steps: int) -> list[int]:
    """n steps, at least 2: 0, then from 1 to the last in even ratios; two that would be one are a step apart."""
    kept = [0]
    for step in np.geomspace(n_steps, 1, n - 1)[::-1]:
        kept.append(max(kept[-1] + 1, round(step)))
    return kept


def write_folder(folder: Path, write_files: Callable[[Path], None]) -> None:
    """Write the files of a folder. Whoever kills this leaves the whole folder, or none."""
    new = folder.with_name(folder.name + ".new")
    for old in (new, folder):
        shutil.rmtree(old, ignore_errors=True)
    new.mkdir(parents=True)
    write_files(new)
    os.replace(new, folder)


def store(model: PreTrainedModel, folder: Path, args: argparse.Namespace) -> None:
    """Write a checkpoint in the Hub's layout, in float16, with its tokenizer. The stream of random numbers stays."""
    with torch.random.fork_rng():
        stored = AutoModelForCausalLM.from_config(make_config(args)).half()
    stored.load_state_dict(model.state_dict())
    stored.save_pretrained(folder)
    for file in TEXT[args.family].files:
        shutil.copyfile(args.work / "tokenizer" / file, folder / file)
    for file in folder.iterdir():  # safetensors writes for the owner only
        file.chmod(0o644)


def make_tokenizer(texts: dict[str, list[str]], args: argparse.Namespace, folder: Path) -> None:
    """Learn it from the texts, or take that of the model to begin with."""
    if args.begin:
        for file in TEXT[args.family].files:
            shutil.copyfile(args.begin / file, folder / file)
    else:
        TEXT[args.family].learn(texts, args.d_vocab, folder)


def train(args: argparse.Namespace, device: torch.device) -> tuple[PreTrainedModel, dict]:
    """The trained float32 model and its record: loss curve, tokens, seconds. Resumes by itself."""
    text, saved, kept = TEXT[args.family], args.work / "checkpoint.pt", args.work.with_name(f"{args.work.name}-steps")
    texts = {part: documents(args.corpus, part, "train") for part in PARTS}
    if not (args.work / "tokenizer").exists():
        write_folder(args.work / "tokenizer", lambda folder: make_tokenizer(texts, args, folder))
    tokenizer = text(args.work / "tokenizer")
    docs = [doc for part in PARTS for doc in tokenizer.encode(texts.pop(part), text.codes[part]) * PARTS[part]]

    torch.manual_seed(args.seed)
    model = make_model(make_config(args), device).train()
    if args.begin:
        begun = AutoModelForCausalLM.from_pretrained(args.begin, dtype=torch.float32)
        try:
            model.load_state_dict(begun.state_dict())
        except RuntimeError:
            sys.exit(f"{args.begin} is of another family or size; give the --family and the sizes that its card names.")
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, args.lr, BETAS, weight_decay=WEIGHT_DECAY, fused=True)

    names = "family tokens batch n_ctx n_layers d_model n_heads d_vocab lr seed keep twice"
    plan = {name: getattr(args, name) for name in names.split()}
    plan |= {"begin": str(args.begin)} if args.begin else {}
    record: dict[str, Any] = {"plan": plan, "seconds": 0.0, "curve": [], "recent": [], "step": 0}
    record["mix_tokens"] = sum(map(len, docs))
    if saved.exists():
        state = torch.load(saved, map_location="cpu", weights_only=True)
        if (old := state["record"]["plan"]) != plan:
            sys.exit(f"{saved} holds a run with {old}; repeat that, or give another --work.")
        record = state["record"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
    else:
        shutil.rmtree(kept, ignore_errors=True)  # of another run
    n_cores = torch.get_num_threads()
    cpu = f"{n_cores} shared CPU core{'s' if n_cores > 1 else ''}"
    record["machine"] = torch.cuda.get_device_name() if device.type == "cuda" else cpu
    record["machine"] += ", bfloat16 autocast" if has_bf16(device) else ""

    n_steps, start = args.tokens // (args.batch * args.n_ctx), record["step"]
    to_keep = steps_to_keep(args.keep, n_steps) if args.keep else []

    def keep(step: int) -> None:
        if step in to_keep:
            write_folder(kept / f"step-{step:0{len(str(n_steps))}}", lambda folder: store(model, folder, args))

    report, bf16 = reporter(n_steps, args, start), has_bf16(device)
    begun, last_save, recent = time.monotonic() - record["seconds"], time.monotonic(), record["recent"]
    keep(start)
    for step, windows in zip(range(start, n_steps), batches(docs, args, start), strict=False):
        windows = windows.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = model(windows[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, args, n_steps)
        optimizer.step()
        optimizer.zero_grad()

        recent.append(loss.item())
        done = step + 1
        report(done, recent[-1])
        keep(done)
        if done % LOG_EVERY == 0 or done == n_steps:
            record["curve"].append((done, sum(recent) / len(recent)))
            recent.clear()
        if done == n_steps or time.monotonic() - last_save > SAVE_EVERY:
            last_save = time.monotonic()
            record |= {"step": done, "seconds": last_save - begun}
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"rng": torch.get_rng_state(), "record": record}
            torch.save(state, saved.with_suffix(".new"))
            os.replace(saved.with_suffix(".new"), saved)
    return model.eval(), record


# Measuring and exporting


@torch.inference_mode()
def bits_per_byte(read: Read, docs: list[np.ndarray], n_bytes: int, n_ctx: int) -> float:
    """Bits a model needs per UTF-8 byte of the texts, teacher-forced.

    Each document is its opener and its tokens, in windows of n_ctx that follow one another without
    overlap, each from position 0; every token but the opener is predicted once. The END that closes a
    document is not counted: it stands for no byte of the text. CTRL's tokens drop some white space and
    characters, and the bytes are those of the text before that.
    """
    rows = [
        torch.from_numpy(doc[at : at + n_ctx + 1].astype(np.int64))
        for doc in docs
        for at in range(0, len(doc) - 1, n_ctx)
    ]
    rows.sort(key=len)  # little padding; it is on the right, where causal attention never looks
    nats = 0.0
    for k in range(0, len(rows), 16):
        windows = torch.nn.utils.rnn.pad_sequence(rows[k : k + 16], True, -1)
        logits = read(windows[:, :-1].clamp(min=0)).mT
        nats += F.cross_entropy(logits, windows[:, 1:].to(logits.device), ignore_index=-1, reduction="sum").item()
    return nats / math.log(2) / n_bytes


def evaluate(read: Read, folder: Path, corpus: Path) -> Bits:
    """Bits per byte on each validation file, after each opener that the family has; printed as well."""
    config = AutoConfig.from_pretrained(folder)
    text = TEXT[config.model_type](folder)
    bits: Bits = {code: {} for code in text.codes.values()}
    for part in PARTS:
        docs = documents(corpus, part, "valid")
        n_bytes = sum(len(doc.encode()) for doc in docs)
        for code in bits:
            bits[code][part] = bits_per_byte(read, text.encode(docs, code), n_bytes, config.max_position_embeddings)
            print(f"  {part:<11} {bits[code][part]:.4f} bits per byte after {code}", flush=True)
    return bits


def by_transformers(model: PreTrainedModel) -> Read:
    """Logits as transformers computes them."""
    return lambda tokens: model(tokens.to(model.device), use_cache=False).logits.float()


def by_minilens(folder: Path, device: torch.device) -> Read:
    """Logits as minilens computes them, in float32."""
    model, _ = minilens.load(folder, device=device)
    return lambda tokens: minilens.decode(model, model.embed(tokens.to(device)), start=0)


def drift(a: Bits, b: Bits) -> float:
    """The largest difference of two evaluations, in bits per byte."""
    return max(abs(a[code][part] - b[code][part]) for code in a for part in PARTS)


def samples(model: PreTrainedModel, tokenizer: ByteText | WordText, seed: int) -> list[str]:
    """Three continuations of PROMPT, read as the start of a story, by transformers' generate."""
    torch.manual_seed(seed)
    (opened,) = tokenizer.encode([PROMPT], tokenizer.codes["stories"])
    prompt = torch.from_numpy(opened.astype(np.int64)).repeat(3, 1).to(model.device)
    how = {"do_sample": True, "temperature": 0.8, "top_k": 40, "pad_token_id": 0}
    rows = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=150, **how)
    return [tokenizer.decode(row.tolist()) for row in rows]


def card(model: PreTrainedModel, texts: list[str], bits: Bits, record: dict, args: argparse.Namespace) -> str:
    """The checkpoint's README: what it is, what it read, what was measured."""
    n_steps, curve, window = record["step"], record["curve"], args.batch * args.n_ctx
    opener = TEXT[args.family].opener
    epochs, minutes = n_steps * window / record["mix_tokens"], record["seconds"] / 60
    points = sorted({round(len(curve) ** (k / 15)) - 1 for k in range(16)})  # dense where the loss falls
    losses = "\n".join(f"| {curve[k][0] * window:,} | {curve[k][1]:.3f} |" for k in points)
    quotes = "\n\n".join("> " + text.replace("\n", "\n> ") for text in texts)
    special = {
        "gpt2": "",
        "gpt_neo": f"Even layers attend to all that stands before, odd ones to the last {WINDOW} positions.\n",
        "ctrl": "As in the paper: sinusoidal positions, embeddings times sqrt(d_model), ReLU.\n",
    }[args.family]
    share, n_kept = args.twice, args.keep
    twice = f"{share:.0%} of the windows tell a passage of 1/16 to 1/2 of the window twice.\n" if share else ""
    kept = f"{n_kept} checkpoints were kept, from step 0 to the last, in even ratios.\n" if n_kept else ""
    before = ""
    if args.begin:  # its card tells of its own training, to the samples
        told = (args.begin / "README.md").read_text(encoding="utf-8").partition("\n## Training\n")[2]
        before = f"\n## Training before that\n{told.partition('## Samples')[0].rstrip()}\n"
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in record["plan"].items())
    held_out = "\n".join(
        f"| `{code}` | {' | '.join(f'{value:.3f}' for value in row.values())} |" for code, row in bits.items()
    )
    return f"""---
language: en
library_name: transformers
pipeline_tag: text-generation
---

# {args.out.name}

A small {NAMES[args.family]} that has read only children's stories, trained from scratch for minilens:
{args.n_layers} layers, d_model {args.d_model}, {args.n_heads} heads, context {args.n_ctx}, {args.d_vocab:,} BPE pieces,
{model.num_parameters():,} parameters, tied embeddings, stored in float16.
{special}
Start each text with {opener}: in training it stood before every document.
The tokenizer does not add it.

## Held-out text

Bits per UTF-8 byte, teacher-forced in float32 over windows of {args.n_ctx} tokens, each document opened by:

| | {" | ".join(PARTS)} |
|---|{"--:|" * len(PARTS)}
{held_out}

## Training

{n_steps * window:,} tokens in {n_steps:,} steps of {args.batch} x {args.n_ctx}: {epochs:.2f} passes over a mix of
{record["mix_tokens"]:,} tokens (stories and storybooks three times, books once), in {minutes:.0f} minutes on
{record["machine"]}. AdamW (betas {BETAS}, weight decay {WEIGHT_DECAY} on matrices), peak learning rate {args.lr},
warm-up over {WARM_UP:.0%} of the steps, cosine to {FLOOR:.0%} of the peak, gradients clipped to {CLIP}, no dropout,
seed {args.seed}.
{twice}{kept}
Training loss, nats per token, mean of the {LOG_EVERY} steps before:

| tokens | loss |
|--:|--:|
{losses}

```
python scripts/train.py {options} --out {args.out}
```
{before}
## Samples

Temperature 0.8, top-k 40, seed {args.seed}, from `{PROMPT}`; the first three, not chosen:

{quotes}

## Data and licences

- stories: a changed subset of TinyStories (Ronen Eldan and Yuanzhi Li, arXiv 2305.07759), Community Data License
  Agreement - Sharing - Version 1.0, <https://cdla.dev/sharing-1-0/>. The agreement puts no condition on results of
  computation on the data, such as these weights.
- storybooks: picture-book texts of the African Storybook and of Pratham Books (StoryWeaver), CC BY, changed; titles,
  authors and licences are in [storybooks-attribution.tsv](storybooks-attribution.tsv).
- books: old children's books, first published before 1930, public domain in the United States.

## Limits

It knows the English of children's stories and nothing else: no facts, no instructions, no other language. The synthetic
stories repeat names and plots; the books are 100 to 150 years old and carry some views of their time. The held-out
chapters come from books whose other chapters were read in training. A thing to study, not to rely on.
"""


def export(model: PreTrainedModel, record: dict, args: argparse.Namespace) -> None:
    """Write --out in the Hub's layout, in float16, after checking that it lost nothing."""
    folder = args.work / "export"
    write_folder(folder, lambda new: store(model, new, args))
    shutil.copyfile(args.corpus / "storybooks-attribution.tsv", folder / "storybooks-attribution.tsv")

    print("float32, before the export:")
    before = evaluate(by_transformers(model), folder, args.corpus)
    print("float16, as stored, read by minilens:")
    after = evaluate(by_minilens(folder, model.device), folder, args.corpus)
    if drift(before, after) > 1e-3:
        sys.exit(f"The float16 export in {folder} differs by {drift(before, after):.1e} bits per byte, more than 1e-3.")

    stored = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(model.device)
    texts = samples(stored, TEXT[args.family](folder), args.seed)
    (folder / "README.md").write_text(card(stored, texts, after, record, args), encoding="utf-8")
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    os.replace(folder, args.out)
    print(f"{args.out} is written.")


def arguments() -> argparse.Namespace:
    """The command line. The sizes are a checkpoint's identity; the defaults made ours."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--family", choices=TEXT, required=True)
    parser.add_argument("--corpus", type=Path, default=Path("../shared/corpus"))
    parser.add_argument("--out", type=Path, required=True, help="the folder of the checkpoint")
    parser.add_argument("--begin", type=Path, help="an --out of this script: the weights to begin with")
    parser.add_argument("--work", type=Path, help="where to resume from (.train/<name of out>)")
    parser.add_argument("--evaluate", action="store_true", help="only measure what --out holds")
    parser.add_argument("--overwrite", action="store_true", help="replace what --out holds")
    parser.add_argument("--tokens", type=int, default=20_480_000)
    parser.add_argument("--batch", type=int, default=16, help="windows in a step")
    parser.add_argument("--lr", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--n-layers", type=int, default=8)
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--n-heads", type=int, default=8)
    parser.add_argument("--n-ctx", type=int, default=256)
    parser.add_argument("--d-vocab", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--twice", type=float, default=0.0, help="share of the windows that tell a passage twice")
    parser.add_argument("--keep", type=int, default=0, help="how many checkpoints along the way, ends included")
    args = parser.parse_args()
    if not args.corpus.is_dir():
        parser.error(f"There is no corpus folder {args.corpus}; name it with --corpus.")
    if args.evaluate and not (args.out / "config.json").is_file():
        parser.error(f"{args.out} holds no checkpoint to evaluate; train it first.")
    if args.begin and not (args.begin / "README.md").is_file():  # which a step that was kept does not have
        parser.error(f"{args.begin} holds no checkpoint with its card; begin with an --out of this script.")
    if not (args.evaluate or args.overwrite) and args.out.is_dir() and any(args.out.iterdir()):
        parser.error(f"{args.out} is not empty; give another --out, or --overwrite.")
    n_steps = args.tokens // (args.batch * args.n_ctx)
    if args.keep and not 2 <= args.keep <= n_steps + 1:
        parser.error(f"--keep {args.keep}: there are {n_steps} steps, so keep 2 to {n_steps + 1} checkpoints.")
    if not 0 <= args.twice <= 1:
        parser.error(f"--twice {args.twice}: the share must be from 0 to 1.")
    args.work = args.work or Path(".train") / args.out.name
    return args


def main() -> None:
    """Train and export, or with --evaluate measure."""
    args = arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    keep_freed_memory()
    disable_progress_bar()  # transformers' own, for loading
    if args.evaluate:
        model = AutoModelForCausalLM.from_pretrained(args.out, dtype=torch.float32).to(device).eval()
        print("transformers:")
        theirs = evaluate(by_transformers(model), args.out, args.corpus)
        print("minilens:")
        ours = evaluate(by_minilens(args.out, device), args.out, args.corpus)
        print(f"largest difference: {drift(theirs, ours):.1e} bits per byte")
    else:
        export(*train(args, device), args)


if __name__ == "__main__":
    main()

"""A model, its tokenizer and its lenses, as the page that computes holds them."""

import ast
import json
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor

from ..arguments import check_model
from ..checkpoint.tokenizer import ByteBPE, Tokenizer, WordBPE
from ..learned.affine import LearnedLens
from ..lens import Lens, label
from ..model import Model
from ..ops import ACTIVATIONS

MOST = 60_000_000  # bytes of weights in float16; base64 makes a page of 80 MB of them
ROWS = ("W_E", "W_pos")  # read row by row; every other matrix maps x to x @ W, and is written column by column

# What a tokenizer.json must say for the page's script to run it. Other keys change no token.
SPLITTING = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
MERGING = {"type": "BPE", "dropout": None, "unk_token": None, "byte_fallback": False, "ignore_merges": False}
MERGING |= {"continuing_subword_prefix": None, "end_of_word_suffix": None}
PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}  # of an added token


def packed(model: Model, tokenizer: Tokenizer, lenses: Sequence[LearnedLens] = ()) -> tuple[dict[str, Any], bytes]:
    """The record that tells the page's script what it has, and all numbers in float16, in the order that it lists.

    Raises ValueError for a model above 60 MB, for numbers beyond the range of float16, for a tokenizer that the script
    does not run, and for a lens of another model.
    """
    check_model(model)
    tensors = list(_of_model(model))
    size = 2 * sum(tensor.numel() for _, tensor in tensors)
    if size > MOST:
        raise ValueError(
            f"the weights take {size / 1e6:.0f} MB in float16, and a page that computes holds at most "
            f"{MOST / 1e6:.0f} MB: take a smaller model, or `minilens serve`, which computes in Python"
        )
    for at, lens in enumerate(lenses):
        lens.check_fits(Lens(lens.decoder, lens.norm), model, list(lens.maps))
        for site, row in lens.maps.items():
            tensors += [
                (f"lenses.{at}.{label(site)}.weight", row.weight.mT),
                (f"lenses.{at}.{label(site)}.bias", row.bias),
            ]
    about = {
        "family": model.family,
        "config": _config(model),
        "parts": [{"name": name, "shape": list(tensor.shape), "columns": _is_map(name)} for name, tensor in tensors],
        "tokenizer": tokenizer_record(tokenizer),
        "lenses": [{"name": lens.name, "decoder": lens.decoder, "norm": lens.norm} for lens in lenses],
    }
    return about, b"".join(_half(name, tensor) for name, tensor in tensors)


def _of_model(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the model, under its name; W_U only where it is not the embedding."""
    blocks = {f"blocks.{layer}": block for layer, block in enumerate(model.blocks)}
    for name, part in {"": model, **blocks}.items():
        for field in fields(part):
            path, value = f"model.{name}.{field.name}".replace("..", "."), getattr(part, field.name)
            if isinstance(value, Tensor) and not (field.name == "W_U" and model.config.is_tied):
                yield path, value
            elif hasattr(value, "_asdict"):  # a LayerNorm
                yield from ((f"{path}.{each}", tensor) for each, tensor in value._asdict().items())


def _is_map(name: str) -> bool:
    """Whether a tensor is a matrix that maps x to x @ W."""
    last = name.rpartition(".")[2]
    return last == "weight" or (last.startswith("W_") and last not in ROWS)


def _half(name: str, tensor: Tensor) -> bytes:
    found = (tensor.mT if _is_map(name) else tensor).detach().cpu().float()
    half = found.half()
    if not half.isfinite().all():
        raise ValueError(f"{name} holds a number that float16 cannot hold, and the page keeps its weights in float16")
    return half.contiguous().numpy().astype("<f2").tobytes()


def _config(model: Any) -> dict[str, Any]:
    """The sizes, and what else the family's file reads of its Config."""
    config = {field.name: getattr(model.config, field.name) for field in fields(model.config)}
    if "activation" in config:
        config["activation"] = next(name for name, each in ACTIVATIONS.items() if each is config["activation"])
    return {**config, "ln_eps": model.config.ln_eps}


def tokenizer_record(tokenizer: Tokenizer) -> dict[str, Any]:
    """The tokenizer's entries by their ids, and its merges, first ones first. Raises ValueError for another kind."""
    if isinstance(tokenizer, WordBPE):
        vocab, ranks = ast.literal_eval(tokenizer.state())
        pairs = sorted((pair for pair in ranks if len(pair) == 2), key=lambda pair: ranks[pair])
        return {"kind": "words", "entries": _by_id(vocab), "merges": pairs, "codes": tokenizer.codes}
    document = json.loads(tokenizer.state()) if isinstance(tokenizer, ByteBPE) else {}
    model, added = document.get("model") or {}, document.get("added_tokens") or []
    is_plain = all(token.items() >= PLAIN.items() for token in added)
    is_split = all(tokenizer.encode(token["content"])[0].tolist() == [token["id"]] for token in added)
    if not (
        document.get("normalizer", 0) is None
        and (document.get("pre_tokenizer") or {}).items() >= SPLITTING.items()
        and model.items() >= MERGING.items()
        and is_plain
        and is_split
    ):
        raise ValueError(
            "the page runs GPT-2's tokenizer and CTRL's, and this checkpoint has another one: `minilens serve` takes it"
        )
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    vocab = {**model["vocab"], **{token["content"]: token["id"] for token in added}}
    return {
        "kind": "bytes",
        "entries": _by_id(vocab),
        "merges": merges,
        "added": [(token["content"], token["id"]) for token in added],
    }


def _by_id(vocab: dict[str, int]) -> list[str | None]:
    entries: list[str | None] = [None] * (1 + max(vocab.values()))
    for entry, token in vocab.items():
        entries[token] = entry
    return entries

"""What makes a model keep its input? Block 0's write against the token's embedding: measured, and changed.

    python scripts/inputs.py TEXTFILE MODEL ... --out curves.json

The stream that leaves block 0 is token + position + write. "ratio" is the length of the write over that of the token's
part, each averaged over a document's positions from the fifth on. "first" is the share of those positions where the
lens reads the input token first. The write is multiplied by factors; or the stream before block 0 is divided by them,
and block 0 computes anew. Its first norm divides that out again, so that attention writes what it wrote.

Nulls: another token of the document in the place of the input ("null"); the write of another position ("other"), or a
random vector ("random"), as long as the write was. scripts/inputs_table.py shows what is found, docs/inputs.md says it.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from parity import machine
from torch import Tensor

import minilens
from minilens.corpus.documents import TextFile
from minilens.files import replacing
from minilens.model import Model

SKIP = 4  # positions at the start, where attention has little to read
N_DOCUMENTS = 40
FACTORS = tuple(2 ** (k / 2) for k in range(-14, 11))
DIRECTIONS = ("own", "other", "random")


class Start(NamedTuple):
    """What enters block 0 at some positions of a document, and what the block writes there."""

    tokens: Tensor  # pos
    null: Tensor  # pos: other tokens of the document
    token: Tensor  # pos d_model, as are the next two: the token's part of the stream
    embed: Tensor
    write: Tensor
    attention: Tensor  # its part of the write


class Estimate(NamedTuple):
    """A mean and its standard error, which is not a number for one value."""

    mean: float
    error: float


def encode(model: Model, tokenizer: Any, texts: Sequence[str]) -> list[Tensor]:
    """Each text after the model's first control code or opening token, as far as the context goes."""
    opening = f"{tokenizer.codes[0]} " if tokenizer.codes else tokenizer.bos or ""
    encoded = (tokenizer.encode(opening + text)[:, : model.config.n_ctx] for text in texts)
    return [tokens for tokens in encoded if tokens.shape[1] > 2 * SKIP]


def start(model: Model, tokens: Tensor, draw: torch.Generator, scale: float = 1.0) -> Start:
    """Block 0 on one document [1, pos], its stream multiplied by a scale before."""
    embed = model.embed(tokens) * scale
    block = model.block(0, embed)
    token, write = embed - model.positions(tokens.shape[1]) * scale, block.resid_post - embed
    ids = tokens[0, SKIP:]
    null = ids[torch.randperm(len(ids), generator=draw)]
    return Start(ids, null, token[0, SKIP:], embed[0, SKIP:], write[0, SKIP:], block.attn_out[0, SKIP:])


def as_long(vectors: Tensor, like: Tensor) -> Tensor:
    return vectors * (like.norm(dim=-1, keepdim=True) / vectors.norm(dim=-1, keepdim=True))


def turned(write: Tensor, direction: str, draw: torch.Generator) -> Tensor:
    """The write, or one of another position's direction, or of a random one, that is as long."""
    if direction == "own":
        return write
    if direction == "other":
        return as_long(write[torch.randperm(len(write), generator=draw)], write)
    return as_long(torch.randn(write.shape, generator=draw), write)


def firsts(model: Model, at: Start, write: Tensor) -> tuple[float, float]:
    """The shares of positions where the lens reads the input first after this write, and where a null token."""
    logits = model.unembed((at.embed + write)[None])[0]
    best = logits.amax(-1)
    first, null = (logits.gather(1, ids[:, None])[:, 0] == best for ids in (at.tokens, at.null))
    return first.float().mean().item(), null[at.null != at.tokens].float().mean().item()


def ratio(at: Start) -> float:
    return (at.write.norm(dim=-1).mean() / at.token.norm(dim=-1).mean()).item()


def estimate(values: Sequence[float]) -> Estimate:
    n, mean = len(values), math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return Estimate(mean, math.sqrt(squares / (n - 1) / n) if n > 1 else math.nan)


def over(documents: Sequence[Tensor], of: Callable[[Tensor, torch.Generator], dict[str, float]]) -> dict[str, Estimate]:
    """What is measured of each document, as estimates. Draws are the same each time."""
    draw = torch.Generator().manual_seed(0)
    found = [of(document, draw) for document in documents]
    return {name: estimate([each[name] for each in found]) for name in found[0]}


def measured(model: Model, documents: Sequence[Tensor]) -> dict[str, Estimate]:
    """The model as it is: lengths, ratio, cosine of write and token, and the shares."""

    def of(tokens: Tensor, draw: torch.Generator) -> dict[str, float]:
        at = start(model, tokens, draw)
        first, null = firsts(model, at, at.write)
        before, _ = firsts(model, at, torch.zeros_like(at.write))
        mid, _ = firsts(model, at, at.attention)
        other, random = (firsts(model, at, turned(at.write, which, draw))[0] for which in DIRECTIONS[1:])
        parts = {"token": at.token, "position": at.embed - at.token, "write": at.write, "attention": at.attention}
        after = at.embed + at.write
        parts |= {"rest": after - at.token}
        return {
            **{name: part.norm(dim=-1).mean().item() for name, part in parts.items()},
            "ratio": ratio(at),
            "cosine": torch.cosine_similarity(at.write, at.token, dim=-1).mean().item(),
            "kept": torch.cosine_similarity(after, at.token, dim=-1).mean().item(),
            "before": before,
            "mid": mid,
            "first": first,
            "null": null,
            "other": other,
            "random": random,
        }

    return over(documents, of)


class Curve(NamedTuple):
    """What becomes of the shares when the write, or the embedding, is multiplied by factors."""

    factors: Sequence[float]
    ratio: Tensor  # factor document, as are the next two
    first: Tensor
    null: Tensor

    @property
    def points(self) -> list[dict[str, Any]]:
        names = ("ratio", "first", "null")
        rows = zip(self.factors, *(getattr(self, name).tolist() for name in names), strict=True)
        return [
            {"factor": factor, **{name: estimate(values)._asdict() for name, values in zip(names, row, strict=True)}}
            for factor, *row in rows
        ]

    @property
    def half(self) -> Estimate:
        """The ratio at which half of the inputs are first; the error by leaving out one document after another."""
        n = self.ratio.shape[1]
        without = [[k for k in range(n) if k != left] for left in range(n)]
        found = torch.tensor([crossing(self.ratio[:, ks].mean(1), self.first[:, ks].mean(1)) for ks in without])
        error = ((found - found.mean()).square().sum() * (n - 1) / n).sqrt().item()
        return Estimate(crossing(self.ratio.mean(1), self.first.mean(1)), error)


def crossing(ratios: Tensor, firsts: Tensor) -> float:
    """The ratio at which the share falls below one half for good, between two of them on a logarithmic scale."""
    above = (firsts >= 0.5).nonzero()[:, 0].tolist()
    if not above or above[-1] == len(firsts) - 1:
        return math.nan
    k = above[-1]
    (a, b), (x, y) = ratios[k : k + 2].log().tolist(), firsts[k : k + 2].tolist()
    return math.exp(a + (b - a) * (x - 0.5) / (x - y))


def curve(
    model: Model, documents: Sequence[Tensor], what: str, direction: str = "own", factors: Sequence[float] = FACTORS
) -> Curve:
    """The shares where the "write" is multiplied by each factor, or the "embedding" by one over each."""
    draw = torch.Generator().manual_seed(0)
    found = []  # document factor [ratio first null]
    for tokens in documents:
        at = start(model, tokens, draw)
        write = turned(at.write, direction, draw)
        rows = []
        for factor in factors:
            longer = at._replace(write=write * factor)
            changed = longer if what == "write" else start(model, tokens, draw, 1 / factor)
            rows.append((ratio(changed), *firsts(model, changed, changed.write)))
        found.append(rows)
    return Curve(factors, *torch.tensor(found, dtype=torch.float64).permute(2, 1, 0))


def texts_of(path: Path, n: int = N_DOCUMENTS) -> list[str]:
    return list(islice((text for text in TextFile(path).documents() if text.strip()), n))


def write_json(path: Path, record: Any) -> None:
    with replacing(path) as file:
        file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def model_record(name: str, texts: Sequence[str], ignoring: Sequence[str]) -> dict[str, Any]:
    """What is measured of one model, and what becomes of it when its write or its embedding is changed."""
    model, tokenizer = minilens.load(name, ignoring=ignoring)
    documents = encode(model, tokenizer, texts)
    curves = {f"write, {direction}": curve(model, documents, "write", direction) for direction in DIRECTIONS}
    curves["embedding"] = curve(model, documents, "embedding")
    d_model, d_vocab = model.W_U.shape
    return {
        "sizes": {"d_model": d_model, "d_vocab": d_vocab, "documents": len(documents)},
        "chance": chance(d_model, d_vocab),
        "measured": {name: value._asdict() for name, value in measured(model, documents).items()},
        "half": {name: each.half._asdict() for name, each in curves.items()},
        "curves": {name: each.points for name, each in curves.items()},
    }


def chance(d_model: int, d_vocab: int) -> float:
    """The ratio of the half, were all embeddings and the write random vectors, of one length each.

    A write r times as long adds to each logit a normal number of deviation r / sqrt(d_model), where the input's own
    is 1. Half of the time the greatest of d_vocab such numbers is below 1.
    """
    greatest = torch.distributions.Normal(0, 1).icdf(torch.tensor(0.5 ** (1 / d_vocab), dtype=torch.float64))
    return (math.sqrt(d_model) / greatest).item()


def intervene(args: argparse.Namespace) -> None:
    texts = texts_of(args.text)
    models = {}
    for name in args.models:
        models[Path(name).name] = model_record(name, texts, args.ignore_key)
        print(f"{name} is measured", flush=True)
    write_json(args.out, {"machine": machine(), "models": models})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="held-out stories")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ignore-key", action="append", default=[])
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    intervene(parser.parse_args())


if __name__ == "__main__":
    main()

"""What a life says of one checkpoint: lens, lengths, heads and findings, as plain values for a file of JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..checkpoint.tokenizer import Tokenizer
from ..corpus.documents import TextFile
from ..corpus.measure import CorpusLens, Findings, Plan
from ..corpus.sweep import Counted, Sweep
from ..corpus.tally import VALUES
from ..instruments.heads import HeadScores, head_scores
from ..instruments.writes import first_lengths
from ..model import Model
from .claims import claims
from .experiments import study

SKIP = 4  # positions at the start of a window whose lengths do not count: there, many models have outliers
DRAWS, TEXTS, LENGTH = 8, 8, 25  # of `head_scores`: seeds, between which errors are found; its batch; its length


@dataclass(frozen=True, eq=False)
class Lengths:
    """Sums over documents of three numbers: tokens, the lengths of their embeddings, those of block 0's writes."""

    documents: Int[Tensor, ""]
    sums: Float[Tensor, "3"]
    products: Float[Tensor, "3 3"]  # of each two

    def __add__(self, other: "Lengths") -> "Lengths":
        return Lengths(**{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)})

    def ratio(self, over: int, under: int) -> dict[str, float | None]:
        """Of two sums, with its standard error, which comes from the spread between documents."""
        n, P = int(self.documents), self.products
        ratio = self.sums[over] / self.sums[under]
        spread = P[over, over] - 2 * ratio * P[over, under] + ratio**2 * P[under, under]
        error = (spread.clamp(min=0) * n / (n - 1)).sqrt() / self.sums[under] if n > 1 else torch.tensor(math.nan)
        return {"mean": _number(ratio.item()), "standard_error": _number(error.item())}


class LifeReader:
    """What a sweep of one checkpoint reads: what CorpusLens does, and the lengths of embedding and write."""

    def __init__(self, lens: CorpusLens) -> None:
        self.lens, self.model, self.tokenizer, self.shard = lens, lens.model, lens.tokenizer, lens.shard
        self.encode = lens.encode

    def identity(self) -> dict[str, Any]:
        return {**self.lens.identity(), "skip": SKIP}

    def empty(self) -> list[Any]:
        zeros = torch.zeros(3, 3, dtype=torch.double)
        return [*self.lens.empty(), Lengths(torch.tensor(0), zeros[0], zeros)]

    def tallies(self, documents: Sequence[Int[Tensor, "_"]], counts: Int[Tensor, "d_vocab"]) -> list[Any]:
        sums = torch.zeros(len(documents), 3, dtype=torch.double)
        for batch in self.lens.batches(documents):
            tokens = batch.tokens.to(self.model.W_U.device)
            lengths = torch.stack(first_lengths(self.model, tokens)).cpu().double()[:, batch.is_text]
            each = torch.cat([torch.ones_like(lengths[:1]), lengths])[:, batch.place >= SKIP]
            sums.index_add_(0, batch.document[batch.place >= SKIP], each.T)
        found = Lengths((sums[:, 0] > 0).sum(), sums.sum(0), sums.T @ sums)
        return [*self.lens.tallies(documents, counts), found]

    def n_tokens(self, tallies: Sequence[Any]) -> int:
        return self.lens.n_tokens(tallies[:-1])

    def findings(self, files: tuple[TextFile, ...], counted: Counted, tallies: list[Any]) -> tuple[Findings, Lengths]:
        return self.lens.findings(files, counted, tallies[:-1]), tallies[-1]


def measured(
    name: str,
    model: Model,
    tokenizer: Tokenizer,
    files: Sequence[TextFile],
    options: Mapping[str, Any],
    folder: Path,
    any_machine: bool,
) -> dict[str, Any]:
    """All of it, None where there is no number.

    options: of `Plan`, the prefix by default the first control code, if there are any. folder: of the sweep, so that
    another process can go on with it.
    """
    plan = Plan(**{"prefix": tokenizer.codes[0] if tokenizer.codes else "", **options})
    lens = CorpusLens(model, tokenizer, plan)
    sweep = Sweep(LifeReader(lens), files, folder, any_machine=any_machine)
    for _ in sweep.run():
        pass
    findings, lengths = sweep.findings()
    ((decoded,),) = (findings.decoders.values(),)
    return {
        "family": model.family,
        "documents": findings.counted.documents,
        "tokens": int(findings.counted.tokens.sum()),
        "rows": list(decoded.labels),
        "layers": list(decoded.layers),
        "lens": {
            value: _plain(decoded.tally.mean(value)[0], decoded.tally.standard_error(value)[0]) for value in VALUES
        },
        "heads": _heads(model),
        "block_0": {
            "embedding": lengths.ratio(1, 0),
            "write": lengths.ratio(2, 0),
            "ratio": lengths.ratio(2, 1),
        },
        **_findings(name, model, tokenizer),
    }


def _heads(model: Model) -> dict[str, Any]:
    """Every score of every head, with its standard error between draws of random tokens."""
    length = min(LENGTH, model.config.n_ctx // 2, model.W_U.shape[1])
    draws = [head_scores(model, length=length, batch=TEXTS, seed=seed) for seed in range(DRAWS)]
    found = {kind: torch.stack([getattr(draw, kind) for draw in draws]).double() for kind in HeadScores._fields}
    return {kind: _plain(each.mean(0), each.std(0) / math.sqrt(DRAWS)) for kind, each in found.items()}


def _findings(name: str, model: Model, tokenizer: Tokenizer) -> dict[str, Any]:
    """The findings of the study, or why there are none: too few blocks, or no word that suits the vocabulary."""
    try:
        found = claims(study(name, model, tokenizer))
    except ValueError as error:
        return {"findings": [], "no_findings": str(error)}
    return {
        "findings": [
            {
                "statement": claim.statement,
                "verdict": claim.verdict,
                "checks": [{**check._asdict(), "value": _number(check.value)} for check in claim.asked],
            }
            for claim in found
        ]
    }


def _plain(mean: Tensor, standard_error: Tensor) -> dict[str, Any]:
    """Lists of numbers, with None for what is not one."""

    def plain(value: Any) -> Any:
        return list(map(plain, value)) if isinstance(value, list) else _number(value)

    return {"mean": plain(mean.tolist()), "standard_error": plain(standard_error.tolist())}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None

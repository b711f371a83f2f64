"""What whole distributions of a lens's rows say on text that it was not fitted to: its bias, and how far twins differ.

bias: KL(p ‖ q) in nats, with p the mean over all tokens of the output's distribution and q that of the row's. It is
what the row gets wrong of the text as a whole, whatever it reads of each token (Belrose et al. 2023, arXiv 2303.08112,
section 3, "marginal KL").
twins_kl: KL(twin 1 ‖ twin 2) in nats, the mean over tokens: the noise floor of every figure of the lens.

Both follow from sums over tokens, which add up over texts. Errors are over shards of the text: a shard is left out at a
time (the jackknife).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..checkpoint.tokenizer import Tokenizer
from ..corpus.documents import TextFile
from ..corpus.measure import CorpusLens, Plan
from ..corpus.shared_files import digest
from ..corpus.sweep import Sweep
from ..model import Model
from ..ops import upcast
from ..shapes import shapes_of
from .affine import LearnedLens, RowMap
from .fit import FitReader, read_all
from .moments import Rows, Stream

AT_ONCE = 2**23  # logits that are held together

PerRow = Float[Tensor, "row"]


class Estimates(NamedTuple):
    """A figure of each row, and its standard error."""

    value: PerRow
    error: PerRow


@dataclass(frozen=True, eq=False)
class Distributions:
    """Sums over tokens, in float64; those of two texts add up."""

    tokens: Int[Tensor, ""]  # that were read
    n: Int[Tensor, ""]  # of them, those in the sums
    output: Float[Tensor, "d_vocab"]  # of the output's probabilities
    plain: Float[Tensor, "row d_vocab"]  # of those of each row without a map,
    mapped: Float[Tensor, "row d_vocab"]  # and with it
    twins: Float[Tensor, "row"]  # of KL(twin 1 ‖ twin 2), nats

    def __add__(self, other: "Distributions") -> "Distributions":
        return Distributions(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def __sub__(self, other: "Distributions") -> "Distributions":
        return Distributions(**{name: value - getattr(other, name) for name, value in vars(self).items()})

    def figures(self) -> dict[str, PerRow]:
        """bias_plain, bias and twins_kl of each row, in nats."""
        return {"bias_plain": self._bias(self.plain), "bias": self._bias(self.mapped), "twins_kl": self.twins / self.n}

    def _bias(self, rows: Float[Tensor, "row d_vocab"]) -> PerRow:
        p, q = self.output / self.n, rows / self.n
        return torch.where(p > 0, p * (p.log() - q.log()), 0.0).sum(-1)  # a probability may be 0 in float32

    def __repr__(self) -> str:
        return shapes_of(self)


class DistributionSums:
    """What a sweep sums for one lens and its twins, by the maps of each row. For the decoder and the norm "final"."""

    def __init__(self, model: Model, maps: Sequence[RowMap], twins: Sequence[Sequence[RowMap]]) -> None:
        self.model, self.maps, self.twins = model, maps, twins

    def identity(self) -> dict[str, Any]:
        return {"sums": "distributions", "maps": digest((*self.maps, *(row for twin in self.twins for row in twin)))}

    def empty(self, n_rows: int, d_model: int) -> Distributions:
        """The sums of no text."""
        n, d_vocab = torch.zeros((), dtype=torch.long), self.model.W_U.shape[1]
        rows = torch.zeros(n_rows, d_vocab, dtype=torch.float64)
        return Distributions(n, n.clone(), rows.new_zeros(d_vocab), rows, rows.clone(), rows.new_zeros(n_rows))

    def add(self, so_far: Distributions, rows: Rows, y: Stream) -> None:
        """Add some tokens to sums that nobody else has."""
        size = max(1, AT_ONCE // self.model.W_U.shape[1])
        for start in range(0, len(y), size):
            here = slice(start, start + size)
            so_far.output.add_(self._logp(y[here]).exp().sum(0, dtype=torch.float64))
            for row, h in enumerate(rows):
                so_far.plain[row] += self._logp(h[here]).exp().sum(0, dtype=torch.float64)
                so_far.mapped[row] += self._logp(_mapped(self.maps[row], h[here])).exp().sum(0, dtype=torch.float64)
                if self.twins:
                    one, two = (self._logp(_mapped(twin[row], h[here])) for twin in self.twins)
                    so_far.twins[row] += (one.exp() * (one - two)).sum(dtype=torch.float64)
        so_far.n.add_(len(y))

    def _logp(self, z: Stream) -> Float[Tensor, "token d_vocab"]:
        return upcast(self.model.unembed(z[None])[0]).log_softmax(-1)


def measure(
    model: Model,
    tokenizer: Tokenizer,
    files: Sequence[TextFile],
    folder: Path,
    plan: Plan,
    lens: LearnedLens,
    twins: Sequence[LearnedLens] = (),
    *,
    skip: int = 0,
    any_machine: bool = False,
    read: Callable[[Sweep[Any]], None] = read_all,
) -> dict[str, Estimates]:
    """The figures of a lens on files of text, by name; bias_plain is that of the logit lens.

    folder: of the sweep, in which it can be gone on with. plan: how the files are read. skip: as in `Recipe`. Raises
    ValueError for a lens of another decoder or norm than "final".
    """
    if (lens.decoder, lens.norm) != ("final", "final"):
        raise ValueError('bias and twins are measured for the decoder "final" and the norm "final"')
    sums = DistributionSums(model, [*lens.maps.values()], [[*twin.maps.values()] for twin in twins])
    sweep: Sweep[Any] = Sweep(
        FitReader(CorpusLens(model, tokenizer, plan), skip, sums), files, folder, any_machine=any_machine
    )
    n_shards = int(sweep.count().shards.sum())
    read(sweep)
    shards = [sweep.total(lambda number, n=n: number == n)[0] for n in range(n_shards)]  # type: ignore[misc]
    found = with_errors(shards)
    return found if twins else {name: found[name] for name in ("bias_plain", "bias")}


def with_errors(shards: Sequence[Distributions]) -> dict[str, Estimates]:
    """Each of the figures with its standard error over the shards; not a number where there are not two of them."""
    full = [shard for shard in shards if shard.n]
    if not full:
        raise ValueError("the text to measure on holds no tokens: give other text")
    whole = reduce(add, full)
    left_out = [(whole - shard).figures() for shard in full] if len(full) > 1 else []
    found = {}
    for name, value in whole.figures().items():
        each = torch.stack([figures[name] for figures in left_out] or [value * torch.nan])
        found[name] = Estimates(value, ((len(each) - 1) * each.var(0, correction=0)).sqrt())
    return found


def _mapped(row: RowMap, h: Stream) -> Stream:
    return row(h[None])[0]

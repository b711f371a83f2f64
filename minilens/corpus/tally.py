"""Sums and counts of what the lens says of many tokens, from which means, errors, shares and quantiles follow.

Tallies add up: those of the parts of a corpus, in whatever parts it was read, make that of the whole. Sums are in
float64, counts are whole numbers.

Tokens of one document are alike, so the standard error of a mean is that of a ratio of sums over documents, S_d of the
values and n_d of the tokens (the clustered or linearised one; Cochran 1977, Sampling Techniques, section 6.3):

    mean = sum S_d / sum n_d      error^2 = D / (D - 1) * sum (S_d - mean * n_d)^2 / (sum n_d)^2

for D documents. Quantiles come from counts in buckets 1 / PER_OCTAVE of an octave wide: they are within 4.5 % of a
value of the sample, or within 2^LOWEST nats; those above 2^HIGHEST nats are given as that.
"""

from dataclasses import dataclass, fields
from itertools import pairwise
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NUMBERS = ("kl_final", "kl_input", "entropy", "cross_entropy", "js")  # in nats; as in LensTable
RANKS = ("final", "next", "input")  # of whose token: the model's own, the true next one, the input
SHARES = ("agrees", "next_first", "input_first", "settled")  # of tokens; the first three: whose rank is 1
VALUES = NUMBERS + SHARES
OF_NEXT = [name in ("cross_entropy", "next_first") for name in VALUES]  # those that a document's last token lacks

LOWEST, HIGHEST, PER_OCTAVE = -14, 10, 16  # nats, as powers of two
N_BUCKETS = (HIGHEST - LOWEST) * PER_OCTAVE + 1  # the first: all below 2^LOWEST; the last: all above the others
N_RANKS = 32  # of ranks, one for each power of two: 1, 2 to 3, 4 to 7...
N_CONFIDENCES = 10  # buckets of a row's highest probability
SPLITS = ("all", "position", "frequency")  # position in the window; frequency of the true next token
FREQUENCIES = (1e-2, 1e-3, 1e-4, 1e-5)  # of the true next token among the tokens of the corpus


class Group(NamedTuple):
    """Some of the tokens."""

    split: str  # of SPLITS
    name: str


def groups(window: int) -> tuple[Group, ...]:
    """All tokens; those at positions 0, 1, 2 to 3, 4 to 7... of a window; those of each frequency."""
    ends = [0, *(2**n for n in range((window - 1).bit_length()))]
    places = [f"{low}-{min(2 * low, window) - 1}" if min(2 * low, window) - 1 > low else str(low) for low in ends]
    edges = [f"{edge:g}" for edge in FREQUENCIES]
    between = [f"{low} to {high}" for high, low in pairwise(edges)]
    rates = [f"{edges[0]} or more", *between, f"below {edges[-1]}"]
    return (
        Group("all", "all"),
        *(Group("position", name) for name in places),
        *(Group("frequency", name) for name in rates),
    )


class Observations(NamedTuple):
    """What one decoder's rows say of some tokens."""

    numbers: Float[Tensor, "number row token"]  # NUMBERS; the cross-entropy is anything where nothing follows
    ranks: Int[Tensor, "whose row token"]  # RANKS
    confidence: Float[Tensor, "row token"]  # the probability of the row's best token


M = TypeVar("M", bound="Means")


@dataclass(frozen=True, eq=False)
class Means:
    """Sums over tokens, from which means and their errors follow; the axes begin with group, and row where rows differ.

    What adds up is a frozen dataclass of tensors; with a sum of two, all its tensors are added.
    """

    tokens: Int[Tensor, "group value"]
    documents: Int[Tensor, "group value"]  # those with such tokens
    squared: Int[Tensor, "group value"]  # sum of n_d^2
    sums: Float[Tensor, "group row value"]
    squares: Float[Tensor, "group row value"]  # sum of S_d^2
    products: Float[Tensor, "group row value"]  # sum of S_d n_d

    def __add__(self: M, other: M) -> M:
        return type(self)(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def mean(self, value: str) -> Float[Tensor, "group row"]:
        """Of one of VALUES: nats, or a share from 0 to 1; not a number where a group is empty."""
        v = VALUES.index(value)
        return self.sums[..., v] / self.tokens[:, None, v]

    def standard_error(self, value: str) -> Float[Tensor, "group row"]:
        """Of the mean; not a number where there are not two documents."""
        v = VALUES.index(value)
        mean, n, n_documents = self.mean(value), self.tokens[:, None, v], self.documents[:, None, v].double()
        spread = self.squares[..., v] - 2 * mean * self.products[..., v] + mean**2 * self.squared[:, None, v]
        error = (spread.clamp(min=0) * n_documents / (n_documents - 1)).sqrt() / n
        return error.masked_fill(n_documents < 2, torch.nan)


@dataclass(frozen=True, eq=False)
class Tally(Means):
    """Sums of what one decoder's rows say, and counts of how it is spread."""

    buckets: Int[Tensor, "group row number bucket"]
    ranks: Int[Tensor, "group row whose power"]
    confident: Int[Tensor, "group row tenth"]  # tokens by the row's confidence,
    confidence: Float[Tensor, "group row tenth"]  # its sum,
    correct: Int[Tensor, "group row tenth"]  # and how often the row's best token was the true next one

    def quantile(self, number: str, q: float) -> Float[Tensor, "group row"]:
        """Of one of NUMBERS, in nats: a straight line through the bucket that holds it; of the lowest bucket 0."""
        counts = self.buckets[:, :, NUMBERS.index(number)].double()
        total = counts.sum(-1, keepdim=True)
        upto = counts.cumsum(-1)
        wanted = q * total
        bucket = torch.searchsorted(upto, wanted).clamp(max=N_BUCKETS - 1)
        held = counts.gather(-1, bucket)
        part = (wanted - upto.gather(-1, bucket) + held) / held
        edges = torch.cat([torch.zeros(1), 2.0 ** (torch.arange(N_BUCKETS) / PER_OCTAVE + LOWEST)]).double()
        found = edges[bucket] + part * (edges[bucket + 1] - edges[bucket])
        return found.masked_fill(bucket == 0, 0).masked_fill(total == 0, torch.nan)[..., 0]

    def settled(self) -> Int[Tensor, "group row"]:
        """At how many tokens the row is the first from which on the best token is the model's own."""
        so_far = self.sums[..., VALUES.index("settled")].long()
        return so_far.diff(dim=1, prepend=torch.zeros_like(so_far[:, :1]))

    def calibration_error(self) -> Float[Tensor, "group row"]:
        """The mean distance of confidence from accuracy, bucket by bucket (Naeini et al. 2015)."""
        return (self.confidence - self.correct).abs().sum(-1) / self.confident.sum(-1)


def tally(
    observed: Observations, group: Int[Tensor, "split token"], document: Int[Tensor, "token"], n_groups: int
) -> Tally:
    """The tally of some whole documents.

    group: the groups of each token, one for each split, the first "all" and the last by the next token; -1 for none.
    """
    has_next = group[-1] >= 0
    values, counts = _values(observed, has_next)
    bucket = ((observed.numbers.double().log2() - LOWEST) * PER_OCTAVE).floor().clamp(-1, N_BUCKETS - 2).long() + 1
    rank = observed.ranks.double().log2().floor().long()
    sure = (observed.confidence * N_CONFIDENCES).long().clamp(max=N_CONFIDENCES - 1)
    correct = (observed.ranks[RANKS.index("next")] == 1).double()
    whole = _zeros(n_groups, observed.ranks.shape[1])
    for each in group:
        with_next = each.masked_fill(~has_next, -1)
        _add_documents(whole, values.permute(2, 1, 0), counts.T, each, document)
        for n, name in enumerate(NUMBERS):
            of = with_next if name == "cross_entropy" else each
            whole["buckets"][:, :, n] += _histogram(bucket[n], of, n_groups, N_BUCKETS)
        for n, name in enumerate(RANKS):
            of = with_next if name == "next" else each
            whole["ranks"][:, :, n] += _histogram(rank[n], of, n_groups, N_RANKS)
        whole["confident"] += _histogram(sure, with_next, n_groups, N_CONFIDENCES)
        whole["confidence"] += _histogram(sure, with_next, n_groups, N_CONFIDENCES, observed.confidence.double())
        whole["correct"] += _histogram(sure, with_next, n_groups, N_CONFIDENCES, correct).long()
    return Tally(**whole)


def differences(
    observed: Observations,
    other: Observations,
    group: Int[Tensor, "split token"],
    document: Int[Tensor, "token"],
    n_groups: int,
) -> Means:
    """The sums of what one decoder's values lie above another's, token by token and row by row; all else as in `tally`.

    Both see the same tokens, so the error of a mean difference is that of one mean, and mostly far smaller than the
    errors of the two.
    """
    has_next = group[-1] >= 0
    (ours, counts), (theirs, _) = _values(observed, has_next), _values(other, has_next)
    whole = vars(no_differences(n_groups, observed.ranks.shape[1]))
    for each in group:
        _add_documents(whole, (ours - theirs).permute(2, 1, 0), counts.T, each, document)
    return Means(**whole)


def _values(
    observed: Observations, has_next: Bool[Tensor, "token"]
) -> tuple[Float[Tensor, "value row token"], Bool[Tensor, "value token"]]:
    """VALUES, 0 where they do not count; and where they do."""
    first = observed.ranks == 1
    agrees = first[RANKS.index("final")]
    shares = torch.stack([*first, agrees.flip(0).int().cumprod(0).flip(0) == 1])
    counts = has_next | ~torch.tensor(OF_NEXT)[:, None]
    return torch.cat([observed.numbers.double(), shares.double()]).masked_fill(~counts[:, None], 0), counts


def _add_documents(
    whole: dict[str, Tensor],
    values: Float[Tensor, "token row value"],
    counts: Bool[Tensor, "token value"],
    group: Int[Tensor, "token"],
    document: Int[Tensor, "token"],
) -> None:
    """Add to the sums over documents those of one split."""
    n_groups, at = len(whole["sums"]), group >= 0
    pairs, pair = torch.unique(document[at] * n_groups + group[at], return_inverse=True)
    n = torch.zeros(len(pairs), len(VALUES), dtype=torch.long).index_add_(0, pair, counts[at].long())
    S = values.new_zeros(len(pairs), *values.shape[1:]).index_add_(0, pair, values[at])
    found = {"tokens": n, "documents": (n > 0).long(), "squared": n**2}
    found |= {"sums": S, "squares": S**2, "products": S * n[:, None]}
    for name, of_pair in found.items():
        whole[name].index_add_(0, pairs % n_groups, of_pair)


def _histogram(
    bucket: Int[Tensor, "row token"],
    group: Int[Tensor, "token"],
    n_groups: int,
    n_buckets: int,
    weights: Float[Tensor, "row token"] | None = None,
) -> Tensor:
    """How many tokens of each group and row are in each bucket, or the sum of their weights: [group, row, bucket]."""
    n_rows, at = len(bucket), group >= 0
    flat = (group[at] * n_rows + torch.arange(n_rows)[:, None]) * n_buckets + bucket[:, at]
    of_each = None if weights is None else weights[:, at].flatten()
    return flat.flatten().bincount(of_each, n_groups * n_rows * n_buckets).view(n_groups, n_rows, n_buckets)


def empty(n_groups: int, n_rows: int) -> Tally:
    """The tally of nothing."""
    return Tally(**_zeros(n_groups, n_rows))


def no_differences(n_groups: int, n_rows: int) -> Means:
    """The differences of nothing."""
    zeros = _zeros(n_groups, n_rows)
    return Means(**{field.name: zeros[field.name] for field in fields(Means)})


def _zeros(n_groups: int, n_rows: int) -> dict[str, Tensor]:
    of_groups, of_rows = (n_groups, len(VALUES)), (n_groups, n_rows, len(VALUES))
    counts = {
        "tokens": of_groups,
        "documents": of_groups,
        "squared": of_groups,
        "buckets": (n_groups, n_rows, len(NUMBERS), N_BUCKETS),
        "ranks": (n_groups, n_rows, len(RANKS), N_RANKS),
        "confident": (n_groups, n_rows, N_CONFIDENCES),
        "correct": (n_groups, n_rows, N_CONFIDENCES),
    }
    sums = {"sums": of_rows, "squares": of_rows, "products": of_rows, "confidence": (n_groups, n_rows, N_CONFIDENCES)}
    return {name: torch.zeros(shape, dtype=torch.long) for name, shape in counts.items()} | {
        name: torch.zeros(shape, dtype=torch.double) for name, shape in sums.items()
    }

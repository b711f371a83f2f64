"""`mean` and `affine`: the maps in closed form, from sums over a corpus.

A row's residual is h, and y is the stream that the model's own decoder reads. Over n tokens, with X = [h, 1] of shape
[n, d_model + 1] and Y = y of shape [n, d_model]:

    S = X^T X      R = X^T Y      s = sum of Y^2

These add up over any parts of a corpus. Means and covariances follow from them, and from those the maps z = h A + b:

    mean:    A = I                                                           b = mean(y) - mean(h)
    affine:  A = I + (Cxx + ridge tr(Cxx) / d_model I)^-1 (Cxy - Cxx)        b = mean(y) - mean(h) A

`affine` is least squares (Din et al. 2023, "Jump to Conclusions", arXiv 2303.09435, there without b) with a ridge that
pulls A towards the identity: without it A is free, and as it grows the map becomes `mean`. On other texts, with their
sums and T = [A; b], the error of a map is

    sum |y - h A - b|^2 = s - 2 <T, R> + <T, S T>

so the ridge is chosen on texts that are left out, without reading them again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..shapes import shapes_of

Stream = Float[Tensor, "token d_model"]
Rows = Sequence[Stream]
Map = Float[Tensor, "wide d_model"]  # T = [A; b]; wide is d_model + 1

RIDGES = tuple(10.0**power for power in range(-6, 0))  # from which one is chosen


@dataclass(frozen=True, eq=False)
class Moments:
    """The sums S, R and s of some texts, in float64; those of two texts add up."""

    tokens: Int[Tensor, ""]  # that were read
    n: Int[Tensor, ""]  # of them, those in the sums
    S: Float[Tensor, "row wide wide"]
    R: Float[Tensor, "row wide d_model"]
    s: Float[Tensor, ""]

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def __repr__(self) -> str:
        return shapes_of(self)


class MomentSums:
    """What `fit` sums for the closed form."""

    def identity(self) -> dict[str, Any]:
        return {"sums": "moments"}

    def empty(self, n_rows: int, d_model: int) -> Moments:
        """The sums of no text."""
        n = torch.zeros((), dtype=torch.long)
        S, R = (torch.zeros(n_rows, d_model + 1, width, dtype=torch.float64) for width in (d_model + 1, d_model))
        return Moments(n, n.clone(), S, R, S.new_zeros(()))

    def add(self, so_far: Moments, rows: Rows, y: Stream) -> None:
        """Add some tokens to sums that nobody else has."""
        Y = y.double()
        for S, R, h in zip(so_far.S, so_far.R, rows, strict=True):
            X = with_one(h.double())
            S.addmm_(X.T, X)
            R.addmm_(X.T, Y)
        so_far.n.add_(len(Y))
        so_far.s.add_((Y**2).sum())


def with_one(h: Float[Tensor, "token d_model"]) -> Float[Tensor, "token wide"]:
    """X = [h, 1]."""
    return torch.cat([h, h.new_ones(len(h), 1)], 1)


def best_map(moments: Moments, row: int, ridge: float) -> Map:
    """T = [A; b] of a row: `affine`, or `mean` where the ridge is infinite.

    Raises ValueError where the residuals have too few directions for this ridge, or are not finite.
    """
    mean_h, mean_y, Cxx, Cxy = _centred(moments, row)
    A = torch.eye(len(Cxx)).to(Cxx)
    if ridge < inf:
        pull = ridge * Cxx.trace() / len(Cxx) * A
        factor, failed = torch.linalg.cholesky_ex(Cxx + pull)
        if failed or not factor.isfinite().all():
            raise ValueError(
                f"the residuals of {int(moments.n):,} tokens do not determine a map with a ridge of {ridge:g}: give "
                "more text, or a larger ridge"
            )
        A = A + torch.cholesky_solve(Cxy - Cxx, factor)
    return torch.cat([A, (mean_y - mean_h @ A)[None]])


def constant_map(moments: Moments, row: int) -> Map:
    """T of the lens that says the same everywhere: A = 0, b = mean(y).

    This is what is fitted where each y is that of another token, drawn at random: h then tells nothing of y. What such
    a lens gains over the plain one is no reading of h.
    """
    _, mean_y, Cxx, _ = _centred(moments, row)
    return torch.cat([torch.zeros_like(Cxx), mean_y[None]])


def error(moments: Moments, row: int, T: Map) -> float:
    """The mean over the tokens of |y - h A - b|^2."""
    of_all = moments.s - 2 * (T * moments.R[row]).sum() + (T * (moments.S[row] @ T)).sum()
    return float(of_all / moments.n)


def r_squared(moments: Moments, row: int, T: Map) -> float:
    """1 less the part of the variance of y that the map leaves."""
    _, mean_y, _, _ = _centred(moments, row)
    return 1 - error(moments, row, T) / float(moments.s / moments.n - mean_y @ mean_y)


def choose_ridge(rest: Moments, left_out: Moments, row: int) -> float:
    """That of RIDGES with which the map of the rest has the smallest error on what was left out."""
    return min(RIDGES, key=lambda ridge: error(left_out, row, best_map(rest, row, ridge)))


def likeness(one: Map, other: Map) -> tuple[float, float]:
    """The cosine of two maps' departures from the identity, A - I, and that of their biases; 1 for the same map."""

    def departure(T: Map) -> Tensor:
        return T[:-1] - torch.eye(T.shape[1]).to(T)

    pairs = (departure(one).flatten(), departure(other).flatten()), (one[-1], other[-1])
    return tuple(float(torch.nn.functional.cosine_similarity(a, b, dim=0)) for a, b in pairs)  # type: ignore[return-value]


def _centred(moments: Moments, row: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The means of h and y, and the covariances of h with itself and with y."""
    if moments.n == 0:
        raise ValueError("there are no tokens to fit a lens to")
    S, R = moments.S[row] / moments.n, moments.R[row] / moments.n
    mean_h, mean_y = S[-1, :-1], R[-1]
    return mean_h, mean_y, S[:-1, :-1] - mean_h.outer(mean_h), R[:-1] - mean_h.outer(mean_y)

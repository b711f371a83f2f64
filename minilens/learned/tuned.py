"""`tuned`: the maps that minimise KL(output ‖ row), found from `affine` by L-BFGS, one sweep over the corpus a step.

Belrose et al. 2023, "Eliciting Latent Predictions with the Tuned Lens" (arXiv 2303.08112), by another way down. The
target p, the model's own output, enters through three things only: w = W_U p, its entropy H(p), and p·b_U. With
z = h A + b, its normed form n = (z - mean(z)) / sigma, and x = n * gain + bias of the final norm,

    KL = -H(p) - x·w - p·b_U + logsumexp(x W_U + b_U)           q = softmax(x W_U + b_U)
    g_n = gain * (W_U q - w)      g_z = (g_n - mean(g_n) - n mean(n * g_n)) / sigma      G = sum of X^T g_z

where X = [h, 1], and the means are over d_model. G is the gradient of the sum of KL by T = [A; b]. Sums of KL and G add
up over texts as those of the closed form do.

L-BFGS (Nocedal and Wright 2006, Numerical Optimization, algorithm 7.4) works on U, with S / n = L L^T and U = L^T T: a
step in U is as long as the root of the mean square by which it moves z. Every row goes its own way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..corpus.shared_files import digest
from ..model import Model
from ..ops import upcast
from ..shapes import shapes_of
from .moments import Map, Moments, Rows, Stream, with_one

HISTORY = 10  # pairs of steps and changes of the gradient that L-BFGS looks back on
FIRST = 0.2  # of KL, by which the first step would lower it if it fell as steeply all along
DAMPING = 1e-6  # of the mean of S's diagonal, added to it before S / n = L L^T
AT_ONCE = 2**23  # logits that are held together


@dataclass(frozen=True, eq=False)
class Slopes:
    """Sums of KL(output ‖ row) and of its gradient, in float64; those of two texts add up."""

    tokens: Int[Tensor, ""]  # that were read
    n: Int[Tensor, ""]  # of them, those in the sums
    kl: Float[Tensor, "row"]  # in nats
    G: Float[Tensor, "row wide d_model"]

    def __add__(self, other: "Slopes") -> "Slopes":
        return Slopes(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def __repr__(self) -> str:
        return shapes_of(self)


class SlopeSums:
    """What `fit` sums in a step, for maps T. For the decoder "final" and the norm "final"."""

    def __init__(self, model: Model, T: Float[Tensor, "row wide d_model"]) -> None:
        self.model, self.T = model, T

    def identity(self) -> dict[str, Any]:
        return {"sums": "slopes", "maps": digest((self.T,))}

    def empty(self, n_rows: int, d_model: int) -> Slopes:
        """The sums of no text."""
        n = torch.zeros((), dtype=torch.long)
        G = torch.zeros(n_rows, d_model + 1, d_model, dtype=torch.float64)
        return Slopes(n, n.clone(), G.new_zeros(n_rows), G)

    def add(self, so_far: Slopes, rows: Rows, y: Stream) -> None:
        """Add some tokens to sums that nobody else has."""
        size = max(1, AT_ONCE // self.model.W_U.shape[1])
        for start in range(0, len(y), size):
            here = slice(start, start + size)
            target = _target(self.model, y[here])
            for row, h in enumerate(rows):
                kl, G = slope(self.model, target, h[here], self.T[row])
                so_far.kl[row] += kl.double().sum()
                so_far.G[row] += G
        so_far.n.add_(len(y))


class Target(NamedTuple):
    """What there is to know of the model's output p."""

    w: Float[Tensor, "token d_model"]  # W_U p
    entropy: Float[Tensor, "token"]
    bias: Float[Tensor, "token"]  # p·b_U


def _target(model: Model, y: Stream) -> Target:
    W_U, b_U = upcast(model.W_U), None if model.b_U is None else upcast(model.b_U)
    x = upcast(model.final_norm(y[None])[0])
    logp = (x @ W_U if b_U is None else x @ W_U + b_U).log_softmax(-1)
    p = logp.exp()
    return Target(p @ W_U.mT, -(p * logp).sum(-1), p.sum(-1) * 0 if b_U is None else p @ b_U)


def slope(
    model: Model, target: Target, h: Float[Tensor, "token d_model"], T: Map
) -> tuple[Float[Tensor, "token"], Map]:
    """KL(output ‖ row) of each token, and the gradient of their sum by T."""
    W_U, b_U = upcast(model.W_U), model.b_U
    gain, bias = upcast(model.ln_final.w), upcast(model.ln_final.b)
    X = with_one(upcast(h))
    z = X @ T.to(X)
    centred = z - z.mean(-1, keepdim=True)
    sigma = (centred.square().mean(-1, keepdim=True) + model.ln_final_eps).sqrt()
    n = centred / sigma
    x = n * gain + bias
    logits = x @ W_U if b_U is None else x @ W_U + upcast(b_U)
    lse = logits.logsumexp(-1)
    q = (logits - lse[:, None]).exp()
    kl = -target.entropy - (x * target.w).sum(-1) - target.bias + lse
    g_n = gain * (q @ W_U.mT - target.w)
    g_z = (g_n - g_n.mean(-1, keepdim=True) - n * (n * g_n).mean(-1, keepdim=True)) / sigma
    return kl, X.mT @ g_z


class Point(NamedTuple):
    """A map of one row, and what the texts say of it."""

    T: Map
    kl: float  # mean KL(output ‖ row)
    gradient: Map  # of that mean


def whitening(moments: Moments, row: int) -> Float[Tensor, "wide wide"]:
    """L, lower triangular, with S / n = L L^T."""
    S = moments.S[row] / moments.n
    L: Tensor = torch.linalg.cholesky(S + DAMPING * S.diagonal().mean() * torch.eye(len(S)).to(S))
    return L


def next_map(points: Sequence[Point], L: Tensor) -> Map:
    """The map to try after these, of which the first is the start.

    A point counts if it lies below the best before it; after one that does not, the step from the best is a quarter as
    long.
    """
    start, *tried = ((L.mT @ point.T, point) for point in points)
    (U, best), step = start, 1.0
    pairs: list[tuple[Tensor, Tensor]] = []
    for V, point in tried:
        if point.kl >= best.kl:
            step /= 4
            continue
        change = torch.linalg.solve_triangular(L, point.gradient - best.gradient, upper=False)
        if ((V - U) * change).sum() > 0:
            pairs.append((V - U, change))
        U, best, step = V, point, 1.0
    g = torch.linalg.solve_triangular(L, best.gradient, upper=False)
    move = _two_loops(g, pairs[-HISTORY:]) if pairs else g * (FIRST * best.kl / g.square().sum().clamp(min=1e-300))
    T: Tensor = torch.linalg.solve_triangular(L.mT, U - step * move, upper=True)
    return T


def _two_loops(g: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The inverse of the Hessian that these pairs tell, times g."""
    shares = []
    for s, y in reversed(pairs):
        share = (s * g).sum() / (s * y).sum()
        g = g - share * y
        shares.append(share)
    s, y = pairs[-1]
    g = g * ((s * y).sum() / (y * y).sum())
    for (s, y), share in zip(pairs, reversed(shares), strict=True):
        g = g + s * (share - (y * g).sum() / (s * y).sum())
    return g

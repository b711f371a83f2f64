"""Pushes: changes of the residuals of a row, along directions in which a lens reads.

What they do, and what the lens says that they do, is in fidelity.py.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..arguments import token_id, whole_number
from ..lens import label, residuals
from ..model import Model
from ..ops import upcast
from ..shapes import Resid, Tokens
from ..traces import Site
from .affine import LearnedLens

Directions = Float[Tensor, "direction d_model"]
PARALLEL = 0.999  # a cosine above which two directions have no coordinates of their own


class Push(NamedTuple):
    """A change of the residuals of a row."""

    change: Callable[[Resid], Resid]  # the new residuals, of those that are there
    pair: tuple[int, int] | None = None  # two tokens: the log-odds of the second against the first are measured


def turned(push: Push, rotation: Float[Tensor, "d_model d_model"]) -> Push:
    """The push whose change of each residual is that of another one, rotated."""
    return push._replace(change=lambda h: h + (upcast(push.change(h) - h) @ rotation).to(h))


def random_rotation(d_model: int, seed: int) -> Float[Tensor, "d_model d_model"]:
    """A random orthogonal matrix."""
    Q, R = torch.linalg.qr(torch.randn(d_model, d_model, generator=torch.Generator().manual_seed(seed)))
    rotation: Tensor = Q * R.diagonal().sign()
    return rotation


def principal_directions(model: Model, lens: LearnedLens | None, site: Site, k: int) -> Directions:
    """The k orthogonal unit vectors of a row's residual along which a lens's logits move most, the most first.

    lens: by default the plain one. The final norm is taken without its scale, which no direction changes, and the
    logits without their mean over the vocabulary, which no probability depends on.
    """
    to_logits = _to_logits(model, lens, site, model.W_U)
    moved = to_logits - to_logits.mean(1, keepdim=True)
    _, vectors = torch.linalg.eigh((moved @ moved.mT).double())
    directions: Tensor = vectors.flip(1)[:, : whole_number("k", k)].mT.to(to_logits)
    return directions


def token_directions(
    model: Model, lens: LearnedLens | None, site: Site, tokens: Sequence[int], *, centred: bool = False
) -> Directions:
    """The vectors of a row's residual along which a lens's logits of some tokens grow.

    lens: by default the plain one. centred: take out the mean of all tokens' vectors, which they have in common.
    """
    ids = [token_id("token", token, model.W_U.shape[1]) for token in tokens]
    W_U = upcast(model.W_U[:, ids])
    return _to_logits(model, lens, site, W_U - model.W_U.mean(1, keepdim=True, dtype=W_U.dtype) if centred else W_U).mT


def _to_logits(
    model: Model, lens: LearnedLens | None, site: Site, W_U: Float[Tensor, "d_model token"]
) -> Float[Tensor, "d_model token"]:
    """The lens without the scale of the final norm: A, the norm's mean subtracted, its gain, columns of W_U."""
    weighed = upcast(model.ln_final.w[:, None] * W_U)
    centred = weighed - weighed.mean(0)
    if lens is None:
        return centred
    if site not in lens.maps:
        raise ValueError(f"the lens {lens.name} has no map for the row {label(site)}")
    to_logits: Tensor = lens.maps[site].A.to(centred) @ centred
    return to_logits


def ablations(directions: Directions, mean: Float[Tensor, "d_model"]) -> list[Push]:
    """For each direction a push that gives all residuals the coordinate along it that their mean has."""

    def towards_mean(unit: Float[Tensor, "d_model"]) -> Push:
        return Push(lambda h: h + (((mean - h).to(unit) @ unit)[..., None] * unit).to(h))

    return [towards_mean(unit) for unit in torch.nn.functional.normalize(directions, dim=1)]


def mean_residual(model: Model, texts: Sequence[Tokens], site: Site, *, skip: int = 1) -> Float[Tensor, "d_model"]:
    """The mean of a row's residuals over the positions of texts, but the first ones of each."""
    found = [dict(residuals(model, model.embed(tokens), (site,)))[site][:, skip:] for tokens in texts]
    return torch.cat([each.flatten(0, 1) for each in found]).mean(0)


class TokenAxes(NamedTuple):
    """The directions of some tokens, and what tells coordinates along them."""

    V: Float[Tensor, "token d_model"]
    pinv: Float[Tensor, "d_model token"]

    def read(self, h: Float[Tensor, "*d d_model"]) -> Float[Tensor, "*d token"]:
        """The coordinates c: c @ V is as near to h as the directions come."""
        return upcast(h) @ self.pinv

    def moved(self, h: Resid, coordinates: Float[Tensor, "*pos token"]) -> Resid:
        """h with these coordinates. What is orthogonal to all the directions stays."""
        return h + ((coordinates - self.read(h)) @ self.V).to(h)

    def swapped(self, h: Resid) -> Resid:
        """h with its coordinates in the other order."""
        return self.moved(h, self.read(h).flip(-1))


def token_axes(
    model: Model, lens: LearnedLens | None, site: Site, tokens: Sequence[int], *, centred: bool = False
) -> TokenAxes:
    """The axes of some tokens in a row's residual. lens, centred: as in `token_directions`.

    Raises ValueError for two tokens of almost the same direction.
    """
    V = token_directions(model, lens, site, tokens, centred=centred)
    unit = torch.nn.functional.normalize(V, dim=1)
    cosines = (unit @ unit.mT).fill_diagonal_(0)
    at = int(cosines.abs().nan_to_num(nan=torch.inf).argmax())
    one, other = at // len(V), at % len(V)
    if len(V) > 1 and not (cosine := float(cosines[one, other])) ** 2 < PARALLEL**2:
        raise ValueError(
            f"the tokens {tokens[one]} and {tokens[other]} have almost the same direction at {label(site)}, with a "
            f"cosine of {cosine:.4f}: take two that differ"
        )
    return TokenAxes(V, torch.linalg.pinv(V))


def swaps(
    model: Model,
    lens: LearnedLens | None,
    site: Site,
    pairs: Sequence[tuple[int, int]],
    *,
    centred: bool = False,
) -> list[Push]:
    """For each pair of tokens a push that swaps their coordinates in each residual (Gurnee et al. 2026).

    With V the two tokens' vectors, c = pinv(V) h are the coordinates, and h + V (c swapped - c) is the new residual:
    what is orthogonal to both vectors stays. The log-odds of the second token against the first are measured. lens,
    centred: as in `token_directions`. Raises ValueError for two tokens of almost the same direction.
    """
    return [Push(token_axes(model, lens, site, pair, centred=centred).swapped, pair) for pair in pairs]

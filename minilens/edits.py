"""Builders of edits: values to be replaced while a model runs, as an argument of that one call.

`at` says where and takes any function; those after it are ready-made. All but `then` can be limited to some positions
and, where a value is split into heads, to some heads.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import index

import torch
from jaxtyping import Float
from torch import Tensor

from .model import Model
from .traces import HEAD_SITES, RESID_SITES, SITES, BlockTrace, Edit, Site, kept

Places = int | Iterable[int] | None
"""One of them, several, or all; negative ones are counted from the end."""


def at(
    layer: int, site: str, fn: Callable[[Tensor], Tensor], *, positions: Places = None, heads: Places = None
) -> Edit:
    """The edit that replaces the value at one site of one layer by fn(value), a new tensor of the same shape.

    positions, heads: what fn gets and gives back, as [batch (head) pos ...]; all else stays as it is. The positions of
    `pattern` are its queries. Raises ValueError for a site that cannot be edited or has no heads, and for a negative
    layer; what the model or the text does not have is refused when it runs.
    """
    return _At(_site(layer, site), fn, _Part(site, positions, heads))


def then(*edits: Edit) -> Edit:
    """Several edits as one, each given what the one before it returned."""
    return _Then(edits)


def zero(layer: int, site: str, *, positions: Places = None, heads: Places = None) -> Edit:
    """Nothing in its place: zero ablation. Raises ValueError as `at` does."""
    return at(layer, site, torch.zeros_like, positions=positions, heads=heads)


def mean(reference: BlockTrace, site: str, *, positions: Places = None, heads: Places = None) -> Edit:
    """The mean over a reference's texts and positions in its place: mean ablation, in the reference's layer.

    Raises ValueError as `at` does, and for `pattern`, whose positions have different keys.
    """
    place, part = _site(reference.layer, site), _Part(site, positions, heads)
    if site == "pattern":
        raise ValueError('"pattern" has no mean over the positions, since they have different keys; edit z instead')
    value = getattr(reference, site).mean(dim=(0, -2), keepdim=True)
    value = value[_Part(site, None, heads).of(value, place)]
    return _At(place, lambda old: value.expand(len(old), *value.shape[1:-2], old.shape[-2], -1), part)


def patch(
    source: BlockTrace, site: str, *, layer: int | None = None, positions: Places = None, heads: Places = None
) -> Edit:
    """The value of another run in its place: activation patching, by default in the layer that the value is from.

    positions: in either text, so that -1 is the last of each. A source of one text serves a batch of any size. Raises
    ValueError as `at` does, also for what the source does not have.
    """
    place, part = _site(source.layer if layer is None else layer, site), _Part(site, positions, heads)
    value: Tensor = getattr(source, site)
    value = value[part.of(value, place)]

    def fn(old: Tensor) -> Tensor:
        ours, theirs = value.shape[-2], old.shape[-2]
        if ours != theirs:
            raise ValueError(
                f"the patch at {place.layer}.{site} is of {ours} positions, and goes into {theirs}: name "
                "positions that both have, or take texts of as many tokens"
            )
        return value.expand(len(old), *value.shape[1:]) if len(value) == 1 else value

    return _At(place, fn, part)


def add(
    layer: int, site: str, direction: Float[Tensor, "width"], *, positions: Places = None, heads: Places = None
) -> Edit:
    """A direction, of the site's width (d_model, d_head, d_mlp), added to the value: steering.

    Raises ValueError as `at` does, and when it runs for a direction of another width.
    """

    def fn(old: Tensor) -> Tensor:
        if direction.shape != old.shape[-1:]:
            found = list(direction.shape)
            raise ValueError(f"a direction to add at {layer}.{site} has the shape {list(old.shape[-1:])}; got {found}")
        return old + direction.to(old)

    return at(layer, site, fn, positions=positions, heads=heads)


def towards(model: Model, layer: int, site: str, token: int, amount: float, *, positions: Places = None) -> Edit:
    """The residual moved towards a token's embedding: amount 0 leaves it, 1 makes it the embedding.

    The embedding is the token's column of W_U, with the residual's own norm. Asked for under the post of 2020: let late
    layers see a token as if it were their own guess. Raises ValueError as `at` does, and for what is no residual
    or token.
    """
    if site not in RESID_SITES:
        raise ValueError(f'"{site}" is no residual; {", ".join(RESID_SITES)} are')
    if not 0 <= token < model.W_U.shape[1]:
        raise ValueError(f"token id {token} does not exist: the model's ids go from 0 to {model.W_U.shape[1] - 1}")
    embedding = model.W_U[:, token]

    def fn(old: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(old, dim=-1, keepdim=True) / torch.linalg.vector_norm(embedding)
        return old.lerp(norms * embedding, amount)

    return at(layer, site, fn, positions=positions)


class _Part:
    """The positions and heads of an edit."""

    def __init__(self, site: str, positions: Places, heads: Places) -> None:
        if heads is not None and site not in HEAD_SITES:
            raise ValueError(f'"{site}" is not split into heads; {", ".join(HEAD_SITES)} are')
        self.has_heads = site in HEAD_SITES
        self.positions, self.heads = _listed("positions", positions), _listed("heads", heads)

    @property
    def is_all(self) -> bool:
        return self.positions is None and self.heads is None

    def of(self, value: Tensor, site: Site) -> tuple[slice | Tensor, ...]:
        """What takes the part out of a value: an index for batch, perhaps head, and position."""
        positions = _within(self.positions, value.shape[-2], "position", site)
        if not self.has_heads:
            return slice(None), positions
        heads = _within(self.heads, value.shape[1], "head", site)
        return slice(None), heads[:, None], positions


@dataclass(frozen=True)
class _At:
    site: Site
    fn: Callable[[Tensor], Tensor]
    part: _Part

    @property
    def sites(self) -> tuple[Site, ...]:
        """The places this edit is for; `run` refuses it where one of them does not come up."""
        return (self.site,)

    def __call__(self, site: Site, value: Tensor) -> Tensor:
        if site != self.site:
            return value
        if self.part.is_all:
            return self.fn(value)
        part = self.part.of(value, site)
        old = value[part]
        edited = value.clone()
        edited[part] = kept(site, self.fn(old), old)
        return edited


@dataclass(frozen=True)
class _Then:
    edits: tuple[Edit, ...]

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(site for edit in self.edits for site in getattr(edit, "sites", ()))

    def __call__(self, site: Site, value: Tensor) -> Tensor:
        for edit in self.edits:
            value = edit(site, value)
        return value


def _site(layer: int, site: str) -> Site:
    if site not in SITES:
        raise ValueError(f'"{site}" is not a site that can be edited; those are {", ".join(SITES)}')
    if layer < 0:
        raise ValueError(f"layer {layer} does not exist: layers count from 0")
    return Site(layer, site)


def _listed(what: str, places: Places) -> list[int] | None:
    if places is None:
        return None
    found = places.tolist() if isinstance(places, Tensor) else places
    found = list(found) if isinstance(found, Iterable) else [found]
    if not found:
        raise ValueError(f"{what} is empty: choose at least one, or leave it out for all")
    if not all(hasattr(place, "__index__") and not isinstance(place, bool) for place in found):
        raise ValueError(f"{what} must be whole numbers; got {places!r}")
    return [index(place) for place in found]


def _within(places: list[int] | None, n: int, what: str, site: Site) -> Tensor:
    """The places, or all, as an index of a dimension of size n."""
    if places is None:
        return torch.arange(n)
    for place in places:
        if not -n <= place < n:
            raise ValueError(f"the edit at {site.layer}.{site.name} has no {what} {place}: there are {n}")
    found = [place % n for place in places]
    if len({*found}) < len(found):
        raise ValueError(f"the edit at {site.layer}.{site.name} names a {what} twice, of {n}: {places}")
    return torch.tensor(found)

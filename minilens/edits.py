"""Builders of edits: values to be replaced while a model runs, as an argument of that one call.

`at` says where and takes any function; those after it are ready-made. All but `then` can be limited to some positions
and, where a value is split into heads, to some heads.

Texts side by side in a batch are padded on the right. An edit does not see where a text ends unless it is told with
`lengths`, as `tokenizer.encode` gives them for a list of texts.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .arguments import EDIT, check_function, check_model, quoted, whole_number, whole_numbers
from .model import Model
from .traces import HEAD_SITES, RESID_SITES, SITES, BlockTrace, Edit, Site, kept

Places = int | Iterable[int] | None
"""One of them, several, or all; negative ones are counted from the end."""

Lengths = Int[Tensor, "batch"] | Sequence[int] | None
"""How many tokens each text of a padded batch has; None where nothing is padded."""


def at(
    layer: int,
    site: str,
    fn: Callable[[Tensor], Tensor],
    *,
    positions: Places = None,
    heads: Places = None,
    lengths: Lengths = None,
) -> Edit:
    """The edit that replaces the value at one site of one layer by fn(value), a new tensor of the same shape.

    positions, heads: what fn gets and gives back, as [batch (head) pos ...]; all else stays as it is. The positions of
    `pattern` are its queries. lengths: of the texts that are edited; a position is then one of each text, and -1 the
    last of each. Without positions the padding is edited, too, which no text sees. Raises ValueError for a site that
    cannot be edited or has no heads, and for a negative layer; what the model or a text does not have is refused when
    it runs.
    """
    place = _site(layer, site)
    check_function("fn", fn, "a function of the value that gives a new one")
    return _At(place, fn, _Part(site, positions, heads, lengths))


def then(*edits: Edit) -> Edit:
    """Several edits as one, each given what the one before it returned. Raises ValueError for no edit."""
    for edit in edits:
        check_function("each edit", edit, EDIT)
    return _Then(edits)


def zero(layer: int, site: str, *, positions: Places = None, heads: Places = None, lengths: Lengths = None) -> Edit:
    """Nothing in its place: zero ablation. All else as in `at`."""
    return at(layer, site, torch.zeros_like, positions=positions, heads=heads, lengths=lengths)


def mean(
    reference: BlockTrace,
    site: str,
    *,
    reference_lengths: Lengths = None,
    positions: Places = None,
    heads: Places = None,
    lengths: Lengths = None,
) -> Edit:
    """The mean over a reference's texts and positions in its place: mean ablation, in the reference's layer.

    reference_lengths: of the reference's texts, whose padding is then left out of the mean. positions: where the mean
    is put; it is taken over all. All else as in `at`; raises ValueError also for `pattern`, whose positions have
    different keys, and where `lengths` is given and `reference_lengths` is not, though the reference has several texts.
    """
    _check_block("reference", reference)
    _check_lengths("reference", reference, lengths, reference_lengths)
    place, part = _site(reference.layer, site), _Part(site, positions, heads, lengths)
    if site == "pattern":
        raise ValueError('"pattern" has no mean over the positions, since they have different keys; edit z instead')
    value: Tensor = getattr(reference, site)
    if reference_lengths is not None:
        texts = zip(value, _ends(reference_lengths, value, place), strict=True)
        value = torch.cat([text[..., :end, :] for text, end in texts], -2)[None]  # one long text, without the padding
    value = value.mean(dim=(0, -2), keepdim=True)
    value = value[_Part(site, None, heads, None).of(value, place)]
    return _At(place, lambda old: value.expand(len(old), *value.shape[1:-2], old.shape[-2], -1), part)


def patch(
    source: BlockTrace,
    site: str,
    *,
    layer: int | None = None,
    source_lengths: Lengths = None,
    positions: Places = None,
    heads: Places = None,
    lengths: Lengths = None,
) -> Edit:
    """The value of another run in its place: activation patching, by default in the layer that the value is from.

    positions: in either text, so that -1 is the last of each. source_lengths: of the source's texts, as lengths are of
    those that are edited. A source of one text serves a batch of any size. All else as in `at`; raises ValueError also
    for what the source does not have, and where `lengths` is given and `source_lengths` is not, though the source has
    several texts.
    """
    _check_block("source", source)
    _check_lengths("source", source, lengths, source_lengths)
    place = _site(source.layer if layer is None else layer, site)
    part = _Part(site, positions, heads, lengths)
    value: Tensor = getattr(source, site)
    value = value[_Part(site, positions, heads, source_lengths).of(value, place)]

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
    layer: int,
    site: str,
    direction: Float[Tensor, "width"],
    *,
    positions: Places = None,
    heads: Places = None,
    lengths: Lengths = None,
) -> Edit:
    """A direction, of the site's width (d_model, d_head, d_mlp), added to the value: steering.

    All else as in `at`; raises ValueError also for no tensor and, when it runs, for a tensor of another width.
    """
    if not isinstance(direction, Tensor):
        raise ValueError(f"direction must be a tensor, as wide as the site; got {quoted(direction)}")

    def fn(old: Tensor) -> Tensor:
        if direction.shape != old.shape[-1:]:
            found = list(direction.shape)
            raise ValueError(f"a direction to add at {layer}.{site} has the shape {list(old.shape[-1:])}; got {found}")
        return old + direction.to(old)

    return at(layer, site, fn, positions=positions, heads=heads, lengths=lengths)


def towards(
    model: Model,
    layer: int,
    site: str,
    token: int,
    amount: float,
    *,
    positions: Places = None,
    lengths: Lengths = None,
) -> Edit:
    """The residual moved towards a token's embedding: amount 0 leaves it, 1 makes it the embedding.

    The embedding is the token's column of W_U, with the residual's own norm. Asked for under the post of 2020: let late
    layers see a token as if it were their own guess. All else as in `at`; raises ValueError also for what is no
    residual or token.
    """
    check_model(model)
    if site not in RESID_SITES:
        raise ValueError(f"{quoted(site)} is no residual; {', '.join(RESID_SITES)} are")
    if isinstance(amount, bool) or not isinstance(amount, (int, float)):
        raise ValueError(f"amount must be a number, such as 0.5; got {quoted(amount)}")
    if not 0 <= (token := whole_number("token", token)) < model.W_U.shape[1]:
        raise ValueError(f"token id {token} does not exist: the model's ids go from 0 to {model.W_U.shape[1] - 1}")
    embedding = model.W_U[:, token]

    def fn(old: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(old, dim=-1, keepdim=True) / torch.linalg.vector_norm(embedding)
        return old.lerp(norms * embedding, amount)

    return at(layer, site, fn, positions=positions, lengths=lengths)


class _Part:
    """The positions and heads of an edit."""

    def __init__(self, site: str, positions: Places, heads: Places, lengths: Lengths) -> None:
        if heads is not None and site not in HEAD_SITES:
            raise ValueError(f'"{site}" is not split into heads; {", ".join(HEAD_SITES)} are')
        self.has_heads = site in HEAD_SITES
        self.positions, self.heads = _listed("positions", positions), _listed("heads", heads)
        self.lengths = _listed("lengths", lengths)

    @property
    def is_all(self) -> bool:
        return self.positions is None and self.heads is None and self.lengths is None

    def of(self, value: Tensor, site: Site) -> tuple[Tensor, ...]:
        """What takes the part out of a value: an index for batch, perhaps head, and position."""
        n, device = value.shape[-2], value.device
        ends = [n] if self.lengths is None else _ends(self.lengths, value, site)
        if self.positions is None:
            ends = [n]  # with the padding
        positions = torch.tensor([_within(self.positions, end, "position", site) for end in ends], device=device)
        texts = torch.arange(len(value), device=device)
        if not self.has_heads:
            return texts[:, None], positions
        heads = torch.tensor(_within(self.heads, value.shape[1], "head", site), device=device)
        return texts[:, None, None], heads[:, None], positions[:, None]


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
        raise ValueError(f"{quoted(site)} is not a site that can be edited; those are {', '.join(SITES)}")
    if (layer := whole_number("layer", layer)) < 0:
        raise ValueError(f"layer {layer} does not exist: layers count from 0")
    return Site(layer, site)


def _check_block(name: str, block: BlockTrace) -> None:
    if not isinstance(block, BlockTrace):
        raise ValueError(f"{name} must be one block of a trace, such as trace.blocks[3]; got {quoted(block)}")


def _check_lengths(name: str, block: BlockTrace, lengths: Lengths, theirs: Lengths) -> None:
    """Refuse lengths of the edited texts alone: of the block's own padding nothing would be known."""
    if lengths is not None and theirs is None and len(block.resid_pre) > 1:
        raise ValueError(
            f"lengths are of the texts that are edited, and the {name} has {len(block.resid_pre)} texts of its own: "
            f"give {name}_lengths as well"
        )


def _listed(what: str, places: Places | Lengths) -> list[int] | None:
    if places is None:
        return None
    found = whole_numbers(what, places)
    if not found:
        raise ValueError(f"{what} is empty: choose at least one, or leave it out for all")
    return found


def _within(places: list[int] | None, n: int, what: str, site: Site) -> list[int]:
    """The places, or all, of a dimension of size n, counted from 0."""
    if places is None:
        return list(range(n))
    for place in places:
        if not -n <= place < n:
            raise ValueError(f"the edit at {site.layer}.{site.name} has no {what} {place}: there are {n}")
    found = [place % n for place in places]
    if len({*found}) < len(found):
        raise ValueError(f"the edit at {site.layer}.{site.name} names a {what} twice, of {n}: {places}")
    return found


def _ends(lengths: Lengths, value: Tensor, site: Site) -> list[int]:
    """The lengths of the texts of a value, one for each."""
    ends, n = _listed("lengths", lengths) or [], value.shape[-2]
    if len(ends) != len(value):
        raise ValueError(
            f"the edit at {site.layer}.{site.name} has lengths for {len(ends)} texts, and {len(value)} are run"
        )
    for end in ends:
        if not 1 <= end <= n:
            raise ValueError(f"the edit at {site.layer}.{site.name} has the length {end}: the texts have 1 to {n}")
    return ends

"""Coordinates of the stream along the directions of tokens: read, set, swapped; for the logit lens and learned ones.

The direction of a token is the vector along which a lens's logit of it grows, but for the scale of the final norm. With
V the directions of some tokens, a row each, the coordinates of a residual h are c = h @ pinv(V). With others, c', the
residual is h + (c' - c) @ V: what is orthogonal to all these directions stays (Gurnee et al. 2026).
"""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..arguments import check_model, quoted, whole_number, whole_numbers
from ..edits import Lengths, Places, at
from ..lens import EMBED
from ..model import Model
from ..traces import ROW_SITES, BlockTrace, Edit, Site
from .affine import LearnedLens
from .pushes import TokenAxes, token_axes

Values = float | Sequence[float] | Float[Tensor, "token"]


def coordinates(
    model: Model,
    block: BlockTrace,
    site: str,
    tokens: int | Iterable[int],
    *,
    lens: LearnedLens | None = None,
    centred: bool = False,
) -> Float[Tensor, "batch pos token"]:
    """The coordinates of a block's residual along the directions of some tokens, everywhere.

    block: one of a trace, such as trace.blocks[3].
    site: any of resid_pre, attn_out, resid_mid, mlp_out and resid_post.
    tokens: their ids. Each coordinate depends on all of them: together they are nearest to the residual.
    lens: a learned one; by default the logit lens. Its row embed is resid_pre of block 0.
    centred: of each direction what all tokens' directions have in common is left out.

    Raises ValueError for a token that does not exist, for two of almost the same direction, and for a row that the lens
    has no map for.

    >>> model, tokenizer = minilens.load("tales-gpt2")
    >>> block = minilens.trace(model, tokenizer.encode("Tom and Sue")).blocks[5]
    >>> sue, tom = tokenizer.id(" Sue"), tokenizer.id(" Tom")
    >>> minilens.coordinates(model, block, "resid_post", [sue, tom]).shape
    torch.Size([1, 3, 2])
    """
    if not isinstance(block, BlockTrace):
        raise ValueError(f"block must be one block of a trace, such as trace.blocks[3]; got {quoted(block)}")
    return _axes(model, block.layer, site, tokens, lens, centred).read(getattr(block, site))


def clamp(
    model: Model,
    layer: int,
    site: str,
    tokens: int | Iterable[int],
    values: Values,
    *,
    lens: LearnedLens | None = None,
    centred: bool = False,
    positions: Places = None,
    lengths: Lengths = None,
) -> Edit:
    """The edit that gives the residual these coordinates along the directions of some tokens.

    values: one for all tokens, or one for each. The other arguments are those of `coordinates` and `at`. Raises
    ValueError as they do, and for values that are no numbers.
    """
    axes = _axes(model, layer, site, tokens, lens, centred)
    try:
        wanted = torch.as_tensor(values).to(axes.V).expand(len(axes.V))
        known = bool(wanted.isfinite().all())
    except (TypeError, ValueError, RuntimeError):
        known = False
    if not known:
        raise ValueError(f"values must be a number, or one for each of {len(axes.V)} tokens; got {quoted(values)}")
    return at(layer, site, lambda h: axes.moved(h, wanted), positions=positions, lengths=lengths)


def swap(
    model: Model,
    layer: int,
    site: str,
    one: int,
    other: int,
    *,
    lens: LearnedLens | None = None,
    centred: bool = False,
    positions: Places = None,
    lengths: Lengths = None,
) -> Edit:
    """The edit that exchanges the residual's coordinates along the directions of two tokens.

    The other arguments are those of `coordinates` and `at`. Raises ValueError as they do.
    """
    axes = _axes(model, layer, site, (one, other), lens, centred)
    return at(layer, site, axes.swapped, positions=positions, lengths=lengths)


def _axes(
    model: Model, layer: int, site: str, tokens: int | Iterable[int], lens: LearnedLens | None, centred: bool
) -> TokenAxes:
    check_model(model)
    if site not in ROW_SITES:
        raise ValueError(f"{quoted(site)} has no coordinates along tokens; {', '.join(ROW_SITES)} have")
    if not (ids := whole_numbers("tokens", tokens)):
        raise ValueError("tokens is empty: name at least one")
    if lens is not None and not isinstance(lens, LearnedLens):
        raise ValueError(f"lens must be a learned lens, as minilens.load_lens gives it; got {quoted(lens)}")
    row = Site(whole_number("layer", layer), site)
    if lens is not None and row not in lens.maps and row == (0, "resid_pre"):
        row = EMBED
    return token_axes(model, lens, row, ids, centred=centred)

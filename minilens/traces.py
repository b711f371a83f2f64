"""What a forward pass gives: every intermediate value, under its name.

The names are the field's own (mostly TransformerLens's). A value is what the pass went on with: where an
edit replaced it, the replacement.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import EDIT, check_function
from .shapes import Grid, Heads, Hidden, Keys, Logits, Resid, shapes_of


@dataclass(frozen=True, slots=True, eq=False)
class BlockTrace:
    """One block, in the order in which it computes."""

    layer: int
    resid_pre: Resid  # the stream entering the block
    ln1_out: Resid  # what attention reads
    q: Heads
    k: Keys  # as Heads, but that a step of `generate` has those of earlier positions as well
    v: Keys
    scores: Grid  # scaled, and -inf where masked; before softmax
    pattern: Grid  # after softmax: each query's weights over the keys
    z: Heads  # pattern @ v
    attn_out: Resid  # written to the stream
    resid_mid: Resid  # = resid_pre + attn_out, bit for bit
    ln2_out: Resid  # what the MLP reads
    mlp_pre: Hidden  # before the activation function
    mlp_post: Hidden  # after it
    mlp_out: Resid  # written to the stream
    resid_post: Resid  # = resid_mid + mlp_out, bit for bit

    def __repr__(self) -> str:
        return shapes_of(self)


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """A whole forward pass: the stream entering block 0, every block, and the logits."""

    embed: Resid
    blocks: tuple[BlockTrace, ...]
    logits: Logits

    def __repr__(self) -> str:
        return shapes_of(self)


class Site(NamedTuple):
    """A place in the computation that an edit can name."""

    layer: int
    name: str


SITES = (
    "resid_pre",
    "q",
    "k",
    "v",
    "pattern",
    "z",
    "attn_out",
    "resid_mid",
    "mlp_post",
    "mlp_out",
    "resid_post",
)
HEAD_SITES = ("q", "k", "v", "pattern", "z")  # those that are split into heads
RESID_SITES = ("resid_pre", "resid_mid", "resid_post")  # the stream itself
ROW_SITES = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")  # what a lens has rows for

Edit = Callable[[Site, Tensor], Tensor]
"""A pure function: the value that is about to be used at a site -> the value to use instead."""


def untouched(site: Site, value: Tensor) -> Tensor:
    """The edit that changes nothing."""
    return value


@dataclass(frozen=True, eq=False)
class Earlier:
    """In the place of an edit: keys and values of earlier positions, which go before those of one new position.

    No edit may make a value longer. Here it is right, since the last query sees all keys: the mask of one position
    hides none. What a block gives has the earlier ones in `k`, `v`, `scores` and `pattern`.
    """

    k: Keys
    v: Keys

    def __call__(self, site: Site, value: Tensor) -> Tensor:
        return torch.cat([getattr(self, site.name), value], -2) if site.name in ("k", "v") else value

    def __repr__(self) -> str:
        return shapes_of(self)


def editable(edit: Edit, layer: int) -> Callable[[str, Tensor], Tensor]:
    """The marks of one block: `at(name, value)` is the value to go on with at that site.

    Raises ValueError where an edit gives back anything but a tensor of the same shape, dtype and device, or writes into
    the one it was given, which other names may share. A write through numpy is not noticed.
    """
    check_function("edit", edit, EDIT)
    if isinstance(edit, Earlier):
        return lambda name, value: edit(Site(layer, name), value)

    return partial(_edited, edit, layer)


def _edited(edit: Edit, layer: int, name: str, value: Tensor) -> Tensor:
    site = Site(layer, name)
    return kept(site, _unwritten(edit, site, value), value)


def _unwritten(edit: Edit, site: Site, value: Tensor) -> object:
    """What an edit gives back, where it has not written into the value. torch counts how often a tensor is written to.

    Under torch.inference_mode it counts nothing. But a tensor that is made there may be written to only there, so the
    edit runs outside.
    """
    wrote = ValueError(
        f"the edit at {site.layer}.{site.name} wrote into the tensor it was given; it must return a new one"
    )
    if value.is_inference():
        try:
            with torch.inference_mode(False), torch.no_grad():
                return edit(site, value)
        except RuntimeError as error:
            if "Inplace update to inference tensor" not in str(error):
                raise
            raise wrote from error
    version = value._version
    new = edit(site, value)
    if value._version != version:
        raise wrote
    return new


def kept(site: Site, new: object, value: Tensor) -> Tensor:
    """What an edit gave back, which must be a tensor of the value's own shape, dtype and device; else ValueError."""
    if not isinstance(new, Tensor):
        raise ValueError(f"the edit at {site.layer}.{site.name} must return a tensor; it returned {new!r}")
    if (new.shape, new.dtype, new.device) != (value.shape, value.dtype, value.device):
        raise ValueError(
            f"the edit at {site.layer}.{site.name} must keep {_describe(value)}; it returned {_describe(new)}"
        )
    return new


def _describe(value: Tensor) -> str:
    return f"{list(value.shape)} {value.dtype} on {value.device}"

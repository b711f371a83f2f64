"""What a forward pass gives: every intermediate value, under its name.

The names are the field's own (mostly TransformerLens's). A value is what the pass went on with: where an
edit replaced it, the replacement.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from .shapes import Grid, Heads, Hidden, Logits, Resid


@dataclass(frozen=True, slots=True, eq=False)
class BlockTrace:
    """One block, in the order in which it computes."""

    layer: int
    resid_pre: Resid  # the stream entering the block
    ln1_out: Resid  # what attention reads
    q: Heads
    k: Heads
    v: Heads
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


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """A whole forward pass: the stream entering block 0, every block, and the logits."""

    embed: Resid
    blocks: tuple[BlockTrace, ...]
    logits: Logits


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

Edit = Callable[[Site, Tensor], Tensor]
"""A pure function: the value that is about to be used at a site -> the value to use instead."""


def untouched(site: Site, value: Tensor) -> Tensor:
    """The edit that changes nothing."""
    return value


def editable(edit: Edit, layer: int) -> Callable[[str, Tensor], Tensor]:
    """The marks of one block: `at(name, value)` is the value to go on with at that site.

    Raises ValueError where an edit gives back anything but a tensor of the same shape, dtype and device, or writes into
    the one it was given, which other names may share (not seen under torch.inference_mode, where torch counts no
    writes).
    """

    def at(name: str, value: Tensor) -> Tensor:
        version = _version(value)
        site = Site(layer, name)
        new = edit(site, value)
        if _version(value) != version:
            raise ValueError(f"the edit at {layer}.{name} wrote into the tensor it was given; it must return a new one")
        return kept(site, new, value)

    return at


def kept(site: Site, new: object, value: Tensor) -> Tensor:
    """What an edit gave back, which must be a tensor of the value's own shape, dtype and device; else ValueError."""
    if not isinstance(new, Tensor):
        raise ValueError(f"the edit at {site.layer}.{site.name} must return a tensor; it returned {new!r}")
    if (new.shape, new.dtype, new.device) != (value.shape, value.dtype, value.device):
        raise ValueError(
            f"the edit at {site.layer}.{site.name} must keep {_describe(value)}; it returned {_describe(new)}"
        )
    return new


def _version(value: Tensor) -> int:
    """How often a tensor was written to, where torch counts it."""
    return 0 if value.is_inference() else value._version


def _describe(value: Tensor) -> str:
    return f"{list(value.shape)} {value.dtype} on {value.device}"

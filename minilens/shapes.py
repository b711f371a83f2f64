"""The glossary of dimensions: every shape in minilens is spelled with these words.

batch  texts side by side                   pos         places in a text
head   attention heads of one layer         d_model     width of the residual stream
d_head width of one head                    d_mlp       width of the hidden layer of an MLP
query  the place that attends               key         the place attended to
d_vocab  number of tokens in the vocabulary

The tests check these shapes at run time (jaxtyping with beartype); the library does not.
"""

from dataclasses import fields, is_dataclass
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

Tokens = Int[Tensor, "batch pos"]
Resid = Float[Tensor, "batch pos d_model"]
Heads = Float[Tensor, "batch head pos d_head"]
Keys = Float[Tensor, "batch head _pos d_head"]  # as Heads; a step of `generate` has more positions of k and v than of q
Grid = Float[Tensor, "batch head query key"]
Hidden = Float[Tensor, "batch pos d_mlp"]
Logits = Float[Tensor, "batch pos d_vocab"]
Mask = Bool[Tensor, "query key"]

LONGEST = 300  # characters for a part that is no tensor


def shapes_of(whole: Any) -> str:
    """The repr of a dataclass or named tuple of tensors: a line for each part, with shape and dtype and no numbers."""
    names = whole._fields if hasattr(whole, "_fields") else [field.name for field in fields(whole)]
    width = max(map(len, names))
    parts = (f"  {name:{width}}  {_in_short(getattr(whole, name))}" for name in names)
    return "\n".join([type(whole).__name__, *parts])


def _in_short(part: Any) -> str:
    """One part, on one line."""
    if isinstance(part, Tensor):
        where = "" if part.device.type == "cpu" else f" on {part.device}"
        return f"{list(part.shape)} {str(part.dtype).removeprefix('torch.')}{where}"
    if hasattr(part, "_fields"):
        return ", ".join(f"{name} {_in_short(getattr(part, name))}" for name in part._fields)
    if isinstance(part, tuple) and part and is_dataclass(part[0]):
        return f"{len(part)} of {type(part[0]).__name__}"
    if isinstance(part, dict):
        return ", ".join(map(str, part))
    text = " ".join(repr(part).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"

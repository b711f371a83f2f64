"""A student's value beside the model's: whether it is the same, and if not, where and by how much it differs."""

import math
from typing import Any

import torch
from torch import Tensor

HIDDEN = 800  # below the largest score of its row by more than this, a score has the weight exp(-800) = 0 in float64
SINGLE = 64 * torch.finfo(torch.float32).eps
CLOSE = 1e-3  # of the largest number: float32 through several lines
FEW = 4  # places that are named one by one


def bound(*values: Tensor) -> float:
    """How far rounding may take a value from another of the same mathematics, as a part of the largest number.

    The model runs in float64. What holds single precision only, as GPT-Neo's scores do, is held to that.
    """
    is_single = any(torch.equal(value.float().to(value), value) for value in values if value.is_floating_point())
    return SINGLE if is_single else 1e4 * torch.finfo(torch.float64).eps


def same(mine: Any, real: Tensor, *, within: float | None = None) -> bool:
    """Whether these are the same numbers, up to rounding, or up to a part of the largest of them.

    within: SINGLE takes for the same what was in float32 on its way.
    """
    mine = _as_mask(mine, real)
    if not isinstance(mine, Tensor) or mine.shape != real.shape or mine.is_complex() or _is_no_mask(mine, real):
        return False
    off, limit = _off(mine, real)
    if within is not None:
        limit *= within / bound(mine, real)
    return bool((off <= limit).all())  # not where one of the two is NaN


def _as_mask(mine: Any, real: Tensor) -> Any:
    """A mask without axes of one before those of queries and keys, which change nothing."""
    is_mask = real.dtype == torch.bool and isinstance(mine, Tensor) and mine.ndim > real.ndim
    return mine.reshape(real.shape) if is_mask and mine.shape == (1,) * (mine.ndim - 2) + real.shape else mine


def _is_no_mask(mine: Tensor, real: Tensor) -> bool:
    return real.dtype == torch.bool and mine.dtype != torch.bool


def _off(mine: Tensor, real: Tensor) -> tuple[Tensor, float]:
    """By how much each number differs, and by how much rounding may make it differ."""
    limit = bound(mine, real)
    mine, real = mine.detach().double(), real.double()
    if real.ndim > 1 and real.isneginf().any():
        is_hidden = real.isneginf() & (mine < mine.amax(-1, keepdim=True) - HIDDEN)  # -1e9 is as good as -inf
        mine = mine.masked_fill(is_hidden, -math.inf)
    size = real.masked_fill(~real.isfinite(), 0).abs().max().item()
    return (mine - real).masked_fill((mine == real) | (mine.isnan() & real.isnan()), 0).abs(), limit * size


def _names(real: Tensor, axes: str) -> list[str]:
    return axes.split() if len(axes.split()) == real.ndim else [f"axis {n}" for n in range(real.ndim)]


def sized(real: Tensor, axes: str) -> str:
    """The axes with their sizes: batch 2, pos 12, d_model 256."""
    return ", ".join(f"{name} {size}" for name, size in zip(_names(real, axes), real.shape, strict=True))


def tells(mine: Any, real: Tensor, axes: str) -> str:
    """How a student's value differs from the model's, in a sentence without its subject; nothing where it does not.

    axes: the name of each axis, with spaces between.
    """
    names, want = _names(real, axes), sized(real, axes)
    if mine is None:
        return f"is None, and should be a tensor [{want}]: is a `return` missing?"
    if isinstance(mine, tuple) and len(mine) == 1:
        return f"is a tuple of one, and should be a tensor [{want}]: is there a comma at its end?"
    if isinstance(mine, list | tuple) and mine and all(isinstance(each, Tensor) for each in mine):
        shapes = ", ".join(str(list(each.shape)) for each in mine)
        return f"holds tensors of the shapes {shapes}; together they should be [{want}], of which each is a part"
    if not isinstance(mine, Tensor):
        return f"is a {type(mine).__name__}, and should be a tensor [{want}]"
    mine = _as_mask(mine, real)
    if mine.shape != real.shape:
        return f"has the shape {list(mine.shape)}, and should have [{want}]"
    if _is_no_mask(mine, real):
        return f"holds {str(mine.dtype).removeprefix('torch.')}, and should hold True and False"
    if mine.is_complex():
        return "is complex, and should be real"
    if mine.isnan().any():
        first = tuple(mine.isnan().nonzero()[0].tolist())
        return f"is NaN at {int(mine.isnan().sum())} of {mine.numel()} places, first at {_place(names, first)}"
    off, limit = _off(mine, real)
    wrong = off > limit
    if not wrong.any():
        return ""
    mine, real = mine.detach().double(), real.double()
    worst = tuple(int(n) for n in torch.unravel_index(off.argmax(), off.shape))
    by = off.max().item()
    amount = f", by up to {by:.3g}" if math.isfinite(by) else ""
    how_many = f"{int(wrong.sum())} of {wrong.numel()} places{_only(wrong, names)}"
    numbers = f"it is {mine[worst].item():.4g}, and the model's is {real[worst].item():.4g}"
    return f"differs at {how_many}{amount}: at {_place(names, worst)} {numbers}{_factor(mine, real)}"


def _place(names: list[str], index: tuple[int, ...]) -> str:
    return ", ".join(f"{name} {n}" for name, n in zip(names, index, strict=True)) or "the only place"


def _only(wrong: Tensor, names: list[str]) -> str:
    """Where the differences are, if that is in a part of an axis only."""
    told = []
    for axis, (name, size) in enumerate(zip(names, wrong.shape, strict=True)):
        found = wrong.movedim(axis, 0).flatten(1).any(1).nonzero()[:, 0].tolist() if wrong.ndim > 1 else []
        if found and len(found) < size and (len(found) <= FEW or found == list(range(found[0], found[-1] + 1))):
            shown = ", ".join(map(str, found)) if len(found) <= FEW else f"{found[0]} to {found[-1]}"
            told.append(f"{name} {shown}")
    return f", only at {', '.join(told)}" if told else ""


def _factor(mine: Tensor, real: Tensor) -> str:
    """The number that all of the model's would have to be multiplied with, if there is one."""
    is_number = real.isfinite() & (real != 0)
    if not is_number.any() or not torch.equal(mine.isinf(), real.isinf()):
        return ""
    factor = (mine[is_number] / real[is_number]).median().item()
    is_all = same(mine, factor * real)
    return f"; each number is {factor:.6g} times the model's" if is_all and factor not in (0, 1) else ""

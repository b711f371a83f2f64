"""An error of Python or torch in a student's line, in one sentence."""

import builtins
import re
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher, get_close_matches
from typing import Any

from torch import Tensor

# What torch and Python say -> what it means. {0}, {1} ... are the groups.
MEANINGS = {
    r"mat1 and mat2 shapes cannot be multiplied \(\d+x(\d+) and (\d+)x\d+\)":
        "it multiplies by a matrix that does not fit: the last axis of the first has {0} numbers, and the second has "
        "{1} rows",
    r"Expected size for first two dimensions of batch2 tensor to be: \[(\d+), (\d+)\] but got: \[\1, (\d+)\]":
        "it multiplies matrices that do not fit: the last axis of the first has {1} numbers, and the second has {2} "
        "rows",
    r"The size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\) at non-singleton dimension (\d+)":
        "it puts tensors together that do not fit: along axis {2} one has {0} places, the other {1}",
    r"shape '(\[.*\])' is invalid for input of size (\d+)":
        "it gives the shape {0} to {1} numbers, which are not as many",
    r"view size is not compatible with input tensor's size and stride":
        "view cannot join axes that have been exchanged: reshape can",
    r"not enough values to unpack \(expected (\d+), got (\d+)\)":
        "there are {0} names on the left, and {1} values on the right",
    r"too many values to unpack \(expected (\d+)":
        "there are {0} names on the left, and more values on the right",
    r"The expanded size of the tensor \((\d+)\) must match the existing size \((\d+)\)":
        "a tensor of {1} numbers stands where {0} are needed: is it another one's bias?",
    r"m\w+ and m\w+ (?:to|must) have the same dtype, but got:? (?:c10::)?(\S+) (?:!=|and) (?:c10::)?(\S+)":
        "it multiplies numbers of two kinds, {0} and {1}: make them alike by .to(...)",
    r"expected scalar type (\w+) but found (\w+)":
        "it takes numbers of two kinds together, {0} and {1}: make them alike by .to(...)",
    r"Dimension out of range \(expected to be in range of \[(-?\d+), (-?\d+)\], but got (-?\d+)\)":
        "there is no axis {2}: the axes are {0} to {1}",
    r"[Nn]ormalized_shape ?= ?(\[.*?\]), expected input with shape \[.*?\], but got input of size ?(\[.*?\])":
        "the norm is to be over {0}, and the last axis of {1} is another",
    r"Expected weight to be of same shape as normalized_shape, but got weight of shape (\[.*?\]) and "
    r"normalized_shape = (\[.*?\])":
        "the norm is to be over {1}, and its gain has the shape {0}",
    r"index (-?\d+) is out of bounds for dimension (\d+) with size (\d+)":
        "it takes place {0} of axis {1}, which has only {2}, from 0 on",
    r"einsum\(\): subscript (\w) has size (\d+) for operand \d+ which does not broadcast with previously "
    r"seen size (\d+)":
        "in einsum the letter {0} stands for an axis of {2} and for one of {1}",
    r"einsum\(\): the number of subscripts in the equation \((\d+)\) .* dimensions \((\d+)\) for operand (\d+)":
        "in einsum the tensor {2}, counted from 0, has {1} axes, and {0} letters",
    r"Sizes of tensors must match except in dimension (\d+). Expected size (\d+) but got size (\d+)":
        "it puts tensors side by side along axis {0} that differ along another, {1} and {2}",
    r"number of dim(?:ension)?s .*permut|permute\(.*\): number of dimensions":
        "permute must name every axis of the tensor once",
    r"only integer tensors of a single element can be converted to an index":
        "a tensor stands where a whole number is needed, or is put together with a tuple: of a tuple with a number for "
        "each layer take [layer]",
    r"Boolean value of Tensor with more than one value":
        "it asks a whole tensor for true or false: ask `is None`, or each number by where(...)",
    r"maximum recursion depth exceeded":
        "it calls itself without an end",
    r"must be Tensor, not BlockTrace":
        "it takes a whole BlockTrace for a tensor: its .resid_post is the stream after the block",
    r"'ellipsis'|'types.EllipsisType'":
        "a `...` that it reads is not written yet",
}  # fmt: skip


MADE_OF = {"d_head": "it is d_model // n_heads", "head_dim": "it is d_model // n_heads"}  # what is asked of a Config
TAKES_AWAY = r"\.(mean|sum|var|std|norm|amax|logsumexp)\("


def raised(error: BaseException, source: str = "") -> str:
    """An error, in one sentence without its subject's line. source: that of the line or the function."""
    told = " ".join(str(error).split())
    if isinstance(error, SystemExit):
        return "it ends the process (SystemExit); take the exit away"
    if isinstance(error, NameError) and error.name:
        names = _names_at(error)
        held = [f"{name}.{error.name}" for name in ("cfg", "w", "self") if hasattr(names.get(name), error.name)]
        return f"there is no name {error.name} here{_asked(held[0] if held else alike(error.name, names))}"
    if isinstance(error, AttributeError) and error.name:
        known = MADE_OF.get(error.name)
        asked = f": {known}" if known else _asked(*_alike(error.name, dir(error.obj)))
        return f"{type(error.obj).__name__} has no {error.name}{asked}"
    for pattern, meaning in MEANINGS.items():
        if found := re.search(pattern, told):
            told = meaning.format(*found.groups())
            if "that do not fit: along axis" in told and re.search(TAKES_AWAY, source) and "keepdim" not in source:
                told += " (without keepdim=True a mean or a sum takes its axis away)"
            return told
    return f"it raises {type(error).__name__}{f': {told}' if told else ''}"


def is_of_a_name(error: BaseException) -> bool:
    """Whether shapes have nothing to do with it."""
    return isinstance(error, NameError | AttributeError | SystemExit)


def shapes(values: Mapping[str, Any]) -> str:
    """The shapes of the tensors among these values, in brackets; nothing where there are none."""
    told = [f"{name} is {list(value.shape)}" for name, value in values.items() if isinstance(value, Tensor)]
    return f" (here {', '.join(told)})" if told else ""


def alike(name: str, names: Iterable[str]) -> str:
    """The one of these names that is spelled nearly like this one, or nothing."""
    return next(iter(_alike(name, names)), "")


def _alike(name: str, names: Iterable[str]) -> list[str]:
    """Those of the names that are spelled most nearly like this one."""
    others = [each for each in names if each != name and not each.startswith("_")]
    same = [each for each in others if each.casefold() == name.replace("0", "O").casefold()]
    found = same or get_close_matches(name, others, cutoff=0.65)
    likeness = [SequenceMatcher(None, each, name).ratio() for each in found]  # as get_close_matches takes it
    return [each for each, of in zip(found, likeness, strict=True) if of == likeness[0]]


def _asked(*names: str) -> str:
    return f": did you mean {' or '.join(names)}?" if any(names) else ""


def _names_at(error: BaseException) -> dict[str, Any]:
    """All that has a name where an error arose."""
    at = error.__traceback__
    while at and at.tb_next:
        at = at.tb_next
    return {**vars(builtins), **at.tb_frame.f_globals, **at.tb_frame.f_locals} if at else {}

"""The arguments of a caller, as the rest of minilens reads them.

Anything else is a ValueError of one sentence. It names the argument and says what it takes.
"""

import json
import os
from collections.abc import Iterable, Mapping
from operator import index
from typing import Any

import torch
from torch import Tensor

LONGEST = 80  # characters of a value that an error repeats
PLAIN = (type(None), bool, int, float, list, tuple)  # of these an error repeats what Python writes
EDIT = "a function of a site and the value there, as minilens.at makes one"


def whole_number(name: str, value: Any) -> int:
    """A Python int. numpy's and a tensor of one number are taken for it, True and 2.0 are not."""
    try:
        if not isinstance(value, bool):
            return index(value)
    except (TypeError, RuntimeError):  # the second of a tensor without numbers, or of another layout
        pass
    raise ValueError(f"{name} must be a whole number; got {quoted(value)}")


def whole_numbers(name: str, value: Any) -> list[int]:
    """Python ints, of any collection of whole numbers; one alone is a list of one."""
    try:
        found = value.tolist() if hasattr(value, "tolist") else value
        are_several = isinstance(found, Iterable) and not isinstance(found, (str, bytes, Mapping))
        return [whole_number(name, each) for each in (found if are_several else [found])]
    except (ValueError, TypeError, RuntimeError):  # the last of a tensor without numbers, or of another layout
        raise ValueError(f"{name} must be whole numbers; got {quoted(value)}") from None


def token_id(name: str, value: Any, d_vocab: int) -> int:
    """The id of a token of the model."""
    found = whole_number(name, value)
    if not 0 <= found < d_vocab:
        raise ValueError(f"{name} is {found}, which is out of range: the model's ids go from 0 to {d_vocab - 1}")
    return found


def position_in(text: str, value: Any, n: int) -> int:
    """A position in a text of n tokens, counted from 0; a negative one is counted from the end."""
    found = whole_number("position", value)
    if not -n <= found < n:
        raise ValueError(f"position {found} does not exist: {text} {n} tokens, so positions 0 to {n - 1}")
    return found % n


def positions_in(text: str, value: Any, n: int) -> list[int]:
    """One or several positions in a text of n tokens, counted from 0; None is all of them."""
    if value is None:
        return list(range(n))
    found = [position_in(text, each, n) for each in whole_numbers("positions", value)]
    if not found:
        raise ValueError("positions is empty: choose at least one, or leave it out to see all")
    return found


def tokens_in(track: Any, d_vocab: int) -> tuple[int, ...]:
    """The tokens to follow, each once."""
    tokens = tuple(dict.fromkeys(whole_numbers("track", track)))
    for token in tokens:
        if not 0 <= token < d_vocab:
            raise ValueError(f"token id {token} cannot be tracked: the model's ids go from 0 to {d_vocab - 1}")
    return tokens


def top_count(value: Any, d_vocab: int) -> int:
    """How many of the best tokens to name."""
    if not 1 <= (found := whole_number("top_k", value)) <= d_vocab:
        raise ValueError(f"top_k must be between 1 and the size of the vocabulary, {d_vocab}; it is {found}")
    return found


def names(name: str, value: Any) -> tuple[str, ...]:
    """Any collection of names; one alone is a list of one."""
    found = (value,) if isinstance(value, str) else value
    is_tensor = hasattr(value, "tolist")  # or an array, which may have no elements to go through
    are_several = isinstance(found, Iterable) and not isinstance(found, Mapping) and not is_tensor
    found = tuple(found) if are_several else (None,)
    if not all(isinstance(each, str) for each in found):
        raise ValueError(f"{name} must be a name, or several; got {quoted(value)}")
    return found


def model_name(value: Any) -> str:
    """The name of a model, or the path of its folder, as text."""
    found = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(found, str):
        raise ValueError(f"name must be the name of a model, or the path of a folder; got {quoted(value)}")
    return found


def check_function(name: str, value: Any, kind: str) -> None:
    """Raise ValueError for a value that cannot be called."""
    if not callable(value):
        raise ValueError(f"{name} must be {kind}; got {quoted(value)}")


def check_model(model: Any) -> None:
    """Raise ValueError for anything but a model, such as the pair that `load` gives."""
    if not hasattr(model, "unembed"):
        raise ValueError(
            f"model must be a model, the first of the two things that minilens.load gives; got {quoted(model)}"
        )


def check_numbers(model: Any) -> None:
    """Raise ValueError for what is no model, and for a model whose weights have shapes, but no numbers."""
    check_model(model)
    if model.W_U.is_meta:
        raise ValueError('the model is on the device "meta", where there are no numbers: load it on another')


def check_ids(tokens: Any) -> None:
    """Raise ValueError for anything but a plain tensor of whole numbers, [batch, pos]."""
    if not isinstance(tokens, Tensor):
        raise ValueError(f"tokens must be a tensor, as tokenizer.encode gives it; got a {type(tokens).__name__}")
    for kind, is_that in (
        ("nested", tokens.is_nested),
        ("sparse", tokens.layout != torch.strided),
        ("without numbers, on the device meta", tokens.is_meta),
    ):
        if is_that:
            raise ValueError(f"tokens must be a plain tensor, as tokenizer.encode gives it; got one that is {kind}")
    if tokens.ndim != 2 or tokens.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"tokens must be integers of shape [batch, pos]; got {list(tokens.shape)} {tokens.dtype}")


def quoted(value: Any) -> str:
    """A value in an error: text in quotes, another short value as Python writes it, a long one by its type."""
    if isinstance(value, str):
        return f'"{value[:LONGEST]}"' if value.isprintable() else json.dumps(value[:LONGEST])
    text = ascii(value) if type(value) in PLAIN else ""
    return text if 0 < len(text) <= LONGEST and text.isprintable() else f"a {type(value).__name__}"

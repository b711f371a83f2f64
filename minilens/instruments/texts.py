"""Several texts, side by side and padded: each by itself, and the mean over them."""

from math import nan, sqrt
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..arguments import whole_numbers
from ..edits import Lengths
from ..shapes import Tokens

Text = Int[Tensor, "1 _"]
"""One text of several, which may have others of other lengths beside it."""


class Mean(NamedTuple):
    """The mean over texts and its standard error, which is not a number of one text."""

    mean: Tensor
    standard_error: Tensor


def over_texts(values: Float[Tensor, "text *shape"]) -> Mean:
    """The mean over texts and its standard error: the standard deviation (of n - 1) by the root of n."""
    n = len(values)
    error = values.std(0).div(sqrt(n)) if n > 1 else torch.full_like(values[0], nan)
    return Mean(values.mean(0), error)


def texts_of(tokens: Tokens, lengths: Lengths) -> list[Text]:
    """Each text of a batch by itself, without its padding."""
    ends = [tokens.shape[1]] * len(tokens) if lengths is None else whole_numbers("lengths", lengths)
    if len(ends) != len(tokens) or not all(1 <= end <= tokens.shape[1] for end in ends):
        raise ValueError(
            f"lengths must be {len(tokens)} numbers from 1 to {tokens.shape[1]}, the tokens of each text; got {ends}"
        )
    return [tokens[text : text + 1, :end] for text, end in enumerate(ends)]


def one_each(name: str, value: Any, n: int) -> list[Any]:
    """One for each of n texts, where a caller gives one for all, or a list with one for each."""
    found = [*value] if isinstance(value, (list, tuple)) else [value] * n
    if len(found) != n:
        raise ValueError(f"{name} must be one for all texts, or one for each of the {n}; got {len(found)}")
    return found

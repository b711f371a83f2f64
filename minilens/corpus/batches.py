"""Documents cut into windows that a model can read, and windows laid side by side."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class Window(NamedTuple):
    """Tokens that a model reads together."""

    document: int  # of the shard
    tokens: Int[Tensor, "pos"]
    next: Int[Tensor, "pos"]  # the token that follows each; -1 at the document's end


def windows(documents: Sequence[Int[Tensor, "_"]], length: int) -> list[Window]:
    """Each document's tokens, cut into windows of this length; the last one of a document may be shorter."""
    found = []
    for n, tokens in enumerate(documents):
        follows = torch.cat([tokens[1:], tokens.new_tensor([-1])])
        pairs = zip(torch.split(tokens, length), torch.split(follows, length), strict=True)
        found += [Window(n, *pair) for pair in pairs if len(pair[0])]
    return found


class Batch(NamedTuple):
    """Windows side by side, of like lengths, padded on the right with token 0."""

    tokens: Int[Tensor, "batch pos"]
    is_text: Bool[Tensor, "batch pos"]  # neither prefix nor padding
    next: Int[Tensor, "token"]  # of the text alone, window by window
    place: Int[Tensor, "token"]  # in the window, from 0
    document: Int[Tensor, "token"]


def batches(found: Sequence[Window], prefix: Int[Tensor, "pos"], size: int) -> Iterator[Batch]:
    """The windows from the longest to the shortest, each after the prefix, as many together as make `size` tokens."""
    order = sorted(found, key=lambda window: len(window.tokens))
    while order:
        longest = len(prefix) + len(order[-1].tokens)
        n = max(1, size // longest)
        order, chosen = order[:-n], order[-n:]
        lengths = torch.tensor([len(window.tokens) for window in chosen])
        place = torch.arange(longest) - len(prefix)
        is_text = (place >= 0) & (place < lengths[:, None])
        tokens = torch.zeros(len(chosen), longest, dtype=torch.long)
        tokens[:, : len(prefix)] = prefix
        tokens[is_text] = torch.cat([window.tokens for window in chosen])
        yield Batch(
            tokens,
            is_text,
            torch.cat([window.next for window in chosen]),
            place.expand(len(chosen), -1)[is_text],
            torch.tensor([window.document for window in chosen]).repeat_interleave(lengths),
        )

"""What lesson 8 asks, checked: a nanoGPT of the student's own, at some steps of its training."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..lens import lens_rows
from ..shapes import Logits, Tokens
from .answers import checks
from .nanogpt import from_nanogpt


@checks("The same model in another layout: from here on every command and instrument reads it.")
def check_8_1(checkpoint: Any, tokens: Tokens) -> Logits:
    """The logits of the checkpoint's model."""
    return from_nanogpt(checkpoint)(tokens)


@checks("Row 0 gets worse than knowing nothing: it names the letter that it reads, and not the next.")
def check_8_2(kept: Mapping[int, Any], tokens: Tokens, following: Tokens) -> Tensor:
    """The mean cross-entropy of the true next token, by step and row."""
    return torch.tensor(
        [
            [F.cross_entropy(logits.flatten(0, 1), following.flatten()) for logits in _rows(checkpoint, tokens)]
            for checkpoint in kept.values()
        ]
    )


@checks(
    "The rows of a model that knows nothing agree best: a small KL says that two are alike, not that they are right."
)
def check_8_3(kept: Mapping[int, Any], tokens: Tokens) -> Tensor:
    """The mean KL(output ‖ row), by step and row."""
    found = []
    for checkpoint in kept.values():
        rows = [logits.log_softmax(-1) for logits in _rows(checkpoint, tokens)]
        found.append([(rows[-1].exp() * (rows[-1] - row)).sum(-1).mean() for row in rows])
    return torch.tensor(found)


def _rows(checkpoint: Any, tokens: Tokens) -> list[Logits]:
    return [row.logits for row in lens_rows(from_nanogpt(checkpoint), tokens)]

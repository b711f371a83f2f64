"""How an answer of a lesson is held against the right one."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from .compare import tells

CLOSE = 2e-3  # of the largest number: float32, in other steps


def checks(meaning: str) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Makes a check of a function that gives the right answer: it prints one sentence.

    That says how an answer differs, or what the right one means.
    """

    def checking(right: Callable[..., Any]) -> Callable[..., None]:
        @wraps(right)
        @torch.no_grad()
        def check(answer: Any, *given: Any) -> None:
            if answer is Ellipsis:
                print("Not yet: write code in the place of `...`, and run its cell before this one.")
            else:
                told = _differs(answer, right(*given))
                print(f"Not yet: the answer {told}." if told else f"Right. {meaning}")

        return check

    return checking


def _differs(answer: Any, expected: Any) -> str:
    """How an answer differs from the one expected; nothing where it does not."""
    if isinstance(expected, Tensor):
        answer = (
            torch.tensor(answer) if isinstance(answer, float | int | list | tuple) and _are_numbers(answer) else answer
        )
        told = tells(answer, expected, "")
        if not told or not isinstance(answer, Tensor) or answer.shape != expected.shape:
            return told
        off = (answer.double() - expected.double()).abs().max()
        return "" if off <= CLOSE * expected.abs().max() else told
    if isinstance(expected, list):
        answer = answer.tolist() if isinstance(answer, Tensor) else answer
        if not isinstance(answer, Sequence) or isinstance(answer, str):
            return f"is a {type(answer).__name__}, and should be a list of {len(expected)}"
        if len(answer) != len(expected):
            return f"has {len(answer)} parts, and should have {len(expected)}"
        for at, (mine, real) in enumerate(zip(answer, expected, strict=True)):
            if mine != real:
                return f"is right up to part {at}, which should be another than {mine!r:.40}"
    return ""


def _are_numbers(answer: Any) -> bool:
    return not isinstance(answer, list | tuple) or all(isinstance(each, float | int) for each in answer)

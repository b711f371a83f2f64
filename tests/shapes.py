"""The checker of shapes and types that the tests give to jaxtyping: beartype, for the first calls of each test.

A test that makes more calls than that repeats itself, and the check of a call costs more than most calls.
"""

from collections.abc import Callable
from typing import Any

from beartype import beartype
from jaxtyping import config

CALLS = 1000  # each is checked twice: what goes in, and what comes out
_made = 0


def begin() -> None:
    """Check again, from this test on."""
    global _made
    _made = 0
    config.update("jaxtyping_disable", False)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype's check of a function. jaxtyping gives it one without a body, which only looks at its arguments."""
    check = beartype(function)

    def counted(*args: Any, **kwargs: Any) -> Any:
        global _made
        _made += 1
        if _made == CALLS:
            config.update("jaxtyping_disable", True)
        return check(*args, **kwargs)

    return counted

"""`minilens check`: which lines of an exercise are right, and what is wrong with the others."""

from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from .options import Command, argument, option
from .outputs import terminal


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `minilens check` is asked for. Raises ValueError for a limit that is none."""

    path: Path = argument(metavar="FILE", help="the file that `minilens exercise` began; its code is run")
    limit: float = option(
        default=30.0, metavar="SECONDS", help="how long one of its lines may run (default: %(default)s)"
    )

    def __post_init__(self) -> None:
        if not (isfinite(self.limit) and 0 < self.limit <= 86_400):
            raise ValueError(f"--limit must be a number of seconds above 0, and at most a day; got {self.limit:g}")


def check(request: Request) -> int:
    """Check the file and say what is found; 1 where something is wrong or not written yet."""
    from ..course.student import check_apart
    from ..views.course import check_view

    checked = check_apart(request.path, request.limit)
    terminal().print(check_view(checked))
    return 0 if checked.is_right else 1


COMMAND = Command("check", "which lines of an exercise are right, and what is wrong with others", Request, check)

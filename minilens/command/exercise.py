"""`minilens exercise`: a family to be written by oneself."""

import re
from dataclasses import dataclass
from pathlib import Path

from ..course.exercise import exercise as exercise_text
from ..course.exercise import solution
from ..files import check_new
from .options import Command, argument, option
from .outputs import say, write


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `minilens exercise` is asked for. Raises ValueError for a file that should not be written."""

    family: str = argument(metavar="FAMILY", help="gpt2, gpt_neo or ctrl")
    path: Path = argument(metavar="FILE", help="the Python file to write, such as my_gpt2.py")
    start: str | None = option("--from", metavar="FAMILY", help="begin with the lines of this family, and change them")
    solution: bool = option(help="write the lines of the family itself, for who teaches")
    overwrite: bool = option(help="replace a file that exists")

    def __post_init__(self) -> None:
        if self.solution and self.start is not None:
            raise ValueError("--solution and --from are both given: choose one")
        if self.path.suffix != ".py":
            raise ValueError(f"the name of the file must end in .py; got {str(self.path)!r}")
        check_new(self.path, self.overwrite)


def exercise(request: Request) -> None:
    """Write the file."""
    name = request.path.name if re.fullmatch(r"[\w .-]+", request.path.name) else "FILE"
    text = (
        solution(request.family) if request.solution else exercise_text(request.family, start=request.start, path=name)
    )
    write({request.path: text.encode()}, overwrite=request.overwrite)
    say(f"{request.path} is written; minilens check {request.path} says which of its lines are right")


COMMAND = Command("exercise", "write a file in which a family is to be programmed", Request, exercise)

"""`minilens diff`: how the forward passes of two families differ, and why."""

from dataclasses import dataclass

from .options import Command, argument
from .outputs import terminal


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `minilens diff` is asked for."""

    first: str = argument(metavar="FAMILY", help="gpt2, gpt_neo or ctrl")
    second: str = argument(metavar="FAMILY", help="another of them")


def diff(request: Request) -> None:
    """Print the lines that differ, with the reasons of the docstrings."""
    from ..views.diff import diff_view

    terminal().print(diff_view(request.first, request.second))


COMMAND = Command("diff", "how two families compute: the lines that differ, and why", Request, diff)

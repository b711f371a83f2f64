"""`minilens walk`: how a model computes, line by line with its source."""

from dataclasses import dataclass

from .inputs import Source
from .options import Command, option
from .outputs import terminal


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `minilens walk` is asked for."""

    source: Source
    layer: int = option(default=0, help="the block to show line by line, from 0 (default: %(default)s)")
    position: int = option(default=-1, help="whose numbers to show; -1 is the last (default: %(default)s)")
    head: int = option(default=0, help="the head of attention, from 0 (default: %(default)s)")


def walk(request: Request) -> None:
    """Show how the model computes, a line of its source at a time."""
    from ..views.walk import walk_view

    model, tokenizer, tokens = request.source.read()
    place = {"position": request.position, "head": request.head}
    console = terminal()
    console.print(walk_view(model, tokens, request.layer, **place, tokenizer=tokenizer, width=console.width))


COMMAND = Command("walk", "how the model computes, line by line with its source", Request, walk)

"""`minilens live`: a page that holds a model and computes what is typed into it."""

from dataclasses import dataclass
from pathlib import Path

from ..files import check_new
from ..learned.named import bundled_lenses, find_lens
from .inputs import Loading
from .options import Command, argument, option
from .outputs import say, write


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `minilens live` is asked for. Raises ValueError for a file that cannot be written, or should not be."""

    model: str = argument(metavar="MODEL", help="a bundled model, a folder or a Hub repository, of 60 MB at most")
    loading: Loading
    html: Path = option(metavar="FILE", required=True, help="write the page to this file")
    lens: list[str] = option(
        action="append",
        default=[],
        metavar="NAME",
        help="a learned lens to choose in the page, as for `minilens lens` (default: those that come with the model)",
    )
    text: str | None = option(help="the text that the page opens with")
    large: bool = option(help="the page opens with text for a projector; its slider changes that")
    overwrite: bool = option(help="replace a file that exists")

    def __post_init__(self) -> None:
        check_new(self.html, self.overwrite)


def live(request: Request) -> None:
    """Write the page."""
    from ..live.page import live_page

    model, tokenizer = request.loading.load_reader(request.model, "what is typed into a page")
    lenses = [find_lens(name, request.model) for name in request.lens or bundled_lenses(request.model)]
    page = live_page(model, tokenizer, lenses=lenses, title=request.model, text=request.text, large=request.large)
    write({request.html: page.encode()}, overwrite=request.overwrite)
    say(f"{request.html} is written")


COMMAND = Command("live", "a page that computes what is typed into it", Request, live)

"""`minilens serve`: the page on any model, computed by Python on this machine."""

import socket
import webbrowser
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from ..checkpoint.hub import bundled
from ..learned.named import bundled_lenses, find_lens
from ..loading import cached
from .inputs import DEFAULT_MODEL, Loading
from .options import Command, argument, option
from .outputs import say

if TYPE_CHECKING:
    from ..live.answers import Answerer


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `minilens serve` is asked for. Raises ValueError for a port that is none."""

    model: list[str] = argument(
        nargs="*",
        metavar="MODEL",
        help="bundled models, folders or Hub repositories, the first of which the page opens with (default: "
        f"{DEFAULT_MODEL}); in the page those that are bundled or in the Hub's cache can be chosen, too",
    )
    loading: Loading
    lens: list[str] = option(
        action="append", default=[], metavar="NAME", help="a learned lens of the first model, as for `minilens live`"
    )
    port: int = option(default=0, help="of 127.0.0.1; by default a free one")
    no_browser: bool = option(help="say the address, and open no browser")

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ValueError(f"--port must be from 0 to 65535; got {self.port}")


def serve(request: Request) -> None:
    """Answer the page until Ctrl-C."""
    try:
        from ..live.server import new_token, server
    except ImportError as error:
        raise ValueError('serve needs starlette and uvicorn: pip install "minilens[serve]"') from error
    given = request.model or [DEFAULT_MODEL]
    names = dict.fromkeys([*given, *bundled(), *cached()])
    models = {name: partial(_load, request, name, is_first=name == given[0]) for name in names}
    token = new_token()
    with socket.socket() as listener:
        try:
            listener.bind(("127.0.0.1", request.port))
        except OSError as error:
            raise ValueError(f"port {request.port} cannot be used: {error.strerror}") from error
        port = listener.getsockname()[1]
        say(f"loading {given[0]}")
        serving = server(models, token, port)
        address = f"http://127.0.0.1:{port}/{token}/"
        say(f"{given[0]} is at {address} until Ctrl-C")
        if not request.no_browser:
            webbrowser.open(address)
        serving.run(sockets=[listener])


def _load(request: Request, name: str, *, is_first: bool) -> "Answerer":
    """A model with its lenses; what is said of the first one's repository and lenses is not said of the others'."""
    from ..live.answers import Answerer

    reading = request.loading.reading
    loading = request.loading if is_first else replace(request.loading, reading=replace(reading, revision=None))
    model, tokenizer = loading.load_reader(name, "what is typed into a page")
    lenses = [find_lens(lens, name) for lens in (request.lens if is_first else []) or bundled_lenses(name)]
    return Answerer(model, tokenizer, {lens.name: lens for lens in lenses})


COMMAND = Command("serve", "the page that computes, on any model, from a server on this machine", Request, serve)

"""`minilens serve`: the page on any model, computed by Python on this machine."""

import socket
import webbrowser
from dataclasses import dataclass

from ..learned.named import bundled_lenses, find_lens
from .inputs import DEFAULT_MODEL, Loading
from .options import Command, argument, option
from .outputs import say


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `minilens serve` is asked for. Raises ValueError for a port that is none."""

    model: str = argument(
        nargs="?",
        metavar="MODEL",
        default=DEFAULT_MODEL,
        help="a bundled model, a folder or a Hub repository (default: %(default)s)",
    )
    loading: Loading
    lens: list[str] = option(
        action="append", default=[], metavar="NAME", help="a learned lens to choose in the page, as for `minilens live`"
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
    from ..live.answers import Answerer

    say(f"loading {request.model}")
    model, tokenizer = request.loading.load_reader(request.model, "what is typed into a page")
    lenses = [find_lens(name, request.model) for name in request.lens or bundled_lenses(request.model)]
    answerer, token = Answerer(model, tokenizer, {lens.name: lens for lens in lenses}), new_token()
    with socket.socket() as listener:
        try:
            listener.bind(("127.0.0.1", request.port))
        except OSError as error:
            raise ValueError(f"port {request.port} cannot be used: {error.strerror}") from error
        port = listener.getsockname()[1]
        address = f"http://127.0.0.1:{port}/{token}/"
        say(f"{request.model} is at {address} until Ctrl-C")
        if not request.no_browser:
            webbrowser.open(address)
        server(answerer, request.model, token, port).run(sockets=[listener])


COMMAND = Command("serve", "the page that computes, on any model, from a server on this machine", Request, serve)

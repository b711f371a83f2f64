"""The page, with the model in Python: a server for one person, on the loopback address of this machine.

Other programs and web pages can reach a loopback address, too. So every address begins with a token that nobody can
guess; the Host and, of a question, the Origin must be the server's own, which no other page's are; bodies are bounded;
and the page is not to be framed. One computation runs at a time, the newest question wins, and what nobody waits for
any more ends at the next site of a block. A page is of one model, which its address names; one model is kept at a time.
"""

import asyncio
import itertools
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from hmac import compare_digest
from secrets import token_urlsafe
from time import monotonic
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ..checkpoint.settings import CheckpointError
from .answers import Abandoned, Answerer, Question
from .page import asking_page

LARGEST_BODY = 1_000_000  # bytes, as of a text on the command line
TELLING = 0.5  # seconds from one word about a load to the next
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",  # the address holds the token
    "X-Content-Type-Options": "nosniff",
}


class Door:
    """Lets in what has the token, for this host, and of questions those from the page itself."""

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self.app, self.prefix = app, f"/{token}/"
        self.hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return None
        names = [name for name, _ in scope["headers"]]
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        start = scope["path"][: len(self.prefix)]
        refusal: Response | None = None
        if names.count(b"host") != 1 or host not in self.hosts:
            refusal = PlainTextResponse("This is no name of this server.", 421)
        elif scope["path"] == "/favicon.ico":  # which browsers ask for of their own accord
            refusal = Response(status_code=204)
        elif not compare_digest(start.encode(), self.prefix.encode()):
            refusal = PlainTextResponse("There is nothing here: open the address that the command has said.", 404)
        elif scope["method"] == "POST" and headers.get(b"origin") != f"http://{host}":
            refusal = PlainTextResponse("Only the page of this server may ask.", 403)
        if refusal:
            return await refusal(scope, receive, send)
        inside = {**scope, "path": "/" + scope["path"][len(self.prefix) :], "raw_path": None}
        await self.app(inside, receive, send)


class Desk:
    """One computation at a time; a question that changes the grid ends those before it.

    models: a function that loads each of them, by their names. The one that was asked last is kept, and no other.
    """

    def __init__(self, models: Mapping[str, Callable[[], Answerer]]) -> None:
        self.models = models
        self.kept: tuple[str, Answerer] | None = None
        self.lock = threading.Lock()
        self.numbers = itertools.count(1)
        self.newest = 0

    def answerer(self, name: str) -> Answerer:
        """The model of this name; who asks for it holds the lock."""
        if self.kept is None or self.kept[0] != name:
            self.kept = None  # before another one takes its memory
            self.kept = name, self.models[name]()
        return self.kept[1]

    def ticket(self, *, changes: bool) -> tuple[threading.Event, Callable[[], bool]]:
        """An event to set when the asker has gone, and a function that says whether anybody still waits."""
        number, gone = next(self.numbers), threading.Event()
        if changes:
            self.newest = number
        return gone, lambda: gone.is_set() or (changes and self.newest != number)


def server(models: Mapping[str, Callable[[], Answerer]], token: str, port: int) -> uvicorn.Server:
    """The server for a socket that is bound to this port.

    models: functions that load them. The first one is loaded at once, and shown where an address names none. Raises
    what its function raises.
    """
    config = uvicorn.Config(
        _app(models, token, port),
        log_level="error",
        lifespan="off",
        limit_concurrency=32,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=2,
        ws="none",
        server_header=False,
    )
    return uvicorn.Server(config)


def _app(models: Mapping[str, Callable[[], Answerer]], token: str, port: int) -> ASGIApp:
    desk = Desk(models)
    desk.answerer(next(iter(models)))

    def asked(request: Request) -> str | None:
        name = request.query_params.get("model", next(iter(models)))
        return name if name in models else None

    async def show(request: Request) -> Response:
        if (name := asked(request)) is None:
            return PlainTextResponse("There is no such model here.", 404)
        try:
            return HTMLResponse(await run_in_threadpool(_page, desk, name), headers=HEADERS)
        except (ValueError, CheckpointError) as error:
            return PlainTextResponse(str(error), 500, headers=HEADERS)

    async def answer(request: Request) -> Response:
        name, model = request.path_params["name"], asked(request)
        if name not in ("load", "ask", "write", "walk", "continued") or model is None:
            return PlainTextResponse("There is no such question.", 404)
        body = bytearray()
        with suppress(ClientDisconnect):
            async for part in request.stream():
                body += part
                if len(body) > LARGEST_BODY:
                    return PlainTextResponse(f"A question has at most {LARGEST_BODY:,} bytes.", 413)
        gone, is_abandoned = desk.ticket(changes=name in ("ask", "write"))
        found = _loading(desk, model) if name == "load" else _lines(desk, model, name, bytes(body), is_abandoned)
        lines = iterate_in_threadpool(found)
        return StreamingResponse(
            _while_waited_for(request, lines, gone), headers=HEADERS, media_type="application/x-ndjson"
        )

    inner = Starlette(routes=[Route("/", show), Route("/{name}", answer, methods=["POST"])])
    return Door(inner, token, port)


def _page(desk: Desk, name: str) -> str:
    with desk.lock:
        known = desk.answerer(name)
        lenses = list(known.lenses.values())
        models = {"model": name, "models": [*desk.models]}
        return asking_page("ask_server", known.model, known.tokenizer, lenses, name, None, models, connects="'self'")


def _loading(desk: Desk, name: str) -> Iterator[str]:
    """Lines of JSON while a model is loaded: how long it takes, then that it is there, or why it is not."""
    refused: list[str] = []

    def load() -> None:
        try:
            with desk.lock:
                desk.answerer(name)
        except Exception as error:  # whatever it is, who asked is told
            refused.append(str(error) or "there is not enough memory for it")

    loading, began = threading.Thread(target=load), monotonic()
    loading.start()
    loading.join(TELLING)
    while loading.is_alive():
        yield json.dumps({"step": {"seconds": round(monotonic() - began)}}) + "\n"
        loading.join(TELLING)
    yield json.dumps({"refused": refused[0]} if refused else {"answer": name}) + "\n"


async def _while_waited_for(request: Request, lines: AsyncIterator[str], gone: threading.Event) -> AsyncIterator[str]:
    """The lines; `gone` is set as soon as nobody reads them."""

    async def watch() -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(0.1)
        gone.set()

    watching = asyncio.create_task(watch())
    try:
        async for line in lines:
            yield line
    finally:
        gone.set()
        watching.cancel()


def _lines(desk: Desk, model: str, name: str, body: bytes, is_abandoned: Callable[[], bool]) -> Iterator[str]:
    """The answer as lines of JSON: steps, if there are any, then the answer, or why there is none."""
    try:
        parts = _answers(desk, model, name, json.loads(body), is_abandoned)
        while True:
            with desk.lock:  # between two steps another question may be answered
                if is_abandoned() or (part := next(parts, None)) is None:
                    return
            yield json.dumps(part, allow_nan=False) + "\n"
    except Abandoned:
        return
    except (ValueError, CheckpointError, TypeError, KeyError, IndexError, RecursionError) as error:
        text = str(error) if type(error) in (ValueError, CheckpointError) else "that is no question of this page"
        yield json.dumps({"refused": text}) + "\n"
    except (MemoryError, RuntimeError):
        yield json.dumps({"refused": "there is not enough memory: take a shorter text"}) + "\n"


def _answers(
    desk: Desk, model: str, name: str, given: Any, is_abandoned: Callable[[], bool]
) -> Iterator[dict[str, Any]]:
    answerer = desk.answerer(model)
    if name == "continued":
        yield {"answer": answerer.continued(given["text"], given["tokens"])}
        return
    question = Question.read(given["question"])
    if name == "ask":
        yield {"answer": answerer.ask(question, is_abandoned)}
    elif name == "walk":
        places = {key: given[key] for key in ("layer", "position", "head", "few")}
        yield {"answer": answerer.walk(question, **places)}
    else:
        how = {key: given["how"][key] for key in ("n", "top_k")} | {"temperature": float(given["how"]["temperature"])}
        for step in answerer.write(question, is_abandoned=is_abandoned, **how):
            yield {"step": step}
        yield {"answer": None}


def new_token() -> str:
    """What every address of a server begins with."""
    return token_urlsafe(24)

"""The server: who is let in, what is refused, and that nothing goes on when nobody waits for it."""

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from urllib.parse import urlsplit

import pytest
from checkpoints import changed, tokenizer_json
from conftest import Tiny

import minilens
from minilens.views.lens_page import table_record
from minilens.views.tokens import token_label

pytest.importorskip("starlette", reason="starlette is not there (the extra serve)")
pytest.importorskip("uvicorn", reason="uvicorn is not there (the extra serve)")
from minilens.live.answers import STAT_NAMES, Abandoned, Answerer, Question
from minilens.live.server import LARGEST_BODY, server

TOKEN = "a-token"
QUESTION: dict[str, Any] = {
    "text": "once upon a time",
    "written": [],
    "other": None,
    "decoder": "final",
    "norm": "final",
    "sites": ["resid_post"],
    "lens": None,
    "edits": [],
}


@dataclass(frozen=True)
class Slow(Answerer):
    """Never done, until nobody waits."""

    log: list[str] = field(default_factory=list)

    def ask(self, question: Question, is_abandoned: Callable[[], bool]) -> dict[str, Any]:
        if question.text != "slow":
            return super().ask(question, is_abandoned)
        self.log.append("began")
        until = monotonic() + 20
        while not is_abandoned() and monotonic() < until:
            sleep(0.01)
        self.log.append("abandoned" if is_abandoned() else "forgotten")
        raise Abandoned


@pytest.fixture(scope="module")
def served(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Slow]]:
    folder: Path = tmp_path_factory.mktemp("served") / "small"
    model, tokenizer = minilens.load(changed(tiny("gpt2")[1], folder, files={"tokenizer.json": tokenizer_json()}))
    assert tokenizer
    answerer = Slow(model, tokenizer, {})
    other = changed(tiny("gpt_neo")[1], folder.with_name("other"), files={"tokenizer.json": tokenizer_json()})

    def load_other() -> Answerer:
        sleep(0.7)  # as large ones take
        return Answerer(*minilens.load(other), {})  # type: ignore[arg-type]  # it has a tokenizer

    def load_broken() -> Answerer:
        raise ValueError("it cannot be read")

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        running = server({"small": lambda: answerer, "other": load_other, "broken": load_broken}, TOKEN, port)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        while not running.started:
            sleep(0.01)
        yield port, answerer
        running.should_exit = True
        thread.join(10)
        assert not thread.is_alive()
    deadline = monotonic() + 10  # threads of the pool end a little later
    while any("AnyIO" in each.name for each in threading.enumerate()) and monotonic() < deadline:
        sleep(0.05)
    assert not any("AnyIO" in each.name for each in threading.enumerate())


def asked(port: int, path: str, body: Any = None, **headers: str | None) -> tuple[int, str]:
    """The status and the text of an answer. headers: None leaves one out."""
    host = f"127.0.0.1:{port}"
    given = {"Host": host, **({} if body is None else {"Origin": f"http://{host}"}), **headers}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.putrequest("GET" if body is None else "POST", path, skip_host=True)
    for name, value in given.items():
        if value is not None:
            connection.putheader(name, value)
    if content is not None:
        connection.putheader("Content-Length", str(len(content)))
    connection.endheaders(content)
    response = connection.getresponse()
    found = response.status, response.read().decode()
    connection.close()
    return found


def test_the_page_and_its_answers(served: tuple[int, Slow]) -> None:
    port, answerer = served
    status, page = asked(port, f"/{TOKEN}/")
    assert status == 200 and "connect-src 'self';" in page and 'id="weights"' not in page
    question = {**QUESTION, "other": "once upon a cat", "edits": [{"kind": "zero", "layer": 1, "head": 3}]}
    status, text = asked(port, f"/{TOKEN}/ask", {"question": question})
    assert "answer" in text, text
    answer = json.loads(text)["answer"]
    tokens = answerer.tokenizer.encode(QUESTION["text"])
    edit = minilens.zero(1, "z", heads=3)
    table = minilens.logit_lens(answerer.model, tokens, edit=edit, stats=STAT_NAMES, tokenizer=answerer.tokenizer)
    wanted = json.loads(json.dumps(table_record(table)))
    differences = answer["tables"][0]["values"].pop("difference")
    assert answer["tables"][0] == wanted
    assert len(differences) == len(wanted["labels"]) * tokens.shape[1] and differences[0] == 0
    assert len(answer["attention"]["heads"][0]) == 5
    how = {"n": 3, "temperature": 0, "top_k": None}
    lines = asked(port, f"/{TOKEN}/write", {"question": QUESTION, "how": how})[1].splitlines()
    steps = [json.loads(line)["step"]["token"] for line in lines[:-1]]
    assert steps == minilens.generate(answerer.model, tokens, 3)[0, -3:].tolist()
    later = {**QUESTION, "edits": [{"kind": "zero", "layer": 2, "head": 3}]}  # than the block
    place = {"question": later, "layer": 1, "position": 4, "head": 1, "few": 5}
    found = json.loads(asked(port, f"/{TOKEN}/walk", place)[1])["answer"]
    block = minilens.trace(answerer.model, tokens).blocks[1]
    assert found["z"]["numbers"] == pytest.approx(block.z[0, 1, 4, :5].tolist())
    given = {"text": "once", "tokens": steps}
    assert json.loads(asked(port, f"/{TOKEN}/continued", given)[1])["answer"].startswith("once")


def test_the_page_in_a_browser(served: tuple[int, Slow], browser: Any) -> None:
    port, answerer = served
    page, broken, sent = browser.new_page(), [], []
    page.on("request", lambda request: sent.append(request.url))
    page.on("console", lambda message: broken.append(message.text))
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.goto(f"http://127.0.0.1:{port}/{TOKEN}/#text=once%20upon")
    page.wait_for_selector("#asks[data-answered]")
    page.locator("#text").fill("once upon a time")
    page.wait_for_selector("#asks[data-answered='2']")
    tokens = answerer.tokenizer.encode("once upon a time")
    best = minilens.logit_lens(answerer.model, tokens).top.tokens[..., 0].flip(0).flatten().tolist()
    labels = [token_label(answerer.tokenizer, token) for token in best]
    assert page.locator("#scroller td").all_text_contents() == labels
    page.locator("#writing summary").click()
    page.locator("#n").fill("2")
    page.locator("#write").click()
    page.wait_for_selector("#asks[data-answered='3']")
    written = minilens.generate(answerer.model, tokens, 2)[0, -2:].tolist()
    found = [text.split("\n")[0] for text in page.locator("#strip li").all_inner_texts()]
    assert found == [token_label(answerer.tokenizer, token) for token in written]
    page.locator("#model-name").select_option("other")
    page.wait_for_url(f"http://127.0.0.1:{port}/{TOKEN}/?model=other#*")
    page.wait_for_selector("#asks[data-answered]")
    assert page.locator("h1").inner_text() == "other" and page.locator("#text").input_value() == "once upon a time"
    page.locator("#model-name").select_option("broken")
    page.get_by_text("it cannot be read").wait_for()
    assert page.locator("#model-name").input_value() == "other"
    page.close()
    assert broken == []
    assert {urlsplit(url).netloc for url in sent} == {f"127.0.0.1:{port}"}  # to its own origin only


def test_only_the_page_itself_is_let_in(served: tuple[int, Slow]) -> None:
    port, _ = served
    body = {"question": QUESTION}
    for status, path, headers in (
        (421, f"/{TOKEN}/", {"Host": f"evil.example:{port}"}),  # a name that somebody has led to this address
        (421, f"/{TOKEN}/", {"Host": "127.0.0.1"}),
        (421, f"/{TOKEN}/", {"Host": f"127.0.0.1:{port}@evil.example"}),
        (204, "/favicon.ico", {}),  # browsers ask for it
        (421, "/favicon.ico", {"Host": "evil.example"}),
        (404, f"/{TOKEN}/?model=none", {}),
        (500, f"/{TOKEN}/?model=broken", {}),
        (404, "/", {}),
        (404, "/a-toke/", {}),
        (404, f"/{TOKEN}", {}),
        (404, f"/{TOKEN}x/", {}),
        (404, f"/x/../{TOKEN}/", {}),
        (404, "/%C3%BC%00%FF/", {}),
        (200, f"/{TOKEN}/", {"Host": f"localhost:{port}"}),
    ):
        assert asked(port, path, **headers)[0] == status, (path, headers)
    for status, headers in (
        (403, {"Origin": "http://evil.example"}),
        (403, {"Origin": "null"}),  # of a page from disk, or of a frame in a sandbox
        (403, {"Origin": None}),
        (403, {"Origin": f"http://localhost:{port}"}),  # of another name than it was asked by
        (200, {}),
    ):
        assert asked(port, f"/{TOKEN}/ask", body, **headers)[0] == status, headers
    assert asked(port, f"/{TOKEN}/nothing", body)[0] == 404
    assert asked(port, f"/{TOKEN}/ask?model=none", body)[0] == 404
    assert asked(port, f"/{TOKEN}/ask")[0] == 405


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b"\xff",
        {},
        [],
        {"question": {}},
        {"question": {**QUESTION, "text": 5}},
        {"question": {**QUESTION, "text": "\ud800"}},
        {"question": {**QUESTION, "text": "cat " * 200}},
        {"question": {**QUESTION, "written": [5000]}},
        {"question": {**QUESTION, "written": [True]}},
        {"question": {**QUESTION, "decoder": "block:99"}},
        {"question": {**QUESTION, "sites": ["z"]}},
        {"question": {**QUESTION, "lens": "none"}},
        {"question": {**QUESTION, "edits": [{"kind": "zero", "layer": 99, "head": 0}]}},
        {"question": {**QUESTION, "edits": [{"kind": "zero", "layer": "1", "head": None}]}},
        {"question": {**QUESTION, "other": "once", "edits": [{"kind": "patch", "layer": 0, "position": 0}]}},
        {"question": {**QUESTION, "other": "once", "edits": [{"kind": "patch", "layer": [], "position": 0}]}},
        {"question": {**QUESTION, "edits": [{}] * 201}},
    ],
    ids=lambda body: str(body)[:60],
)
def test_what_is_no_question_is_refused(served: tuple[int, Slow], body: Any) -> None:
    port, _ = served
    status, text = asked(port, f"/{TOKEN}/ask", body)
    assert status == 200 and json.loads(text).keys() == {"refused"}


def test_models_take_turns(served: tuple[int, Slow]) -> None:
    """One is kept, and a tab of another one still gets its own answers. A load says how long it takes."""
    port, answerer = served
    lines = [json.loads(line) for line in asked(port, f"/{TOKEN}/load?model=other", {})[1].splitlines()]
    assert lines[0].keys() == {"step"} and lines[-1] == {"answer": "other"}
    assert json.loads(asked(port, f"/{TOKEN}/load?model=broken", {})[1]) == {"refused": "it cannot be read"}
    answers = [
        json.loads(asked(port, f"/{TOKEN}/ask{which}", {"question": QUESTION})[1])["answer"]["tables"][0]
        for which in ("", "?model=other")
    ]
    tokens = answerer.tokenizer.encode(QUESTION["text"])
    assert answers[0]["final_tokens"] == minilens.logit_lens(answerer.model, tokens).final_tokens.tolist()
    assert answers[0]["top"] != answers[1]["top"]


def test_a_huge_body_is_not_read(served: tuple[int, Slow]) -> None:
    port, _ = served
    assert asked(port, f"/{TOKEN}/ask", b"x" * (LARGEST_BODY + 1))[0] == 413


def begun(answerer: Slow, port: int) -> socket.socket:
    """A question that is never done, once it is being computed."""
    answerer.log.clear()
    host = f"127.0.0.1:{port}"
    body = json.dumps({"question": {**QUESTION, "text": "slow"}})
    head = f"POST /{TOKEN}/ask HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nContent-Length: {len(body)}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall((head + body).encode())
    wait_for(lambda: answerer.log == ["began"])
    return connection


def wait_for(holds: Callable[[], bool]) -> None:
    until = monotonic() + 15
    while not holds():
        assert monotonic() < until
        sleep(0.01)


def test_the_newest_question_wins(served: tuple[int, Slow]) -> None:
    port, answerer = served
    with begun(answerer, port):
        assert "answer" in json.loads(asked(port, f"/{TOKEN}/ask", {"question": QUESTION})[1])
        assert answerer.log == ["began", "abandoned"]


def test_a_tab_that_closes_ends_its_computation(served: tuple[int, Slow]) -> None:
    port, answerer = served
    begun(answerer, port).close()
    wait_for(lambda: answerer.log == ["began", "abandoned"])


def test_many_at_once(served: tuple[int, Slow]) -> None:
    """Some are turned away, none breaks it."""
    port, _ = served
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(50)]
    for each in idle:
        each.close()
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(asked(port, f"/{TOKEN}/ask", {"question": QUESTION})[0]))
        for _ in range(24)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 24 and set(found) <= {200, 503}
    wait_for(lambda: asked(port, f"/{TOKEN}/")[0] == 200)

"""Tiny random checkpoints of each family, made by transformers and read by minilens."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports the Hub's client: no test touches a network
# Before anything imports torch. The tensors are tiny, here and in the processes that tests start: threads would only
# wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import socket
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from urllib.parse import urlsplit

import huggingface_hub
import pytest
import shapes
import torch
import transformers
from huggingface_hub import constants
from local_hub import LocalHub
from rounding import OtherRounding
from transformers import CTRLConfig, CTRLLMHeadModel, GPT2Config, GPT2LMHeadModel, GPTNeoConfig, GPTNeoForCausalLM

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

FAMILIES = ("gpt2", "gpt_neo", "ctrl")
N_CTX = 40
# Odd sizes: three layers, five heads of 6, an MLP that is not 4 d_model wide, and for GPT-Neo a window that is shorter
# than the texts, without which a missing window could not be seen.
SIZES: dict[str, dict[str, Any]] = {
    "gpt2": dict(vocab_size=101, n_positions=N_CTX, n_embd=30, n_layer=3, n_head=5, n_inner=50),
    "gpt_neo": dict(
        vocab_size=101,
        max_position_embeddings=N_CTX,
        hidden_size=30,
        num_layers=3,
        num_heads=5,
        intermediate_size=50,
        window_size=7,
        attention_types=[[["global", "local", "local"], 1]],
    ),
    "ctrl": dict(vocab_size=101, n_positions=N_CTX, n_embd=30, n_layer=3, n_head=5, dff=50),
}
CLASSES = {
    "gpt2": (GPT2Config, GPT2LMHeadModel),
    "gpt_neo": (GPTNeoConfig, GPTNeoForCausalLM),
    "ctrl": (CTRLConfig, CTRLLMHeadModel),
}
NO_IDS = dict(bos_token_id=None, eos_token_id=None)


def make_reference(family: str, **overrides: Any) -> transformers.PreTrainedModel:
    """transformers' model in float64 with eager attention.

    The weights are drawn with a standard deviation of 0.3: with the library's own 0.02 a wrong GELU would pass.
    """
    config_class, model_class = CLASSES[family]
    config = config_class(**{**SIZES[family], **NO_IDS, **overrides})
    config._attn_implementation = "eager"
    model = model_class(config).eval()
    generator = torch.Generator().manual_seed(2020)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return model.double()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """OTHER_ROUNDING=1, or another seed, has products of matrices rounded as on another processor."""
    shapes.begin()
    seed = os.environ.get("OTHER_ROUNDING")
    # Gradients are on again for the next test: some scripts turn them off for good.
    with torch.enable_grad(), OtherRounding(int(seed)) if seed else nullcontext():
        return (yield)


Tiny = Callable[..., tuple[transformers.PreTrainedModel, Path]]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """tiny(family, **config keys) -> transformers' model in float64, and the folder where it is saved."""
    made: dict[str, tuple[transformers.PreTrainedModel, Path]] = {}

    def make(family: str, **overrides: Any) -> tuple[transformers.PreTrainedModel, Path]:
        key = json.dumps([family, overrides], sort_keys=True)
        if key not in made:
            reference = make_reference(family, **overrides)
            folder = tmp_path_factory.mktemp(family)
            reference.save_pretrained(folder)
            made[key] = reference, folder
        return made[key]

    return make


@pytest.fixture
def tokens() -> torch.Tensor:
    """Two texts side by side, longer than GPT-Neo's window."""
    return torch.randint(0, 101, (2, 33), generator=torch.Generator().manual_seed(2021))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the project that holds the real tokenizers; tests that need it skip where it is absent."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("../shared, with the real tokenizer files, is not beside this checkout")
    return folder


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds for which the client would have waited."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


def forget() -> None:
    """Close the client's connections: under the name that version 1 gave it, or the one from before."""
    http = huggingface_hub.utils._http
    (http.close_session if hasattr(http, "close_session") else http.reset_sessions)()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slept: list[float]) -> Iterator[LocalHub]:
    """A Hub of this test's own and an empty cache for the client, which at the end has spoken with no other host.

    The client reads its settings when it is imported. Here they are replaced in the running one, which is faster; that
    the environment variables do the same is shown by the tests that start a process.
    """
    hosts = set()
    connect = socket.socket.connect

    def noted(self: socket.socket, address: Any) -> None:
        hosts.add(address[0])
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", noted)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    forget()  # those of another test, with the proxies of the environment
    with LocalHub() as hub:
        settings = dict(
            ENDPOINT=hub.url, HUGGINGFACE_CO_URL_TEMPLATE=f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        paths = {"HF_HUB_CACHE": "cache", "HF_TOKEN_PATH": "token", "AGENT_HARNESSES_PATH": "harnesses"}
        for name, value in {**settings, **{name: str(tmp_path / path) for name, path in paths.items()}}.items():
            monkeypatch.setattr(constants, name, value, raising=name != "AGENT_HARNESSES_PATH")  # new in version 2
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        huggingface_hub.utils.disable_progress_bars()
        yield hub
        huggingface_hub.utils.enable_progress_bars()
        forget()
    assert hosts <= {"127.0.0.1", "::1"}


@pytest.fixture
def undrawn() -> Iterator[pytest.MonkeyPatch]:
    """Reports of `corpus` and `fit` without pictures, which take most of a command's time.

    A test that draws begins with undrawn.undo().
    """
    from minilens.views import corpus_page

    with pytest.MonkeyPatch.context() as patch:
        for name, nothing in {"overview": None, "details": None, "as_image": "", "drawn": b""}.items():
            patch.setattr(corpus_page, name, Mock(return_value=nothing))
        yield patch


CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not there (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not there")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """opened(text, hash, **settings) -> the page, from disk. At the end: nothing was asked for, nothing broke."""
    pages, asked, broken = [], [], []

    def opener(text: str, hash: str = "", **settings: Any) -> Any:
        path = tmp_path / f"{len(pages)}.html"
        path.write_text(text, encoding="utf-8")
        page = browser.new_page(viewport={"width": 1200, "height": 800}, **settings)
        if "setTimeout" in text:  # its timers run when a test says so, however slow the machine is
            page.clock.install(time=0)
            page.clock.pause_at(1)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: broken.append(str(error)))
        page.on("console", lambda message: broken.append(message.text))
        page.on("dialog", lambda dialog: broken.append(dialog.message))
        page.goto(path.as_uri() + hash)
        pages.append(page)
        return page

    yield opener
    for page in pages:
        page.close()
    assert broken == []
    asked = [url for url in asked if urlsplit(url).scheme not in ("data", "blob")]  # what a page holds itself
    assert [url for url in asked if urlsplit(url).scheme != "file"] == []
    assert len(asked) == len(pages)  # each file itself, and nothing else

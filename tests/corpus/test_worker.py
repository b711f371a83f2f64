"""What torchrun says of a worker, and what cannot be."""

import socket
from contextlib import closing

import pytest
import torch

from minilens.corpus import worker
from minilens.corpus.worker import Worker

UNSET = "is not set, as torchrun sets it; to work alone, unset RANK and WORLD_SIZE"


def test_alone_and_among_others() -> None:
    assert Worker.from_environment({}) == (0, 1, 0)
    assert Worker.from_environment({"LOCAL_RANK": "3"}) == (0, 1, 0)
    assert Worker.from_environment({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == (5, 8, 1)


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE is 0; there must be at least 1 worker"),
        ({"RANK": "5", "WORLD_SIZE": "2"}, "RANK is 5, and WORLD_SIZE is 2: RANK must be 0 to 1"),
        ({"RANK": "0"}, f"WORLD_SIZE {UNSET}"),
        ({"WORLD_SIZE": "2"}, f"RANK {UNSET}"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK must be a whole number, as torchrun sets it; it is '-1'"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE must be a whole number, as torchrun sets it; it is 'two'"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": ""},
            "LOCAL_RANK must be a whole number, as torchrun sets it; it is ''",
        ),
    ],
)
def test_what_cannot_be(environment: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        Worker.from_environment(environment)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("host", "port", "sentence"),
    [
        (None, "29500", f"MASTER_ADDR {UNSET}"),
        ("127.0.0.1", None, f"MASTER_PORT {UNSET}"),
        ("127.0.0.1", "x", "MASTER_PORT must be a whole number, as torchrun sets it; it is 'x'"),
        ("nowhere.invalid", "29500", "MASTER_ADDR is 'nowhere.invalid', and no machine of that name is known"),
    ],
)
def test_a_first_worker_that_does_not_exist(
    monkeypatch: pytest.MonkeyPatch, rank: int, host: str | None, port: str | None, sentence: str
) -> None:
    for name, value in (("MASTER_ADDR", host), ("MASTER_PORT", port)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(ValueError) as caught, Worker(rank, 2, 0).together(torch.device("cpu")):
        pass
    assert str(caught.value) == sentence


def test_a_first_worker_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.socket()) as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setattr(worker, "WAIT", 0)
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(port))
        refused = pytest.raises(ValueError, match=f"nothing has answered at 127.0.0.1:{port} for 0 seconds")
        with refused, Worker(1, 2, 0).together(torch.device("cpu")):
            pass

"""Repositories on the Hub: with a client that only looks as if it went there, and with the real one, kept at home."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import pytest
import torch
from checkpoints import changed, logits, tokenizer_json
from conftest import Tiny
from huggingface_hub import errors
from safetensors.torch import load_file

import minilens
from minilens import CheckpointError
from minilens.hub import cached

OLD, NEW = "a" * 40, "b" * 40


class FakeHub:
    """hf_hub_download for one repository, whose main branch moves from one commit to the next with every file."""

    def __init__(self, cache: Path, files: Path) -> None:
        self.cache, self.files = cache, files
        self.asked: list[tuple[str, str | None]] = []

    def download(self, repo: str, file: str, *, revision: str | None = None, local_files_only: bool) -> str:
        self.asked.append((file, revision))
        commit = revision if revision in (OLD, NEW) else OLD if len(self.asked) == 1 else NEW
        if not (self.files / file).is_file():
            raise errors.RemoteEntryNotFoundError("no such file", response=Mock())
        snapshot = self.cache / "snapshots" / commit
        snapshot.mkdir(parents=True, exist_ok=True)
        (snapshot / file).write_bytes((self.files / file).read_bytes())
        return str(snapshot / file)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], FakeHub]:
    def make(files: Path) -> FakeHub:
        fake = FakeHub(tmp_path / "cache", files)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.download)
        return fake

    return make


@pytest.mark.parametrize("revision", [None, "main", "v1.0"])
def test_all_files_come_from_the_commit_of_the_first(
    tiny: Tiny, tmp_path: Path, hub: Callable[[Path], FakeHub], revision: str | None
) -> None:
    reference, original = tiny("gpt2")
    reference.save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    fake = hub(changed(tmp_path / "sharded", tmp_path / "repository", files={"tokenizer.json": tokenizer_json()}))
    model, tokenizer = minilens.load("some/model", revision=revision)
    assert torch.equal(logits(model), logits(minilens.load(original)[0]))
    assert tokenizer is not None
    assert fake.asked[0] == ("config.json", revision)
    assert {revision for _, revision in fake.asked[1:]} == {OLD}
    assert sum(file.startswith("model-") for file, _ in fake.asked) > 2


def test_files_that_a_repository_does_not_have(tiny: Tiny, tmp_path: Path, hub: Callable[[Path], FakeHub]) -> None:
    _, original = tiny("gpt2")
    model, _ = minilens.load(original)
    fake = hub(changed(original, tmp_path / "repository", files={"model.safetensors": None}))
    torch.save(load_file(original / "model.safetensors"), fake.files / "pytorch_model.bin")
    with pytest.warns(UserWarning, match="pickle file"):
        from_pickle, tokenizer = minilens.load("some/model")
    assert torch.equal(logits(from_pickle), logits(model))
    assert tokenizer is None
    asked = [file for file, _ in fake.asked]
    assert asked.index("model.safetensors") < asked.index("pytorch_model.bin")


def test_a_repository_without_a_config(tmp_path: Path, hub: Callable[[Path], FakeHub]) -> None:
    hub(tmp_path)
    with pytest.raises(CheckpointError, match=r"^'some/model' has no config\.json"):
        minilens.load("some/model")


@pytest.mark.parametrize(
    ("error", "raised", "sentence"),
    [
        (
            errors.RepositoryNotFoundError("401\n\nmany\nlines", response=Mock()),
            ValueError,
            r"there is no model 'some/model': it is not bundled \(.*\), not a folder and not on the Hub",
        ),
        (errors.RevisionNotFoundError("404", response=Mock()), ValueError, "some/model has no revision 'v9'"),
        (errors.GatedRepoError("403", response=Mock()), CheckpointError, "some/model asks for permission: .*"),
        (
            errors.HfHubHTTPError("500 Server Error\n\nIt is down.", response=Mock()),
            CheckpointError,
            "config.json of some/model cannot be downloaded: 500 Server Error It is down.",
        ),
        (
            OSError("Consistency check failed:\nwrong size"),
            CheckpointError,
            "config.json of some/model cannot be downloaded: Consistency check failed: wrong size",
        ),
        (
            ZeroDivisionError("of a library below"),
            CheckpointError,
            "config.json of some/model cannot be downloaded: of a library below",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_the_hub_refuses(
    monkeypatch: pytest.MonkeyPatch, error: Exception, raised: type[Exception], sentence: str
) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(raised, match=rf"^{sentence}$"):
        minilens.load("some/model", revision="v9")


@pytest.mark.parametrize("name", ["a b", "one/two/three", "../sibling", "-x", "", "x\ny", "Once upon a time " * 40])
def test_what_cannot_be_a_repository(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, CheckpointError)) as info:
        minilens.load(name)
    assert repr(name) in str(info.value)
    assert "\n" not in str(info.value)


def fill_cache(cache: Path, repo: str, files: Path, missing: tuple[str, ...] = ()) -> Path:
    """A repository in the Hub client's own cache; of the missing files the cache knows that they do not exist."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    changed(files, folder / "snapshots" / OLD)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(OLD)
    for file in missing:
        (folder / ".no_exist" / OLD).mkdir(parents=True, exist_ok=True)
        (folder / ".no_exist" / OLD / file).touch()
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for the real client; conftest.py has set it to work offline."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


def test_offline_from_the_cache(tiny: Tiny, cache: Path) -> None:
    _, original = tiny("gpt2")
    fill_cache(cache, "some/model", original, missing=("tokenizer.json", "vocab.json", "merges.txt"))
    model, tokenizer = minilens.load("some/model")
    assert torch.equal(logits(model), logits(minilens.load(original)[0]))
    assert tokenizer is None


def test_offline_with_a_part_in_the_cache(tiny: Tiny, cache: Path) -> None:
    """Whether the repository has a tokenizer is not known, so None would be a guess."""
    fill_cache(cache, "some/model", tiny("gpt2")[1])
    with pytest.raises(
        CheckpointError, match=r"tokenizer\.json of that repository is not in the cache, and the Hub cannot"
    ):
        minilens.load("some/model")


def test_the_cached_models_of_the_three_families_are_listed(tiny: Tiny, tmp_path: Path, cache: Path) -> None:
    assert cached() == []
    fill_cache(cache, "b/ctrl", tiny("ctrl")[1])
    fill_cache(cache, "a/gpt2", tiny("gpt2")[1])
    for n, config in enumerate((b'{"model_type": "llama"}', b'{"model_type": []}', b"{}", b"[]", b"{")):
        fill_cache(cache, f"c/{n}", changed(tiny("gpt2")[1], tmp_path / str(n), files={"config.json": config}))
    assert cached() == ["a/gpt2", "b/ctrl"]


# The client reads its settings when it is imported, so these run it in a process of their own; it waits between one
# attempt and the next, and they do not.
SCRIPT = """
import sys, time
time.sleep = lambda seconds: None
{server}
import minilens.cli
sys.exit(minilens.cli.main(["lens", "--ids", "1", "--model", "some/model"]))
"""
DIES_HALFWAY = """
import os, threading
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(200)
        for header in (("X-Repo-Commit", "a" * 40), ("ETag", '"e"'), ("Content-Length", "100")):
            self.send_header(*header)
        self.end_headers()

    def do_GET(self):
        self.connection.close()

    def log_message(self, *_):
        pass

server = HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
"""
UNREACHABLE = "there is no folder 'some/model', config.json of that repository is not in the cache, and the Hub cannot "


@pytest.mark.parametrize(
    ("environment", "server", "sentence"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "", UNREACHABLE),
        ({"HF_ENDPOINT": "http://127.0.0.1:1"}, "", UNREACHABLE),  # where nobody listens
        ({"HF_ENDPOINT": "rubbish"}, "", UNREACHABLE),
        ({}, DIES_HALFWAY, "config.json of some/model cannot be downloaded: "),
    ],
    ids=["offline", "no network", "bad endpoint", "lost connection"],
)
def test_the_real_client_finds_nobody(tmp_path: Path, environment: dict[str, str], server: str, sentence: str) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_") and "proxy" not in name}
    home = {"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(server=server)],
        env={**kept, **home, **environment},
        capture_output=True,
        text=True,
    )
    *log, last = ran.stderr.splitlines()
    assert (ran.returncode, ran.stdout) == (2, "")
    assert not log or sentence != UNREACHABLE  # the client tells of each try to continue a broken download
    assert last.startswith(f"minilens: error: {sentence}")
    assert "Traceback" not in ran.stderr


def test_shards_of_a_repository_stay_in_it(tiny: Tiny, tmp_path: Path, hub: Callable[[Path], FakeHub]) -> None:
    _, original = tiny("gpt2")
    index = json.dumps({"weight_map": {"wte.weight": "../../x.safetensors"}}).encode()
    fake = hub(
        changed(
            original, tmp_path / "repository", files={"model.safetensors": None, "model.safetensors.index.json": index}
        )
    )
    with pytest.raises(CheckpointError, match="which is not a file in the model's own folder"):
        minilens.load("some/model")
    assert not any("x.safetensors" in file for file, _ in fake.asked)

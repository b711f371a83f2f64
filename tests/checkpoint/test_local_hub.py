"""minilens.load through the real Hub client, from a Hub on this machine: what goes right, and all that can go wrong."""

import argparse
import copy
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import Mock

import huggingface_hub
import pytest
import torch
from checkpoints import Tensors, changed, logits, tokenizer_json
from conftest import Tiny
from huggingface_hub import constants, file_download
from local_hub import Fault, LocalHub
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

import minilens
from minilens import CheckpointError
from minilens.checkpoint.hub import _check_hash, bundled
from minilens.command.main import _parser, main
from minilens.command.outputs import FIGURES
from minilens.loading import cached

REPO = "some/model"
Patch = pytest.MonkeyPatch


def offline(hub: LocalHub, monkeypatch: Patch) -> None:
    hub.stop()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


# --- Layouts ---


class Layout(NamedTuple):
    """How a repository keeps a model, and what of it must be downloaded."""

    family: str
    needed: str
    prefix: bool = True
    masks: torch.dtype | None = None
    masked: tuple[int, ...] = (0, 1, 2)  # the layers that have one
    head: bool = False
    dtype: torch.dtype = torch.float32
    others: str = ""  # files that are there, too, and say what is wrong if they are read
    drop: tuple[str, ...] = ()


BYTE_BPE, WORD_BPE = " tokenizer.json", " vocab.json merges.txt"
SAFE, PICKLE = "config.json model.safetensors", "config.json pytorch_model.bin"
OTHERS = "rust_model.ot tf_model.h5 flax_model.msgpack README.md generation_config.json"
LAYOUTS = {
    "openai-community/gpt2": Layout(
        "gpt2",
        SAFE + BYTE_BPE,
        prefix=False,
        masks=torch.float32,
        others=f"{OTHERS} pytorch_model.bin vocab.json merges.txt",
    ),
    "distilbert/distilgpt2": Layout("gpt2", SAFE + BYTE_BPE, masks=torch.float32, others=f"{OTHERS} pytorch_model.bin"),
    "EleutherAI/gpt-neo-125m": Layout(
        "gpt_neo", SAFE + BYTE_BPE, masks=torch.uint8, masked=(0,), others=f"{OTHERS} pytorch_model.bin"
    ),
    "roneneldan/TinyStories-1M": Layout("gpt_neo", PICKLE + BYTE_BPE, masks=torch.uint8),
    "Salesforce/ctrl": Layout("ctrl", PICKLE + WORD_BPE, head=True, others="tf_model.h5"),
    "ctrl in safetensors": Layout("ctrl", SAFE + WORD_BPE),
    "a head in safetensors": Layout("gpt2", SAFE, head=True),
    "shards": Layout("gpt2", "config.json model.safetensors.index.json model-1.safetensors model-2.safetensors"),
    "shards of pickle files": Layout(
        "gpt_neo", "config.json pytorch_model.bin.index.json pytorch_model-1.bin pytorch_model-2.bin"
    ),
    "float16": Layout("gpt2", SAFE, dtype=torch.float16),
    "bfloat16": Layout("gpt_neo", SAFE, dtype=torch.bfloat16),
    "GPT-2 before model_type": Layout("gpt2", PICKLE, prefix=False, masks=torch.float32, drop=("model_type",)),
    "CTRL before model_type": Layout("ctrl", PICKLE + WORD_BPE, head=True, drop=("model_type",)),
}
MASK = {"gpt2": "attn", "gpt_neo": "attn.attention"}


def published(layout: Layout, original: Path, to: Path) -> Path:
    """The model in this folder in that layout."""
    changed(original, to, drop=layout.drop, files={"model.safetensors": None})
    tensors = {name: tensor.to(layout.dtype) for name, tensor in load_file(original / "model.safetensors").items()}
    if layout.masks:
        for layer in range(3):
            name = f"transformer.h.{layer}.{MASK[layout.family]}"
            tensors[f"{name}.masked_bias"] = torch.tensor(-1e9)
            if layer in layout.masked:
                tensors[f"{name}.bias"] = torch.ones(1, 1, 40, 40).tril().to(layout.masks)
    if layout.head:
        tensors["lm_head.weight"] = tensors[f"transformer.{'w' if layout.family == 'ctrl' else 'wte'}.weight"].clone()
    if not layout.prefix:
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    needed = layout.needed.split()
    files = [file for file in needed if file.endswith((".safetensors", ".bin"))]
    parts = {file: dict(list(tensors.items())[n :: len(files)]) for n, file in enumerate(files)}
    for file, part in parts.items():
        (torch.save if file.endswith(".bin") else save_file)(part, to / file)
    contents = {
        "tokenizer.json": tokenizer_json(),
        "vocab.json": json.dumps({"<unk>": 0, "a": 1, "b": 2, "ab": 3, "a@@": 4}).encode(),
        "merges.txt": b"#version: 0.2\na b</w>\n",
    }
    index = json.dumps({"weight_map": {name: file for file, part in parts.items() for name in part}}).encode()
    for file in needed:
        if not (to / file).exists():
            (to / file).write_bytes(contents.get(file, index))
    for file in layout.others.split():
        (to / file).write_bytes(b"never read")
    return to


def expected(reference: PreTrainedModel, dtype: torch.dtype) -> torch.Tensor:
    """transformers' logits in float64, of weights that were kept in this dtype."""
    rounded = copy.deepcopy(reference)
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.copy_(parameter.to(dtype))
        return rounded(torch.tensor([[5, 17, 3, 99, 0, 42, 42, 8, 64, 11]])).logits


def loaded(repo: str = REPO, **options: Any) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* is a pickle file")
        return logits(minilens.load(repo, dtype=torch.float64, **options)[0])


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(hub: LocalHub, tiny: Tiny, tmp_path: Path, monkeypatch: Patch, name: str) -> None:
    """The reference's logits; nothing downloaded but what is needed, and that once; the same with the Hub gone."""
    layout = LAYOUTS[name]
    reference, original = tiny(layout.family)
    hub.push(REPO, published(layout, original, tmp_path / "repository"))
    first = loaded()
    tolerance = 1e-6 if layout.family == "ctrl" else 1e-10  # transformers keeps CTRL's positions in float32
    torch.testing.assert_close(first, expected(reference, layout.dtype), rtol=0, atol=tolerance)
    assert hub.downloads() == layout.needed.split()
    assert not {request.file for request in hub.asked} & {"rust_model.ot", "tf_model.h5", "README.md"}

    hub.asked.clear()
    assert torch.equal(loaded(), first)
    assert {(request.method, request.file) for request in hub.asked} == {("HEAD", "config.json")}
    assert [*cached()] == [REPO]

    offline(hub, monkeypatch)
    assert torch.equal(loaded(), first)


def test_the_tokenizer_comes_from_the_hub(hub: LocalHub, tiny: Tiny, tmp_path: Path) -> None:
    for name, text in (("distilbert/distilgpt2", "once upon a time"), ("Salesforce/ctrl", "ab a")):
        family = LAYOUTS[name].family
        hub.push(name, published(LAYOUTS[name]._replace(masks=None), tiny(family)[1], tmp_path / family))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* is a pickle file")
            _, tokenizer = minilens.load(name)
        assert tokenizer is not None
        assert tokenizer.decode(tokenizer.encode(text)[0]) == text


# --- Names and revisions ---


def scaled(factor: float) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor * factor for name, tensor in tensors.items()}


@pytest.fixture
def commits(hub: LocalHub, tiny: Tiny, tmp_path: Path) -> list[str]:
    """Three commits of one repository, of which each would fit the others' shards; main is the last."""
    pushed = []
    for n, ref in enumerate(("v1.0", "refs/pr/2", "main")):
        whole = changed(tiny("gpt2")[1], tmp_path / f"whole-{n}", tensors=scaled(1 + n / 8))
        pushed.append(hub.push(REPO, published(LAYOUTS["shards"], whole, tmp_path / str(n)), ref))
    return pushed


def test_revisions(hub: LocalHub, commits: list[str], tmp_path: Path, monkeypatch: Patch) -> None:
    want = [loaded(str(tmp_path / str(n))) for n in range(3)]
    assert len({tensor.sum().item() for tensor in want}) == 3
    revisions = [("v1.0", 0), ("refs/pr/2", 1), ("main", 2), *zip(commits, range(3), strict=True), (None, 2)]
    for revision, n in revisions:
        assert torch.equal(loaded(revision=revision), want[n]), revision
    assert len(hub.downloads()) == 2 + 3 * 2  # config and index are the same in all three
    hub.asked.clear()
    assert torch.equal(loaded(revision=commits[0]), want[0])
    assert hub.asked == []  # a commit does not change, nor what it lacks
    offline(hub, monkeypatch)
    for revision, n in revisions:
        assert torch.equal(loaded(revision=revision), want[n]), revision


def test_all_files_come_from_one_commit(hub: LocalHub, commits: list[str], tmp_path: Path) -> None:
    """main moves on with every request that names it."""

    class Moving(dict[str, str]):
        asked = 0

        def get(self, revision: str, default: Any = None) -> Any:
            self.asked += revision == "main"
            return commits[self.asked % 3] if revision == "main" else default

    hub.refs[REPO] = moving = Moving()
    want = [loaded(str(tmp_path / str(n))) for n in range(3)]
    for _ in range(3):
        found = loaded()
        assert sum(torch.equal(found, each) for each in want) == 1
    assert moving.asked >= 4


def test_a_repository_that_has_moved(hub: LocalHub, commits: list[str], tmp_path: Path, monkeypatch: Patch) -> None:
    hub.moved["gpt2"] = REPO
    found = loaded("gpt2")
    assert torch.equal(found, loaded(str(tmp_path / "2")))
    assert {request.repo for request in hub.asked} == {"gpt2", REPO}
    offline(hub, monkeypatch)
    assert torch.equal(loaded("gpt2"), found)


def test_a_token_opens_what_is_gated_and_stays_with_the_hub(
    hub: LocalHub, commits: list[str], tmp_path: Path, monkeypatch: Patch
) -> None:
    hub.members[REPO] = {"hf_good"}
    for token in (None, "hf_other"):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(CheckpointError, match=r"^some/model asks for permission: get it on the Hub, then `hf"):
            minilens.load(REPO)
    assert hub.downloads() == []
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    hub.asked.clear()
    found = loaded()
    assert torch.equal(found, loaded(str(tmp_path / "2")))
    tokens = {(request.method, request.file): request.token for request in hub.asked}
    assert tokens["GET", "config.json"] == tokens["HEAD", "model-1.safetensors"] == "hf_good"
    assert tokens["GET", "model-1.safetensors"] is None  # another host has it
    monkeypatch.delenv("HF_TOKEN")
    assert torch.equal(loaded(), found)  # what was downloaded stays


# --- What goes wrong: one sentence, nothing broken left behind, no long wait ---

WEIGHTS = f"{REPO}/model.safetensors"


@pytest.fixture
def good(hub: LocalHub, tiny: Tiny, tmp_path: Path) -> torch.Tensor:
    """The logits of a model that is on the Hub."""
    folder = changed(tiny("gpt2")[1], tmp_path / "good", files={"tokenizer.json": tokenizer_json()})
    hub.push(REPO, folder)
    return loaded(str(folder))


@pytest.mark.parametrize("silent", [False, True], ids=["breaks", "stalls"])
def test_a_download_goes_on_where_it_was(
    hub: LocalHub, good: torch.Tensor, slept: list[float], monkeypatch: Patch, silent: bool
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # of a piece that breaks off nothing is kept
    hub.faults = [Fault(WEIGHTS, "GET", cut=5500, silent=silent, times=2)]
    assert torch.equal(loaded(), good)
    starts = [request.start for request in hub.asked if (request.method, request.file) == ("GET", "model.safetensors")]
    assert starts == [0, 5000, 10000]
    assert slept == [1, 1]


SIZE = r"Consistency check failed: file should be of size \d+ but has size \d+ .*"
DOWNLOADS: dict[str, tuple[dict[str, Any], str, float]] = {
    "breaks at once, always": (dict(cut=0), "peer closed connection without sending complete message body .*", 5),
    "breaks in the middle, always": (dict(cut=5500), "peer closed connection without .*", 5),
    "says nothing": (dict(silent=True), ".*timed out", 5),
    "is too short": (dict(body=b"short"), SIZE, 0),
    "is too long": (dict(body=b"long" * 10**5), SIZE, 0),
    "is empty": (dict(body=b""), SIZE, 0),
    "is a page": (dict(body=b"<!doctype html>Log in"), SIZE, 0),
    "403": (dict(status=403), "403 Forbidden: None", 0),
    "404": (dict(status=404), "Client error '404 Not Found'", 0),
    "416": (dict(status=416), f"Client error '416 {HTTPStatus(416).phrase}'", 0),
    "429": (dict(status=429), "429 Too Many Requests", 23),
    "500": (dict(status=500), "Server error '500 Internal Server Error'", 0),
    "503": (dict(status=503, body=b"busy\nnow"), "Server error '503 Service Unavailable': busy now", 0),
    "503, a novel": (dict(status=503, body=b"once upon " * 999), r"Server error [^\n]{100,190} \.\.\.", 0),
}


@pytest.mark.parametrize("name", DOWNLOADS)
def test_a_download_that_fails(
    hub: LocalHub, good: torch.Tensor, monkeypatch: Patch, slept: list[float], name: str
) -> None:
    """One sentence, nothing of the file left in the cache, and the next time it is whole."""
    fault, sentence, longest = DOWNLOADS[name]
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    hub.faults = [Fault(WEIGHTS, "GET", **fault)]
    with pytest.raises(CheckpointError, match=rf"^model\.safetensors of some/model cannot be downloaded: {sentence}$"):
        minilens.load(REPO)
    assert sum(slept) == longest
    kept = [path.name for path in Path(constants.HF_HUB_CACHE).rglob("*") if path.is_file()]
    assert kept.count("config.json") == 1
    assert not [file for file in kept if file == "model.safetensors" or file.endswith(".incomplete")]
    hub.faults.clear()
    assert torch.equal(loaded(), good)


def flipped(folder: Path) -> bytes:
    """Weights of which one bit is wrong: a model that can be read, and gives other numbers."""
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 64
    return bytes(content)


def test_a_download_of_the_right_size_that_is_damaged(hub: LocalHub, good: torch.Tensor, tmp_path: Path) -> None:
    damaged = changed(tmp_path / "good", tmp_path / "damaged", files={"model.safetensors": flipped(tmp_path / "good")})
    assert not torch.equal(loaded(str(damaged)), good)
    hub.faults = [Fault(WEIGHTS, "GET", body=flipped(tmp_path / "good"), times=1)]
    with pytest.raises(
        CheckpointError, match=r"^model\.safetensors of some/model was damaged on its way, and is removed; try again$"
    ):
        minilens.load(REPO)
    assert torch.equal(loaded(), good)


def test_a_damaged_file_in_the_store_that_repositories_share(hub: LocalHub, good: torch.Tensor, tmp_path: Path) -> None:
    """There a blob is a link, too, to a file that has another hash of 64 digits as its name."""
    loaded()
    (link,) = Path(constants.HF_HUB_CACHE).rglob("model.safetensors")
    blob, shared = link.parent / os.readlink(link), tmp_path / ("5" * 64)
    blob.rename(shared)
    blob.symlink_to(shared)
    _check_hash(REPO, link)
    shared.write_bytes(flipped(tmp_path / "good"))
    with pytest.raises(CheckpointError, match="was damaged on its way"):
        _check_hash(REPO, link)
    assert torch.equal(loaded(), good)


LOGIN = "what answers in place of the Hub is a proxy, a login page or the like"
PAGE = {"Content-Type": "text/html"}
ANSWERS: dict[str, tuple[dict[str, Any], str]] = {
    "400": (dict(status=400), "the Hub refuses (Bad request)"),
    "401": (dict(status=401), "the Hub refuses (Client error '401 Unauthorized')"),
    "401, a bad token": (
        dict(status=401, headers={"X-Error-Message": "Invalid credentials in Authorization header"}),
        "the Hub refuses (Client error '401 Unauthorized': Invalid credentials in Authorization header)",
    ),
    "403": (dict(status=403), "the Hub refuses (403 Forbidden: None)"),
    "403, disabled": (
        dict(status=403, headers={"X-Error-Message": "Access to this resource is disabled."}),
        "the Hub refuses (403 Client Error: Access to this resource is disabled.)",
    ),
    "404 of something else": (dict(status=404), "the Hub refuses (Client error '404 Not Found')"),
    "429": (dict(status=429), "the Hub refuses (429 Too Many Requests)"),
    "429, for an hour": (dict(status=429, headers={"Retry-After": "3600"}), "the Hub refuses (429 Too Many Requests)"),
    "500": (dict(status=500), "the Hub refuses (Server error '500 Internal Server Error')"),
    "503": (dict(status=503), "the Hub refuses (Server error '503 Service Unavailable')"),
    "503, a page": (
        dict(status=503, body=b"<html>Busy", headers=PAGE),
        "the Hub refuses (Server error '503 Service Unavailable')",
    ),
    "a page": (dict(status=200, body=b"<html>Log in", headers=PAGE), LOGIN),
    "to another host": (dict(status=302, headers={"Location": "http://login.example/"}), LOGIN),
    "in circles": (dict(status=307, headers={"Location": "#"}), "the Hub cannot be reached (Exceeded 20 redirects "),
    "no hash": (dict(status=200, headers={"X-Repo-Commit": "a" * 40}), LOGIN),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_hub_that_does_not_help(hub: LocalHub, good: torch.Tensor, slept: list[float], name: str) -> None:
    """One sentence at once, at the start as in the middle; and what is in the cache can still be used."""
    fault, words = ANSWERS[name]
    for path, file in (("*", "config.json"), (WEIGHTS, "model.safetensors")):
        hub.faults = [Fault(path, **fault)]
        with pytest.raises(CheckpointError) as info:
            minilens.load(REPO)
        start = f"there is no folder 'some/model', {file} of that repository is not in the cache, and {words}"
        end = "connect to the network or try again later, or use a folder or a bundled model ("
        assert str(info.value).startswith(start)
        assert end in str(info.value)
    hub.faults.clear()
    assert torch.equal(loaded(), good)
    hub.faults = [Fault(**fault)]
    assert torch.equal(loaded(), good)
    assert slept == []


LIES = {
    "an absolute path": "/{}/planted",
    "a path that leads out": "../../../planted",
    "a path of the client's own": "refs/main",
    "no hash": "planted",
    "a hash and a path": "a" * 40 + "/../../../../planted",
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("about", ["ETag", "commit", "commit without the file"])
def test_a_hub_that_has_files_planted(
    hub: LocalHub, good: torch.Tensor, tmp_path: Path, slept: list[float], about: str, lie: str
) -> None:
    """The client takes a commit and an ETag as names of folders and files: what cannot be one is not the Hub's."""
    value = LIES[lie].format(tmp_path)
    absent: dict[str, Any] = dict(status=404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": value})
    for file, etag in (("config.json", "ETag"), ("model.safetensors", "X-Linked-Etag")):
        lies = dict(headers={etag if about == "ETag" else "X-Repo-Commit": value})
        hub.faults = [Fault(f"{REPO}/{file}", "HEAD", **(absent if "without" in about else lies))]
        with pytest.raises(CheckpointError, match=rf"{file} of that repository is not in the cache, and {LOGIN}; "):
            minilens.load(REPO)
    hub.faults.clear()
    assert {path.name for path in tmp_path.iterdir()} == {"good", "cache"}
    assert not list(tmp_path.rglob("*planted*"))
    assert torch.equal(loaded(), good)
    assert slept == []


def test_the_hub_is_asked_once_for_each_file(hub: LocalHub, good: torch.Tensor, tmp_path: Path) -> None:
    """What it would say the second time, a path to write to, cannot count."""
    hub.faults = [
        Fault(f"{REPO}/{file}", "HEAD", after=1, headers={name: str(tmp_path / "planted")})
        for file in ("config.json", "model.safetensors")
        for name in ("ETag", "X-Linked-Etag", "X-Repo-Commit")
    ]
    assert torch.equal(loaded(), good)
    asked = [request.file for request in hub.asked if request.method == "HEAD"]
    assert len(asked) == len(set(asked))
    assert not (tmp_path / "planted").exists()


def test_a_question_of_another_thread_is_its_own(hub: LocalHub, good: torch.Tensor, monkeypatch: Patch) -> None:
    """While a file is downloaded, the client asks the Hub for other files as ever, and afterwards for this one, too."""
    ask, download = file_download.get_hf_file_metadata, huggingface_hub.hf_hub_download

    def noted(repo_id: str, filename: str, **options: Any) -> str:
        url = huggingface_hub.hf_hub_url(repo_id, "config.json")
        assert filename == "config.json" or file_download.get_hf_file_metadata(url).commit_hash
        return download(repo_id, filename, **options)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", noted)
    assert torch.equal(loaded(), good)
    assert file_download.get_hf_file_metadata is ask


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "rubbish", "http://"])
def test_an_endpoint_where_nobody_is(hub: LocalHub, monkeypatch: Patch, slept: list[float], endpoint: str) -> None:
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{endpoint}/{{repo_id}}/{{revision}}/{{filename}}")
    with pytest.raises(
        CheckpointError, match=r"^there is no folder 'some/model', .* the Hub cannot be reached \(.+\);"
    ):
        minilens.load(REPO)
    assert slept == []


@pytest.mark.parametrize("error", [ZeroDivisionError("of a library\nbelow"), OSError(28, "No space left"), TypeError()])
def test_what_the_client_lets_through(hub: LocalHub, good: torch.Tensor, monkeypatch: Patch, error: Exception) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", Mock(side_effect=error))
    said = " ".join(str(error).split()) or "TypeError"
    with pytest.raises(CheckpointError, match=f"^config.json of some/model cannot be downloaded: {re.escape(said)}$"):
        minilens.load(REPO)


NOWHERE = (
    r"there is no model '{}': it is not bundled \(.*\), not a folder and not on the Hub, or it is private there .*"
)


@pytest.mark.parametrize("token", [None, "hf_any"])
def test_what_the_hub_does_not_have(
    hub: LocalHub, good: torch.Tensor, monkeypatch: Patch, slept: list[float], token: str | None
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    for repo in ("no/such", "nosuch"):
        with pytest.raises(ValueError, match=f"^{NOWHERE.format(repo)}$"):
            minilens.load(repo)
    for revision in ("v9", "0" * 40):
        with pytest.raises(ValueError, match=f"^some/model has no revision {re.escape(repr(revision))}$"):
            minilens.load(REPO, revision=revision)
    for revision in ("../main", "a b"):
        with pytest.raises(ValueError, match=r"^revision must be a branch, a tag or a commit; got "):
            minilens.load(REPO, revision=revision)
    assert slept == []
    assert hub.downloads() == []


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"config.json": None}, r"'some/model' has no config\.json, so it is not a model that minilens can read"),
        ({"config.json": b"<html>"}, r".*config\.json is not readable as JSON: it is a web page; .*"),
        ({"model-1.safetensors": None, INDEX: None}, r".* has no weights: neither model\.safetensors nor .*"),
        ({"model-1.safetensors": None}, r".*index\.json names 'model-1\.safetensors', which is missing"),
        (
            {INDEX: b'{"weight_map": {"a": "../../config.json"}}'},
            r".* names '\.\./\.\./config\.json', which is not a .*",
        ),
        ({INDEX: b'{"weight_map": {"a": "/etc/passwd"}}'}, r".* names '/etc/passwd', which is not a file in .*"),
        ({INDEX: rb'{"weight_map": {"a": "..\\..\\x"}}'}, r".* names '\.\.\\+\.\.\\+x', which is not a file in .*"),
    ],
    ids=str,
)
def test_a_repository_that_is_not_whole(
    hub: LocalHub, tiny: Tiny, tmp_path: Path, slept: list[float], files: dict[str, bytes | None], sentence: str
) -> None:
    shards = published(LAYOUTS["shards"], tiny("gpt2")[1], tmp_path / "shards")
    text = dict.fromkeys(("vocab.json", "merges.txt"), b"{}")
    hub.push(REPO, changed(changed(shards, tmp_path / "text", files=text), tmp_path / "repository", files=files))
    for _ in range(2):
        with pytest.raises(CheckpointError, match=f"^{sentence}$"):
            minilens.load(REPO)
    assert slept == []
    assert not [request for request in hub.asked if ".." in request.file or "passwd" in request.file]


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (lambda hub: hub.members.update({REPO: set()}), "some/model asks for permission: "),
        (lambda hub: hub.commits.clear(), "there is no model 'some/model': "),
        (lambda hub: hub.faults.append(Fault(status=503)), "there is no folder 'some/model', config.json of that "),
        (lambda hub: hub.faults.append(Fault(WEIGHTS, "GET", body=b"")), "model.safetensors of some/model cannot be "),
        (lambda hub: hub.stop(), "there is no folder 'some/model', config.json of that "),
    ],
    ids=["gated", "nowhere", "down", "cut short", "gone"],
)
def test_the_command_says_it_in_one_line(
    hub: LocalHub,
    good: torch.Tensor,
    capsys: pytest.CaptureFixture[str],
    prepare: Callable[[LocalHub], None],
    sentence: str,
) -> None:
    prepare(hub)
    assert main(["lens", "--ids", "1 2", "--model", REPO]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith(f"minilens: error: {sentence}")


# --- In a process of its own, with nothing but the environment ---

SCRIPT = """
import contextlib, io, json, sys, time
{before}
import minilens.command.main

results = []
for arguments in json.load(sys.stdin):
    start, out, err = time.monotonic(), io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = minilens.command.main.main(arguments)
    results.append([status, out.getvalue(), err.getvalue(), time.monotonic() - start])
print(json.dumps(results))
"""


class Ran(NamedTuple):
    status: int
    out: str
    err: str
    seconds: float


def run(commands: list[list[str]], home: Path, before: str = "", **environment: str) -> list[Ran]:
    """What each of these minilens commands gives, in one process; the client's log goes to the process's own stderr."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("HF_") and "proxy" not in name.lower()
    }
    settings = {
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "COLUMNS": "100",
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(before=before)],
        input=json.dumps(commands),
        env={**kept, **settings},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    return [Ran(*result) for result in json.loads(ran.stdout)]


def lens(repo: str) -> list[str]:
    return ["lens", "--ids", "1 2 3", "--model", repo]


def test_the_environment_alone(hub: LocalHub, good: torch.Tensor, tmp_path: Path) -> None:
    """HF_ENDPOINT, HF_HOME, HF_TOKEN and the client's own time limit; no log, no wait, no traceback."""
    folder = tmp_path / "good"
    for repo in ("is/gated", "is/silent", "is/busy", "is/broken"):
        hub.push(repo, folder)
    hub.members["is/gated"] = {"hf_good"}
    hub.faults = [
        Fault("is/silent/*", silent=True),
        Fault("is/busy/model.safetensors", "HEAD", status=429, headers={"Retry-After": "3600"}),
        Fault("is/broken/model.safetensors", "GET", body=flipped(folder)),
    ]
    names = [REPO, "is/gated", "is/silent", "is/busy", "is/broken", "is/nowhere"]
    settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_good", "HF_HUB_ETAG_TIMEOUT": "1"}
    ran = dict(zip(names, run([lens(name) for name in names], tmp_path / "home", **settings), strict=True))
    good_one = ran.pop(REPO)
    assert (good_one.status, good_one.err) == (0, "")
    assert ran.pop("is/gated")[:3] == good_one[:3]
    for name, words in {
        "is/silent": "timed out)",
        "is/busy": "model.safetensors of that repository is not in the cache, and the Hub refuses (429 Too Many",
        "is/broken": "model.safetensors of is/broken was damaged on its way",
        "is/nowhere": "there is no model 'is/nowhere': it is not bundled",
    }.items():
        each = ran.pop(name)
        assert (each.status, each.out) == (2, "")
        (line,) = each.err.splitlines()
        assert line.startswith("minilens: error: ")
        assert words in line
        assert each.seconds < 4
    assert not ran
    hub.stop()
    (again,) = run([lens(REPO)], tmp_path / "home", HF_HUB_OFFLINE="1")
    assert again[:3] == good_one[:3]


OUTPUTS = {"--json", "--csv", "--html", "--out", *(f"--{kind}" for kind in FIGURES)}
BLOCKED = """
import socket

class Blocked(socket.socket):
    def __init__(self, *_, **__):
        raise OSError("the network is blocked")

def refuse(*_, **__):
    raise OSError("the network is blocked")

socket.socket = Blocked
socket.create_connection = socket.getaddrinfo = refuse
"""


LIBRARY = """
import huggingface_hub.file_download  # seconds on a busy machine, which are not the wait that is measured
import minilens

model, tokenizer = minilens.load("tales-gpt2")
tokens = tokenizer.encode("Once upon a time")
assert len(minilens.logit_lens(model, tokens).labels) == len(minilens.trace(model, tokens).blocks) + 1
start = time.monotonic()
try:
    minilens.load("gpt2")
except minilens.CheckpointError as error:
    assert "the Hub cannot be reached (the network is blocked)" in str(error)
    assert time.monotonic() - start < 3
else:
    raise AssertionError
"""


def test_without_a_network(tiny: Tiny, tmp_path: Path) -> None:
    """With sockets blocked before anything is imported, what needs none works; what needs one fails at once.

    Every command in every form of output, with a bundled model or a folder; and every command with one on the Hub.
    """
    (tmp_path / "sitecustomize.py").write_text(BLOCKED)
    (tmp_path / "text").write_text("Once upon a time there was a girl.")
    (tmp_path / "lines").write_text("Once upon a time there was a girl.\n" * 9)
    folder = str(tiny("gpt2")[1])

    def files(name: str) -> list[str]:
        return [word for kind in ("html", *FIGURES) for word in (f"--{kind}", f"{tmp_path}/{name}.{kind}")]

    patching = ["patching", "Tom had a dog", "Tim had a dog", "--right", " dog"]
    attribute = ["attribute", "Tom had a dog", "--by", "position"]
    works = [
        ["models"],
        *(["lens", "Once upon a time", "--model", name] for name in bundled()),
        ["lens", "Once upon a time", "--patterns", "0", *files("lens")],
        *(["lens", "--file", str(tmp_path / "text"), option] for option in ("--json", "--csv")),
        lens(folder),
        ["trace", "--ids", "1 2", "--model", folder, "--out", str(tmp_path / "trace.safetensors")],
        ["walk", "Once upon a time"],
        ["diff", "gpt2", "gpt_neo"],
        attribute,
        [*attribute, "--json"],
        [*attribute, *files("attribute")],
        *(
            [*command, *output]
            for command in (["parts", "Once upon", "--layer", "0"], ["attention", "Once upon", "--layer", "0"])
            for output in ([], ["--json"], files(command[0]))
        ),
        ["exercise", "gpt2", str(tmp_path / "my_gpt2.py"), "--solution"],
        ["check", str(tmp_path / "my_gpt2.py")],
        ["glossary", "logit"],
        patching,
        [*patching, "--json"],
        [*patching, *files("patching")],
        ["study", "tales-gpt2", "--file", str(tmp_path / "text"), "--out", str(tmp_path / "study")],
        ["heads", "--model", folder, "--length", "9"],
        ["heads", "--json"],
        ["live", "tales-gpt2", "--html", str(tmp_path / "live.html")],
        *(["generate", "Once upon a time", "--n", "2", *option] for option in ((), ("--json",))),
        ["geometry", "--model", folder],
        ["geometry", "--json"],
        corpus := ["corpus", "tales-gpt2", str(tmp_path / "text"), "--out", str(tmp_path / "corpus")],
        [*corpus, "--json"],
        [*corpus, "--csv"],
        ["fit", "tales-gpt2", str(tmp_path / "lines"), "--lines", "--shard", "20", "--out", str(tmp_path / "fit")],
        ["life", "tales-gpt2", str(tmp_path / "text"), "--out", str(tmp_path / "life")],
        ["verify", folder],
        ["verify", folder, "--json"],
    ]
    fails = [
        lens(REPO),
        [*lens("gpt2"), "--revision", "main"],
        ["lens", "a", "--model", "gpt2", "--html", str(tmp_path / "none.html")],
        ["trace", "a", "--model", "gpt2", "--out", str(tmp_path / "none")],
        ["walk", "a", "--model", REPO],
        [*patching, "--model", "Salesforce/ctrl"],
        ["attribute", "a", "--model", "gpt2"],
        ["study", "tales-gpt2", "EleutherAI/gpt-neo-125m", "--out", str(tmp_path / "none")],
        ["study", "gpt2", "--out", str(tmp_path / "none")],
        ["heads", "--model", "gpt2"],
        ["live", "gpt2", "--html", str(tmp_path / "none.html")],
        ["attention", "a", "--layer", "0", "--model", "gpt2"],
        ["parts", "a", "--model", "gpt2"],
        ["generate", "a", "--model", "gpt2"],
        ["geometry", "--model", "gpt2"],
        ["corpus", "gpt2", str(tmp_path / "text"), "--out", str(tmp_path / "none")],
        ["fit", "gpt2", str(tmp_path / "text"), "--out", str(tmp_path / "none")],
        ["life", "gpt2", str(tmp_path / "text"), "--revisions", "a,b", "--out", str(tmp_path / "life-of-none")],
        ["verify", "gpt2"],
    ]
    (commands,) = [each for each in _parser()._actions if isinstance(each, argparse._SubParsersAction)]
    assert (
        commands.choices.keys() - {"serve"}
        == {name for name, *_ in works}
        == {name for name, *_ in fails} | {"check", "diff", "exercise", "glossary", "models"}
    )
    for name, parser in commands.choices.items():
        outputs = {option for action in parser._actions for option in action.option_strings} & OUTPUTS
        assert outputs <= {word for command in works if command[0] == name for word in command}
    path = os.pathsep.join([str(tmp_path), str(Path(minilens.__file__).parents[1])])
    ran = run([*works, *fails], tmp_path / "home", before=LIBRARY, PYTHONPATH=path)
    for each in ran[: len(works)]:
        assert each.status == 0, each
        assert each.err == "" or each.err.startswith(("minilens: note: ", f"minilens: {tmp_path}")), each
    assert set(bundled()) <= set(ran[0].out.split())
    for each in ran[len(works) :]:
        assert (each.status, each.out) == (2, "")
        (line,) = each.err.splitlines()
        assert line.startswith("minilens: error: there is no folder ")
        assert "the Hub cannot be reached (the network is blocked)" in line
        assert each.seconds < 3
    assert not list(tmp_path.glob("none*"))

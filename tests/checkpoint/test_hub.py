"""Repositories in the Hub's cache, without the Hub; test_local_hub.py is about the Hub itself."""

import os
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from checkpoints import changed, logits
from conftest import Tiny

import minilens
from minilens import CheckpointError
from minilens.loading import cached

COMMIT = "a" * 40


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
    changed(files, folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    for file in missing:
        (folder / ".no_exist" / COMMIT).mkdir(parents=True, exist_ok=True)
        (folder / ".no_exist" / COMMIT / file).touch()
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
    assert [*cached()] == []
    fill_cache(cache, "b/ctrl", tiny("ctrl")[1])
    fill_cache(cache, "a/gpt2", tiny("gpt2")[1])
    for n, config in enumerate((b'{"model_type": "llama"}', b'{"model_type": []}', b"{}", b"[]", b"{")):
        fill_cache(cache, f"c/{n}", changed(tiny("gpt2")[1], tmp_path / str(n), files={"config.json": config}))
    fill_cache(cache, "old/gpt2", changed(tiny("gpt2")[1], tmp_path / "old", drop=["model_type"]))
    assert [*cached()] == ["a/gpt2", "b/ctrl", "old/gpt2"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_the_list_of_cached_models_waits_for_nothing(tiny: Tiny, cache: Path) -> None:
    """A pipe in the place of a branch or a config, and a link that leads nowhere."""
    one, other = (fill_cache(cache, name, tiny("gpt2")[1]) for name in ("a/gpt2", "b/gpt2"))
    (one / "snapshots" / COMMIT / "README.md").symlink_to("nowhere")
    for path in (one / "refs" / "main", other / "snapshots" / COMMIT / "config.json"):
        path.unlink()
        os.mkfifo(path)
    assert [*cached()] == ["a/gpt2"]


def test_of_a_cached_model_the_newest_files_are_listed(tiny: Tiny, cache: Path) -> None:
    folder = fill_cache(cache, "a/gpt2", tiny("gpt2")[1]) / "snapshots"
    for name, time in (("0" * 40, 2), ("f" * 40, 1)):
        shutil.copytree(folder / COMMIT, folder / name)
        os.utime(folder / name / "config.json", (time, time))
    os.utime(folder / COMMIT / "config.json", (0, 0))
    assert cached() == {"a/gpt2": folder / ("0" * 40)}

"""Writing a file: whole or not at all, whoever writes it."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from minilens.command.outputs import write
from minilens.corpus.shared_files import write_arrays
from minilens.files import check_new, replacing


def there(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), RuntimeError()]
)
def test_what_fails_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "old").write_bytes(b"old")
    for name in ("old", "new"):
        with (
            pytest.raises(ValueError if isinstance(error, OSError) else type(error)),
            replacing(tmp_path / name) as new,
        ):
            new.write_bytes(b"half")
            raise error
    assert there(tmp_path) == {"old": b"old"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no other process can be made by a fork")
def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for it: writing beyond is an error."""
    import resource
    import signal

    (tmp_path / "old").write_bytes(b"old")
    if (child := os.fork()) == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        refused = 0
        for writes in (
            lambda: write({tmp_path / "old": b"x" * 5000}, overwrite=True),
            lambda: write_arrays(tmp_path / "old", {"a": torch.rand(5000)}),
        ):
            try:
                writes()
            except ValueError as error:
                refused += "old cannot be written: File too large" in str(error)
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    assert there(tmp_path) == {"old": b"old"}


@pytest.mark.parametrize(
    "writer",
    [
        lambda path: path.write_bytes(b"new"),
        lambda path: save_file({"a": torch.ones(2)}, path),  # which puts a file of its own there, for its owner only
    ],
    ids=["bytes", "safetensors"],
)
def test_a_file_keeps_its_mode_and_a_new_one_has_the_usual_one(tmp_path: Path, writer: Callable[[Path], None]) -> None:
    (tmp_path / "usual").touch()
    (tmp_path / "private").touch(0o600)
    for name, like in (("private", "private"), ("new", "usual")):
        mode = (tmp_path / like).stat().st_mode
        with replacing(tmp_path / name) as new:
            writer(new)
        assert (tmp_path / name).stat().st_mode == mode
        assert (tmp_path / name).stat().st_size


def test_it_is_flushed_before_it_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("flushed"), sync(file))[1])
    monkeypatch.setattr(Path, "replace", lambda path, to: (done.append("replaced"), replace(path, to))[1])
    with replacing(tmp_path / "a") as new:
        new.write_bytes(b"a")
        done.append("written")
    assert done == ["written", "flushed", "replaced"]


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    with pytest.raises(ValueError, match="is not a file that could be replaced"), replacing(tmp_path / "link") as new:
        new.write_bytes(b"new")
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert (tmp_path / "link").is_symlink()


def test_whoever_guesses_the_name_of_the_new_file_has_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    monkeypatch.setattr("minilens.files.token_hex", lambda n_bytes: "guessed")
    (tmp_path / f"a.{os.getpid()}.guessed").symlink_to(tmp_path / "precious")
    with pytest.raises(ValueError, match="a cannot be written: File exists"), replacing(tmp_path / "a") as new:
        new.write_bytes(b"new")
    assert there(tmp_path) == {"precious": b"precious"}


def test_a_file_that_was_made_in_the_meantime_is_kept(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="exists: give another name, or --overwrite"),
        replacing(tmp_path / "a", overwrite=False) as new,
    ):
        new.write_bytes(b"new")
        (tmp_path / "a").write_bytes(b"another's")
    assert there(tmp_path) == {"a": b"another's"}


def test_long_names_and_folders_that_are_not_there(tmp_path: Path) -> None:
    name = "n" * 255
    with replacing(tmp_path / name) as new:
        new.write_bytes(b"new")
    assert there(tmp_path) == {name: b"new"}
    with pytest.raises(ValueError, match="a cannot be written: No such file"), replacing(tmp_path / "none" / "a"):
        pass


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_what_is_no_file_is_not_replaced(tmp_path: Path, kind: str) -> None:
    make = {"folder": os.mkdir, "pipe": os.mkfifo, "link": lambda path: os.symlink("nowhere", path)}[kind]
    make(tmp_path / "a")
    with pytest.raises(ValueError, match="is not a file that could be replaced"):
        check_new(tmp_path / "a", overwrite=True)

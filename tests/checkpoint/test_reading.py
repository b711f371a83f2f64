"""Files that are not what they seem, or do not stay what they are: pipes, devices, and what changes under the hands."""

import io
import json
import os
import re
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import changed, logits, tokenizer_json
from conftest import Tiny
from safetensors.torch import load_file, save_file

import minilens
from minilens import CheckpointError
from minilens.checkpoint import hub, settings, tensors
from minilens.checkpoint.pickled import Fault, _is_tar, _Storage, _tensor
from minilens.checkpoint.reading import opened, sha256_of

SAFE, INDEX = "model.safetensors", "model.safetensors.index.json"


# --- What is not a regular file ---


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


OTHERS: dict[str, Callable[[Path], Any]] = {
    "a pipe": os.mkfifo,
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a socket": listening,
    "a folder": os.mkdir,
    "a link that leads nowhere": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a file of the system's, without an end": lambda path: path.symlink_to("/proc/self/pagemap"),
}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("file", ["config.json", SAFE, "tokenizer.json"])
def test_what_is_no_file_is_refused_at_once(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, file: str
) -> None:
    """By load, and by verify; and nothing else, a .bin say, is read in its place."""
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    others = {"pytorch_model.bin": b"", "vocab.json": b"{}", "merges.txt": b"", "tokenizer.json": tokenizer_json()}
    folder = changed(tiny("gpt2")[1], Path("model"), files=others)
    (folder / file).unlink()
    OTHERS[what](folder / file)
    sentence = rf"model/{file} (is (a link to )?no |is a folder|is not readable as JSON: |cannot be read as weights: )"
    if file == "tokenizer.json":
        with pytest.warns(UserWarning, match=f"'model' is loaded without its tokenizer: {sentence}"):
            assert minilens.load("model")[1] is None
    else:
        with pytest.raises(CheckpointError, match=f"^{sentence}"):
            minilens.load("model")
    assert any(fault.startswith(f"model/{file} ") for fault in minilens.verify("model").faults)


@pytest.mark.skipif(not Path("/proc/self/pagemap").exists(), reason="the file is Linux's")
def test_no_more_bytes_are_read_than_a_file_has() -> None:
    with opened(Path("/proc/self/pagemap")) as file, pytest.raises(OSError, match="it gives more bytes than it has"):
        sha256_of(file)


def test_what_becomes_a_pipe_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, stat, open_file, before = tmp_path / "file", os.stat, os.open, os.listdir("/proc/self/fd")
    path.write_text("text")
    asked = []

    def replaced(name: Any) -> os.stat_result:
        found = stat(name)
        path.unlink()
        os.mkfifo(path)
        return found

    def noted(name: Any, flags: int, *mode: int) -> int:
        asked.append(flags & os.O_NONBLOCK)
        return open_file(name, flags | os.O_NONBLOCK, *mode)  # without it this test would wait for ever

    with monkeypatch.context() as patched, pytest.raises(OSError, match="it is a pipe, a device or a socket"):
        patched.setattr(os, "stat", replaced)
        patched.setattr(os, "open", noted)
        opened(path)
    assert asked == [os.O_NONBLOCK]
    assert os.listdir("/proc/self/fd") == before


def test_what_waits_for_more_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe stands for files of the system's own, such as /proc/kmsg, which count as regular ones."""
    waiting, other_end = os.pipe()
    os.set_blocking(waiting, False)
    monkeypatch.setattr(settings, "opened", lambda path: os.fdopen(os.dup(waiting), "rb"))
    with pytest.raises(CheckpointError, match="file is not readable as text: it is not a file that can be read to its"):
        settings.read_text(tmp_path / "file")
    os.close(waiting)
    os.close(other_end)


# --- What changes while it is read ---


@pytest.fixture
def two(tiny: Tiny, tmp_path: Path) -> tuple[Path, Path]:
    """Two checkpoints of the same names and shapes, of which every weight differs; float32, in two files."""
    folders = []
    for n in range(2):
        folder = changed(tiny("gpt2")[1], tmp_path / str(n), files={SAFE: None, "tokenizer.json": tokenizer_json()})
        whole = {name: tensor.float() + n for name, tensor in load_file(tiny("gpt2")[1] / SAFE).items()}
        halves = {f"{half}.safetensors": list(whole)[half::2] for half in range(2)}
        for file, names in halves.items():
            save_file({name: whole[name] for name in names}, folder / file)
        index = {"weight_map": {name: file for file, names in halves.items() for name in names}}
        (folder / INDEX).write_text(json.dumps(index))
        folders.append(folder)
    return folders[0], folders[1]


def in_place(new: Path, old: Path) -> None:
    """As a program does that opens a file and writes to it, at the same time by its clock."""
    before = os.stat(old)
    with old.open("r+b") as file:
        file.write(new.read_bytes())
    os.utime(old, ns=(before.st_atime_ns, before.st_mtime_ns))


WRITES: dict[str, Callable[[Path, Path], Any]] = {
    "as a download does": lambda new, old: new.rename(old),
    "in place": in_place,
    "by a link": lambda new, old: (old.unlink(), old.symlink_to(new)),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("file", ["config.json", "0.safetensors", INDEX, "tokenizer.json"])
def test_a_file_that_changes_while_it_is_loaded(
    two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, file: str, dtype: torch.dtype, write: str
) -> None:
    """Whichever file, whichever moment between the first that is found and the last that is read: it is refused."""
    old, new = two
    finish = tensors.Checkpoint.finish

    def finished(checkpoint: Any) -> None:
        finish(checkpoint)
        WRITES[write](new / file, old / file)

    monkeypatch.setattr(tensors.Checkpoint, "finish", finished)
    if file == "tokenizer.json":  # which is looked for last
        monkeypatch.setattr(tensors.Checkpoint, "finish", finish)
        load = minilens.loading.load_tokenizer

        def loaded(*args: Any) -> Any:
            found = load(*args)
            WRITES[write](new / file, old / file)
            return found

        monkeypatch.setattr(minilens.loading, "load_tokenizer", loaded)
    with pytest.raises(CheckpointError, match=f"{file} has changed while it was read: try again when nothing writes"):
        minilens.load(old, dtype=dtype)


@pytest.mark.parametrize("n", range(3))
def test_tensors_of_two_files_make_no_model(two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """The file is replaced before the n-th tensor is converted, which opens it again."""
    old, new = two
    alone, converted = tensors._alone, []

    def replacing(path: Path, name: str) -> torch.Tensor:
        converted.append(name)
        if len(converted) == n + 1:
            (new / path.name).rename(path)
        return alone(path, name)

    monkeypatch.setattr(tensors, "_alone", replacing)
    with pytest.raises(CheckpointError, match=r"\.safetensors has changed while it was read"):
        minilens.load(old, dtype=torch.float64)


@pytest.mark.parametrize("file", ["config.json", "1.safetensors", "tokenizer.json"])
def test_verify_says_that_a_file_has_changed(
    two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    old, new = two
    module = sys.modules["minilens.checks.verify"]  # the function of that name hides it
    find = module.identities

    def replaced(*args: Any) -> Any:
        found = find(*args)
        (new / file).rename(old / file)
        return found

    monkeypatch.setattr(module, "identities", replaced)
    report = minilens.verify(old)
    assert f"{old / file} has changed while it was read: try again when nothing writes to it" in report.faults
    assert not report.loads


def test_a_file_is_looked_for_once(tmp_path: Path) -> None:
    """So what was there at first is not mixed with what comes later."""
    files = hub.Files(lambda name: tmp_path / name if (tmp_path / name).exists() else None)
    assert files("a") is None
    (tmp_path / "a").touch()
    assert files("a") is None
    (tmp_path / "b").touch()
    assert files("b") == tmp_path / "b"
    files.check_unchanged()
    (tmp_path / "b").unlink()
    assert files("b") == tmp_path / "b"
    with pytest.raises(CheckpointError, match="b has changed while it was read"):
        files.check_unchanged()


# --- Mapped files ---


@pytest.mark.parametrize("form", [SAFE, "pytorch_model.bin"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.filterwarnings("ignore:.* is a pickle file")
def test_without_a_mapping_a_file_that_is_cut_short_does_not_matter(
    tiny: Tiny, tmp_path: Path, form: str, device: str
) -> None:
    folder = changed(tiny("gpt2")[1], tmp_path / "model", files={"model.safetensors": None})
    whole = {name: tensor.float() for name, tensor in load_file(tiny("gpt2")[1] / SAFE).items()}
    (save_file if form == SAFE else torch.save)(whole, folder / form)
    expected = logits(minilens.load(folder)[0]).clone()
    model, _ = minilens.load(folder, mmap=False, device=device)
    os.truncate(folder / form, 100)
    assert model.W_E.device.type == device
    assert device == "meta" or torch.equal(logits(model), expected)


CUT = """
import os, sys, torch, minilens
model, _ = minilens.load(sys.argv[1], mmap=sys.argv[2] == "mapped")
os.truncate(sys.argv[1] + "/model.safetensors", 0)
minilens.trace(model, torch.tensor([[1, 2]]))
"""


@pytest.mark.parametrize(("how", "status"), [("mapped", "a signal"), ("read", 0)])
def test_what_the_documentation_says_of_mapped_files(tiny: Tiny, tmp_path: Path, how: str, status: Any) -> None:
    folder = changed(tiny("gpt2")[1], tmp_path / "model")
    whole = {name: tensor.float() for name, tensor in load_file(folder / SAFE).items()}
    save_file(whole, folder / SAFE)
    code = subprocess.run([sys.executable, "-c", CUT, str(folder), how], capture_output=True).returncode
    assert (code if code >= 0 else "a signal") == status


# --- Indexes ---


@pytest.mark.parametrize("what", ["no file has it", "another file has it"])
def test_an_index_that_names_what_is_not_there(two: tuple[Path, Path], what: str) -> None:
    folder = two[0]
    places = json.loads((folder / INDEX).read_text())["weight_map"]
    name = next(name for name, file in places.items() if file == "0.safetensors") if what.startswith("an") else "x"
    (folder / INDEX).write_text(json.dumps({"weight_map": {**places, name: "1.safetensors"}}))
    sentence = f'{folder / INDEX} names the tensor "{name}", which is not in "1.safetensors"'
    with pytest.raises(CheckpointError, match=f"^{re.escape(sentence)}$"):
        minilens.load(folder)
    report = minilens.verify(folder)
    assert sentence in report.faults
    assert not report.loads


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_the_same_tensor_in_two_files_of_an_index(two: tuple[Path, Path], dtype: torch.dtype, prefix: str) -> None:
    folder = two[0]
    name, tensor = next(iter(load_file(folder / "0.safetensors").items()))
    short = name.removeprefix("transformer.")
    save_file({**load_file(folder / "1.safetensors"), f"{prefix}{short}": tensor + 1}, folder / "1.safetensors")
    with pytest.raises(CheckpointError, match=rf'1\.safetensors: the tensor "{re.escape(short)}" is there twice'):
        minilens.load(folder, dtype=dtype)
    assert any("is there twice" in fault for fault in minilens.verify(folder).faults)


# --- Pickles ---


def tar(path: Path, mode: str, pax: dict[str, str] | None = None) -> None:
    with tarfile.open(path, mode, format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
        entry = tarfile.TarInfo("storages")
        entry.size, entry.pax_headers = 8, pax or {}
        archive.addfile(entry, io.BytesIO(bytes(8)))


@pytest.mark.parametrize("mode", ["w:", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.filterwarnings("ignore:.* is a pickle file")
def test_a_tar_is_known_by_its_first_header(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Nothing is unpacked, and no header is followed to what it says comes next, which may be of any length."""
    folder = changed(tiny("gpt2")[1], tmp_path / "model", files={SAFE: None})
    tar(folder / "pytorch_model.bin", mode, {"comment": "x" * 10**6})
    assert _is_tar((folder / "pytorch_model.bin").read_bytes()[:512]) == (mode == "w:")
    followed: list[Any] = []
    monkeypatch.setattr(tarfile.TarInfo, "fromtarfile", lambda *args: followed.append(args))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin cannot be read as weights: "):
        minilens.load(folder)
    assert not followed


def test_a_tar_that_is_a_pickle_of_the_older_form_too(tmp_path: Path) -> None:
    """torch would read it as a tar."""
    torch.save({"x": torch.zeros(2)}, tmp_path / "legacy.bin", _use_new_zipfile_serialization=False)
    assert not _is_tar((tmp_path / "legacy.bin").read_bytes()[:512])
    header = bytearray(tarfile.TarInfo("x").tobuf())
    assert _is_tar(bytes(header))
    header[0] ^= 1
    assert not _is_tar(bytes(header))


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((2**1919,) * 250_000, (0,) * 250_000),
        ((1,) * 65, (1,) * 65),
        ((2**63,), (0,)),
        ((1,), (2**63,)),
        ((1, 1), (1,)),
        ([1], (1,)),
        ((1,), [1]),
        ((True,), (1,)),
        ((-1,), (1,)),
    ],
    ids=lambda axes: f"{len(axes)} of {str(axes[0])[:9]}",
)
def test_shapes_that_no_tensor_has(shape: Any, strides: Any) -> None:
    """Whoever counts the numbers of the first would never end."""
    with pytest.raises(Fault, match="a tensor in it has an impossible shape"):
        _tensor(_Storage(8, 4, 32), 0, shape, strides, False, {})

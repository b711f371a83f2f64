"""Files that several processes use: locked, written whole or not at all, and named where they are broken.

What cannot be locked, written or read is a ValueError.
"""

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from ..checkpoint.reading import opened
from ..checkpoint.settings import LONGEST_TEXT
from ..files import replacing

DIGEST = "digest"  # the name that it has among the arrays of a file
HEADERS = 2**16  # bytes: what is in a file beside the numbers of its arrays


@contextlib.contextmanager
def locked(path: Path, wait: bool) -> Iterator[bool]:
    """Whether this process has the lock of a file, X.lock beside it; without waiting, it may be another's.

    The lock goes with the work, whether that is done or fails, and with the process, however that ends. A link in its
    place is not followed, and nothing is written to it. What killed writers of the file have left is taken away.
    """
    lock = filelock.FileLock(path.with_suffix(".lock"), blocking=wait, fallback_to_soft=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        yield False
        return
    except OSError as error:  # a full disk, or one that has no locks
        raise ValueError(f"{lock.lock_file} cannot be locked: {error.strerror}") from error
    try:
        for left in path.parent.glob(f"{path.name}.*.*"):  # the names that `replacing` gives; never the lock
            with contextlib.suppress(OSError):
                left.unlink()
        yield True
    finally:
        # While it is held: who waits for a file that is gone asks for the new one. Windows takes it away by itself.
        with contextlib.suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()


def make(folder: Path) -> None:
    """Make a folder where there is none. Raises ValueError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder} cannot be made: {error.strerror}") from error


def claim(path: Path, ours: Mapping[str, Any]) -> None:
    """Write what a folder is for, all that its numbers depend on; unless another process has just done so."""
    with locked(path, wait=True):
        if not path.exists():
            with replacing(path) as new:
                new.write_text(json.dumps(ours, indent=1), encoding="utf-8")


def compare(path: Path, what: str, ours: Mapping[str, Any], kind: Mapping[str, Any], any_machine: bool) -> bytes:
    """The bytes of the file that `claim` wrote. Raises ValueError where it says that the folder is for something else.

    what: the folder is of. kind: the part of ours that is of the machine, where any_machine takes another.
    """
    with explained(path, "give another folder"):
        with opened(path) as file:
            raw = file.read(LONGEST_TEXT)
        begun = json.loads(raw)
        theirs = {key: begun.get(key) for key in ours}
    other = [key for key in ours if theirs[key] != ours[key] and not (any_machine and key in kind)]
    if other:
        found = ", ".join(f"{key} ({_shown(theirs[key])}; here {_shown(ours[key])})" for key in other)
        way = ", or --any-machine, for numbers that agree within rounding" if {*other} <= {*kind} else ""
        raise ValueError(
            f"{path.parent} holds a {what} with another value of {found}: give another folder, or go on with that "
            f"{what}{way}"
        )
    return raw


def _shown(value: Any) -> str:
    """A value in a sentence, cut where it is long."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def write_arrays(path: Path, arrays: dict[str, Tensor]) -> None:
    """A file for `read_arrays`, compressed, with a digest of all that is in it."""
    whole = {**arrays, DIGEST: as_tensor(digest(tuple(sorted(arrays.items()))))}
    with replacing(path) as new, new.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **{name: array.numpy() for name, array in whole.items()})


@contextlib.contextmanager
def explained(path: Path, remedy: str = "delete it, and run again to have it made anew") -> Iterator[None]:
    """Say which file is broken, whatever its reader raises, and what to do."""
    try:
        yield
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing: run again to have it made anew") from error
    except Exception as error:  # what a broken file may raise in zipfile, numpy and json is without an end
        why = error.strerror if isinstance(error, OSError) and error.strerror else "broken, or of another sweep"
        raise ValueError(f"{path} cannot be read ({why}): {remedy}") from error


@contextlib.contextmanager
def read_arrays(path: Path, most: int) -> Iterator[Mapping[str, Tensor]]:
    """What `write_arrays` wrote; who reads it may raise whatever is found wrong with it.

    most: how many bytes the arrays can have together. A file that claims more is not unpacked.
    """
    with explained(path), opened(path) as stream, zipfile.ZipFile(stream) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > most + HEADERS or any(
            entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in entries
        ):
            raise ValueError("it is larger than it can be")
        found = {entry.filename.removesuffix(".npy"): _read_array(archive, entry) for entry in entries}
        written = found.pop(DIGEST)
        if not torch.equal(written, as_tensor(digest(tuple(sorted(found.items()))))):
            raise ValueError("it is not as it was written")
        yield found


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Tensor:
    """An array as numpy writes it. numpy's own reader makes room for all that a file claims to have."""
    with archive.open(entry) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("it is of another version")
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
        values = np.frombuffer(bytearray(file.read()), dtype)
    return torch.from_numpy(values.reshape(shape, order="F" if by_columns else "C"))


def digest(whole: Any, dtype: torch.dtype | None = None) -> str:
    """sha256 of a model, with its config and all weights, or of texts, names and tensors in tuples and dictionaries.

    dtype: of the tensors, by default each one's own.
    """
    found = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, Tensor):
            part = part.to(part.dtype if dtype is None else dtype)
            found.update(f"{part.shape} {part.dtype}".encode())
            found.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        elif isinstance(part, tuple):
            for each in part:
                add(each)
        elif isinstance(part, dict):
            add(tuple(part.items()))
        elif is_dataclass(part):
            for field in fields(part):
                add(getattr(part, field.name))
        else:
            found.update(getattr(part, "__name__", repr(part)).encode())  # a function's repr has its address

    add(whole)
    return found.hexdigest()


def as_tensor(digest: str) -> UInt8[Tensor, "32"]:
    """A digest as its bytes."""
    return torch.tensor([*bytes.fromhex(digest)], dtype=torch.uint8)

"""Files that several processes use: locked, written whole or not at all, and named where they are broken.

What cannot be locked, written or read is a ValueError.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import filelock
import numpy as np
import torch
from torch import Tensor

from ..files import replacing


@contextlib.contextmanager
def locked(path: Path, wait: bool) -> Iterator[bool]:
    """Whether this process has the lock of a file, X.lock beside it; without waiting, it may be another's.

    The lock goes with the work, whether that is done or fails, and with the process, however that ends. A link in its
    place is not followed, and nothing is written to it.
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
        yield True
    finally:
        # While it is held: who waits for a file that is gone asks for the new one. Windows takes it away by itself.
        with contextlib.suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()


def write_arrays(path: Path, arrays: dict[str, Tensor]) -> None:
    """A file for `read_arrays`, compressed."""
    with replacing(path) as new, new.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **{name: array.numpy() for name, array in arrays.items()})


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
def read_arrays(path: Path) -> Iterator[Mapping[str, Tensor]]:
    """What `write_arrays` wrote; who reads it may raise whatever is found wrong with it."""
    with explained(path), path.open("rb") as stream, np.load(stream) as found:
        yield {name: torch.from_numpy(found[name]) for name in found}

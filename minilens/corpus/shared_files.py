"""Files that several processes use: locked, written whole or not at all, and named where they are broken.

What cannot be locked, written or read is a ValueError.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from torch import Tensor
import contextlib
import numpy as np
import os
import socket
import torch

try:
    import fcntl
except ModuleNotFoundError:  # on Windows two processes may read the same shard, and write the same file
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def locked(path: Path, wait: bool) -> Iterator[bool]:
    """Whether this process has the lock of a file, X.lock beside it; without waiting, it may be another's.

    When the work is done the lock goes: whoever waits for it, or makes a new one, finds the file. When it fails the
    lock stays, so that those who wait and those who come later ask for the same one.
    """
    lock = path.with_suffix(".lock")
    if not fcntl:
        yield True
        return
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(lock.open("w"))
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError as error:  # a full disk, or one that has no locks
            raise ValueError(f"{lock} cannot be locked: {error.strerror}") from error
        yield True
        lock.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of this one at the end."""
    new = path.with_name(f"{path.name}.{os.getpid()}.{socket.gethostname()}")
    try:
        yield new
        new.replace(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        new.unlink(missing_ok=True)


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

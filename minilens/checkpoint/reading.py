"""Files that others made and may change: only regular ones are opened, and each is known again.

What cannot be read is an OSError, whose strerror is for the user.
"""

import errno
import io
import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import NamedTuple

BLOCK = 2**20  # bytes that are read together


class State(NamedTuple):
    """Which file it is, and since when it is as it is. With another one it is another file, or was written to."""

    device: int
    inode: int
    size: int  # bytes
    written: int  # in nanoseconds, as any program may set it
    changed: int  # in nanoseconds, as the system sets it


def state(path: Path) -> State | None:
    """The state of a file now; None where there is none, such as a link that leads nowhere."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return State(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def opened(path: Path) -> io.BufferedReader:
    """A regular file, for reading; of a pipe nobody waits for the other end, and no device is opened."""

    def opener(name: str, flags: int) -> int:
        _check_regular(os.stat(name), name)
        file = os.open(name, flags | getattr(os, "O_NONBLOCK", 0))  # it may have become a pipe since
        try:
            _check_regular(os.fstat(file), name)
        except OSError:
            os.close(file)
            raise
        return file

    return open(path, "rb", opener=opener)


def _check_regular(found: os.stat_result, name: str) -> None:
    if S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    if not S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe, a device or a socket, and not a file", name)


def blocks(file: io.BufferedReader) -> Iterator[bytes]:
    """The bytes of a file, some at a time, and no more than it has: a file of the system's own may give any number."""
    while block := file.read(BLOCK):
        if file.tell() > os.fstat(file.fileno()).st_size:
            raise OSError(errno.EINVAL, "it gives more bytes than it has", file.name)
        yield block


def sha256_of(file: io.BufferedReader) -> str:
    """The SHA-256 of the bytes of a file, in hexadecimal."""
    digest = sha256()
    for block in blocks(file):
        digest.update(block)
    return digest.hexdigest()

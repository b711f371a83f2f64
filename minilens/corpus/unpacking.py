"""Compressed files, unpacked as they are read: .gz, and .zst with the library zstandard.

What cannot be unpacked is an OSError or an EOFError, and where the library is missing a ValueError.
"""

import errno
import gzip
import hashlib
import io
from pathlib import PurePath
from typing import Any

from ..checkpoint.reading import BLOCK

MOST_TIMES, SPARE = 100, 2**22  # bytes that a compressed text may stand for, after so many; of English it is some 3
STEP = 2**10  # bytes of .zst that are unpacked together: they stand for 32 MiB at most


def unpacked(name: str, file: io.RawIOBase) -> io.BufferedIOBase:
    """The bytes that a file stands for, by the end of its name."""
    suffix = PurePath(name).suffix.lower()
    buffered = io.BufferedReader(_Frames(name, file) if suffix == ".zst" else file)
    return gzip.GzipFile(fileobj=buffered) if suffix == ".gz" else buffered


def unpacked_size(name: str, file: io.RawIOBase, size: int) -> int:
    """How many bytes a file of this size stands for. Raises OSError where it is not like a text in that.

    A few may stand for gigabytes of one and the same. It is found out before any of it is read as text: a blank line
    takes far longer to read than to unpack.
    """
    is_packed = PurePath(name).suffix.lower() in (".gz", ".zst")
    n, most = 0, SPARE + MOST_TIMES * size if is_packed else size
    whole = unpacked(name, file)
    while block := whole.read(BLOCK):
        n += len(block)
        if n > most and is_packed:
            why = f"it unpacks to more than {MOST_TIMES} times its bytes, as no text does; if it is one, unpack it"
            raise OSError(errno.EFBIG, why)
        if n > most:  # a file of the system's own may give any number
            raise OSError(errno.EINVAL, "it gives more bytes than it has")
    return n


class Hashed(io.RawIOBase):
    """A file of which a digest is taken as it is read."""

    def __init__(self, file: io.BufferedReader, digest: "hashlib._Hash") -> None:
        self.file, self.digest, self.n_read = file, digest, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self.file.read(len(buffer))
        buffer[: len(found)] = found
        self.digest.update(found)
        self.n_read += len(found)
        return len(found)

    def tell(self) -> int:
        return self.n_read


class _Frames(io.RawIOBase):
    """What the frames of a .zst file hold, one after another; the library's own reader does not miss a last part."""

    def __init__(self, name: str, file: io.RawIOBase) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise ValueError(f'{name} needs zstandard, which is not installed: pip install "minilens[zst]"') from error
        self.file, self.library, self.broken = file, zstandard.ZstdDecompressor(), zstandard.ZstdError
        self.frame: Any = None  # the one that has begun and not ended
        self.rest, self.ready, self.n_read = b"", b"", 0  # not unpacked yet; unpacked, and not given yet; given

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.n_read

    def readinto(self, buffer: Any) -> int:
        while not self.ready:
            packed = self.rest or self.file.read(STEP)
            if not packed:
                if self.frame:
                    raise EOFError("the last frame has no end")
                return 0
            self._unpack(packed)
        found, self.ready = self.ready[: len(buffer)], self.ready[len(buffer) :]
        buffer[: len(found)] = found
        self.n_read += len(found)
        return len(found)

    def _unpack(self, packed: bytes) -> None:
        self.frame = self.frame or self.library.decompressobj()
        try:
            self.ready = self.frame.decompress(packed)
        except self.broken as error:
            if "too much memory" in str(error):
                raise OSError(errno.EFBIG, "its window is of more than 128 MiB: pack it without --long") from error
            raise OSError(str(error)) from error
        self.rest, self.frame = (self.frame.unused_data, None) if self.frame.eof else (b"", self.frame)

"""Text files as documents, shards of documents, and windows of tokens: streamed, and cut the same way every time.

A text file holds documents, each followed by a line that holds only <|endoftext|>; or, if asked, one on each line. A
.jsonl file holds one on each line that is not blank, as a JSON string or as an object with the text under a key. Each
may be compressed (.gz). A document of more than LONGEST characters is read, and counted, as several.

A shard is some documents of one file that follow one another. Where shards end depends on nothing but the file, so that
any number of workers cut it alike.
"""

import errno
import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from ..checkpoint.reading import BLOCK, opened, sha256_of

SEPARATOR = "<|endoftext|>"
SHARD = 2**17  # characters: some 30,000 tokens of English
LONGEST = 2**18  # characters of a document, which is held whole, with all that its tokens give
LONGEST_LINE = 2**26  # characters of a line of .jsonl
MOST_TIMES, SPARE = 100, 2**22  # bytes that a compressed one may stand for, after so many; of English it is some 3


@dataclass(frozen=True)
class TextFile:
    """A file of documents. Raises ValueError where there is none, and for a pipe: it is read more than once."""

    path: Path
    lines: bool = False  # one document on each line
    key: str = "text"  # of the objects in a .jsonl file
    digest: str = field(init=False)  # sha256 of the file as it lies on the disk
    longest: int = field(init=False)  # how many characters it can have: as many as bytes, unpacked

    def __post_init__(self) -> None:
        try:
            if self.path.exists() and not self.path.is_file():
                raise ValueError(f"{self.path} is not a file that can be read more than once: save its text in one")
            with opened(self.path) as file:
                object.__setattr__(self, "digest", sha256_of(file))
                object.__setattr__(self, "longest", _unpacked_size(file) if self._is_packed else file.tell())
        except (OSError, EOFError, zlib.error) as error:
            raise self._unreadable(error) from error

    @property
    def is_json(self) -> bool:
        return self.path.name.lower().removesuffix(".gz").endswith(".jsonl")

    @property
    def _is_packed(self) -> bool:
        return self.path.suffix.lower() == ".gz"

    def changed(self) -> ValueError:
        """The error to raise where the file holds other texts than it did."""
        return ValueError(
            f"{self.path} has changed while it was read: run again (with another --out, if its text is another)"
        )

    def documents(self) -> Iterator[str]:
        """The documents in order, empty ones included.

        Raises ValueError for a file that is not what its name says, and at its end for one that has changed: whoever
        stops before that does not know.
        """
        digest = hashlib.sha256()
        try:
            with opened(self.path) as raw, self._decoded(raw, digest) as file:
                try:
                    yield from self._lines(file) if self.is_json or self.lines else _separated(file)
                except UnicodeDecodeError as error:
                    at = cast(BinaryIO, file.buffer).tell() - len(error.object) + error.start
                    byte = f"the byte 0x{error.object[error.start]:02x} at {at}"
                    raise ValueError(f"{self.path} is not UTF-8: it has {byte}") from error
        except (OSError, EOFError, zlib.error) as error:
            raise self._unreadable(error) from error
        if digest.hexdigest() != self.digest:
            raise self.changed()

    def shards(self, size: int) -> Iterator[list[str]]:
        """Its documents, as lists of at least `size` characters each, but for the last one.

        Each document counts as one character more than it has: so a list of empty ones has an end.
        """
        shard, length = [], 0
        for document in self.documents():
            shard.append(document)
            length += len(document) + 1
            if length >= size:
                yield shard
                shard, length = [], 0
        if shard:
            yield shard

    def _unreadable(self, error: Exception) -> ValueError:
        why = (isinstance(error, OSError) and error.strerror) or f"it is cut short or broken ({error})"
        return ValueError(f"{self.path} cannot be read: {why}")

    def _decoded(self, raw: io.BufferedReader, digest: "hashlib._Hash") -> io.TextIOWrapper:
        """The text of an open file, of which the bytes on the disk are added to a digest as they are read."""
        hashed = _Hashed(raw, digest)
        buffered = io.BufferedReader(hashed)
        file = gzip.GzipFile(fileobj=buffered) if self._is_packed else buffered
        return io.TextIOWrapper(cast(BinaryIO, file), encoding="utf-8-sig", newline="\n")

    def _lines(self, file: io.TextIOWrapper) -> Iterator[str]:
        """The document of each line."""
        number, is_rest = 0, False  # of a line that is longer than what is read at once
        while line := file.readline(LONGEST_LINE):
            number += not is_rest
            if self.is_json:
                if not line.isspace():
                    yield from _pieces(self._text(line, number))
            elif (text := line.rstrip("\r\n")) or not is_rest:
                yield from _pieces(text)
            is_rest = not line.endswith("\n")

    def _text(self, line: str, number: int) -> str:
        if len(line) == LONGEST_LINE and not line.endswith("\n"):
            raise ValueError(f"{self.path}, line {number} has more than {LONGEST_LINE:,} characters: cut it up")
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = f"{error.msg}, at character {error.colno}" if isinstance(error, json.JSONDecodeError) else error
            raise ValueError(f"{self.path}, line {number} is not JSON: {why}") from error
        text = value.get(self.key) if isinstance(value, dict) else value
        if not isinstance(text, str):
            raise ValueError(
                f'{self.path}, line {number} has no text: it must be a string, or an object with one under "{self.key}"'
            )
        return text


class _Hashed(io.RawIOBase):
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


def _unpacked_size(packed: io.BufferedReader) -> int:
    """How many bytes a compressed file holds. A few may stand for gigabytes of one and the same: no text is like that.

    It is found out before any of it is read as text: a blank line takes far longer to read than to unpack.
    """
    most = SPARE + MOST_TIMES * packed.seek(0, os.SEEK_END)
    packed.seek(0)
    with gzip.GzipFile(fileobj=packed) as file:
        while file.read(BLOCK):
            if file.tell() > most:
                why = f"it unpacks to more than {MOST_TIMES} times its bytes, as no text does; if it is one, unpack it"
                raise OSError(errno.EFBIG, why)
        return file.tell()


def _separated(file: io.TextIOWrapper) -> Iterator[str]:
    """Documents with a line of SEPARATOR after each; so is what follows the last such line, unless it is blank."""
    lines: list[str] = []
    length, at_start = 0, True  # of a line
    while line := file.readline(LONGEST):
        is_separator = at_start and line.rstrip() == SEPARATOR
        at_start = line.endswith("\n")
        if is_separator:
            yield _without_end("".join(lines))
            lines, length = [], 0
            continue
        if length + len(_without_end(line)) > LONGEST:  # the last line's end is not of the document
            yield "".join(lines)
            lines, length = [], 0
        lines.append(line)
        length += len(line)
    rest = "".join(lines)
    if rest and not rest.isspace():
        yield _without_end(rest)


def _without_end(text: str) -> str:
    """The text less the end of its last line."""
    return text.removesuffix("\n").removesuffix("\r")


def _pieces(text: str) -> Iterator[str]:
    for start in range(0, max(1, len(text)), LONGEST):
        yield text[start : start + LONGEST]

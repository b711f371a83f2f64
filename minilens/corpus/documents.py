"""Text files as documents, shards of documents, and windows of tokens: streamed, and cut the same way every time.

A text file holds documents, each followed by a line that holds only <|endoftext|>; or, if asked, one on each line. A
.jsonl file holds one on each line that is not blank, as a JSON string or as an object with the text under a key. Each
may be compressed (.gz). A document of more than LONGEST characters is read, and counted, as several.

A shard is some documents of one file that follow one another. Where shards end depends on nothing but the file, so that
any number of workers cut it alike.
"""

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

SEPARATOR = "<|endoftext|>"
SHARD = 2**17  # characters: some 30,000 tokens of English
LONGEST = 2**18  # characters of a document, which is held whole, with all that its tokens give
LONGEST_LINE = 2**26  # characters of a line of .jsonl


@dataclass(frozen=True)
class TextFile:
    """A file of documents. Raises ValueError where there is none, and for a pipe: it is read more than once."""

    path: Path
    lines: bool = False  # one document on each line
    key: str = "text"  # of the objects in a .jsonl file
    digest: str = field(init=False)  # sha256 of the file as it lies on the disk
    stamp: tuple[int, int] = field(init=False)  # its size in bytes, and when it was last written to, before that

    def __post_init__(self) -> None:
        digest = hashlib.sha256()
        try:
            if self.path.exists() and not self.path.is_file():
                raise ValueError(f"{self.path} is not a file that can be read more than once: save its text in one")
            stamp = self._stamp()
            with self.path.open("rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
        except OSError as error:
            raise ValueError(f"{self.path} cannot be read: {error.strerror}") from error
        object.__setattr__(self, "digest", digest.hexdigest())
        object.__setattr__(self, "stamp", stamp)

    @property
    def is_json(self) -> bool:
        return self.path.name.lower().removesuffix(".gz").endswith(".jsonl")

    def check_unchanged(self) -> None:
        """Refuse a file that something else has written to since: what was read of it may be of both."""
        try:
            is_same = self._stamp() == self.stamp
        except OSError as error:
            raise ValueError(f"{self.path} cannot be read any more: {error.strerror}") from error
        if not is_same:
            raise ValueError(
                f"{self.path} has changed while it was read: run again (with another --out, if its text is another)"
            )

    def documents(self) -> Iterator[str]:
        """The documents in order, empty ones included. Raises ValueError for a file that is not what its name says."""
        number = 0
        try:
            with self._open() as file:
                try:
                    if self.is_json or self.lines:
                        while line := file.readline(LONGEST_LINE):
                            number += 1
                            if not self.is_json:
                                yield from _pieces(line.rstrip("\r\n"))
                            elif not line.isspace():
                                yield from _pieces(self._text(line, number))
                    else:
                        yield from _separated(file)
                except UnicodeDecodeError as error:
                    at = cast(BinaryIO, file.buffer).tell() - len(error.object) + error.start
                    byte = f"the byte 0x{error.object[error.start]:02x} at {at}"
                    raise ValueError(f"{self.path} is not UTF-8: it has {byte}") from error
        except (OSError, EOFError, zlib.error) as error:
            why = (isinstance(error, OSError) and error.strerror) or f"it is cut short or broken ({error})"
            raise ValueError(f"{self.path} cannot be read: {why}") from error

    def shards(self, size: int) -> Iterator[list[str]]:
        """Its documents, as lists of at least `size` characters each, but for the last one."""
        shard, length = [], 0
        for document in self.documents():
            shard.append(document)
            length += len(document)
            if length >= size:
                yield shard
                shard, length = [], 0
        if shard:
            yield shard

    def _stamp(self) -> tuple[int, int]:
        stat = self.path.stat()
        return stat.st_size, stat.st_mtime_ns

    def _open(self) -> io.TextIOWrapper:
        opened = gzip.open if self.path.suffix.lower() == ".gz" else open
        return io.TextIOWrapper(opened(self.path, "rb"), encoding="utf-8-sig", newline="\n")

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
        if length + len(line) > LONGEST:
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

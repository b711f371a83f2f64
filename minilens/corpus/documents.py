"""Files of text as documents, and shards of documents: streamed, and cut the same way every time.

A text file holds documents, each followed by a line that holds only <|endoftext|>; or, if asked, one on each line. A
.jsonl file holds one on each line that is not blank, as a JSON string or as an object with the text under a key. Each
may be compressed (.gz, .zst). A .parquet file holds one in each row, in a column of texts. All may lie on the Hub. A
document of more than LONGEST characters is read, and counted, as several.

A shard is some documents of one file that follow one another. Where shards end depends on nothing but the file, so that
any number of workers cut it alike.
"""

import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from ..checkpoint.reading import opened
from .hub_files import HubFile
from .parquet import column
from .unpacking import Hashed, unpacked, unpacked_size

SEPARATOR = "<|endoftext|>"
SHARD = 2**17  # characters: some 30,000 tokens of English
LONGEST = 2**18  # characters of a document, which is held whole, with all that its tokens give
LONGEST_LINE = 2**26  # characters of a line of .jsonl, and of a row of .parquet


@dataclass(frozen=True)
class TextFile:
    """A file of documents. Raises ValueError where there is none, and for a pipe: it is read more than once."""

    path: Path | HubFile
    lines: bool = False  # one document on each line
    key: str = "text"  # of the objects in a .jsonl file; the column of a .parquet file
    digest: str = field(init=False)  # sha256 of the file as it lies on the disk; of .parquet, of its texts
    longest: int = field(init=False)  # how many characters it can have: as many as bytes, unpacked

    def __post_init__(self) -> None:
        if isinstance(self.path, Path) and self.path.exists() and not self.path.is_file():
            raise ValueError(f"{self.path} is not a file that can be read more than once: save its text in one")
        digest = hashlib.sha256()
        with self._explained(), self._opened() as raw:
            if self.is_parquet:
                longest = sum(len(text.encode()) + 1 for text in self._rows(raw, digest))
            else:
                longest = unpacked_size(self.path.name, Hashed(raw, digest), self._size())
        object.__setattr__(self, "digest", digest.hexdigest())
        object.__setattr__(self, "longest", longest)
        if isinstance(self.path, HubFile) and not self.is_parquet and self.path.sha256 not in (None, self.digest):
            raise ValueError(f"{self.path} cannot be read: the Hub gives other bytes than those that it names")

    @property
    def name(self) -> str:
        """Its name in a report: on the Hub, with dataset and commit."""
        return self.path.name if isinstance(self.path, Path) else str(self.path)

    @property
    def is_json(self) -> bool:
        return re.search(r"\.jsonl(\.gz|\.zst)?$", self.path.name.lower()) is not None

    @property
    def is_parquet(self) -> bool:
        return self.path.name.lower().endswith(".parquet")

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
        with self._explained(), self._opened() as raw:
            if self.is_parquet:
                for text in self._rows(raw, digest):
                    yield from _pieces(text)
            else:
                yield from self._of_text(raw, digest)
        if digest.hexdigest() != self.digest:
            raise self.changed()

    def _of_text(self, raw: io.BufferedReader, digest: "hashlib._Hash") -> Iterator[str]:
        with self._decoded(raw, digest) as file:
            try:
                yield from self._lines(file) if self.is_json or self.lines else _separated(file)
            except UnicodeDecodeError as error:
                at = cast(BinaryIO, file.buffer).tell() - len(error.object) + error.start
                byte = f"the byte 0x{error.object[error.start]:02x} at {at}"
                raise ValueError(f"{self.path} is not UTF-8: it has {byte}") from error

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

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say which file it is that cannot be read, and why."""
        try:
            yield
        except (OSError, EOFError, zlib.error) as error:
            first = str(error).partition("\n")[0].rstrip(".")
            why = (isinstance(error, OSError) and error.strerror) or f"it is cut short or broken ({first})"
            raise ValueError(f"{self.path} cannot be read: {why}") from error

    def _opened(self) -> io.BufferedReader:
        return opened(self.path) if isinstance(self.path, Path) else self.path.opened(anywhere=self.is_parquet)

    def _size(self) -> int:
        return self.path.stat().st_size if isinstance(self.path, Path) else self.path.size

    def _decoded(self, raw: io.BufferedReader, digest: "hashlib._Hash") -> io.TextIOWrapper:
        """The text of an open file, of which the bytes on the disk are added to a digest as they are read."""
        whole = cast(BinaryIO, unpacked(self.path.name, Hashed(raw, digest)))
        return io.TextIOWrapper(whole, encoding="utf-8-sig", newline="\n")

    def _rows(self, raw: io.BufferedReader, digest: "hashlib._Hash") -> Iterator[str]:
        """The text of each row, which is added to a digest."""
        for number, text in enumerate(column(str(self.path), raw, self._size(), self.key), 1):
            if len(text) > LONGEST_LINE:
                raise ValueError(f"{self.path}, row {number} has more than {LONGEST_LINE:,} characters: cut it up")
            content = text.encode()
            digest.update(len(content).to_bytes(8, "big"))
            digest.update(content)
            yield text

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

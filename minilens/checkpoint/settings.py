"""config.json: settings by their Hub names, each taken once, and files of text and JSON.

`Settings` knows which keys were asked for. A key that nobody read is an error, not a silent difference from the model
that was trained.
"""

import io
import json
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from .pickled import Fault
from .reading import opened

T = TypeVar("T")
# Bytes that are read of a file of text, and of the header of a file of weights. CTRL's vocabulary, the largest of a
# published checkpoint of the three families, has 4.2 MiB; the header of GPT-2 XL has 0.1 MiB.
LONGEST_TEXT, LONGEST_HEADER = 16 * 2**20, 4 * 2**20


class CheckpointError(Exception):
    """A file of a checkpoint is missing, broken, or not what its neighbours say it is."""


class Unreachable(CheckpointError):
    """A file is not in the Hub's cache, and the Hub cannot be asked whether there is one."""


def read_text(path: Path, kind: str = "text") -> str:
    """The text of a file. Raises CheckpointError where it has none, or far too much."""
    try:
        with opened(path) as file:
            found = file.read(LONGEST_TEXT + 1)  # whatever its size is said to be
        if found is None:  # of some of the system's own, that wait for more
            raise Fault("it is not a file that can be read to its end")
        if len(found) > LONGEST_TEXT:
            size = max(len(found), path.stat().st_size)
            raise Fault(f"it has {size:,} bytes, and no such file of a model has more than {LONGEST_TEXT:,}")
        return io.TextIOWrapper(io.BytesIO(found), encoding="utf-8").read()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable as {kind}: {why(path, error)}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError where there is none, or where a key is there twice."""
    text = read_text(path, "JSON")
    try:
        value = parsed(text)
    except ValueError as error:
        raise CheckpointError(f"{path} is not readable as JSON: {why(path, error)}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object; it holds a {type(value).__name__}")
    return value


def parsed(text: str) -> Any:
    """JSON in which no two readers can see different things: no key is there twice, no character in halves."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(name for name, n in Counter(name for name, _ in pairs).items() if n > 1)
            raise Fault(f"the key {shown(twice)} is there twice")
        return found

    too_deep = Fault("its values are nested more than 100 deep")
    try:
        value = json.loads(text, object_pairs_hook=unique)
    except RecursionError as error:
        raise too_deep from error
    level, depth = [value], 0
    while level := [outer for outer in level if isinstance(outer, (dict, list))]:
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)]
        depth += 1
        if depth > 100:
            raise too_deep
    if re.search(r"\\u[dD][89a-fA-F]", text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise Fault("it holds a lone surrogate, which is not valid Unicode") from error
    return value


def shown(value: Any) -> str:
    """A value of a file as JSON, on one line and not long."""
    return json.dumps(value)[:80]


def one_line(error: BaseException) -> str:
    """The first sentence of a library's error, for the end of one of ours."""
    text = " ".join(str(error).split()).split(". ")[0][:300]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Settings:
    """config.json, key by key. Every reader raises CheckpointError, naming key and value, for what it cannot use.

    null counts as absent, and for a flag as false: transformers asks `if` of it.
    """

    def __init__(self, values: Mapping[str, Any], path: Path) -> None:
        self.values, self.path = values, path
        self.unread = dict(values)
        self._read: set[str] = set()
        self.ignored: dict[str, str] = {}  # the keys that change no number -> why, once it is finished

    def take(self, key: str, default: Any = None) -> Any:
        """The value as it stands; the default where it is absent or null."""
        self._read.add(key)
        value = self.unread.pop(key, None)
        return default if value is None else value

    def integer(self, key: str, default: int | None = None, *, most: int = 2**31 - 1) -> int:
        """A size: at least 1, and small enough for torch."""
        value = self.take(key, default)
        if type(value) is not int or not 1 <= value <= most:
            raise self.refusal(key, value, f"a whole number from 1 to {most}")
        return value

    def number(self, key: str, default: float) -> float:
        """A positive number."""
        value = self.take(key, default)
        if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
            raise self.refusal(key, value, "a positive number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        is_null = key in self.unread and self.unread[key] is None
        value = self.take(key, default)
        if type(value) is not bool:
            raise self.refusal(key, value, "true or false")
        return value and not is_null

    def text(self, key: str) -> str | None:
        """A text; None where it is absent."""
        value = self.take(key)
        if not isinstance(value, (str, type(None))):
            raise self.refusal(key, value, "a text")
        return value

    def choice(self, key: str, choices: Mapping[str, T], default: str | None = None) -> T:
        """One of the things named."""
        value = self.take(key, default)
        if not isinstance(value, str) or value not in choices:
            raise self.refusal(key, value, " or ".join(f'"{name}"' for name in choices))
        return choices[value]

    def rename(self, alias: str, key: str) -> None:
        """Read one key as another, which means the same and must not say anything else."""
        value, other = self.take(alias), self.unread.get(key)
        if value is not None and other not in (None, value):
            raise self.refusal(alias, value, f'what "{key}" says, {shown(other)}')
        if value is not None:
            self.unread[key] = value

    def refusal(self, key: str, value: Any, expected: str) -> CheckpointError:
        """The error to raise for a value that is not supported."""
        found = "is missing or null" if value is None else f"is {shown(value)}"
        return CheckpointError(f'{self.path}: "{key}" {found}; minilens supports {expected}')

    def finish(
        self,
        why_harmless: Callable[[str, Any], str | None],
        only: Mapping[str, Any],
        ignoring: Collection[str] = (),
    ) -> None:
        """Raise for a key that was not read, unless it is known to change nothing or has the only value supported.

        ignoring: keys that the caller knows to change nothing. Raises ValueError where the model reads one of them.
        """
        if needed := self._read.intersection(ignoring):
            raise ValueError(f"the key {min(needed)} cannot be ignored: the model reads it")
        for key, value in self.unread.items():
            why = "null" if value is None else why_harmless(key, value)
            if key in only and value == only[key]:
                why = "the only value supported"
            elif key in ignoring:
                why = "as asked"
                warnings.warn(f"{self.path}: {shown(key)}, of value {shown(value)}, is ignored as asked", stacklevel=3)
            elif key in only and value is not None:
                raise self.refusal(key, value, f"{shown(only[key])} only")
            if why is None:
                raise CheckpointError(
                    f"{self.path}: unknown key {shown(key)}, of value {shown(value)}: minilens does not know whether "
                    "it changes the numbers, so it does not load the model; if you know that it changes none: "
                    f"ignoring=[{shown(key)}], or --ignore-key on the command line"
                )
            self.ignored[key] = why


def why(path: Path, error: Exception) -> str:
    """What is wrong with a file that could not be read, in the user's words where the cause is a common one."""
    try:
        with opened(path) as file:
            start = file.read(64)
    except OSError as unreadable:
        return unreadable.strerror or str(unreadable)
    if start is None:  # as in `read_text`
        return str(error)
    if not start:
        return "it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "it is a web page; download the file itself"
    if path.suffix in (".json", ".txt") and start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "it is UTF-16; save it as UTF-8"
    if path.suffix == ".json" and start.startswith(b"\xef\xbb\xbf"):
        return "it begins with a byte order mark; save it as UTF-8 without one"
    if isinstance(error, Fault):
        return str(error)
    return f"it is cut short or broken ({one_line(error)})"

"""Where the results of a command go: one line on stderr, a new file, a figure."""

import argparse
import codecs
import io
import sys
from pathlib import Path
from typing import Any, TextIO

from ..views.tokens import printable


def add_figures(parser: argparse.ArgumentParser) -> None:
    for kind in FIGURES:
        parser.add_argument(f"--{kind}", type=Path, metavar="FILE", help=f"draw it as {kind.upper()}; needs matplotlib")


FIGURES = ("png", "svg", "pdf")


def one_output(outputs: dict[str, Any], figures: dict[str, Path]) -> list[str]:
    """The option that chooses the output, or none; two are refused. Several figures count as one."""
    given = [option for option, value in {**outputs, f"--{next(iter(figures), '')}": figures}.items() if value]
    if len(given) > 1:
        raise ValueError(f"{given[0]} and {given[1]} are both given: choose one")
    return given


def check_files(args: argparse.Namespace, figures: dict[str, Path]) -> None:
    """Refuse files that cannot be written, or should not."""
    for kind, path in {"html": args.html, **figures}.items():
        if path:
            if kind != "html" and path.suffix.lower() != f".{kind}":
                raise ValueError(f"the name of the file for --{kind} must end in .{kind}; got {str(path)!r}")
            check_new(path, args.overwrite)


def say(message: str) -> None:
    """One line on stderr, with nothing in it that a terminal would obey: names and paths may hold anything."""
    sys.stderr.write(f"minilens: {printable(message)}\n")  # at once: other workers write there, too


SIGNS = {"↵": "\\x0a", "⇥": "\\x09", "∅": "\\u2205", "◌": "\\u25cc"}  # of views/tokens.py, in ASCII


def with_signs(stream: TextIO) -> None:
    """Let an output that cannot hold the marks of white space, as Windows' cp1252, show them as escapes."""

    def sign(error: UnicodeError) -> tuple[str, int]:
        if isinstance(error, UnicodeEncodeError) and (text := SIGNS.get(error.object[error.start])):
            return text, error.start + 1
        raise error

    codecs.register_error("signs", sign)
    if isinstance(stream, io.TextIOWrapper):  # not where a test or a notebook has put something in its place
        stream.reconfigure(errors="signs")


def check_new(path: Path, overwrite: bool) -> None:
    """Refuse a file that cannot be written, or should not."""
    if path.is_symlink() or (path.exists() and not path.is_file()):  # a device, say, whose place a file would take
        raise ValueError(f"{path} is not a file that could be replaced")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists: give another name, or --overwrite")
    if not path.parent.is_dir():
        raise ValueError(f"{path} cannot be written: there is no such folder")

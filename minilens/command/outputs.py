"""Where the results of a command go: stdout, files, and one line at a time on stderr."""

import codecs
import io
import json
import os
import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import check_new, replacing
from ..views.tokens import printable
from .options import option

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn

    from ..views.plots import Figure

FIGURES = ("png", "svg", "pdf")


@dataclass(frozen=True, kw_only=True)
class Files:
    """Files, in place of what is printed. Raises ValueError for one that cannot be written, or should not be."""

    html: Path | None = option(metavar="FILE", help="write it as a page")
    png: Path | None = option(metavar="FILE", help="draw it as PNG; needs matplotlib")
    svg: Path | None = option(metavar="FILE", help="draw it as SVG; needs matplotlib")
    pdf: Path | None = option(metavar="FILE", help="draw it as PDF; needs matplotlib")
    dpi: int | None = option(help="pixels of the PNG for each inch, from 30 to 1200 (default: 150)")
    overwrite: bool = option(help="replace files that exist")

    def __post_init__(self) -> None:
        if self.dpi is not None and (self.png is None or not 30 <= self.dpi <= 1200):
            raise ValueError(
                "--dpi is for --png" if self.png is None else f"--dpi must be from 30 to 1200; got {self.dpi}"
            )
        for kind, path in self.given.items():
            if kind != "html" and path.suffix.lower() != f".{kind}":
                raise ValueError(f"the name of the file for --{kind} must end in .{kind}; got {str(path)!r}")
            check_new(path, self.overwrite)
        for kind in self.given.keys() - {"html"}:
            if self.html == self.given[kind]:
                raise ValueError(f"--html and --{kind} are both to be {self.html}: give another name")
        if self.figures:
            from ..views import plots  # noqa: F401  # says before any work is done that matplotlib is not there

    @property
    def given(self) -> dict[str, Path]:
        """The files by their kinds."""
        return {kind: path for kind in ("html", *FIGURES) if (path := getattr(self, kind)) is not None}

    @property
    def figures(self) -> list[Path]:
        return [path for kind, path in self.given.items() if kind != "html"]

    def write(self, page: str | None, figure: "Figure | None") -> None:
        """Write what is asked for, and say so."""
        contents: dict[Path, bytes] = {}
        if self.html is not None and page is not None:
            contents[self.html] = page.encode()
        if figure is not None:
            from ..views.plots import drawn

            contents |= {path: drawn(figure, path.suffix, dpi=self.dpi) for path in self.figures}
        write(contents, overwrite=self.overwrite)
        for path in contents:
            say(f"{path} is written")


def chosen(*, json: bool = False, csv: bool = False, files: Files) -> list[str]:
    """The options that choose the output; none for the terminal. Raises ValueError for two kinds of it."""
    given = [*(["--json"] if json else []), *(["--csv"] if csv else []), *(f"--{kind}" for kind in files.given)]
    if len(given) > 1 and (json or csv):
        raise ValueError(f"{given[0]} and {given[1]} are both given: choose one")
    return given


def write(files: dict[Path, bytes], *, overwrite: bool) -> None:
    """Write these files, each whole or not at all."""
    for path, content in files.items():
        with replacing(path, overwrite=overwrite) as new:
            new.write_bytes(content)


def print_json(record: dict[str, Any]) -> None:
    json.dump(record, sys.stdout, indent=1)
    print()


def say(message: str) -> None:
    """One line on stderr, with nothing in it that a terminal would obey: names and paths may hold anything.

    Where nobody can read it, on a full disk say, the work goes on.
    """
    with suppress(OSError):
        sys.stderr.write(f"minilens: {printable(message)}\n")  # at once: other workers write there, too


# What an output gets that cannot hold our marks, as one in ASCII; the first four are of views/tokens.py.
SIGNS = {"↵": "\\x0a", "⇥": "\\x09", "∅": "\\u2205", "◌": "\\u25cc", "‖": "||"}
SIGNS |= dict(zip("▁▂▃▄▅▆▇█●○", "12345678*o", strict=True))  # of views/life.py


def with_signs(stream: object) -> None:
    """Let an output that cannot hold the marks of white space, as Windows' cp1252, show them as escapes."""

    def sign(error: UnicodeError) -> tuple[str, int]:
        if isinstance(error, UnicodeEncodeError) and (text := SIGNS.get(error.object[error.start])):
            return text, error.start + 1
        raise error

    codecs.register_error("signs", sign)
    if isinstance(stream, io.TextIOWrapper):  # not where a test or a notebook has put something in its place
        stream.reconfigure(errors="signs")


def terminal(*, stderr: bool = False) -> "Console":
    """The terminal, or what stands in its place."""
    from rich.console import Console

    # What is no width, such as a number of twenty digits, is as good as none.
    sizes = {name for name in ("COLUMNS", "LINES") if not re.fullmatch("[1-9][0-9]{0,3}", os.environ.get(name, ""))}
    environment = {name: value for name, value in os.environ.items() if name not in sizes}
    return Console(stderr=stderr, highlight=False, _environ=environment)


def progress(*columns: "ProgressColumn", is_shown: bool = True) -> "Progress":
    """A bar on stderr, which goes when the work is done; nothing where that is no terminal."""
    from rich.progress import Progress

    is_shown = is_shown and sys.stderr.isatty()
    return Progress(*columns, console=terminal(stderr=True), transient=True, disable=not is_shown)

"""Activation patching in the terminal and as one HTML file; patching_figure.py draws it.

A grid for each site: layers upwards with the last on top, positions or heads to the right. Cells that cannot change are
hatched, and no number stands in them.
"""

import html
from collections.abc import Callable, Iterable
from functools import partial
from math import isnan
from pathlib import Path
from string import Template
from typing import NamedTuple

from rich.color import Color
from rich.console import Group
from rich.style import Style
from rich.text import Text

from ..instruments.patching import Patching
from .colours import AWAY, NEUTRAL, TOWARDS
from .grid import BOLD, DIM, ITALIC, Line, in_panels
from .tokens import printable, token_label

TEMPLATE = Path(__file__).with_name("patching.html")


class Cell(NamedTuple):
    recovered: float
    metric: float
    can_change: bool


def patching_view(patching: Patching, *, title: str = "", width: int = 80) -> Group:
    """What each cell recovers, as grids of as many columns as fit the width.

    By position the corrupt text stands below them, and above them the clean one where it differs.
    """
    lines = [Text(printable(title), BOLD)] if title else []
    for site in patching.metric:
        lines += in_panels(_grid(patching, site), 1, width)
    return Group(*lines, *(Text(line, DIM) for line in legend(patching)))


def patching_page(patching: Patching, *, title: str = "") -> str:
    """One HTML file with what each cell recovers, and its metric to four significant digits.

    Nothing in it runs, and it has no address of anything else. Write the text as UTF-8.
    """
    label = partial(token_label, patching.tokenizer)
    colours = {"away": AWAY, "neutral": NEUTRAL, "towards": TOWARDS}
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        {name: "rgb({} {} {})".format(*rgb) for name, rgb in colours.items()},
        title=html.escape(printable(title) or "Activation patching"),
        place="a position" if patching.by == "position" else "a head at all positions",
        clean=exact(patching.clean),
        corrupt=exact(patching.corrupt),
        n=len(patching.clean_tokens),
        clean_text=_text(patching.clean_tokens.tolist(), patching.corrupt_tokens.tolist(), label),
        corrupt_text=_text(patching.corrupt_tokens.tolist(), patching.clean_tokens.tolist(), label),
        grids="\n".join(_table(patching, site, _shaded) for site in patching.metric),
        numbers="\n".join(_table(patching, site, _number) for site in patching.metric),
    )


def cells(patching: Patching, site: str) -> list[list[Cell]]:
    """All of one site, as [layer][place]."""
    parts = patching.recovered(site).tolist(), patching.metric[site].tolist(), patching.can_change[site].tolist()
    return [[Cell(*cell) for cell in zip(*row, strict=True)] for row in zip(*parts, strict=True)]


def written(recovered: float) -> str:
    """With two decimals; a space stands where the sign would be."""
    return f"{round(recovered, 2) + 0.0: .2f}"  # + 0.0 makes 0.00 of -0.00


def exact(metric: float) -> str:
    """With four significant digits."""
    return f"{metric:#.4g}".rstrip(".")


def columns(patching: Patching, label: Callable[[int], str]) -> tuple[list[str], list[str]]:
    """Above them the clean text's tokens where the two texts differ, below them the corrupt text's."""
    clean, corrupt = patching.clean_tokens.tolist(), patching.corrupt_tokens.tolist()
    above = [label(ours) if ours != theirs else "" for ours, theirs in zip(clean, corrupt, strict=True)]
    return above, [label(token) for token in corrupt]


def legend(patching: Patching) -> list[str]:
    """What the numbers and the shading mean."""
    some_cannot = not all(can.all() for can in patching.can_change.values())
    clean, corrupt = exact(patching.clean), exact(patching.corrupt)
    return [
        f"recovered: 0 is the corrupt run (metric {corrupt}), 1 the clean one ({clean})",
        "blue: towards the clean run; orange: away from it; deepest from 1 and -1 on",
        *(["hatched: cannot change"] if some_cannot else []),
    ]


def _grid(patching: Patching, site: str) -> list[Line]:
    """One site for the terminal."""
    rows = cells(patching, site)

    def across(name: str, texts: Iterable[object], style: Style = ITALIC) -> Line:
        return Line(name, [[(f" {text}", style)] for text in texts])

    places = across(patching.by, range(len(rows[0])), DIM)
    grid = [Line(f"{layer}.{site}", [[_cell(cell)] for cell in row]) for layer, row in enumerate(rows)][::-1]
    if patching.by == "head":
        return [places, *grid]
    above, below = columns(patching, partial(token_label, patching.tokenizer))
    return [places, across("clean", above), *grid, across("corrupt", below)]


def _cell(cell: Cell) -> tuple[str, Style]:
    if not cell.can_change:
        return " ░░░░", DIM
    shade = _shade(cell.recovered)
    end = TOWARDS if shade > 0 else AWAY
    rgb = (a + (b - a) * abs(shade) for a, b in zip(NEUTRAL, end, strict=True))
    return written(cell.recovered), Style(color="#000000", bgcolor=Color.from_rgb(*rgb))


def _table(patching: Patching, site: str, shown: Callable[[Cell], str]) -> str:
    """One site for the page; shown: how a cell becomes a td."""
    label = partial(token_label, patching.tokenizer)
    rows = cells(patching, site)

    def row(name: str, parts: Iterable[str]) -> str:
        return f'<tr><th scope="row">{name}</th>{"".join(parts)}</tr>'

    def across(name: str, labels: list[str]) -> str:
        shown = map(html.escape, labels)
        return row(name, (f'<td class="token" title="{text}">{text}</td>' if text else "<td></td>" for text in shown))

    head = row(patching.by, (f'<th scope="col">{place}</th>' for place in range(len(rows[0]))))
    body = "\n".join(row(f"{layer}.{site}", map(shown, cells)) for layer, cells in reversed(list(enumerate(rows))))
    foot = ""
    if patching.by == "position":
        above, below = columns(patching, label)
        head, foot = head + across("clean", above), f"<tfoot>{across('corrupt', below)}</tfoot>"
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{site}">\n'
        f"<table><thead>{head}</thead>\n<tbody>\n{body}\n</tbody>{foot}</table></div>"
    )


def _shaded(cell: Cell) -> str:
    if not cell.can_change:
        return '<td class="cannot" title="cannot change"></td>'
    shade = _shade(cell.recovered)
    way = "towards" if shade > 0 else "away"
    text = written(cell.recovered).strip()
    return f'<td class="{way}" style="--far: {abs(shade):.1%}" title="metric {exact(cell.metric)}">{text}</td>'


def _number(cell: Cell) -> str:
    return f"<td>{exact(cell.metric)}</td>"


def _text(tokens: list[int], others: list[int], label: Callable[[int], str]) -> str:
    """A text, token by token, with a mark where the other differs."""
    marks = ["span" if token == other else "mark" for token, other in zip(tokens, others, strict=True)]
    return " ".join(f"<{m}>{html.escape(label(token))}</{m}>" for m, token in zip(marks, tokens, strict=True))


def _shade(recovered: float) -> float:
    """-1 to 1; 0 where there is no number."""
    return 0.0 if isnan(recovered) else max(-1.0, min(1.0, recovered))

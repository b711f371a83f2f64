"""Grids of shaded numbers, in the terminal and as one HTML file; shaded_figure.py draws them.

Layers go upwards with the last on top. Blue is one way, orange the other. Cells that cannot change are hatched, and no
number stands in them.
"""

import html
from collections.abc import Callable, Iterable, Iterator
from math import isnan
from pathlib import Path
from string import Template
from typing import NamedTuple

from rich.color import Color
from rich.style import Style
from rich.text import Text

from .colours import AWAY, NEUTRAL, TOWARDS, of_sign
from .grid import DIM, ITALIC, Line, in_panels
from .tokens import printable

TEMPLATE = Path(__file__).with_name("grids.html")


class Shaded(NamedTuple):
    """One cell."""

    text: str
    shade: float  # from -1, orange, to 1, blue; further out the colour stays
    exact: str  # more of its digits
    can_change: bool = True


class Panel(NamedTuple):
    """One grid. labels: tokens over and under the columns, such as {"clean": [...], "corrupt": [...]}, or nothing."""

    name: str
    axis: str  # what a column is: "position", "head" …
    columns: list[str]
    rows: list[tuple[str, list[Shaded]]]  # from the first layer up
    above: tuple[str, list[str]] | None = None  # a name, and the labels of the columns
    below: tuple[str, list[str]] | None = None
    caption: str = ""  # on the page


def signed(value: float) -> str:
    """With two decimals; a space stands where the sign would be."""
    return f"{round(value, 2) + 0.0: .2f}"  # + 0.0 makes 0.00 of -0.00


def exact(value: float) -> str:
    """With four significant digits."""
    return f"{value:#.4g}".rstrip(".")


def in_terminal(panel: Panel, width: int) -> Iterator[Text]:
    """The lines of a grid for the terminal, as many columns side by side as fit."""

    def across(name: str, texts: Iterable[str], style: Style = ITALIC) -> Line:
        return Line(name, [[(f" {text}", style)] for text in texts])

    rows = [Line(name, [[_cell(cell)] for cell in cells]) for name, cells in panel.rows[::-1]]
    head = [across(panel.axis, panel.columns, DIM), *([across(*panel.above)] if panel.above else [])]
    return in_panels([*head, *rows, *([across(*panel.below)] if panel.below else [])], 1, width)


def page(
    title: str,
    panels: list[Panel],
    *,
    text: str,
    facts: dict[str, str],
    away: str,
    towards: str,
    more: str,
) -> str:
    """One HTML file with every grid, then the same with all digits. Nothing in it runs, and it asks for nothing.

    title is any text. facts: names and what stands under them, as HTML; text and more are HTML, too.
    """
    some_cannot = any(not cell.can_change for panel in panels for _, cells in panel.rows for cell in cells)
    colours = {"away": AWAY, "neutral": NEUTRAL, "towards": TOWARDS}
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        {f"rgb_{name}": "rgb({} {} {})".format(*rgb) for name, rgb in colours.items()},
        title=html.escape(printable(title)),
        text=text,
        facts="\n".join(f"<dt>{html.escape(name)}</dt><dd>{fact}</dd>" for name, fact in facts.items()),
        away=away,
        towards=towards,
        hatched='<span><span class="cannot"></span> cannot change</span>' if some_cannot else "",
        grids="\n".join(_table(panel, _shaded) for panel in panels),
        more=more,
        numbers="\n".join(_table(panel, _number) for panel in panels),
    )


def _cell(cell: Shaded) -> tuple[str, Style]:
    if not cell.can_change:
        return " ░░░░", DIM
    return cell.text, Style(color="#000000", bgcolor=Color.from_rgb(*of_sign(cell.shade)))


def _table(panel: Panel, shown: Callable[[Shaded], str]) -> str:
    """One grid for the page; shown: how a cell becomes a td."""

    def row(name: str, parts: Iterable[str]) -> str:
        return f'<tr><th scope="row">{html.escape(name)}</th>{"".join(parts)}</tr>'

    def across(name: str, labels: list[str]) -> str:
        shown = map(html.escape, labels)
        return row(name, (f'<td class="token" title="{text}">{text}</td>' if text else "<td></td>" for text in shown))

    head = row(panel.axis, (f'<th scope="col">{html.escape(column)}</th>' for column in panel.columns))
    head += across(*panel.above) if panel.above else ""
    foot = f"<tfoot>{across(*panel.below)}</tfoot>" if panel.below else ""
    body = "\n".join(row(name, map(shown, cells)) for name, cells in reversed(panel.rows))
    caption = f"<caption>{html.escape(panel.caption)}</caption>" if panel.caption else ""
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{html.escape(panel.name)}">\n'
        f"<table>{caption}<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>{foot}</table></div>"
    )


def _shaded(cell: Shaded) -> str:
    if not cell.can_change:
        return '<td class="cannot" title="cannot change"></td>'
    way, far = "towards" if cell.shade > 0 else "away", 0.0 if isnan(cell.shade) else min(abs(cell.shade), 1.0)
    text, more = html.escape(cell.text.strip()), html.escape(cell.exact)
    return f'<td class="{way}" style="--far: {far:.1%}" title="{more}">{text}</td>'


def _number(cell: Shaded) -> str:
    return f"<td>{html.escape(cell.exact.rpartition(' ')[2])}</td>"

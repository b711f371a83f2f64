"""A grid of cells in the terminal: as many columns side by side as fit, the others in panels below."""

from collections.abc import Iterator, Sequence
from math import ceil
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.style import Style
from rich.text import Text

WIDEST = 12  # terminal cells that a token may take before it is cut
Cell = tuple[str, Style]  # the text after a space
DIM, ITALIC, BOLD = Style(dim=True), Style(italic=True), Style(bold=True)


class Line(NamedTuple):
    """A line of a grid: at each position a cell for each table, or one cell across them all."""

    label: str
    groups: list[list[Cell]]


Part = tuple[int, range]  # a position, and those of its columns that stand in one panel


def in_panels(lines: list[Line], n_tables: int, width: int) -> Iterator[Text]:
    """The lines, cut into panels that fit the width; a group of columns is torn only where it alone does not fit."""
    label_width = max(len(line.label) for line in lines)
    widths = [_widths(groups, n_tables) for groups in zip(*(line.groups for line in lines), strict=True)]
    for parts in _packed(widths, width - label_width):
        for label, groups in lines:
            text = Text(no_wrap=True, overflow="ellipsis").append(label.ljust(label_width), DIM)
            for p, columns in parts:
                text.append(" ")
                _write(text, groups[p], columns, widths[p])
            yield text
        yield Text()


def _packed(widths: list[list[int]], room: int) -> Iterator[list[Part]]:
    """The parts of each panel, as many as fit the room; a space stands before each part."""
    parts = [(p, columns) for p, group in enumerate(widths) for columns in _runs(group, room - 1)]
    for run in _runs([1 + sum(widths[p][c] for c in columns) for p, columns in parts], room):
        yield [parts[i] for i in run]


def _write(text: Text, group: list[Cell], columns: range, widths: list[int]) -> None:
    """Some columns of a group, or the one cell that stands across all columns."""
    wide = [widths[c] for c in columns]
    is_across = len(group) < len(widths)
    for (content, style), cell_width in zip(
        group if is_across else [group[c] for c in columns], [sum(wide)] if is_across else wide, strict=True
    ):
        text.append(fit(content, cell_width), style)


def _widths(groups: Sequence[list[Cell]], n_tables: int) -> list[int]:
    """The widths of the columns at one position, from the cells in them and across them."""
    wide = [[min(1 + WIDEST, cell_len(text)) for text, _ in group] for group in groups]
    across = max((group[0] for group in wide if len(group) < n_tables), default=0)
    columns = zip(*(group for group in wide if len(group) == n_tables), strict=True)
    return [max(ceil(across / n_tables), *column) for column in columns]


def _runs(widths: list[int], room: int) -> list[range]:
    """Cut what has these widths into runs that fit the room."""
    runs, first, used = [], 0, 0
    for i, width in enumerate(widths):
        if used + width > room and i > first:
            runs.append(range(first, i))
            first, used = i, 0
        used += width
    return [*runs, range(first, len(widths))]


def fit(text: str, width: int) -> str:
    """The text in exactly this many terminal cells, cut with an ellipsis where it is longer."""
    return set_cell_size(text, width) if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"

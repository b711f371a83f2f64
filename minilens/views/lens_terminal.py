"""The lens in the terminal: rows are residuals with the output on top, columns are positions.

With colours where the terminal has them; in a pipe the same grids as plain text.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from math import isnan
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from rich.color import Color
from rich.console import Group
from rich.style import Style
from rich.text import Text
from torch import Tensor

from ..table import LensTable
from ..traces import ROW_SITES
from .colours import CIVIDIS
from .grid import BOLD, DIM, ITALIC, Cell, Line, in_panels
from .lens_panels import ENDS, Panel, long_name, of_one_text, panel, spread, stat
from .tokens import text_label, token_label


class Scale(NamedTuple):
    """How one kind of number is written and shaded."""

    decimals: int
    words: str


SCALES = {
    "prob": Scale(3, "shaded from 0 (dark) to 1 (bright)"),
    "rank": Scale(0, "shaded from 1000 (dark) to 1 (bright)"),
    "nats": Scale(2, "shaded from 10 (dark) to 0 (bright)"),
    "js": Scale(3, "shaded from log 2 (dark) to 0 (bright)"),
    "agrees": Scale(0, "shaded from no (dark) to yes (bright)"),
    "logit": Scale(1, "shaded from 5th to 95th percentile"),
    "logprob": Scale(2, "shaded from 5th to 95th percentile"),
}
BEST = "the row's best token", "shaded by its probability, 0 to 1"
Rows = dict[str, list[list[Cell]]]  # the cells of each row, by its label, as [line][pos]
EMPTY = "", Style()


def lens_view(tables: LensTable | Sequence[LensTable], *, show: str | Sequence[str] = "prob", width: int = 80) -> Group:
    """A table, or several of one text side by side, as grids of as many columns as fit the width.

    show: the name of a panel (see lens_panels.py), or several, a grid for each. prob shows the best tokens of each row,
    shaded by probability, and logit the logit of the best; top_prob and all others are numbers. Where there is none the
    cell is empty. Several tables make a group of columns at each position, under lines that name what sets them apart:
    learned lens, decoder, norm or centring. A row that is not in a table is empty there.

    The line below a grid is the input, the line above it the true next token, after a * where the model's own best
    token is that one. Cells whose best token is the model's own are bold. Raises ValueError for a panel that does not
    exist, for what a table was made without, and for tables that are not of the same columns of one run.
    """
    tables = of_one_text(tables)
    names = spread(show, tables[0].track)
    label = partial(token_label, tables[0].tokenizer)
    ways = {
        "lens": [text_label(table.lens) or "none" for table in tables],
        "decoder": [table.decoder for table in tables],
        "norm": [table.norm for table in tables],
        "centred": ["yes" if table.centre else "no" for table in tables],
    }
    heads = {way: words for way, words in ways.items() if len(set(words)) > 1}
    shared = [f"{way} {words[0]}" for way, words in ways.items() if way not in heads]
    how = [way.removesuffix(" yes") for way in shared if way not in ("lens none", "norm final", "centred no")]

    lines: list[Text] = []
    for name in names:
        panels = [panel(table, long_name(name), label) for table in tables]
        title, scale = BEST if name == "prob" else (panels[0].title, SCALES[panels[0].kind].words)
        if len(names) > 1:
            lines += [Text(), Text(title, BOLD)] if lines else [Text(title, BOLD)]
        grid = _grid(tables, panels, heads, label, are_tokens=name == "prob")
        lines += in_panels(grid, len(tables), width)
        lines.append(Text("; ".join([f"{title}, {scale}" if len(names) == 1 else scale, *how]), DIM))
    return Group(*lines)


def _grid(
    tables: list[LensTable],
    panels: list[Panel],
    heads: dict[str, list[str]],
    label: Callable[[int], str],
    are_tokens: bool,
) -> list[Line]:
    """All lines, from the positions down to the input."""
    first = tables[0]
    n_pos = len(first.positions)
    stars = "".join("*" if right else " " for right in (first.next_tokens == first.final_tokens).tolist())

    def across(name: str, texts: list[str], style: Style, leads: str = " " * n_pos) -> Line:
        return Line(name, [[(lead + text, style)] for lead, text in zip(leads, texts, strict=True)])

    def tokens(ids: Tensor) -> list[str]:
        return [label(token) if token >= 0 else "" for token in ids.tolist()]

    lines = [across("position", [str(position) for position in first.positions.tolist()], DIM)]
    lines += [across("next", tokens(first.next_tokens), ITALIC, stars)]
    lines += [] if are_tokens else [across("output", tokens(first.final_tokens), ITALIC)]
    lines += [Line(way, [[(f" {word}", DIM) for word in words]] * n_pos) for way, words in heads.items()]

    shades = _shades(panels[0].kind, torch.cat([each.value for each in panels]))
    apart = torch.split(shades, [len(table.labels) for table in tables])
    found = [
        _tokens(table, label) if are_tokens else _numbers(table, each, shade)
        for table, each, shade in zip(tables, panels, apart, strict=True)
    ]
    for row in sorted(set().union(*found), key=_depth, reverse=True):
        levels = zip_longest(*(rows.get(row, []) for rows in found), fillvalue=[EMPTY] * n_pos)
        for k, level in enumerate(levels):
            lines.append(Line("" if k else row, [list(group) for group in zip(*level, strict=True)]))
    return [*lines, across("input", tokens(first.tokens), ITALIC)]


def _tokens(table: LensTable, label: Callable[[int], str]) -> Rows:
    """A line for each of the top k tokens."""
    top = stat(table, "top")
    texts = [[[label(token) for token in line] for line in row] for row in top.tokens.mT.tolist()]
    return _rows(table, texts, top.prob.mT.tolist())


def _numbers(table: LensTable, panel: Panel, shades: Float[Tensor, "row pos"]) -> Rows:
    """One line each."""
    texts = [[[_number(value, panel.kind) for value in row]] for row in panel.value.tolist()]
    return _rows(table, texts, shades[:, None].tolist())


def _rows(table: LensTable, texts: list[list[list[str]]], shades: list[list[list[float]]]) -> Rows:
    """Cells of [row][line][pos]; bold in the first line where the row's best token is the output's."""
    agrees = (stat(table, "top").tokens[..., 0] == table.final_tokens).tolist()
    return {
        label: [
            [(" " + text, _style(shade, bold and k == 0)) for text, shade, bold in zip(*line, agrees[r], strict=True)]
            for k, line in enumerate(zip(texts[r], shades[r], strict=True))
        ]
        for r, label in enumerate(table.labels)
    }


def _depth(label: str) -> tuple[int, int]:
    """Where a row is in the model."""
    layer, _, site = label.partition(".")
    return (int(layer), ROW_SITES.index(site)) if site else (-1, 0)


def _shades(kind: str, value: Float[Tensor, "row pos"]) -> Float[Tensor, "row pos"]:
    """0 (dark) to 1 (bright), on one scale for all; not a number where there is none."""
    ends = ENDS.get(kind)
    dark, bright = value.new_tensor(ends) if ends else value.nanquantile(value.new_tensor([0.05, 0.95]))
    if kind == "rank":
        value, dark, bright = value.log10(), dark.log10(), bright.log10()
    span = bright - dark if ends else (bright - dark).clamp(min=1e-9)  # all numbers may be one
    return cast(Tensor, (value - dark) / span).clamp(0, 1)


def _number(value: float, kind: str) -> str:
    """As it stands in a cell; nothing where there is none."""
    if isnan(value):
        return ""
    if kind == "agrees":
        return "yes" if value else "no"
    decimals = SCALES[kind].decimals
    return f"{round(value, decimals) + 0.0:.{decimals}f}"  # + 0.0 makes 0.00 of -0.00


def _style(shade: float, bold: bool) -> Style:
    """Black or white on the colour of this shade, 0 to 1; no colour where there is no shade."""
    if isnan(shade):
        return Style()
    where = shade * (len(CIVIDIS) - 1)
    low = min(int(where), len(CIVIDIS) - 2)
    red, green, blue = (a + (b - a) * (where - low) for a, b in zip(CIVIDIS[low], CIVIDIS[low + 1], strict=True))
    # At a luma of 117 black and white stand out alike: it is a relative luminance of 0.18 (WCAG 2, contrast ratio).
    ink = (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 117 else (255, 255, 255)
    return Style(color=Color.from_rgb(*ink), bgcolor=Color.from_rgb(red, green, blue), bold=bold)

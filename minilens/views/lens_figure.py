"""The lens as a still picture: heat maps, residuals upwards with the output on top, positions to the right.

Their styles are those of the 2020 post and of the 2021 code (nostalgebraist/transformer-utils). They are drawn from a
LensTable with matplotlib's objects alone: nothing of a caller's own pyplot session is touched.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..table import LensTable
from .heatmap import (
    ABOVE,
    BELOW,
    FOOT,
    LABELS,
    LEFT,
    LETTERS,
    LONGEST,
    LONGEST_LABEL,
    NARROWEST,
    RIGHT,
    WIDEST,
    add_axes,
    cell_size,
    label_axes,
    write_cells,
)
from .lens_panels import ENDS, long_name, of_one_text, panel, spread, stat
from .plots import (
    PLAIN,
    Axes,
    Figure,
    FigureCanvasAgg,
    LogNorm,
    Normalize,
    PatchCollection,
    Rectangle,
    colormaps,
    drawable,
    labels,
)
from .tokens import text_label

EXTEND = {  # where numbers lie beyond the scale, below and above it -> how matplotlib calls its pointed ends
    (False, False): "neither",
    (True, False): "min",
    (False, True): "max",
    (True, True): "both",
}
KEY = (
    "below: input tokens; above: true next tokens,",
    "after a * where the output's token is that one;",
    "outlined: the row's best token is the output's",
)


def lens_figure(
    tables: LensTable | Sequence[LensTable],
    *,
    show: str | Sequence[str] = "prob",
    style: str | None = None,
    every: int = 1,
    embed: bool = True,
    title: str = "",
    font_size: float | None = None,
) -> Figure:
    """A table, or several of one text, as heat maps, one above the other: a matplotlib Figure unknown to pyplot.

    show: the name of a panel (see lens_panels.py), or several: logit, prob, rank, kl; one of MEASURES; or who and what,
    of top, final, next, input, tracked and token17 (a tracked one) with _logit, _prob, _logprob and _rank, as in the
    CSV. Each is drawn of table after table, on one scale. Cells hold the row's best token, or the number where that is
    a rank or in nats. Colours are those of the terminal and of the page: logit and prob of the row's own best token,
    ranks cut at 1000, nats at 10, logits from the 5th to the 95th percentile of the cells drawn. style: as a post has
    them: "2020", ranks cut at 100 (the output's) or 1000, KL at 30; "2021", logit and prob of the output's token, ranks
    cut at 2000, KL whole. every: 2 leaves out every second block; the output is always there. embed: whether the input
    row is. title: goes before each panel's own. font_size: points of the letters in cells, for a slide or a long text:
    cells have room for their words then, and columns that the page has no room for stand below the first ones; by
    default all columns stand side by side, and cells too small for words have none.

    Raises ValueError for a panel or a style that does not exist, for what a table was made without, and for tables that
    are not of the same columns of one run.
    """
    tables = of_one_text(tables)
    first = tables[0]
    names = [long_name(name, style) for name in spread(show, first.track)]
    if every < 1:
        raise ValueError(f"every must be at least 1; got {every}")
    if font_size is not None and not 4 <= font_size <= 72:
        raise ValueError(f"font_size must be from 4 to 72 points; got {font_size:g}")
    chosen = [_rows(table, every, embed) for table in tables]
    n_pos = len(first.tokens)
    tallest = max(map(len, chosen))
    cell = cell_size(n_pos, tallest, font_size)
    letters = font_size or LETTERS
    left, right, above, below, foot = (inches * letters / LETTERS for inches in (LEFT, RIGHT, ABOVE, BELOW, FOOT))
    at_a_time = n_pos if font_size is None else max(1, int(WIDEST / cell[0]))
    strips = [slice(at, min(at + at_a_time, n_pos)) for at in range(0, n_pos, at_a_time)]
    ups = [len(rows) * cell[1] for rows in chosen]
    across = max(NARROWEST * letters / LETTERS, min(at_a_time, n_pos) * cell[0])
    page = left + across + right, foot + len(names) * len(strips) * sum(below + up + above for up in ups)

    label = labels(first.tokenizer)
    hits = (first.next_tokens == first.final_tokens).tolist()
    ahead = [label(token, LONGEST_LABEL) if token >= 0 else "" for token in first.next_tokens.tolist()]
    ahead = [f"* {text}" if star else text for star, text in zip(hits, ahead, strict=True)]
    read = [label(token, LONGEST_LABEL) for token in first.tokens.tolist()]

    figure = Figure(page, dpi=150)
    FigureCanvasAgg(figure)
    bottom = page[1]
    for name in names:
        panels = [panel(table, name, lambda token: label(token, LONGEST_LABEL)) for table in tables]
        masked = [np.ma.masked_invalid(each.value[rows].numpy()) for each, rows in zip(panels, chosen, strict=True)]
        norm = _norm(name, panels[0].kind, style, np.concatenate([numbers.compressed() for numbers in masked]))
        for table, rows, up, (_, caption, kind), numbers in zip(tables, chosen, ups, panels, masked, strict=True):
            best = stat(table, "top").tokens[rows, :, 0]
            tokens = [[label(token, LONGEST) for token in row] for row in best.tolist()]
            agrees = best == table.final_tokens
            how = f"{drawable()(text_label(table.way))}, norm {table.norm}{', centred' if table.centre else ''}"
            heading = f"{drawable()(title)}\n{caption}; {how}" if title else f"{caption}\n{how}"
            for strip in strips:
                bottom -= below + up + above
                wide = cell[0] * (strip.stop - strip.start)
                ax, bar = add_axes(figure, bottom + below, wide, up, letters)
                words, outlined = [row[strip] for row in tokens], agrees[:, strip].nonzero().tolist()
                _draw(ax, bar, kind, numbers[:, strip], norm, words, outlined, cell, letters)
                places = (
                    ""
                    if len(strips) == 1
                    else f", positions {first.positions[strip.start]} to {first.positions[strip.stop - 1]}"
                )
                x, pad = (0.1 - left) / wide, 72 * above - 3.25 * letters
                ax.set_title(heading + places, loc="left", x=x, y=1, pad=pad, fontsize=letters, **PLAIN)
                label_axes(ax, cell, read[strip], ahead[strip], [table.labels[r] for r in rows], letters)
    for k, line in enumerate(KEY):
        y = foot * (0.72 - 0.26 * k)
        figure.text(0.1 / page[0], y / page[1], line, fontsize=6.5 * letters / LETTERS, **PLAIN)
    return figure


def _rows(table: LensTable, every: int, embed: bool) -> list[int]:
    """The rows to draw, the output's always."""
    last = len(table.labels) - 1
    return [r for r, b in enumerate(table.layers) if r == last or (embed if b < 0 else b % every == 0)]


def _draw(
    ax: Axes,
    bar: Axes,
    kind: str,
    numbers: np.ma.MaskedArray[Any, Any],
    norm: Normalize,
    tokens: list[list[str]],
    agrees: list[list[int]],
    cell: tuple[float, float],
    letters: float,
) -> None:
    """The cells of one panel, their colours, texts and outlines, and the scale beside them."""
    is_rank, is_nats = kind == "rank", kind in ("nats", "js")
    # The bright end is where a row is close to what it is compared with, or sure.
    colours = colormaps["cividis_r" if is_rank or is_nats else "cividis"].with_extremes(bad="0.85")
    image = ax.imshow(numbers, colours, norm, origin="lower", aspect="auto", interpolation="nearest")
    found, low, high = numbers.compressed(), cast(float, norm.vmin), cast(float, norm.vmax)
    extend = EXTEND[bool((found < low).any()), bool((found > high).any())]
    scale = ax.figure.colorbar(image, cax=bar, extend=extend, extendfrac=0.1 / cell[1] / len(numbers), format="%g")
    scale.ax.tick_params(labelsize=LABELS * letters / LETTERS)

    # Black or white, whichever stands out more: they are alike at a relative luminance of 0.18 (WCAG 2).
    rgb = np.asarray(colours(norm(numbers)))[..., :3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    ink = np.where(linear @ [0.2126, 0.7152, 0.0722] > 0.18, "black", "white").tolist()

    texts = tokens
    if is_rank or is_nats:
        form = {"rank": "{:.0f}", "js": "{:.2f}"}.get(kind, "{:.1f}")
        texts = [["" if v is None else form.format(v) for v in row] for row in numbers.tolist()]
    write_cells(ax, cell, texts, ink, letters)

    line = min(1.0, 72 * min(cell) / 10)  # in points, and as far inside the cell, so that neighbours stay apart
    dx, dy = line / 72 / cell[0], line / 72 / cell[1]
    boxes = [Rectangle((x - 0.5 + dx, y - 0.5 + dy), 1 - 2 * dx, 1 - 2 * dy) for y, x in agrees]
    outlines = PatchCollection(boxes, facecolor="none", edgecolor=[ink[y][x] for y, x in agrees], linewidth=line)
    ax.add_collection(outlines, autolim=False)


def _norm(name: str, kind: str, style: str | None, found: NDArray[np.float64]) -> Normalize:
    """The scale of a panel's colours, from the numbers that are drawn."""
    if not found.size:
        low, high = 0.0, 1.0
    elif kind in ("logit", "logprob"):
        low, high = np.percentile(found, [5, 95])
    elif style is None or kind in ("prob", "agrees"):
        low, high = sorted(ENDS[kind])
    elif kind == "rank":
        low, high = 1, 2000 if style == "2021" else 100 if name == "final_rank" else 1000
    else:
        low, high = 0, 30 if style == "2020" and name.startswith("kl_") else found.max()
    high = max(high, low + 1e-6)  # a scale has two ends, though all numbers may be one
    return LogNorm(low, high) if kind == "rank" and found.size else Normalize(low, high)

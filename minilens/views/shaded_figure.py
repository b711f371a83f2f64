"""Grids of shaded numbers as a still picture: a heat map for each, on one scale, layers upwards."""

import numpy as np

from .colours import AWAY, NEUTRAL, TOWARDS
from .heatmap import ABOVE, BELOW, FOOT, LABELS, LEFT, LETTERS, RIGHT, add_axes, cell_size, label_axes, write_cells
from .plots import (
    PLAIN,
    Figure,
    FigureCanvasAgg,
    LinearSegmentedColormap,
    Normalize,
    PatchCollection,
    Rectangle,
    drawable,
)
from .shaded import Panel

SHORT_ABOVE = 0.55  # inches: no tokens stand above heads
HATCH = "0.75"


def shaded_figure(panels: list[Panel], *, title: str, legend: list[str], ends: list[str]) -> Figure:
    """A heat map for each grid: a matplotlib Figure unknown to pyplot.

    title: goes on top. legend: lines at the foot. ends: what the scale says at -1, 0 and 1.
    """
    first = panels[0]
    n_rows, n_columns = len(first.rows), len(first.columns)
    over = ABOVE if first.above else SHORT_ABOVE
    cell = cell_size(n_columns, n_rows)
    across, up = n_columns * cell[0], n_rows * cell[1]
    page = LEFT + across + RIGHT, FOOT + len(panels) * (BELOW + up + over)
    colours = LinearSegmentedColormap.from_list("signed", np.array([AWAY, NEUTRAL, TOWARDS]) / 255)

    figure = Figure(page, dpi=150)
    FigureCanvasAgg(figure)
    bottom = page[1]
    for panel in panels:
        bottom -= BELOW + up + over
        ax, bar = add_axes(figure, bottom + BELOW, across, up)
        cells = [row for _, row in panel.rows]
        still = np.array([[not each.can_change for each in row] for row in cells])
        numbers = np.ma.array([[each.shade for each in row] for row in cells], mask=still)
        image = ax.imshow(numbers, colours, Normalize(-1, 1), origin="lower", aspect="auto", interpolation="nearest")
        scale = figure.colorbar(image, cax=bar, ticks=[-1, 0, 1]).ax
        scale.set_yticklabels(ends)
        scale.tick_params(labelsize=LABELS)
        texts = [[each.text.strip() if each.can_change else "" for each in row] for row in cells]
        write_cells(ax, cell, texts, [["black"] * n_columns] * n_rows)
        squares = [Rectangle((x - 0.5, y - 0.5), 1, 1) for y, x in np.argwhere(still)]
        ax.add_collection(
            PatchCollection(squares, facecolor="none", edgecolor=HATCH, hatch="/////", linewidth=0), autolim=False
        )
        heading = "\n".join(filter(None, [drawable()(title), panel.name]))
        ax.set_title(heading, loc="left", x=(0.1 - LEFT) / across, y=1, pad=72 * over - 26, fontsize=LETTERS, **PLAIN)
        below = [f"{panel.axis} {name}" if name.isdigit() else name for name in panel.columns]
        if panel.below:
            below = [token or name for token, name in zip(panel.below[1], panel.columns, strict=True)]
        above = panel.above[1] if panel.above else [""] * n_columns
        label_axes(ax, cell, below, above, [name for name, _ in panel.rows])
    for k, line in enumerate(legend):
        figure.text(0.1 / page[0], (0.36 - 0.13 * k) / page[1], drawable()(line), fontsize=6.5, **PLAIN)
    return figure

"""Activation patching as a still picture: a heat map for each site, layers upwards, positions or heads to the right."""

import numpy as np

from ..instruments.patching import Patching
from .colours import AWAY, NEUTRAL, TOWARDS
from .heatmap import (
    ABOVE,
    BELOW,
    FOOT,
    LABELS,
    LEFT,
    LETTERS,
    LONGEST_LABEL,
    RIGHT,
    add_axes,
    cell_size,
    label_axes,
    write_cells,
)
from .patching import cells, columns, legend, written
from .plots import (
    PLAIN,
    Figure,
    FigureCanvasAgg,
    LinearSegmentedColormap,
    Normalize,
    PatchCollection,
    Rectangle,
    drawable,
    labels,
)

HEAD_ABOVE = 0.55  # inches: no tokens stand above heads
HATCH = "0.75"


def patching_figure(patching: Patching, *, title: str = "") -> Figure:
    """What each cell recovers, a heat map for each site on one scale: a matplotlib Figure unknown to pyplot.

    By position the corrupt text stands below, and above it the clean one where it differs. title: goes on top.
    """
    label = labels(patching.tokenizer)
    n_layers, n_places = next(iter(patching.metric.values())).shape
    if patching.by == "position":
        over, (above, below) = ABOVE, columns(patching, lambda token: label(token, LONGEST_LABEL))
    else:
        over, above, below = HEAD_ABOVE, [""] * n_places, [f"head {head}" for head in range(n_places)]
    cell = cell_size(n_places, n_layers)
    across, up = n_places * cell[0], n_layers * cell[1]
    page = LEFT + across + RIGHT, FOOT + len(patching.metric) * (BELOW + up + over)
    colours = LinearSegmentedColormap.from_list("recovered", np.array([AWAY, NEUTRAL, TOWARDS]) / 255)

    figure = Figure(page, dpi=150)
    FigureCanvasAgg(figure)
    bottom = page[1]
    for site in patching.metric:
        bottom -= BELOW + up + over
        ax, bar = add_axes(figure, bottom + BELOW, across, up)
        rows = cells(patching, site)
        numbers = np.ma.array(patching.recovered(site).numpy(), mask=~patching.can_change[site].numpy())
        image = ax.imshow(numbers, colours, Normalize(-1, 1), origin="lower", aspect="auto", interpolation="nearest")
        figure.colorbar(image, cax=bar, ticks=[-1, 0, 1]).ax.tick_params(labelsize=LABELS)
        texts = [[written(each.recovered).strip() if each.can_change else "" for each in row] for row in rows]
        write_cells(ax, cell, texts, [["black"] * n_places] * n_layers)
        still = [Rectangle((x - 0.5, y - 0.5), 1, 1) for y, x in np.argwhere(numbers.mask)]
        hatched = PatchCollection(still, facecolor="none", edgecolor=HATCH, hatch="/////", linewidth=0)
        ax.add_collection(hatched, autolim=False)
        heading = f"{drawable()(title)}\n{site}" if title else site
        ax.set_title(heading, loc="left", x=(0.1 - LEFT) / across, y=1, pad=72 * over - 26, fontsize=LETTERS, **PLAIN)
        label_axes(ax, cell, below, above, [f"{layer}.{site}" for layer in range(n_layers)])
    for k, line in enumerate(legend(patching)):
        figure.text(0.1 / page[0], (0.36 - 0.13 * k) / page[1], line, fontsize=6.5, **PLAIN)
    return figure

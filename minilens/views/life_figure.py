"""The life of a model as a picture: statistics, heads, block 0 and findings over the steps of training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..arguments import names
from ..corpus.tally import NUMBERS
from ..study.life import Curve, Life
from .life import BLOCK_0, HEADS, KINDS, STATS, TITLES
from .plots import (
    INK,
    INPUT,
    OUTPUT,
    PLAIN,
    Axes,
    Figure,
    FigureCanvasAgg,
    add_legend,
    colormaps,
    drawable,
    legend_label,
    plain,
    scale_nats,
)

STYLES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 1.5, 1, 1.5)))  # of several lives
COLOURS = {"previous": INPUT, "duplicate": "#1a8a5f", "induction": OUTPUT}
OF_BLOCK_0 = {"embedding": INPUT, "write": OUTPUT, "ratio": INK}
MOST = 5  # rows that a legend names
BAND = 2  # standard errors to either side
PANEL = 3.6, 2.1  # inches
COLUMNS = 2


def life_figure(lives: Life | Mapping[str, Life], *, stats: str | Sequence[str] = STATS, title: str = "") -> Figure:
    """A panel for each statistic of the lens, with a line for each row; one for heads, for block 0, for findings.

    The steps are on a logarithmic scale, bands are two standard errors to either side.
    lives: one, or several by their names, each with another kind of line.
    stats: as for `life_view`. Raises ValueError for a statistic that a corpus does not have.
    """
    several = {"": lives} if isinstance(lives, Life) else dict(lives)
    chosen = names("stats", stats)
    n_lines = -(-(len(chosen) + 3) // COLUMNS)
    width, height = PANEL
    figure = Figure((width * COLUMNS, height * n_lines), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(n_lines, COLUMNS, squeeze=False).flat)
    draw = drawable()
    if title:
        figure.suptitle(draw(title), fontsize=9, color=INK, **PLAIN)
    for ax, stat in zip(panels, chosen, strict=False):
        _statistic(ax, several, stat)
    heads, block_0, findings, *rest = panels[len(chosen) :]
    _heads(heads, several, draw)
    _block_0(block_0, several)
    _findings(findings, several)
    for ax in rest:
        ax.set_axis_off()
    for ax in panels[: len(chosen) + 3]:
        _finish(ax, several)
    return figure


def _statistic(ax: Axes, lives: Mapping[str, Life], stat: str) -> None:
    for life, style in zip(lives.values(), _styles(lives), strict=True):
        mean, error = life.lens(stat)
        named = {*np.linspace(0, len(life.rows) - 1, MOST).round().astype(int)}
        for r, row in enumerate(life.rows):
            colour = colormaps["cividis"](0.9 * r / max(1, len(life.rows) - 1))
            label = legend_label(row.replace("resid_", "")) if style == "-" and r in named else None
            _line(ax, life, Curve(mean[:, r], error[:, r]), color=colour, linestyle=style, label=label)
    if stat in NUMBERS:
        scale_nats([ax], 1.0)
    else:
        ax.set_ylim(-0.03, 1.03)
    _title(ax, TITLES[stat])
    add_legend(ax, loc="upper left" if stat in NUMBERS else "center right")


def _heads(ax: Axes, lives: Mapping[str, Life], draw: Any) -> None:
    for (name, life), style in zip(lives.items(), _styles(lives), strict=True):
        for kind, what in KINDS.items():
            label = legend_label(draw(f"{name}, {what}" if name else what))
            _line(ax, life, life.best_head(kind), color=COLOURS[kind], linestyle=style, label=label)
    ax.set_ylim(-0.03, 1.03)
    _title(ax, HEADS)
    add_legend(ax)


def _block_0(ax: Axes, lives: Mapping[str, Life]) -> None:
    for life, style in zip(lives.values(), _styles(lives), strict=True):
        for what, name in BLOCK_0.items():
            label = name if style == "-" else None
            _line(ax, life, life.block_0(what), color=OF_BLOCK_0[what], linestyle=style, label=label)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:g}")
    _title(ax, "mean lengths in the stream")
    add_legend(ax)


def _findings(ax: Axes, lives: Mapping[str, Life]) -> None:
    """A line of dots for each finding, of several lives one below the other: full where it is shown."""
    statements = list(dict.fromkeys(statement for life in lives.values() for statement in life.verdicts()))
    for n, life in enumerate(lives.values()):
        for y, statement in enumerate(statements):
            verdicts = life.verdicts().get(statement, [])
            for verdict, fill in (("shown", OUTPUT), ("not shown", "none")):
                x = [step for step, found in zip(life.steps, verdicts, strict=False) if found == verdict]
                at = [y + 0.25 * n] * len(x)
                ax.scatter(x, at, s=9, facecolors=fill, edgecolors=OUTPUT, linewidths=0.6)
    for y, statement in enumerate(statements):
        ax.text(0, y - 0.2, statement, fontsize=6, color=INK, **PLAIN)
    ax.set_yticks([])
    ax.set_ylim(len(statements) - 0.3, -0.7)
    _title(ax, "findings: full where shown, empty where not")


def _styles(lives: Mapping[str, Life]) -> list[Any]:
    return [STYLES[n % len(STYLES)] for n in range(len(lives))]


def _line(ax: Axes, life: Life, curve: Curve, **style: Any) -> None:
    """A line, and what of it is uncertain as a band."""
    mean, error = (part.numpy() for part in curve)
    band = BAND * np.nan_to_num(error)
    ax.fill_between(life.steps, mean - band, mean + band, color=style["color"], alpha=0.2, linewidth=0)
    ax.plot(life.steps, mean, linewidth=1.2, marker=".", markersize=3, **style)


def _title(ax: Axes, title: str) -> None:
    ax.set_title(title, fontsize=8, color=INK, loc="left", pad=3, **PLAIN)


def _finish(ax: Axes, lives: Mapping[str, Life]) -> None:
    plain(ax)
    last = max(life.steps[-1] for life in lives.values())
    ax.set_xscale("symlog", linthresh=1)
    ax.set_xlim(-0.2, 1.2 * max(1, last))
    ax.set_xticks([0, *(10**n for n in range(len(str(last))))])
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlabel("step", fontsize=8, color=INK)

"""What the lens says of a corpus as pictures: curves over the rows, from the records of views/corpus.py.

From left to right a curve goes through the model, as in curves.py.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .corpus_record import CALIBRATION, QUANTILES, mean_and_error
from .corpus_terminal import names
from .plots import (
    INK,
    OUTPUT,
    PLAIN,
    Axes,
    Figure,
    FigureCanvasAgg,
    add_legend,
    depths,
    drawable,
    legend_label,
    plain,
    scale_nats,
)
from .tokens import text_label

PANELS = {  # what the overview draws, three in a line
    "kl_final": "KL(output ‖ row), nats",
    "kl_input": "KL(input ‖ row), nats",
    "js": "Jensen-Shannon, output and row, nats",
    "entropy": "entropy, nats",
    "cross_entropy": "cross-entropy of the next token, nats",
    CALIBRATION: "calibration error: confidence from accuracy",
    "agrees": "output's token first",
    "next_first": "true next token first",
    "input_first": "input token first",
    "settled": "settled: output's first from here on",
}
NATS = ("kl_final", "kl_input", "cross_entropy")  # on a scale that has room for the first rows
SPLITS = ("kl_final", "cross_entropy", "agrees")
SPREAD = ("kl_final", "entropy", "cross_entropy")  # whose quantiles are drawn
COLOURS = (OUTPUT, "#c04f00", "#1a8a5f", "#9b59b6", "#8a6d00", "#c2185b", "#444444", "#56b4e9")
STYLES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 1.5, 1, 1.5)), (0, (9, 2)), (0, (3, 1, 1, 1, 1, 1)))  # of decoders
BAND = 2  # standard errors to either side
PANEL = 3.1, 1.9  # inches
SHADES = ((0, "1"), (1, "2 to 3"), (2, "4 to 15"), (4, "16 to 255"), (8, "more"))  # of ranks: the first bucket of each


def overview(records: Sequence[dict[str, Any]]) -> Figure:
    """Every statistic over the rows: a colour for each model, a kind of line for each decoder."""
    figure, panels = _panels(4, 3)
    draw = drawable()
    for n, (record, name) in enumerate(zip(records, names(records), strict=True)):
        for style, (decoder, found) in zip(_styles(record), record["decoders"].items(), strict=True):
            label = legend_label(draw(name)) + (f", {draw(text_label(decoder))}" if len(record["decoders"]) > 1 else "")
            for ax, value in zip(panels.flat, PANELS, strict=False):
                _curve(
                    ax, found, found["groups"][0], value, color=COLOURS[n % len(COLOURS)], linestyle=style, label=label
                )
    for ax, (value, title) in zip(panels.flat, PANELS.items(), strict=False):
        _finish(ax, value, title)
    for ax in panels.flat[len(PANELS) :]:
        ax.set_axis_off()
    add_legend(panels.flat[len(PANELS)], panels.flat[0], loc="upper left", fontsize=8)
    return figure


def details(record: dict[str, Any], decoder: str) -> Figure:
    """One model by position and by frequency; quantiles; the ranks of two tokens; and confidence beside accuracy."""
    found = record["decoders"][decoder]
    figure, panels = _panels(4, 3)
    draw = drawable()
    for line, split, title in (
        (panels[0], "position", "position in the window"),
        (panels[1], "frequency", "frequency of the next token"),
    ):
        chosen = [group for group in found["groups"] if group["split"] == split and group["tokens"]]
        for group, colour in zip(chosen, _ramp(len(chosen)), strict=True):
            for ax, value in zip(line, SPLITS, strict=True):
                _curve(ax, found, group, value, color=colour, label=legend_label(draw(text_label(group["group"]))))
        for ax, value in zip(line, SPLITS, strict=True):
            _finish(ax, value, PANELS[value])
        _beside(line[-1], title)
    for ax, value in zip(panels[2], SPREAD, strict=True):
        _quantiles(ax, found, value)
    _beside(panels[2, 2], "of all tokens")
    _calibration(panels[3, 0], found)
    _ranks(panels[3, 1], found, "final", "rank of the output's token")
    _ranks(panels[3, 2], found, "next", "rank of the true next token")
    _beside(panels[3, 2], "rank")
    return figure


def _panels(n_lines: int, n_columns: int) -> tuple[Figure, Any]:
    width, height = PANEL
    figure = Figure((width * n_columns + 1.2, height * n_lines), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(n_lines, n_columns, squeeze=False)


def _beside(ax: Axes, title: str) -> None:
    """The legend of a line of panels, right of the last one, if anything is drawn there."""
    if ax.get_legend_handles_labels()[0]:
        add_legend(ax, title=title, title_fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), alignment="left")


def _styles(record: dict[str, Any]) -> list[Any]:
    return [STYLES[n % len(STYLES)] for n in range(len(record["decoders"]))]


def _ramp(n: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["cividis"](x) for x in np.linspace(0, 0.9, max(n, 1))][:n]


def _depth(found: dict[str, Any]) -> list[float]:
    return depths(found["rows"], found["layers"])


def _curve(ax: Axes, found: dict[str, Any], group: dict[str, Any], value: str, **style: Any) -> None:
    """A line, and what of it is uncertain as a band."""
    pairs = [mean_and_error(group, value, r) for r in range(len(found["rows"]))]
    mean, error = np.array(pairs, float).T * ((1,), (BAND,))
    x = _depth(found)
    ax.fill_between(x, mean - error, mean + error, color=style["color"], alpha=0.2, linewidth=0)
    ax.plot(x, mean, linewidth=1.3, marker=".", markersize=4, **style)


def _quantiles(ax: Axes, found: dict[str, Any], value: str) -> None:
    """The middle of the tokens, half of them, and nine tenths of them."""
    low, lower, middle, upper, high = (
        np.array(found["groups"][0]["quantiles"][value][f"{q:g}"], float) for q in QUANTILES
    )
    x = _depth(found)
    ax.fill_between(x, low, high, color=OUTPUT, alpha=0.15, linewidth=0, label="nine tenths")
    ax.fill_between(x, lower, upper, color=OUTPUT, alpha=0.3, linewidth=0, label="half")
    ax.plot(x, middle, color=OUTPUT, linewidth=1.3, marker=".", markersize=4, label="median")
    _finish(ax, value, PANELS[value])


def _ranks(ax: Axes, found: dict[str, Any], whose: str, title: str) -> None:
    """The share of tokens at each rank, stacked."""
    counts = np.array(found["groups"][0]["ranks"][whose], float)
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    ends = [start for start, _ in SHADES[1:]] + [shares.shape[1]]
    parts = [shares[:, start:end].sum(1) for (start, _), end in zip(SHADES, ends, strict=True)]
    ax.stackplot(_depth(found), parts, labels=[name for _, name in SHADES], colors=_ramp(len(SHADES)), linewidth=0)
    ax.set_ylim(0, 1)
    _finish(ax, "", title)


def _calibration(ax: Axes, found: dict[str, Any]) -> None:
    """Accuracy over confidence, a line for each row, the first ones dark."""
    draw = drawable()
    calibration = found["groups"][0]["calibration"]
    rows = list(zip(calibration["confidence"], calibration["accuracy"], strict=True))
    ax.plot([0, 1], [0, 1], color=INK, linewidth=0.7, linestyle=(0, (1, 1.5)))
    for (confidence, accuracy), row, colour in zip(rows, found["rows"], _ramp(len(rows)), strict=True):
        ends = row in (found["rows"][0], found["rows"][-1])
        x, y = np.array(confidence, float), np.array(accuracy, float)
        there = ~np.isnan(x)
        ax.plot(
            x[there],
            y[there],
            color=colour,
            linewidth=1,
            marker=".",
            markersize=3,
            label=legend_label(draw(text_label(row))) if ends else None,
        )
    _finish(ax, "", "accuracy over confidence of the best token")
    ax.set_xlabel("confidence", fontsize=8, color=INK)
    add_legend(ax, loc="upper left")


def _finish(ax: Axes, value: str, title: str) -> None:
    plain(ax)
    ax.set_title(title, fontsize=8, color=INK, loc="left", pad=3, **PLAIN)
    ax.set_xlabel("blocks done", fontsize=8, color=INK)
    if value in NATS:
        scale_nats([ax], 1.0)
    elif value and value not in ("entropy", "js", CALIBRATION):
        ax.set_ylim(-0.03, 1.03)
    elif value:
        ax.set_ylim(bottom=0)

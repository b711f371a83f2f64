"""The curves of a study, model beside model: how far each row is from the output, and what it ranks high."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..study.experiments import Study
from .heatmap import LONGEST_LABEL
from .plots import (
    INK,
    INPUT,
    OUTPUT,
    PLAIN,
    Axes,
    Figure,
    FigureCanvasAgg,
    add_legend,
    depths,
    drawable,
    labels,
    plain,
    scale_nats,
)

WIDTH, HEIGHT = 2.9, 1.6  # inches of a panel
LONGEST = 34  # characters of a title


def study_figure(columns: Sequence[tuple[str, Study, str]]) -> Figure:
    """Five panels for each column: a title, a study, and the name of the reading drawn.

    Lines are medians over the positions of the passage, with the middle half of them as a band; ranks of the rare word
    are single numbers.
    """
    figure = Figure((WIDTH * len(columns) + 2.4, HEIGHT * 5 + 0.3), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(5, len(columns), squeeze=False, sharex="col", sharey="row")
    draw = drawable()
    for column, (name, study, reading) in zip(panels.T, columns, strict=True):
        title = draw(name)
        _divergences(column[0], study, reading)
        _ranks(column[1], study, reading)
        _shares(column[2], study, reading)
        word = labels(study.tables["passage", reading].tokenizer)(study.word, LONGEST_LABEL)
        _word(column[3], study, reading, study.word_ranks, f"{word} as the next token")
        if reading == "final":
            _others(column[3], study)
        _word(column[4], study, reading, study.word_as_input, f"{word} where it is the input")
        title = title if len(title) <= LONGEST else f"…{title[1 - LONGEST :]}"
        column[0].set_title(title, fontsize=9, loc="left", **PLAIN)
        column[4].set_xlabel("blocks done", fontsize=8, color=INK)
    scale_nats(panels[0])
    names = ("KL, nats", "rank", "share of positions", "rank", "rank")
    for row, name in zip(panels, names, strict=True):
        row[0].set_ylabel(name, fontsize=8, color=INK)
        for ax in row:
            plain(ax)
        add_legend(row[-1], row[0], loc="upper left", bbox_to_anchor=(1, 1))  # the first column has them all
    return figure


def _divergences(ax: Axes, study: Study, reading: str) -> None:
    for statistic, name, colour in (("kl_final", "output ‖ row", OUTPUT), ("kl_input", "input ‖ row", INPUT)):
        low, middle, high = study.quartiles("passage", reading, statistic)
        x = _depth(study, reading)
        ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        _line(ax, study, reading, middle, f"KL({name})", colour)
    if reading == "final":
        middle = study.quartiles("passage", "block:1", "kl_final")[1]
        _line(ax, study, "block:1", middle, "KL(output ‖ row), block:1", OUTPUT, linestyle=(0, (4, 2)))


def _ranks(ax: Axes, study: Study, reading: str) -> None:
    for statistic, name, colour in (("final_rank", "output's token", OUTPUT), ("input_rank", "input token", INPUT)):
        low, middle, high = study.quartiles("passage", reading, statistic)
        ax.fill_between(_depth(study, reading), low, high, color=colour, alpha=0.15, linewidth=0)
        _line(ax, study, reading, middle, name, colour)
    _from_rank_1(ax)


def _shares(ax: Axes, study: Study, reading: str) -> None:
    for share, name, colour in (
        ("agrees", "output's token first", OUTPUT),
        ("input_first", "input token first", INPUT),
    ):
        _line(ax, study, reading, study.share("passage", reading, share), name, colour)
    settled = study.share("passage", reading, "settled")
    _line(ax, study, reading, settled, "settled: first from here on", OUTPUT, linestyle=(0, (1, 1.5)))
    ax.set_ylim(-0.03, 1.03)


def _word(ax: Axes, study: Study, reading: str, ranks: Any, title: str) -> None:
    """The rank of the rare word, the first time and the last."""
    for prompt, style in (("repetition", "-"), ("extreme", (0, (4, 2)))):
        found = ranks(prompt, reading)
        _line(ax, study, reading, found[:, 0], f"{prompt}: first time", INPUT, linestyle=style)
        _line(ax, study, reading, found[:, -1], f"{prompt}: last time", OUTPUT, linestyle=style)
    _from_rank_1(ax)
    ax.set_title(title, fontsize=8, color=INK, loc="left", pad=3, **PLAIN)


def _others(ax: Axes, study: Study) -> None:
    """The other rare words, the last time, faintly."""
    for ranks in study.other_ranks("repetition").values():
        ax.plot(_depth(study, "final"), ranks[:, -1].numpy(), color=OUTPUT, linewidth=0.7, alpha=0.25)


def _from_rank_1(ax: Axes) -> None:
    """The best rank on top."""
    ax.set_yscale("log")
    ax.yaxis.set_inverted(True)
    ax.yaxis.set_major_formatter("{x:g}")


def _line(ax: Axes, study: Study, reading: str, values: Tensor, name: str, colour: str, **style: Any) -> None:
    """A line through all rows, with a dot where a block ends."""
    x = _depth(study, reading)
    dots = [r for r, depth in enumerate(x) if depth % 1 == 0]
    ax.plot(
        x, values.numpy(), color=colour, linewidth=1.3, marker=".", markevery=dots, markersize=4, label=name, **style
    )


def _depth(study: Study, reading: str) -> list[float]:
    table = study.tables["passage", reading]  # the rows are the same for every prompt
    return depths(table.labels, table.layers)

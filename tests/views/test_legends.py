"""Legends show any name as it is: matplotlib takes $ for TeX, and leaves out what begins with _."""

import pytest

pytest.importorskip("matplotlib", reason="matplotlib, of the extra plot, is not installed")

from minilens.views.plots import Figure, FigureCanvasAgg, add_legend, drawn, legend_label

NAMES = ["$x_{$", "$x_{", r"$\frac{1}{0}$", "_model", "__", "a_b", "plain"]


def test_any_name() -> None:
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    ax, beside = figure.subplots(1, 2)
    for name in NAMES:
        ax.plot([0, 1], [0, 1], label=legend_label(name))
    ax.plot([0, 1], [1, 0])  # without a name, and so not in the legend
    add_legend(ax)
    add_legend(beside, ax)
    for axes in (ax, beside):
        assert [text.get_text().strip() for text in axes.get_legend().get_texts()] == NAMES
    assert drawn(figure, ".svg", svg_text=True).count(b">$x_{$</text>") == 2

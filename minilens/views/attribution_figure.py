"""Attribution as a still picture: a heat map with a row for each layer, the last on top."""

from ..instruments.attribution import Attribution
from ..instruments.attributions import Attributions
from .attribution import legend, outside, panel, several
from .heatmap import LONGEST_LABEL
from .plots import Figure, labels
from .shaded_figure import shaded_figure


def attribution_figure(found: Attribution | Attributions, *, by: str = "head", title: str = "") -> Figure:
    """What each part of each layer adds to the logit: a matplotlib Figure unknown to pyplot.

    by: as in `attribution_view`. title: goes on top.
    """
    all_texts = several(found)
    label = labels(all_texts.texts[0].tokenizer)
    shown = panel(all_texts, by, lambda token: label(token, LONGEST_LABEL))
    lines = [*legend(all_texts), *outside(all_texts)[-1:]]
    return shaded_figure([shown], title=title, legend=lines, ends=["against", "0", "to it"])

"""Activation patching as a still picture: a heat map for each site, layers upwards, positions or heads to the right."""

from ..instruments.patching import Patching
from .heatmap import LONGEST_LABEL
from .patching import legend, panels
from .plots import Figure, labels
from .shaded_figure import shaded_figure


def patching_figure(patching: Patching, *, title: str = "") -> Figure:
    """What each cell recovers, a heat map for each site on one scale: a matplotlib Figure unknown to pyplot.

    By position the corrupt text stands below, and above it the clean one where it differs. title: goes on top.
    """
    label = labels(patching.tokenizer)
    shown = panels(patching, lambda token: label(token, LONGEST_LABEL) if token >= 0 else "")
    return shaded_figure(shown, title=title, legend=legend(patching), ends=["-1", "0", "1"])

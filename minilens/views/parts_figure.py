"""Parts as a still picture: a heat map for each kind of number, the last part on top."""

from collections.abc import Iterable

from ..instruments.parts import Parts
from .heatmap import LONGEST
from .parts import legend, panels
from .plots import Figure, labels
from .shaded_figure import shaded_figure


def parts_figure(found: Parts, *, show: str | Iterable[str] | None = None, title: str = "") -> Figure:
    """What each part writes: a matplotlib Figure unknown to pyplot. show: as in `parts_view`. title: goes on top."""
    label = labels(found.tokenizer)
    shown = panels(found, show, lambda token: label(token, LONGEST))
    return shaded_figure(shown, title=title, legend=legend(found), ends=["-", "0", "+"])

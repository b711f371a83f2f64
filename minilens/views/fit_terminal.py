"""A fitted lens in the terminal: row by row how well the maps are determined."""

from collections.abc import Mapping
from math import isfinite
from types import MappingProxyType

from rich.table import Table
from rich.text import Text

from ..learned.affine import LearnedLens
from ..learned.distributions import Estimates
from ..lens import label
from .corpus_terminal import nats

HEADS = {"bias_plain": "bias of the\nlogit lens", "bias": "bias of\nthis lens", "twins_kl": "twins:\nKL"}


def fit_table(lens: LearnedLens, figures: Mapping[str, Estimates] = MappingProxyType({})) -> Table:
    """Of each row what is known of its map.

    R²: the share of the variance of the output's stream that the map tells, on text left out. ridge: that was chosen or
    given. twins: the cosine of the maps of two halves of the text, of A - I and of b. The last column is the Frobenius
    norm of A - I. A Jacobian lens has the last two alone, and no b. figures: those of `measure`, which follow.
    """
    made, n = lens.made, len(lens.maps)
    columns = {"row": [label(site) for site in lens.maps]}
    if "left_out" in made:
        columns["R² on text\nleft out"] = [f"{value:.3f}" for value in made["left_out"]["r_squared"]]
        columns["ridge"] = ["-" if ridge is None else f"{ridge:g}" for ridge in made["ridge"]]
    twins = [pair if isinstance(pair, list) else [pair] for pair in made["twins"] or [[]] * n]
    for at, what in enumerate(("A - I", "b")[: len(twins[0])]):
        columns[f"twins:\n{what}"] = [f"{pair[at]:.2f}" for pair in twins]
    columns["|A - I|"] = [f"{value:.3g}" for value in made["departure"]]
    for name, head in HEADS.items():
        if name in figures:
            value, error = (part.tolist() for part in figures[name])
            columns[head] = [nats(v, e if isfinite(e) else None) for v, e in zip(value, error, strict=True)]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for head in columns:
        table.add_column(head, justify="left" if head == "row" else "right", vertical="bottom", no_wrap=True)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*map(Text, cells))
    return table

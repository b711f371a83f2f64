"""What heads do, as grids in the terminal: layers upwards with the last on top, heads to the right."""

from math import isnan

import torch
from rich.color import Color
from rich.console import Group
from rich.style import Style
from rich.text import Text
from torch import Tensor

from ..instruments.composition import Composition
from ..instruments.heads import HeadScores, PerHead
from .colours import of_sign
from .grid import BOLD, DIM, Cell, Line, in_panels
from .tokens import printable

ATTENTION = {  # of HeadScores
    "induction": "attention to what followed the same token before",
    "previous": "attention to the token before",
    "duplicate": "attention to the same token before",
}
READS = {"query": "queries", "key": "keys", "value": "values"}  # of Composition


def heads_view(
    scores: HeadScores, copying: PerHead, composition: Composition, *, title: str = "", width: int = 80, k: int = 5
) -> Group:
    """A grid for each score of every head, and how much it reads of the earlier head that it reads most.

    k: how many pairs of heads are named for each kind of composition.
    """
    lines = [Text(printable(title), BOLD), Text()] if title else []
    for kind, what in ATTENTION.items():
        lines += _grid(f"{kind}: {what}, 0 to 1", getattr(scores, kind), width)
    lines += _grid("copying: eigenvalue score of OV, -1 to 1", copying, width, deepest=1.0)
    for kind, what in READS.items():
        times = getattr(composition, kind) / composition.random
        most = times.nan_to_num(nan=-torch.inf).flatten(0, 1).amax(0)
        asked = f"{kind} composition: what {what} read of one earlier head at most; 1 by chance"
        lines += _grid(asked, most.masked_fill(most.isinf(), torch.nan), width, decimals=1)
        pairs = (f"{first} to {second} {value:.1f}" for first, second, value in strongest(times, k))
        lines += [Text(f"strongest: {', '.join(pairs)}"), Text()] if composition.query.shape[0] > 1 else []
    lines.append(Text("blue: above 0; orange: below; deepest at the grid's highest, of copying at 1 or -1", DIM))
    return Group(*lines)


def strongest(composition: Tensor, k: int) -> list[tuple[str, str, float]]:
    """The k pairs of heads that compose most, the writing head first, such as ("4.3", "5.1", 0.3)."""
    known = composition.flatten().nan_to_num(nan=-torch.inf)
    order = known.argsort(descending=True, stable=True)[: min(k, int(known.isfinite().sum()))]
    places = zip(*(at.tolist() for at in torch.unravel_index(order, composition.shape)), strict=True)
    return [(f"{a}.{b}", f"{c}.{d}", float(composition[a, b, c, d])) for a, b, c, d in places]


def _grid(title: str, values: PerHead, width: int, *, deepest: float | None = None, decimals: int = 2) -> list[Text]:
    """One number for each head. Empty where there is none."""
    known = values.nan_to_num().abs()
    scale = float(known.max()) if deepest is None else deepest

    def cell(value: float) -> Cell:
        if isnan(value):
            return "", Style()
        shade = value / scale if scale else 0.0
        text = f"{round(value, decimals) + 0.0: .{decimals}f}"  # + 0.0 makes 0.00 of -0.00
        return text, Style(color="#000000", bgcolor=Color.from_rgb(*of_sign(shade)))

    heads = Line("head", [[(f" {head}", DIM)] for head in range(values.shape[1])])
    rows = [Line(f"{layer}", [[cell(value)] for value in row]) for layer, row in enumerate(values.tolist())]
    return [Text(title), *in_panels([heads, *rows[::-1]], 1, width)]

"""The lens in the terminal: rows are residuals with the output on top, columns are positions.

With colours where the terminal has them; in a pipe the same table as plain text.
"""

from jaxtyping import Float
from rich.cells import cell_len, set_cell_size
from rich.color import Color
from rich.console import Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text
from torch import Tensor

from ..lens import LensTable
from ..text import Tokenizer
from .tokens import token_label

WIDEST = 12  # terminal cells that a token may take before it is cut

# Anchors of cividis, a colour scale made to look alike with and without colour blindness (Nunez, Anderton and Renslow
# 2018, doi 10.1371/journal.pone.0199239).
CIVIDIS = ((0, 34, 78), (53, 69, 108), (102, 105, 112), (148, 142, 119), (200, 184, 102), (254, 232, 56))

STATISTICS = {
    "prob": "the row's best token, shaded by its probability, 0 to 1",
    "logit": "the logit of the row's best token, shaded from 5th to 95th percentile",
    "rank": "the rank of the model's output, shaded from 1000 (dark) to 1 (bright)",
    "kl": "KL(output || row) in nats, shaded from 10 (dark) to 0 (bright)",
    "entropy": "the row's entropy in nats, shaded from 10 (dark) to 0 (bright)",
}


def lens_view(table: LensTable, tokenizer: Tokenizer | None, *, show: str = "prob", width: int = 80) -> Group:
    """The table as panels of as many columns as fit the width; show: one of STATISTICS.

    The line below the grid is the input, the line above it the true next token, after a * where the model's own best
    token is that one. Cells whose best token is the model's own are bold.
    """
    texts, shades = _cells(table, tokenizer, show)
    above = [token_label(tokenizer, token) if token >= 0 else "" for token in table.next_tokens.tolist()]
    output = [token_label(tokenizer, token) for token in table.final_tokens.tolist()]
    below = [token_label(tokenizer, token) for token in table.tokens.tolist()]
    is_right = (table.next_tokens == table.final_tokens).tolist()
    agrees = (table.top.tokens[..., 0] == table.final_tokens).tolist()
    columns = [
        min(WIDEST, max(map(cell_len, (above[c], output[c], below[c], *(text for row in texts for text in row[c])))))
        for c in range(len(below))
    ]
    labels = max(cell_len(label) for label in (*table.labels, "position"))

    panels: list[RenderableType] = []
    for first, last in _panels(columns, width - labels):
        grid = Table(box=None, padding=0, pad_edge=False, show_header=False)
        span = range(first, last)
        grid.add_row(*_line("position", [str(p) for p in table.positions.tolist()], columns, span, "dim"))
        grid.add_row(*_line("next", above, columns, span, "italic", is_right))
        if show != "prob":
            grid.add_row(*_line("output", output, columns, span, "italic"))
        for row in reversed(range(len(table.labels))):
            for k in range(len(texts[row][0])):
                cells = [
                    Text(f" {_fit(texts[row][c][k], columns[c])}", _style(shades[row][c][k], agrees[row][c] and k == 0))
                    for c in span
                ]
                grid.add_row(Text(table.labels[row] if k == 0 else "", "dim"), *cells)
        grid.add_row(*_line("input", below, columns, span, "italic"))
        panels += [grid, Text()]
    return Group(*panels, Text(STATISTICS[show], "dim"))


def _cells(
    table: LensTable, tokenizer: Tokenizer | None, show: str
) -> tuple[list[list[list[str]]], list[list[list[float]]]]:
    """Texts and shades, 0 to 1, as [row][column][line]."""
    if show == "prob":
        texts = [
            [[token_label(tokenizer, token) for token in best] for best in row] for row in table.top.tokens.tolist()
        ]
        return texts, table.top.prob.tolist()
    value: Float[Tensor, "row pos"]
    if show == "logit":
        value = table.top.logit[..., 0]
        low, high = value.quantile(0.05), value.quantile(0.95)
        text, shade = "{:.1f}", (value - low) / (high - low).clamp(min=1e-9)
    elif show == "rank":
        value = table.final.rank
        text, shade = "{:d}", 1 - value.log10() / 3
    else:
        value = table.kl_final if show == "kl" else table.entropy
        text, shade = "{:.2f}", 1 - value / 10
    return (
        [[[text.format(number)] for number in row] for row in value.tolist()],
        shade.clamp(0, 1)[..., None].tolist(),
    )


def _panels(columns: list[int], width: int) -> list[tuple[int, int]]:
    """Cut the columns into runs that fit the width, each column with a space before it."""
    panels, first, used = [], 0, 0
    for c, column in enumerate(columns):
        if used + column + 1 > width and c > first:
            panels.append((first, c))
            first, used = c, 0
        used += column + 1
    return [*panels, (first, len(columns))]


def _line(
    label: str, texts: list[str], columns: list[int], span: range, style: str, starred: list[bool] | None = None
) -> list[Text]:
    stars = ["*" if starred and starred[c] else " " for c in span]
    return [Text(label, "dim"), *(Text(stars[c - span.start] + _fit(texts[c], columns[c]), style) for c in span)]


def _fit(text: str, width: int) -> str:
    """The text in exactly this many terminal cells, cut with an ellipsis where it is longer."""
    return set_cell_size(text, width) if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"


def _style(shade: float, bold: bool) -> Style:
    where = shade * (len(CIVIDIS) - 1)
    low = min(int(where), len(CIVIDIS) - 2)
    red, green, blue = (a + (b - a) * (where - low) for a, b in zip(CIVIDIS[low], CIVIDIS[low + 1], strict=True))
    ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else "white"
    return Style(color=ink, bgcolor=Color.from_rgb(red, green, blue), bold=bold)

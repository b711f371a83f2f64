"""Attention as a still picture: a heat map with a row for each query, the first on top."""

from jaxtyping import Int
from torch import Tensor

from ..checkpoint.tokenizer import Tokenizer
from ..traces import BlockTrace
from .attention import LEGEND, panel
from .heatmap import LONGEST
from .plots import Figure, labels
from .shaded_figure import shaded_figure


def attention_figure(
    tokens: Int[Tensor, "1 pos"],
    block: BlockTrace,
    *,
    head: int | None = None,
    queries: list[int] | None = None,
    tokenizer: Tokenizer | None = None,
    title: str = "",
) -> Figure:
    """The pattern of one head, or the strongest key of every head: a matplotlib Figure unknown to pyplot.

    The arguments are those of `attention_view`.
    """
    label = labels(tokenizer)
    shown = panel(tokens, block, head, queries, lambda token: label(token, LONGEST))
    return shaded_figure([shown], title=title, legend=[LEGEND], ends=["", "0", "1"])

"""Attention in the terminal, as one HTML file and as data; attention_figure.py draws it.

A row is a query, the first on top. Of one head the columns are its strongest keys, on the page and in the figure all
keys. Of all heads of a layer the columns are the heads, each with its strongest key.
"""

import html
from collections.abc import Callable
from functools import partial
from typing import Any

from jaxtyping import Float, Int
from rich.console import Group
from rich.text import Text
from torch import Tensor

from ..arguments import position_in, whole_number
from ..checkpoint.tokenizer import Tokenizer
from ..ops import upcast
from ..traces import BlockTrace
from . import shaded
from .grid import BOLD, DIM
from .records import token_record
from .shaded import Panel, Shaded, exact
from .tokens import printable, token_label

LEGEND = "Weight, position and token of a key; blue: the weight, deepest at 1"


def attention_view(
    tokens: Int[Tensor, "1 pos"],
    block: BlockTrace,
    *,
    head: int | None = None,
    queries: list[int] | None = None,
    k: int = 5,
    tokenizer: Tokenizer | None = None,
    title: str = "",
    width: int = 80,
) -> Group:
    """Where the queries of a block look, as a grid.

    head: whose k strongest keys to show. Without one: the strongest key of every head.
    queries: positions to show, by default all.

    Raises ValueError for a head or a position that does not exist.
    """
    label = partial(token_label, tokenizer)
    lines = [Text(printable(title), BOLD)] if title else []
    lines += shaded.in_terminal(strongest_keys(tokens, block, head, queries, k, label), width)
    return Group(*lines, Text(LEGEND, DIM))


def attention_page(
    tokens: Int[Tensor, "1 pos"],
    block: BlockTrace,
    *,
    head: int | None = None,
    queries: list[int] | None = None,
    tokenizer: Tokenizer | None = None,
    title: str = "",
) -> str:
    """The pattern of one head, or the strongest key of every head, as one HTML file. Write it as UTF-8.

    Nothing in it runs, and it has no address of anything else. The other arguments are those of `attention_view`.
    """
    label = partial(token_label, tokenizer)
    what = "all heads" if head is None else f"head {head}"
    return shaded.page(
        title or "Attention",
        [panel(tokens, block, head, queries, label)],
        text=f"<p>Block {block.layer}, {what}: how much each query, a row, attends to a key. {LEGEND}.</p>",
        facts={"Text": " ".join(html.escape(label(token)) for token in tokens[0].tolist())},
        away="",
        towards="to 1",
        more="More digits",
    )


def attention_record(
    tokens: Int[Tensor, "1 pos"],
    block: BlockTrace,
    *,
    head: int | None = None,
    queries: list[int] | None = None,
    tokenizer: Tokenizer | None = None,
) -> dict[str, Any]:
    """The same as data: for each head a list of queries, each a list of weights over the keys."""
    heads, places = _heads(block, head), _queries(block, queries)
    return {
        "schema": 1,
        "layer": block.layer,
        "heads": heads,
        "tokens": [token_record(tokenizer, token) for token in tokens[0].tolist()],
        "queries": places,
        "pattern": upcast(block.pattern[0])[heads][:, places].tolist(),
    }


def panel(
    tokens: Int[Tensor, "1 pos"],
    block: BlockTrace,
    head: int | None,
    queries: list[int] | None,
    label: Callable[[int], str],
) -> Panel:
    """The grid of the page and of the figure. label: how a token is shown."""
    if head is None:
        return strongest_keys(tokens, block, None, queries, 1, label)
    (only,), places = _heads(block, head), _queries(block, queries)
    weights = upcast(block.pattern[0, only])[places].tolist()
    texts = [label(token) for token in tokens[0].tolist()]
    rows = [
        (f"{place} {texts[place]}", [Shaded(f" {weight:.2f}"[: 5 if key <= place else 0], weight, exact(weight))
        for key, weight in enumerate(row)])
        for place, row in zip(places, weights, strict=True)
    ]  # fmt: skip
    return Panel(
        f"head {only}: how much each query attends to a key",
        "key",
        [str(key) for key in range(len(texts))],
        rows[::-1],
        None,
        ("key", texts),
    )


def strongest_keys(
    tokens: Int[Tensor, "1 pos"],
    block: BlockTrace,
    head: int | None,
    queries: list[int] | None,
    k: int,
    label: Callable[[int], str],
) -> Panel:
    """The grid of strongest keys: of one head k, of all heads one each."""
    heads, places = _heads(block, head), _queries(block, queries)
    texts = [label(token) for token in tokens[0].tolist()]
    pattern: Float[Tensor, "head query key"] = upcast(block.pattern[0])[heads][:, places]
    weights, keys = pattern.topk(min(1 if head is None else whole_number("k", k), len(texts)))

    def cell(weight: float, key: int, query: int) -> Shaded:
        if key > query or weight == 0:
            return Shaded("", 0.0, "")
        text = f"{weight:.2f}".removeprefix("0")
        return Shaded(f" {text} {key} {texts[key]}", weight, f"{key} {texts[key]} {exact(weight)}")

    lists = zip(
        places, weights.transpose(0, 1).flatten(1).tolist(), keys.transpose(0, 1).flatten(1).tolist(), strict=True
    )
    rows = [
        (f"{place} {texts[place]}", [cell(weight, key, place) for weight, key in zip(*both, strict=True)])
        for place, *both in lists
    ]
    if head is None:
        return Panel("the strongest key of each head", "head", list(map(str, heads)), rows[::-1])
    return Panel(
        f"head {head}: its strongest keys", "key", [str(n) for n in range(1, 1 + weights.shape[-1])], rows[::-1]
    )


def _heads(block: BlockTrace, head: int | None) -> list[int]:
    n_heads = block.pattern.shape[1]
    if head is None:
        return list(range(n_heads))
    if whole_number("head", head) not in range(n_heads):
        raise ValueError(f"head {head} does not exist: the model's heads are 0 to {n_heads - 1}")
    return [head]


def _queries(block: BlockTrace, queries: list[int] | None) -> list[int]:
    n = block.pattern.shape[-2]
    return [position_in("the text has", each, n) for each in (range(n) if queries is None else queries)]

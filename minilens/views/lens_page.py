"""The lens as one HTML file, which opens from disk and asks no server for anything.

The numbers go into the file as JSON, and the scripts in the folder page/ draw them. In that JSON every array of a
statistic is flat, in the order [row, pos] or [row, pos, k]; tokens are ids, and one map gives their labels.

An attention pattern is base64: for each query in turn the keys up to itself, 16 bits each, low byte first. Such a
number is a weight times STEPS, or HIDDEN where the query does not see the key.
"""

from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from ..shapes import Tokens
from ..table import STATS, LensTable
from ..traces import BlockTrace
from ..vocab import TokenStats, Top
from .colours import CIVIDIS
from .lens_panels import ENDS, of_one_text
from .one_file import one_file
from .tokens import printable, token_label

STEPS = 65_000  # an odd number of them to a thousandth, so that a weight rounds to the same three decimals as its steps
HIDDEN = 65_535
LARGE = 24  # CSS pixels of the grid's text, for a projector
LARGEST = 15_000_000  # bytes of a page with attention patterns


def lens_page(
    tables: Sequence[LensTable] | LensTable,
    *,
    title: str = "",
    tokens: Tokens | None = None,
    patterns: Iterable[BlockTrace] | None = None,
    large: bool = False,
) -> str:
    """The text of one HTML file that shows a table, or several as tabs, such as several decoders of one prompt.

    patterns: the blocks whose attention patterns to show, and with them tokens, the whole text of shape [1, pos] that
    they read: a table may show some of its positions only. One block is asked for at a time and none is kept, so that
    `patterns=run(model, model.embed(tokens))` is all layers, and `patterns=[trace(model, tokens).blocks[3]]` is one.
    In the file a head takes 4/3 n (n + 1) bytes for a text of n tokens: 88 kB for 256, 334 kB for 500.
    large: the page opens with text for a projector.

    It has no address of anything else in it. Numbers are rounded to four significant digits, log-probabilities to at
    least four decimals as well; weights of attention are within 1 / 130,000, and rounded to three decimals they are
    right. Write the text as UTF-8. Raises ValueError where there is no table, or one without any statistic, for tables
    of different texts, outputs or positions, for patterns that are not of the tables' text, and where they make the
    page larger than 15 MB.
    """
    tables = of_one_text(tables)
    if not all(table.stats for table in tables):
        raise ValueError("lens_page has nothing to show of a table without any statistic")
    attention = attention_record(tables, tokens, patterns)
    named = set(attention["tokens"] if attention else ()).union(*map(_tokens, tables))
    record = {
        "title": printable(title),
        "scale": CIVIDIS,
        "ends": ENDS,
        "size": LARGE if large else None,
        "tokens": {token: token_label(tables[0].tokenizer, token) for token in sorted(named)},
        "tables": [table_record(table) for table in tables],
        "attention": attention,
    }
    page = one_file(record)
    if attention and len(page) > LARGEST:  # the page is ASCII
        sizes = [sum(map(len, heads)) for heads in attention["heads"]]
        room = max(0, LARGEST - (len(page) - sum(sizes))) // max(sizes)
        raise ValueError(
            f"the page would be larger than {LARGEST / 1e6:.0f} MB: the attention patterns of one layer take "
            f"{max(sizes) / 1e6:.1f} MB of it, and it has room for {room} such layers; choose fewer, or a shorter text"
        )
    return page


def table_record(table: LensTable) -> dict[str, Any]:
    """All that the table holds; top, the standings and the other statistics only where they are there."""
    stats = sorted(table.stats.items(), key=lambda item: (*STATS, item[0]).index(item[0]))  # a set has made their order
    standings = {name: _standing(value) for name, value in stats if isinstance(value, TokenStats) and name != "tracked"}
    return {
        "lens": printable(table.lens),
        "decoder": table.decoder,
        "norm": table.norm,
        "centre": table.centre,
        "labels": table.labels,
        "positions": table.positions.tolist(),
        "input_tokens": table.tokens.tolist(),
        "final_tokens": table.final_tokens.tolist(),
        "next_tokens": table.next_tokens.tolist(),
        "tracked_tokens": table.track,
        "top": _top(table.top) if "top" in table.stats else None,
        "standings": standings,
        "tracked": _tracked(table.tracked) if "tracked" in table.stats else [],
        "values": {name: _flat(value, _short) for name, value in stats if isinstance(value, Tensor)},
    }


def _top(top: Top) -> dict[str, Any]:
    return {
        "k": top.tokens.shape[-1],
        "tokens": top.tokens.flatten().tolist(),
        "logit": _flat(top.logit, _short),
        "logprob": _flat(top.logprob, _exact),
    }


def _standing(standing: TokenStats) -> dict[str, Any]:
    return {
        "logit": _flat(standing.logit, _short),
        "logprob": _flat(standing.logprob, _exact),
        "rank": [rank or None for rank in standing.rank.flatten().tolist()],  # rank 0: there is no such token
    }


def _tracked(tracked: TokenStats) -> list[dict[str, Any]]:
    """A standing for each tracked token."""
    return [_standing(TokenStats(*(part[..., t] for part in tracked))) for t in range(tracked.rank.shape[-1])]


def attention_record(
    tables: Sequence[LensTable], tokens: Tokens | None, blocks: Iterable[BlockTrace] | None
) -> dict[str, Any] | None:
    """The patterns of these blocks; no more of them than are known to be too many for a page."""
    if blocks is None:
        return None
    if tokens is None:
        raise ValueError("patterns need the tokens of the whole text, of shape [1, pos]: give them to lens_page, too")
    text, n = tokens.flatten().cpu(), tokens.shape[-1]
    for table in tables:
        if tokens.shape != (1, n) or table.positions.max() >= n or (text[table.positions] != table.tokens).any():
            raise ValueError(
                "the tokens given with the patterns are not the text of the table: give those that logit_lens got"
            )
    found: dict[int, list[str]] = {}
    size = 0
    for block in blocks:
        if block.layer in found:
            raise ValueError(f"layer {block.layer} is twice among the patterns")
        found[block.layer] = [b64encode(head).decode() for head in _heads(block, n)]
        size += sum(map(len, found[block.layer]))
        del block
        if size > LARGEST:
            break
    if not found:
        raise ValueError("patterns holds no block: give at least one, or leave it out")
    return {
        "tokens": text.tolist(),
        "layers": [*found],
        "heads": [*found.values()],
        "steps": STEPS,
        "hidden": HIDDEN,
    }


def _heads(block: BlockTrace, n: int) -> list[bytes]:
    """The pattern of each head on a text of n tokens, as the file has it."""
    if block.pattern.shape[::2] != (1, n):
        raise ValueError(
            f"the pattern of layer {block.layer} is not of one text of {n} tokens: it has the shape "
            f"{list(block.pattern.shape)}"
        )
    pattern = block.pattern[0].detach().cpu().double()
    hidden = (block.scores[0] == -torch.inf).cpu() & (pattern == 0)  # a weight may be 0 where the key is seen, too
    steps = (pattern * STEPS).round()
    if not ((steps >= 0) & (steps <= STEPS)).all() or steps.triu(1).any():  # an edit can do that
        raise ValueError(
            f"the pattern of layer {block.layer} cannot be shown: its weights must be between 0 and 1, and 0 for keys "
            "after the query"
        )
    query, key = torch.tril_indices(n, n)
    lower = steps.masked_fill(hidden, HIDDEN)[:, query, key].numpy().astype("<u2")
    return [head.tobytes() for head in lower]


def _tokens(table: LensTable) -> set[int]:
    """Every token that the page of this table can name."""
    columns = [table.tokens, table.final_tokens, table.next_tokens]
    if "top" in table.stats:
        columns.append(table.top.tokens.flatten())
    return {token for column in columns for token in column.tolist() if token >= 0}.union(table.track)


def _flat(values: Tensor, rounded: Callable[[float], float]) -> list[float | None]:
    """The values in order; null, for JSON has nothing else, for what is no finite number."""
    return [rounded(value) if isfinite(value) else None for value in values.flatten().tolist()]


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _exact(logprob: float) -> float:
    """Four decimals as well, since the page shows exp(logprob) with three digits."""
    return float(f"{logprob:.4f}") if abs(logprob) >= 1 else _short(logprob)

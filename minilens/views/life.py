"""The life of a model: as a record for JSON, as lines of CSV, and as lines over the steps for a terminal."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor

from ..arguments import names
from ..corpus.tally import NUMBERS, VALUES
from ..instruments.heads import HeadScores
from ..study.life import Curve, Life
from .corpus_terminal import nats
from .grid import BOLD, DIM
from .tokens import as_unicode, printable

SCHEMA = 1  # of the record, described in docs/life.md
STATS = ("kl_final", "input_first")  # shown if nothing is asked for
TITLES = {
    "kl_final": "KL(output ‖ row), nats",
    "kl_input": "KL(input ‖ row), nats",
    "entropy": "entropy, nats",
    "cross_entropy": "cross-entropy of the next token, nats",
    "js": "Jensen-Shannon, output and row, nats",
    "agrees": "output's token first: share of tokens",
    "next_first": "true next token first: share of tokens",
    "input_first": "input token first: share of tokens",
    "settled": "settled: output's first from here on: share of tokens",
}
HEADS = "best head: share of attention"
KINDS = {"previous": "to the token before", "duplicate": "to the same token before", "induction": "to what followed it"}
BLOCK_0 = {"embedding": "length of the embedding", "write": "length of block 0's write", "ratio": "write : embedding"}
BARS = "▁▂▃▄▅▆▇█"
SIGNS = {"shown": "●", "not shown": "○", "not measurable": " "}
WIDEST = 40  # checkpoints of a line; of more than these some are left out


def life_record(life: Life) -> dict[str, Any]:
    """Everything as plain values: of each checkpoint its step, and what its file has; None where there is no number."""
    from ..version import __version__

    of_all = {"schema": SCHEMA, "minilens": __version__, "torch": torch.__version__}
    checkpoints = [{"step": step, **record} for step, record in zip(life.steps, life.records, strict=True)]
    named = [
        {**each, "model": as_unicode(each["model"]), "revision": each["revision"] and as_unicode(each["revision"])}
        for each in checkpoints
    ]
    return {**of_all, "checkpoints": named}


def life_lines(life: Life) -> Iterator[list[Any]]:
    """A heading, then a line for each checkpoint and number.

    of: a row of the lens, a head such as "2.0", nothing of block 0, and what a check of a finding measures.
    """
    yield ["step", "checkpoint", "part", "name", "of", "value", "standard_error"]
    heads = torch.cartesian_prod(*map(torch.arange, life.heads("previous").mean.shape[1:])).tolist()
    for n, (checkpoint, record) in enumerate(zip(life.checkpoints, life.records, strict=True)):
        start = [checkpoint.step, printable(checkpoint.name)]
        for value in VALUES:
            yield from ([*start, "lens", value, row, *pair] for row, *pair in _pairs(life.rows, life.lens(value), n))
        for kind in HeadScores._fields:
            places = [f"{layer}.{head}" for layer, head in heads]
            yield from ([*start, "heads", kind, *pair] for pair in _pairs(places, life.heads(kind), n))
        for what in BLOCK_0:
            yield from ([*start, "block_0", what, *pair] for pair in _pairs([None], life.block_0(what), n))
        for finding in record["findings"]:
            yield [*start, "finding", finding["statement"], None, finding["verdict"], None]
            for check in finding["checks"]:
                yield [*start, "check", finding["statement"], check["what"], check["value"], None]


def _pairs(places: Sequence[Any], curve: Curve, n: int) -> Iterator[list[Any]]:
    """Each place with its number and error at a checkpoint."""
    for place, *pair in zip(places, *(part[n].flatten().tolist() for part in curve), strict=True):
        yield [place, *(None if value != value else value for value in pair)]


def life_view(life: Life, *, stats: str | Sequence[str] = STATS, title: str = "") -> Group:
    """A line over the checkpoints for each number, with the first and the last value and their standard errors.

    stats: statistics of the lens, each with a line for each row. A line goes from 0 to its highest value.
    Raises ValueError for a statistic that a corpus does not have.
    """
    chosen = torch.linspace(0, len(life.steps) - 1, min(WIDEST, len(life.steps))).round().long().tolist()
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False)
    for justify in ("left", "left", "right", "right"):
        table.add_column(justify=justify, no_wrap=True)

    def add(heading: str, lines: dict[str, Curve], is_share: bool) -> None:
        table.add_row(Text(heading, BOLD))
        for name, curve in lines.items():
            ends = (_shown(curve, n, is_share) for n in (0, -1))
            table.add_row(f"  {name}", _bars(curve.mean[chosen]), *ends)

    for stat in names("stats", stats):
        mean, error = life.lens(stat)
        rows = {row.replace("resid_", ""): Curve(mean[:, r], error[:, r]) for r, row in enumerate(life.rows)}
        add(TITLES[stat], rows, stat not in NUMBERS)
    add(HEADS, {what: life.best_head(kind) for kind, what in KINDS.items()}, True)
    for what, heading in BLOCK_0.items():
        add(heading, {"mean": life.block_0(what)}, False)
    if found := life.verdicts():
        table.add_row(Text("findings: ● shown, ○ not shown", BOLD))
        for statement, verdicts in found.items():
            table.add_row(f"  {statement}", "".join(SIGNS[verdicts[n]] for n in chosen))
    first, last = life.steps[0], life.steps[-1]
    text = f"{len(life.steps)} checkpoints, from step {first} to step {last}"
    head = Text(f"{printable(title)}: {text}" if title else text)
    return Group(head, table, Text("first and last value, each ± a standard error", DIM))


def _shown(curve: Curve, n: int, is_share: bool) -> str:
    mean, error = (None if value != value else value for value in (part[n].item() for part in curve))
    if is_share and mean is not None:
        return f"{mean:.3f}" if not error else f"{mean:.3f} ±{error:.3f}"
    return nats(mean, error)


def _bars(values: Tensor) -> str:
    """A bar for each number, from 0 to the highest; nothing where there is none."""
    steps = (values / (values.nan_to_num().max() or 1) * len(BARS)).clamp(0, len(BARS) - 1)
    return "".join(" " if step != step else BARS[int(step)] for step in steps.tolist())

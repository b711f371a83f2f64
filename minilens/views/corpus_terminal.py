"""A corpus sweep in the terminal: a table for each decoder, and a summary."""

from collections.abc import Iterator, Sequence
from math import ceil, log10
from typing import Any

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ..corpus.tally import NUMBERS
from .corpus_record import called, mean_and_error
from .tokens import text_label

COLUMNS = {  # of the terminal: numbers with their errors, then shares
    "kl_final": "KL from\noutput",
    "kl_input": "KL from\ninput",
    "entropy": "entropy",
    "cross_entropy": "cross\nentropy",
    "agrees": "output\nfirst",
    "next_first": "next\nfirst",
    "input_first": "input\nfirst",
    "settled": "settled",
}


def corpus_tables(record: dict[str, Any]) -> Iterator[RenderableType]:
    """For each decoder what its rows say of all tokens: nats with their standard errors, and shares in percent."""
    for decoder, found in record["decoders"].items():
        title = Text(text_label(f"{record['model']}, {called(decoder, found)}: means in nats, and shares in %"))
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("row", no_wrap=True, vertical="bottom")
        for head in [*COLUMNS.values(), *([f"KL above\n{found['beside']}"] if "beside" in found else [])]:
            table.add_column(head, justify="right", vertical="bottom", no_wrap=True, overflow="fold")
        whole = found["groups"][0]
        for r, row in enumerate(found["rows"]):
            cells = []
            for value in COLUMNS:
                mean, error = mean_and_error(whole, value, r)
                cells.append(
                    nats(mean, error).replace(" ±0", "±")
                    if value in NUMBERS
                    else "-"
                    if mean is None
                    else f"{100 * mean:.1f}"
                )
            if "beside" in found:
                cells.append(nats(*mean_and_error(whole["above"], "kl_final", r)).replace(" ±0", "±"))
            table.add_row(Text(text_label(row.replace("resid_", ""))), *cells)
        yield Lines(title, table)


def names(records: Sequence[dict[str, Any]]) -> list[str]:
    """What to call each of several models, with nothing hidden in it; those of one name are numbered."""
    labels = [text_label(record["model"]) for record in records]
    twice = {label for label in labels if labels.count(label) > 1}
    return [f"{label} ({labels[:n].count(label) + 1})" if label in twice else label for n, label in enumerate(labels)]


def corpus_summary(record: dict[str, Any]) -> str:
    """How much was read, in one sentence."""
    documents, none, tokens = record["documents"], record["empty_documents"], record["tokens"]
    empty = f" ({none:,} of them empty)" if none else ""
    after = f", each after {text_label(record['prefix'])}" if record["prefix"] else ""
    some = f"{documents:,} {'document' if documents == 1 else 'documents'}{empty}"
    alone = "" if documents - none > 1 else "; no standard errors, which need two documents with tokens"
    read = f"{tokens:,} {'token' if tokens == 1 else 'tokens'} of {some}"
    return f"{read}, read in windows of up to {record['window']} tokens{after}{alone}"


def nats(mean: float | None, error: float | None) -> str:
    """A mean to the first digit of its standard error, but to three decimals at most."""
    if mean is None:
        return "-"
    if error is None:
        return f"{mean:.3f}"
    if error == 0:
        return f"{mean:.3g}"
    decimals = min(3, max(1, ceil(-log10(error))))
    return f"{mean:.{decimals}f} ±{error:.{decimals}f}"

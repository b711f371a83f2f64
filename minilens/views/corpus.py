"""What the lens says of a corpus: as a record for JSON, as lines of CSV, and as tables for a terminal."""

from collections.abc import Iterator
from math import ceil, isnan, log10
from typing import Any

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

from ..sweep import Findings
from ..tally import NUMBERS, RANKS, VALUES, Group, Tally
from .tokens import as_unicode, text_label

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
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


def corpus_record(name: str, findings: Findings) -> dict[str, Any]:
    """Everything as plain values, a list over the rows for each statistic; None where there is no number.

    name: what to call the model. Nothing in the record depends on how the work was shared, or on the files' order.
    """
    lens, counted = findings.lens, findings.counted
    n_ranks = lens.model.W_U.shape[1].bit_length()
    return {
        "model": as_unicode(name),
        "family": lens.model.family,
        "n_layers": lens.model.n_layers,
        "files": sorted([as_unicode(file.path.name), file.digest] for file in findings.files),
        "documents": counted.documents,
        "empty_documents": counted.empty,
        "tokens": int(counted.tokens.sum()),
        "window": lens.window,
        "prefix": lens.plan.prefix,
        "norm": lens.plan.norm,
        "sites": list(lens.plan.sites),
        "decoders": {
            decoder: {
                "rows": list(found.labels),
                "layers": list(found.layers),
                "groups": [_group(group, found.tally, g, n_ranks) for g, group in enumerate(findings.groups)],
            }
            for decoder, found in findings.decoders.items()
        },
    }


def _group(group: Group, tally: Tally, g: int, n_ranks: int) -> dict[str, Any]:
    confident = tally.confident[g]
    return {
        "split": group.split,
        "group": group.name,
        "tokens": int(tally.tokens[g, 0]),
        "documents": int(tally.documents[g, 0]),
        "mean": {value: _plain(tally.mean(value)[g]) for value in VALUES},
        "standard_error": {value: _plain(tally.standard_error(value)[g]) for value in VALUES},
        "quantiles": {
            number: {f"{q:g}": _plain(tally.quantile(number, q)[g]) for q in QUANTILES} for number in NUMBERS
        },
        "settled": tally.settled()[g].tolist(),
        "ranks": {whose: tally.ranks[g, :, n, :n_ranks].tolist() for n, whose in enumerate(RANKS)},
        "calibration": {
            "error": _plain(tally.calibration_error()[g]),
            "tokens": confident.tolist(),
            "confidence": _plain(tally.confidence[g] / confident),
            "accuracy": _plain(tally.correct[g] / confident),
        },
    }


def _plain(values: Tensor) -> Any:
    """Lists of numbers, with None for what is not one."""

    def plain(value: Any) -> Any:
        return list(map(plain, value)) if isinstance(value, list) else None if isnan(value) else value

    return plain(values.tolist())


def corpus_lines(record: dict[str, Any]) -> Iterator[list[Any]]:
    """A heading, then one line for each decoder, group, row and statistic."""
    yield ["model", "decoder", "split", "group", "tokens", "documents", "row", "layer", "statistic", "mean",
           "standard_error", *(f"quantile_{q:g}" for q in QUANTILES)]  # fmt: skip
    name = text_label(record["model"])
    for decoder, found in record["decoders"].items():
        for group in found["groups"]:
            start = [name, decoder, *(group[key] for key in ("split", "group", "tokens", "documents"))]
            for r, (row, layer) in enumerate(zip(found["rows"], found["layers"], strict=True)):
                for value in VALUES:
                    quantiles = group["quantiles"].get(value, {})
                    numbers = [group[key][value][r] for key in ("mean", "standard_error")]
                    numbers += [quantiles[f"{q:g}"][r] if quantiles else None for q in QUANTILES]
                    yield [*start, row, layer, value, *numbers]
                error = group["calibration"]["error"][r]
                yield [*start, row, layer, "calibration_error", error, None, *(None for _ in QUANTILES)]


def corpus_tables(record: dict[str, Any]) -> Iterator[RenderableType]:
    """For each decoder what its rows say of all tokens: nats with their standard errors, and shares in percent."""
    for decoder, found in record["decoders"].items():
        title = Text(text_label(f"{record['model']}, decoder {decoder}: nats with standard errors, and shares in %"))
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("row", no_wrap=True, vertical="bottom")
        for head in COLUMNS.values():
            table.add_column(head, justify="right", vertical="bottom", no_wrap=True, overflow="fold")
        whole = found["groups"][0]
        for r, row in enumerate(found["rows"]):
            cells = []
            for value in COLUMNS:
                mean, error = (whole[key][value][r] for key in ("mean", "standard_error"))
                cells.append(
                    nats(mean, error).replace(" ±0", "±")
                    if value in NUMBERS
                    else "-"
                    if mean is None
                    else f"{100 * mean:.1f}"
                )
            table.add_row(row.replace("resid_", ""), *cells)
        yield Lines(title, table)


def corpus_summary(record: dict[str, Any]) -> str:
    """How much was read, in one sentence."""
    documents, none = record["documents"], record["empty_documents"]
    empty = f" ({none:,} of them empty)" if none else ""
    after = f", each after {text_label(record['prefix'])}" if record["prefix"] else ""
    return (
        f"{record['tokens']:,} tokens of {documents:,} documents{empty}, read in windows of up to {record['window']} "
        f"tokens{after}; errors are those of a mean over documents"
    )


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

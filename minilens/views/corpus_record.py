"""What the lens says of a corpus: as a record for JSON, as lines of CSV, and as tables for a terminal."""

from collections.abc import Iterator
from math import isnan
from typing import Any

import torch
from torch import Tensor

from ..corpus.measure import Findings
from ..corpus.tally import NUMBERS, OF_NEXT, RANKS, VALUES, Group, Means, Tally
from .tokens import as_unicode, text_label

SCHEMA = 1  # of the record, described in README.md
CALIBRATION = "calibration_error"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def corpus_record(name: str, findings: Findings) -> dict[str, Any]:
    """Everything as plain values, a list over the rows for each statistic; None where there is no number.

    name: what to call the model. Nothing in the record depends on how the work was shared, or on the files' order.
    """
    from ..version import __version__

    lens, counted = findings.lens, findings.counted
    n_ranks = lens.model.W_U.shape[1].bit_length()
    return {
        "schema": SCHEMA,
        "minilens": __version__,
        "torch": torch.__version__,
        "model": as_unicode(name),
        "family": lens.model.family,
        "n_layers": lens.model.n_layers,
        "files": sorted([as_unicode(file.name), file.digest] for file in findings.files),
        "documents": counted.documents,
        "empty_documents": counted.empty,
        "tokens": int(counted.tokens.sum()),
        "window": lens.window,
        "prefix": lens.plan.prefix,
        "norm": lens.plan.norm,
        "precision": lens.plan.precision,
        "sites": list(lens.plan.sites),
        "decoders": {
            as_unicode(decoder): {
                **({"beside": found.base} if found.base else {}),
                "rows": list(found.labels),
                "layers": list(found.layers),
                "groups": [
                    {
                        **_group(group, found.tally, g, n_ranks),
                        **({"above": _means(found.above, g)} if found.above else {}),
                    }
                    for g, group in enumerate(findings.groups)
                ],
            }
            for decoder, found in findings.decoders.items()
        },
    }


def _group(group: Group, tally: Tally, g: int, n_ranks: int) -> dict[str, Any]:
    confident = tally.confident[g]
    return {
        "split": group.split,
        "group": group.name,
        **_size(tally, g, VALUES[0]),
        "with_next": _size(tally, g, "cross_entropy"),
        **_means(tally, g),
        "quantiles": {
            number: {f"{q:g}": _plain(tally.quantile(number, q)[g]) for q in QUANTILES} for number in NUMBERS
        },
        "settling": tally.settled()[g].tolist(),
        "ranks": {whose: tally.ranks[g, :, n, :n_ranks].tolist() for n, whose in enumerate(RANKS)},
        "calibration": {
            "error": _plain(tally.calibration_error()[g]),
            "tokens": confident.tolist(),
            "confidence": _plain(tally.confidence[g] / confident),
            "accuracy": _plain(tally.correct[g] / confident),
        },
    }


def _means(means: Means, g: int) -> dict[str, Any]:
    return {
        "mean": {value: _plain(means.mean(value)[g]) for value in VALUES},
        "standard_error": {value: _plain(means.standard_error(value)[g]) for value in VALUES},
    }


def _size(tally: Tally, g: int, value: str) -> dict[str, int]:
    v = VALUES.index(value)
    return {"tokens": int(tally.tokens[g, v]), "documents": int(tally.documents[g, v])}


def _plain(values: Tensor) -> Any:
    """Lists of numbers, with None for what is not one."""

    def plain(value: Any) -> Any:
        return list(map(plain, value)) if isinstance(value, list) else None if isnan(value) else value

    return plain(values.tolist())


def corpus_lines(record: dict[str, Any]) -> Iterator[list[Any]]:
    """A heading, then one line for each decoder, group, row and statistic, with how many tokens it is a mean of."""
    yield ["model", "decoder", "split", "group", "tokens", "documents", "row", "layer", "statistic", "mean",
           "standard_error", *(f"quantile_{q:g}" for q in QUANTILES)]  # fmt: skip
    name = text_label(record["model"])
    for decoder, found in record["decoders"].items():
        for group in found["groups"]:
            for r, (row, layer) in enumerate(zip(found["rows"], found["layers"], strict=True)):
                for value, of_next in [*zip(VALUES, OF_NEXT, strict=True), (CALIBRATION, True)]:
                    of = group["with_next"] if of_next else group
                    start = [name, decoder, group["split"], group["group"], of["tokens"], of["documents"]]
                    of_each = group["quantiles"].get(value, {})
                    quantiles = [of_each[f"{q:g}"][r] if of_each else None for q in QUANTILES]
                    yield [*start, row, layer, value, *mean_and_error(group, value, r), *quantiles]
                    if "above" in group and value in VALUES:
                        above = mean_and_error(group["above"], value, r)
                        yield [*start, row, layer, f"{value}_above_{found['beside']}", *above, *[None] * len(quantiles)]


def called(decoder: str, found: dict[str, Any]) -> str:
    """What a part of the record is of: a decoder, or a learned lens beside one."""
    return f"lens {decoder}" if "beside" in found else f"decoder {decoder}"


def mean_and_error(group: dict[str, Any], value: str, r: int) -> tuple[float | None, float | None]:
    """Of one of VALUES at row r, or of CALIBRATION, which has no error; None where there is no number."""
    if value == CALIBRATION:
        return group["calibration"]["error"][r], None
    return group["mean"][value][r], group["standard_error"][value][r]

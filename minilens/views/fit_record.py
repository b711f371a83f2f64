"""The maps of a fitted lens in numbers: as JSON, and as lines of CSV."""

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

from ..corpus.measure import Findings
from ..learned.affine import LearnedLens
from ..learned.distributions import Estimates
from ..lens import label

SCHEMA = 1


def fit_record(lens: LearnedLens, figures: Mapping[str, Estimates], transfer: Findings | None) -> dict[str, Any]:
    """What is known of each row's map.

    figures: those of `measure`, each with its standard error. transfer: what each row's map gives at every row, from a
    sweep with the lenses of `transfers`: the mean KL(output ‖ row) in nats.
    """
    made, rows = lens.made, []
    for n, site in enumerate(lens.maps):
        row: dict[str, Any] = {"row": label(site), "departure": made["departure"][n]}
        if "left_out" in made:
            row |= {"r_squared": made["left_out"]["r_squared"][n], "ridge": made["ridge"][n]}
        if made["twins"]:
            pair = made["twins"][n]
            row["twins"] = dict(zip(("A", "b"), pair if isinstance(pair, list) else [pair], strict=False))
        for name, (value, error) in figures.items():
            row[name], row[f"{name}_error"] = _number(value[n].item()), _number(error[n].item())
        rows.append(row)
    record: dict[str, Any] = {"schema": SCHEMA, "lens": lens.name, "kind": lens.kind, "rows": rows}
    if transfer:
        record["transfer"] = {
            name.removeprefix("map of "): {
                row: [_number(value), _number(error)]
                for row, value, error in zip(
                    found.labels,
                    found.tally.mean("kl_final")[0].tolist(),
                    found.tally.standard_error("kl_final")[0].tolist(),
                    strict=True,
                )
            }
            for name, found in transfer.decoders.items()
            if found.base
        }
    return record


def fit_lines(record: dict[str, Any]) -> Iterator[list[Any]]:
    """A heading, then a line for each number: of which row, which figure, its value and its error."""
    yield ["row", "figure", "value", "error"]
    for row in record["rows"]:
        for name, value in row.items():
            if name == "twins":
                yield from ([row["row"], f"twins_{part}", each, None] for part, each in value.items())
            elif name != "row" and not name.endswith("_error"):
                yield [row["row"], name, value, row.get(f"{name}_error")]
    for of, rows in record.get("transfer", {}).items():
        yield from ([row, f"kl_final_by_the_map_of_{of}", *pair] for row, pair in rows.items())


def _number(value: float) -> float | None:
    return value if isfinite(value) else None

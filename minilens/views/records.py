"""Results as plain data, for other programs: JSON (schema 1, described in docs/formats.md) and CSV."""

from collections.abc import Iterator
from functools import partial
from math import nan
from typing import Any

from torch import Tensor

from ..checkpoint.tokenizer import Tokenizer
from ..instruments.composition import Composition
from ..instruments.heads import HeadScores, PerHead
from ..instruments.patching import Patching
from ..table import LensTable
from ..vocab import TokenStats
from .tokens import as_unicode, token_label


def as_record(table: LensTable) -> dict[str, Any]:
    """The table as what JSON can hold: lists over positions, an object for each row, null for no number."""
    token = partial(token_record, table.tokenizer)

    def tokens(numbers: Tensor) -> list[dict[str, Any] | None]:
        return [token(number) if number >= 0 else None for number in numbers.tolist()]

    def top(r: int) -> list[list[dict[str, Any]]]:
        numbers = (part[r].tolist() for part in (table.top.tokens, table.top.prob, table.top.logprob, table.top.logit))
        return [
            [
                {**token(number), "prob": prob, "logprob": logprob, "logit": logit}
                for number, prob, logprob, logit in zip(*best, strict=True)
            ]
            for best in zip(*numbers, strict=True)
        ]

    def row(r: int) -> dict[str, Any]:
        record: dict[str, Any] = {"label": table.labels[r], "layer": table.layers[r]}
        if "top" in table.stats:
            record["top"] = top(r)
        for name, value in table.stats.items():
            if isinstance(value, TokenStats):
                for part in ("prob", "logprob", "logit"):
                    record[f"{name}_{part}"] = _numbers(getattr(value, part)[r])
                record[f"{name}_rank"] = _numbers(value.rank[r], missing=0.0)
            elif isinstance(value, Tensor):
                record[name] = _numbers(value[r])
        if "final" in table.stats:
            record["agrees"] = table.agrees[r].tolist()
        if "next" in table.stats:
            record["cross_entropy"] = _numbers(table.cross_entropy[r])
        return record

    return {
        "schema": 1,
        "lens": as_unicode(table.lens) or None,
        "decoder": table.decoder,
        "norm": table.norm,
        "centre": table.centre,
        "precision": table.precision,
        "positions": table.positions.tolist(),
        "tokens": tokens(table.tokens),
        "next_tokens": tokens(table.next_tokens),
        "final_tokens": tokens(table.final_tokens),
        "tracked_tokens": [token(number) for number in table.track],
        **({"settled": table.settled.tolist()} if "final" in table.stats else {}),
        "rows": [row(r) for r in range(len(table.labels))],
    }


def patching_record(patching: Patching) -> dict[str, Any]:
    """The same of a Patching: for each site lists of layers, each a list of positions or heads."""

    def token(number: int) -> dict[str, Any] | None:
        return token_record(patching.tokenizer, number) if number >= 0 else None  # where several texts differ

    return {
        "schema": 1,
        "by": patching.by,
        "clean": patching.clean,
        "corrupt": patching.corrupt,
        "clean_tokens": [token(number) for number in patching.clean_tokens.tolist()],
        "corrupt_tokens": [token(number) for number in patching.corrupt_tokens.tolist()],
        "metric": {site: _numbers(values) for site, values in patching.metric.items()},
        "recovered": {site: _numbers(patching.recovered(site)) for site in patching.metric},
        "can_change": {site: values.tolist() for site, values in patching.can_change.items()},
        **(
            {"standard_error": {site: _numbers(patching.standard_error(site)) for site in patching.metric}}
            if patching.texts
            else {}
        ),
    }


def heads_record(scores: HeadScores, copying: PerHead, composition: Composition) -> dict[str, Any]:
    """The same of heads: lists over layers and heads. Of composition the writing head comes first.

    null where it does not come before the reading one.
    """
    return {
        "schema": 1,
        **{kind: getattr(scores, kind).tolist() for kind in scores._fields},
        "copying": copying.tolist(),
        "composition": {kind: _numbers(getattr(composition, kind)) for kind in ("query", "key", "value")},
        "composition_random": composition.random,
    }


def token_record(tokenizer: Tokenizer | None, token: int) -> dict[str, Any]:
    """label: as the terminal shows it, nothing hidden; text: what it stands for, broken UTF-8 as U+FFFD."""
    try:
        text = tokenizer.decode([token]) if tokenizer else None
    except ValueError:  # as in token_label
        text = None
    return {"id": token, "label": token_label(tokenizer, token), "text": text}


def as_lines(table: LensTable) -> Iterator[list[Any]]:
    """The same as lines of CSV: a heading, then one line for each row and position. Tokens stand by their labels."""
    record = as_record(table)
    tracked = [token["id"] for token in record["tracked_tokens"]]

    def cells(row: dict[str, Any], column: int) -> dict[str, Any]:
        line = {"label": row["label"], "layer": row["layer"], "position": record["positions"][column]}
        for name in ("tokens", "next_tokens", "final_tokens"):
            token = record[name][column] or {"id": None, "label": None}
            line |= {f"{name[:-1]}_id": token["id"], name[:-1]: token["label"]}
        for name, values in row.items():
            if name == "top":
                for place, best in enumerate(values[column], 1):
                    line |= {f"top{place}_{part}": best[part] for part in ("id", "label", "prob", "logprob", "logit")}
            elif name.startswith("tracked_"):
                part = name.removeprefix("tracked_")
                line |= {f"token{token}_{part}": value for token, value in zip(tracked, values[column], strict=True)}
            elif isinstance(values, list):
                line[name] = values[column]
        return line

    lines = [cells(row, column) for row in record["rows"] for column in range(len(record["positions"]))]
    yield list(lines[0])
    yield from (list(line.values()) for line in lines)


def _numbers(values: Tensor, missing: float = nan) -> list[Any]:
    """The values as lists, with null for what is missing."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(each) for each in value]
        return None if value == missing or value != value else value

    return [plain(value) for value in values.tolist()]

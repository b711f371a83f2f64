"""A report on a checkpoint: for the terminal, and as what JSON can hold (schema 1, described in README.md)."""

from collections.abc import Iterator
from itertools import groupby
from math import isfinite
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..checks.config import Key
from ..checks.identities import Identity
from ..checks.tensors import Weight
from ..checks.verify import Report
from .tokens import as_unicode, printable, text_label

DIGITS = 16, 8  # of a SHA-256 that are shown of a file, and of a tensor; JSON has all 64
WRONG, QUIET, HEAD = "bold red", "dim", "bold"


def verify_view(report: Report) -> Group:
    """All parts of a report, and at the end what is wrong."""
    return Group(*_parts(report))


def verify_record(report: Report) -> dict[str, Any]:
    """The report as lists and objects, with null for a number that is none."""
    return {
        "schema": 1,
        "model": as_unicode(report.model),
        "family": report.family,
        "passed": not report.faults,
        "loads": report.loads,
        "faults": [*report.faults],
        "files": [file._asdict() for file in report.files],
        "config": [key._asdict() for key in report.config],
        "tensors": [{**weight._asdict(), "shape": [*weight.shape]} for weight in report.tensors],
        "prefix": report.prefix,
        "special_tokens": {as_unicode(token): file for token, file in report.special.items()},
        "identities": None if report.identities is None else [*map(_identity_record, report.identities)],
        "published": [{name: _number(value) for name, value in each.items()} for each in report.published],
    }


def _identity_record(identity: Identity) -> dict[str, Any]:
    return {**identity._asdict(), "value": _number(identity.value), "holds": identity.holds}


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not isfinite(value) else value


def _parts(report: Report) -> Iterator[RenderableType]:
    yield Text(f"{_safe(report.model)}: {report.family or 'no family of minilens'}", HEAD)
    files = _table("file", "bytes", "sha256")
    for file in report.files:
        files.add_row(_cell(file.name), Text(f"{file.size:,}"), Text(file.sha256[: DIGITS[0]]))
    yield _spaced(files)

    keys = _table("config.json", "value", "")
    for key in report.config:
        style = WRONG if key.fault else ""
        keys.add_row(_cell(key.key), _cell(key.value), Text(_meaning(key), style))
    if report.config:
        yield _spaced(keys)

    if report.prefix:
        yield Text(f"the names of all tensors begin with {_safe(report.prefix)}, which is taken off\n")
    for file_name, weights in groupby(report.tensors, lambda weight: weight.file):
        tensors = _table(_safe(file_name) if file_name else "missing", "dtype", "shape", "sha256", "")
        tensors.padding = (0, 1, 0, 0)  # GPT-Neo's names are long
        for weight in weights:
            tensors.add_row(
                _cell(weight.name),
                Text(weight.dtype),
                Text("x".join(map(str, weight.shape))),
                Text(weight.sha256[: DIGITS[1]]),
                Text(_use(weight), WRONG if weight.fault else ""),
            )
        yield _spaced(tensors)

    if report.special:
        special = _table("special token", "from")
        for token, source in report.special.items():
            special.add_row(_cell(token), _cell(source))
        yield _spaced(special)

    if report.identities is not None:
        table = _table("identity", "found", "at most", "holds")
        for identity in report.identities:
            style = "" if identity.holds else WRONG
            table.add_row(
                Text(identity.what),
                Text(f"{identity.value:.2g}", style),
                Text(f"{identity.bound:.2g}"),
                Text("yes" if identity.holds else "no", style),
            )
            table.add_row(Padding(Text(identity.why, QUIET), (0, 0, 0, 2)))
        yield _spaced(table)
    else:
        yield Text("no identities can be measured: the files make no model\n")
    if report.published:
        table = _table("published", "prompt", "")
        for each in report.published:
            is_same = each["status"] == "OK"
            table.add_row(
                Text(each["measure"]),
                _cell(str(each["prompt"])),
                Text("the same" if is_same else "differs", "" if is_same else WRONG),
            )
        yield _spaced(table)
    elif report.identities is not None:
        yield Text("no published outputs are known for this model\n")

    if report.faults:
        n, verb = len(report.faults), "takes" if report.loads else "refuses"
        yield Text(f"{n} {'faults' if n > 1 else 'fault'}; minilens.load {verb} this checkpoint", WRONG)
        for fault in report.faults:
            yield Padding(Text(printable(fault), overflow="fold"), (0, 0, 0, 2))
    else:
        yield Text(
            f"passed: {len(report.files)} files, {len(report.config)} keys, {len(report.tensors)} tensors, "
            f"{len(report.identities or ())} identities, {len(report.published)} published outputs"
        )


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=HEAD)
    table.add_column(Text(first), overflow="fold")
    for name in others:
        is_number = name in ("bytes", "found", "at most")
        table.add_column(name, overflow="fold", justify="right" if is_number else "left")
    return table


def _spaced(table: Table) -> Padding:
    return Padding(table, (0, 0, 1, 0))


def _meaning(key: Key) -> str:
    """What minilens does with a key."""
    field = f"sets {key.meaning}" if key.meaning else "read"
    meaning = {
        "read": field,
        "default": f"not there; {field}",
        "missing": f"missing; {field}",
        "only": f"only {key.meaning}",
        "ignored": f"ignored: {key.meaning}",
    }.get(key.status, key.status)
    return f"refused; {meaning}" if key.fault and key.status in ("read", "only") else meaning


def _use(weight: Weight) -> str:
    return f"{weight.use}, {weight.not_finite} NaN or inf" if weight.not_finite else weight.use


def _cell(text: str) -> Text:
    return Text(_safe(text), overflow="fold")


def _safe(text: str) -> str:
    """A name with nothing hidden in it, whatever a file gives as one: lone surrogates are not Unicode."""
    return text_label(as_unicode(text))

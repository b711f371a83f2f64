"""Two families side by side: the lines of mathematics that differ, and the reason of each difference.

The lines and the reasons are read from the families' own files: the methods of the model, and the departures that the
docstring lists by the name of a value or a method.
"""

import inspect
import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from types import ModuleType

from rich.console import Group
from rich.table import Table
from rich.text import Text

from .. import gpt2
from ..loading import FAMILIES
from .walk import Line, body_lines

METHODS = ("embed", "positions", "block", "final_norm", "unembed")  # in the order of a forward pass
DEPARTURE = re.compile(r"^- ((?:`[^`]+`(?:, )?)+): (.+(?:\n  .+)*)", re.MULTILINE)


def diff_view(first: str, second: str) -> Group:
    """What differs in the forward passes of two families, method by method. Raises ValueError for no such family."""
    for name in (first, second):
        if name not in FAMILIES:
            raise ValueError(f'there is no family "{name}"; there are {", ".join(FAMILIES)}')
    if first == second:
        raise ValueError(f"{first} is named twice: name two of {', '.join(FAMILIES)}")
    pair = FAMILIES[first], FAMILIES[second]
    return Group(*(part for method in METHODS for part in _method(pair, method)))


def departures(family: ModuleType) -> dict[str, str]:
    """The reasons in the docstring of a family, by the name of a value, a method or a weight."""
    found = DEPARTURE.findall(family.__doc__ or "")
    return {
        name.strip(): " ".join(reason.split())
        for names, reason in found
        for quoted in re.findall("`([^`]+)`", names)
        for name in quoted.split(",")
    }


def _method(families: tuple[ModuleType, ModuleType], name: str) -> Iterator[Text | Table]:
    """The differing lines of a method, each group above its reasons."""
    models = [_model(family) for family in families]
    first, second = (list(body_lines(getattr(model, name))) for model in models)
    files = [Path(inspect.getfile(model)).name for model in models]
    sources = [line.source for line in first], [line.source for line in second]
    blocks = SequenceMatcher(None, *sources, autojunk=False).get_opcodes()
    groups = [(first[a:b], second[c:d]) for kind, a, b, c, d in blocks if kind != "equal"]
    yield Text(f"{name}: " + ("the lines that differ" if groups else "the same lines in both"), "bold")
    table = Table.grid(padding=(0, 2, 0, 0))
    told: set[str] = set()
    for group in groups:
        for sign, file, side in zip("-+", files, group, strict=True):
            for line in side:
                table.add_row(Text(f"{sign} {file}:{line.number}", "dim"), Text(line.source))
        _add_reasons(table, families, [name, *(word for side in group for word in _names(side))], told)
    read = re.findall(r"(?:self|config|cfg)\.(\w+)", "\n".join(sources[1]))  # weights and sizes
    _add_reasons(table, families, [name, *(word for word in read if word not in METHODS)], told)
    yield from (table, Text()) if table.rows else (Text(),)


def _model(family: ModuleType) -> type:
    """The class of a family's model."""
    (model,) = [each for _, each in inspect.getmembers(family, inspect.isclass) if hasattr(each, "unembed")]
    return model


def _names(lines: Sequence[Line]) -> list[str]:
    """What these lines assign."""
    found = re.findall(r"^ *([\w, ]+?) = ", "\n".join(line.source for line in lines), re.MULTILINE)
    return [name.strip() for names in found for name in names.split(",")]


def _add_reasons(table: Table, families: tuple[ModuleType, ModuleType], names: Sequence[str], told: set[str]) -> None:
    """The reasons by these names that are not the same in both families; each is told once."""
    known = [departures(gpt2) | departures(family) for family in families]
    for name in names:
        reasons = [each.get(name, "") for each in known]
        if reasons[0] != reasons[1]:
            for family, reason in zip(families, reasons, strict=True):
                if reason and reason not in told:
                    told.add(reason)
                    table.add_row(Text(f"  {family.__name__.rpartition('.')[2]}", "italic"), Text(reason, "italic"))

"""What became of an exercise: line by line, each wrong one with what it gives and why."""

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..course.lines import LineResult
from ..course.student import Checked
from .tokens import printable

NONE_KNOWN = "None of the known mistakes gives these numbers."
STYLES = {"right": "green", "wrong": "bold red", "missing": "red", "not written": "dim"}
MOST_PRINTED = 20  # lines


def check_view(checked: Checked) -> Group:
    """The lines of a checked file in their order, and below them, for each wrong one, what is wrong with it."""
    lines = checked.source.splitlines()
    table = Table.grid(padding=(0, 2, 0, 0))
    for result in sorted(checked.results, key=lambda result: (result.line == 0, result.line)):
        table.add_row(
            Text(str(result.line or ""), "dim"), Text(result.name), Text(result.verdict, STYLES[result.verdict])
        )
    parts: list[Table | Text] = [table, Text()]
    for result in wrong_lines(checked.results):
        parts += _told(result, lines)
    noted = [result for result in checked.results if result.verdict == "right" and result.told]
    parts += [part for result in noted for part in (Text(f"{result.name}: right {printable(result.told)}."), Text())]
    if checked.printed:
        shown = [printable(line) for line in checked.printed.splitlines()[:MOST_PRINTED]]
        parts += [Text("The file printed:"), *(Text(f"  {line}") for line in shown), Text()]
    if checked.stopped:
        parts.append(Text(f"The check was stopped: {checked.stopped}"))
    return Group(*parts, Text(summary(checked)))


def wrong_lines(results: Sequence[LineResult]) -> list[LineResult]:
    """Those that are wrong or missing, the first line of the file first."""
    found = [result for result in results if result.verdict in ("wrong", "missing")]
    return sorted(found, key=lambda result: (result.line == 0, result.line))


def _told(result: LineResult, lines: Sequence[str]) -> list[Table | Text]:
    """One wrong line: its source, how it differs, and the mistake."""
    where = f"line {result.line}, " if result.line else ""
    parts: list[Table | Text] = [
        Text(f"{where}{result.name}: {printable(result.told)}{'' if result.told.endswith('?') else '.'}")
    ]
    if 0 < result.line <= len(lines):
        parts.insert(0, Text(printable(lines[result.line - 1].strip()), "bold"))
    if result.mistake or "differs at" in result.told:
        parts.append(Text(result.mistake or NONE_KNOWN, "yellow" if result.mistake else "dim"))
    return [*parts, Text()]


def summary(checked: Checked) -> str:
    """How much is right, and what to do next."""
    count = {verdict: sum(each.verdict == verdict for each in checked.results) for verdict in STYLES}
    told = ", ".join(f"{n} {verdict}" for verdict, n in count.items() if n)
    wrong = wrong_lines(checked.results)
    if checked.is_right:
        return f"{told}: this is the whole model, and it gives the model's own logits"
    if wrong:
        first = wrong[0]
        return f"{told}; look first at {f'line {first.line}, ' if first.line else ''}{first.name}"
    return told or "no line was checked"

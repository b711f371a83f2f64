"""A line at the wrong level: in a loop or an `if` and not after it, after it and not in it, or made anew in each round.

Such a line is moved, by its indentation, and the part is checked again. Where it is right then, that was the mistake.
"""

import ast
from collections.abc import Iterator, Sequence
from typing import NamedTuple

MOST = 2  # statements that are moved together


class Moved(NamedTuple):
    """A source in which some statements stand at another level."""

    line: int  # of the first of them, where the student has it
    what: str  # one sentence
    source: str


def moves(lines: Sequence[str], part: ast.FunctionDef) -> Iterator[Moved]:
    """The file with each line of a function moved that could stand at the wrong level."""
    for outer in ast.walk(part):
        body: list[ast.stmt] = outer.body if isinstance(outer, ast.FunctionDef | ast.For | ast.If) else []
        for at, node in enumerate(body):
            if isinstance(node, ast.For | ast.If) and not node.orelse and node.body[0].lineno > node.lineno:
                yield from _across(lines, node, body[at + 1 :])


def _across(lines: Sequence[str], node: ast.For | ast.If, after: Sequence[ast.stmt]) -> Iterator[Moved]:
    """Across the edges of one loop or `if`."""
    word = "loop" if isinstance(node, ast.For) else "`if`"
    outside, inside = (lines[each.lineno - 1][: each.col_offset] for each in (node, node.body[0]))
    for n in range(1, min(MOST, len(node.body) - 1) + 1):
        first = node.body[-n].lineno
        source = _shifted(lines, first, node.body[-1].end_lineno, inside, outside)
        yield Moved(first, f"It stands in the {word}; it belongs after it.", "\n".join(source))
    for n in range(1, min(MOST, len(after)) + 1):
        # What is iterated must not grow.
        names = {each.id for each in ast.walk(after[n - 1]) if isinstance(each, ast.Name)}
        if isinstance(after[n - 1], ast.Return) or (isinstance(node, ast.For) and ast.unparse(node.iter) in names):
            return
        source = _shifted(lines, after[0].lineno, after[n - 1].end_lineno, outside, inside)
        yield Moved(after[0].lineno, f"It stands after the {word}; it belongs in it.", "\n".join(source))
    if isinstance(node, ast.For) and len(node.body) > 1:
        end = node.body[0].end_lineno or node.body[0].lineno
        source = _shifted(lines, node.body[0].lineno, end, inside, outside)
        head = source[node.lineno - 1 : node.body[0].lineno - 1]
        source[node.lineno - 1 : end] = source[node.body[0].lineno - 1 : end] + head
        yield Moved(
            node.body[0].lineno, "It is made anew in each round of the loop; it belongs before it.", "\n".join(source)
        )


def _shifted(lines: Sequence[str], first: int, last: int | None, old: str, new: str) -> list[str]:
    """The lines, of which those from first to last begin with another indentation."""
    return [
        new + line.removeprefix(old) if first <= number <= (last or first) and line.startswith(old) else line
        for number, line in enumerate(lines, 1)
    ]

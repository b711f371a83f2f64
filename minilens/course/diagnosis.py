"""Which known mistake gives the very numbers of a student's line, if one does.

A known mistake is one change of the solution (mistakes.py). It is carried out there, with the model's own inputs, and
what it gives is held against the student's value. It is named if it gives the same numbers up to rounding, and no other
known mistake does.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import FunctionType
from typing import Any, NamedTuple

from torch import Tensor

from .compare import same
from .mistakes import MISTAKES, Mistake
from .program import Names
from .reference import Block, Reference, as_class, cloned, value_of


class Written(NamedTuple):
    """A value that a student's line gives, and the statement of the solution after which the name has it."""

    value: Any
    at: int


def of_calls(
    reference: Reference, part: str, calls: Sequence[tuple[tuple[Any, ...], Any]], within: float | None = None
) -> str:
    """The mistake in a function or a method that gives all these values for these arguments, or nothing.

    within: as in `same`.
    """
    found = set()
    for mistake, names, model in _variants(reference, part):
        first = (model,) if part in reference.program.methods else ()
        try:
            if all(_is(mine, value_of(names[part](*first, *cloned(args))), within) for args, mine in calls):
                found.add((mistake.where == part, mistake.what))
        except Exception:  # a change that does not go with this family's shapes
            continue
    return _only(found)


def _only(found: set[tuple[bool, str]]) -> str:
    """The one explanation: of the line itself, rather than of what it calls."""
    own = {what for is_own, what in found if is_own} or {what for _, what in found}
    return own.pop() if len(own) == 1 else ""


def _is(mine: Any, wrong: Any, within: float | None = None) -> bool:
    return isinstance(wrong, Tensor) and same(mine, wrong, within=within)


def _variants(reference: Reference, part: str) -> Iterator[tuple[Mistake, Names, Any]]:
    """A part with each known mistake, its own or one in what it calls: names by which it can be run, and the model."""
    program = reference.program
    text = program.text(program.parts[part])
    for mistake in MISTAKES:
        changed = changed_part(reference, mistake)
        if changed is None or (mistake.where != part and f"{mistake.where}(" not in text):
            continue
        names = dict(program.values)
        exec(text, names)
        exec(changed, names)
        model = reference.model
        if mistake.where in program.methods:
            model = as_class(type("Changed", (program.model,), {mistake.where: names[mistake.where]}), model)
        yield mistake, names, model


def changed_part(reference: Reference, mistake: Mistake) -> str | None:
    """The source of a function or a method with a mistake, or None where it has no place there."""
    node = reference.program.parts.get(mistake.where)
    text = reference.program.text(node) if node else ""
    return text.replace(mistake.right, mistake.wrong) if mistake.right in text else None


def of_statement(
    reference: Reference,
    lines: Sequence[tuple[Block, Mapping[str, Written]]],
    own: set[int],
    within: float | None = None,
) -> str:
    """The mistake in `block` that gives all these values, or nothing.

    lines: what one line of the student's gives in some blocks, by name. own: the statements of the solution that this
    line may do in one with its own, since the student's file gives none of their values. within: as in `same`.
    """
    found: set[tuple[bool, str]] | None = None
    for block, written in lines:
        here = set(_matches(reference, block, written, own, within))
        found = here if found is None else found & here
    if not found:
        return _another(reference, lines)
    return _only(found)


def _matches(
    reference: Reference, block: Block, written: Mapping[str, Written], own: set[int], within: float | None
) -> Iterator[tuple[bool, str]]:
    """The mistakes that give these values in one block."""
    last = max(each.at for each in written.values())
    for first in sorted(own | {each.at for each in written.values()}):
        for mistake, names in _changed_statements(reference, block, first) if first <= last else ():
            try:
                for at in range(first + 1, last + 1):
                    if at in own or at == last:
                        reference.program.run(reference.statements[at].node, names)
                    else:
                        names.update({name: block.value(at, name) for name in reference.statements[at].names})
            except Exception:
                continue
            if all(_is(each.value, names.get(name), within) for name, each in written.items()):
                yield mistake.where not in reference.program.functions, mistake.what


def _changed_statements(reference: Reference, block: Block, at: int) -> Iterator[tuple[Mistake, Names]]:
    """A statement of `block` with each known mistake, in it or in what it calls: the names after it."""
    program, statement = reference.program, reference.statements[at]
    text = program.text(statement.node)
    for mistake in MISTAKES:
        names = dict(block.before[at])
        changed = text
        if mistake.where in program.functions:
            source = changed_part(reference, mistake)
            if source is None or f"{mistake.where}(" not in text:
                continue
            exec(source, inner := dict(program.values))
            assert isinstance(inner[mistake.where], FunctionType)
            names[mistake.where] = inner[mistake.where]
        elif mistake.where in statement.names and mistake.right in text:
            changed = text.replace(mistake.right, mistake.wrong)
        else:
            continue
        try:
            exec(changed, names)
        except Exception:  # a change that does not go with this family's shapes
            continue
        yield mistake, names


def _another(reference: Reference, lines: Sequence[tuple[Block, Mapping[str, Written]]]) -> str:
    """Whether a line gives the value of another name."""
    for at, statement in enumerate(reference.statements):
        for other in statement.names:
            if all(
                set(written) != {other} and len(written) == 1 and _is(each.value, block.value(at, other))
                for block, written in lines
                for each in written.values()
            ):
                is_sum = all(name.startswith("resid_") for _, written in lines for name in written)
                added = " What a block writes is added to the stream." if is_sum else ""
                return f"These are the numbers of {other}.{added}"
    return ""

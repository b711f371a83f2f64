"""A student's file beside the family: each line run with the right inputs, and held against what the model gives.

Functions come first, on the arguments with which the solution calls them. Then `block` is run one statement at a time.
What calls a function that is wrong, or not written yet, gets the solution's. After each statement the names that it
gives have the model's values. So each mistake is found at its own line. Where every line is right, the whole is run as
it stands.
"""

import ast
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..model import Model
from . import diagnosis
from .compare import SINGLE, same, sized, tells
from .errors import alike, is_of_a_name, raised, shapes
from .levels import moves
from .lines import CHANCE, LineResult, Lines
from .program import Program, line_in, read_program
from .reference import Reference, as_class, cloned, reference_of, settings_read, value_of
from .whole import returned, together


def check(source: str, path: str, *, each: Callable[[LineResult], object] = bool) -> tuple[LineResult, ...]:
    """Each line of a file that `exercise` began, in the order of the solution; last, all together.

    path: the name of the file, for errors. each: gets every result as soon as it is there. The code of the file runs
    here and now: course/student.py does the same in a process of its own. Raises ValueError for what is no such file.
    """
    found = []
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # so that torch.zeros and the like fit the model
    try:
        with torch.no_grad():
            for result in _checked(source, path):
                found.append(result)
                each(result)
    finally:
        torch.set_default_dtype(before)
    return tuple(found)


def _checked(source: str, path: str) -> Iterator[LineResult]:
    try:
        student = read_program(source, path)
    except (Exception, SystemExit) as error:
        if isinstance(error, ValueError) and line_in(error, path) is None:
            raise
        raise ValueError(f"{Path(path).name}, line {line_in(error, path)}: {raised(error)}") from error
    reference = reference_of(student.family, settings_read(student))
    is_right = True
    weights = list(_tensors(reference.model))
    versions = [each._version for each in weights]
    replaced = set(reference.program.functions)  # by those of the solution, until they are known to be right
    for part in reference.program.parts:
        results = _results(student, reference, part, replaced)
        if any(result.verdict == "wrong" for result in results):  # a mistake that is none of the solution's lines?
            results = _levelled(student, reference, part, replaced, results)
        if versions != [each._version for each in weights]:
            reference_of.cache_clear()  # its weights are others now
            yield LineResult(student.parts[part].lineno, part, "wrong", "it writes into the weights of the model")
            return
        if all(result.verdict == "right" for result in results):
            replaced.discard(part)
        else:
            is_right = False
        yield from results
    if is_right:
        yield together(student, reference)


def _results(
    student: Program, reference: Reference, part: str, replaced: set[str], *, is_named: bool = True
) -> list[LineResult]:
    """What became of a function or a method, or of the lines of `block`.

    is_named: look for the known mistakes.
    """
    function = student.part(part)
    if function is None:
        others = student.parts.keys() - reference.program.parts.keys()
        told = f"there is no function {part}"
        if other := alike(part, others):
            return [LineResult(student.parts[other].lineno, part, "missing", f"{told}, but {other} is here")]
        return [LineResult(0, part, "missing", told)]
    with _forced(student, reference, replaced - {part}) as model:
        if part == "block":
            results = list(Lines(student, reference, model, is_named=is_named).results())
            is_right = all(result.verdict == "right" for result in results)
            return results + (list(returned(student, reference, model)) if is_right else [])
        args = (model,) if part in student.methods else ()
        return [_function(student, reference, part, function, args, is_named=is_named)]


def _levelled(
    student: Program, reference: Reference, part: str, replaced: set[str], results: list[LineResult]
) -> list[LineResult]:
    """The results, with a line at the wrong level named: where it is moved, more is right than before."""

    def wrong(of: Iterable[LineResult]) -> set[str]:
        return {result.name for result in of if result.verdict != "right"}

    for line, what, source in moves(student.lines, student.parts[part]):
        is_return = student.lines[line - 1].lstrip().startswith("return")  # in a loop: as if rows were forgotten
        unnamed = [at for at, each in enumerate(results) if each.verdict == "wrong" and (is_return or not each.mistake)]
        if not unnamed:
            continue
        try:
            with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                other = read_program(source, student.path)
                still = wrong(_results(other, reference, part, replaced, is_named=False))
        except (Exception, SystemExit):
            continue
        for at in unnamed:
            if still <= wrong(results) - {results[at].name}:
                return [*results[:at], replace(results[at], line=line, mistake=what), *results[at + 1 :]]
    return results


def _tensors(whole: Any) -> Iterator[Tensor]:
    """All tensors of a model."""
    if isinstance(whole, Tensor):
        yield whole
    elif isinstance(whole, tuple):
        for each in whole:
            yield from _tensors(each)
    elif hasattr(whole, "__dataclass_fields__"):
        yield from _tensors(tuple(vars(whole).values()))


@contextmanager
def _forced(student: Program, reference: Reference, replaced: set[str]) -> Iterator[Any]:
    """Within, these functions are the solution's, and so are all methods of the model that is given."""
    program = reference.program
    before = dict(student.values)
    student.values.update({part: program.values[part] for part in replaced})
    methods = {part: vars(program.model)[part] for part in program.methods}
    try:
        yield as_class(type(student.model.__name__, (student.model,), methods), reference.model)
    finally:
        student.values.clear()
        student.values.update(before)


def _function(
    student: Program,
    reference: Reference,
    part: str,
    function: Callable[..., Any],
    model: tuple[Model, ...],
    *,
    is_named: bool,
) -> LineResult:
    """A function or a method, on the arguments of the solution's own calls."""
    line = student.parts[part].body[-1].lineno
    seen, wrong, state = [], "", torch.get_rng_state()
    for args, real in reference.calls[part]:
        given = cloned(args)
        try:
            mine = value_of(function(*model, *given))
        except (Exception, SystemExit) as error:
            node = student.parts[part]
            at, deepest = line_in(error, student.path, node.lineno, node.end_lineno), line_in(error, student.path)
            told = raised(error, ast.unparse(node)) + (
                f" (in line {deepest}, which this line calls)" if deepest != at else ""
            )
            if not is_of_a_name(error):
                told += f"{shapes(student.arguments(part, (*model, *args)))}; it should give "
                told += f"[{sized(real, reference.axes(part))}]"
            return LineResult(at or line, part, "wrong", told)
        if mine is Ellipsis:
            return LineResult(line, part, "not written")
        if any(each._version for each in given if isinstance(each, Tensor)):
            return LineResult(line, part, "wrong", "it writes into a tensor that it was given; make a new one")
        seen.append((args, mine))
        if not wrong and (told := tells(mine, real, reference.axes(part))):
            wrong = f"it {told}"
    if wrong and not torch.equal(state, torch.get_rng_state()):
        return LineResult(line, part, "wrong", wrong, CHANCE)
    mistake = diagnosis.of_calls(reference, part, seen) if wrong and is_named else ""
    if wrong and not mistake:  # perhaps a value was in float32 on its way
        pairs = zip(seen, reference.calls[part], strict=True)
        wrong = "" if all(same(mine, real, within=SINGLE) for (_, mine), (_, real) in pairs) else wrong
        mistake = diagnosis.of_calls(reference, part, seen, SINGLE) if wrong and is_named else ""
    return LineResult(line, part, "wrong" if wrong else "right", wrong, mistake)

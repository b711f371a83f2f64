"""A student's model as a whole, whose lines are right: what `block` gives back, and the logits, also in bfloat16."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..loading import load
from ..model import Model
from .compare import CLOSE, same, tells
from .errors import raised
from .lines import LineResult
from .program import Program, line_in
from .reference import AXES, BLOCKS, WINDOW, Call, Reference, as_class, axes_of, calls_of, cloned, shortened, value_of

TOGETHER = "all together"
COARSER = 4.0  # times the error of the solution in bfloat16: more is no chance


def returned(student: Program, reference: Reference, model: Model) -> Iterator[LineResult]:
    """What `block` gives back, where it is not what its lines gave. model: the student's, or the solution's."""
    node, block = student.parts["block"], student.part("block")
    assert block is not None
    result = LineResult(node.body[-1].lineno, "what block returns", "wrong")
    for each in reference.blocks:
        args = [each.before[0][arg.arg] for arg in reference.program.parts["block"].args.args]
        try:
            given = block(model, *cloned(args[1:]))
        except (Exception, SystemExit) as error:
            told = of_another_kind(student, model, reference.calls) or raised(error)
            yield LineResult(line_in(error, student.path) or result.line, result.name, "wrong", told)
            return
        told = "it is None: is a `return` missing?" if given is None else ""
        for name, real in each.before[-1].items():
            if name in AXES and not told and not same(mine := getattr(given, name, real), real, within=CLOSE):
                told = f"its {name} {tells(mine, real, axes_of(name, real))}"
        if told:
            yield LineResult(result.line, result.name, "wrong", told)
            return


def together(student: Program, reference: Reference) -> LineResult:
    """The student's own model, run as it stands on float32 weights, as it would be used."""
    torch.set_default_dtype(torch.float32)
    weights = shortened(load(reference.name)[0], window=WINDOW)
    real = value_of(as_class(reference.program.model, weights).lens(reference.tokens))
    try:
        mine = value_of(as_class(student.model, weights).lens(reference.tokens))
    except (Exception, SystemExit) as error:
        return LineResult(line_in(error, student.path) or 0, TOGETHER, "wrong", raised(error))
    finally:
        torch.set_default_dtype(torch.float64)
    if isinstance(mine, Tensor) and mine.shape == real.shape:
        if (mine - real).abs().max() < CLOSE * real.abs().max():
            return LineResult(0, TOGETHER, "right", in_half(student, reference))
        return LineResult(0, TOGETHER, "wrong", "the logits differ, though each line is right: does one keep a value?")
    return LineResult(0, TOGETHER, "wrong", f"the logits {tells(mine, real, 'row batch pos d_vocab')}")


def of_another_kind(student: Program, model: Any, calls: Mapping[str, Sequence[Call]]) -> str:
    """The first function or method that gives numbers of another dtype than the solution's, or that stops."""
    for part, seen in calls.items():
        for args, real in seen[:1]:
            if (function := student.part(part)) is None:
                continue
            where = f"{part} (line {student.parts[part].lineno})"
            try:
                mine = value_of(function(*((model,) if part in student.methods else ()), *cloned(args)))
            except (Exception, SystemExit) as error:
                return f"in {where} {raised(error)}"
            if isinstance(mine, Tensor) and mine.dtype != real.dtype:
                mine_is, real_is = (str(each.dtype).removeprefix("torch.") for each in (mine, real))
                return f"{where} gives {mine_is}, and should give {real_is}: convert it by .to(...)"
    return ""


def in_half(student: Program, reference: Reference) -> str:
    """What becomes of the student's model on weights in bfloat16, where that is worse than of the solution."""
    kinds = (torch.float32, torch.bfloat16)
    full, half = (shortened(load(reference.name, dtype=kind)[0], n_layers=BLOCKS, window=WINDOW) for kind in kinds)
    exact, ours = (value_of(as_class(reference.program.model, each).lens(reference.tokens)) for each in (full, half))
    torch.set_default_dtype(torch.float32)
    try:
        mine = value_of(as_class(student.model, half).lens(reference.tokens))
    except (Exception, SystemExit) as error:
        calls = calls_of(reference.program, as_class(reference.program.model, half), reference.tokens)
        told = of_another_kind(student, as_class(student.model, half), calls) or raised(error)
        return f"in float32; on weights in bfloat16 it stops in line {line_in(error, student.path) or 0}: {told}"
    finally:
        torch.set_default_dtype(torch.float64)
    worse, bound = ((each.double() - exact.double()).abs().max().item() for each in (mine, ours))
    if worse <= COARSER * bound:
        return ""
    return (
        f"in float32; on weights in bfloat16 its logits are off by up to {worse:.2g}, and the solution's by "
        f"{bound:.2g}: take scores, softmax and norms in float32"
    )

"""`block` of a student's file, one statement at a time.

After each statement the names that it gives have the model's values again. So a wrong line does not make the next one
wrong, and a line that is not written yet is filled in.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..model import Model
from . import diagnosis
from .compare import SINGLE, same, sized, tells
from .diagnosis import Written
from .errors import alike, is_of_a_name, raised, shapes
from .program import Names, Program, assigned, line_in
from .reference import AXES, Block, Reference, axes_of, cloned

Verdict = Literal["right", "not written", "missing", "wrong"]
CHANCE = "It draws random numbers: is there a dropout?"
RANK: tuple[Verdict, ...] = ("right", "not written", "missing", "wrong")  # of two the later one counts


@dataclass(frozen=True)
class LineResult:
    """What became of one line of `block`, of a function or of a method."""

    line: int  # of the student's file; 0 where it is not there
    name: str  # of the value or the function
    verdict: Verdict
    told: str = ""  # how it differs, or what it raised
    mistake: str = ""  # the known mistake that gives these numbers


class Outcome(NamedTuple):
    """One statement of `block`, run in one layer: what became of it, and the values that it gave."""

    result: LineResult
    written: dict[str, Written]


class Lines:
    """The statements of `block` in a student's file."""

    def __init__(self, student: Program, reference: Reference, model: Model, *, is_named: bool) -> None:
        self.student, self.reference, self.model, self.is_named = student, reference, model, is_named
        self.statements = student.statements()
        mine = [(at, name) for at, each in enumerate(self.statements) for name in each.names]
        real = [(at, name) for at, each in enumerate(reference.statements) for name in each.names if name in AXES]
        # Which statement of the solution gives the value that a statement here should give. Where a name is given as
        # often as there, each time; else the last time.
        self.places: dict[tuple[int, str], int] = {}
        for name in {name for _, name in real}:
            ours, theirs = ([at for at, each in side if each == name] for side in (mine, real))
            if len(ours) != len(theirs):
                ours, theirs = ours[-1:], theirs[-1:] if ours else []
            self.places |= {(at, name): place for at, place in zip(ours, theirs, strict=True)}
        self.last = {name: at for at, name in mine}

    def results(self) -> Iterator[LineResult]:
        """What became of each statement, in all layers."""
        runs = [self._outcomes(block) for block in self.reference.blocks]
        for at in sorted({at for run in runs for at in run}):
            outcomes = [(block, run[at]) for block, run in zip(self.reference.blocks, runs, strict=True) if at in run]
            block, worst = max(outcomes, key=lambda each: RANK.index(each[1].result.verdict))  # of two the first
            result = worst.result
            if result.told and block.layer:
                result = replace(result, told=f"in layer {block.layer} {result.told}")
            written = [(block, outcome.written) for block, outcome in outcomes if outcome.written]
            if result.verdict == "wrong" and worst.written and not result.mistake:
                result = self._diagnosed(result, written)
            yield result
        yield from self._absent()

    def _diagnosed(self, result: LineResult, written: Sequence[tuple[Block, Mapping[str, Written]]]) -> LineResult:
        """A wrong line with its mistake, if one is known; right where float32 on the way explains it."""
        mistake = diagnosis.of_statement(self.reference, written, self._own()) if self.is_named else ""
        if mistake:
            return replace(result, mistake=mistake)
        values = [(each.value, block.value(each.at, name)) for block, of in written for name, each in of.items()]
        if "differs at" in result.told and all(same(mine, real, within=SINGLE) for mine, real in values):
            return LineResult(result.line, result.name, "right")
        if not self.is_named:
            return result
        return replace(result, mistake=diagnosis.of_statement(self.reference, written, self._own(), SINGLE))

    def _absent(self) -> Iterator[LineResult]:
        """Values that the student's lines read, and that none of them gives."""
        names = [node for node in ast.walk(self.student.parts["block"]) if isinstance(node, ast.Name)]
        read = {node.id for node in names if isinstance(node.ctx, ast.Load)}
        given = {name: each.node.lineno for each in self.statements for name in each.names if name not in AXES}
        unread = {name: line for name, line in given.items() if name not in read}
        compared = {
            ast.unparse(each.node.value.left): each.node.lineno
            for each in self.statements
            if isinstance(each.node, ast.Expr) and isinstance(each.node.value, ast.Compare)
        }
        for name in sorted(AXES.keys() & (read - self.last.keys())):
            told = f"no line of block gives {name}, and others read it"
            if name in compared:
                yield LineResult(compared[name], name, "missing", f"{told}; this one compares (==) and gives nothing")
            elif other := alike(name, unread) or alike(name, given):
                yield LineResult(given[other], name, "missing", f"{told}; this one gives {other}: is it a typo?")
            else:
                yield LineResult(0, name, "missing", told)

    def _outcomes(self, block: Block) -> dict[int, Outcome]:
        """What became of each statement in one layer.

        A name that is given a value in several steps may be right at the end, though the steps are others.
        """
        found = self._run(block, set())
        steps = {
            name
            for at, name in self.places
            if at != self.last[name] and at in found and found[at].result.verdict == "wrong"
        }
        if steps:
            again = self._run(block, steps)
            if all(again[self.last[name]].result.verdict == "right" for name in steps):
                return again
        return found

    def _run(self, block: Block, free: set[str]) -> dict[int, Outcome]:
        """Run the statements in one layer. free: names whose values on the way are not looked at, but for the last."""
        reference = self.reference
        args = [block.before[0][arg.arg] for arg in reference.program.parts["block"].args.args]
        names: Names = {**self.student.values, **self.student.arguments("block", (self.model, *cloned(args[1:])))}
        given = {name for _, name in self.places}
        for at, statement in enumerate(reference.statements):  # what no line here gives
            names |= {name: block.value(at, name) for name in statement.names if name in AXES.keys() - given}
        found: dict[int, Outcome] = {}
        held: dict[str, Tensor] = {}
        for at, (node, given_here) in enumerate(self.statements):
            due = {
                name: Written(None, self.places[at, name])
                for name in given_here
                if (at, name) in self.places and (name not in free or self.last[name] == at)
            }
            result = LineResult(node.lineno, ", ".join(due or given_here), "right")
            written: dict[str, Written] = {}
            state = torch.get_rng_state()
            try:
                self.student.run(node, names)
            except (Exception, SystemExit) as error:
                found[at] = Outcome(self._raised(block, result, error, node, names, due), {})
            else:
                written = {n: Written(names[n], each.at) for n, each in due.items() if names[n] is not Ellipsis}
                touched = [name for name, value in held.items() if value._version and name not in due]
                if told := self._of_another_block(block, names, given_here):
                    found[at] = Outcome(replace(result, verdict="wrong", told=told), {})
                elif due or touched:
                    found[at] = Outcome(self._judged(block, result, node, due, written, touched), written)
                for name in {*given_here} & given - {*due}:  # given a value again below
                    if names[name] is Ellipsis:
                        names[name] = block.value(self.places[self.last[name], name], name).clone()
                        found[at] = Outcome(replace(result, name=name, verdict="not written"), {})
            if at in found and found[at].result.verdict == "wrong" and not torch.equal(state, torch.get_rng_state()):
                found[at] = found[at]._replace(result=replace(found[at].result, mistake=CHANCE))
            for name, each in due.items():
                held[name] = names[name] = block.value(each.at, name).clone()
            for name in {*held} - {*due}:
                if held[name]._version:
                    del held[name]
        return found

    def _of_another_block(self, block: Block, names: Names, given: Sequence[str]) -> str:
        """Whether a name that is given stands for the weights of another block. It has those of this one then."""
        for name in given:
            for layer, weights in enumerate(self.model.blocks):
                if names.get(name) is weights and layer != block.layer:
                    names[name] = self.model.blocks[block.layer]
                    return f"{name} has the weights of block {layer}"
        return ""

    def _raised(
        self,
        block: Block,
        result: LineResult,
        error: BaseException,
        node: ast.stmt,
        names: Names,
        due: Mapping[str, Written],
    ) -> LineResult:
        """A statement that did not run: why, the shapes of what it reads, and those of what it should give."""
        line = line_in(error, self.student.path, node.lineno, node.end_lineno or node.lineno)
        told = f"{raised(error, ast.unparse(node))}{self._within(error, line)}"
        if not is_of_a_name(error):
            wanted: dict[str, list[str]] = {}
            for name, each in due.items():
                real = block.value(each.at, name)
                wanted.setdefault(sized(real, axes_of(name, real)), []).append(name)
            told += shapes(_read(node, names))
            told += "".join(f"; {', '.join(names)} should be [{size}]" for size, names in wanted.items())
        return replace(result, line=line or node.lineno, verdict="wrong", told=told)

    def _within(self, error: BaseException, line: int | None) -> str:
        """Where an error arose, if that is in a function that this line calls: the student's, or the solution's."""
        deepest, at = line_in(error, self.student.path), error.__traceback__
        if deepest not in (line, None):
            return f" (in line {deepest}, which this line calls)"
        while at and at.tb_frame.f_code.co_name not in self.reference.program.functions:
            at = at.tb_next
        return f" (in {at.tb_frame.f_code.co_name}, which this line calls)" if at else ""

    def _judged(
        self,
        block: Block,
        result: LineResult,
        node: ast.stmt,
        due: Mapping[str, Written],
        written: Mapping[str, Written],
        touched: Sequence[str],
    ) -> LineResult:
        """A statement that ran, by the values that it gave."""
        if touched:
            told = f"it writes into {touched[0]}, which is read as it was; make a new tensor"
            return replace(result, verdict="wrong", told=told)
        for name, (mine, at) in written.items():
            real = block.value(at, name)
            if told := tells(mine, real, axes_of(name, real)):
                inner = [each for each in ast.walk(node) if isinstance(each, ast.stmt) and name in assigned(each)]
                return replace(result, line=inner[-1].lineno, verdict="wrong", told=f"{name} {told}")
        return result if len(written) == len(due) else replace(result, verdict="not written")

    def _own(self) -> set[int]:
        """The statements of the solution none of whose values a line here gives."""
        given = set(self.places.values())
        return {
            at for at, each in enumerate(self.reference.statements) if at not in given and set(each.names) & AXES.keys()
        }


def _read(node: ast.stmt, names: Names) -> Names:
    """What a statement reads, by the names that it has there: q, w.W_Q."""
    found: Names = {}
    for each in ast.walk(node):
        if isinstance(each, ast.Name):
            found[each.id] = names.get(each.id)
        elif isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name):
            found[ast.unparse(each)] = getattr(names.get(each.value.id), each.attr, None)
    return found

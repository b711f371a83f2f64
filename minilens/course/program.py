"""A file with the lines of a family, a student's or the solution, and how it is run one line of `block` at a time."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from types import FunctionType
from typing import Any, NamedTuple

from ..loading import FAMILIES
from .exercise import model_class

Names = dict[str, Any]


class Statement(NamedTuple):
    """A statement of `block`, and the names to which it gives a value."""

    node: ast.stmt
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Program:
    """What a file defines, once it has been run: its functions and its model's methods, with their sources."""

    path: str
    lines: list[str]  # of its source
    values: Names  # of the module
    model: type[Any]
    family: str
    functions: dict[str, ast.FunctionDef]
    methods: dict[str, ast.FunctionDef]

    @property
    def parts(self) -> dict[str, ast.FunctionDef]:
        """Functions and methods, by their names."""
        return self.functions | self.methods

    def statements(self) -> list[Statement]:
        """The statements of `block` below its docstring, without the return at its end."""
        body = self.methods["block"].body
        body = body[1:] if ast.get_docstring(self.methods["block"], clean=False) is not None else body
        return [Statement(node, tuple(assigned(node))) for node in body if not isinstance(node, ast.Return)]

    def arguments(self, name: str, values: tuple[Any, ...]) -> Names:
        """The values under the names that the parameters of a part have in this file."""
        return dict(zip((arg.arg for arg in self.parts[name].args.args), values, strict=False))

    def text(self, node: ast.stmt) -> str:
        """The source of a statement or a part, from the left margin on."""
        return dedent("\n".join(self.lines[node.lineno - 1 : node.end_lineno]))

    def run(self, node: ast.stmt, names: Names) -> None:
        """Run one statement with these names, to which it adds."""
        exec(compile(ast.Module([node], []), self.path, "exec"), names)

    def part(self, name: str) -> FunctionType | None:
        """A function or a method of the file, where it defines one by this name; a method takes the model first."""
        found = self.values.get(name) if name in self.functions else vars(self.model).get(name)
        return found if isinstance(found, FunctionType) else None


def read_program(source: str, path: str) -> Program:
    """Run a file, and find what it defines. Raises ValueError where it cannot be run, or defines no model of a family.

    What its own code raises is raised as it is.
    """
    try:
        tree = ast.parse(source, path)
    except (SyntaxError, ValueError) as error:  # the second for null bytes, in Python 3.11
        raise ValueError(f"{Path(path).name}, line {getattr(error, 'lineno', 0) or 1}: {_told(error)}") from error
    values: Names = {"__name__": "exercise", "__file__": path}
    exec(compile(tree, path, "exec"), values)
    for node in reversed(tree.body):
        model = values.get(node.name) if isinstance(node, ast.ClassDef) else None
        for family, module in FAMILIES.items():
            if isinstance(node, ast.ClassDef) and isinstance(model, type) and issubclass(model, model_class(module)):
                return Program(
                    path, source.splitlines(), values, model, family, _functions(tree.body), _functions(node.body)
                )
    raise ValueError(
        f"{Path(path).name} has no class for a model, such as `class MyGPT2(GPT2)`: minilens exercise writes one"
    )


def _told(error: Exception) -> str:
    return f"it is not Python: {error.msg if isinstance(error, SyntaxError) else error}"


def _functions(body: list[ast.stmt]) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in body if isinstance(node, ast.FunctionDef)}


def assigned(node: ast.stmt) -> Iterator[str]:
    """The names to which a statement gives a value: by =, by +=, to a part of them, or by a method on its own line."""
    seen = set()
    for part in ast.walk(node):
        target: ast.AST | None = None
        if isinstance(part, ast.Name | ast.Subscript) and isinstance(part.ctx, ast.Store):
            target = part
        elif isinstance(part, ast.Expr) and isinstance(part.value, ast.Call):  # scores.masked_fill_(...)
            target = part.value.func
        while isinstance(target, ast.Subscript | ast.Attribute | ast.Call):
            target = target.func if isinstance(target, ast.Call) else target.value
        if isinstance(target, ast.Name) and target.id not in seen and target.id not in ("print", "self"):
            seen.add(target.id)
            yield target.id


def line_in(error: BaseException, path: str, first: int = 1, last: int | None = None) -> int | None:
    """The last line of this file on the way to an error, or the last of some of its lines."""
    line, at = None, error.__traceback__
    while at:
        if at.tb_frame.f_code.co_filename == path and first <= at.tb_lineno <= (last or at.tb_lineno):
            line = at.tb_lineno
        at = at.tb_next
    return line

"""The solution, run on a bundled model: what every line of a student's file should give, and from which inputs."""

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache, wraps
from typing import Any, get_type_hints

import torch
from torch import Tensor

from .. import shapes
from ..loading import load
from ..model import Model
from ..traces import BlockTrace
from .exercise import solution
from .program import Names, Program, Statement, read_program

TEXTS = (
    "Once upon a time there was a little girl named Lily. She had a red ball.",
    "Tom and Sue went to the park. They saw a big dog there. It was sad.",
)
LENGTH = 12  # tokens of each text: another number than batch, heads, d_head and d_model
WINDOW = 5  # of GPT-Neo here, so that these texts are longer
BLOCKS = 2  # of the model that are run, for speed; in GPT-Neo the second is local
WIDER = 4.0  # times W_in and b_in of the last block here, so that some numbers are beyond 6, where ReLU6 ends
OTHER_EPS = 1e-3  # of CTRL's final norm here, which elsewhere is as in the blocks
MOST_CALLS = 6  # of one function, that are noted
AXES = {
    name: " ".join(axis.removeprefix("_") for axis in shape.dim_str.split())
    for name, shape in get_type_hints(BlockTrace).items()
    if name != "layer"
} | {"visible": "query key"}


def axes_of(name: str, real: Tensor) -> str:
    """The names of the axes of a value of `block`."""
    return AXES[name] if real.ndim == len(AXES[name].split()) else AXES["resid_pre"]  # before it is split into heads


Call = tuple[tuple[Any, ...], Tensor]  # what a function was given, without the model, and what it gave


@dataclass(frozen=True, eq=False)
class Block:
    """One block of the solution: the names before each of its statements, and after the last."""

    layer: int
    before: tuple[Names, ...]

    def value(self, at: int, name: str) -> Any:
        """What a name stands for after statement `at`."""
        return self.before[at + 1].get(name)


@dataclass(frozen=True, eq=False)
class Reference:
    """The solution of a family and the values that it gives, in float64."""

    program: Program
    statements: tuple[Statement, ...]  # of `block`
    model: Model
    name: str  # of the model
    tokens: shapes.Tokens
    calls: dict[str, list[Call]]  # of each function and method but `block`
    blocks: tuple[Block, ...]

    def axes(self, part: str) -> str:
        """The names of the axes of what a function gives."""
        told = ast.unparse(self.program.parts[part].returns or ast.Constant(None))
        if found := re.search(r"Tensor, '(.*)'\]", told):
            return found[1]
        told = "Logits" if part == "lens" else told
        axes = str(getattr(getattr(shapes, told, None), "dim_str", "batch pos d_mlp"))
        return f"row {axes}" if part == "lens" else axes


def as_class(model: type[Any], weights: Model) -> Any:
    """A model of this class with the weights of another."""
    return model(**{f.name: getattr(weights, f.name) for f in fields(weights)})  # type: ignore[arg-type]  # a dataclass


def value_of(result: Any) -> Any:
    """What a function gave, as one tensor: that of `lens` is a list."""
    is_list = isinstance(result, list) or (isinstance(result, tuple) and len(result) > 1)
    is_list = is_list and bool(result) and all(isinstance(each, Tensor) for each in result)
    return torch.stack(list(result)) if is_list and len({each.shape for each in result}) == 1 else result


def settings_read(student: Program) -> frozenset[str]:
    """The settings that a file takes from the config, and does not write as numbers.

    In the bundled models some have one value everywhere. The reference for this file gives them others, so that the
    wrong one of two shows.
    """
    block, final_norm = (
        list(ast.walk(student.parts[part])) if part in student.parts else [] for part in ("block", "final_norm")
    )
    in_block, after = ({node.attr for node in part if isinstance(node, ast.Attribute)} for part in (block, final_norm))
    is_number = any(isinstance(node, ast.Constant) and isinstance(node.value, float) for node in final_norm)
    is_read = "ln_final_eps" in in_block | after or "ln_eps" in after
    return frozenset(in_block & {"score_scale"} | ({"ln_final_eps"} if is_read and not is_number else set()))


@lru_cache(maxsize=6)
@torch.no_grad()
def reference_of(family: str, settings: frozenset[str] = frozenset()) -> Reference:
    """The solution of a family, run on the first blocks of the bundled model of that family.

    settings: those that get another value.
    """
    name = f"tales-{family.replace('_', '-')}"
    loaded, tokenizer = load(name, dtype=torch.float64)
    assert tokenizer is not None
    tokens = torch.cat([tokenizer.encode(text)[:, :LENGTH] for text in TEXTS])
    scales = tuple(scale / (layer + 1) for layer, scale in enumerate(getattr(loaded.config, "score_scale", ())))
    others = {"score_scale": scales, "ln_final_eps": OTHER_EPS}
    loaded = shortened(
        loaded, n_layers=BLOCKS, window=WINDOW, **{name: value for name, value in others.items() if name in settings}
    )
    *first, last = loaded.blocks
    loaded = replace(loaded, blocks=(*first, replace(last, W_in=WIDER * last.W_in, b_in=WIDER * last.b_in)))
    program = read_program(solution(family), f"{family}.py")
    model = as_class(program.model, loaded)
    calls = calls_of(program, loaded, tokens)
    statements = tuple(program.statements())
    blocks = []
    resid = model.embed(tokens)
    for layer in range(model.n_layers):
        names = {**program.values, **program.arguments("block", (model, layer, resid))}
        before = [dict(names)]
        for statement in statements:
            program.run(statement.node, names)
            before.append(dict(names))
        blocks.append(Block(layer, tuple(before)))
        resid = model.block(layer, resid).resid_post
    return Reference(program, statements, model, name, tokens, calls, tuple(blocks))


def calls_of(program: Program, weights: Model, tokens: Tensor) -> dict[str, list[Call]]:
    """What each function and method but `block` is given, and gives, while a program's lens reads these tokens."""
    calls: dict[str, list[Call]] = {part: [] for part in program.parts}
    noted = {part: _noting(calls[part], program.values[part], 0) for part in program.functions}
    methods = {part: _noting(calls[part], vars(program.model)[part], 1) for part in program.methods}
    plain = dict(program.values)
    program.values.update(noted)
    as_class(type("Noted", (program.model,), methods), weights).lens(tokens)
    program.values.update({part: plain[part] for part in noted})
    return calls


def shortened(model: Any, **config: Any) -> Any:
    """The model with other settings, as far as its family has them, and with as many blocks as they say."""
    config = {name: value for name, value in config.items() if hasattr(model.config, name)}
    changed = replace(model, config=replace(model.config, **config))
    return replace(changed, blocks=model.blocks[: changed.n_layers])


def _noting(calls: list[Call], function: Callable[..., Any], skip: int) -> Callable[..., Any]:
    """The function, which notes what it is given, but for the first few, and what it gives."""

    @wraps(function)
    def noting(*args: Any) -> Any:
        result = function(*args)
        if len(calls) < MOST_CALLS and isinstance(value_of(result), Tensor):
            calls.append((args[skip:], value_of(result)))
        return result

    return noting


def cloned(values: Sequence[Any]) -> list[Any]:
    """The same values, of which the tensors may be written to."""
    return [value.clone() if isinstance(value, Tensor) else value for value in values]

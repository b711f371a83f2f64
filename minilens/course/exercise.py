"""A family as an exercise: its own file and the operations that it uses, with blanks where the mathematics stands.

The text is made from the sources of gpt2.py, gpt_neo.py, ctrl.py and ops.py, so it cannot drift from them. Only what a
student does not need is left out: the marks of edits, checks of arguments, and decorators.
"""

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from textwrap import dedent, indent, wrap
from types import ModuleType
from typing import Any

from .. import ops
from ..loading import FAMILIES
from ..model import Model
from ..shapes import Logits, Tokens

METHODS = ("embed", "positions", "block", "final_norm", "unembed")
HINTS = {  # beside the blanks: for each line of `block`, by the names that it assigns
    "ln1_out": ["the norm w.ln1 of resid_pre; its epsilon is cfg.ln_eps"],
    "q, k, v": ["queries, keys and values of all heads: linear maps of ln1_out; each batch pos d_model"],
    "q": ["q, cut into cfg.n_heads heads"],
    "k": ["k, cut into heads"],
    "v": ["v, cut into heads"],
    "scores": ["how much each query asks for each key", "the same, and -inf where the key is not visible"],
    "visible": ["True where a query may see a key", "nothing further back than cfg.window, itself counted"],
    "pattern": ["each query's weights over the keys; they sum to 1"],
    "z": ["the values of the keys, averaged with these weights"],
    "attn_out": ["the heads side by side again, then W_O and its bias"],
    "resid_mid": ["what the stream is after attention has written to it"],
    "ln2_out": ["what the MLP reads: the norm w.ln2 of resid_mid, with the same epsilon"],
    "mlp_pre": ["the hidden layer before its activation function: W_in and its bias"],
    "mlp_post": ["and after it"],
    "mlp_out": ["what the MLP writes: W_out and its bias"],
    "resid_post": ["what the stream is after the MLP has written to it"],
}
HINTS_OF_METHODS = {
    "embed": "the rows of W_E for these tokens, plus self.positions of as many places as there are tokens",
    "positions": "n vectors of d_model numbers, those of the places 0 to n - 1, in the dtype of W_E",
    "final_norm": "the norm self.ln_final; its epsilon is self.ln_final_eps",
    "unembed": "first self.final_norm, then W_U, and b_U where there is one that is not None",
    "lens": "a list: one tensor of logits for the stream entering block 0, and one after each block",
}


def lens(self: Model, tokens: Tokens) -> list[Logits]:
    """The logit lens: what the model would say if it ended before block 0, and after each block.

    self.block(layer, resid).resid_post is the stream after a block.
    """
    resid = self.embed(tokens)
    rows = [self.unembed(resid)]
    for layer in range(self.n_layers):
        resid = self.block(layer, resid).resid_post
        rows.append(self.unembed(resid))
    return rows


def exercise(family: str, *, start: str | None = None, path: str = "FILE") -> str:
    """The text of a Python file in which the lines of a family are to be written.

    start: another family, whose lines stand there already and are to be changed. path: the name of the file, for the
    command that its first lines tell. Raises ValueError for no such family.
    """
    if start is None:
        return _file(
            _family(family), _family(family), _blank, f": put code in the place of each `...`.\n\n{_TOLD}", path
        )
    if start == family:
        raise ValueError(f"{family} is named twice: begin from another of {', '.join(FAMILIES)}")
    told = f", from {start}.py: its lines stand here. Change those that differ.\n\n{_TOLD}"
    return _file(_family(family), _family(start), lambda text: text, told, path)


def solution(family: str) -> str:
    """The same file with the family's own lines. Raises ValueError for no such family."""
    return _file(_family(family), _family(family), lambda text: text, ": the lines of the family itself.", "FILE")


_TOLD = """Take the lines in any order, and ask at any time which of them are right:

    minilens check {path}

What is not written yet is taken from the model. So each line is tried with the right numbers from the lines before."""


def _family(name: str) -> ModuleType:
    if name not in FAMILIES:
        raise ValueError(f'there is no family "{name}"; there are {", ".join(FAMILIES)}')
    family: ModuleType = FAMILIES[name]
    return family


def model_class(family: ModuleType) -> type[Any]:
    """The class of a family's model."""
    return next(each for _, each in inspect.getmembers(family, inspect.isclass) if hasattr(each, "unembed"))


def _file(family: ModuleType, lines: ModuleType, shown: Callable[[str], str], told: str, path: str) -> str:
    """The file of a family with the lines of one, which may be another; shown: makes blanks of what it is given."""
    model = model_class(family)
    functions = [shown(source(getattr(ops, name))) for name in _operations(lines)]
    own = [source(each) for name, each in vars(family).items() if _is_own(family, each) and name != "build"]
    functions += [shown(text) if family is lines else _blank(text) for text in own]
    methods = [shown(source(getattr(model_class(lines), name))) for name in METHODS]
    methods.append(shown(source(lens).replace("self: Model", "self")))
    head = f'"""{model.__name__}{told.format(path=path)}\n\n{_told_by(family)}\n"""'
    return "\n\n\n".join(
        [
            f"{head}\n\n{_IMPORTS}\nfrom {family.__name__} import {model.__name__}\n{_FROM_OURS}",
            *functions,
            f"{_weights(family)}\nclass My{model.__name__}({model.__name__}):\n" + indent("\n\n".join(methods), "    "),
        ]
    ) + "\n"  # fmt: skip


_IMPORTS = """import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
"""
_FROM_OURS = """from minilens.ops import LayerNorm, upcast
from minilens.shapes import Grid, Heads, Keys, Logits, Mask, Resid, Tokens
from minilens.traces import BlockTrace

# Tokens: batch pos                Resid: batch pos d_model        Logits: batch pos d_vocab
# Heads, Keys: batch head pos d_head     Grid: batch head query key     Mask: query key
# upcast(x): x in float32, where it has fewer bits"""


def _told_by(family: ModuleType) -> str:
    """What the family's docstring says of its mathematics."""
    text = inspect.getdoc(family) or ""
    text = re.sub(r"^- `build`:.*\n?(?:  .*\n?)*", "", text, flags=re.MULTILINE)  # of the checkpoint
    text = re.sub(r"\n\nRead `embed`.*?\n\n", "\n\n", text, flags=re.DOTALL)  # of a file that is whole
    return text.partition("\n\n")[2].strip()


def _is_own(family: ModuleType, each: Any) -> bool:
    """Whether this is a public function of the family's file."""
    each = inspect.unwrap(each) if callable(each) else each
    return inspect.isfunction(each) and each.__module__ == family.__name__ and not each.__name__.startswith("_")


def _operations(family: ModuleType) -> list[str]:
    """The functions of ops.py that the lines of a family use, in the order of ops.py."""
    text = "".join(source(getattr(model_class(family), name)) for name in METHODS)
    return [name for name in vars(ops) if re.search(rf"\b{name}\(", text) and name != "upcast"]


def source(function: Callable[..., Any]) -> str:
    """The source of a function, without what a student does not need."""
    text = dedent(inspect.getsource(function))
    text = text[re.search(r"^def ", text, re.MULTILINE).start() :]  # type: ignore[union-attr]  # without decorators
    text = re.sub(r", edit: Edit = untouched|^ +(check_\w+\(|at = editable).*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r" Raises ValueError for (?:[^.]|\.(?=\w))*\.", "", text)
    text = re.sub(r'\bat\("\w+", (.+)\)(?=  #|$)', r"\1", text, flags=re.MULTILINE)
    # The activation is a setting of the checkpoint. Of the bundled models it is this one.
    return text.replace("cfg.activation(", "gelu_new(").rstrip()


def _blank(text: str) -> str:
    """A function with `...` in the place of its mathematics: of each line of `block`, of the whole body of others."""
    (function,) = ast.parse(text).body
    assert isinstance(function, ast.FunctionDef)
    lines = text.splitlines()
    if function.name == "block":
        seen: dict[str, int] = {}
        for node in sorted(_assignments(function), key=lambda node: node.lineno):
            names = ast.unparse(node.targets[0]).strip("()")
            if names in HINTS:
                hint = HINTS[names][seen.get(names, 0)]
                seen[names] = seen.get(names, 0) + 1
                lines[node.lineno - 1] = _with_blank(lines[node.lineno - 1], names, hint)
        return "\n".join(lines)
    told = [f"    # {HINTS_OF_METHODS[function.name]}"] if function.name in HINTS_OF_METHODS else []
    return "\n".join([*lines[: function.body[0].end_lineno], *told, "    return ..."])


def _assignments(function: ast.FunctionDef) -> Iterator[ast.Assign]:
    return (node for node in ast.walk(function) if isinstance(node, ast.Assign))


def _with_blank(line: str, names: str, hint: str) -> str:
    """A line of `block` with its right side left out; beside it its shape, where the source has it, and a hint."""
    space = line[: len(line) - len(line.lstrip())]
    shape = line.partition("  # ")[2]
    told = f"{shape}: {hint}" if shape and set(shape.split()) <= WORDS else hint
    return f"{space}{names} = {', '.join('...' for _ in names.split(','))}  # {told}"


WORDS = set("batch pos head query key d_model d_head d_mlp".split())


def _weights(family: ModuleType) -> str:
    """A comment with the names and shapes of the weights."""

    def named(whole: Any) -> str:
        found = []
        for f in fields(whole):
            shape = re.search(r'Tensor, "(.*?)"', str(f.type)) or getattr(f.type, "dim_str", None)
            if shape:
                found.append(f"{f.name} [{shape if isinstance(shape, str) else shape[1]}]")
            elif getattr(f.type, "__name__", "") == "LayerNorm":
                found.append(f"{f.name} (of {f.name}.w and {f.name}.b)")
        return ", ".join(found)

    def sizes() -> str:
        return ", ".join(f.name for f in fields(family.Config) if f.name not in ("is_tied", "activation"))

    settings = sizes().replace("score_scale", "score_scale (a number for each layer)")
    rows = {
        "self.config": f"{settings}{', ln_eps' if 'ln_eps' not in settings else ''}; d_head is d_model // n_heads",
        "self": named(model_class(family)),
        "w, the weights of a block": named(family.Block),
    }
    return "\n".join(_commented(f"{name}: {text}") for name, text in rows.items())


def _commented(text: str) -> str:
    return "\n".join(wrap(text, 118, initial_indent="# ", subsequent_indent="#     "))

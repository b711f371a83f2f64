"""A walk through a model: each line of its source, and below it the numbers that it gave.

The lines are read from the model's own file, so they cannot drift from what ran. The numbers of a block are a
BlockTrace's. A name has its value where the source assigns it for the last time, since that is the one in the trace.
Where a name is assigned anew further down, as the scores before the mask, or is not in the trace, as the mask, there is
the line alone. Comments that tell a shape are left out: the captions of the numbers tell it.
"""

import ast
import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import isfinite
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple, get_type_hints

import torch
from jaxtyping import Float, Int
from rich.cells import cell_len, set_cell_size
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor

from ..checkpoint.tokenizer import Tokenizer
from ..model import Model, run
from ..ops import check_layer, upcast
from ..shapes import Resid
from ..traces import RESID_SITES, BlockTrace
from ..vocab import not_finite
from .tokens import token_label

FEW = 8  # numbers of a vector, or keys of a query, that are shown at most
WIDEST = 8  # terminal cells of a number, and of the token above it
# The axes of each field, as its annotation names them.
AXES = {
    name: [axis.removeprefix("_") for axis in shape.dim_str.split()]
    for name, shape in get_type_hints(BlockTrace).items()
    if name != "layer"
}
WORDS = {axis for axes in AXES.values() for axis in axes}


class Line(NamedTuple):
    """A line of a block's source."""

    number: int  # in its file
    source: str
    gives: list[str]  # the fields of a BlockTrace that have their value from here on


def walk_view(
    model: Model,
    tokens: Int[Tensor, "1 pos"],
    layer: int = 0,
    *,
    position: int = -1,
    head: int = 0,
    tokenizer: Tokenizer | None = None,
    width: int = 80,
) -> Group:
    """The whole model on one text: embedding, one block line by line, the stream after the others, unembedding.

    layer: the block that is shown line by line. The rest is as in `block_view`. Raises ValueError for a layer, a
    position or a head that does not exist, and for logits that are not finite: `verify` says where such numbers are.
    """
    check_layer(layer, model.n_layers)
    embed = model.embed(tokens)
    at = check_place(tokens, position)
    rows: list[tuple[str, Resid]] = [("embed", embed[:, at : at + 1])]
    for block in run(model, embed):
        rows.append((f"{block.layer}.resid_post", block.resid_post[:, at : at + 1]))
        if block.layer == layer:
            shown = block
        last = block.resid_post
        del block
    few = fitting(width)
    label = partial(token_label, tokenizer)

    def stream(title: str, part: Sequence[tuple[str, Resid]]) -> Iterator[Text | Table]:
        if part:
            table = Table.grid(padding=(0, 2, 0, 0))
            table.add_row("", Text("norm", "dim"), Text("best next token, by the final norm and unembedding", "dim"))
            for name, resid in part:
                table.add_row(name, f"{upcast(resid).norm():.2f}", Text(_best(model, resid, tokenizer)))
            yield from (Text(title, "dim"), table, Text())

    vectors = [
        ("W_E[tokens]", model.W_E[tokens], (0, at), "batch pos d_model"),
        ("positions", model.positions(tokens.shape[1]), (at,), "pos d_model"),
        ("embed", embed, (0, at), "batch pos d_model"),
    ]
    logits = upcast(model.unembed(last))[0, at]
    if not logits.isfinite().all():
        raise not_finite(f"the logits at position {at}", model.W_E.dtype)
    best = logits.topk(min(few, len(logits)))
    return Group(
        Text(f"the tokens: {', '.join(map(str, tokens[0].tolist()))}"),
        Text(),
        *_method(model, "embed", [(*vector, few) for vector in vectors]),
        *stream(f"the stream entering block {layer}", rows[: layer + 1]),
        block_view(model, tokens, shown, position=position, head=head, tokenizer=tokenizer, width=width),
        Text(),
        *stream(f"the stream leaving block {layer}, and those after it", rows[layer + 1 :]),
        *_method(model, "final_norm", [("final_norm", model.final_norm(last), (0, at), "batch pos d_model", few)]),
        *_method(model, "unembed", []),
        Text(f"the largest logits at position {at}, and their probabilities"),
        _columns([label(token) for token in best.indices.tolist()], best.values.tolist()),
        _columns([], logits.softmax(-1)[best.indices].tolist()),
    )


def check_place(tokens: Int[Tensor, "1 pos"], position: int) -> int:
    """The position, counted from the start. Raises ValueError where the text has none such."""
    n = tokens.shape[1]
    if not -n <= position < n:
        raise ValueError(f"position {position} does not exist: the text has {n} tokens, so positions 0 to {n - 1}")
    return position % n


def fitting(width: int) -> int:
    """How many numbers stand side by side in a terminal of this width."""
    return max(1, min(FEW, (width - 6) // (WIDEST + 1)))


def block_view(
    model: Model,
    tokens: Int[Tensor, "1 pos"],
    block: BlockTrace,
    *,
    position: int = -1,
    head: int = 0,
    tokenizer: Tokenizer | None = None,
    width: int = 80,
) -> Group:
    """How a block of this model came by its values, line by line, and what the lens says of them.

    position: whose vectors to show, and whose rows of scores and pattern; a negative one counts from the end. Of a row
    with many keys those of most weight are shown. head: which one, where a value has several. Raises ValueError for a
    position or a head that does not exist.
    """
    n, n_heads = tokens.shape[1], block.q.shape[1]
    position = check_place(tokens, position)
    if head not in range(n_heads):
        raise ValueError(f"head {head} does not exist: the model's heads are 0 to {n_heads - 1}")
    labels = [token_label(tokenizer, token) for token in tokens[0].tolist()]
    few = fitting(width)
    order = block.pattern[0, head, position].argsort(descending=True, stable=True)
    keys = slice(few) if n <= few else sorted(order[:few].tolist())
    place: dict[str, Any] = {"batch": 0, "head": head, "pos": position, "query": position, "key": keys}

    method = type(model).block
    path = Path(inspect.getfile(type(model)))
    steps = Table.grid(padding=(0, 2, 0, 0))
    for line in source_lines(method):
        steps.add_row(*_numbered(line))
        for name in line.gives:
            value = getattr(block, name)
            index = tuple(place.get(axis, slice(few)) for axis in AXES[name])
            above = [labels[key] for key in torch.arange(n)[keys]] if "key" in AXES[name] else []
            steps.add_row("", Text(_caption(name, value, index, AXES[name]), "dim"))
            steps.add_row("", _columns(above, value[index].tolist()))
            for check in _checks(name, block, head, position):
                steps.add_row("", Text(check, "dim"))
            steps.add_row()
    stream = [(name, getattr(block, name)) for name in RESID_SITES]
    return Group(
        Text(f"{'/'.join(path.parts[-2:])}: {method.__qualname__}, layer {block.layer} of 0 to {model.n_layers - 1}"),
        Text(f"position {position} of 0 to {n - 1}, {labels[position]}; head {head} of 0 to {n_heads - 1}"),
        Text(),
        steps,
        Text(),
        Text(f"the lens at position {position}: best next token by the final norm and unembedding"),
        *(Text(f"{name:10}  {_best(model, resid[:, position : position + 1], tokenizer)}") for name, resid in stream),
    )


def source_lines(method: Callable[..., BlockTrace]) -> Iterator[Line]:
    """The lines of a method that gives a BlockTrace, below its docstring; its return as one line."""
    function = ast.parse(dedent(inspect.getsource(method))).body[0]
    assert isinstance(function, ast.FunctionDef)
    first = inspect.getsourcelines(method)[1] - 1
    stored = (  # every name that a statement assigns, with the line on which the statement ends
        (name.id, first + (statement.end_lineno or 0))
        for statement in function.body
        for name in ast.walk(statement)
        if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
    )
    last = dict(stored)
    returned = first + function.body[-1].lineno
    for line in body_lines(method):
        if line.number < returned:
            yield line._replace(gives=[name for name in AXES if last.get(name) == line.number])
    yield Line(returned, ast.unparse(function.body[-1]).partition("(")[0] + "(...)", [])


def body_lines(method: Callable[..., Any]) -> Iterator[Line]:
    """The lines of a method below its docstring, without blank ones, and without comments that tell a shape."""
    lines, first = inspect.getsourcelines(method)
    lines = dedent("".join(lines)).splitlines()
    function = ast.parse("\n".join(lines)).body[0]
    assert isinstance(function, ast.FunctionDef)
    for number in range((function.body[0].end_lineno or 0) + 1, len(lines) + 1):
        source, _, comment = lines[number - 1].removeprefix("    ").rstrip().partition("  # ")
        if comment and not set(comment.split()) <= WORDS:
            source += f"  # {comment}"
        if source:
            yield Line(first + number - 1, source, [])


def _numbered(line: Line) -> tuple[Text, Text]:
    style = "italic" if line.source.lstrip().startswith("#") else "bold"
    return Text(str(line.number), "dim"), Text(line.source, style)


def _method(
    model: Model, name: str, vectors: Sequence[tuple[str, Tensor, tuple[int, ...], str, int]]
) -> Iterator[Text | Table]:
    """The lines of a method of the model, and some numbers of vectors: name, value, place, axes, how many numbers."""
    method = getattr(type(model), name)
    steps = Table.grid(padding=(0, 2, 0, 0))
    for line in body_lines(method):
        steps.add_row(*_numbered(line))
    for title, value, place, axes, few in vectors:
        index: tuple[int | slice, ...] = (*place, slice(few))
        steps.add_row("", Text(_caption(title, value, index, axes.split()), "dim"))
        steps.add_row("", _columns([], value[index].tolist()))
    yield from (Text(method.__qualname__), steps, Text())


def _caption(name: str, value: Tensor, index: tuple[Any, ...], axes: Sequence[str]) -> str:
    """The numbers, as one would ask for them in Python, and the shape of the whole."""
    places = (f":{place.stop}" if isinstance(place, slice) else str(place) for place in index)
    shape = ", ".join(f"{axis} {size}" for axis, size in zip(axes, value.shape, strict=True))
    return f"{name}[{', '.join(places)}] of [{shape}]"


def _columns(above: list[str], values: list[float]) -> Table:
    """Numbers side by side, in one format, below their labels where they have any."""
    largest = max((abs(value) for value in values if isfinite(value)), default=0)
    form = ".2f" if largest == 0 or 0.1 <= largest < 9999 else ".4f" if 1e-3 <= largest < 0.1 else ".1e"
    table = Table.grid(padding=(0, 1, 0, 0))
    for _ in values:
        table.add_column(justify="right", min_width=WIDEST, no_wrap=True)
    cut = (text if cell_len(text) <= WIDEST else set_cell_size(text, WIDEST - 1) + "…" for text in above)
    if above:
        table.add_row(*(Text(text, "dim") for text in cut))
    table.add_row(*(Text(f"{value:{form}}") for value in values))
    return table


def _checks(name: str, block: BlockTrace, head: int, position: int) -> Iterator[str]:
    """What ought to hold of a value, tried."""
    if name == "scores":
        row = block.scores[0, head, position]
        yield f"position {position} sees {(row > -torch.inf).sum()} of {len(row)} keys"
    if name == "pattern":
        off, rounding = (upcast(block.pattern).sum(-1) - 1).abs().max(), torch.finfo(block.pattern.dtype).eps
        yield f"every row sums to 1: {bool(off < rounding * block.pattern.shape[-1])}"
    if name == "resid_mid":
        yield f"resid_mid == resid_pre + attn_out: {torch.equal(block.resid_mid, block.resid_pre + block.attn_out)}"
    if name == "resid_post":
        yield f"resid_post == resid_mid + mlp_out: {torch.equal(block.resid_post, block.resid_mid + block.mlp_out)}"


def _best(model: Model, resid: Float[Tensor, "1 1 d_model"], tokenizer: Tokenizer | None) -> str:
    """The best token after this residual, and its probability."""
    prob, token = upcast(model.unembed(resid)).softmax(-1).max(-1)
    return f"{prob.item():.2f}  {token_label(tokenizer, int(token))}"

"""Attribution in the terminal, as one HTML file and as data; attribution_figure.py draws it.

A grid with a row for each layer, the last on top. What stands in a row adds up to all that the layer adds, but for what
an edit has changed in the stream itself. Of several texts each number is a mean, with its standard error.
"""

import html
from collections.abc import Callable
from functools import partial
from math import isnan
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from rich.console import Group
from rich.text import Text
from torch import Tensor

from ..arguments import quoted
from ..instruments.attribution import Attribution
from ..instruments.attributions import Attributions
from ..instruments.texts import Mean, over_texts
from . import shaded
from .grid import BOLD, DIM
from .records import token_record
from .shaded import Panel, Shaded, exact
from .tokens import printable, token_label

BY = {  # what a column of the grid is
    "layer": "attention and MLP apart",
    "head": "heads, the bias of attention, and the MLP with its bias",
    "position": "the position that attention takes it from, the bias of attention, and the MLP with its bias",
    "neuron": "the neurons of each MLP that add or subtract the most, and all else in the layer",
}
NEURONS = 5  # of each layer that are shown
Found = Attribution | Attributions


class Columns(NamedTuple):
    """The numbers of a grid."""

    names: list[str]
    of: Mean  # [layer column]
    marks: list[list[str]] | None = None  # what stands before a number, by layer and column: which neuron it is of


def attribution_view(found: Found, *, by: str = "layer", title: str = "", width: int = 80) -> Group:
    """What each part of each layer adds to the logit, as a grid, and what is added outside the blocks.

    by: "layer", "head", "position" or "neuron", which takes an attribution of all neurons. Raises ValueError for
    another, and for positions of texts of several lengths.
    """
    all_texts = several(found)
    lines = [Text(printable(title), BOLD)] if title else []
    lines += shaded.in_terminal(panel(all_texts, by, partial(_label, all_texts)), width)
    return Group(*lines, *(Text(line) for line in outside(all_texts)), *(Text(line, DIM) for line in legend(all_texts)))


def attribution_page(found: Found, *, by: str = "head", title: str = "") -> str:
    """The grid as one HTML file, with the texts, and each number to four significant digits.

    by: as in `attribution_view`. Nothing in it runs, and it has no address of anything else. Write it as UTF-8.
    """
    all_texts = several(found)
    label = partial(token_label, all_texts.texts[0].tokenizer)
    scale, several_of_them = exact(_scale(all_texts, by)), len(all_texts.texts) > 1
    return shaded.page(
        title or "Attribution",
        [panel(all_texts, by, partial(_label, all_texts))],
        text=f"""<p>What each part adds to the logit, with the scale of the final norm held. A row is a layer; its
columns are {BY[by]}. {" ".join(map(html.escape, outside(all_texts)))}</p>""",
        facts={_logit(text): " ".join(html.escape(label(token)) for token in text.tokens.tolist())
               for text in all_texts.texts},
        away=f"against the logit, to -{scale}",
        towards=f"to {scale}, to the logit",
        more="More digits" + (": the means over texts" if several_of_them else ""),
    )  # fmt: skip


def attribution_record(found: Found, *, by: str = "head") -> dict[str, Any]:
    """The same as data: the texts, every part, and the grid as lists of layers. null where there is no number."""
    all_texts = several(found)
    names, (mean, error), marks = columns(all_texts, by)
    parts, errors = all_texts.of("contributions")

    def text_record(text: Attribution) -> dict[str, Any]:
        token = partial(token_record, text.tokenizer)
        return {
            "tokens": [token(number) for number in text.tokens.tolist()],
            "position": text.position,
            "token": token(text.token),
            "against": None if text.against is None else token(text.against),
            "logit": text.logit,
            "error": text.error,
        }

    return {
        "schema": 1,
        "by": by,
        "texts": [text_record(text) for text in all_texts.texts],
        "parts": [
            {"label": label, "mean": value, "standard_error": None if isnan(spread) else spread}
            for label, value, spread in zip(all_texts.labels, parts.tolist(), errors.tolist(), strict=True)
        ],
        "columns": names,
        **({} if marks is None else {"neurons": [[int(n) if n else None for n in row] for row in marks]}),
        "mean": mean.tolist(),
        "standard_error": None if error.isnan().all() else error.tolist(),
    }


def several(found: Found) -> Attributions:
    return found if isinstance(found, Attributions) else Attributions((found,))


def panel(found: Attributions, by: str, label: Callable[[int], str]) -> Panel:
    """The grid. label: how a token is shown."""
    names, (mean, error), marks = columns(found, by)
    scale = _scale(found, by)

    def cell(value: float, spread: float, mark: str) -> Shaded:
        text = f"{round(value, 2) + 0.0:+.2f}".replace("+0.00", " 0.00")  # + 0.0 makes 0.00 of -0.00
        text = text if isnan(spread) or mark else f"{text}±{spread:.2f}"  # beside a neuron's number there is no room
        return Shaded(f" {mark}:{text.strip()}" if mark else text, value / scale, exact(value))

    rows = [
        (f"layer {layer}", list(map(cell, *row)))
        for layer, row in enumerate(
            zip(mean.tolist(), error.tolist(), marks or [[""] * len(names)] * len(mean), strict=True)
        )
    ]
    texts = [text.tokens.tolist() for text in found.texts]
    below = None
    if by == "position":
        tokens = [label(same[0]) if len({*same}) == 1 else "" for same in zip(*texts, strict=True)]
        below = "text", [*tokens, *[""] * (len(names) - len(tokens))]
    return Panel(f"by {by}", by if by in ("head", "position") else "", names, rows, below=below)


def columns(found: Attributions, by: str) -> Columns:
    """The numbers of the grid, [layer column]. Raises ValueError for no such grid."""
    if by not in [*BY]:
        raise ValueError(f"there is no attribution by {quoted(by)}; there is one by {', '.join(BY)}")
    attention, mlp = (torch.stack([getattr(text, name) for text in found.texts]) for name in ("attention", "mlp"))
    if by == "layer":
        return Columns(["attention", "mlp"], over_texts(torch.stack([attention, mlp], -1)))
    if by == "neuron":
        return _neurons(found, attention + mlp)
    of_texts: list[Float[Tensor, "layer column"]] = [getattr(text, f"by_{by}") for text in found.texts]
    if len({each.shape for each in of_texts}) > 1:
        found.of("by_position")  # says what is wrong
    parts = torch.stack(of_texts)
    rest = attention - parts.sum(-1)
    names = [str(n) for n in range(parts.shape[-1])]
    return Columns([*names, "bias", "mlp"], over_texts(torch.cat([parts, rest[..., None], mlp[..., None]], -1)))


def _neurons(found: Attributions, whole: Float[Tensor, "text layer"]) -> Columns:
    """The largest neurons of each layer by their mean, and the rest of the layer."""
    first = found.texts[0]
    split = {layer for layer, label in zip(first.layers, first.labels, strict=True) if ".neuron." in label}
    if len(split) < whole.shape[1]:
        raise ValueError('by "neuron" takes an attribution of all neurons: attribute(..., neurons=range(n_layers))')
    parts = torch.stack([text.by_neuron for text in found.texts]).view(*whole.shape, -1)
    best = parts.mean(0).abs().topk(min(NEURONS, parts.shape[-1])).indices  # layer rank
    chosen = parts.gather(-1, best.expand(len(parts), -1, -1))
    of = over_texts(torch.cat([chosen, (whole - chosen.sum(-1))[..., None]], -1))
    marks = [[*map(str, row), ""] for row in best.tolist()]
    return Columns([*(f"largest {rank + 1}" for rank in range(best.shape[-1])), "all else"], of, marks)


def outside(found: Attributions) -> list[str]:
    """The parts outside the blocks, and the logit that all parts add up to, in words."""
    mean, error = found.of("contributions")
    parts = zip(found.labels, found.texts[0].layers, mean.tolist(), error.tolist(), strict=True)
    said = [
        f"{label} {_written(value, spread)}" for label, layer, value, spread in parts if layer < 0 or "resid" in label
    ]
    (logit, spread) = over_texts(torch.tensor([text.logit for text in found.texts], dtype=torch.float64, device="cpu"))
    worst = max((text.error for text in found.texts), key=abs)
    return [
        f"outside the blocks: {', '.join(said)}.",
        f"All parts together: {_written(float(logit), float(spread))}; rounding {worst:+.1e}.",
    ]


def asked(found: Found) -> str:
    """What is attributed, in words."""
    texts = several(found).texts
    return _logit(texts[0]) if len(texts) == 1 else f"logits of {len(texts)} texts, on average"


def legend(found: Attributions) -> list[str]:
    """What the shading means."""
    n = len(found.texts)
    return [
        "blue: to the logit; orange: against it; deepest at the grid's highest",
        *([f"means of {n} texts, ± standard error where there is room"] if n > 1 else []),
    ]


def _scale(found: Attributions, by: str) -> float:
    return float(columns(found, by).of.mean.abs().max()) or 1.0


def _written(value: float, spread: float) -> str:
    return f"{value:+.2f}" if isnan(spread) else f"{value:+.2f}±{spread:.2f}"


def _label(found: Attributions, token: int) -> str:
    return token_label(found.texts[0].tokenizer, token)


def _logit(text: Attribution) -> str:
    label = partial(token_label, text.tokenizer)
    less = "" if text.against is None else f" less that of {label(text.against)}"
    return f"logit {text.logit:.4f} of {label(text.token)}{less}, at position {text.position}"

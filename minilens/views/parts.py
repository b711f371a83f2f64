"""Parts in the terminal, as one HTML file and as data; parts_figure.py draws them.

A row is a part, the last on top. Of several positions there is a grid for each kind of number, and of one position one
grid with all kinds of numbers side by side.
"""

import html
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from rich.console import Group
from rich.text import Text
from torch import Tensor

from ..arguments import names, quoted
from ..instruments.parts import Parts
from . import shaded
from .grid import BOLD, DIM
from .records import token_record
from .shaded import Panel, Shaded, exact
from .tokens import printable, token_label

NUMBERS = {
    "norm": "norm of the write",
    "ratio": "norm of the write by that of the stream it is added to",
    "cosine": "cosine of the write and the stream it is added to",
    "share": "what it adds to the logit of the output's token, with the final norm's scale held",
}
WORDS = {
    "raised": "tokens whose logits it adds most to, with the final norm's scale held",
    "lowered": "tokens whose logits it takes most from, with the final norm's scale held",
    "alone": "best tokens of the write as a residual of its own, through its own norm",
}
SHOWN = NUMBERS | WORDS
DEFAULT, DEFAULT_OF_ONE = ("ratio", "raised"), ("ratio", "cosine", "share", "raised")  # of several positions, of one


def parts_view(found: Parts, *, show: str | Iterable[str] | None = None, title: str = "", width: int = 80) -> Group:
    """What each part writes, as grids of as many columns as fit the width.

    show: of norm, ratio, cosine, share, raised, lowered and alone; by default ratio and raised, and of one position
    cosine and share as well. Of one position all tokens that the result names are shown, otherwise the first.

    Raises ValueError for what is not among them.
    """
    lines = [Text(printable(title), BOLD)] if title else []
    for panel in panels(found, show, partial(token_label, found.tokenizer)):
        lines += [Text(), Text(panel.name), *shaded.in_terminal(panel, width)]
    return Group(*lines, *(Text(line, DIM) for line in legend(found)))


def parts_page(found: Parts, *, show: str | Iterable[str] | None = None, title: str = "") -> str:
    """The grids as one HTML file, and numbers to four significant digits. show: as in `parts_view`, by default all.

    Nothing in it runs, and it has no address of anything else. Write the text as UTF-8.
    """
    label = partial(token_label, found.tokenizer)
    return shaded.page(
        title or "Parts",
        panels(found, show or (*SHOWN,), label),
        text=f"""<p>What each part of the model writes to the stream. Hover over a token to see its number: what the
part adds to its logit, less the mean over the vocabulary; of a write alone, the probability.
{html.escape(errors(found))}</p>""",
        facts={f"Input, {len(found.tokens)} tokens": " ".join(html.escape(label(t)) for t in found.tokens.tolist())},
        away="takes from a logit; against the stream",
        towards="adds to it; along the stream; large",
        more="More digits",
    )


def parts_record(found: Parts) -> dict[str, Any]:
    """The same as data: an object for each part, with lists over the positions."""
    token = partial(token_record, found.tokenizer)

    def several(numbers: Tensor, **values: Tensor) -> list[list[dict[str, Any]]]:
        """For each position its tokens, each with these values."""
        lists = zip(numbers.tolist(), *(each.tolist() for each in values.values()), strict=True)
        return [
            [{**token(number), **dict(zip(values, given, strict=True))} for number, *given in zip(*each, strict=True)]
            for each in lists
        ]

    def part(n: int) -> dict[str, Any]:
        top = found.alone
        return {
            "label": found.labels[n],
            **{
                name: getattr(found, name)[n].tolist()
                for name in ("norm", "stream", "ratio", "cosine", "share", "mean")
            },
            "raised": several(found.raised.tokens[n], share=found.raised.share[n]),
            "lowered": several(found.lowered.tokens[n], share=found.lowered.share[n]),
            "alone": several(top.tokens[n], prob=top.prob[n], logprob=top.logprob[n], logit=top.logit[n]),
        }

    return {
        "schema": 1,
        "positions": found.positions.tolist(),
        "tokens": list(map(token, found.tokens.tolist())),
        "final_tokens": list(map(token, found.final_tokens.tolist())),
        "stream_error": found.stream_error.tolist(),
        "logit_error": found.logit_error.tolist(),
        "parts": list(map(part, range(len(found.labels)))),
    }


def panels(found: Parts, show: str | Iterable[str] | None, label: Callable[[int], str]) -> list[Panel]:
    """The grids. label: how a token is shown."""
    is_one = len(found.positions) == 1
    chosen = (DEFAULT_OF_ONE if is_one else DEFAULT) if show is None else names("show", show)
    for name in chosen:
        if name not in SHOWN:
            raise ValueError(f"parts have no {quoted(name)}; they have {', '.join(SHOWN)}")
    if not chosen:
        raise ValueError("show is empty: name what to show")
    if not is_one:
        above, below = ([label(token) for token in each.tolist()] for each in (found.final_tokens, found.tokens))
        columns = [str(position) for position in found.positions.tolist()]
        return [
            Panel(
                f"{name}: {SHOWN[name]}",
                "position",
                columns,
                [(part, row) for part, row in zip(found.labels, _cells(found, name, 0, label), strict=True)],
                ("output", above),
                ("input", below),
                f"{name}: {SHOWN[name]}",
            )
            for name in chosen
        ]
    places = [(name, k) for name in chosen for k in range(found.alone.tokens.shape[-1] if name in WORDS else 1)]
    columns_of = [_cells(found, name, k, label) for name, k in places]
    where = f"position {int(found.positions[0])}, after {label(int(found.tokens[0]))}; output "
    return [
        Panel(
            f"{where}{label(int(found.final_tokens[0]))}",
            "",
            [name if k == 0 else str(k + 1) for name, k in places],
            [(part, [column[n][0] for column in columns_of]) for n, part in enumerate(found.labels)],
        )
    ]


def errors(found: Parts) -> str:
    """By how much the sum of all parts misses what they make."""
    missed, miscounted = found.stream_error.max(), found.logit_error.abs().max()
    return f"The sum of all parts misses what they make by {missed:.0e} of it, and a logit by {miscounted:.0e}."


def legend(found: Parts) -> list[str]:
    """What the shading means, and the errors."""
    return [
        "blue: adds to a logit, along the stream, or large; orange: the opposite",
        "deepest: 1 of ratio, cosine and probability; the largest of norm and share",
        errors(found),
    ]


def _cells(found: Parts, name: str, k: int, label: Callable[[int], str]) -> list[list[Shaded]]:
    """What is shown of one kind, [part][pos]; k: of tokens the one that comes k after the first."""
    if name in NUMBERS:
        values: Tensor = getattr(found, name)
        decimals = 2 if float(values.abs().max()) < 1000 else 0
        texts = [[f"{round(value, decimals) + 0.0: .{decimals}f}" for value in row] for row in values.tolist()]
        exacts = [[exact(value) for value in row] for row in values.tolist()]
    else:
        of = getattr(found, name)
        values = of.prob[..., k] if name == "alone" else of.share[..., k]
        texts = [[f" {label(token)}" for token in row] for row in of.tokens[..., k].tolist()]
        exacts = [
            [f"{text[1:]} {exact(value)}" for text, value in zip(*both, strict=True)]
            for both in zip(texts, values.tolist(), strict=True)
        ]
    largest = 1.0 if name in ("ratio", "cosine", "alone") else float(values.abs().max()) or 1.0
    shades = (values / largest).tolist()
    return [list(map(Shaded, *row)) for row in zip(texts, shades, exacts, strict=True)]

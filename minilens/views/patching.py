"""Activation patching in the terminal and as one HTML file; patching_figure.py draws it.

A grid for each site: layers upwards with the last on top, positions or heads to the right. By head and position there
is a row for each head of each layer.
"""

import html
from collections.abc import Callable
from functools import partial

from rich.console import Group
from rich.text import Text

from ..instruments.patching import Patching
from . import shaded
from .grid import BOLD, DIM
from .shaded import Panel, Shaded, exact, signed
from .tokens import printable, token_label

PLACES = {
    "position": "a position",
    "head": "a head at all positions",
    "head_position": "a head at a position",
}


def patching_view(patching: Patching, *, title: str = "", width: int = 80) -> Group:
    """What each cell recovers, as grids of as many columns as fit the width.

    By position the corrupt text stands below them, and above them the clean one where it differs. Of several pairs of
    texts a token is shown where all have it.
    """
    lines = [Text(printable(title), BOLD)] if title else []
    for panel in panels(patching, partial(_label, patching)):
        lines += shaded.in_terminal(panel, width)
    return Group(*lines, *(Text(line, DIM) for line in legend(patching)))


def patching_page(patching: Patching, *, title: str = "") -> str:
    """One HTML file with what each cell recovers, and its metric to four significant digits.

    Nothing in it runs, and it has no address of anything else. Write the text as UTF-8.
    """
    n, clean, corrupt = len(patching.clean_tokens), exact(patching.clean), exact(patching.corrupt)
    texts = patching.clean_tokens.tolist(), patching.corrupt_tokens.tolist()
    many = f" All are means of {len(patching.texts)} pairs of texts." if patching.texts else ""
    return shaded.page(
        title or "Activation patching",
        panels(patching, partial(_label, patching)),
        text=f"""<p>Each cell is a run of the corrupt text in which one value, that of a layer and
{PLACES[patching.by]}, is replaced by the clean text's. The number is the part of the way from the corrupt run's
metric, {corrupt} (0), to the clean run's, {clean} (1), that the metric goes.{many} Cells that cannot change are
hatched: no path leads from them to the metric, or both runs have the same value there.</p>""",
        facts={
            f"Clean text, {n} tokens": _marked(*texts, partial(_label, patching)),
            f"Corrupt text, {n} tokens": _marked(*texts[::-1], partial(_label, patching)),
        },
        away="away, to -1",
        towards="to 1, towards the clean run",
        more=f"The metric itself, {corrupt} in the corrupt run and in cells that cannot change",
    )


def panels(patching: Patching, label: Callable[[int], str]) -> list[Panel]:
    """A grid for each site. label: how a token is shown."""
    has_positions = "position" in patching.by
    names = [str(column) for column in range(next(iter(patching.metric.values())).shape[-1])]
    above, below = columns(patching, label) if has_positions else (None, None)
    return [
        Panel(
            name=site,
            axis="position" if has_positions else "head",
            columns=names,
            rows=_rows(patching, site),
            above=None if above is None else ("clean", above),
            below=None if below is None else ("corrupt", below),
        )
        for site in patching.metric
    ]


def columns(patching: Patching, label: Callable[[int], str]) -> tuple[list[str], list[str]]:
    """Above them the clean text's tokens where the two texts differ, below them the corrupt text's."""
    clean, corrupt = patching.clean_tokens.tolist(), patching.corrupt_tokens.tolist()
    above = [label(ours) if ours != theirs else "" for ours, theirs in zip(clean, corrupt, strict=True)]
    return above, [label(token) for token in corrupt]


def legend(patching: Patching) -> list[str]:
    """What the numbers and the shading mean."""
    some_cannot = not all(can.all() for can in patching.can_change.values())
    clean, corrupt = exact(patching.clean), exact(patching.corrupt)
    return [
        f"recovered: 0 is the corrupt run (metric {corrupt}), 1 the clean one ({clean})",
        "blue: towards the clean run; orange: away from it; deepest from 1 and -1 on",
        *(["hatched: cannot change"] if some_cannot else []),
        *([f"means of {len(patching.texts)} pairs of texts"] if patching.texts else []),
    ]


def _rows(patching: Patching, site: str) -> list[tuple[str, list[Shaded]]]:
    """The cells of one site, from the first layer up; by head and position, from its first head up."""
    parts = patching.recovered(site), patching.metric[site], patching.can_change[site]
    n_layers, n_heads = parts[0].shape[0], parts[0].shape[1] if parts[0].ndim > 2 else 0
    names = [
        f"{layer}.{site}{f':{head}' if n_heads else ''}" for layer in range(n_layers) for head in range(n_heads or 1)
    ]
    rows = zip(*(part.flatten(0, -2).tolist() for part in parts), strict=True)
    return [
        (
            name,
            [Shaded(signed(far), far, f"metric {exact(metric)}", can) for far, metric, can in zip(*row, strict=True)],
        )
        for name, row in zip(names, rows, strict=True)
    ]


def _label(patching: Patching, token: int) -> str:
    """A token; nothing where several texts have different ones."""
    return token_label(patching.tokenizer, token) if token >= 0 else ""


def _marked(tokens: list[int], others: list[int], label: Callable[[int], str]) -> str:
    """A text, token by token, with a mark where the other differs."""
    marks = ["span" if token == other else "mark" for token, other in zip(tokens, others, strict=True)]
    return " ".join(f"<{m}>{html.escape(label(token) or '…')}</{m}>" for m, token in zip(marks, tokens, strict=True))

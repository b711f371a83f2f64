"""What can be shown of a table, by name: the terminal and figures know the same panels.

A panel is a short name (logit, prob, rank, kl), one of MEASURES, or who and what: one of WHOSE or a tracked token, with
one of PARTS, as in next_rank. token571_prob is of tracked token 571; tracked_prob stands for one panel for each.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from math import log
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..table import LensTable

SHORT = {"logit": "top_logit", "prob": "top_prob", "rank": "final_rank", "kl": "kl_final"}
# The 2020 post colours by what a row gives to its own best token, the 2021 code by what it gives to the output's.
STYLES = {"2020": SHORT, "2021": {**SHORT, "logit": "final_logit", "prob": "final_prob"}}
MEASURES = {
    "kl_final": "KL(output ‖ row) in nats",
    "kl_row_final": "KL(row ‖ output) in nats",
    "kl_input": "KL(input row ‖ row) in nats",
    "kl_row_input": "KL(row ‖ input row) in nats",
    "js": "Jensen-Shannon divergence of row and output in nats",
    "change": "KL(row ‖ row before) in nats",
    "entropy": "entropy in nats",
    "cross_entropy": "cross-entropy of the true next token in nats",
    "agrees": "whether the output's token is the row's best",
}
DERIVED = {"cross_entropy": "next", "agrees": "final"}  # measures that a table has where it has these statistics
WHOSE = {"top": "the row's best token", "final": "the output's token"}
WHOSE |= {"next": "the true next token", "input": "the input token"}
PARTS = {"logit": "logit", "prob": "probability", "logprob": "log-probability", "rank": "rank"}
# All but top_rank, which is always 1.
STANDINGS = [f"{who}_{part}" for who in (*WHOSE, "tracked") for part in PARTS if (who, part) != ("top", "rank")]
NAMES = (*SHORT, *MEASURES, *STANDINGS)
# What each kind of number is shaded by, in the terminal, on the page and in figures: from dark to bright, and ranks by
# their logarithm. Logits and log-probabilities have no ends: from the 5th to the 95th percentile of the numbers shown.
ENDS = {"prob": (0.0, 1.0), "rank": (1000.0, 1.0), "nats": (10.0, 0.0), "js": (log(2), 0.0), "agrees": (0.0, 1.0)}


class Panel(NamedTuple):
    """One number for each row and position."""

    value: Float[Tensor, "row pos"]  # in float64; not a number where there is none, as of no next token
    title: str
    kind: str  # one of PARTS, or "nats", "js" or "agrees"


def of_one_text(tables: LensTable | Sequence[LensTable]) -> list[LensTable]:
    """A table or several as a list. Raises ValueError where they are not of the same columns of the same run."""
    tables = [tables] if isinstance(tables, LensTable) else list(tables)
    if not tables:
        raise ValueError("there is no table to show: give at least one")
    for name in ("positions", "tokens", "next_tokens", "final_tokens"):
        if not all(torch.equal(getattr(table, name), getattr(tables[0], name)) for table in tables):
            raise ValueError(f"tables shown together must be of one model, text and choice of positions: {name} differ")
    return tables


def long_name(name: str, style: str | None = None) -> str:
    """What a short name stands for, in the style of a post or in ours; any other name as it is.

    Raises ValueError for an unknown style.
    """
    if style is not None and style not in STYLES:
        raise ValueError(f'there is no style "{style}"; there are {", ".join(STYLES)}')
    return (SHORT if style is None else STYLES[style]).get(name, name)


def spread(show: str | Iterable[str], track: Sequence[int]) -> list[str]:
    """The names, with one for each tracked token in place of tracked_rank and its like.

    Raises ValueError where there is no name, and where tracked tokens are named and there are none.
    """
    names: list[str] = []
    for name in [show] if isinstance(show, str) else show:
        if name in STANDINGS and name.startswith("tracked_"):
            if not track:
                raise ValueError(f'"{name}" is of tracked tokens, and there are none: give logit_lens tokens to track')
            names += [name.replace("tracked", f"token{token}") for token in track]
        else:
            names.append(name)
    if not names:
        raise ValueError("there is nothing to show: name one panel or more")
    return names


def stats_for(show: Iterable[str], style: str | None = None) -> set[str]:
    """The statistics that logit_lens must compute for these panels, and "top", which every view has in it.

    Raises ValueError for a panel or a style that does not exist.
    """
    return {"top"}.union(*(_needs(long_name(name, style)) for name in show))


def stat(table: LensTable, name: str) -> Any:
    """A statistic of the table. Raises ValueError where it was made without."""
    try:
        return getattr(table, name)
    except AttributeError as missing:
        raise ValueError(str(missing)) from None


def panel(table: LensTable, name: str, label: Callable[[int], str]) -> Panel:
    """The panel of this long name; label: how its title shows a tracked token.

    Raises ValueError for a panel that does not exist, and for what the table was made without.
    """
    _needs(name)
    if name in MEASURES:
        kind = name if name in ("js", "agrees") else "nats"
        return Panel(stat(table, name).double(), MEASURES[name], kind)
    who, _, part = name.rpartition("_")
    if who in WHOSE:
        value, whose = getattr(stat(table, who), part), WHOSE[who]
        value = value[..., 0] if who == "top" else value
    else:
        tracked = [f"token{token}" for token in table.track]
        if who not in tracked:
            raise ValueError(f'"{name}" is of a token that is not tracked; tracked are {", ".join(tracked) or "none"}')
        at = tracked.index(who)
        value, whose = getattr(table.tracked, part)[..., at], label(table.track[at])
    value = value.double()
    value = value.masked_fill(value == 0, torch.nan) if part == "rank" else value
    return Panel(value, f"{PARTS[part]} of {whose}", part)


def _needs(name: str) -> set[str]:
    """The statistics that a panel is read from, by its long name; tracked tokens come of their own accord."""
    if name in MEASURES:
        return {DERIVED.get(name, name)}
    if name in STANDINGS:
        return {name.rpartition("_")[0]} - {"tracked"}
    if re.fullmatch(f"token[0-9]+_({'|'.join(PARTS)})", name):
        return set()
    raise ValueError(f'there is no panel "{name}"; there are {", ".join(NAMES)}')

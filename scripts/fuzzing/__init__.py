"""What scripts/fuzz.py has minilens read, and a second reading to compare with.

A case changes a file or two of a good checkpoint (good.py): drawn at random (drawn.py), or made by hand (by_hand.py,
faulty.py). Two kinds are of published lenses (lenses.py).
"""

import random
from functools import cache
from pathlib import Path

from . import lenses
from .by_hand import HAND as OF_MODELS
from .drawn import DRAW as DRAW_MODELS
from .faulty import faulty
from .good import CONFIGS, Files, good

HAND, DRAW = OF_MODELS | lenses.HAND, DRAW_MODELS | lenses.DRAW
KINDS = tuple(HAND)


@cache
def by_hand(kind: str) -> dict[str, Files]:
    return dict(HAND[kind]()) | faulty(kind)


def write(kind: str, seed: int, name: str, folder: Path) -> None:
    """A case into a new folder; name: that of one made by hand, or the number of one that is drawn."""
    if name.isdigit():
        rng = random.Random(f"{seed} {kind} {name}")
        family = rng.choice(list(CONFIGS))
        files = DRAW[kind](rng, family)
    else:
        family = next((family for family in CONFIGS if name.startswith(family)), "gpt2")
        files = by_hand(kind)[name]
    base = lenses.good_lens(kind) if kind in lenses.FILES else good(family, form(kind))
    folder.mkdir()
    for file, content in {**base, **files}.items():
        if isinstance(content, bytes):
            (folder / file).write_bytes(content)
        elif content is not None:
            content(folder / file)


def form(kind: str) -> str:
    """The form of the weights of a kind's good checkpoint."""
    return {"index": "shards", "bin": "zip"}.get(kind, "safetensors")

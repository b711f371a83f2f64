"""What scripts/fuzz.py has minilens read, and a second reading to compare with.

A case changes a file or two of a good checkpoint (good.py): drawn at random (drawn.py), or made by hand (by_hand.py,
faulty.py).
"""

import random
from functools import cache
from pathlib import Path

from .by_hand import HAND
from .drawn import DRAW
from .faulty import faulty
from .good import CONFIGS, Files, good

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
    form = {"index": "shards", "bin": "zip"}.get(kind, "safetensors")
    folder.mkdir()
    for file, content in {**good(family, form), **files}.items():
        if isinstance(content, bytes):
            (folder / file).write_bytes(content)
        elif content is not None:
            content(folder / file)

"""The files that a user names for a sweep: on this machine, or on the Hub."""

import contextlib
import re
from collections.abc import Iterable
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from ..checkpoint.hub import COMMIT
from ..checkpoint.settings import read_json
from .documents import TextFile
from .hub_files import is_on_hub, on_hub

Names = str | PathLike[str] | TextFile | Iterable[str | PathLike[str] | TextFile]


def text_files(names: Names, folder: Path, *, lines: bool = False, key: str = "text") -> list[TextFile]:
    """The files of these names; a name on the Hub may stand for several (hub_files.py).

    folder: of the sweep. Where it has begun there, datasets are read in the commits in which it began.
    Raises ValueError for a file that cannot be read, or is not there.
    """
    given = [names] if isinstance(names, (str, PathLike, TextFile)) else names
    found = []
    for name in given:
        if isinstance(name, TextFile):
            found.append(name)
        elif is_on_hub(fspath(name)):
            found += [TextFile(file, lines, key) for file in on_hub(fspath(name), _commits(folder))]
        else:
            found.append(TextFile(Path(name), lines, key))
    return found


def _commits(folder: Path) -> dict[str, str]:
    """The commits that the sweeps of a folder have begun with, as OWNER/NAME@REVISION; a fit's are one folder down."""
    found: dict[str, Any] = {}
    for path in (*folder.glob("sweep.json"), *folder.glob("*/sweep.json")):
        with contextlib.suppress(ValueError, OSError):  # what is wrong with it, the sweep will say
            hub = read_json(path).get("hub")
            found |= hub if isinstance(hub, dict) else {}
    return {name: commit for name, commit in found.items() if re.fullmatch(COMMIT, str(commit))}

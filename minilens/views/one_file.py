"""A page as one HTML file, put together from the files in the folder page/."""

import json
import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..course.glossary import glossary

PARTS = Path(__file__).with_name("page")
SCRIPTS = ("elements", "statistics", "grid", "panel", "pins", "attention", "heads", "numbers", "controls", "start")


def one_file(
    record: dict[str, Any],
    *,
    style: str = "",
    script: str = "start();",
    asks: str = "",
    holds: str = "",
    connects: str = "'none'",
    runs: str = "",
) -> str:
    """The page that draws a record.

    style: more of it. script: what runs at the end of the page's own. asks: HTML above the grid. holds: script elements
    with more data. connects: where the page may send questions, by default nowhere. runs: what the policy lets it run
    beside that script, such as 'wasm-unsafe-eval': programs in WebAssembly that this script makes.

    The browser runs this script and no other, since the page names its hash.
    """
    scripts = [(PARTS / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    whole = "\n".join(['\n"use strict";\n', *scripts, script])
    puts = {
        "STYLE": (PARTS / "page.css").read_text(encoding="utf-8") + style,
        "HASH": f"'sha256-{b64encode(sha256(whole.encode()).digest()).decode()}' {runs}".rstrip(),
        "CONNECTS": connects,
        "ASKS": asks,
        "DATA": as_json({**record, "words": _words()}),
        "HOLDS": holds,
        "SCRIPT": whole,
    }
    page = (PARTS / "page.html").read_text(encoding="utf-8")
    return re.sub(f"PUT THE ({'|'.join(puts)}) HERE", lambda mark: puts[mark[1]], page)


def _words() -> dict[str, str]:
    """What the glossary says of the lens's numbers, for whoever points at their names."""
    subjects = ("The model", "The lens", "Information")
    known = [entry for entry in glossary() if entry.subject in subjects]
    return {word.partition("(")[0].lower(): entry.meaning for entry in known for word in entry.words}


def as_json(record: Any) -> str:
    """As small as JSON can be, in ASCII, with nothing in it that could end the script element it stands in."""
    text = json.dumps(record, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")

"""The words of docs/glossary.md, looked up."""

import re
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

MOST = 6  # entries that only mention a word


class Entry(NamedTuple):
    """A row of the glossary: its words, what they mean, and the heading above."""

    words: tuple[str, ...]
    meaning: str
    subject: str


@lru_cache(maxsize=1)
def glossary() -> tuple[Entry, ...]:
    """All entries, in the order of the page: in the package where it is installed, beside it in a checkout."""
    here = Path(__file__).parents[1]  # the package
    page = next(path for path in (here / "glossary.md", here.parent / "docs" / "glossary.md") if path.is_file())
    found, subject = [], ""
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            subject = line[3:]
        elif row := re.fullmatch(r"\| (.+?) \| (.+) \|", line):
            words, meaning = (each.replace("`", "") for each in row.groups())
            if words != "word":
                found.append(Entry(tuple(words.split(", ")), meaning, subject))
    return tuple(found)


def look_up(word: str) -> list[Entry]:
    """The entry of a word, whatever its case and though it is in the plural; else those that have it in their words, or
    in what they mean.

    Raises ValueError where there are none, with words that look alike.
    """
    asked = " ".join(word.lower().split())
    entries = glossary()
    for form in (asked, asked.removesuffix("s"), asked.partition("(")[0]):
        if found := [entry for entry in entries if any(_plain(each) in (form, _plain(form)) for each in entry.words)]:
            return found
    for text in (lambda entry: ", ".join(entry.words), lambda entry: entry.meaning):
        if found := [entry for entry in entries if re.search(rf"\b{re.escape(asked)}", text(entry).lower())]:
            return found[:MOST]
    known = {_plain(each): each for entry in entries for each in entry.words}
    alike = [known[each] for each in get_close_matches(asked, known, n=4)]
    told = f": did you mean {' or '.join(alike)}?" if alike else ": without a word, all are shown"
    raise ValueError(f'the glossary has no "{word}"{told}')


def _plain(word: str) -> str:
    """A word as it is compared: KL(p ‖ q) is kl."""
    return word.lower().partition("(")[0].strip()

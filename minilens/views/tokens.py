"""How every view shows a token."""

import re
import unicodedata

from ..checkpoint.tokenizer import Tokenizer

_MARKS = {" ": "·", "\n": "↵", "\t": "⇥"}
_ESCAPED = re.compile(
    # without ink, though str.isprintable() is true: Unicode's Default_Ignorable_Code_Point and the empty Braille cell
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
    # our own marks
    "|[·↵⇥∅◌]"
    # what would look like our own escapes
    r"|\\(?=x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})"
)
# Drawn onto the character before, though Unicode does not count them among its marks: vowels and final consonants of
# Hangul that are not composed, and the skin tones of emoji.
_JOINING = re.compile("[\u1160-\u11ff\ud7b0-\ud7ff\U0001f3fb-\U0001f3ff]")
MOST_MARKS = 4  # on one letter, as many as Hebrew with points and accents has; a pile of them would cover other lines


def visible(piece: bytes) -> str:
    r"""How every view shows a token: on one line, with nothing hidden, and safe to print in a terminal.

    A space is `·`, a newline `↵`, a tab `⇥`, the empty piece `∅`. A byte that is not UTF-8, or an ASCII control
    character, is `\x1b`; any other character without ink is `\u200b` or `\U000e0001`. A combining character that has
    nothing in the piece to stand on gets a `◌`, and the fifth on one letter is escaped.

    Two different pieces never look alike: the marks above are escaped where the piece itself has them, and so is a
    backslash that seems to begin an escape. Any other backslash is left alone.
    """
    return _visible(piece.decode(errors="surrogateescape"))


def _visible(text: str) -> str:
    shown, marks = "", -1  # on the letter before; -1: there is none
    for at, char in enumerate(text):
        joins = unicodedata.category(char).startswith("M") or bool(_JOINING.match(char))
        if char in _MARKS:
            cell = _MARKS[char]
        elif not char.isprintable() or _ESCAPED.match(text, at) or (joins and marks == MOST_MARKS):
            cell = _escape(char)
        elif joins and marks < 0:
            cell = "◌" + char
        else:
            cell = char
        shown += cell
        marks = -1 if not cell.endswith(char) else max(marks, 0) + 1 if joins else 0
    return shown or "∅"


def _escape(char: str) -> str:
    if char < "\x80" or "\udc80" <= char <= "\udcff":  # a byte; surrogateescape reads the broken byte b as U+DC00 + b
        return f"\\x{ord(char) % 256:02x}"
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


def token_label(tokenizer: Tokenizer | None, token: int) -> str:
    """The text of a token with nothing hidden in it; its id where there is no text for it."""
    try:
        return visible(tokenizer.piece(token)) if tokenizer else f"#{token}"
    except ValueError:  # a vocabulary may be padded with ids that the tokenizer does not have
        return f"#{token}"


def text_label(text: str) -> str:
    """A name or a text with nothing hidden in it; spaces stay spaces."""
    return " ".join(_visible(part) if part else "" for part in text.split(" "))


def as_unicode(name: str) -> str:
    """A name for JSON, which has no lone surrogates: Python has them for the bytes of a path that are not UTF-8."""
    return name.encode(errors="backslashreplace").decode()


def printable(text: str) -> str:
    """A line that may hold labels, with what a terminal or a browser would obey escaped, and the labels as they are."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

"""The parts of a tokenizer.json: those that a tokenizer of GPT-2 or GPT-Neo can have, within bounds.

The tokenizers package takes other parts, too. Some of them let a text grow without end or search it for ever, and some
bring its process down. So nothing else is let through.
"""

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from .settings import CheckpointError, shown

# What each part of the file may be. A Sequence holds others; of a Split and a Replace see `_fault`.
PARTS = {
    "model": "BPE Unigram WordLevel WordPiece",
    "normalizer": "Sequence NFC NFD NFKC NFKD Nmt BertNormalizer Lowercase Prepend Replace Strip StripAccents",
    "pre_tokenizer": "Sequence BertPreTokenizer ByteLevel CharDelimiterSplit Digits Metaspace Punctuation Split "
    "UnicodeScripts Whitespace WhitespaceSplit",
    "decoder": "Sequence BPEDecoder ByteFallback ByteLevel Fuse Metaspace Replace Strip WordPiece",
}
MOST_PARTS, MOST_GROWTH, LONGEST, LONGEST_WORD, LONGEST_ENTRY = 20, 10, 100, 200, 256

# The patterns that published tokenizers cut text with; any other could search for ever.
PATTERNS = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
    *(  # GPT-4 and Llama 3; Qwen
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|"
        r"\s*[\r\n]+|\s+(?!\S)|\s+"
        for digits in (r"\p{N}{1,3}", r"\p{N}")
    ),
    r"[\s\S]",  # letter by letter, as scripts/convert.py writes it for nanoGPT
    r"\s+",
    r" {2,}",
    r"\d",
    r"\p{N}",
    r"\p{N}{1,3}",
]


def check_parts(document: dict[str, Any], path: Path) -> None:
    """Raise CheckpointError for a part that a tokenizer of these families does not have."""
    for name in PARTS:
        parts = list(_parts(document.get(name)))
        fault = next(filter(None, (_fault(name, part) for part in parts)), None)
        if not fault and len(parts) > MOST_PARTS:
            fault = f"has more than {MOST_PARTS} parts"
        if not fault and name != "model" and prod(map(_growth, parts)) > MOST_GROWTH:
            fault = f"may make a text more than {MOST_GROWTH} times as long"
        if fault:
            raise CheckpointError(f"{path} is no tokenizer that GPT-2 or GPT-Neo can have: its {name} {fault}")


def _parts(part: Any) -> Iterator[Any]:
    """The part and those within it; None is no part."""
    if part is not None:
        yield part
    for name in ("normalizers", "pretokenizers", "decoders"):
        inner = part.get(name) if isinstance(part, dict) else None
        for each in inner if isinstance(inner, list) else ():
            yield from _parts(each)


def _fault(name: str, part: Any) -> str | None:
    """What is wrong with a part, as a clause."""
    if not isinstance(part, dict):
        return f"is {shown(part)}"
    kind = part.get("type", "BPE" if name == "model" else None)  # older files do not say it of the model
    if kind not in PARTS[name].split():
        return f"is of the type {shown(kind)}"
    if name == "model":
        return _model_fault(part)
    pattern = part.get("pattern")
    pattern = pattern if isinstance(pattern, dict) else {}
    found = list(pattern.values())
    if "Regex" in pattern and pattern["Regex"] not in PATTERNS:
        return f"has the pattern {shown(pattern['Regex'])}, which could search for ever"
    if "" in found:
        return "has an empty pattern"
    texts = [text for text in (*part.values(), *found) if isinstance(text, str)]
    if any(len(text) > LONGEST and text not in PATTERNS for text in texts):
        return f"has a text of more than {LONGEST} characters"
    return None


def _growth(part: dict[str, Any]) -> float:
    """How many times as long a part may make a text, at most. Unicode's own forms lengthen a few letters.

    What is put before a text is put before each of its parts between added tokens, which may be one letter long.
    """
    content, pattern, prepend = (part.get(key) for key in ("content", "pattern", "prepend"))
    if part["type"] == "Prepend" and isinstance(prepend, str):
        return 1.0 + len(prepend)
    if part["type"] == "Replace" and isinstance(content, str) and isinstance(pattern, dict):
        found = pattern.get("String")
        return max(1.0, len(content) / len(found) if isinstance(found, str) else float(len(content)))
    return 1.0


def _model_fault(model: dict[str, Any]) -> str | None:
    """What is wrong with a model of any type, as a clause: an older file does not say of which it is."""
    if model.get("dropout"):
        return f"has a dropout of {shown(model['dropout'])}, and so other tokens each time"
    longest = model.get("max_input_chars_per_word", 0)
    if type(longest) is not int or longest > LONGEST_WORD:
        return f"takes words of more than {LONGEST_WORD} characters"
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if isinstance(text := model.get(key), str) and len(text) > LONGEST:
            return f"has a {key} of more than {LONGEST} characters"
    entries, merges, prefix = (model.get(key) for key in ("vocab", "merges", "continuing_subword_prefix"))
    if isinstance(merges, list) and isinstance(prefix, str):
        for merge in merges:  # the package cuts so much off the second part, whether it is the prefix or not
            parts = merge.split(" ") if isinstance(merge, str) else merge
            if isinstance(parts, list) and parts and not str(parts[-1]).startswith(prefix):
                return f"merges {shown(merge)}, which does not go on with {shown(prefix)}"
    if isinstance(entries, list):
        texts = [entry[0] for entry in entries if isinstance(entry, list) and entry]
        if any(isinstance(text, str) and len(text) > LONGEST_ENTRY for text in texts):
            return f"has an entry of more than {LONGEST_ENTRY} characters"
    return None

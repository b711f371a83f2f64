"""What the arguments of the command name: texts, tokens, places, files; each is read, or refused in one sentence."""

import argparse
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch

from .edits import mean, patch, then, zero
from .ops import check_layer
from .run import run
from .shapes import Tokens
from .text import Tokenizer
from .trace import Edit, Model, untouched
from .views.tokens import printable, token_label

# Bytes of a text. The longest context of these families holds 2048 tokens, and the longest token of GPT-2's vocabulary
# has 128 bytes: a text of four times as much is refused before it takes time and memory.
LARGEST = 1_000_000


def say(message: str) -> None:
    """One line on stderr, with nothing in it that a terminal would obey: names and paths may hold anything."""
    sys.stderr.write(f"minilens: {printable(message)}\n")  # at once: other workers write there, too


def words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def given_text(args: argparse.Namespace) -> str | None:
    """The text to read, from the one place where the user put it; None where there are token ids instead."""
    sources = {"a text": args.prompt, "--file": args.file, "--ids": args.ids}
    given = [source for source, value in sources.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"{given[0]} and {given[1]} are both given: choose one")
    if args.ids is not None:
        return None
    if args.prompt is not None:
        return str(args.prompt)
    if args.file is None and (sys.stdin is None or sys.stdin.isatty()):
        raise ValueError("there is nothing to read: give a text, --file, --ids, or text on stdin")
    return read_text(args.file)


def read_text(path: Path | None) -> str:
    """The text of a file, or of stdin, less the newline at its end."""
    source = "stdin" if path is None else str(path)
    try:
        with nullcontext(sys.stdin.buffer) if path is None else path.open("rb") as file:
            raw = file.read(LARGEST + 1)
        if len(raw) > LARGEST:
            raise ValueError(f"{source} has more than {LARGEST:,} bytes, too many for any context: shorten it")
        return raw.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8: it has the byte 0x{raw[error.start]:02x} at {error.start}") from error
    except OSError as error:
        raise ValueError(f"{source} cannot be read: {error.strerror}") from error


def given_tokens(args: argparse.Namespace, text: str | None, tokenizer: Tokenizer | None) -> Tokens:
    """Those of the text, or where there is none the ids that the user gave."""
    if text is None:
        try:
            return torch.tensor([[int(number) for number in args.ids.replace(",", " ").split()]], dtype=torch.long)
        except (ValueError, RuntimeError) as error:  # torch 2.6 has the second for a number beyond 64 bits
            raise ValueError(f'--ids must be whole numbers, such as "464 3290"; got {args.ids!r}') from error
    if tokenizer is None:
        raise ValueError(f"{args.model} has no tokenizer files, so it cannot read text: give token ids with --ids")
    if hint := tokenizer.hint(text):
        say(f"note: {hint}")
    return tokenizer.encode(text)


def given_pair(args: argparse.Namespace, tokenizer: Tokenizer | None) -> tuple[Tokens, Tokens]:
    """The tokens of two texts that match position by position."""
    if tokenizer is None:
        raise ValueError(f"{args.model} has no tokenizer files, so it cannot read the two texts")
    for hint in dict.fromkeys(tokenizer.hint(text) for text in (args.clean, args.corrupt)):
        if hint:
            say(f"note: {hint}")
    clean, corrupt = tokenizer.encode(args.clean), tokenizer.encode(args.corrupt)
    if not clean.shape[1] and not corrupt.shape[1]:
        raise ValueError("both texts are empty: they must hold at least one token")
    if clean.shape != corrupt.shape:
        ours, theirs = (
            " ".join(token_label(tokenizer, token) for token in text[0].tolist()) for text in (clean, corrupt)
        )
        raise ValueError(
            f"patching needs two texts of as many tokens; clean has {clean.shape[1]}: {ours}; corrupt has "
            f"{corrupt.shape[1]}: {theirs}"
        )
    return clean, corrupt


def named_token(option: str, text: str, tokenizer: Tokenizer | None) -> int:
    """The token that a text is, or the id that it names."""
    if re.fullmatch("#[0-9]{1,9}", text):
        return int(text[1:])
    if tokenizer is None:
        raise ValueError(f"{option} needs a token id, such as #464, for a model without a tokenizer; got {text!r}")
    try:
        tokens = tokenizer.encode(text)[0].tolist()
    except ValueError as error:
        raise ValueError(f"{option} cannot be read: {error}") from error
    if len(tokens) != 1:
        parts = " ".join(token_label(tokenizer, token) for token in tokens)
        raise ValueError(
            f"{option} takes one token, and {text!r} is {len(tokens)}: {parts}; a word within a text often begins with "
            "a space, and #464 is the token with that id"
        )
    return int(tokens[0])


def places(option: str, text: str | None, n: int) -> list[int] | None:
    """Places such as 0,3,-1 or 5:10, among n."""
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        try:
            if ":" in part:
                found += range(n)[slice(*(int(end) if end else None for end in part.split(":")))]
            else:
                place = int(part)
                found.append(place + n if -n <= place < 0 else place)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{option} must look like 0,3,-1 or 5:10; got {text!r}") from error
    return found


class Where(NamedTuple):
    """The place that an edit on the command line names."""

    layer: int
    site: str
    heads: list[int] | None
    positions: list[int] | None


def check_edits(args: argparse.Namespace) -> None:
    """Refuse edits without a text that they need, such a text without edits, and what is no place."""
    needy = [option for option, named in (("--mean", args.mean), ("--patch", args.patch)) if named]
    if needy and args.source is None:
        raise ValueError(f"{needy[0]} needs --from, the text that its values come from")
    if args.source is not None and not needy:
        raise ValueError("--from is the text of --patch and --mean, and there is none of them")
    for place in (*args.zero, *args.mean, *args.patch):
        _where(place)


def named_edits(args: argparse.Namespace) -> list[str]:
    """The edits in words, so that nobody takes what comes out for the model's own."""
    source = "" if args.source is None else f" from {args.source!r}"
    edits = {"zero": "", "mean": source, "patch": source}
    return [f"{name} {place}{text}" for name, text in edits.items() for place in getattr(args, name)]


def given_edit(args: argparse.Namespace, model: Model, tokenizer: Tokenizer | None) -> Edit:
    """All edits of the command line as one: first zeros, then means, then patches."""
    edits = [zero(layer, site, positions=at, heads=heads) for layer, site, heads, at in map(_where, args.zero)]
    if args.source is not None:
        if tokenizer is None:
            raise ValueError(f"{args.model} has no tokenizer files, so it cannot read the text of --from")
        wanted = [(mean, _where(text)) for text in args.mean] + [(patch, _where(text)) for text in args.patch]
        for _, where in wanted:
            check_layer(where.layer, model.n_layers)
        try:
            source = model.embed(tokenizer.encode(args.source))
        except ValueError as error:
            raise ValueError(f"the text of --from cannot be read: {error}") from error
        for block in run(model, source, stop=1 + max(where.layer for _, where in wanted)):
            for builder, (layer, site, heads, at) in wanted:
                if layer == block.layer:
                    edits.append(builder(block, site, positions=at, heads=heads))
    return then(*edits) if edits else untouched


def _where(text: str) -> Where:
    """5.attn_out, 5.z:0,3 for heads, 3.resid_post@-1 for positions, or both, heads first."""
    found = re.fullmatch(r"([0-9]{1,9})\.(\w+)(?::([-0-9,]+))?(?:@([-0-9,]+))?", text, re.ASCII)
    try:
        layer, site, *lists = found.groups() if found else ("",) * 4
        heads, positions = ([int(n) for n in numbers.split(",")] if numbers else None for numbers in lists)
        return Where(int(layer), site, heads, positions)
    except ValueError as error:
        raise ValueError(
            f"an edit is named like 5.attn_out, 5.z:0,3 (heads) or 3.resid_post@-1 (positions); got {text!r}"
        ) from error


def check_new(path: Path, overwrite: bool) -> None:
    """Refuse a file that cannot be written, or should not."""
    if path.is_symlink() or (path.exists() and not path.is_file()):  # a device, say, whose place a file would take
        raise ValueError(f"{path} is not a file that could be replaced")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists: give another name, or --overwrite")
    if not path.parent.is_dir():
        raise ValueError(f"{path} cannot be written: there is no such folder")

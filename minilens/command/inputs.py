"""What a command reads: texts, tokens, places, a model."""

import argparse
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TypeAlias

import torch

from ..checkpoint.tokenizer import Tokenizer
from ..shapes import Tokens
from ..views.tokens import token_label
from .outputs import say

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_source(parser: argparse.ArgumentParser) -> None:
    """The text, and the model that reads it."""
    parser.add_argument("prompt", nargs="?", help="the text to read; without one it comes from --file or from stdin")
    parser.add_argument("--file", type=Path, help="read the text from a file, less the newline at its end")
    parser.add_argument("--ids", help='token ids instead of text, such as "464 3290"')
    add_model(parser)


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help="a bundled model, a folder or a Hub repository (default: %(default)s)"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a Hub repository")
    add_ignored(parser)


def add_ignored(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ignore-key",
        action="append",
        default=[],
        metavar="KEY",
        help="a key of config.json that minilens does not know, and that you know to change no number; may be repeated",
    )


DEFAULT_MODEL = "tales-gpt2"

# Bytes of a text. The longest context of these families holds 2048 tokens, and the longest token of GPT-2's vocabulary
# has 128 bytes: a text of four times as much is refused before it takes time and memory.
LARGEST = 1_000_000


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
        return raw.decode("utf-8-sig").removesuffix("\n")  # a byte order mark is no part of the text
    except UnicodeDecodeError as error:
        if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise ValueError(f"{source} is UTF-16: save it as UTF-8") from error
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
        raise ValueError(
            f"{args.model} has no tokenizer that minilens reads, so it cannot read text: give token ids with --ids"
        )
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

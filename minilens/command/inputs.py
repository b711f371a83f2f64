"""What a command reads: a model, texts, tokens, places."""

import re
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from ..checkpoint.tokenizer import Tokenizer, with_space
from ..device import PRECISIONS
from ..loading import load
from ..model import Model
from ..shapes import Tokens
from ..views.tokens import token_label
from .options import argument, option
from .outputs import say

DEFAULT_MODEL = "tales-gpt2"
PRECISION = {  # the option of the commands that decode rows
    "choices": PRECISIONS,
    "default": "full",
    "metavar": "PRECISION",
    "help": "of the products with the unembedding: full; bfloat16, quicker where the processor has it; emulated, the "
    "same on any (default: %(default)s)",
}
DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}

# Bytes of a text. The longest context of these families holds 2048 tokens, and the longest token of GPT-2's vocabulary
# has 128 bytes: a text of four times as much is refused before it takes time and memory.
LARGEST = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the checkpoint is read."""

    revision: str | None = option(help="branch, tag or commit of a Hub repository")
    ignore_key: list[str] = option(
        action="append",
        default=[],
        metavar="KEY",
        help="a key of config.json that minilens does not know, and that you know to change no number; may be repeated",
    )


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How the model is loaded."""

    reading: Reading
    device: str | None = option(
        help="such as cpu or cuda:1 (default: cpu; for corpus and fit a GPU for each worker, if any)"
    )
    dtype: str = option(
        choices=DTYPES, default="float32", metavar="DTYPE", help=f"{', '.join(DTYPES)} (default: %(default)s)"
    )

    def load(self, name: str, device: str | None = None, *, mmap: bool = True) -> tuple[Model, Tokenizer | None]:
        """device: where the model goes if the user does not say. mmap: as for `minilens.load`."""
        reading, device, dtype = self.reading, self.device or device, DTYPES[self.dtype]
        return load(name, revision=reading.revision, ignoring=reading.ignore_key, device=device, dtype=dtype, mmap=mmap)

    def load_reader(
        self, name: str, what: str, device: str | None = None, *, mmap: bool = True
    ) -> tuple[Model, Tokenizer]:
        """A model that can read text. what: which text, for the error where it cannot."""
        model, tokenizer = self.load(name, device, mmap=mmap)
        if tokenizer is None:
            raise ValueError(f"{name} has no tokenizer that minilens reads, so it cannot read {what}")
        return model, tokenizer


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """The model."""

    name: str = option(
        "--model",
        metavar="MODEL",
        default=DEFAULT_MODEL,
        help="a bundled model, a folder or a Hub repository (default: %(default)s)",
    )
    loading: Loading

    def load(self) -> tuple[Model, Tokenizer | None]:
        return self.loading.load(self.name)


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How a text opens."""

    bos: bool = option(help="put the tokenizer's opening token, such as <|endoftext|>, before every text")

    def of(self, text: str, tokenizer: Tokenizer) -> str:
        """The text as the model reads it."""
        if not self.bos:
            return text
        if tokenizer.bos is None:
            instead = f"; begin with a control code, such as {tokenizer.codes[0]}" if tokenizer.codes else ""
            raise ValueError(f"--bos: the tokenizer has no opening token{instead}")
        return tokenizer.bos + text


@dataclass(frozen=True, kw_only=True)
class Source:
    """The text, and the model that reads it."""

    prompt: str | None = argument(
        nargs="?", help="the text to read; without one it comes from --file or from stdin; after -- it may begin with -"
    )
    file: Path | None = option(help="read the text from a file, less the newline at its end")
    ids: str | None = option(help='token ids instead of text, such as "464 3290"')
    opening: Opening
    model: ModelChoice

    def read(self) -> tuple[Model, Tokenizer | None, Tokens]:
        """The model, and the tokens of the text that it reads."""
        text = self._text()
        model, tokenizer = self.model.load()
        if text is None:
            return model, tokenizer, self._tokens()
        if tokenizer is None:
            why = f"{self.model.name} has no tokenizer that minilens reads, so it cannot read text"
            raise ValueError(f"{why}: give token ids with --ids")
        if hint := tokenizer.hint(text):
            say(f"note: {hint}")
        return model, tokenizer, tokenizer.encode(self.opening.of(text, tokenizer))

    def _text(self) -> str | None:
        """The text, from the one place where the user put it; None where there are token ids instead."""
        sources = {"a text": self.prompt, "--file": self.file, "--ids": self.ids}
        given = [source for source, value in sources.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{given[0]} and {given[1]} are both given: choose one")
        if self.ids is not None:
            if self.opening.bos:
                raise ValueError("--bos is for text: put the token's id before the others of --ids")
            return None
        if self.prompt is not None:
            return self.prompt
        if self.file is None and (sys.stdin is None or sys.stdin.isatty()):
            raise ValueError("there is nothing to read: give a text, --file, --ids, or text on stdin")
        return read_text(self.file)

    def _tokens(self) -> Tokens:
        try:
            return torch.tensor(
                [[int(number) for number in (self.ids or "").replace(",", " ").split()]], dtype=torch.long
            )
        except (ValueError, RuntimeError) as error:  # torch 2.6 has the second for a number beyond 64 bits
            raise ValueError(f'--ids must be whole numbers, such as "464 3290"; got {self.ids!r}') from error


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two texts."""

    clean: str = argument(help="the text whose values are taken")
    corrupt: str = argument(help="the text they are put into: as many tokens, and some of them others")
    opening: Opening

    def tokens(self, tokenizer: Tokenizer) -> tuple[Tokens, Tokens]:
        """Those of both texts, which must match position by position."""
        for hint in dict.fromkeys(tokenizer.hint(text) for text in (self.clean, self.corrupt)):
            if hint:
                say(f"note: {hint}")
        clean, corrupt = (tokenizer.encode(self.opening.of(text, tokenizer)) for text in (self.clean, self.corrupt))
        if not clean.shape[1] and not corrupt.shape[1]:
            raise ValueError("both texts are empty: they must hold at least one token")
        if clean.shape != corrupt.shape:
            ours, theirs = (labels(tokenizer, text[0].tolist()) for text in (clean, corrupt))
            raise ValueError(
                f"patching needs two texts of as many tokens; clean has {clean.shape[1]}: {ours}; corrupt has "
                f"{corrupt.shape[1]}: {theirs}"
            )
        return clean, corrupt


def words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def labels(tokenizer: Tokenizer, tokens: list[int]) -> str:
    return " ".join(token_label(tokenizer, token) for token in tokens)


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


def named_token(option: str, text: str, tokenizer: Tokenizer | None) -> int:
    """The token that a text is, or the id that it names. Says so where the text seems to lack a space before it."""
    if re.fullmatch("#[0-9]{1,9}", text):
        return int(text[1:])
    if tokenizer is None:
        raise ValueError(f"{option} needs a token id, such as #464, for a model without a tokenizer; got {text!r}")
    try:
        tokens, spaced = tokenizer.encode(text)[0].tolist(), with_space(tokenizer, text)
    except ValueError as error:
        raise ValueError(f"{option} cannot be read: {error}") from error
    meant = f"did you mean {spaced!r}?" if spaced else ""
    if len(tokens) != 1:
        way = meant or "a word within a text often begins with a space."
        parts = labels(tokenizer, tokens)
        raise ValueError(
            f"{option} takes one token, and {text!r} is {len(tokens)}: {parts}; {way} #464 is the token with that id"
        )
    if meant:
        say(f"note: {option} {text!r} has no space before it: {meant}")
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

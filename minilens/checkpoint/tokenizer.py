r"""Text to tokens and back, exactly as the checkpoint's own tokenizer does it: no token is added, none is hidden.

GPT-2 and GPT-Neo cut text into pieces of bytes, so that every text has tokens and decodes to itself (but for the space
that a checkpoint may ask for before it, add_prefix_space). CTRL cuts it into pieces of words: white space between words
is dropped, and a character that is not in the vocabulary becomes `<unk>`. Models of the first two families may come
with another tokenizer, of words or of sentencepiece: it is run as its file has it.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import heappop, heappush
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, overload, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from ..arguments import LONGEST, quoted, whole_number, whole_numbers
from ..shapes import Tokens
from .settings import one_line

if TYPE_CHECKING:
    import tokenizers


NOTHING: Mapping[str, str] = MappingProxyType({})
SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character in UTF-16, and none on its own
MOST_TOLD = 12  # tokens that an error names


@runtime_checkable
class Tokenizer(Protocol):
    """What the rest of minilens knows of a tokenizer."""

    size: int  # the ids are those below it
    codes: tuple[str, ...]  # control codes, one of which a text should open with; for most models there are none
    bos: str | None  # the token that stood before texts in training, as <|endoftext|>; encode puts it nowhere

    @overload
    def encode(self, text: str) -> Tokens: ...
    @overload
    def encode(self, text: list[str]) -> tuple[Tokens, Int[Tensor, "batch"]]: ...
    def encode(self, text: str | list[str]) -> Tokens | tuple[Tokens, Int[Tensor, "batch"]]:
        """The tokens of a text, int64 of shape [1, pos]; of a list of texts, one row each and the rows' lengths.

        Short rows are padded on the right with id 0. A causal model needs no mask for that: no position sees what
        follows it. Raises ValueError for text that is not valid Unicode.
        """
        ...

    def decode(self, tokens: Tensor | Sequence[int]) -> str:
        """The text of one row of tokens, special tokens included. Raises ValueError for an id that does not exist."""
        ...

    def id(self, text: str) -> int:
        """The token that is this text, such as " girl". Raises ValueError for a text that is not one token."""
        ...

    def tokens(self, text: str) -> list[str]:
        """The tokens of a text as strings: what each stands for, with bytes that are no character as \\xf0."""
        ...

    def piece(self, token: int) -> bytes:
        """What one token stands for. Raises ValueError for an id that does not exist."""
        ...

    def hint(self, text: str) -> str | None:
        """One sentence of advice for a prompt that the model was not trained for."""
        ...

    def state(self) -> str:
        """All that tokens depend on; tokenizers in which it is the same are the same."""
        ...

    @property
    def special(self) -> Mapping[str, str]:
        """The tokens that are no part of the language, and which file each is from."""
        ...


def with_space(tokenizer: Tokenizer, text: str) -> str | None:
    """The text with a space before it, where that is one token and another one than without: it may be meant."""
    spaced = tokenizer.encode(f" {text}")[0].tolist()
    is_other = text[:1].isalnum() and len(spaced) == 1 and spaced != tokenizer.encode(text)[0].tolist()
    return f" {text}" if is_other else None


def _id(self: Tokenizer, text: str) -> int:
    """The token that is this text, such as " girl" with its space. Raises ValueError for a text that is not one token.

    The error says which tokens it is, and asks for the space where a space is missing.
    """
    tokens = self.tokens(text)
    if len(tokens) != 1:
        parts = ", ".join(map(repr, tokens[:MOST_TOLD])) + ", …" * (len(tokens) > MOST_TOLD)
        meant = with_space(self, text)
        way = f"did you mean {meant!r}?" if meant else "a word within a text often begins with a space"
        told = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
        raise ValueError(f"{told!r} is {len(tokens)} tokens{': ' * bool(parts)}{parts}; {way}")
    return int(self.encode(text)[0, 0])


def _tokens(self: Tokenizer, text: str) -> list[str]:
    """The tokens of a text as strings: what each stands for, not yet made visible as the views do it.

    Bytes that are only part of a character are written as \\xf0. CTRL's pieces have their @@. Raises ValueError for
    what is no text, and as `encode` does.
    """
    if not isinstance(text, str):
        raise ValueError(f"text must be one text; got {quoted(text)}")
    return [self.piece(token).decode(errors="backslashreplace") for token in self.encode(text)[0].tolist()]


def _in_short(self: Tokenizer) -> str:
    """The repr: kind, size, and how texts open."""
    opens = f"{len(self.codes)} control codes" if self.codes else f"opening token {quoted(self.bos)}"
    return f"{type(self).__name__} of {self.size} tokens, {opens}"


# GPT-2's alphabet for bytes (bytes_to_unicode in openai/gpt-2, src/encoder.py): a printable Latin-1 character stands
# for its own byte; the other bytes, in order, have the characters from U+0100 on.
_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + n): byte for n, byte in enumerate(_OTHERS)}


class ByteBPE:
    """Byte-level BPE (GPT-2, Radford et al. 2019), run by the `tokenizers` package."""

    codes: tuple[str, ...] = ()
    id, tokens, __repr__ = _id, _tokens, _in_short

    def __init__(
        self, bpe: "tokenizers.Tokenizer", special: Mapping[str, str] = NOTHING, bos: str | None = None
    ) -> None:
        self._bpe, self.special, self.bos = bpe, special, bos
        self.size = 1 + max(bpe.get_vocab().values(), default=-1)
        self._added = bpe.get_added_tokens_decoder()

    @overload
    def encode(self, text: str) -> Tokens: ...
    @overload
    def encode(self, text: list[str]) -> tuple[Tokens, Int[Tensor, "batch"]]: ...
    def encode(self, text: str | list[str]) -> Tokens | tuple[Tokens, Int[Tensor, "batch"]]:
        """The tokens of a text, int64 of shape [1, pos]; of a list of texts, one row each and the rows' lengths.

        Short rows are padded on the right with id 0. Raises ValueError for text that is not valid Unicode.
        """
        return _encode(text, self._ids)

    def decode(self, tokens: Tensor | Sequence[int]) -> str:
        """The text of one row of tokens, special tokens included. Raises ValueError for an id that does not exist.

        A token may end within a character; bytes that are not UTF-8 decode to U+FFFD.
        """
        return b"".join(map(self.piece, _row(tokens))).decode(errors="replace")

    def piece(self, token: int) -> bytes:
        """The bytes of a token, perhaps broken UTF-8; an added token's text in UTF-8. Raises ValueError as decode."""
        token = whole_number("token", token)
        entry = self._bpe.id_to_token(token) if 0 <= token < self.size else None
        if entry is None:
            raise _no_such_token(token, self.size)
        if token in self._added or not all(char in _BYTE_OF for char in entry):
            return entry.encode()
        return bytes(_BYTE_OF[char] for char in entry)

    def hint(self, text: str) -> None:
        """None: any text will do."""

    def state(self) -> str:
        """All that tokens depend on; tokenizers in which it is the same are the same."""
        return self._bpe.to_str()

    def _ids(self, text: str) -> list[int]:
        return _ids_by(self._bpe, text)


class Subwords:
    """Any other tokenizer of the `tokenizers` package, as its file has it: of words, of sentencepiece, of letters."""

    codes: tuple[str, ...] = ()
    id, tokens, __repr__ = _id, _tokens, _in_short

    def __init__(
        self, raw: "tokenizers.Tokenizer", special: Mapping[str, str] = NOTHING, bos: str | None = None
    ) -> None:
        self._raw, self.special, self.bos = raw, special, bos
        self.size = 1 + max(raw.get_vocab().values(), default=-1)
        self._space = getattr(raw.decoder, "replacement", "\N{LOWER ONE EIGHTH BLOCK}")  # how sentencepiece writes it

    @overload
    def encode(self, text: str) -> Tokens: ...
    @overload
    def encode(self, text: list[str]) -> tuple[Tokens, Int[Tensor, "batch"]]: ...
    def encode(self, text: str | list[str]) -> Tokens | tuple[Tokens, Int[Tensor, "batch"]]:
        """The tokens of a text, int64 of shape [1, pos]; of a list of texts, one row each and the rows' lengths.

        Short rows are padded on the right with id 0. Raises ValueError for text that is not valid Unicode, and for a
        text that the vocabulary cannot spell and has no token for.
        """
        return _encode(text, self._ids)

    def decode(self, tokens: Tensor | Sequence[int]) -> str:
        """The text of one row of tokens, special tokens included. Raises ValueError for an id that does not exist.

        The text is as its own decoder joins it, which need not be the one that was read.
        """
        row = _row(tokens)
        for token in row:
            self.piece(token)
        return self._raw.decode(row, skip_special_tokens=False)

    def piece(self, token: int) -> bytes:
        """The entry of the vocabulary in UTF-8, with spaces as such. Raises ValueError for an id that is not there."""
        token = whole_number("token", token)
        entry = self._raw.id_to_token(token) if 0 <= token < self.size else None
        if entry is None:
            raise _no_such_token(token, self.size)
        return entry.replace(self._space, " ").encode()

    def hint(self, text: str) -> None:
        """None: any text will do."""

    def state(self) -> str:
        """All that tokens depend on; tokenizers in which it is the same are the same."""
        return self._raw.to_str()

    def _ids(self, text: str) -> list[int]:
        return _ids_by(self._raw, text)


def _ids_by(raw: "tokenizers.Tokenizer", text: str) -> list[int]:
    """Raises ValueError for a text that the vocabulary cannot spell and has no token for."""
    try:
        return raw.encode(text, add_special_tokens=False).ids
    except Exception as error:  # the tokenizers package raises no type of its own
        raise ValueError(f"the tokenizer cannot read this text: {one_line(error)}") from error


Pair = tuple[str, ...]  # of symbols; a line of merges.txt that holds another number of them matches none
# Words are kept with their tokens, but not without end: so many of them, each shorter than so many characters.
CACHED_WORDS, CACHED_LENGTH = 100_000, 100

# The control codes of CTRL (Keskar et al. 2019; control_codes.py in salesforce/ctrl), the default of its README first.
# Each is an ordinary word of the vocabulary.
_CONTROL_CODES = """
    Links Wikipedia Books Reviews Horror Questions Opinion News Legal Translation multilingual Alone Ask Ass Atheism
    Christianity Computing Confession Confessions Conspiracy Diet Event Explain Extract Feminism Finance Fitness Funny
    Gaming Human India Joke Joker Learned Movies Narcissus Netflix Norman Notion Politics Pregnancy Relationship
    Relationships Retail Running Saving Scary Science Support Technologies Teenage Thoughts Tip Weight Writing
""".split()


class WordBPE:
    """CTRL's BPE of words (Sennrich et al. 2016), equal to transformers' CTRLTokenizer.

    A word is what stands between white space, with one newline after it if there is one; other white space is lost.
    `x@@` is a piece that the next one continues.
    """

    # transformers splits with the `regex` package, for which U+001C to U+001F are no white space. `<unk>` typed in a
    # text is the unknown token, even within a word.
    _WORD = re.compile(r"<unk>|(?:(?!<unk>)[\S\x1c-\x1f])+\n?")

    special = NOTHING
    bos: str | None = None  # a control code opens a text
    id, tokens, __repr__ = _id, _tokens, _in_short

    def __init__(self, vocab: dict[str, int], merges: Iterable[Pair], codes: Iterable[str] = _CONTROL_CODES) -> None:
        self._vocab = vocab
        self._entries = {token: entry for entry, token in vocab.items()}
        self._ranks = {merge: rank for rank, merge in enumerate(merges)}
        self._unknown = vocab["<unk>"]
        self._cache = {"<unk>": [self._unknown]}
        self.codes = tuple(code for code in codes if code in vocab)
        self.size = len(vocab)

    @overload
    def encode(self, text: str) -> Tokens: ...
    @overload
    def encode(self, text: list[str]) -> tuple[Tokens, Int[Tensor, "batch"]]: ...
    def encode(self, text: str | list[str]) -> Tokens | tuple[Tokens, Int[Tensor, "batch"]]:
        """The tokens of a text, int64 of shape [1, pos]; of a list of texts, one row each and the rows' lengths.

        Short rows are padded on the right with id 0. Raises ValueError for text that is not valid Unicode.
        """
        return _encode(text, self._ids)

    def decode(self, tokens: Tensor | Sequence[int]) -> str:
        """The text of one row of tokens, special tokens included. Raises ValueError for an id that does not exist.

        One space stands between words, and no white space at either end.
        """
        return " ".join(map(self._entry, _row(tokens))).replace("@@ ", "").strip()

    def piece(self, token: int) -> bytes:
        """The vocabulary's entry in UTF-8, `plas@@` with its `@@`. Raises ValueError for an id that does not exist."""
        return self._entry(token).encode()

    def hint(self, text: str) -> str | None:
        """A sentence where the text's first token is none of the control codes that this vocabulary has."""
        word = self._WORD.search(text)  # none in an empty text
        if not self.codes or (word and self._entry(self._word_ids(word[0])[0]) in self.codes):
            return None
        some = ", ".join(self.codes[:3])
        return f"CTRL was trained on texts that begin with a control code (such as {some}); this one does not."

    def state(self) -> str:
        """All that tokens depend on; tokenizers in which it is the same are the same."""
        return repr((self._vocab, self._ranks))

    def _entry(self, token: int) -> str:
        if (token := whole_number("token", token)) not in self._entries:
            raise _no_such_token(token, self.size)
        return self._entries[token]

    def _ids(self, text: str) -> list[int]:
        return [token for word in self._WORD.finditer(text) for token in self._word_ids(word[0])]

    def _word_ids(self, word: str) -> list[int]:
        if word in self._cache:
            return self._cache[word]
        symbols = _merged([*word[:-1], word[-1] + "</w>"], self._ranks)
        pieces = [symbol + "@@" for symbol in symbols[:-1]] + [symbols[-1].removesuffix("</w>")]
        ids = [self._vocab.get(piece, self._unknown) for piece in pieces]
        if len(word) < CACHED_LENGTH and len(self._cache) < CACHED_WORDS:
            self._cache[word] = ids
        return ids


def _merged(symbols: list[str], ranks: dict[Pair, int]) -> list[str]:
    """The characters of a word merged: the pair of lowest rank wherever it stands, from left to right; and so on.

    The places of each pair are kept, so that the time grows with the word and not with its square. A symbol stands at
    the place of its first character; the places of its others are empty.
    """
    places: dict[Pair, list[int]] = {}
    queue: list[tuple[int, Pair]] = []

    def note(at: int, pair: Pair) -> None:
        if pair in ranks:
            if pair not in places:
                heappush(queue, (ranks[pair], pair))
            places.setdefault(pair, []).append(at)

    for at, neighbours in enumerate(pairwise(symbols)):
        note(at, neighbours)
    while queue:
        _, pair = heappop(queue)
        for at in sorted(places.pop(pair)):
            after = at + len(pair[0])
            if (symbols[at], symbols[after]) != pair:  # part of another symbol by now
                continue
            symbols[at], symbols[after] = "".join(pair), ""
            before = at - 1
            while before >= 0 and not symbols[before]:
                before -= 1
            if before >= 0:
                note(before, (symbols[before], symbols[at]))
            if (after := at + len(symbols[at])) < len(symbols):
                note(at, (symbols[at], symbols[after]))
    return [symbol for symbol in symbols if symbol]


def _encode(text: str | list[str], ids: Callable[[str], list[int]]) -> Tokens | tuple[Tokens, Int[Tensor, "batch"]]:
    """What every tokenizer's encode does around its own `ids`: refuse what is not Unicode, pad, make tensors."""
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, (list, tuple)) or not all(isinstance(each, str) for each in texts):
        raise ValueError(f"encode takes a text, or a list of texts; got {quoted(text)}")
    for each in texts:
        if surrogate := SURROGATE.search(each):
            raise ValueError(
                f"the text is not valid Unicode: character {surrogate.start()} is a lone surrogate, "
                f"U+{ord(surrogate[0]):04X}; remove it or read the text as UTF-8"
            )
    rows = [ids(each) for each in texts]
    lengths = [len(row) for row in rows]
    longest = max(lengths, default=0)
    padded = [row + [0] * (longest - len(row)) for row in rows]
    tokens = torch.tensor(padded, dtype=torch.int64).reshape(len(rows), longest)  # [0, 0] for no texts
    return tokens if isinstance(text, str) else (tokens, torch.tensor(lengths, dtype=torch.int64))


def _row(tokens: Tensor | Sequence[int]) -> list[int]:
    if isinstance(tokens, Tensor) and not tokens.is_nested and tokens.ndim != 1:
        raise ValueError(
            f"decode takes one row of tokens, found shape {list(tokens.shape)}; give it one row, as tokens[0]"
        )
    return whole_numbers("tokens", tokens)


def _no_such_token(token: int, size: int) -> ValueError:
    return ValueError(f"token id {token} does not exist; the tokenizer's ids are 0 to {size - 1}")

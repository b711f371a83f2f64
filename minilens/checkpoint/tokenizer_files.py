"""The files of a tokenizer: which one a checkpoint has, and what they must say."""

from collections.abc import Callable, Iterable
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .settings import CheckpointError, one_line, read_json, read_text, shown
from .tokenizer import _CONTROL_CODES, SURROGATE, ByteBPE, Tokenizer, WordBPE

if TYPE_CHECKING:
    import tokenizers


def load_tokenizer(find: Callable[[str], Path | None], family: str) -> Tokenizer | None:
    """The tokenizer of a checkpoint; None where it has no tokenizer files.

    `find` gives the path of a file of the checkpoint, or None where there is no such file. "ctrl" needs vocab.json and
    merges.txt; the other families tokenizer.json, or else the same two with added_tokens.json and the prefix space of
    tokenizer_config.json. Raises CheckpointError for a file that is missing beside the other, that cannot be read, or
    that holds another kind of tokenizer. tokenizer_config.json may name the control codes that a CTRL was trained with
    ("control_codes", as transformers writes them; by default the paper's).
    """
    if family != "ctrl" and (path := find("tokenizer.json")):
        return _byte_bpe_from_one_file(path)
    vocab, merges = find("vocab.json"), find("merges.txt")
    if vocab and merges:
        added = read_json(path) if (path := find("added_tokens.json")) else {}
        config = read_json(path) if (path := find("tokenizer_config.json")) else {}
        if family != "ctrl":
            return _byte_bpe(vocab, merges, added, config.get("add_prefix_space") is True)
        if added:
            raise CheckpointError(f"{vocab.parent}: added_tokens.json adds to CTRL's tokens, which is not supported")
        codes = config.get("control_codes") or dict.fromkeys(_CONTROL_CODES)
        if not isinstance(codes, dict):
            raise CheckpointError(f"{path}: control_codes must map each code to its token")
        return _word_bpe(vocab, merges, codes)
    if vocab or merges:
        raise CheckpointError(f"{vocab or merges} is there, but {'merges.txt' if vocab else 'vocab.json'} is missing")
    return None


def _byte_bpe_from_one_file(path: Path) -> ByteBPE:
    import tokenizers

    document = read_json(path)
    added, model = document.get("added_tokens"), document.get("model")
    if isinstance(added, list):
        _check_added(path, [entry.get("content") for entry in added if isinstance(entry, dict)])
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if isinstance(model, dict) and model.get(key):
            raise CheckpointError(
                f"{path} is not a byte-level BPE as GPT-2 and GPT-Neo use it: its {key} is {shown(model[key])}"
            )
    try:
        bpe = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers package raises no type of its own
        raise CheckpointError(f"{path} is not readable as a tokenizer: {one_line(error)}") from error
    if not isinstance(bpe.model, tokenizers.models.BPE) or not isinstance(bpe.decoder, tokenizers.decoders.ByteLevel):
        raise CheckpointError(f"{path} is not a byte-level BPE, the only kind that GPT-2 and GPT-Neo use")
    bpe.no_truncation()
    bpe.no_padding()
    _check_ids(bpe, path)
    return ByteBPE(bpe)


def _byte_bpe(vocab: Path, merges: Path, added: dict[str, Any], add_prefix_space: bool) -> ByteBPE:
    import tokenizers

    entries, _ = read_json(vocab), read_text(merges)  # for their messages, which know the usual accidents
    try:
        bpe = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(vocab), str(merges)))
    except Exception as error:
        raise CheckpointError(f"{vocab} and {merges.name} are not readable as a BPE: {one_line(error)}") from error
    if bpe.get_vocab() != entries:  # what is no number is dropped, and of a large one only 32 bits are read
        raise CheckpointError(f"{vocab} must give each entry a whole number below 2**32")
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    if bpe.token_to_id("<|endoftext|>") is not None:
        bpe.add_special_tokens(["<|endoftext|>"])
    if not all(type(number) is int for number in added.values()):
        raise CheckpointError(f"{vocab.parent}: added_tokens.json must give each token a whole number")
    _check_added(vocab.parent / "added_tokens.json", added)
    for token, number in sorted(added.items(), key=itemgetter(1)):
        bpe.add_tokens([tokenizers.AddedToken(token, normalized=False)])
        if bpe.token_to_id(token) != number:
            raise CheckpointError(
                f"{vocab.parent}: added_tokens.json gives {token!r:.80} the id {number}, which is not next"
            )
    _check_ids(bpe, vocab)
    return ByteBPE(bpe)


def _check_added(path: Path, tokens: Iterable[Any]) -> None:
    """The tokenizers package takes 70 bytes of memory for each character of an added token."""
    if sum(len(token) for token in tokens if isinstance(token, str)) > 1_000_000:
        raise CheckpointError(f"{path} adds tokens of more than a million characters")


def _check_ids(bpe: "tokenizers.Tokenizer", path: Path) -> None:
    ids = bpe.get_vocab().values()
    if len(set(ids)) < len(ids):
        raise CheckpointError(f"{path} gives two entries the same id")


def _word_bpe(vocab: Path, merges: Path, codes: Iterable[str]) -> WordBPE:
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

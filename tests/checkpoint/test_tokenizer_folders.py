"""Every kind of folder that a tokenizer lies in: the tokens of 61 texts are those of transformers' AutoTokenizer."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from minilens.checkpoint.settings import CheckpointError
from minilens.checkpoint.tokenizer import ByteBPE, Subwords
from minilens.checkpoint.tokenizer_files import load_tokenizer

CORPUS = [
    "the cat and the dog sat on the mat",
    "der naïve Hund saß da",
    "고양이와 개",
    "猫と犬",
    "кошка и собака",
    "a1 b22 c333",
]
LINES = """
the cat|The Cat|THE CAT| the cat|the cat |  the   cat  |the\tcat|the\\ncat|\\n\\nthe\\n|the\\r\\ncat
the cat.The dog!?|the-cat_the+dog|don't can't I'll we've|DON'T|a1b22c333 4.5e-6|½ ² Ⅳ ٣|naïve|nai\u0308ve|saß SASS|ﬁne ﬀ
고양이와 개|고양이|猫と犬|犬猫犬|кошка и собака|КОШКА|שלום עולם|مرحبا|नमस्ते|ไทย
👍🏽 👩\u200d🚀|🐈🐈|\u200b\u200e|\ufeffthe|a\u00a0b|a\u3000b|\u2028x\u2029|\x00\x01|\x1b[31m|e\u0301\u0301\u0301
<pad>|the<pad>cat|the <pad> cat| <pad> <pad> |<PAD>|<pa d>|<|endoftext|>|a<|endoftext|>b|<s></s><unk>|<mask> x<mask>
[CLS]the[SEP]|▁the▁cat|Ġthe|##at|the</w>|xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
"""
TEXTS = [
    "",
    *(text.replace("\\n", "\n").replace("\\r", "\r") for text in LINES.strip("\n").replace("\n", "|").split("|")),
]
assert len(TEXTS) == 61


def trained(raw: Tokenizer, trainer: Any) -> Tokenizer:
    raw.train_from_iterator(CORPUS * 9, trainer)
    return raw


@cache
def byte_level() -> Tokenizer:
    """As GPT-2's, with a vocabulary of 320."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>"]
    return trained(
        raw, trainers.BpeTrainer(vocab_size=320, show_progress=False, initial_alphabet=alphabet, special_tokens=special)
    )


def metaspace() -> Tokenizer:
    """As KoGPT2's: sentencepiece's spaces, and an unknown token."""
    raw = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    raw.normalizer = normalizers.NFKC()
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    return trained(raw, trainers.BpeTrainer(vocab_size=200, show_progress=False, special_tokens=["<unk>", "</s>"]))


def byte_fallback() -> Tokenizer:
    """As Llama's: spaces are written out by the normalizer, and what is not known is spelled in bytes."""
    bytes_ = [f"<0x{n:02X}>" for n in range(256)]
    entries = {entry: n for n, entry in enumerate(["<unk>", *bytes_, "▁", *"thecadogsnm"])}
    raw = Tokenizer(models.BPE(entries, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return raw


def unigram() -> Tokenizer:
    raw = Tokenizer(models.Unigram())
    raw.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    return trained(
        raw,
        trainers.UnigramTrainer(
            vocab_size=90, show_progress=False, unk_token="<unk>", special_tokens=["<unk>", "</s>"]
        ),
    )


def word_piece() -> Tokenizer:
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer()
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    return trained(raw, trainers.WordPieceTrainer(vocab_size=120, show_progress=False, special_tokens=special))


def words() -> Tokenizer:
    raw = Tokenizer(models.WordLevel(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True)])
    return trained(raw, trainers.WordLevelTrainer(show_progress=False, special_tokens=["<unk>", "<pad>"]))


def suffixes() -> Tokenizer:
    """As the first GPT's."""
    raw = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.BPEDecoder("</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=200, show_progress=False, special_tokens=["<unk>"], end_of_word_suffix="</w>"
    )
    return trained(raw, trainer)


def digits() -> Tokenizer:
    """Byte-level, with a cut before it that is not GPT-2's."""
    raw = Tokenizer.from_str(byte_level().to_str())
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return raw


def with_space() -> Tokenizer:
    raw = Tokenizer.from_str(byte_level().to_str())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return raw


def with_tokens() -> Tokenizer:
    raw = Tokenizer.from_str(byte_level().to_str())
    raw.add_tokens([AddedToken("<pad>", special=True), AddedToken("<mask>", lstrip=True, normalized=False)])
    return raw


def written(folder: Path, raw: Tokenizer | None, **beside: Any) -> Path:
    """A folder with a tokenizer.json, or else the two files of the byte-level BPE, and other files beside."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    if raw:
        raw.save(str(folder / "tokenizer.json"))
    else:
        byte_level().model.save(str(folder))
    for name, content in beside.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def finder(folder: Path) -> Callable[[str], Path | None]:
    return lambda name: folder / name if (folder / name).exists() else None


def full(content: str, **flags: bool) -> dict[str, Any]:
    return {"content": content, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False} | flags


FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
EOS = {"special_tokens_map": {"eos_token": "</s>", "unk_token": "<unk>"}}
FOLDERS: dict[str, tuple[Callable[[], Tokenizer] | None, dict[str, Any]]] = {
    "two files": (None, {}),
    "two files, special tokens": (
        None,
        dict(special_tokens_map={"pad_token": "<pad>", "mask_token": full("<mask>", lstrip=True)}),
    ),
    "two files, named in the config": (
        None,
        dict(tokenizer_config={"pad_token": "<pad>", "sep_token": "[SEP]", "cls_token": "[CLS]"}),
    ),
    "two files, typed in the config": (
        None,
        dict(tokenizer_config={"pad_token": {"__type": "AddedToken", **full("<pad>", rstrip=True)}}),
    ),
    "two files, named twice": (
        None,
        dict(tokenizer_config={"pad_token": "<PAD>"}, special_tokens_map={"pad_token": "<pad>"}),
    ),
    "two files, more special tokens": (
        None,
        dict(special_tokens_map={"additional_special_tokens": ["<mask>", "<pad>"]}),
    ),
    "two files, more in the config": (
        None,
        dict(tokenizer_config={"extra_special_tokens": ["<mask>"], "pad_token": "<pad>"}),
    ),
    "two files, tokens of their own": (None, dict(tokenizer_config={"image_token": "<mask>", "unk_token": "<unk>"})),
    "two files, another end": (
        None,
        dict(tokenizer_config={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
    ),
    "two files, no end": (None, dict(tokenizer_config={"bos_token": None, "eos_token": None, "unk_token": None})),
    "two files, added tokens": (None, dict(added_tokens={"<mask>": 321, "<pad>": 320, "the cat": 322})),
    "two files, added and special": (
        None,
        dict(added_tokens={"<pad>": 320, "sat on": 321}, special_tokens_map={"pad_token": "<pad>"}),
    ),
    "two files, listed": (
        None,
        dict(
            tokenizer_config={"added_tokens_decoder": {"0": full("<|endoftext|>", special=True), "320": full("<pad>")}},
            special_tokens_map={"mask_token": "<mask>"},
            added_tokens={"[SEP]": 321},
        ),
    ),
    "two files, a space": (None, dict(tokenizer_config={"add_prefix_space": True, "pad_token": "<pad>"})),
    "two files, special tokens split": (
        None,
        dict(tokenizer_config={"split_special_tokens": True, "pad_token": "<pad>"}),
    ),
    "one file": (byte_level, {}),
    "one file, tokens in it": (with_tokens, {}),
    "one file, more tokens beside it": (
        with_tokens,
        dict(special_tokens_map={"sep_token": "[SEP]", "pad_token": "<pad>"}),
    ),
    "one file, listed": (
        with_tokens,
        dict(
            tokenizer_config={
                "added_tokens_decoder": {
                    "320": full("<pad>", special=True),
                    "321": full("<mask>", lstrip=True),
                    "322": full("[CLS]"),
                }
            }
        ),
    ),
    "one file, a space in the config": (byte_level, dict(tokenizer_config={"add_prefix_space": True})),
    "one file, a space in it alone": (with_space, {}),
    "one file, a space in it, another class": (with_space, dict(tokenizer_config=FAST)),
    "one file, an end elsewhere": (byte_level, dict(tokenizer_config={**FAST, "eos_token": "</s>"})),
    "digits": (digits, dict(tokenizer_config=FAST)),
    "metaspace": (metaspace, dict(tokenizer_config=FAST)),
    "metaspace, special tokens": (metaspace, dict(tokenizer_config={**FAST, "pad_token": "<pad>"}, **EOS)),
    "byte fallback": (byte_fallback, dict(tokenizer_config=FAST)),
    "unigram": (unigram, dict(tokenizer_config=FAST, **EOS)),
    "word piece": (word_piece, dict(tokenizer_config={**FAST, "mask_token": "<mask>"})),
    "words": (words, dict(tokenizer_config=FAST)),
    "suffixes": (suffixes, dict(tokenizer_config=FAST)),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_tokens_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    make, beside = FOLDERS[kind]
    folder = written(tmp_path / "model", make() if make else None, **beside)
    ours, reference = load_tokenizer(finder(folder), "gpt2"), AutoTokenizer.from_pretrained(folder)
    assert ours is not None
    is_bytes = make in (None, byte_level, with_space, with_tokens, digits)
    assert isinstance(ours, ByteBPE if is_bytes else Subwords)
    for text in TEXTS:
        ids = reference.encode(text, add_special_tokens=False)
        assert ours.encode(text)[0].tolist() == ids, text
        assert ours.decode(ids) == reference.decode(ids), text
        pieces = [ours.piece(token) for token in ids]
        assert not is_bytes or b"".join(pieces).decode(errors="replace") == ours.decode(ids)
    assert ours.size == 1 + max(reference.get_vocab().values())
    assert ours.special.keys() >= {token.content for token in reference.added_tokens_decoder.values()}
    assert ours.bos == reference.bos_token


def test_a_gap_in_the_ids_of_added_tokens(tmp_path: Path) -> None:
    """transformers numbers them one after another, and so does minilens, but it says so."""
    folder = written(tmp_path / "model", None, added_tokens={"<pad>": 450, "<mask>": 321})
    with pytest.warns(UserWarning, match=r"gives '<(pad|mask)>' the id \d+; it has 32[01], as in") as notes:
        ours = load_tokenizer(finder(folder), "gpt2")
    reference = AutoTokenizer.from_pretrained(folder)
    assert ours is not None and len(notes) == 2
    for text in TEXTS:
        assert ours.encode(text)[0].tolist() == reference.encode(text, add_special_tokens=False)


def test_a_space_beside_two_files_of_another_class(tmp_path: Path) -> None:
    """As Roberta's class reads it; its special tokens are its own."""
    beside = {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": True}
    ours = load_tokenizer(finder(written(tmp_path / "model", None, tokenizer_config=beside)), "gpt2")
    assert ours is not None
    assert ours.encode("the cat").tolist() == ours.encode(" the cat").tolist()


def test_where_each_special_token_is_from(tmp_path: Path) -> None:
    special = {"pad_token": "<pad>", "eos_token": "<|endoftext|>"}
    folder = written(
        tmp_path / "model",
        None,
        tokenizer_config={"mask_token": "<mask>"},
        special_tokens_map=special,
        added_tokens={"<x>": 320},
    )
    ours = load_tokenizer(finder(folder), "gpt2")
    assert ours is not None and ours.special == {
        "<x>": "added_tokens.json",
        "<|endoftext|>": "GPT2Tokenizer",  # bos_token, which no file names
        "<pad>": "special_tokens_map.json",
        "<mask>": "tokenizer_config.json",
    }


def test_aitextgens_own_name(tmp_path: Path) -> None:
    folder = written(tmp_path / "model", byte_level())
    (folder / "tokenizer.json").rename(folder / "aitextgen.tokenizer.json")
    ours = load_tokenizer(finder(folder), "gpt2")
    reference = PreTrainedTokenizerFast(tokenizer_file=str(folder / "aitextgen.tokenizer.json"))
    assert ours is not None
    for text in TEXTS:
        assert ours.encode(text)[0].tolist() == reference.encode(text)


def test_a_space_that_sentencepiece_wrote_is_a_space(tmp_path: Path) -> None:
    ours = load_tokenizer(finder(written(tmp_path / "model", metaspace(), tokenizer_config=FAST)), "gpt2")
    assert ours is not None
    ids = ours.encode("the cat")[0].tolist()
    assert b"".join(map(ours.piece, ids)) == b" the cat" and ours.decode(ids) == "the cat"


@pytest.mark.parametrize("name", ["vocab.txt", "spiece.model"])
def test_vocabularies_that_are_not_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("[PAD]\n")
    with pytest.raises(CheckpointError, match=rf"{name} is of a kind that minilens does not read: AutoTokenizer\."):
        load_tokenizer(finder(tmp_path), "gpt2")


def nested(n: int) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * n}


@pytest.mark.parametrize(
    ("part", "value", "sentence"),
    [
        ("normalizer", nested(45), "its normalizer has more than 20 parts"),
        ("normalizer", nested(4), "its normalizer may make a text more than 10 times as long"),
        (
            "normalizer",
            {"type": "Prepend", "prepend": "x" * 10**6},
            "its normalizer has a text of more than 100 characters",
        ),
        (
            "normalizer",
            {"type": "Prepend", "prepend": "x" * 10},  # before each letter that stands between added tokens
            "its normalizer may make a text more than 10 times as long",
        ),
        (
            "normalizer",
            {"type": "Replace", "pattern": {"String": ""}, "content": "a"},
            "its normalizer has an empty pattern",
        ),
        (
            "normalizer",
            {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "a"},
            'the pattern "(a+)+$", which could',
        ),
        (
            "normalizer",
            {"type": "Replace", "pattern": {"Regex": ["x"]}, "content": "a"},
            'the pattern ["x"], which could',
        ),
        (
            "normalizer",
            {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
            'its normalizer is of the type "Precompiled"',
        ),
        ("normalizer", [], "its normalizer is []"),
        ("pre_tokenizer", {"type": "FixedLength", "length": 0}, 'its pre_tokenizer is of the type "FixedLength"'),
        (
            "pre_tokenizer",
            {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "x+x+(?=\x01)"}}]},
            "which could search for ever",
        ),
        ("pre_tokenizer", {"type": ["Split"]}, 'its pre_tokenizer is of the type ["Split"]'),
        ("decoder", {"type": "CTC"}, 'its decoder is of the type "CTC"'),
        ("decoder", {"type": "BPEDecoder", "suffix": "x" * 101}, "its decoder has a text of more than 100 characters"),
        ("decoder", {"type": "WordPiece", "prefix": "x" * 101}, "its decoder has a text of more than 100 characters"),
        ("model", {"type": "BPE", "dropout": 0.1, "vocab": {}, "merges": []}, "its model has a dropout of 0.1"),
        ("model", {"type": "WordPiece", "max_input_chars_per_word": 10**9}, "its model takes words of more than 200"),
        (
            "model",
            {"type": "BPE", "end_of_word_suffix": "x" * 101},
            "its model has a end_of_word_suffix of more than 100",
        ),
        (
            "model",
            {"type": "Unigram", "vocab": [["x" * 257, 0.0]]},
            "its model has an entry of more than 256 characters",
        ),
        (
            "model",
            {"type": "BPE", "continuing_subword_prefix": "##", "vocab": {"a": 0}, "merges": [["a", "a"]]},
            'its model merges ["a", "a"], which does not go on with "##"',
        ),
        ("model", {"type": "Nothing"}, 'its model is of the type "Nothing"'),
    ],
    ids=lambda value: str(value)[:50],
)
def test_parts_that_no_tokenizer_of_these_families_has(tmp_path: Path, part: str, value: Any, sentence: str) -> None:
    document = json.loads(byte_level().to_str()) | {part: value}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError) as info:
        load_tokenizer(finder(tmp_path), "gpt2")
    assert str(info.value).startswith(
        f"{tmp_path / 'tokenizer.json'} is no tokenizer that GPT-2 or GPT-Neo can have: its "
    )
    assert sentence in str(info.value) and "\n" not in str(info.value)


def test_a_text_that_the_vocabulary_cannot_spell(tmp_path: Path) -> None:
    """There is an unknown token by name, and none in the vocabulary."""
    raw = Tokenizer(models.WordLevel({"the": 0, "cat": 1}, unk_token="<none>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    letters = Tokenizer(models.BPE({"t": 0, "h": 1, "e": 2}, [], unk_token="<none>"))
    letters.pre_tokenizer, letters.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    for name, known, ids in (("WordLevel", "the cat", [0, 1]), ("Unk token", "the", [0, 1, 2])):
        one = raw if name == "WordLevel" else letters
        ours = load_tokenizer(finder(written(tmp_path / name, one, tokenizer_config=FAST)), "gpt2")
        assert ours is not None and ours.encode(known).tolist() == [ids]
        with pytest.raises(ValueError, match=rf"^the tokenizer cannot read this text: {name}"):
            ours.encode("the dog")


@pytest.mark.parametrize(
    ("beside", "sentence"),
    [
        (dict(special_tokens_map={"pad_token": 5}), "must be a text, or an object with its content; it is 5"),
        (
            dict(special_tokens_map={"pad_token": {"content": "a", "lstrip": 1}}),
            "must be a text, or an object with its content",
        ),
        (dict(added_tokens={"<a>": "320"}), "must give each token a whole number, and no number twice"),
        (dict(added_tokens={"<a>": 320, "<b>": 320}), "must give each token a whole number, and no number twice"),
        (dict(tokenizer_config={"added_tokens_decoder": {"x": full("<a>")}}), "in added_tokens_decoder is no token id"),
        (dict(tokenizer_config={"additional_special_tokens": 5}), "additional_special_tokens must be a list"),
        (dict(added_tokens={"x" * 1_000_001: 320}), "adds tokens of more than a million characters"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_special_tokens_that_are_none(tmp_path: Path, beside: dict[str, Any], sentence: str) -> None:
    folder = written(tmp_path / "model", None, **beside)
    with pytest.raises(CheckpointError) as info:
        load_tokenizer(finder(folder), "gpt2")
    assert sentence in str(info.value) and str(folder) in str(info.value)

"""text.py: the same tokens as transformers, the bytes of every token, and errors that say what is wrong."""

import json
import random
import re
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import regex
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import CTRLTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast
from transformers.models.ctrl.tokenization_ctrl import CONTROL_CODES

import minilens
from minilens.checkpoint.hub import bundled
from minilens.checkpoint.settings import CheckpointError
from minilens.checkpoint.tokenizer import CACHED_LENGTH, Subwords, Tokenizer, WordBPE
from minilens.checkpoint.tokenizer_files import load_tokenizer
from minilens.views.tokens import visible

SHARED = Path(__file__).parents[3] / "shared" / "tokenizers"
real_files = pytest.mark.skipif(not SHARED.exists(), reason=f"the real tokenizer files are not in {SHARED}")

# transformers' own unit test of CTRLTokenizer
CTRL_VOCAB = ["adapt", "re@@", "a@@", "apt", "c@@", "t", "<unk>"]
CTRL_MERGES = "#version: 0.2\na p\nap t</w>\nr e\na d\nad apt</w>\n"


def finder(folder: Path) -> Callable[[str], Path | None]:
    return lambda name: folder / name if (folder / name).exists() else None


def write_ctrl(folder: Path, vocab: list[str] = CTRL_VOCAB, merges: str = CTRL_MERGES) -> None:
    (folder / "vocab.json").write_text(json.dumps({entry: token for token, entry in enumerate(vocab)}))
    (folder / "merges.txt").write_text(merges, encoding="utf-8")


def ctrl(folder: Path) -> Tokenizer:
    tokenizer = load_tokenizer(finder(folder), "ctrl")
    assert tokenizer is not None
    return tokenizer


@cache
def bundled_tokenizer(name: str) -> Tokenizer:
    tokenizer = minilens.load(name)[1]
    assert tokenizer is not None
    return tokenizer


@cache
def tiny_bpe() -> RawTokenizer:
    """A byte-level BPE trained on a line of text: the whole byte alphabet and a few merges."""
    raw = RawTokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, show_progress=False, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"]
    )
    raw.train_from_iterator(["the cat and the dog and the naïve 猫 sat on the mat"] * 9, trainer)
    return raw


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The tiny byte-level BPE, read from its tokenizer.json."""
    folder = tmp_path_factory.mktemp("gpt2")
    tiny_bpe().save(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(finder(folder), "gpt2")
    assert tokenizer is not None
    return tokenizer


@cache
def real(family: str) -> tuple[Tokenizer, GPT2Tokenizer | CTRLTokenizer]:
    folder = SHARED / family
    tokenizer = load_tokenizer(finder(folder), family)
    assert tokenizer is not None
    reference = GPT2Tokenizer if family == "gpt2" else CTRLTokenizer
    return tokenizer, reference(str(folder / "vocab.json"), str(folder / "merges.txt"))


def assert_equals_reference(family: str, text: str) -> None:
    tokenizer, reference = real(family)
    ids = tokenizer.encode(text)[0].tolist()
    assert ids == reference(text).input_ids == reference.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == reference.decode(ids)


# Any character, and the strings that tokenizers treat in ways of their own.
CHARACTERS = st.characters(exclude_categories=["Cs"])
PARTS = [
    "the",
    "I",
    "kilometers",
    "plasma",
    "naïve",
    "'s",
    "'S",
    ".",
    "@@",
    "@@ ",
    "</w>",
    "<unk>",
    "unk>",
    "<|endoftext|>",
]
PARTS += [
    " ",
    "  ",
    "\n",
    "\t",
    "\r",
    "\0",
    "\x1c",
    "\x1f",
    "\x85",
    "\xa0",
    "\u2028",
    "\u3000",
    "\u200b",
    "👩\u200d🚀",
    "e\u0301",
]
TEXTS = st.lists(st.sampled_from(PARTS) | CHARACTERS | st.text("abcdehinorst", max_size=8), max_size=20).map("".join)

FIXED = [
    "",
    " ",
    "    ",
    "\n",
    "Hello world",
    " Hello world",
    "kilometers",
    "plasma, plasma. The plasma",
    "one<|endoftext|>two <|endoftext|> three<|endoftext|>",
    "one<unk>two <unk> three<unk>\nfour\n<unk><unk> <<unk>> <unk",
    *(
        first + middle + last
        for first in ["", "a", "a "]
        for middle in ["\n", "\n\n", " \n", "\r\n"]
        for last in ["", "b"]
    ),
    "議☃ 议eski \U0010fffe",
    "a\x1cb\x1d\x1e\x1f c\x85d\xa0e\u2028f",
    "x" * 300,
]


@real_files
@pytest.mark.parametrize("family", ["gpt2", "ctrl"])
@pytest.mark.parametrize("text", FIXED)
def test_fixed_texts_equal_transformers(family: str, text: str) -> None:
    assert_equals_reference(family, text)


@real_files
@pytest.mark.parametrize("family", ["gpt2", "ctrl"])
@settings(max_examples=400, deadline=None)
@given(text=TEXTS)
def test_any_text_equals_transformers(family: str, text: str) -> None:
    assert_equals_reference(family, text)


@real_files
@pytest.mark.parametrize("family", ["gpt2", "ctrl"])
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_ids_decode_as_in_transformers(family: str, data: st.DataObject) -> None:
    tokenizer, reference = real(family)
    last = tokenizer.size - 1
    ids = data.draw(st.lists(st.integers(0, last) | st.integers(last - 3, last), max_size=12))
    assert tokenizer.decode(ids) == tokenizer.decode(torch.tensor(ids, dtype=torch.int64)) == reference.decode(ids)


@real_files
def test_known_ids_of_gpt2() -> None:
    tokenizer, _ = real("gpt2")
    assert tokenizer.size == 50257
    assert tokenizer.encode("Hello world").tolist() == [[15496, 995]]
    assert tokenizer.encode(" Hello world").tolist() == [[18435, 995]]
    assert tokenizer.encode("<|endoftext|>").tolist() == [[50256]]
    assert tokenizer.piece(50256) == b"<|endoftext|>"
    assert tokenizer.piece(18435) == b" Hello"


@real_files
def test_known_ids_of_ctrl() -> None:
    tokenizer, _ = real("ctrl")
    assert tokenizer.size == 246534
    # Salesforce's own output, in transformers issue 1920
    assert tokenizer.encode("This is one sentence.\nAnd this is another sentence!\n").tolist() == [
        [93, 8, 40, 62359, 11435, 246533, 103, 32, 8, 211, 17918, 11590, 7508, 246533]
    ]

    def pieces(text: str) -> list[bytes]:
        return [tokenizer.piece(token) for token in tokenizer.encode(text)[0].tolist()]

    assert pieces("plasma, plasma") == [b"plas@@", b"ma,", b"plasma"]
    assert pieces("plasma.") == [b"plas@@", b"ma."]
    # Merges split at a no-break space, as transformers splits them; otherwise this would be one token.
    assert pieces("kilometers") == [b"kil@@", b"ometers"]
    assert pieces("a<unk>b\n\nc") == [b"a", b"<unk>", b"b@@", b"\n", b"c"]
    assert tokenizer.piece(246531) == b""


@real_files
def test_ctrl_hints_at_its_control_codes() -> None:
    tokenizer, _ = real("ctrl")
    assert [code for code in CONTROL_CODES if tokenizer.hint(f"{code} to begin with")] == []
    assert tokenizer.hint("  Wikipedia Salesforce") is None
    for text in ["", "The cat", "the Links", "Linksfoo", "links a", "<unk> Links"]:
        hint = tokenizer.hint(text)
        assert hint is not None and "Links" in hint and "\n" not in hint, text


def test_a_ctrl_names_its_own_control_codes(tmp_path: Path) -> None:
    write_ctrl(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"control_codes": {"apt": 3, "foreign": 9}}')
    tokenizer = ctrl(tmp_path)
    assert tokenizer.hint("apt re") is None
    hint = tokenizer.hint("re apt")
    assert hint is not None and "such as apt)" in hint
    config.write_text('{"control_codes": ["apt"]}')
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: control_codes must map each code to its token"):
        ctrl(tmp_path)


def test_ctrl_fixture_of_transformers(tmp_path: Path) -> None:
    write_ctrl(tmp_path)
    tokenizer = ctrl(tmp_path)
    tokens = tokenizer.encode("adapt react readapt apt")
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [[0, 1, 2, 4, 5, 1, 0, 3]]
    assert tokenizer.decode(tokens[0]) == "adapt react readapt apt"
    assert tokenizer.piece(1) == b"re@@"
    assert tokenizer.hint("adapt") is None  # no control codes in this vocabulary


@pytest.fixture(scope="module")
def ctrl_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, CTRLTokenizer]:
    """A vocabulary in which the order of merges matters, merging from the left too; the last line is never read."""
    folder = tmp_path_factory.mktemp("ctrl")
    vocab = [
        "a@@",
        "a",
        "aa@@",
        "aa",
        "p@@",
        "p",
        "ap@@",
        "ap",
        "aap",
        "pa@@",
        "<unk>",
        "\n",
        "r@@",
        "r",
        "e",
        "re@@",
        "rer@@",
    ]
    write_ctrl(folder, vocab, "#version\nre r\np a\na a\na\xa0p x\na p\na p</w>\naa p</w>\nr e\nr e</w> \np a")
    return ctrl(folder), CTRLTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


@settings(max_examples=200, deadline=None)
@example(text="apap rerer aaa aap raape re\n ap<unk>a a\x1ca a\xa0a")
@given(text=st.text("adaptrec <unk>\n\x1c\xa0", max_size=30))
def test_tiny_ctrl_on_any_text(ctrl_pair: tuple[Tokenizer, CTRLTokenizer], text: str) -> None:
    tokenizer, reference = ctrl_pair
    ids = tokenizer.encode(text)[0].tolist()
    assert ids == reference(text).input_ids
    assert tokenizer.decode(ids) == reference.decode(ids)


HORROR = "H o\nHo r\nHor r\nHorr o\nHorro r</w>\n"


def test_only_the_control_codes_in_the_vocabulary_count(tmp_path: Path) -> None:
    write_ctrl(tmp_path, ["<unk>", "Horror", "Links@@"], "#version\n" + HORROR)
    tokenizer = ctrl(tmp_path)
    assert tokenizer.encode("Horror a")[0][0] == 1
    assert tokenizer.hint("Horror a") is None
    hint = tokenizer.hint("Links a")
    assert hint is not None and "Horror" in hint and "Links" not in hint


@given(text=st.text(CHARACTERS, max_size=40))
@settings(deadline=None)
def test_pieces_are_the_bytes_of_the_text(gpt2: Tokenizer, text: str) -> None:
    ids = gpt2.encode(text)[0].tolist()
    assert b"".join(map(gpt2.piece, ids)) == text.encode()
    assert gpt2.decode(ids) == text


def test_every_byte_has_its_piece(gpt2: Tokenizer) -> None:
    assert {gpt2.piece(token) for token in range(gpt2.size)} > {bytes([byte]) for byte in range(256)}


def test_a_token_may_be_part_of_a_character(gpt2: Tokenizer) -> None:
    tokens = gpt2.encode("é")[0]
    assert [gpt2.piece(token) for token in tokens.tolist()] == [b"\xc3", b"\xa9"]
    assert gpt2.decode(tokens[:1]) == "\ufffd"


def test_special_tokens_are_neither_added_nor_removed(gpt2: Tokenizer) -> None:
    assert gpt2.encode("<|endoftext|>the<|endoftext|>").tolist()[0][:1] == [0]
    assert gpt2.decode(gpt2.encode("<|endoftext|>the<|endoftext|>")[0]) == "<|endoftext|>the<|endoftext|>"
    assert gpt2.hint("anything") is None


def test_one_file_or_two_make_no_difference(gpt2: Tokenizer, tmp_path: Path) -> None:
    tiny_bpe().model.save(str(tmp_path))
    two = load_tokenizer(finder(tmp_path), "gpt_neo")
    assert two is not None and two.size == gpt2.size
    text = "<|endoftext|> the naïve cat<|endoftext|>\n\n  and\0 <|endo"
    assert two.encode(text).tolist() == gpt2.encode(text).tolist()
    assert two.piece(0) == gpt2.piece(0) == b"<|endoftext|>"
    assert two.encode(text)[0].tolist() == GPT2Tokenizer(*map(str, sorted(tmp_path.iterdir(), reverse=True))).encode(
        text
    )


def test_the_file_may_not_add_repeat_cut_or_pad(tmp_path: Path) -> None:
    raw = RawTokenizer.from_str(tiny_bpe().to_str())
    raw.add_tokens(["Ġ<added>é"])
    raw.enable_truncation(3)
    raw.enable_padding(length=50)
    raw.post_processor = RawTokenizer.from_str(
        json.dumps(json.loads(raw.to_str()) | {"post_processor": BOS_TEMPLATE})
    ).post_processor
    assert len(raw.encode("the cat and the dog").ids) == 50
    raw.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(finder(tmp_path), "gpt2")
    assert tokenizer is not None
    text = "the cat and the dog Ġ<added>é"
    ids = tokenizer.encode(text)[0].tolist()
    assert ids[-1] == tokenizer.size - 1
    assert tokenizer.piece(ids[-1]) == "Ġ<added>é".encode()  # its own text, not read as GPT-2's byte alphabet
    assert tokenizer.decode(ids) == text


BOS_TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
        *[{"Sequence": {"id": "A", "type_id": 0}}] * 2,  # the text, and once more
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
}


def test_lists_are_padded_on_the_right(gpt2: Tokenizer, tmp_path: Path) -> None:
    write_ctrl(tmp_path)
    for tokenizer, texts in [
        (gpt2, ["the cat", "", "the cat and the dog"]),
        (ctrl(tmp_path), ["apt", "", "react apt"]),
    ]:
        tokens, lengths = tokenizer.encode(texts)
        assert tokens.dtype == lengths.dtype == torch.int64
        assert tokens.shape == (3, lengths.max())
        for row, length, text in zip(tokens, lengths, texts, strict=True):
            assert row[:length].tolist() == tokenizer.encode(text)[0].tolist()
            assert row[length:].tolist() == [0] * (tokens.shape[1] - int(length))
        assert len(set(lengths.tolist())) == 3
        assert [part.shape for part in tokenizer.encode([])] == [(0, 0), (0,)]
        assert tokenizer.encode("").shape == (1, 0)
        assert tokenizer.decode(tokenizer.encode("")[0]) == tokenizer.decode([]) == ""


def test_what_a_caller_may_not_ask(gpt2: Tokenizer, tmp_path: Path) -> None:
    write_ctrl(tmp_path)
    for tokenizer in (gpt2, ctrl(tmp_path)):
        for texts in ("the\ud800 cat", ["fine", "the\ud800 cat"]):
            with pytest.raises(ValueError, match=r"character 3 is a lone surrogate, U\+D800"):
                tokenizer.encode(texts)
        for bad in (-1, tokenizer.size, 2**40):
            with pytest.raises(ValueError, match=f"token id {bad} does not exist; .* 0 to {tokenizer.size - 1}$"):
                tokenizer.piece(bad)
            with pytest.raises(ValueError, match=f"token id {bad} does not exist"):
                tokenizer.decode([0, bad])
        with pytest.raises(ValueError, match=r"shape \[2, 1\].*tokens\[0\]"):
            tokenizer.decode(torch.zeros(2, 1, dtype=torch.int64))
        assert tokenizer.encode("a\0b").shape[1] > 0


# ---- One token by its text, and a text's tokens as strings


@pytest.mark.parametrize("name", ["tales-gpt2", "tales-gpt-neo", "tales-ctrl"])
@pytest.mark.parametrize("text", ["Once upon a time\n", "", "\x1b[31m 猫", "e\u0301 <|endoftext|>"])
def test_the_tokens_of_a_text_as_strings(name: str, text: str) -> None:
    tokenizer = bundled_tokenizer(name)
    found = tokenizer.tokens(text)
    ids = tokenizer.encode(text)[0].tolist()
    assert [one.encode() for one in found if "\\" not in one] == [
        tokenizer.piece(token) for token, one in zip(ids, found, strict=True) if "\\" not in one
    ]
    if name != "tales-ctrl":  # whose pieces end in @@, and whose white space is lost
        raw = re.sub(r"\\x([0-9a-f]{2})", lambda found: chr(0xDC00 + int(found[1], 16)), "".join(found))
        assert raw.encode(errors="surrogateescape").decode() == text


def test_half_a_character_is_written_as_its_bytes() -> None:
    assert bundled_tokenizer("tales-gpt2").tokens(" girl 猫") == [" girl", " ", r"\xe7", r"\x8c", r"\xab"]
    assert bundled_tokenizer("tales-ctrl").tokens("Links  the girl\n") == ["Lin@@", "ks", "the", "girl@@", "\n"]


def test_a_token_by_its_text(tmp_path: Path) -> None:
    tokenizer = bundled_tokenizer("tales-gpt2")
    for token in (571, 0, 4000):
        (text,) = tokenizer.tokens(tokenizer.decode([token]))
        assert tokenizer.id(text) == token
    write_ctrl(tmp_path)
    assert ctrl(tmp_path).id("adapt") == 0
    assert Subwords(RawTokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))).id("a") == 0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("girl", "'girl' is 2 tokens: 'g', 'irl'; did you mean ' girl'?"),
        ("", "'' is 0 tokens; a word within a text often begins with a space"),
        (
            "a\x1b\n",
            r"'a\x1b\n' is 3 tokens: 'a', '\x1b', '\n'; a word within a text often begins with a space",
        ),
        (
            "\ud800",
            "the text is not valid Unicode: character 0 is a lone surrogate, U+D800; remove it or read the text ",
        ),
    ],
)
def test_no_single_token(text: Any, sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        bundled_tokenizer("tales-gpt2").id(text)
    assert str(error.value).startswith(sentence)


def test_an_error_names_some_of_many_tokens() -> None:
    with pytest.raises(ValueError) as error:
        bundled_tokenizer("tales-gpt2").id("the cat " * 1000)
    assert "2001 tokens" in str(error.value) and len(str(error.value)) < 400


def test_the_repr_is_a_line(tmp_path: Path) -> None:
    write_ctrl(tmp_path)
    assert repr(bundled_tokenizer("tales-gpt2")) == 'ByteBPE of 4096 tokens, opening token "<|endoftext|>"'
    assert repr(bundled_tokenizer("tales-ctrl")) == "WordBPE of 8000 tokens, 3 control codes"
    assert repr(ctrl(tmp_path)) == "WordBPE of 7 tokens, opening token None"


def test_no_files_no_tokenizer(tmp_path: Path) -> None:
    assert load_tokenizer(finder(tmp_path), "gpt2") is None
    assert load_tokenizer(finder(tmp_path), "ctrl") is None


@pytest.mark.parametrize("family", ["gpt2", "ctrl"])
@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
def test_one_file_of_two(family: str, missing: str, tmp_path: Path) -> None:
    write_ctrl(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(CheckpointError, match=f"{re.escape(missing)} is missing"):
        load_tokenizer(finder(tmp_path), family)


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


@pytest.mark.parametrize(
    ("family", "name", "content"),
    [
        *(
            (family, "vocab.json", content)
            for family in ("gpt2", "ctrl")
            for content in ["", "{", "[1]", LFS, b"\xff", "[" * 100_000]
        ),
        *(
            (family, "merges.txt", content)
            for family in ("gpt2", "ctrl")
            for content in [LFS, b"#version\n\xff", "<html>"]
        ),
        ("gpt2", "merges.txt", "#version\nno such\n"),
        *(("gpt2", "tokenizer.json", content) for content in ["", "{}", "[1]", LFS, b"\xff", "<html>"]),
        ("gpt2", "tokenizer.json", '{"model": {"type": "WordPiece", "vocab": {}}}'),
        # The tokenizers package drops the first, cuts the second down to 32 bits, and reads the third.
        *(("gpt2", "vocab.json", f'{{"a": {token}, "b": 1}}') for token in ("true", 2**32 + 7, 1)),
        *(("ctrl", "vocab.json", content) for content in ['{"<unk>": "0"}', '{"<unk>": 1}', '{"<unk>": 0, "b": 0}']),
        ("ctrl", "vocab.json", '{"<unk>": true, "a": 0}'),
        ("ctrl", "vocab.json", '{"a": 0}'),
        ("ctrl", "vocab.json", '{"<unk>": 0, "a\\ud800": 1}'),
        ("ctrl", "merges.txt", ""),
    ],
)
def test_malformed_files(family: str, name: str, content: str | bytes, tmp_path: Path) -> None:
    tiny_bpe().model.save(str(tmp_path)) if family == "gpt2" else write_ctrl(tmp_path)
    assert load_tokenizer(finder(tmp_path), family) is not None
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=re.escape(name)) as caught:
        load_tokenizer(finder(tmp_path), family)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    assert ("git lfs" in str(caught.value)) == (content == LFS and name.endswith(".json"))


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    write_ctrl(tmp_path)
    (tmp_path / "merges.txt").unlink()
    (tmp_path / "merges.txt").mkdir()
    with pytest.raises(CheckpointError, match=r"merges\.txt is not readable"):
        ctrl(tmp_path)


def test_two_entries_of_one_id(tmp_path: Path) -> None:
    document = json.loads(tiny_bpe().to_str())
    document["model"] |= {"merges": [], "vocab": {"a": 0, "b": 0}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json gives two entries the same id$"):
        load_tokenizer(finder(tmp_path), "gpt2")


@pytest.mark.parametrize("name", ["tokenizer.json", "added_tokens.json"])
def test_an_added_token_that_would_fill_the_memory(name: str, tmp_path: Path) -> None:
    raw, token = tiny_bpe(), "x" * 1_000_001
    raw.model.save(str(tmp_path))
    document = {**json.loads(raw.to_str()), "added_tokens": [{"content": token}]}
    (tmp_path / name).write_text(json.dumps(document if name == "tokenizer.json" else {token: raw.get_vocab_size()}))
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)} adds tokens of more than a million characters$"):
        load_tokenizer(finder(tmp_path), "gpt2")


@pytest.mark.parametrize(
    ("piece", "shown"),
    [
        (b" the", "·the"),
        (b"\n\n", "↵↵"),
        (b"\t\r\n", "⇥\\x0d↵"),
        (b"", "∅"),
        (b"\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        (b"\xc2\x9b31m", "\\u009b31m"),  # the one-character form of ESC [
        (b"\x9b31m", "\\x9b31m"),  # the same number as a byte, which is not UTF-8
        (b"\0\x7f", "\\x00\\x7f"),
        (b"\xe2\x80", "\\xe2\\x80"),
        ("\u202eabc\u2066".encode(), "\\u202eabc\\u2066"),
        ("\u200b\u2028\ufeff\xad\xa0".encode(), "\\u200b\\u2028\\ufeff\\u00ad\\u00a0"),
        ("\U000e0041\ue000".encode(), "\\U000e0041\\ue000"),
        ("\u3164\ufe0f\u2800\u034f".encode(), "\\u3164\\ufe0f\\u2800\\u034f"),
        (b"\xed\xa0\x80", "\\xed\\xa0\\x80"),  # a surrogate is not UTF-8
        ("\u0301a\u0301".encode(), "◌\u0301a\u0301"),
        (" \u0301\u0302".encode(), "·◌\u0301\u0302"),
        ("\u200d\u0301".encode(), "\\u200d◌\u0301"),
        ("naïve 猫 👩".encode(), "naïve·猫·👩"),
        (("a" + "\u0301" * 6).encode(), "a" + "\u0301" * 4 + "\\u0301◌\u0301"),  # a pile would cover other lines
        ("\u1161\u1112\u1161\u11ab".encode(), "◌\u1161\u1112\u1161\u11ab"),  # a vowel alone, then a syllable
        ("👍🏽".encode(), "👍🏽"),
        (b"C:\\users\\x", "C:\\users\\x"),
        (b"\\x1b", "\\x5cx1b"),
        (b"\\U0001f600", "\\x5cU0001f600"),
        (b"\\u202e \\", "\\x5cu202e·\\"),
        ("·↵".encode(), "\\u00b7\\u21b5"),
        (b"plas@@", "plas@@"),
    ],
)
def test_visible(piece: bytes, shown: str) -> None:
    assert visible(piece) == shown


def unseen(shown: str) -> bytes:
    """visible, backwards: what is possible only if it hides nothing."""
    marks = {"·": b" ", "↵": b"\n", "⇥": b"\t", "∅": b"", "◌": b""}

    def meant(part: re.Match[str]) -> bytes:
        if part[1]:
            return bytes.fromhex(part[1])
        if part[2] or part[3]:
            return chr(int(part[2] or part[3], 16)).encode()
        return marks.get(part[0], part[0].encode())

    parts = re.finditer(r"\\x([0-9a-f]{2})|\\u([0-9a-f]{4})|\\U([0-9a-f]{8})|.", shown)
    return b"".join(map(meant, parts))


HOSTILE = st.sampled_from(
    [
        " ",
        "\\",
        "x1b",
        "u202e",
        "U0001f600",
        "·",
        "∅",
        "◌",
        "\u0301",
        "\u0301" * 3,
        "\u1161",
        "\x1b[",
        "\u202e",
        "\u3164",
    ]
)


@settings(max_examples=500)
@given(
    piece=st.binary(max_size=12)
    | st.lists(HOSTILE | st.characters(codec="utf-8"), max_size=8).map("".join).map(str.encode)
)
def test_visible_is_one_line_of_ink_that_hides_nothing(piece: bytes) -> None:
    shown = visible(piece)
    assert shown and shown.isprintable() and " " not in shown
    assert not regex.search(r"\p{Default_Ignorable_Code_Point}|\p{Cc}|\p{Cf}|\p{Z}", shown)
    assert not unicodedata.category(shown[0]).startswith("M")
    assert all(cell_len(shown[at : at + 5]) for at in range(len(shown) - 4)) and cell_len(shown[0])
    assert unseen(shown) == piece


def test_every_character_without_ink_is_visible() -> None:
    characters = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    hidden = regex.findall(r"[\p{Default_Ignorable_Code_Point}\p{Cc}\p{Cf}\p{Z}\u2800]", characters)
    assert len(hidden) > 4000
    assert set(visible("".join(hidden).encode())) <= set("·↵⇥\\xuU0123456789abcdef")


def test_the_tokenizers_package_is_imported_where_it_is_used() -> None:
    code = "import sys, minilens.checkpoint.tokenizer_files; sys.exit('tokenizers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def write_gpt2(folder: Path, **beside: object) -> None:
    """The tiny byte-level BPE as vocab.json and merges.txt, with other JSON files beside them."""
    tiny_bpe().model.save(str(folder))
    for name, content in beside.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_added_tokens_and_prefix_space_equal_the_reference(tmp_path: Path) -> None:
    size = tiny_bpe().get_vocab_size()
    added = {"<|pad|>": size + 1, "<|sep|>": size}
    write_gpt2(tmp_path, added_tokens=added, tokenizer_config={"add_prefix_space": True})
    tokenizer = load_tokenizer(finder(tmp_path), "gpt2")
    assert tokenizer is not None
    reference = GPT2Tokenizer.from_pretrained(tmp_path)
    for text in ("the cat<|pad|> and<|sep|>the dog", "the cat", " the cat", "<|sep|>"):
        assert tokenizer.encode(text)[0].tolist() == reference(text).input_ids
    assert tokenizer.piece(size) == b"<|sep|>"


def test_added_tokens_are_refused_for_ctrl(tmp_path: Path) -> None:
    write_ctrl(tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<pad>": 7}')
    with pytest.raises(CheckpointError, match=r"added_tokens\.json adds '<pad>' to CTRL's tokens, which"):
        load_tokenizer(finder(tmp_path), "ctrl")


# ---- There and back, for every tokenizer at hand

FOLDERS = {**bundled(), "real gpt2": SHARED / "gpt2", "real ctrl": SHARED / "ctrl"}
BYTE_LEVEL = ["tales-gpt2", "tales-gpt-neo", "real gpt2"]
WORDS = ["tales-ctrl", "real ctrl"]


@cache
def pair(name: str) -> tuple[Tokenizer, Any]:
    """A tokenizer and transformers' own, from the same files; skips where they are not there."""
    folder = FOLDERS[name]
    if not folder.exists():
        pytest.skip(f"the real tokenizer files are not in {SHARED}")
    tokenizer = load_tokenizer(finder(folder), "ctrl" if name in WORDS else "gpt2")
    assert tokenizer is not None
    if (folder / "tokenizer.json").exists():
        return tokenizer, PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    reference = CTRLTokenizer if name in WORDS else GPT2Tokenizer
    return tokenizer, reference(str(folder / "vocab.json"), str(folder / "merges.txt"))


@pytest.mark.parametrize("name", BYTE_LEVEL)
@settings(max_examples=100, deadline=None)
@example(text=" " * 1000 + "a" + "\t" * 1000 + "\n" * 999)
@example(text="\0\x1b[31m\u202e\ufeff\U0010ffff\ufdd0")
@example(text="e" + "\u0301" * 1000)
@example(text="<|endoftext|><|endoftext|> <|endo<|endoftext|>ftext|>")
@given(text=TEXTS | st.text(CHARACTERS))
def test_byte_level_text_comes_back(name: str, text: str) -> None:
    tokenizer, reference = pair(name)
    ids = tokenizer.encode(text)[0].tolist()
    assert ids == reference.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert b"".join(map(tokenizer.piece, ids)) == text.encode()


@pytest.mark.parametrize("name", WORDS)
@settings(max_examples=100, deadline=None)
@example(text=" " * 1000 + "a" + "\t" * 1000 + "\n" * 999)
@example(text="\0\x1b[31m\u202e\ufeff\U0010ffff\ufdd0")
@given(text=TEXTS | st.text(CHARACTERS))
def test_words_after_a_control_code(name: str, text: str) -> None:
    """The reference's ids; and of words that the vocabulary can spell, each comes back in its place."""
    tokenizer, reference = pair(name)
    for code in ("", *tokenizer.codes[:2]):
        prompt = f"{code} {text}"
        ids = tokenizer.encode(prompt)[0].tolist()
        assert ids == reference.encode(prompt, add_special_tokens=False)
        assert tokenizer.decode(ids) == reference.decode(ids)
        assert not code or tokenizer.hint(prompt) is None
        words = regex.findall(r"\S+", prompt)
        if tokenizer.encode("<unk>")[0, 0] not in ids and "@@" not in prompt:
            assert regex.findall(r"\S+", tokenizer.decode(ids)) == words


@pytest.mark.parametrize("add_prefix_space", [False, True])
def test_added_tokens_and_a_prefix_space_on_any_text(tmp_path: Path, add_prefix_space: bool) -> None:
    """The space is the checkpoint's wish, and the only thing that comes back and was not there."""
    size = tiny_bpe().get_vocab_size()
    added = {text: size + n for n, text in enumerate(["<|pad|>", "\x1b[31m", "\u202e", "猫猫", "</script>", "  "])}
    write_gpt2(tmp_path, added_tokens=added, tokenizer_config={"add_prefix_space": add_prefix_space})
    tokenizer = load_tokenizer(finder(tmp_path), "gpt2")
    assert tokenizer is not None
    reference = GPT2Tokenizer.from_pretrained(tmp_path)

    @settings(max_examples=100, deadline=None)
    @given(parts=st.lists(st.sampled_from([*added, "<|endoftext|>", "the", " "]) | st.text(CHARACTERS, max_size=5)))
    def check(parts: list[str]) -> None:
        text = "".join(parts)
        ids = tokenizer.encode(text)[0].tolist()
        assert ids == reference.encode(text, add_special_tokens=False)
        back = tokenizer.decode(ids)
        assert back == text if not add_prefix_space else back.replace(" ", "") == text.replace(" ", "")

    check()


# ---- Long texts


@pytest.mark.parametrize("seed", range(20))
def test_merges_in_any_order_equal_transformers(tmp_path: Path, seed: int) -> None:
    """A merge may come before those that make its parts; all of a pair are merged before any other pair is."""
    chance = random.Random(seed)
    parts, merges = ["a", "b"], []
    for _ in range(10):
        first, second = chance.choices(parts, k=2)
        merges.append((first, second + chance.choice(["", "", "</w>"])))
        parts.append(first + second)
    merges = list(dict.fromkeys(merges))
    chance.shuffle(merges)
    write_ctrl(tmp_path, ["<unk>"], "\n".join(["#version", *map(" ".join, merges), ""]))
    reference = CTRLTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    for _ in range(50):
        word = "".join(chance.choices("ab", k=chance.randint(1, 30)))
        pieces = reference.bpe(word).split(" ")
        vocab = {"<unk>": 0} | {piece: n for n, piece in enumerate(dict.fromkeys(pieces), 1)}
        assert WordBPE(vocab, merges).encode(word)[0].tolist() == [vocab[piece] for piece in pieces]


@real_files
def test_a_word_of_two_thousand_letters_equals_transformers() -> None:
    tokenizer, reference = real("ctrl")
    word = "".join(random.Random(5).choices("etaoinshrdlu", k=2000))
    assert tokenizer.encode(word)[0].tolist() == reference.encode(word, add_special_tokens=False)


@pytest.mark.parametrize("name", [*BYTE_LEVEL, *WORDS])
@pytest.mark.parametrize(
    "make",
    [
        lambda n: "".join(random.Random(5).choices("etaoinshrdlu", k=n)),
        lambda n: "x" * n,
        lambda n: " " * n,
        lambda n: "e" + "\u0301" * (n // 2),
        lambda n: "\0" * n,
    ],
    ids=["one word", "one letter", "spaces", "marks", "NUL"],
)
def test_the_time_grows_with_the_text(name: str, make: Callable[[int], str]) -> None:
    """Twenty times the text takes some twenty times the work, and four hundred times if it grew with the square."""
    tokenizer, _ = pair(name)

    def work(text: str) -> float:
        """The lesser of two: of this process alone, so that another one on the machine does not count."""
        times = []
        for _ in range(2):
            start = time.process_time()
            tokens = tokenizer.encode(text)
            times.append(time.process_time() - start)
        assert name in WORDS or tokenizer.decode(tokens[0]) == text
        return min(times)

    assert work(make(100_000)) < 100 * work(make(5_000))


def test_what_words_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither all of a text without an end, nor a word of ten megabytes; their tokens are the same."""
    write_ctrl(tmp_path)
    monkeypatch.setattr(minilens.checkpoint.tokenizer, "CACHED_WORDS", 5)
    tokenizer = ctrl(tmp_path)
    text = " ".join(["apt" * n for n in range(1, 60)])
    assert tokenizer.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert isinstance(tokenizer, WordBPE)
    assert len(tokenizer._cache) == 5
    monkeypatch.setattr(minilens.checkpoint.tokenizer, "CACHED_WORDS", 10**6)
    tokenizer.encode(text)
    assert max(map(len, tokenizer._cache)) < CACHED_LENGTH

"""Cases that somebody thought of, each of a GPT-2 unless its name says otherwise."""

import contextlib
import io
import json
import math
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from safetensors.torch import save

from .drawn import DEEP, SHARDS
from .good import (
    CONFIGS,
    Content,
    Files,
    encoded,
    good,
    packed,
    programs_ends,
    text_files,
    torch_save,
    unpacked,
    unzipped,
    weights,
    zipped,
)

Named = Iterator[tuple[str, Files]]


def special() -> Iterator[tuple[str, Content]]:
    """What may stand in the place of any file."""
    yield "empty", b""
    yield "directory", os.mkdir
    yield "fifo", os.mkfifo
    yield "link to itself", lambda path: os.symlink(path.name, path)
    yield "link to nothing", lambda path: os.symlink("nothing", path)
    yield "link to a device", lambda path: os.symlink("/dev/zero", path)
    yield "LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:248dfc39\nsize 548105171\n"
    yield "web page", b"<!DOCTYPE html>\n<html></html>"
    yield "zeros", bytes(100_000)
    yield "not UTF-8", b'{"\xff\xfe": 1}'


def bad_json(key: str) -> Iterator[tuple[str, Content]]:
    """What may stand in the place of any JSON."""
    start = b'{"%s": ' % key.encode()
    yield "deep list", b"[" * DEEP
    yield "deep and closed", start + b"[" * DEEP + b"]" * DEEP + b"}"
    yield "900 deep", start + b"[" * 900 + b"]" * 900 + b"}"
    yield "list", b"[1]"
    yield "NaN", b"NaN"
    yield "number of 5000 digits", start + b"9" * 5000 + b"}"
    yield "BOM", b"\xef\xbb\xbf{}"
    yield "UTF-16", "{}".encode("utf-16")
    yield "lone surrogate", b'{"\\ud800": 1}'
    yield "10 MB key", lambda path: path.write_bytes(b'{"%s": 1}' % (b"k" * 10**7))
    yield "10 MB string", lambda path: path.write_bytes(start + b'"%s"}' % (b"k" * 10**7))
    yield "10 million keys", lambda path: path.write_bytes(b"{" + b'"a":1,' * 10**7 + b'"b":1}')


def hand_safetensors() -> Named:
    data = good("gpt2")["model.safetensors"]
    header, body = unpacked(data)
    a, b = "transformer.h.0.ln_1.weight", "transformer.h.0.ln_1.bias"
    raw, offsets = encoded(header), header[a]["data_offsets"]
    nothing = dict(dtype="F32", shape=[0], data_offsets=[0, 0])

    def with_entry(**change: Any) -> bytes:
        return packed({**header, a: {**header[a], **change}}, body)

    def shifted(names: list[str]) -> dict[str, Any]:
        """The header of a file with 4 bytes more before these tensors."""
        later = {
            name: {**header[name], "data_offsets": [n + 4 for n in header[name]["data_offsets"]]} for name in names
        }
        return {**header, **later}

    found: dict[str, Content] = dict(special())
    found |= {f"header: {name}": packed(c, body) for name, c in bad_json(a) if isinstance(c, bytes)}
    found |= {f"{n} bytes": data[:n] for n in (1, 7, 8, 9)}
    for length in (0, 1, len(raw) - 1, len(raw) + 1, len(data), 10**8, 2**31, 2**63, 2**64 - 1):
        found[f"length {length}"] = struct.pack("<Q", length) + raw + body
    found["the same entry twice"] = packed(raw[:-1] + b", " + encoded({a: header[a]})[1:], body)
    found["an entry twice, another place"] = packed(raw[:-1] + b", " + encoded({a: header[b]})[1:], body)
    found["metadata twice"] = packed(b'{"__metadata__": {}, ' + raw[1:], body)
    found["a field twice"] = packed(raw.replace(b'"dtype"', b'"dtype": "F32", "dtype"', 1), body)
    found["overlap"] = with_entry(data_offsets=[offsets[0] - 4, offsets[1] - 4])
    found["alias"] = with_entry(data_offsets=header[b]["data_offsets"])
    found["alias of one more"] = packed({**header, "copy": header[a]}, body)
    found["backwards"] = with_entry(data_offsets=offsets[::-1])
    found["beyond the end"] = with_entry(data_offsets=[len(body), len(body) + 32])
    for wrong in json.loads('[[-4, 28], [0.0, 32.0], ["0", "32"], null, 3, [], [0], [0, 32, 64], [[0], [32]]]'):
        found[f"offsets {wrong}"] = with_entry(data_offsets=wrong)
    found["offsets of 2**64"] = with_entry(data_offsets=[2**64, 2**64 + 32])
    for dtype in [*"F8_E4M3 F8_E5M2 F4 C64 I64 I32 U32 BOOL f32 F33".split(), "", 1, None, "x" * 10**6]:
        found[f"dtype {str(dtype)[:9]}"] = with_entry(dtype=dtype)
    for wrong in json.loads('[[0], [0, 8], [-8], [8.0], ["8"], [], [[8]], null, 8, [4, 2], [8, 1]]'):
        found[f"shape {wrong}"] = with_entry(shape=wrong)
    for wrong in ([2**63], [2**64], [2**32, 2**32], [10**30]):
        found[f"shape {wrong}"] = with_entry(shape=wrong)
    found["shape of 100,000 ones"] = with_entry(shape=[8] + [1] * DEEP)
    for metadata in (1, [], None, {"a": 1}, {"a": None}, {"a": {}}, "x", {str(n): "" for n in range(10_000)}):
        found[f"metadata {str(metadata)[:20]}"] = packed({**header, "__metadata__": metadata}, body)
    found["more bytes than tensors"] = data + b"1234"
    names = sorted((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"])
    last = header[names[-1]]["data_offsets"][0]
    found["hole at the start"] = packed(shifted(names), b"1234" + body)
    found["hole between two"] = packed(shifted(names[-1:]), body[:last] + b"1234" + body[last:])
    for name in ("x", "a\nb\x1b[31m", "", "x" * 10**6, "transformer.transformer.wte.weight", "h.9.ln_1.weight"):
        found[f"one more tensor {name[:9]!r}"] = packed({**header, name: nothing}, body)
    found["with and without prefix"] = packed({**header, a.removeprefix("transformer."): nothing}, body)
    tensors = weights("gpt2")
    head = {"lm_head.weight": tensors["transformer.wte.weight"].clone()}
    for name in ("v_head.summary.weight", "score.weight", "lm_head.weight", "lm_head.decoder.weight", "lm_head.bias"):
        found[f"a head, {name}"] = save({**tensors, name: torch.zeros(300, 8)})
    found["a head that is the embedding, of old"] = save({**tensors, "lm_head.decoder.weight": head["lm_head.weight"]})
    found["both heads"] = save({**tensors, **head, "lm_head.decoder.weight": head["lm_head.weight"] + 1})
    found["an adapter"] = save({**tensors, "transformer.h.0.attn.c_attn.lora_A.weight": torch.zeros(2, 8)})
    for prefix in ("module.", "model.", "_orig_mod.", "base_model.model.", "module._orig_mod.", "x.", "module.module."):
        wrapped = {prefix + name: tensor for name, tensor in {**tensors, **head}.items()}
        found[f"all in {prefix}"] = save(wrapped)
        found[f"all but one in {prefix}"] = save({**wrapped, "x": torch.zeros(1)})
    found["20,000 more tensors"] = packed({**header, **{str(n): nothing for n in range(20_000)}}, body)
    found["10 million keys"] = lambda path: path.write_bytes(packed(b"{" + b'"a":1,' * 10**7 + raw[1:], body))
    for torch_dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.int64, torch.bool, torch.float64):
        found[f"a tensor of {torch_dtype}"] = save({**weights("gpt2"), a: weights("gpt2")[a].to(torch_dtype)})
    return ((name, {"model.safetensors": content}) for name, content in found.items())


def hand_index() -> Named:
    file = "model.safetensors.index.json"
    index = json.loads(good("gpt2", "shards")[file])
    weight_map = index["weight_map"]
    name, other = list(weight_map)[:2]
    found: dict[str, Any] = {f"shard {n}, {shard!r:.20}": {**weight_map, name: shard} for n, shard in enumerate(SHARDS)}
    for wrong in (None, [], {}, 1, "x", [[name, "model-1.safetensors"]], {name: {}}):
        found[f"map {wrong!r:.20}"] = wrong
    found["a tensor that no shard has"] = {**weight_map, "x": "model-1.safetensors"}
    found["one shard is not named"] = dict.fromkeys(weight_map, "model-1.safetensors")
    found["all in the wrong shard"] = dict(zip(weight_map, reversed(weight_map.values()), strict=True))
    found["100,000 shards"] = {str(n): f"{n}.safetensors" for n in range(DEEP)}
    for label, value in found.items():
        yield label, {file: encoded({"weight_map": value})}
    for label, content in (*special(), *bad_json("weight_map")):
        yield label, {file: content}
    for label, content in special():
        yield f"the shard is {label}", {"model-2.safetensors": content}
    whole = save(weights("gpt2"))
    outside = encoded({"weight_map": {**weight_map, name: "../outside.safetensors"}})
    text = encoded(index)
    yield "tensors in both shards", {"model-1.safetensors": whole}
    yield "a key twice", {file: text.replace(b'"weight_map"', b'"weight_map": {}, "weight_map"')}
    yield "a tensor twice", {file: text[:-2] + b', "%s": "x"}}' % name.encode()}
    yield "a shard outside that is there", {file: outside, "../outside.safetensors": whole}
    yield (
        "a .bin as a shard",
        {
            file: encoded({"weight_map": {**weight_map, other: "x.bin"}}),
            "x.bin": torch_save({"e": torch.zeros(2)}, "zip"),
        },
    )


def hand_config() -> Named:
    for label, content in (*special(), *bad_json("n_embd")):
        yield label, {"config.json": content}
    for family, config in CONFIGS.items():
        text = encoded(config)[:-1]
        for key in config:
            for n, wrong in enumerate((2**40, 10**9, 10**400, -1, 1.0, "8", [], None, True, math.nan)):
                yield f"{family} {key} {n}", {"config.json": encoded({**config, key: wrong})}
        yield f"{family} a key twice", {"config.json": text + b', "vocab_size": 300}'}
        yield f"{family} all keys null", {"config.json": encoded(dict.fromkeys(config))}
        yield f"{family} unknown key of 10 MB", {"config.json": text + b', "%s": 1}' % (b"k" * 10**7)}
        yield f"{family} control characters", {"config.json": encoded({**config, "\n\x1b[31m": "\r\n\0"})}
        yield f"{family} lone surrogate", {"config.json": text + b', "prefix": "\\udc00"}'}
        for depth in (90, 99, 100, 110, 900, *range(950, 1000, 4)):
            for key in ("prefix", "unknown", "tie_word_embeddings") if family == "gpt2" else ():
                deep = text + b', "%s": ' % key.encode() + b"[" * depth + b"]" * depth + b"}"
                yield f"{family} {key}, {depth} deep", {"config.json": deep}
        named = {"hidden_size": config.get("n_embd"), "num_hidden_layers": 2, "num_attention_heads": 2}
        for n, value in enumerate((None, 2, 2**40, "2", [2], True, 2.0)):
            for key in named:
                yield f"{family} {key} as well, {n}", {"config.json": encoded({**config, key: value})}
            yield f"{family} tied, {n}", {"config.json": encoded({**config, "tie_word_embeddings": value})}
        yield f"{family} the other names", {"config.json": encoded({**config, **named, "n_embd": None, "n_head": None})}
        for key in (
            "dropout",
            "token_dropout",
            "bos_token",
            "author",
            "train_loss",
            "rope_theta",
            "my_scale",
            "x" * 999,
        ):
            for n, value in enumerate((0, 0.1, -1, True, "x", None, [], {})):
                yield f"{family} {key:.20} is {n}", {"config.json": encoded({**config, key: value})}
    neo = CONFIGS["gpt_neo"]
    for label, types in {
        "a billion layers": [[["global"], 10**9]],
        "a billion minus a billion": [[["global"], 10**9], [["global"], -(10**9) + 2]],
        "nothing, often": [[[], 10**12]] * 10_000,
        "much, often": [[["global"] * 10_000, 10**9]] * 100,
        "text": ["gl", "lo"],
        "deep": [[[[[[["global"]]]]], 2]],
        "a fraction": [[["global"], 2.0]],
        "true": [[["global", "local"], True]],
    }.items():
        for layers in (2, 10_000, 10**9):
            changed = {**neo, "attention_types": types, "num_layers": layers}
            yield f"gpt_neo {label}, {layers} layers", {"config.json": encoded(changed)}
    layers = {**neo, "num_layers": 10_000, "attention_types": [[["local"], 10_000]], "attention_layers": ["global"]}
    yield "gpt_neo other layers than types", {"config.json": encoded(layers)}
    for window in (2**31 - 1, 2**31, 2**63, 2**64, 16, 1):
        yield f"gpt_neo window {window}", {"config.json": encoded({**neo, "window_size": window})}
    lists, keys = b'{"prefix": [' + b"[]," * 2_000_000 + b"1]}", b",".join(b'"%d": 1' % n for n in range(200_000))
    yield "60 MB of empty lists", {"config.json": lambda path: path.write_bytes(b"[" + b"[]," * 20_000_000 + b"1]")}
    yield "6 MB of empty lists", {"config.json": lists}
    yield "200,000 keys", {"config.json": b"{" + keys + b', "199999": 1}'}


def hostile_normalizers() -> Iterator[Any]:
    """What may stand in the place of a normalizer: it grows a text, searches for ever, or brings its reader down."""

    def replace(pattern: Any, content: str) -> dict[str, Any]:
        return {"type": "Replace", "pattern": pattern, "content": content}

    double = replace({"String": "a"}, "aa")
    yield {"type": "Sequence", "normalizers": [double] * 45}
    yield {"type": "Sequence", "normalizers": [double] * 6}
    yield {"type": "Sequence", "normalizers": [{"type": "NFKC"}] * 2}
    yield {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [{"type": "NFC"}] * 3}] * 9}
    yield {"type": "Sequence", "normalizers": "NFC"}
    yield replace({"String": "e"}, "x" * 10**6)
    yield replace({"String": ""}, "x")
    yield replace({"String": "time"}, "")
    for pattern in ("(a+)+$", "x+x+(?=\\x01)", "", "(?<=a)", ".", "(((", "[\\s\\S]"):
        yield replace({"Regex": pattern}, "xy" * 40)
    yield {"type": "Prepend", "prepend": "x" * 10**7}
    yield {"type": "Prepend", "prepend": "x"}
    yield {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    yield {"type": "Precompiled", "precompiled_charsmap": "////////////////"}
    yield {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": True}
    yield {"type": "Strip", "strip_left": True, "strip_right": True}
    yield {"type": "Strip", "content": "x", "start": 2**63, "stop": 2**63}
    yield {"type": "ByteLevel"}
    yield {"type": "Nothing"}
    yield {"type": ["NFC"]}
    yield []
    yield 1
    yield "NFC"


def hostile_pre_tokenizers() -> Iterator[Any]:
    """What may stand in the place of a pre-tokenizer."""
    for length in (0, 1, 2**63):
        yield {"type": "FixedLength", "length": length}
    for pattern in (
        {"Regex": "(x+x+)+y"},
        {"Regex": "[\\s\\S]"},
        {"String": ""},
        {"String": "o"},
        {"Regex": 1},
        {},
        "x",
    ):
        for behavior in ("Isolated", "Removed", "MergedWithNext", "Contiguous", "x"):
            yield {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": behavior == "Removed"}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False}
    yield bytes_
    yield {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, bytes_]}
    yield {"type": "Sequence", "pretokenizers": [bytes_] * 2}
    yield {"type": "Sequence", "pretokenizers": []}
    yield {"type": "Metaspace", "replacement": "ab", "prepend_scheme": "always", "split": True}
    yield {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first", "split": False}
    yield {"type": "CharDelimiterSplit", "delimiter": "e"}
    for kind in ("Whitespace", "WhitespaceSplit", "BertPreTokenizer", "UnicodeScripts", "Punctuation", "Nothing"):
        yield {"type": kind}


def hand_tokenizer() -> Named:
    files, word = text_files("gpt2"), text_files("ctrl")
    two: Files = {name: files[name] for name in ("vocab.json", "merges.txt")}
    document, vocab, words = (json.loads(f) for f in (files["tokenizer.json"], files["vocab.json"], word["vocab.json"]))

    def with_model(**change: Any) -> Files:
        return {"tokenizer.json": encoded({**document, "model": {**document["model"], **change}})}

    for label, content in (*special(), *bad_json("model")):
        yield f"tokenizer.json: {label}", {"tokenizer.json": content}
        yield f"vocab.json: {label}", {**two, "vocab.json": content}
        yield f"ctrl vocab.json: {label}", {**word, "vocab.json": content}
        yield f"added_tokens.json: {label}", {**two, "added_tokens.json": content}
        yield f"tokenizer_config.json: {label}", {**two, "tokenizer_config.json": content}
        yield f"special_tokens_map.json: {label}", {**two, "special_tokens_map.json": content}
        yield f"aitextgen.tokenizer.json: {label}", {"aitextgen.tokenizer.json": content}
    for label, content in (
        *special(),
        ("8 MB", b"#version: 0.2\n" + b"o n\n" * 2_000_000),
        ("BOM", b"\xef\xbb\xbf#v"),
    ):
        yield f"merges.txt: {label}", {**two, "merges.txt": content}
        yield f"ctrl merges.txt: {label}", {**word, "merges.txt": content}
    yield "no merges", two | {"merges.txt": None}
    yield "no vocab", two | {"vocab.json": None}
    lines = {
        "one part": "o",
        "three parts": "o n c",
        "unknown": "z\u2603 y",
        "empty": "",
        "tab": "o\tn",
        "huge": "x" * 10**6,
    }
    for label, line in lines.items():
        yield f"merges.txt: {label}", {**two, "merges.txt": files["merges.txt"] + line.encode() + b"\n"}
        yield f"ctrl merges.txt: {label}", {**word, "merges.txt": word["merges.txt"] + line.encode() + b"\n"}
    for wrong in (-1, 2**31, 2**32 - 1, 2**32, 2**63, 10**30, 1.0, "1", None, [], {}, True, 0, 5000):
        added = [{**document["added_tokens"][0], "id": wrong}]
        yield f"vocab.json: id {wrong}", {**two, "vocab.json": encoded({**vocab, "a": wrong})}
        yield f"ctrl vocab.json: id {wrong}", {**word, "vocab.json": encoded({**words, "a": wrong})}
        yield f"tokenizer.json: id {wrong}", with_model(vocab={**vocab, "a": wrong})
        yield f"added_tokens.json: id {wrong}", {**two, "added_tokens.json": encoded({"<a>": wrong})}
        yield f"tokenizer.json: added id {wrong}", {"tokenizer.json": encoded({**document, "added_tokens": added})}
    for entry in ("\ud800", "\0", "", "\n\x1b[31m", "a" * 10**6, "@@", "</w>"):
        label = repr(entry[:9])
        yield f"vocab.json: entry {label}", {**two, "vocab.json": encoded({**vocab, entry: len(vocab)})}
        yield f"ctrl vocab.json: entry {label}", {**word, "vocab.json": encoded({**words, entry: len(words)})}
        yield f"tokenizer.json: entry {label}", with_model(vocab={**vocab, entry: len(vocab)})
        yield f"added_tokens.json: {label}", {**two, "added_tokens.json": encoded({entry: len(vocab)})}
    yield "vocab.json: {}", {**two, "vocab.json": b"{}"}
    yield "vocab.json: a key twice", {**two, "vocab.json": files["vocab.json"][:-1] + b', "a": 64}'}
    for n, wrong in enumerate(
        (None, "<p>", 1, [], ["<p>"], {}, {"content": "<p>"}, {"content": 1}, {"content": "", "x": 1})
    ):
        for key in (
            "pad_token",
            "x_token",
            "additional_special_tokens",
            "extra_special_tokens",
            "added_tokens_decoder",
        ):
            yield f"special {key}, {n}", {**two, "special_tokens_map.json": encoded({key: wrong})}
            yield f"config {key}, {n}", {**two, "tokenizer_config.json": encoded({key: wrong})}
            yield f"config {key} beside one file, {n}", {**files, "tokenizer_config.json": encoded({key: wrong})}
            yield f"ctrl config {key}, {n}", {**word, "tokenizer_config.json": encoded({key: wrong})}
    for n in ("0", "267", "-1", "1e3", "9" * 5000, "\u0663", ""):
        listed = {"added_tokens_decoder": {n: {"content": "<p>", "lstrip": True}}}
        yield f"listed under {n:.9}", {**two, "tokenizer_config.json": encoded(listed)}
    for text in ("a", "the", " ", "", "\0", "\n", "\u2603", "Once upon", "\ud800", "x" * 10**6):
        label = repr(text[:9])
        yield f"special token {label}", {**two, "special_tokens_map.json": encoded({"pad_token": text})}
        yield (
            f"a special token {label} beside one file",
            {**files, "special_tokens_map.json": encoded({"pad_token": text})},
        )
    for space in (True, False, None, 1, "x", []):
        setting = encoded({"add_prefix_space": space})
        yield f"a space of {space} beside one file", {**files, "tokenizer_config.json": setting}
        yield f"a space of {space} beside two", {**two, "tokenizer_config.json": setting}
    twice = files["tokenizer.json"].replace(b'"type"', b'"type": "BPE", "type"')
    yield "tokenizer.json: a key twice", {"tokenizer.json": twice}
    yield "tokenizer.json: vocab of 1", with_model(vocab={"a": 0}, merges=[])
    for merges in ([], [["o"]], [["o", "n", "c"]], ["o n"], ["o"], [["\u2603", "x"]], {}, None, 1, [["o", "n"]] * 1000):
        yield f"tokenizer.json: merges {merges!r:.30}", with_model(merges=merges)
    added = [{**document["added_tokens"][0], "content": "a" * 10**7}]
    yield "tokenizer.json: added token of 10 MB", {"tokenizer.json": encoded({**document, "added_tokens": added})}
    settings = {"type": "WordLevel", "dropout": 0.5, "unk_token": "<none>", "byte_fallback": True, "fuse_unk": True}
    settings |= {"continuing_subword_prefix": "##", "end_of_word_suffix": "</w>", "ignore_merges": True}
    for key, wrong in settings.items():
        yield f"tokenizer.json: model.{key}", with_model(**{key: wrong})
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    padding = {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    for n, (key, wrong) in enumerate(
        [
            ("truncation", {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}),
            ("padding", {**padding, "pad_type_id": 0, "pad_token": "a"}),
            ("normalizer", {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "a"}),
            ("pre_tokenizer", {**split, "pattern": {"Regex": "(\\S+\\s*)+\u2605"}}),
            ("pre_tokenizer", {**split, "pattern": {"Regex": "((("}}),
            ("decoder", {"type": "WordPiece", "prefix": "##", "cleanup": True}),
            ("decoder", None),
            ("version", "9.9"),
            *(("normalizer", part) for part in hostile_normalizers()),
            *(("pre_tokenizer", part) for part in hostile_pre_tokenizers()),
            *(("decoder", part) for part in hostile_normalizers()),
            ("post_processor", {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}]}),
            ("post_processor", {"type": "BertProcessing", "sep": ["x", 10**9], "cls": ["y", 10**9]}),
        ]
    ):
        yield f"tokenizer.json: {key}, {n}", {"tokenizer.json": encoded({**document, key: wrong})}


class Call:
    """What a pickle calls when Python's own loader reads it."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> Any:
        return self.made


RUN = "import pathlib; pathlib.Path('../canary/ran').touch()"
CALLS = {
    "os.system": Call(os.system, "touch ../canary/ran"),
    "os.mkdir": Call(os.mkdir, "../canary/ran"),
    "eval": Call(eval, f"exec({RUN!r})"),
    "exec": Call(exec, RUN),
    "open": Call(open, "../canary/ran", "w"),
    "import": Call(__import__, "this"),
    "bytearray of a TB": Call(bytearray, 10**12),
    "torch.load": Call(torch.load, "x.bin"),
    "storage of a TB": Call(torch.FloatStorage, 10**12),
}


def programs() -> Iterator[tuple[str, bytes]]:
    """Pickles that none of the libraries wrote."""
    wide = b"K\x01" + b"q\x01h\x01\x86" * 100  # a tuple that Python would have to look at 2**100 times
    multiples = (pickle.dumps(n * (2**61 - 1), 2)[2:-1] for n in range(1, 20_000))  # numbers of one and the same hash
    yield "deep tuple as a key", b"}K\x01" + b"\x85" * 300_000 + b"K\x01s."
    yield "wide tuple as a key", b"}" + wide + b"K\x01s."
    yield "wide tuple as a storage", wide + b"Q."
    yield "wide tuple as a shape", b"ctorch._utils\n_rebuild_tensor_v2\n" + wide + b"K\x01K\x01\x87R."
    yield "numbers as keys", b"}(" + b"".join(number + b"K\x01" for number in multiples) + b"u."
    yield "a dictionary's items", b"ccollections\nOrderedDict\n)R}X\5\0\0\0itemsK\x01sb."
    yield "another protocol", b"\x80\3}."
    yield "a list in itself", b"]q\x00h\x00a."
    yield "300,000 empty dictionaries", b"}" * 300_000 + b"."
    yield "500,000 marks", b"(" * 500_000
    yield "memo at 2**32 - 1", b"}r\xff\xff\xff\xff."
    yield "text of 4 GB", b"X\xff\xff\xff\xff."
    yield "text of 2**63 bytes", b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f."
    yield "number of 2 GB", b"\x8b\xff\xff\xff\x7f."
    yield "nothing on the stack", b"0."
    yield "no end", b"}"
    yield "a long name", b"c" + b"x" * 10**6 + b"\ny\n."
    yield "one key, often", b"}" + b"X\x01\x00\x00\x00aK\x01s" * 100_000 + b"."
    yield "many keys, one by one", b"}" + b"".join(b"X\x06\x00\x00\x00%06dK\x01s" % n for n in range(100_000)) + b"."
    yield "INST", b"(S'touch ../canary/ran'\nios\nsystem\n."
    yield "OBJ", b"(cos\nsystem\nU\x13touch ../canary/rano."
    yield "NEWOBJ", b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85\x81."
    yield "EXT1", b"\x82\x01."
    yield "dotted name", b"\x8c\x05torch\x8c\x09os.system\x93."


def odd_tensors(one: torch.Tensor) -> Iterator[tuple[str, Any]]:
    """What may stand in the place of a tensor."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some are experimental
        yield "sparse", one.to_sparse()
        yield "sparse CSR", one.to_sparse_csr()
        yield "quantised", torch.quantize_per_tensor(one, 0.1, 0, torch.qint8)
        yield "nested", torch.nested.nested_tensor([one, one[:3]])
    yield "meta", one.to("meta")
    yield "complex", one.to(torch.complex64)
    yield "conjugate", one.to(torch.complex64).conj()
    yield "negative view", one.to(torch.complex64).conj().imag
    yield "float8", one.to(torch.float8_e4m3fn)
    yield "int64", one.long()
    yield "bool", one > 0
    yield "uint16", one.to(torch.uint16)
    yield "parameter", torch.nn.Parameter(one)
    yield "transposed", one.t().contiguous().t()
    yield "a slice", torch.cat([one, one])[300:]
    yield "expanded", one[:1].expand(300, 8)
    yield "expanded to a TB", one[:1, :1].expand(10**6, 10**6)
    yield "a number", 3.5
    yield "a list", one.tolist()
    yield "an array", one.numpy()
    yield "a string", "x" * 10**6
    yield "None", None
    yield "a dictionary", {"x": one}
    yield "0 dimensions", torch.tensor(1.0)
    yield "no elements", torch.zeros(0, 8)
    yield "NaN", one * math.nan


def hand_bin() -> Named:
    tensors = weights("gpt2")
    name = "transformer.wte.weight"
    one = tensors[name]
    program, storages = unzipped(good("gpt2", "zip")["pytorch_model.bin"])
    legacy = good("gpt2", "legacy")["pytorch_model.bin"]
    *_, last, start = programs_ends(legacy)
    archive = zipped(program, storages)
    found: dict[str, Content] = dict(special())

    for label, call in CALLS.items():
        found[f"{label}, zip"] = torch_save({**tensors, "x": call}, "zip")
        found[f"{label}, older form"] = torch_save({**tensors, name: call}, "legacy")
        found[f"{label}, pickle alone"] = pickle.dumps({name: call})
        found[f"{label} before the older form"] = pickle.dumps(call, 2) + legacy
        found[f"{label} as a key of the older form"] = legacy[:start] + pickle.dumps([call], 2) + legacy[start:]
    for protocol in range(6):
        found[f"protocol {protocol}"] = zipped(pickle.dumps({name: CALLS["os.system"]}, protocol), storages)
    malice = dict(programs())
    for label, steps in malice.items():
        found[label] = zipped(b"\x80\x02" + steps, storages)
    for label in ("deep tuple as a key", "wide tuple as a key", "wide tuple as a storage"):
        found[f"{label}, older form"] = legacy[:27] + b"\x80\x02" + malice[label]
    for label, other in odd_tensors(one):
        for form in ("zip", "legacy"):
            with contextlib.suppress(Exception):  # not every one can be saved in the older form
                found[f"{label}, {form}"] = torch_save({**tensors, name: other}, form)
    shared = torch.zeros(10**4)
    for label, whole in {
        "tuple": tuple(tensors.items()),
        "list": list(tensors.values()),
        "a tensor": one,
        "a module": torch.nn.Linear(2, 2),
        "numbers as names": dict(enumerate(tensors.values())),
        "empty dictionary": {},
        "state dict of a module": torch.nn.Linear(2, 2).state_dict(),
        "state dict in a dictionary": {"state_dict": tensors},
        "tied": {**tensors, "lm_head.weight": one},
        "with and without prefix": {**tensors, name.removeprefix("transformer."): one},
        "one storage for all": {n: shared.as_strided(t.shape, t.stride()) for n, t in tensors.items()},
        "a thousand views": {**tensors, **{str(n): one for n in range(1000)}},
    }.items():
        for form in ("zip", "legacy"):
            found[f"{label}, {form}"] = torch_save(whole, form)
    bomb = {**storages, "0": bytes(10**8)}
    for label, method in {"deflated": zipfile.ZIP_DEFLATED, "LZMA": zipfile.ZIP_LZMA}.items():
        found[label] = zipped(program, storages, compression=method)
    found["zip bomb: program"] = zipped(b"\x80\x02" + b"N0" * 10**7 + b".", storages, compression=zipfile.ZIP_DEFLATED)
    found["zip bomb: storage"] = zipped(program, bomb, compression=zipfile.ZIP_DEFLATED)
    found["a program of 5 MB"] = zipped(program[:-1] + b"N0" * 2_500_000 + b".", storages)
    found["unaligned"] = archive
    found["no storages"] = zipped(program, {})
    found["no program"] = zipped(b"", storages)
    found["zip of nothing"] = b"PK\5\6" + bytes(18)
    found["a storage too long"] = zipped(program, {**storages, "0": storages["0"] + b"1234"})
    found["a storage too short"] = zipped(program, {**storages, "0": storages["0"][:-4]})
    found["names out of the archive"] = zipped(program, {**storages, "../../../canary/ran": b"x", "/etc/x": b"x"})
    found["bytes before the archive"] = b"x" * 100 + archive
    found["bytes after the archive"] = archive + b"x" * 100
    for entry in ("a/data/0", "a/DATA.PKL", "a/data.pkl\0x", "a/constants.pkl", "b/data.pkl", "a/data.pkl/", "x"):
        buffer = io.BytesIO(archive)
        with warnings.catch_warnings(), zipfile.ZipFile(buffer, "a") as changed:
            warnings.simplefilter("ignore")
            changed.writestr(entry, bytes(len(storages["0"])))
        found[f"another entry, {entry!r}"] = buffer.getvalue()
    for label, at, new in (
        ("compressed to nothing", 20, bytes(4)),
        ("larger when compressed", 20, b"\xff\xff\0\0"),
        ("a folder", 38, b"\x10"),
        ("encrypted", 8, b"\1"),
        ("elsewhere", 42, b"\7"),
    ):
        for entry in (b"a/data.pkl", b"a/data/0"):
            where = archive.rindex(entry) - 46 + at
            found[f"{entry.decode()} is {label}"] = archive[:where] + new + archive[where + len(new) :]
    whole = good("gpt2", "zip")["pytorch_model.bin"]
    for label, at in {"record": -98, "size": -58, "start": -50, "locator": -42, "start of the record": -34}.items():
        for new in (bytes(8), struct.pack("<Q", len(whole) - 99), b"\xff" * 8):
            found[f"directory: {label} {new!r}"] = whole[:at] + new + whole[at + 8 :]
    found["60,000 entries"] = lambda path: path.write_bytes(zipped(program, {str(n): b"" for n in range(60_000)}))
    found["a directory of 2**32 - 1 bytes"] = archive[:-10] + b"\xff" * 4 + archive[-6:]
    found["of no byte order"] = archive.replace(b"little", b"middle")
    found["much left on the stack"] = zipped(program[:2] + b"}" * 300_000 + program[2:], storages)
    found["wrong checksum"] = archive.replace(b"\x80\x02}", b"\x80\x02]", 1)
    found["tar"] = b"storages" + bytes(92) + b"0000644\0" + bytes(149) + b"ustar  \0" + bytes(2000)
    for n in (0, 1, 2**31, 2**63 - 1, -1):
        found[f"older form: storage of {n}"] = legacy[:start] + struct.pack("<q", n) + legacy[start + 8 :]
    found["older form: no storages"] = legacy[:start]
    wide = malice["wide tuple as a storage"][:-2]
    for label, keys in {"none": b"]", "one": b"]X\1\0\0\0" + b"0a", "a wide tuple": b"](" + wide + b"e"}.items():
        found[f"older form: of the storages {label}"] = legacy[:last] + b"\x80\2" + keys + b"." + legacy[start:]
    found["older form: a wide tuple as version"] = legacy[:15] + b"\x80\2" + wide + b"." + legacy[21:]
    # A header of tar takes the first 512 bytes, most of which are a text in the program about the system.
    tar = bytearray(legacy[:21] + b"\x80\2X\xe4\1\0\0" + bytes(484))
    tar[148:156] = b" " * 8
    tar[148:155] = b"%06o\0" % sum(tar)
    found["older form: tar as well"] = bytes(tar) + legacy[23:]
    for n in (2**31 - 1, 10**12, 2**63, -8):
        number = pickle.dumps(n, 2)[2:-1]
        found[f"vocabulary of {n}"] = zipped(program.replace(b"M,\x01", number), storages)
        found[f"storage of {n}"] = zipped(program.replace(b"M`\x09", number), storages)
        found[f"offset of {n}"] = zipped(program.replace(b"QK\x00", b"Q" + number), storages)
    for n in (1, 8, 255):
        step = bytes([n])
        for label, old, new in (
            ("offset", b"QK\x00", b"QK" + step),
            ("stride", b"K\x08K\x01\x86", b"K\x08K" + step + b"\x86"),
        ):
            found[f"{label} of {n}"] = zipped(program.replace(old, new), storages)
            found[f"{label} of {n}, older form"] = legacy.replace(old, new)
    return ((label, {"pytorch_model.bin": content}) for label, content in found.items())


def hand_values() -> Named:
    for family in CONFIGS:
        tensors = weights(family)
        for value in (math.nan, math.inf, -math.inf, 0.0, 3e38):
            yield f"{family} all {value}", {"model.safetensors": save({n: t * 0 + value for n, t in tensors.items()})}
            for name in list(tensors)[:3] + list(tensors)[-3:]:
                changed = tensors[name].clone()
                changed.view(-1)[0] = value
                yield f"{family} {name} {value}", {"model.safetensors": save({**tensors, name: changed})}
        for value in (1e20, 1e38, -1e38, 1e-45):
            for name in ("ln_f.weight", "ln_f.bias", "layernorm.weight", "layernorm.bias"):
                if (name := f"transformer.{name}") in tensors:
                    changed = {**tensors, name: torch.full_like(tensors[name], value)}
                    yield f"{family} {name} all {value}", {"model.safetensors": save(changed)}
        for dtype in (torch.float64, torch.float16, torch.bfloat16):
            yield f"{family} {dtype}", {"model.safetensors": save({n: t.to(dtype) for n, t in tensors.items()})}


HAND: dict[str, Callable[[], Named]] = {
    "safetensors": hand_safetensors,
    "index": hand_index,
    "config": hand_config,
    "tokenizer": hand_tokenizer,
    "bin": hand_bin,
    "values": hand_values,
}

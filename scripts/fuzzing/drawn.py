"""Cases drawn at random: a file or two of a good checkpoint, spoiled or not."""

import copy
import json
import math
import pickle
import pickletools
import random
import re
import struct
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from safetensors.torch import save

from minilens.checkpoint.keys import HARMLESS, ONLY

from .good import (
    CONFIGS,
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

WRONG: list[Any] = [
    *json.loads('[null, true, false, 0, -1, 1, 2, 3, 8, 16, 1.5, 1e-7, 1e308, NaN, Infinity, -Infinity, "", "x", "0"]'),
    *(2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30, 10**400, -(10**30)),
    *json.loads(r'["\u0000", "\n\u001b[31m", "\ud800", "\u2028", "gelu", "local", "F64", "F16", [2, 4], [0, 32]]'),
    *json.loads('[[], [[]], [1, 2], {}, {"a": 1}, [[[[[[]]]]]], ["global", "local"], [[["local", "global"], 1]]]'),
    *("x" * 100_000, "../../x", "/etc/passwd", "model.safetensors"),
]
KEYS = sorted({*" ".join(HARMLESS.values()).split(), *ONLY, "tie_word_embeddings", "hidden_size", "num_hidden_layers"})
KEYS += (
    "author created_date mask_token_id hidden_dropout_prob dropout token_dropout rotary_dim num_attention_heads".split()
)
DEEP = 100_000
SHARDS: list[Any] = [
    *"../../x /etc/passwd /dev/zero sub/x.safetensors .. . ./model-1.safetensors model-1.safetensors/ ~/x".split(),
    *r"..\..\x C:\x NUL CON.safetensors MODEL-1.safetensors http://x/y $HOME gone.safetensors config.json".split(),
    *("model.safetensors.index.json", "model-1.safetensors ", "model-1.safetensors\n", "model-1.safetensors"),
    *("", "\0", "\ud800", "\n\x1b[31m", "x" * 100_000, 1, None, [], {}, True),
]


def flipped(rng: random.Random, data: bytes, first: int = 0, last: int | None = None) -> bytes:
    """With a few bytes changed, put in or taken out between two places."""
    changed = bytearray(data)
    last = len(data) if last is None else last
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at = rng.randrange(first, max(last, first + 1))
        match rng.randrange(6):
            case 0:
                changed[at : at + 1] = rng.randbytes(1)
            case 1:
                changed[at : at + 1] = bytes([data[min(at, len(data) - 1)] ^ 1 << rng.randrange(8)])
            case 2:
                changed[at:at] = rng.choice([b"0", b"9", b"-", b"\0", b'"', b"{", b"\xff", b".", b"e9"])
            case 3:
                del changed[at : at + rng.choice([1, 1, 8, 100])]
            case 4:
                changed[at:at] = changed[at : at + rng.choice([1, 8, 100])]
            case 5:
                changed[at : at + 8] = struct.pack("<Q", rng.choice([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]))
    return bytes(changed)


def twisted(rng: random.Random, value: Any) -> bytes:
    """JSON with something wrong in it, or nothing that matters."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 1, 2])):
        inner, key = value, None
        while isinstance(inner, (dict, list)) and inner:
            key = rng.choice(list(inner)) if isinstance(inner, dict) else rng.randrange(len(inner))
            if not isinstance(inner[key], (dict, list)) or not inner[key] or rng.random() < 0.2:
                break
            inner = inner[key]
        if not inner:
            break
        match rng.randrange(8):
            case 0:
                del inner[key]
            case 1:
                inner[key] = [inner[key]]
            case 2 if isinstance(inner, dict):
                inner[rng.choice(["x", "", f"{key} ", "n_embd\0", "\ud800", "y" * 10_000])] = copy.deepcopy(inner[key])
            case 3:
                other = rng.choice(list(inner)) if isinstance(inner, dict) else rng.randrange(len(inner))
                inner[key], inner[other] = inner[other], inner[key]
            case 4 if type(inner[key]) is int:
                inner[key] += rng.choice([-1, 1, 4, -4, 2**32])
            case _:
                inner[key] = copy.deepcopy(rng.choice(WRONG))
    text = json.dumps(value)
    match rng.randrange(16):
        case 0:  # a key twice, perhaps with another value
            start = rng.choice([found.end() for found in re.finditer(r"(?:^|[:,\[] ?)\{(?=\")", text)] or [0])
            if start:
                key, end = json.JSONDecoder().raw_decode(text, start)
                inner, end = json.JSONDecoder().raw_decode(text, end + 2)
                text = f"{text[:start]}{json.dumps(key)}: {json.dumps(rng.choice([inner, *WRONG]))}, {text[start:]}"
        case 1:
            text = text.replace(":", ":" + "[" * DEEP + "]" * rng.choice([DEEP, 0]) + ",", 1)
        case 2:
            text = rng.choice(["[%s]", "%s %s", " %s\n", "%s,", "{}", "[]", "3", '"x"', "null"]).replace("%s", text)
        case 3:
            return text.encode(rng.choice(["utf-8-sig", "utf-16", "utf-32-le"]), "surrogatepass")
        case 4:
            return flipped(rng, text.encode())
        case 5:
            return text.encode()[: rng.randrange(len(text))]
    return text.encode()


def draw_safetensors(rng: random.Random, family: str) -> Files:
    data = good(family)["model.safetensors"]
    header, body = unpacked(data)
    names = [name for name in header if name != "__metadata__"]
    one, other = rng.sample(names, 2)
    entry, end = header[one], len(data) - len(body)
    first, last = entry["data_offsets"]
    match rng.randrange(12):
        case 0:
            data = flipped(rng, data, 8, end)
        case 1:
            data = flipped(rng, data, end)
        case 2:
            lie = rng.choice([0, 1, 8, end, len(data), 2**31, 2**63, rng.randrange(2**64)])
            data = struct.pack("<Q", lie) + data[8:]
        case 3:
            data = data[: rng.randrange(len(data))]
        case 4:
            data += rng.randbytes(rng.choice([1, 4, 100]))
        case 5:
            shift = rng.choice([-4, 4, -first, len(body), 2**63])
            entry["data_offsets"] = rng.choice(
                [[first + shift, last + shift], [last, first], [first, last + shift], header[other]["data_offsets"]]
            )
            data = packed(header, body)
        case 6:
            entry["dtype"] = rng.choice("F64 F32 F16 BF16 I64 I32 I8 U8 BOOL F8_E4M3 F8_E5M2 F4 C64 f32".split())
            entry["shape"] = rng.choice([entry["shape"], [*entry["shape"], 2], [n * 2 for n in entry["shape"]]])
            data = packed(header, body)
        case 7:
            entry["shape"] = rng.choice([[*entry["shape"], 1], entry["shape"][::-1], [0], [], [-1, -8], [2**62, 4]])
            data = packed(header, body)
        case 8:  # the same tensors in another order, with room in the header: nothing is wrong
            rng.shuffle(names)
            moved: dict[str, Any] = {"__metadata__": {"a": "\u2603"}}
            pieces, start = [], 0
            for name in names:
                a, b = header[name]["data_offsets"]
                pieces.append(body[a:b])
                moved[name] = {**header[name], "data_offsets": [start, start + b - a]}
                start += b - a
            data = packed(encoded(moved) + b" " * rng.randrange(9), b"".join(pieces))
        case 9:  # two tensors change places, which is right if they have the same shape
            entry["data_offsets"], header[other]["data_offsets"] = header[other]["data_offsets"], [first, last]
            data = packed(header, body)
        case _:
            data = packed(twisted(rng, header), body)
    return {"model.safetensors": data}


def draw_index(rng: random.Random, family: str) -> Files:
    files = good(family, "shards")
    index = json.loads(files["model.safetensors.index.json"])
    if rng.random() < 0.3:
        index["weight_map"][rng.choice(list(index["weight_map"]))] = rng.choice(SHARDS)
        return {"model.safetensors.index.json": encoded(index)}
    if rng.random() < 0.2:
        shard = f"model-{rng.choice([1, 2])}.safetensors"
        return {shard: rng.choice([None, flipped(rng, files[shard]), files["model-1.safetensors"]])}
    return {"model.safetensors.index.json": twisted(rng, index)}


def draw_config(rng: random.Random, family: str) -> Files:
    config: dict[str, Any] = dict(CONFIGS[family])
    match rng.randrange(4):
        case 0:
            config[rng.choice(KEYS)] = rng.choice(WRONG)
            return {"config.json": encoded(config)}
        case 1:
            right = [1, 4, 5, 1e-3, "relu", "gelu", [[["local"], 2]], [["local", 2]]]
            config[rng.choice(list(config))] = rng.choice([*WRONG, *right])
            return {"config.json": encoded(config)}
    return {"config.json": twisted(rng, config)}


def others() -> list[str]:
    """Tokenizers of other kinds than GPT-2's: of sentencepiece, of words."""
    space = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    letters = [*"abcdefghijklmnopqrstuvwxyzO,.'42", "\u2581"]
    ids = {entry: n for n, entry in enumerate(["<unk>", *letters, "on", "##on", "ce", "\u2581a"])}
    made = {
        "BPE": dict(vocab=ids, merges=[["o", "n"], ["c", "e"]], unk_token="<unk>", fuse_unk=True),
        "Unigram": dict(vocab=[[entry, -float(n)] for entry, n in ids.items()], unk_id=0, byte_fallback=False),
        "WordPiece": dict(vocab=ids, unk_token="<unk>", continuing_subword_prefix="##", max_input_chars_per_word=100),
        "WordLevel": dict(vocab=ids, unk_token="<unk>"),
    }
    found = []
    for kind, model in made.items():
        is_spaced = kind in ("BPE", "Unigram")
        parts = dict(
            normalizer={"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]},
            pre_tokenizer=space if is_spaced else {"type": "BertPreTokenizer"},
            decoder=space if is_spaced else {"type": "WordPiece", "prefix": "##", "cleanup": True},
        )
        document = dict(version="1.0", truncation=None, padding=None, added_tokens=[], post_processor=None)
        found.append(json.dumps(document | parts | {"model": {"type": kind, **model}}))
    return found


OTHERS = others()


def draw_tokenizer(rng: random.Random, family: str) -> Files:
    originals = text_files(family)
    if family != "ctrl" and rng.random() < 0.3:
        document = json.loads(rng.choice(OTHERS))
        part = document[rng.choice([part for part in ("normalizer", "pre_tokenizer", "decoder") if document[part]])]
        if rng.random() < 0.5:
            part[rng.choice(list(part))] = rng.choice(WRONG)
        kind = rng.choice([{}, {"tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast"}'}])
        return {"tokenizer.json": rng.choice([encoded, partial(twisted, rng)])(document), **kind}
    if family != "ctrl" and rng.random() < 0.5:
        document = json.loads(originals["tokenizer.json"])
        if rng.random() < 0.7:
            return {"tokenizer.json": twisted(rng, document)}
        part = rng.choice([document, document["model"], document["added_tokens"][0], document["pre_tokenizer"]])
        part[rng.choice(list(part))] = rng.choice(WRONG)
        return {"tokenizer.json": encoded(document)}
    files: Files = {name: originals[name] for name in ("vocab.json", "merges.txt")}
    lines = originals["merges.txt"].decode().split("\n")
    at = rng.randrange(len(lines))
    match rng.randrange(9):
        case 0:
            files["merges.txt"] = flipped(rng, originals["merges.txt"])
        case 1:
            lines[at] = rng.choice([*"o|o n c|| |o n |zz yy|\u00a0 o|o\tn|o n\r|#version: 0.2".split("|"), "x" * 9999])
            files["merges.txt"] = "\n".join(lines).encode()
        case 2:
            lines.insert(at, lines[rng.randrange(len(lines))])
            files["merges.txt"] = "\n".join(lines).encode()
        case 3:
            rng.shuffle(lines)
            files["merges.txt"] = "\n".join(lines).encode()
        case 4:
            setting = {"add_prefix_space": True, "control_codes": {"Links": 1}, "pad_token": "<pad>"}
            setting |= {"tokenizer_class": "GPT2Tokenizer", "additional_special_tokens": ["<c>", "<d>"]}
            if rng.random() < 0.5:
                setting["added_tokens_decoder"] = {"267": {"content": "<a>", "lstrip": True, "special": True}}
            files["tokenizer_config.json"] = twisted(rng, setting)
        case 5:
            files["added_tokens.json"] = twisted(rng, {"<a>": 267, "<b>": 268} if family != "ctrl" else {})
            files["special_tokens_map.json"] = twisted(rng, {"pad_token": "<a>", "eos_token": {"content": "<e>"}})
        case _:
            files["vocab.json"] = twisted(rng, json.loads(originals["vocab.json"]))
    return files


STEPS = [b"K\x00", b"K\x08", b"J\xff\xff\xff\xff", b"N", b"\x88", b"}", b"]", b")", b"(", b"0", b"2", b"."]
STEPS += [pickle.dumps(value, 2)[2:-1] for value in (2**31, 2**63, 10**30, 1.5, b"x", {1}, "\ud800", (1, (2, (3,))))]


def shuffled(rng: random.Random, program: bytes, others: list[bytes]) -> bytes:
    """A pickle of which a few instructions are taken out, put in, or changed for others."""
    starts = [position for _, _, position in pickletools.genops(program)]
    steps = [program[start:end] for start, end in pairwise([*starts, len(program)])]
    for _ in range(rng.choice([1, 1, 2, 3])):
        at, other = rng.randrange(len(steps)), rng.randrange(len(steps))
        match rng.randrange(5):
            case 0:
                del steps[at]
            case 1:
                steps.insert(at, steps[other])
            case 2:
                steps[at] = steps[other]
            case 3:
                steps[at], steps[other] = steps[other], steps[at]
            case 4:
                steps[at] = rng.choice(others)
    return b"".join(steps)


def draw_bin(rng: random.Random, family: str) -> Files:
    form = rng.choice(["zip", "legacy"])
    data = good(family, form)["pytorch_model.bin"]
    program, storages = unzipped(good(family, "zip")["pytorch_model.bin"])
    match rng.randrange(9):
        case 0 | 1:
            data = flipped(rng, data)
        case 2:
            data = data[: rng.randrange(len(data))]
        case 3 if form == "legacy":
            data = flipped(rng, data, 0, programs_ends(data)[-1])
        case 3:  # the directory of the archive, at the end
            data = flipped(rng, data, data.rindex(b"PK\5\6") - 2000)
        case 4:
            one, other = rng.sample(list(storages), 2)
            match rng.randrange(4):
                case 0:
                    del storages[one]
                case 1:
                    storages[one], storages[other] = storages[other], storages[one]
                case 2:
                    storages[one] = storages[one][: rng.choice([0, 4, 7])] or storages[one] * 2
                case 3:
                    storages["x/../../y"] = b"1234"
            data = zipped(program, storages)
        case _:  # instructions of the program are taken out, put in, changed; its checksum is right
            data = zipped(shuffled(rng, program, STEPS), storages)
    return {"pytorch_model.bin": data}


def draw_values(rng: random.Random, family: str) -> Files:
    tensors = {name: tensor.clone() for name, tensor in weights(family).items()}
    for _ in range(rng.choice([1, 1, 3])):
        flat = tensors[rng.choice(list(tensors))].view(-1)
        value = rng.choice([math.nan, math.inf, -math.inf, 3e38, -3e38, 1e-45, -0.0, 1e20])
        flat[: len(flat) if rng.random() < 0.2 else 0] = value
        flat[rng.randrange(len(flat))] = value
    dtype = rng.choice([torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64])
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    if rng.random() < 0.5:
        return {"model.safetensors": save(tensors)}
    return {"model.safetensors": None, "pytorch_model.bin": torch_save(tensors, rng.choice(["zip", "legacy"]))}


DRAW: dict[str, Callable[[random.Random, str], Files]] = {
    "safetensors": draw_safetensors,
    "index": draw_index,
    "config": draw_config,
    "tokenizer": draw_tokenizer,
    "bin": draw_bin,
    "values": draw_values,
}

"""The checkpoints that scripts/fuzz.py has minilens read: good ones of tiny random models, and what is done to them.

A case changes a file or two of a good checkpoint. `DRAW` makes one from a random generator, `by_hand` has those that
somebody thought of.
"""

import contextlib
import copy
import io
import json
import math
import os
import pickle
import pickletools
import random
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors.torch import save

from minilens import hub
from minilens.checkpoint import Checkpoint, Settings

Tensors = dict[str, torch.Tensor]
Content = bytes | None | Callable[[Path], object]
"""Of a file: its bytes; None for no such file; or what makes it."""
Files = dict[str, Content]


# Good checkpoints.

SIZES: dict[str, dict[str, Any]] = {
    "gpt2": dict(n_positions=16, n_embd=8, n_layer=2, n_head=2, n_inner=12, activation_function="gelu_new"),
    "gpt_neo": dict(
        **dict(max_position_embeddings=16, hidden_size=8, num_layers=2, num_heads=2, intermediate_size=12),
        **dict(window_size=3, attention_types=[[["global", "local"], 1]]),
    ),
    "ctrl": dict(n_positions=16, n_embd=8, n_layer=2, n_head=2, dff=12),
}
CONFIGS = {
    family: dict(model_type=family, vocab_size=300, layer_norm_epsilon=1e-5, architectures=["X"], n_ctx=16, **sizes)
    for family, sizes in SIZES.items()
}


class Drawn(Checkpoint):
    """In place of a Checkpoint: random weights of whatever name and shape a family asks for."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.generator = torch.Generator().manual_seed(2020)

    def take(self, name: str, *shape: int) -> torch.Tensor:
        self.tensors[name] = torch.randn(shape, generator=self.generator) * 0.3
        return self.tensors[name]

    def tied(self, name: str, to: torch.Tensor) -> None:
        """It is not stored."""

    def ignore(self, *names: str) -> None:
        """They are not stored."""


@cache
def weights(family: str) -> Tensors:
    drawn, module = Drawn(), hub.FAMILIES[family]
    module.build(module.Config.read(Settings(CONFIGS[family], Path())), drawn)
    return {f"transformer.{name}": tensor for name, tensor in drawn.tensors.items()}


@cache
def letters() -> dict[int, str]:
    """GPT-2's character for each byte (bytes_to_unicode in openai/gpt-2)."""
    own = [byte for byte in range(256) if 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174]
    others = [byte for byte in range(256) if byte not in own]
    return {byte: chr(byte) for byte in own} | {byte: chr(256 + n) for n, byte in enumerate(others)}


BYTE_MERGES = "o n|on c|onc e|\u0120 t|\u0120t h|\u0120th e|\u0120 a|i m|im e|\u0120t ime".split("|")
WORD_MERGES = "o n|on c|onc e</w>|t h|th e</w>|i m|im e</w>|t ime</w>".split("|")


@cache
def text_files(family: str) -> dict[str, bytes]:
    """vocab.json and merges.txt, and for byte-level BPE also tokenizer.json."""
    if family == "ctrl":
        merges = WORD_MERGES
        whole = [merge.replace(" ", "") for merge in merges]
        entries = ["<unk>", "Links"] + [c + end for c in "abcdefghijklmnopqrstuvwxyzO,.42" for end in ("@@", "")]
        entries += [piece.removesuffix("</w>") if piece.endswith("</w>") else piece + "@@" for piece in whole]
    else:
        merges = BYTE_MERGES
        entries = [*letters().values(), *(merge.replace(" ", "") for merge in merges), "<|endoftext|>"]
    vocab = {entry: token for token, entry in enumerate(entries)}
    files = {"vocab.json": json.dumps(vocab), "merges.txt": "\n".join(["#version: 0.2", *merges, ""])}
    if family != "ctrl":
        bpe = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [tuple(merge.split(" ")) for merge in merges]))
        bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = tokenizers.decoders.ByteLevel()
        bpe.add_special_tokens(["<|endoftext|>"])
        files["tokenizer.json"] = bpe.to_str()
    return {name: text.encode() for name, text in files.items()}


@cache
def good(family: str, form: str = "safetensors") -> dict[str, bytes]:
    """The files of a good checkpoint; form: safetensors, zip or legacy (the two of .bin), or shards."""
    tensors = weights(family)
    files = {"config.json": encoded(CONFIGS[family])}
    if form == "safetensors":
        return files | {"model.safetensors": save(tensors, metadata={"format": "pt"})}
    if form == "shards":
        halves = {"model-1.safetensors": list(tensors)[::2], "model-2.safetensors": list(tensors)[1::2]}
        index = {"metadata": {}, "weight_map": {name: file for file, names in halves.items() for name in names}}
        files |= {file: save({name: tensors[name] for name in names}) for file, names in halves.items()}
        return files | {"model.safetensors.index.json": encoded(index)}
    return files | {"pytorch_model.bin": torch_save(tensors, form)}


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


def torch_save(value: Any, form: str) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=form == "zip")
    return buffer.getvalue()


# Ways of spoiling a file.

WRONG: list[Any] = [
    *json.loads('[null, true, false, 0, -1, 1, 2, 3, 8, 16, 1.5, 1e-7, 1e308, NaN, Infinity, -Infinity, "", "x", "0"]'),
    *(2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30, 10**400, -(10**30)),
    *json.loads(r'["\u0000", "\n\u001b[31m", "\ud800", "\u2028", "gelu", "local", "F64", "F16", [2, 4], [0, 32]]'),
    *json.loads('[[], [[]], [1, 2], {}, {"a": 1}, [[[[[[]]]]]], ["global", "local"], [[["local", "global"], 1]]]'),
    *("x" * 100_000, "../../x", "/etc/passwd", "model.safetensors"),
]
DEEP = 100_000


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


def packed(header: Any, body: bytes) -> bytes:
    """A safetensors file."""
    raw = header if isinstance(header, bytes) else encoded(header)
    return struct.pack("<Q", len(raw)) + raw + body


def unpacked(data: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def zipped(program: bytes, storages: dict[str, bytes], **options: Any) -> bytes:
    """A .bin file of this pickle and these storages."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        archive.writestr("a/data.pkl", program)
        archive.writestr("a/byteorder", "little")
        archive.writestr("a/version", "3\n")
        for key, data in storages.items():
            archive.writestr(f"a/data/{key}", data)
    return buffer.getvalue()


def unzipped(data: bytes) -> tuple[bytes, dict[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [name for name in archive.namelist() if "/data/" in name]
        top = names[0].split("/")[0]
        for entry in archive.infolist():
            entry.CRC = None  # type: ignore[assignment] # the checksums of storages are not looked at
        return archive.read(f"{top}/data.pkl"), {name.split("/")[2]: archive.read(name) for name in names}


def programs_end(data: bytes) -> int:
    """Where in a .bin file of the older form the storages begin."""
    stream = io.BytesIO(data)
    for _ in range(5):
        list(pickletools.genops(stream))
    return stream.tell()


# Cases that are drawn.


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
            config[rng.choice(sorted(hub.IGNORED | hub.ONLY.keys()))] = rng.choice(WRONG)
            return {"config.json": encoded(config)}
        case 1:
            right = [1, 4, 5, 1e-3, "relu", "gelu", [[["local"], 2]], [["local", 2]]]
            config[rng.choice(list(config))] = rng.choice([*WRONG, *right])
            return {"config.json": encoded(config)}
    return {"config.json": twisted(rng, config)}


def draw_tokenizer(rng: random.Random, family: str) -> Files:
    originals = text_files(family)
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
            setting = {"add_prefix_space": True, "control_codes": {"Links": 1}}
            files["tokenizer_config.json"] = twisted(rng, setting)
        case 5:
            files["added_tokens.json"] = twisted(rng, {"<a>": 267, "<b>": 268} if family != "ctrl" else {})
        case _:
            files["vocab.json"] = twisted(rng, json.loads(originals["vocab.json"]))
    return files


STEPS = [b"K\x00", b"K\x08", b"J\xff\xff\xff\xff", b"N", b"\x88", b"}", b"]", b")", b"(", b"0", b"2", b"."]
STEPS += [pickle.dumps(value, 2)[2:-1] for value in (2**31, 2**63, 10**30, 1.5, b"x", {1}, "\ud800", (1, (2, (3,))))]


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
            data = flipped(rng, data, 0, programs_end(data))
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
                        steps[at] = rng.choice(STEPS)
            data = zipped(b"".join(steps), storages)
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


# Cases made by hand, each of a GPT-2 unless its name says otherwise.

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
    found["20,000 more tensors"] = packed({**header, **{str(n): nothing for n in range(20_000)}}, body)
    found["10 million keys"] = lambda path: path.write_bytes(packed(b"{" + b'"a":1,' * 10**7 + raw[1:], body))
    for torch_dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.int64, torch.bool, torch.float64):
        found[f"a tensor of {torch_dtype}"] = save({**weights("gpt2"), a: weights("gpt2")[a].to(torch_dtype)})
    return ((name, {"model.safetensors": content}) for name, content in found.items())


SHARDS: list[Any] = [
    *"../../x /etc/passwd /dev/zero sub/x.safetensors .. . ./model-1.safetensors model-1.safetensors/ ~/x".split(),
    *r"..\..\x C:\x NUL CON.safetensors MODEL-1.safetensors http://x/y $HOME gone.safetensors config.json".split(),
    *("model.safetensors.index.json", "model-1.safetensors ", "model-1.safetensors\n", "model-1.safetensors"),
    *("", "\0", "\ud800", "\n\x1b[31m", "x" * 100_000, 1, None, [], {}, True),
]


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
    yield "a list in itself", b"]q\x00h\x00a."
    yield "a million empty dictionaries", b"}" * 1_000_000 + b"."
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
    start = programs_end(legacy)
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
    for label, steps in programs():
        found[label] = zipped(b"\x80\x02" + steps, storages)
    for label in ("deep tuple as a key", "wide tuple as a key", "wide tuple as a storage"):
        found[f"{label}, older form"] = legacy[:27] + b"\x80\x02" + dict(programs())[label]
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
    buffer = io.BytesIO(archive)
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "a") as changed:
        warnings.simplefilter("ignore")
        changed.writestr("a/data/0", bytes(len(storages["0"])))
    found["an entry twice"] = buffer.getvalue()
    found["60,000 entries"] = lambda path: path.write_bytes(zipped(program, {str(n): b"" for n in range(60_000)}))
    found["a directory of 2**32 - 1 bytes"] = archive[:-10] + b"\xff" * 4 + archive[-6:]
    found["big-endian"] = zipped(program, storages).replace(b"little", b"big---")
    found["wrong checksum"] = archive.replace(b"\x80\x02}", b"\x80\x02]", 1)
    found["tar"] = b"storages" + bytes(92) + b"0000644\0" + bytes(149) + b"ustar  \0" + bytes(2000)
    for n in (0, 1, 2**31, 2**63 - 1, -1):
        found[f"older form: storage of {n}"] = legacy[:start] + struct.pack("<q", n) + legacy[start + 8 :]
    found["older form: no storages"] = legacy[:start]
    found["older form: big-endian"] = legacy.replace(b"little_endianq\x03\x88", b"little_endianq\x03\x89")
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


@cache
def by_hand(kind: str) -> dict[str, Files]:
    return dict(HAND[kind]())


def write(kind: str, seed: int, name: str, folder: Path) -> None:
    """A case into a new folder; name: that of one made by hand, or the number of one that is drawn."""
    if name.isdigit():
        rng = random.Random(f"{seed} {kind} {name}")
        family = rng.choice(list(CONFIGS))
        files = DRAW[kind](rng, family)
    else:
        family = next((family for family in CONFIGS if name.startswith(family)), "gpt2")
        files = by_hand(kind)[name]
    form = {"index": "shards", "bin": "zip"}.get(kind, "safetensors")
    folder.mkdir()
    for file, content in {**good(family, form), **files}.items():
        if isinstance(content, bytes):
            (folder / file).write_bytes(content)
        elif content is not None:
            content(folder / file)

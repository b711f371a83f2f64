"""Cases made by hand, by the kinds of issue that they belong to: what is no file, what never ends, what grows."""

import bz2
import gzip
import json
import lzma
import os
import socket
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from .good import Content, Files, encoded, good, programs_ends, text_files, unzipped, weights, zipped

Named = Iterator[tuple[str, Files]]


def listening(path: Path) -> None:
    os.chdir(path.parent)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir("../work")


def no_files() -> Iterator[tuple[str, Content]]:
    """What is in the place of a file, and never ends, or has nobody at the other end."""
    yield "socket", listening
    for target in ("/proc/self/pagemap", "/proc/self/mem", "/proc/kmsg", "/dev/urandom", "/dev/full", "/dev/tty"):
        yield f"link to {target}", lambda path, target=target: os.symlink(target, path)
    yield "link to a pipe", lambda path: (os.mkfifo(path.with_name("pipe")), os.symlink("pipe", path))


def everywhere() -> Iterator[tuple[str, Named]]:
    """Those, in the place of each file that is read."""
    byte, word = (("tokenizer.json",), ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json"))
    for kind, files in {
        "safetensors": ("model.safetensors",),
        "bin": ("pytorch_model.bin",),
        "index": ("model.safetensors.index.json", "model-2.safetensors"),
        "config": ("config.json",),
        "tokenizer": byte,
    }.items():
        yield kind, ((f"{file} is a {label}", {file: content}) for file in files for label, content in no_files())
    two: Files = {"vocab.json": b"{}", "merges.txt": b"#version: 0.2\n", "tokenizer.json": None}
    yield (
        "tokenizer",
        ((f"{file} is a {label}", {**two, file: content}) for file in word for label, content in no_files()),
    )


def tars() -> Iterator[tuple[str, bytes]]:
    """Archives that unpack to gigabytes, or whose headers do."""
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 3 * 2**30
    for label, packed in {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}.items():
        yield f"{label} of a pax header of 3 GB", packed(header.tobuf()) + packed(bytes(2**24)) * 192
    yield "pax header of 3 GB", header.tobuf() + bytes(10_000)
    header.size = 2**62
    yield "pax header of 2**62 bytes", header.tobuf(tarfile.GNU_FORMAT) + bytes(10_000)
    sparse = tarfile.TarInfo("x")
    sparse.type, sparse.size = tarfile.GNUTYPE_SPARSE, 2**40
    raw = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    raw[386:482] = (b"%011o\0" % 2**32 + b"%011o\0" % 2**20) * 4
    raw[482] = 1  # there are more of them
    raw[148:156] = b" " * 8
    raw[148:155] = b"%06o\0" % sum(raw)
    yield "sparse", bytes(raw) + (b"77777777777\0" * 42 + b"\1" + bytes(7)) * 10_000
    digits = b"9" * 3_000_000
    header.size = len(digits)
    yield "digits without end as a pax length", header.tobuf() + digits + bytes(-len(digits) % 512)
    number = tarfile.TarInfo("x")
    number.pax_headers = {"size": "9" * 3_000_000, "GNU.sparse.size": "9" * 1_000_000}
    yield "digits without end as a size", number.tobuf(tarfile.PAX_FORMAT)


def hand_bin() -> Named:
    program, storages = unzipped(good("gpt2", "zip")["pytorch_model.bin"])
    legacy = good("gpt2", "legacy")["pytorch_model.bin"]
    *_, start = programs_ends(legacy)
    for label, content in tars():
        yield f"tar: {label}", {"pytorch_model.bin": content}
    huge = b"\x8a\xf0" + bytes(239) + b"\x40"  # 2**1918
    storage = program[: program.index(b"QK\x00") + 3]  # up to the offset of the first tensor
    for label, shape in {
        "250,000 dimensions of 2**1918": b"(" + huge + b"q\x7f0" + b"h\x7f" * 250_000 + b"t",
        "65 dimensions": b"(" + b"K\x01" * 65 + b"t",
        "a dimension of 2**1918": b"(" + huge + b"t",
    }.items():
        strides = b"(" + b"K\x00" * shape.count(b"h\x7f") + b"t"
        rest = shape + strides + b"\x89ccollections\nOrderedDict\n)RtRs."
        yield label, {"pytorch_model.bin": zipped(storage + rest, storages)}
    wide = b"(" + b"K\x01" * 200_000 + b"tq\x7f0"  # one tuple, asked about again and again
    often = (b"ctorch._utils\n_rebuild_tensor_v2\n(K\x00K\x00h\x7fh\x7f\x89NtR") * 10_000
    yield "one wide shape, often", {"pytorch_model.bin": zipped(b"\x80\x02" + wide + often + b".", storages)}
    count = b"\x8a\xf0" + bytes(239) + b"\x40"
    yield "storage of 2**1918", {"pytorch_model.bin": zipped(program.replace(b"M`\x09", count), storages)}
    yield "digits without end", {"pytorch_model.bin": legacy[:start] + b"L" + b"9" * 900_000 + b"L\n."}


def hand_index() -> Named:
    file = "model.safetensors.index.json"
    places = json.loads(good("gpt2", "shards")[file])["weight_map"]
    tensors = weights("gpt2")
    one = next(name for name, place in places.items() if place == "model-1.safetensors")
    half = {name: tensors[name] for name, place in places.items() if place == "model-2.safetensors"}
    for label, name in {"": one, " without its prefix": one.removeprefix("transformer.")}.items():
        yield f"one tensor in both shards{label}", {"model-2.safetensors": save({**half, name: tensors[one] + 1})}
    yield "a tensor that is in the other shard", {file: encoded({"weight_map": {**places, one: "model-2.safetensors"}})}
    named = {**places, **{f"h.{n}.attn.masked_bias": "model-1.safetensors" for n in range(2)}}
    yield "masks that no shard has", {file: encoded({"weight_map": named})}
    mask = {"transformer.h.0.attn.masked_bias": torch.tensor(-1e9)}
    yield "a mask that is not named", {"model-2.safetensors": save({**half, **mask})}
    yield "more tensors than are named", {file: encoded({"weight_map": {one: places[one], "x": "x.safetensors"}})}


def hand_tokenizer() -> Named:
    files = text_files("gpt2")
    document = json.loads(files["tokenizer.json"])
    many = [f"<{n}>" for n in range(20_000)]
    two: Files = {"vocab.json": files["vocab.json"], "merges.txt": files["merges.txt"]}
    numbered = {text: len(json.loads(files["vocab.json"])) + n for n, text in enumerate(many)}
    listed = {str(n): {"content": text} for text, n in numbered.items()}
    yield "20,000 special tokens", {**two, "special_tokens_map.json": encoded({"additional_special_tokens": many})}
    yield "20,000 added tokens", {**two, "added_tokens.json": encoded(numbered)}
    yield "20,000 listed tokens", {**two, "tokenizer_config.json": encoded({"added_tokens_decoder": listed})}

    def with_part(**change: Any) -> Files:
        return {"tokenizer.json": encoded({**document, **change})}

    letter = [{**document["added_tokens"][0], "content": "e"}]  # of TEXT: what stands between two has one letter or so
    for n in (1, 9, 10, 100):
        prepend = {"type": "Prepend", "prepend": "t" * n}
        yield f"{n} letters before each part", with_part(normalizer=prepend, added_tokens=letter)
    grown = [prepend | {"prepend": "t"}, {"type": "Replace", "pattern": {"String": "t"}, "content": "e" * 9}]
    yield (
        "a letter before each part, and nine in its place",
        with_part(normalizer={"type": "Sequence", "normalizers": grown}),
    )
    for n in (100, 101, 10**6):
        yield f"decoder with a suffix of {n}", with_part(decoder={"type": "BPEDecoder", "suffix": "x" * n})
        yield (
            f"decoder with a prefix of {n}",
            with_part(decoder={"type": "WordPiece", "prefix": "x" * n, "cleanup": True}),
        )
    again = {"Sequence": {"id": "A", "type_id": 0}}
    for n in (0, 2, 100_000):
        template = {"type": "TemplateProcessing", "single": [again] * n, "pair": [], "special_tokens": {}}
        yield f"the text {n} times", with_part(post_processor=template)
    model = document["model"]
    spelled = {entry: token for entry, token in model["vocab"].items() if entry not in ("p", "i", "\u0120")}
    kept = [merge for merge in model["merges"] if {"".join(merge), *merge} <= spelled.keys()]
    for unknown in ("<none>", "a", None):
        for fallback in (True, False):
            change = {"vocab": spelled, "merges": kept, "unk_token": unknown, "byte_fallback": fallback}
            yield f"letters are missing, unknown {unknown} {fallback}", with_part(model={**model, **change})


def faulty(kind: str) -> dict[str, Files]:
    """The cases of a kind."""
    made: dict[str, Callable[[], Named]] = {"bin": hand_bin, "index": hand_index, "tokenizer": hand_tokenizer}
    found = dict(made[kind]()) if kind in made else {}
    for of_kind, cases in everywhere():
        found |= dict(cases) if of_kind == kind else {}
    return found

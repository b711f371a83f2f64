"""Good checkpoints of tiny random models, and the formats of their files, to take apart and put together."""

import io
import json
import pickletools
import struct
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors.torch import save

from minilens.checkpoint.settings import Settings
from minilens.checkpoint.tensors import Checkpoint
from minilens.loading import FAMILIES

Tensors = dict[str, torch.Tensor]
Content = bytes | None | Callable[[Path], object]
"""Of a file: its bytes; None for no such file; or what makes it."""
Files = dict[str, Content]


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

    dtype = torch.float32

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.generator = torch.Generator().manual_seed(2020)

    def take(self, name: str, *shape: int) -> torch.Tensor:
        self.tensors[name] = torch.randn(shape, generator=self.generator) * 0.3
        return self.tensors[name]

    def unembedding(self, name: str, W_E: torch.Tensor, is_tied: bool) -> torch.Tensor:
        """It is not stored."""
        return W_E.mT

    def ignore(self, *names: str) -> None:
        """They are not stored."""


@cache
def weights(family: str) -> Tensors:
    drawn, module = Drawn(), FAMILIES[family]
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


def programs_ends(data: bytes) -> list[int]:
    """Where the five programs of a .bin file of the older form end; the last are of the tensors and the storages."""
    stream = io.BytesIO(data)
    return [list(pickletools.genops(stream)) and stream.tell() for _ in range(5)]

"""A second reading of a checkpoint, which shares no parser with minilens."""

import io
import json
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch

import minilens
from minilens import ctrl, gpt2, gpt_neo, ops
from minilens.checkpoint.keys import ONLY, why_harmless
from minilens.loading import FAMILIES

from .good import CONFIGS, Drawn, Tensors, letters, programs_ends, unzipped

PROBE = torch.tensor([[5, 17, 3, 99, 0, 42, 42, 8, 64, 11]])
TEXT = "Once upon a time, the cat's 42 caf\u00e9s\n \u2603"


def second_family(c: dict[str, Any]) -> str:
    """The oldest files do not name it: they are of GPT-2 and CTRL."""
    family: str = c.get("model_type") or ("ctrl" if "dff" in c else "gpt2")
    return family


GPT2_NAMES = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
GPT2_NAMES["max_position_embeddings"] = "n_positions"
NAMES = dict(gpt2=GPT2_NAMES, ctrl=GPT2_NAMES)
NAMES["gpt_neo"] = {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"}
FLAGS = {"scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "tie_word_embeddings"}


def second_config(c: dict[str, Any]) -> Any:
    """The sizes that a config.json stands for, without any of the checks."""
    family = second_family(c)
    c = {key: False if value is None and key in FLAGS else value for key, value in c.items()}
    c = {key: value for key, value in c.items() if value is not None}
    for alias in NAMES[family].keys() & c.keys():
        value, key = c.pop(alias), NAMES[family][alias]
        if c.setdefault(key, value) != value:
            raise ValueError(f"{alias} and {key} differ")
    unknown = c.keys() - CONFIGS[family].keys() - ONLY.keys() - FLAGS - {"attention_layers", "n_inner"}
    unknown = {key for key in unknown if not why_harmless(key, c[key])}
    if unknown or any(c.get(key) not in (None, only) for key, only in ONLY.items()):
        raise ValueError(f"a key that may change the numbers: {unknown}")
    is_tied = c.get("tie_word_embeddings", True)
    if family == "gpt_neo":
        kinds = c.get("attention_layers") or [kind for kinds, n in c["attention_types"] for kind in kinds * n]
        return gpt_neo.Config(
            d_vocab=c["vocab_size"],
            n_ctx=c["max_position_embeddings"],
            d_model=c["hidden_size"],
            n_layers=c["num_layers"],
            n_heads=c["num_heads"],
            d_mlp=c.get("intermediate_size") or 4 * c["hidden_size"],
            ln_eps=float(c.get("layer_norm_epsilon", 1e-5)),
            activation=ops.ACTIVATIONS[c.get("activation_function", "gelu_new")],
            is_local=tuple(kind == "local" for kind in kinds),
            window=c.get("window_size") or 256,
            is_tied=is_tied,
        )
    sizes = dict(
        d_vocab=c["vocab_size"],
        n_ctx=c["n_positions"],
        d_model=c["n_embd"],
        n_layers=c["n_layer"],
        n_heads=c["n_head"],
        is_tied=is_tied,
    )
    if family == "ctrl":
        return ctrl.Config(**sizes, d_mlp=c["dff"], ln_final_eps=float(c.get("layer_norm_epsilon", 1e-6)))
    return gpt2.Config(
        **sizes,
        d_mlp=c.get("n_inner") or 4 * c["n_embd"],
        ln_eps=float(c.get("layer_norm_epsilon", 1e-5)),
        activation=ops.ACTIVATIONS[c.get("activation_function", "gelu_new")],
        score_scale=tuple(
            ((c["n_head"] / c["n_embd"]) ** 0.5 if c.get("scale_attn_weights", True) else 1.0)
            / (layer + 1 if c.get("scale_attn_by_inverse_layer_idx", False) else 1)
            for layer in range(c["n_layer"])
        ),
    )


class Given(Drawn):
    """In place of a Checkpoint: these weights."""

    def __init__(self, tensors: Tensors) -> None:
        for prefix in ("module.", "_orig_mod.", "base_model.model.", "model.") * 3:
            if all(name.startswith(prefix) for name in tensors):
                tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        self.tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        if any(".lora_" in name for name in tensors):
            raise ValueError("an adapter")
        if (head := self.tensors.pop("lm_head.decoder.weight", None)) is not None:
            self.tensors["lm_head.weight"] = head

    def take(self, name: str, *shape: int) -> torch.Tensor:
        return self.tensors[name].float()

    def unembedding(self, name: str, W_E: torch.Tensor, is_tied: bool) -> torch.Tensor:
        if is_tied and name in self.tensors and not torch.equal(self.take(name), W_E):
            raise ValueError("the head is another one")
        return W_E.mT if is_tied else self.take(name).mT


def second_json(data: bytes) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a key is there twice")
        return dict(pairs)

    return json.loads(data.decode(), object_pairs_hook=unique)


NUMPY = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}


def second_safetensors(data: bytes) -> Tensors:
    (length,) = struct.unpack("<Q", data[:8])
    header, body = second_json(data[8 : 8 + length]), data[8 + length :]
    header.pop("__metadata__", None)
    tensors, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = entry["data_offsets"]
        if first != end:
            raise ValueError("tensors overlap, or there is a hole")
        end = last
        if entry["dtype"] not in NUMPY:
            continue  # of a mask, or the family must miss it
        flat = np.frombuffer(body[first:last], NUMPY[entry["dtype"]])
        if entry["dtype"] == "BF16":
            flat = (flat.astype("<u4") << 16).view("<f4")
        tensors[name] = torch.from_numpy(flat.astype("<f4").reshape(entry["shape"]))
    if end != len(body):
        raise ValueError("there is a hole at the end")
    return tensors


class Unpickler(pickle._Unpickler):
    """Python's own, in which a memo may have any number; storages are tensors of one dimension."""

    def __init__(self, program: io.BytesIO, storage: Callable[[str, torch.dtype, int], torch.Tensor]) -> None:
        super().__init__(program)
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if name.endswith("Storage"):
            return torch.empty(0).type(f"torch.{name.removesuffix('Storage')}Tensor").dtype
        return {
            "OrderedDict": OrderedDict,
            "_rebuild_tensor_v2": lambda storage, offset, *sizes: storage.as_strided(*sizes[:2], offset),
            "_rebuild_parameter": lambda tensor, *_: tensor,
        }[name]

    def persistent_load(self, name: Any) -> torch.Tensor:
        _, dtype, key, _, n = name[:5]
        return self.storage(key, dtype, n)


def second_pickle(data: bytes) -> Tensors:
    if data.startswith(b"PK"):
        program, storages = unzipped(data)
    else:
        starts = [0, *programs_ends(data)]
        claims: dict[str, int] = {}

        def claimed(key: str, dtype: torch.dtype, n: int) -> torch.Tensor:
            claims[key] = n * dtype.itemsize
            return torch.empty(n, dtype=dtype)

        program, storages, end = data[starts[3] : starts[4]], {}, starts[5]
        Unpickler(io.BytesIO(program), claimed).load()
        for key in pickle.loads(data[starts[4] : end]):
            storages[key] = data[end + 8 : end + 8 + claims[key]]
            end += 8 + claims[key]

    def stored(key: str, dtype: torch.dtype, n: int) -> torch.Tensor:
        if len(storages[key]) != n * dtype.itemsize:
            raise ValueError("a storage is not of the size that it claims")
        return torch.frombuffer(bytearray(storages[key]), dtype=dtype) if n else torch.empty(0, dtype=dtype)

    found: Tensors = Unpickler(io.BytesIO(program), stored).load()
    return found


def second_weights(folder: Path) -> Tensors:
    if (path := folder / "model.safetensors").is_file():
        return second_safetensors(path.read_bytes())
    if (path := folder / "model.safetensors.index.json").is_file():
        paths = [folder / file for file in set(second_json(path.read_bytes())["weight_map"].values())]
    else:
        paths = [folder / "pytorch_model.bin"]
    tensors: Tensors = {}
    for path in paths:
        if path.suffix == ".safetensors":
            found = second_safetensors(path.read_bytes())
        else:
            found = second_pickle(path.read_bytes())
        if found.keys() & tensors.keys():
            raise ValueError("a tensor is there twice")
        tensors |= found
    return tensors


def bpe(symbols: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    while pairs := [pair for pair in pairwise(symbols) if pair in ranks]:
        best = min(pairs, key=ranks.__getitem__)
        n = 0
        while n < len(symbols) - 1:
            if (symbols[n], symbols[n + 1]) == best:
                symbols[n : n + 2] = ["".join(best)]
            n += 1
    return symbols


def added_tokens(folder: Path, named: bool) -> list[str]:
    """The special and added tokens of the files beside a tokenizer, in the order of their ids."""
    config, also, added = (
        second_json((folder / name).read_bytes()) if (folder / name).is_file() else {}
        for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    )
    listed = config.get("added_tokens_decoder")
    if isinstance(listed, dict):
        also, added = {}, {}
        numbered = sorted((int(number), value["content"]) for number, value in listed.items())
    else:
        numbered = sorted((number, text) for text, number in added.items())
    default = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>") if named else {}
    config = default | config | also
    keys = [f"{name}_token" for name in "bos eos unk sep pad cls mask".split()]
    keys += [key for key in config if key.endswith("_token") and key not in keys]
    found = [config.get(key) for key in keys]
    for key in ("extra_special_tokens", "additional_special_tokens"):
        more = config.get(key) or []
        found += more.values() if isinstance(more, dict) else more
    texts = [value if isinstance(value, str) else value["content"] for value in found if value is not None]
    return list(dict.fromkeys([*(text for _, text in numbered), *texts]))


def second_tokens(folder: Path, family: str) -> list[int]:
    """Those of TEXT."""
    settings = [folder / name for name in ("tokenizer_config.json", "config.json") if (folder / name).is_file()]
    kinds = [second_json(path.read_bytes()).get("tokenizer_class") for path in settings]
    kind = next(filter(None, kinds), "GPT2Tokenizer")
    is_gpt2 = (
        family != "ctrl"
        and (kind.removesuffix("Fast") if isinstance(kind, str) else "GPT2Tokenizer") == "GPT2Tokenizer"
    )
    config = folder / "tokenizer_config.json"
    spaced = config.is_file() and second_json(config.read_bytes()).get("add_prefix_space") is True
    added = added_tokens(folder, is_gpt2)
    if family != "ctrl" and (path := folder / "tokenizer.json").is_file():
        document = second_json(path.read_bytes())
        second = tokenizers.Tokenizer.from_str(json.dumps({**document, "post_processor": None}))  # it adds tokens
        second.no_truncation()
        second.no_padding()
        if is_gpt2 and isinstance(second.pre_tokenizer, tokenizers.pre_tokenizers.ByteLevel):
            second.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
                add_prefix_space=spaced, use_regex=second.pre_tokenizer.use_regex
            )
        second.add_tokens([tokenizers.AddedToken(text, special=True) for text in added])
        ids: list[int] = second.encode(TEXT, add_special_tokens=False).ids
        return ids
    vocab = second_json((folder / "vocab.json").read_bytes())
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    if set(added) - {"<unk>"} and family == "ctrl":
        raise ValueError("a token is added to CTRL's")
    if family == "ctrl":
        ranks: Any = {tuple(line.split()): rank for rank, line in enumerate(lines[1:-1])}
        pieces = []
        for word in re.findall(r"\S+\n?", TEXT):
            symbols = bpe([*word[:-1], word[-1] + "</w>"], ranks)
            pieces += [symbol + "@@" for symbol in symbols[:-1]] + [symbols[-1].removesuffix("</w>")]
        return [vocab.get(piece, vocab["<unk>"]) for piece in pieces]
    ranks = {tuple(line.split(" ")): rank for rank, line in enumerate(lines) if not line.startswith("#version")}
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+"
    numbers = {text: vocab.get(text) for text in added if text}
    following = len(vocab)
    for text in numbers:
        if numbers[text] is None:
            numbers[text], following = following, following + 1
    found = []
    for part in re.split("(" + "|".join(map(re.escape, sorted(numbers, key=len, reverse=True))) + ")", TEXT):
        if part in numbers:
            found.append(numbers[part])
            continue
        for word in re.findall(pattern, " " * (spaced and not part.startswith(" ")) + part) if part else ():
            known = [letters()[byte] for byte in word.encode() if letters()[byte] in vocab]
            found += [vocab[piece] for piece in bpe(known, ranks)]
    return found  # type: ignore[return-value]


def difference(folder: Path, model: Any, tokenizer: Any) -> str | None:
    """What is not as in the second reading; None where all is."""
    config = second_json((folder / "config.json").read_bytes())
    family = second_family(config)
    second = FAMILIES[family].build(second_config(config), Given(second_weights(folder)))
    if repr(model.config) != repr(second.config):
        return f"the config is {model.config}, and should be {second.config}"
    probe = PROBE[:, : model.config.n_ctx] % model.config.d_vocab
    logits = minilens.trace(second, probe).logits
    if not torch.equal(minilens.trace(model, probe).logits.nan_to_num(7e7), logits.nan_to_num(7e7)):
        return "the logits differ"
    try:
        stats = minilens.logit_lens(model, probe).final
        if not logits.isfinite().all() and not (logits == -torch.inf).any():
            return "the lens shows logits that are not finite"
        if not stats.logprob.isfinite().all():
            return "the lens is not finite"
    except ValueError as error:
        rows = [row.logits for row in minilens.lens_rows(second, probe)]
        if "are not finite" not in str(error) or torch.stack(rows).log_softmax(-1).isfinite().all():
            return f"the lens refuses: {error}"
    if tokenizer is not None:
        try:
            ids = second_tokens(folder, family)
        except Exception:  # the tokenizers package raises no type of its own
            ids = None
        try:
            found = tokenizer.encode(TEXT)[0].tolist()
        except ValueError as error:
            if "the tokenizer cannot read this text" not in str(error):
                raise
            found = None
        if found != ids:
            return f"the tokens are {found}, and should be {ids}"
        tokenizer.decode(ids or [])
    return None

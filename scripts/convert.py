"""A checkpoint of teaching code -> a folder that minilens and transformers load.

    python scripts/convert.py nanogpt out/ckpt.pt FOLDER                                    karpathy/nanoGPT
    python scripts/convert.py nanogpt out/ckpt.pt FOLDER --meta data/shakespeare_char/meta.pkl    letter by letter
    python scripts/convert.py mingpt model.pt FOLDER --heads 6                               karpathy/minGPT
    python scripts/convert.py llmc gpt2_124M.bin FOLDER                                      karpathy/llm.c

A file of torch.save is read only if minilens' own check finds nothing but tensors, numbers and texts in it, and
meta.pkl is never unpickled: no code of either runs. The folder gets config.json, model.safetensors and, with --meta, a
tokenizer.json. A model whose tokens are GPT-2's needs GPT-2's tokenizer: put its tokenizer.json into the folder.

What differs from GPT-2: linear weights stand the other way round, and biases that a model was trained without are
zeros. nanoGPT's activation is the exact GELU since June 2023, and was the tanh approximation before, as it is in llm.c
and in minGPT's `transformer.*`: a checkpoint does not tell, so --activation does.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from minilens.checkpoint.pickled import Fault, check_pickle, read_plain
from minilens.course.nanogpt import Tensors, converted, from_dict, named, write

OLD_NAMES = {  # of minGPT before 2022 -> those of GPT-2
    r"tok_emb\.": "wte.",
    r"head\.": "lm_head.",
    r"blocks\.(\d+)\.ln(\d)\.": r"h.\1.ln_\2.",
    r"blocks\.(\d+)\.attn\.proj\.": r"h.\1.attn.c_proj.",
    r"blocks\.(\d+)\.mlp\.0\.": r"h.\1.mlp.c_fc.",
    r"blocks\.(\d+)\.mlp\.2\.": r"h.\1.mlp.c_proj.",
    r"blocks\.(\d+)\.": r"h.\1.",
}


def saved(path: Path) -> Any:
    """What torch.save wrote, if there is no code in it."""
    try:
        check_pickle(path, nested=True)
    except Exception as error:
        why = error if isinstance(error, Fault) else "it is cut short or broken, or no file that torch.save wrote"
        raise ValueError(
            f"{path} cannot be read: {why}; where it was trained, save it again with "
            "torch.save({name: tensor for name, tensor in model.state_dict().items()}, ...)"
        ) from error
    found = torch.load(path, map_location="cpu", weights_only=True)
    state = found.get("model", found) if isinstance(found, dict) else {}
    tensors = [each for each in state.values() if isinstance(each, torch.Tensor)] if isinstance(state, dict) else []
    if sum(tensor.numel() * tensor.itemsize for tensor in tensors) > 2 * path.stat().st_size:
        raise ValueError(f"{path} is broken: its tensors are larger than the file")
    return found


def renamed(old: Tensors) -> Tensors:
    """The tensors of minGPT before 2022 by GPT-2's names."""
    tensors = {"wpe.weight": old.pop("pos_emb")[0]}
    for name, tensor in old.items():
        pattern = next((pattern for pattern in OLD_NAMES if re.match(pattern, name)), "(?!)")
        tensors[re.sub(f"^{pattern}", OLD_NAMES.get(pattern, ""), name)] = tensor
    for layer in range(sum(name.endswith(".attn.query.weight") for name in tensors)):
        for kind in ("weight", "bias"):
            parts = [tensors.pop(f"h.{layer}.attn.{part}.{kind}") for part in ("query", "key", "value")]
            tensors[f"h.{layer}.attn.c_attn.{kind}"] = torch.cat(parts)
    return tensors


def nanogpt(path: Path, heads: int | None, activation: str | None) -> tuple[dict[str, Any], Tensors]:
    """A file with "model" and "model_args", as nanoGPT's train.py writes it; also a state dict alone, with --heads."""
    return from_dict(saved(path), heads, activation or "gelu", path)


def mingpt(path: Path, heads: int | None, activation: str | None) -> tuple[dict[str, Any], Tensors]:
    """A state dict, which does not say how many heads there are. Its unembedding is one of its own."""
    tensors = named(saved(path), path)
    is_old = "pos_emb" in tensors  # with the exact GELU
    tensors = renamed(tensors) if is_old else tensors
    return converted(tensors, heads or 0, activation or ("gelu" if is_old else "gelu_new"), path)


def llmc(path: Path, heads: int | None, activation: str | None) -> tuple[dict[str, Any], Tensors]:
    """A file of llm.c: 256 numbers of 32 bits, then the tensors of all layers together, as llm.c's C code reads them.

    Version 3 is in float32 and 5 in bfloat16, both with rows of padding at the end of the vocabulary, which no token
    has; version 1 is in float32 without them.
    """
    with path.open("rb") as file:
        header = np.fromfile(file, "<i4", 256)
        data = np.fromfile(file, np.uint8)
    if len(header) < 256 or header[0] != 20240326:
        raise ValueError(f"{path} is no model of llm.c: it does not begin with its number, 20240326")
    version, n_ctx, d_vocab, n_layer, n_head, d, padded = map(int, header[1:8])
    if version not in (1, 3, 5) or (version != 1) != (padded > 0):
        raise ValueError(f"{path} has the version {version} of llm.c's format: write it again with llm.c as it is now")
    padded = padded or d_vocab
    layers = [("ln_1", "weight", [d]), ("ln_1", "bias", [d]), ("attn.c_attn", "weight", [3 * d, d])]
    layers += [("attn.c_attn", "bias", [3 * d]), ("attn.c_proj", "weight", [d, d]), ("attn.c_proj", "bias", [d])]
    layers += [("ln_2", "weight", [d]), ("ln_2", "bias", [d]), ("mlp.c_fc", "weight", [4 * d, d])]
    layers += [("mlp.c_fc", "bias", [4 * d]), ("mlp.c_proj", "weight", [d, 4 * d]), ("mlp.c_proj", "bias", [d])]
    places = [("wte.weight", [padded, d]), ("wpe.weight", [n_ctx, d])]
    places += [(f"h.{n}.{name}.{kind}", shape) for name, kind, shape in layers for n in range(n_layer)]
    places += [("ln_f.weight", [d]), ("ln_f.bias", [d])]
    dtype = torch.bfloat16 if version == 5 else torch.float32
    size = sum(int(np.prod(shape)) for _, shape in places) * dtype.itemsize
    if min(d_vocab, n_ctx, n_layer, n_head, d, padded - d_vocab + 1) < 1 or size != len(data):
        raise ValueError(f"{path} is cut short or broken: of {size:,} bytes of weights it has {len(data):,}")
    tensors, start = {}, 0
    for name, shape in places:
        end = start + int(np.prod(shape)) * dtype.itemsize
        tensors[name] = torch.from_numpy(data[start:end]).view(dtype).reshape(shape)
        start = end
    tensors["wte.weight"] = tensors["wte.weight"][:d_vocab]
    return converted(tensors, n_head, activation or "gelu_new", path)


def letters(path: Path) -> Tokenizer:
    """The tokenizer of nanoGPT's meta.pkl: a token for each letter."""
    try:
        meta = read_plain(path)
        ids: dict[str, int] = meta["stoi"]
        if not all(isinstance(letter, str) and len(letter) == 1 and type(n) is int for letter, n in ids.items()):
            raise Fault("its stoi does not give each letter a number")
        if sorted(ids.values()) != list(range(len(ids))):
            raise Fault("its stoi does not number the letters from 0 on")
    except Exception as error:
        why = error if isinstance(error, Fault) else "it is no meta.pkl of nanoGPT, a dictionary with stoi"
        raise ValueError(f"{path} cannot be read: {why}") from error
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=""))  # which no letter is: others are refused
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=("nanogpt", "mingpt", "llmc"))
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--meta", type=Path, help="nanoGPT's meta.pkl, of a model of letters")
    parser.add_argument("--heads", type=int, help="how many heads a layer has, where the checkpoint does not say it")
    parser.add_argument("--activation", choices=("gelu", "gelu_new", "relu"), help="of the MLP; see above")
    args = parser.parse_args(argv)
    convert = {"nanogpt": nanogpt, "mingpt": mingpt, "llmc": llmc}[args.kind]
    try:
        tokenizer = letters(args.meta) if args.meta else None
        config, tensors = convert(args.checkpoint, args.heads, args.activation)
        if tokenizer and tokenizer.get_vocab_size() > config["vocab_size"]:
            raise ValueError(f"{args.meta} has {tokenizer.get_vocab_size()} letters, the model {config['vocab_size']}")
        args.folder.mkdir()
        write(args.folder, config, tensors)
        if tokenizer:
            tokenizer.save(str(args.folder / "tokenizer.json"))
            kind = {"tokenizer_class": "PreTrainedTokenizerFast"}  # which adds no <|endoftext|> to it
            (args.folder / "tokenizer_config.json").write_text(json.dumps(kind))
    except FileExistsError:
        print(f"convert: {args.folder} is there: give another name", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"convert: {error}", file=sys.stderr)
        return 2
    print(f"{args.folder}: {', '.join(f'{key} {value}' for key, value in config.items() if key != 'architectures')}")
    if not tokenizer:
        print("it has no tokenizer: where its tokens are GPT-2's, copy tokenizer.json of openai-community/gpt2 there")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Checkpoints of nanoGPT (github.com/karpathy/nanoGPT), and of what is laid out like it, as those of GPT-2.

What differs: linear weights stand the other way round, and biases that a model was trained without are zeros. The
activation is the exact GELU since June 2023, and was the tanh approximation before; a checkpoint does not tell.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file

from ..checkpoint.settings import shown
from ..checkpoint.tensors import common_prefix
from ..loading import load
from ..model import Model

Tensors = dict[str, torch.Tensor]

SIZES = {"n_layer", "n_head", "n_embd", "block_size", "vocab_size", "bias", "dropout"}  # nanoGPT's model_args


def from_nanogpt(checkpoint: Any, *, heads: int | None = None, activation: str = "gelu") -> Model:
    """The model in a checkpoint of nanoGPT, as torch.load gives it: a dict with "model" and "model_args".

    heads: how many heads a layer has; needed for a state dict alone. activation: "gelu", the exact one, or "gelu_new",
    that of nanoGPT before June 2023. Raises ValueError for what is no GPT-2.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, *from_dict(checkpoint, heads, activation))
        return load(folder, mmap=False)[0]  # with the checks of any other model; the folder goes


def write(folder: Path, config: Mapping[str, Any], tensors: Tensors) -> None:
    """config.json and model.safetensors, in a folder that is there."""
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def from_dict(
    found: Any, heads: int | None, activation: str, path: object = "the checkpoint"
) -> tuple[dict[str, Any], Tensors]:
    """config.json and the tensors of a checkpoint of nanoGPT, or of its state dict alone."""
    whole = found if isinstance(found, dict) and "model" in found else {"model": found}
    args = whole.get("model_args") or {}
    if unknown := [name for name in args if name not in SIZES and args[name]]:
        raise ValueError(f"{path} is no GPT-2: nanoGPT's model has no {unknown[0]}, here {shown(args[unknown[0]])}")
    return converted(named(whole["model"], path), heads or args.get("n_head", 0), activation, path)


def named(found: Any, path: object) -> Tensors:
    """The tensors by GPT-2's names, without the wrappers of torch.compile and DataParallel and without masks."""
    if not isinstance(found, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise ValueError(f"{path} holds no state dict: names and their tensors")
    prefix = common_prefix(list(found))
    tensors = {name.removeprefix(prefix).removeprefix("transformer."): tensor for name, tensor in found.items()}
    return {name: tensor for name, tensor in tensors.items() if not re.search(r"\.attn\.(bias|mask)$", name)}


def converted(tensors: Tensors, n_head: int, activation: str, path: object) -> tuple[dict[str, Any], Tensors]:
    """config.json, and the tensors as transformers has them: linear weights the other way round, all biases there."""
    try:
        (d_vocab, d_model), n_ctx = tensors["wte.weight"].shape, len(tensors["wpe.weight"])
        d_mlp = len(tensors["h.0.mlp.c_fc.weight"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is no GPT-2: it has no {error}") from error
    n_layer = sum(name.endswith(".ln_1.weight") for name in tensors)
    shapes = {"wte.weight": [d_vocab, d_model], "wpe.weight": [n_ctx, d_model]}
    for layer in range(n_layer):
        for name, n_out, n_in in (
            ("attn.c_attn", 3 * d_model, d_model),
            ("attn.c_proj", d_model, d_model),
            ("mlp.c_fc", d_mlp, d_model),
            ("mlp.c_proj", d_model, d_mlp),
        ):
            shapes |= {f"h.{layer}.{name}.weight": [n_out, n_in], f"h.{layer}.{name}.bias": [n_out]}
    for norm in (*(f"h.{layer}.ln_{n}" for layer in range(n_layer) for n in (1, 2)), "ln_f"):
        shapes |= {f"{norm}.weight": [d_model], f"{norm}.bias": [d_model]}
    left = tensors.pop("lm_head.weight", tensors["wte.weight"])
    is_tied = torch.equal(left, tensors["wte.weight"])
    if unknown := sorted(tensors.keys() - shapes.keys()):
        raise ValueError(f"{path} is no GPT-2: GPT-2 has no place for the tensor {unknown[0]!r}")
    if not n_head or d_model % n_head:
        raise ValueError(
            f"the number of heads must divide d_model, {d_model}: give heads= (in the command --heads); got {n_head}"
        )

    found: Tensors = {} if is_tied else {"lm_head.weight": left}
    for name, shape in shapes.items():
        tensor = tensors.get(name)
        if tensor is None and not name.endswith(".bias"):
            raise ValueError(f"{path} is no GPT-2: it has no {name}")
        tensor = torch.zeros(shape) if tensor is None else tensor
        if list(tensor.shape) != shape:
            raise ValueError(f"{path} is no GPT-2: {name} has the shape {list(tensor.shape)}, not {shape}")
        found[f"transformer.{name}"] = tensor.mT if re.search(r"\.c_\w+\.weight$", name) else tensor
    config = dict(model_type="gpt2", architectures=["GPT2LMHeadModel"], vocab_size=d_vocab, n_positions=n_ctx)
    config |= dict(n_embd=d_model, n_layer=n_layer, n_head=n_head, n_inner=d_mlp, activation_function=activation)
    config |= dict(layer_norm_epsilon=1e-5, tie_word_embeddings=is_tied)
    return config, {name: tensor.contiguous().clone() for name, tensor in found.items()}

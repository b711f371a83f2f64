"""Loading: a bundled model, a folder, or a repository on the Hugging Face Hub.

config.json is audited key by key. A key is read by the family's Config, or it is known to change nothing in a forward
pass (checkpoint/keys.py), or it has the only value supported, or the caller ignores it; anything else is refused.
"""

import os
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from . import ctrl, gpt2, gpt_neo
from .arguments import model_name, names, quoted
from .checkpoint.hub import MERGE, locate, weights
from .checkpoint.keys import ONLY, why_harmless
from .checkpoint.settings import CheckpointError, Settings, Unreachable, one_line, read_json, shown
from .checkpoint.tensors import Checkpoint
from .checkpoint.tokenizer import Tokenizer
from .checkpoint.tokenizer_files import load_tokenizer
from .model import Model

FAMILIES: dict[str, Any] = {"gpt2": gpt2, "gpt_neo": gpt_neo, "ctrl": ctrl}

ALIASES = {  # keys that transformers takes as others of the same config (its attribute_map)
    "gpt2": dict(hidden_size="n_embd", num_hidden_layers="n_layer", num_attention_heads="n_head"),
    "gpt_neo": dict(num_hidden_layers="num_layers", num_attention_heads="num_heads"),
}
ALIASES["gpt2"]["max_position_embeddings"] = "n_positions"
ALIASES["ctrl"] = ALIASES["gpt2"]

ADAPTER = "adapter_config.json"  # of peft: the weights beside it are added to those of another model


def load(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    ignoring: Collection[str] = (),
    mmap: bool = True,
) -> tuple[Model, Tokenizer | None]:
    """A model and its tokenizer, by the name of a bundled model, the path of a folder, or a repository on the Hub.

    revision: branch, tag or commit of a repository; all files are taken from the one commit it stands for. device: by
    default the CPU. The weights are converted to dtype, one tensor at a time; where the file has it already and they
    are to be on the CPU, they stay in the memory-mapped file, which is read as it is used. As long as the model is in
    use it must not change: where it is written to, so are the weights, and where it is cut short, the system ends the
    process (SIGBUS), as it does with any mapped file. ignoring: keys of config.json that minilens does not know, and
    that you know to change no number, such as ["line_by_line"]. mmap: with False the weights are read into memory, and
    the file does not matter any more.

    What is left out, as asked or because it is another head's, is said in a UserWarning. So is why there is no
    tokenizer, where its files cannot be read: it is None then, as it is where there are none.

    Raises ValueError for a name that leads nowhere, a device that is not there, a key that cannot be ignored, and a
    dtype that is not one of these four or, as float16 for GPT-Neo, not one that the model can be computed in;
    CheckpointError for files that are missing, broken, or of a model that is not supported, and for those that change
    while they are read.
    """
    device = check_device(device, dtype)
    if not isinstance(mmap, bool):
        raise ValueError(f"mmap must be True or False; got {quoted(mmap)}")
    name = model_name(name)
    find = locate(name, revision)
    path = find("config.json")
    adapter = path.parent / ADAPTER if path else find(ADAPTER)
    if adapter and adapter.is_file():
        base = shown(read_json(adapter).get("base_model_name_or_path"))
        raise CheckpointError(f"{adapter}: {name!r} is an adapter of {base}: {MERGE}")
    if path is None:
        raise CheckpointError(f"{name!r} has no config.json, so it is not a model that minilens can read")
    settings = Settings(read_json(path), path)
    family = read_family(settings)
    config = family.Config.read(settings)
    settings.finish(why_harmless, ONLY, names("ignoring", ignoring))
    checkpoint = Checkpoint(*weights(find, path.parent), dtype=dtype, device=device, mmap=mmap)
    model: Model = family.build(config, checkpoint)
    checkpoint.finish()
    try:
        tokenizer = load_tokenizer(find, model.family)
    except Unreachable:  # whether there is a tokenizer is not known
        raise
    except CheckpointError as error:  # which is no reason to lock the weights out
        tokenizer = None
        warnings.warn(f"{name!r} is loaded without its tokenizer: {error}", stacklevel=2)
    find.check_unchanged()
    return model, tokenizer


def check_device(device: Any, dtype: Any) -> torch.device:
    """The device, by default the CPU. Raises ValueError where numbers of this dtype cannot be on it."""
    if dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float16, bfloat16, float32 or float64; got {dtype!r}")
    device = "cpu" if device is None else device
    if str(device).startswith("mps") and dtype != torch.float32:  # pytorch issue 180776
        raise ValueError(
            f"on the device {str(device)!r} the dtype must be torch.float32: there is no float64, and torch gets some "
            "products of half precision wrong; or load it on the CPU"
        )
    try:
        return torch.empty(0, device=device, dtype=dtype).device
    except Exception as error:  # torch has one for a build without CUDA, one for an unknown name, one for other trouble
        raise ValueError(f"the device {str(device)!r:.80} cannot be used: {one_line(error)}") from error


def read_family(settings: Settings) -> Any:
    """The family's module; from here on the settings have their keys under the family's own names."""
    family = settings.choice("model_type", {name: name for name in FAMILIES}, unnamed_family(settings.values))
    for alias, key in ALIASES[family].items():
        settings.rename(alias, key)
    return FAMILIES[family]


def cached() -> dict[str, Path]:
    """The models of the three families in the Hub's cache on this machine: repository -> folder of its newest files.

    The client's own scan would wait for a pipe in a file's place, and leave a repository out for one broken link.
    """
    from huggingface_hub import constants

    configs = Path(constants.HF_HUB_CACHE).glob("models--*/snapshots/*/config.json")
    found = {}
    for path in sorted(configs, key=lambda path: os.lstat(path).st_mtime):  # the newest comes last
        if _is_supported(path.parent):
            found[path.parents[2].name.removeprefix("models--").replace("--", "/")] = path.parent
    return dict(sorted(found.items()))


def _is_supported(folder: Path) -> bool:
    try:
        values = read_json(folder / "config.json")
    except CheckpointError:
        return False
    return str(values.get("model_type") or unnamed_family(values)) in FAMILIES


def config_of(folder: Path) -> tuple[str, Any]:
    """The family of a folder's model, and its Config. Raises CheckpointError where config.json gives none."""
    path = folder / "config.json"
    settings = Settings(read_json(path), path)
    family = read_family(settings)
    return next(name for name, each in FAMILIES.items() if each is family), family.Config.read(settings)


def unnamed_family(values: Mapping[str, Any]) -> str | None:
    """The family of a config.json without model_type, as those from before transformers 2.4 (its pull request 2494)."""
    return "ctrl" if "dff" in values else "gpt2" if "n_embd" in values else None

"""Loading: a bundled model, a folder, or a repository on the Hugging Face Hub.

config.json is audited key by key. A key is read by the family's Config, or it is listed here as one that cannot change
what a forward pass gives, or it has the only value supported; anything else is refused.
"""

import os
from pathlib import Path
from typing import Any

import torch

from . import ctrl, gpt2, gpt_neo
from .checkpoint.hub import locate, weights
from .checkpoint.settings import CheckpointError, Settings, read_json
from .checkpoint.tensors import Checkpoint
from .checkpoint.tokenizer import Tokenizer
from .checkpoint.tokenizer_files import load_tokenizer
from .model import Model

FAMILIES: dict[str, Any] = {"gpt2": gpt2, "gpt_neo": gpt_neo, "ctrl": ctrl}

HARMLESS = {  # what keys are for that change nothing in a forward pass -> the keys
    "origin": "_attn_implementation_autoset _name_or_path architectures dtype "
    "from_tf model_type torch_dtype transformers_version use_bfloat16",
    "training": "attention_dropout attn_pdrop classifier_dropout embd_pdrop embed_dropout gradient_checkpointing "
    "initializer_range resid_dropout resid_pdrop tf_legacy_loss",
    "generation": "bos_token_id eos_token_id pad_token_id sep_token_id "
    "decoder_start_token_id bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping "
    "encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id "
    "length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences prefix "
    "remove_invalid_values repetition_penalty suppress_tokens task_specific_params temperature tokenizer_class top_k "
    "top_p typical_p use_cache output_attentions output_hidden_states output_past output_scores return_dict "
    "return_dict_in_generate torchscript",
    "other heads": "_num_labels finetuning_task id2label label2id n_special num_labels "
    "predict_special_tokens problem_type summary_activation summary_first_dropout summary_proj_to_labels summary_type "
    "summary_use_proj",
    "length trained at": "n_ctx",
    "encoders": "chunk_size_feed_forward is_decoder",
}
IGNORED = frozenset(key for keys in HARMLESS.values() for key in keys.split())

ONLY: dict[str, Any] = {
    "add_cross_attention": False,
    "auto_map": None,  # code of the checkpoint's own
    "cross_attention_hidden_size": None,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "quantization_config": None,
    "tie_encoder_decoder": False,
    "tie_word_embeddings": True,
}


def load(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Model, Tokenizer | None]:
    """A model and its tokenizer, by the name of a bundled model, the path of a folder, or a repository on the Hub.

    revision: branch, tag or commit of a repository; all files are taken from the one commit it stands for. device: by
    default the CPU. The weights are converted to dtype, one tensor at a time; where the file has it already and they
    are to be on the CPU, they stay in the memory-mapped file, which is read as it is used, and must not change as long
    as the model is in use. The tokenizer is None where there are no files for one. Raises ValueError for a name that
    leads nowhere, a device that is not there, and a dtype that is not one of these four or, as float16 for GPT-Neo, not
    one that the model can be computed in; CheckpointError for files that are missing, broken, or of a model that is not
    supported.
    """
    if dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float16, bfloat16, float32 or float64; got {dtype!r}")
    device = "cpu" if device is None else device
    try:
        torch.empty(0, device=device, dtype=dtype)
    except Exception as error:  # torch has one for a build without CUDA, one for an unknown name, one for other trouble
        reason = str(error).splitlines()[0].split(". ")[0]
        raise ValueError(f"the device {str(device)!r} cannot be used: {reason}") from error
    name = os.fspath(name)
    find = locate(name, revision)
    path = find("config.json")
    if path is None:
        raise CheckpointError(f"{name!r} has no config.json, so it is not a model that minilens can read")
    values = read_json(path)
    settings = Settings(values, path)
    family = settings.choice("model_type", FAMILIES, unnamed_family(values))
    config = family.Config.read(settings)
    settings.finish(IGNORED, ONLY)
    checkpoint = Checkpoint(weights(find, path.parent), dtype=dtype, device=device)
    model: Model = family.build(config, checkpoint)
    checkpoint.finish()
    return model, load_tokenizer(find, model.family)


def cached() -> list[str]:
    """The repositories in the Hub's cache on this machine that hold a model of the three families."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return []
    except OSError as error:
        raise CheckpointError(f"the Hub's cache cannot be read: {error}") from error
    return sorted(repo.repo_id for repo in repos if repo.repo_type == "model" and _is_supported(repo.repo_path))


def _is_supported(repo: Path) -> bool:
    return any(_family(config) in FAMILIES for config in repo.glob("snapshots/*/config.json"))


def _family(config: Path) -> str:
    try:
        values = read_json(config)
    except CheckpointError:
        return ""
    return str(values.get("model_type", unnamed_family(values)))


def unnamed_family(values: dict[str, Any]) -> str | None:
    """The family of a config.json without model_type, as those from before transformers 2.4 (its pull request 2494)."""
    return "ctrl" if "dff" in values else "gpt2" if "n_embd" in values else None

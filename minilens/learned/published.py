"""Lenses that others have published, read into the same value as our own.

tuned-lens (Belrose et al. 2023, arXiv 2303.08112): a folder with config.json and params.pt. Translator n, "n.weight"
[d_out, d_in] and "n.bias", reads the stream entering block n and adds to it: n = 0 is `embed`, all others are
`(n-1).resid_post`.

Jacobian lens (Gurnee et al. 2026): one file of torch.save with J, {layer: [d_out, d_in]}. J[n] reads the output of
block n, which is `n.resid_post`. A file of a fit that has not ended holds the sum `jacobian_sum` over `n_done` texts in
its place. The file says nothing of `embed`: that row is left as it is, and a warning says so.
"""

import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.hub import Files, Repository, of_repository
from ..checkpoint.settings import CheckpointError, Settings, read_json, shown
from ..checkpoint.tensors import DTYPES, read_nested, read_tensors
from ..lens import EMBED
from ..ops import upcast
from ..traces import Site
from .affine import LearnedLens, RowMap, Subject

CONFIG, PARAMS = "config.json", "params.pt"
TUNED = Repository(
    "AlignmentResearch/tuned-lens", "space", "the path of a folder with config.json and params.pt: tuned:FOLDER"
)
JACOBIAN = Repository("neuronpedia/jacobian-lens", "model", "the path of a file: jacobian:FILE")
JACOBIAN_FILES = {"gpt2": "gpt2-small/jlens/Salesforce-wikitext/gpt2_jacobian_lens.pt"}
MOST_LAYERS, MOST_TEXTS = 10_000, 2**31


def is_published(name: str) -> bool:
    """Whether a name is of a published lens."""
    return name.startswith(("tuned:", "jacobian:"))


def load_published(name: str, revision: str | None = None) -> LearnedLens:
    """The lens of a name: tuned: or jacobian:, and then the path of a folder or file, or a model as the Hub calls it.

    revision: branch, tag or commit of the repository on the Hub. Raises ValueError for a name that leads nowhere, and
    CheckpointError for files that are missing, broken, or of no such lens.
    """
    kind, _, of = name.partition(":")
    path = Path(os.path.expanduser(of))
    readers: dict[str, Callable[[Path, str], LearnedLens]] = {"tuned": read_tuned, "jacobian": read_jacobian}
    if not is_published(name) or not of:
        raise ValueError(f"{name!r} names no published lens: write tuned:MODEL or jacobian:MODEL, such as tuned:gpt2")
    if os.path.lexists(path):
        if revision is not None:
            raise ValueError(f"{of} is on disk, and only a repository has a revision; leave out {revision!r}")
        return readers[kind](path, name)
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", of):
        raise ValueError(f"there is no lens {name!r}: {of!r} is not on disk, and no model of the Hub is called so")
    if kind == "tuned":
        files = of_repository(TUNED, revision)
        paths = [_found(files, TUNED, f"lens/{of}/{file}", of) for file in (CONFIG, PARAMS)]
        lens = read_tuned(paths[0].parent, name)
    else:
        if of not in JACOBIAN_FILES:
            known = ", ".join(f"jacobian:{each}" for each in JACOBIAN_FILES)
            raise ValueError(f"there is no lens {name!r}: minilens knows {known}; for others use {JACOBIAN.instead}")
        files = of_repository(JACOBIAN, revision)
        lens = read_jacobian(_found(files, JACOBIAN, JACOBIAN_FILES[of], of), name)
    files.check_unchanged()
    return lens


def _found(files: Files, repo: Repository, file: str, model: str) -> Path:
    path = files(file)
    if path is None:
        raise ValueError(f"{repo} has no lens for {model!r}, since it has no {file}; or use {repo.instead}")
    return path


def read_tuned(folder: Path, name: str = "") -> LearnedLens:
    """The lens in a folder of tuned-lens. Raises CheckpointError for files that are missing, broken, or of none."""
    path, params = folder / CONFIG, folder / PARAMS
    for needed in (path, params):
        if not needed.is_file():
            raise CheckpointError(f"{folder} has no {needed.name}, so it is not a folder of tuned-lens")
    settings = Settings(read_json(path), path)
    settings.choice("lens_type", {"linear_tuned_lens": None}, "linear_tuned_lens")
    d_model = settings.integer("d_model")
    n_layers = settings.integer("num_hidden_layers", most=MOST_LAYERS)
    has_bias = settings.flag("bias", True)
    about = {key: settings.text(key) for key in ("base_model_name_or_path", "base_model_revision", "unembed_hash")}
    if settings.unread:  # tuned-lens passes over them, too
        warnings.warn(f"{path}: {', '.join(map(shown, settings.unread))[:200]} is passed over", stacklevel=3)
    tensors = dict(read_tensors(params))
    names = {f"{n}.{part}" for n in range(n_layers) for part in ("weight", *(["bias"] if has_bias else []))}
    if others := sorted(names ^ tensors.keys()):
        what = "lacks" if others[0] in names else "has no place for"
        raise CheckpointError(f"{params} {what} the tensor {shown(others[0])}, and {path} says {n_layers} layers")
    found = {name: _number(params, tensor) for name, tensor in tensors.items()}
    maps = {
        Site(n - 1, "resid_post") if n else EMBED: RowMap(
            found[f"{n}.weight"], found[f"{n}.bias"] if has_bias else torch.zeros(d_model)
        )
        for n in range(n_layers)
    }
    return _lens(params, "tuned", maps, Subject(None, d_model, n_layers, None), about, name or folder.name)


def read_jacobian(path: Path, name: str = "") -> LearnedLens:
    """The lens in a file of the Jacobian lens. Raises CheckpointError for one that is missing, broken, or of none."""
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file: name the .pt of a Jacobian lens")
    found = read_nested(path)
    if not isinstance(found, dict) or not isinstance(found.get("J", found.get("jacobian_sum")), dict):
        raise CheckpointError(f'{path} is no Jacobian lens: it has neither "J" nor "jacobian_sum", a matrix by layer')
    is_sum = "J" not in found
    J = found["jacobian_sum" if is_sum else "J"]
    n_texts: Any = found.get("n_done" if is_sum else "n_prompts")
    if is_sum and (type(n_texts) is not int or not 1 <= n_texts < MOST_TEXTS):
        raise CheckpointError(f"{path} holds a sum over texts, and n_done does not say over how many")
    if not J or not all(type(layer) is int and layer < MOST_LAYERS for layer in J):
        raise CheckpointError(f"{path} must have a matrix for at least one layer, by its number")
    d_model, layers, target = (found.get(key) for key in ("d_model", "source_layers", "target_layer"))
    matrices = {layer: _number(path, J[layer]) for layer in sorted(J)}
    if d_model is None:
        d_model = matrices[min(matrices)].shape[-1]
    if layers is not None and layers != list(matrices):
        raise CheckpointError(f"{path}: source_layers does not name the layers of its matrices")
    for key, value in (("d_model", d_model), ("target_layer", target), ("n_prompts", n_texts)):
        if value is not None and type(value) is not int:
            raise CheckpointError(f"{path}: {key} must be a whole number")
    for layer, matrix in matrices.items():
        if list(matrix.shape) != [d_model, d_model]:
            raise CheckpointError(
                f"{path}: the matrix of layer {layer} has the shape {list(matrix.shape)}, and d_model is {d_model}"
            )
    identity, zeros = torch.eye(d_model), torch.zeros(d_model)
    divisor = n_texts if is_sum else 1
    maps = {Site(layer, "resid_post"): RowMap(matrix / divisor - identity, zeros) for layer, matrix in matrices.items()}
    warnings.warn(f"{path} has no map for the row embed, which is decoded as it stands", stacklevel=3)
    maps = {EMBED: RowMap(torch.zeros(d_model, d_model), zeros)} | maps
    # The matrices lead to the output of the target, which the final norm reads in a model that ends there.
    subject = Subject(None, d_model, None if target is None else target + 1, None)
    return _lens(path, "jacobian", maps, subject, {"texts": n_texts, "as_it_stands": ["embed"]}, name or path.stem)


def _lens(
    path: Path, kind: str, maps: Mapping[Site, RowMap], model: Subject, made: Mapping[str, Any], name: str
) -> LearnedLens:
    try:
        return LearnedLens(kind, maps, model, made={"from": path.name, **made}, name=name)
    except ValueError as error:
        raise CheckpointError(f"{path} holds no lens: {error}") from error


def _number(path: Path, tensor: Any) -> Tensor:
    """A tensor of real numbers, in float32 at least."""
    if not isinstance(tensor, Tensor) or tensor.dtype not in DTYPES:
        what = tensor.dtype if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
        raise CheckpointError(f"{path} must hold matrices in float16, bfloat16, float32 or float64; there is {what}")
    return upcast(tensor.detach())

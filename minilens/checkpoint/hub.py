"""Where the files of a model are: bundled, in a folder, or in a repository on the Hugging Face Hub."""

import os
import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path, PureWindowsPath
from textwrap import shorten

from .settings import CheckpointError, Unreachable, read_json

Find = Callable[[str], Path | None]
"""A file of the checkpoint by its name -> where it is, or None where the checkpoint has no such file."""


def bundled() -> dict[str, Path]:
    """The models that come with minilens: in the package where it is installed, beside it in a checkout."""
    here = Path(__file__).parents[1]  # the package
    root = next((folder for folder in (here / "weights", here.parent / "weights") if folder.is_dir()), None)
    return {config.parent.name: config.parent for config in sorted(root.glob("*/config.json"))} if root else {}


MERGE = "merge it into its model first (peft: model.merge_and_unload().save_pretrained(FOLDER)), and load that folder"


def locate(name: str, revision: str | None) -> Find:
    """How to find the files of a model: in a folder, or on the Hub."""
    folder = bundled().get(name) or Path(os.path.expanduser(name))
    if not os.path.isdir(folder):  # unlike Path.is_dir, it takes any text, a long sentence too
        return _on_the_hub(name, revision)
    if revision is not None:
        raise ValueError(f"{name} is a folder, and only a repository on the Hub has a revision; leave out {revision!r}")
    return lambda file: _in_folder(folder / file)


def _in_folder(path: Path) -> Path | None:
    """The path, if something is there. What is no file is not as good as absent: another file would be read for it."""
    if not os.path.lexists(path):
        return None
    if not os.path.isfile(path):
        what = "a folder" if os.path.isdir(path) else "a link to no file" if os.path.islink(path) else "no regular file"
        raise CheckpointError(f"{path} is {what}: put the file in its place, or take it away")
    return path


def _on_the_hub(repo: str, revision: str | None) -> Find:
    """How to find files in a repository, all of them in the commit in which the first was found."""

    def find(file: str) -> Path | None:
        nonlocal revision
        path = _download(repo, file, revision)
        revision = path.parent.name if path else revision
        return path

    return find


def _download(repo: str, file: str, revision: str | None) -> Path | None:
    """A file of a repository, from the cache as far as that will do; None where the repository has no such file."""
    from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache

    known = ", ".join(bundled())
    try:
        cached = try_to_load_from_cache(repo, file, revision=revision)  # a path, a mark of absence, or None: unknown
        is_settled = cached is not None and re.fullmatch("[0-9a-f]{40}", revision or "")  # a commit never changes
        trouble = None if is_settled else _trouble(repo, file, revision)
        found = cached if is_settled or trouble else hf_hub_download(repo, file, revision=revision)
    except errors.HFValidationError as error:
        raise ValueError(f"there is no model {repo!r}: it is not bundled ({known}) and not a folder") from error
    except errors.GatedRepoError as error:
        raise CheckpointError(f"{repo} asks for permission: get it on the Hub, then `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"there is no model {repo!r}: it is not bundled ({known}), not a folder and not on the Hub, or it is "
            "private there and needs `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{repo} has no revision {revision!r}") from error
    except Exception as error:  # the client lets those of the libraries below it through
        if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
            return None
        raise CheckpointError(f"{file} of {repo} cannot be downloaded: {_said(error)}") from error
    if found is None:
        raise Unreachable(
            f"there is no folder {repo!r}, {file} of that repository is not in the cache, and {trouble}; connect to "
            f"the network or try again later, or use a folder or a bundled model ({known})"
        )
    if not isinstance(found, str):
        return None
    if found != cached:
        _check_hash(repo, Path(found))
    return Path(found)


def _trouble(repo: str, file: str, revision: str | None) -> str | None:
    """Why the Hub cannot be asked for a file, after one try; None where it gives a clear answer, yes or no.

    hf_hub_download would try again for minutes, or wait for as long as the Hub says, and log each try.
    """
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

    try:
        metadata = get_hf_file_metadata(hf_hub_url(repo, file, revision=revision))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError):
        return None
    except errors.HfHubHTTPError as error:
        return f"the Hub refuses ({_said(error)})"
    except Exception as error:  # as above
        return f"the Hub cannot be reached ({_said(error)})"
    is_hub = metadata.commit_hash and metadata.etag
    return None if is_hub else "what answers in place of the Hub is a proxy, a login page or the like"


def _said(error: Exception) -> str:
    """An error of the client in one line, without addresses, which may be long and hold a signature."""
    said = " ".join(str(error).split()).split(". ")[0].split(" for url")[0].rstrip(".:") or type(error).__name__
    reason = getattr(error, "server_message", None)
    return shorten(f"{said}: {reason}" if reason else said, 200, placeholder=" ...")


def _check_hash(repo: str, path: Path) -> None:
    """Raise CheckpointError for a download that is not what the cache calls it by: the client compares sizes only.

    In the cache a file is a link, and what it leads to has the SHA-256 as its name if it came from Git LFS, as weights
    do. That may again be a link, to a file with another hash as its name (huggingface_hub, _shared_blobs.py).
    """
    blob = path.parent / os.readlink(path) if path.is_symlink() else path
    if not re.fullmatch("[0-9a-f]{64}", blob.name):
        return
    digest = sha256()
    with blob.open("rb") as content:
        while chunk := content.read(2**20):
            digest.update(chunk)
    if digest.hexdigest() != blob.name:
        path.unlink()
        blob.unlink()
        raise CheckpointError(f"{path.name} of {repo} was damaged on its way, and is removed; try again")


def weights(find: Find, folder: Path) -> list[Path]:
    """The weight files: one or several, safetensors before pickle."""
    index, files = weight_files(find, folder)
    return [weight_file(find, index, file) for file in files]


def weight_files(find: Find, folder: Path) -> tuple[Path | None, list[str]]:
    """The index, if there is one, and the names of the weight files."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if find(name):
            return None, [name]
        if index := find(f"{name}.index.json"):
            return index, _shards(index)
    raise CheckpointError(
        f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin, in one file or with an index"
        + _instead(find, folder)
    )


INSTEAD = {  # weights under other names, or of other kinds -> the way on
    "adapter_model.safetensors": f"it is an adapter of another model: {MERGE}",
    "adapter_model.bin": f"it is an adapter of another model: {MERGE}",
    "model.fp16.safetensors": "call it model.safetensors to use it",
    "pytorch_model.fp16.bin": "call it pytorch_model.bin to use it",
    "gpt2-pytorch_model.bin": "call it pytorch_model.bin to use it",
    "tf_model.h5": "load it with from_tf=True in transformers 4, and save it with save_pretrained",
    "flax_model.msgpack": "load it with from_flax=True in transformers 4, and save it with save_pretrained",
    "model.onnx": "use the checkpoint that it was exported from",
    "rust_model.ot": "use the checkpoint that it was converted from",
    "ckpt.pt": "convert it with scripts/convert.py of minilens",
}
ENDINGS = {  # of files of other names
    ".gguf": "load it with gguf_file=... in transformers, and save it with save_pretrained",
    ".h5": INSTEAD["tf_model.h5"],
    ".msgpack": INSTEAD["flax_model.msgpack"],
    ".onnx": INSTEAD["model.onnx"],
    ".safetensors": "call it model.safetensors if it holds all weights",
    ".bin": "call it pytorch_model.bin if it holds all weights and torch.save wrote it",
    ".pt": INSTEAD["ckpt.pt"],
    ".pth": INSTEAD["ckpt.pt"],
    ".ckpt": INSTEAD["ckpt.pt"],
}


def _instead(find: Find, folder: Path) -> str:
    """What there is in place of the weights, and the way on; nothing where nothing like it is there."""
    names = [name for name in INSTEAD if find(name)]
    there = sorted(path.name for path in folder.glob("*.*") if path.suffix.lower() in ENDINGS)
    names += [name for name in there if not re.match("optimizer|rng_state|scaler|scheduler|training_args", name)]
    if not names:
        return ""
    way = INSTEAD.get(names[0]) or ENDINGS[Path(names[0]).suffix.lower()]
    return f"; there is {names[0]!r:.80}: {way}"


def _shards(index: Path) -> list[str]:
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(file, str) for file in files.values()):
        raise CheckpointError(f'{index} must map tensors to files in "weight_map"')
    return sorted(set(files.values()))


def weight_file(find: Find, index: Path | None, file: str) -> Path:
    """Where a weight file is."""
    if PureWindowsPath(file).name != file or file in ("", ".."):  # which parts folders at / and at \
        raise CheckpointError(f"{index} names {file!r:.80}, which is not a file in the model's own folder")
    path = find(file)
    if path is None:
        raise CheckpointError(f"{index} names {file!r:.80}, which is missing")
    return path

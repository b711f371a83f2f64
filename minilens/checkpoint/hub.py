"""Where the files of a model are: bundled, in a folder, or in a repository on the Hugging Face Hub."""

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from textwrap import shorten
from typing import Any, NamedTuple

from ..arguments import quoted
from .reading import State, opened, sha256_of, state
from .settings import CheckpointError, Unreachable, read_json

Find = Callable[[str], Path | None]
"""A file of the checkpoint by its name -> where it is, or None where the checkpoint has no such file."""


# What the Hub calls a commit, and the content of a file: by SHA-1 as Git does, or by SHA-256 as Git LFS does.
COMMIT, ETAG = "[0-9a-f]{40}", "[0-9a-f]{40}|[0-9a-f]{64}"
# What Git calls branches and tags (git-check-ref-format). The client makes files of these names: none may lead out.
REVISION = r"(?!/)(?!.*\.\.)[^\s\x00-\x1f\x7f~^:?*\[\\]+"
NO_HUB = "what answers in place of the Hub is a proxy, a login page or the like"
ONE_AT_A_TIME = threading.Lock()


def bundled() -> dict[str, Path]:
    """The models that come with minilens: in the package where it is installed, beside it in a checkout."""
    here = Path(__file__).parents[1]  # the package
    root = next((folder for folder in (here / "weights", here.parent / "weights") if folder.is_dir()), None)
    return {config.parent.name: config.parent for config in sorted(root.glob("*/config.json"))} if root else {}


MERGE = "merge it into its model first (peft: model.merge_and_unload().save_pretrained(FOLDER)), and load that folder"


class Files:
    """How to find the files of a checkpoint, each looked for once and noted as it is then."""

    def __init__(self, find: Find) -> None:
        self._find = find
        self.paths: dict[str, Path] = {}  # of those that are there
        self._states: dict[str, State | None] = {}

    def __call__(self, file: str) -> Path | None:
        if file not in self._states:
            path = self._find(file)
            self._states[file] = state(path) if path else None
            if path:
                self.paths[file] = path
        return self.paths.get(file)

    def check_unchanged(self) -> None:
        """Raise CheckpointError where a file is another one now, or was written to: what was read may be of both."""
        for file, path in self.paths.items():
            if state(path) != self._states[file]:
                raise CheckpointError(f"{path} has changed while it was read: try again when nothing writes to it")


def local_folder(name: str) -> Path | None:
    """The folder of a bundled model, or of this path; None where there is none, so that the Hub is asked."""
    folder = bundled().get(name) or Path(os.path.expanduser(name))
    return folder if os.path.isdir(folder) else None  # unlike Path.is_dir, it takes any text, a long sentence too


def locate(name: str, revision: str | None) -> Files:
    """The files of a model: in a folder, or on the Hub."""
    if revision is not None and not (isinstance(revision, str) and re.fullmatch(REVISION, revision)):
        raise ValueError(f"revision must be a branch, a tag or a commit; got {quoted(revision)}")
    folder = local_folder(name)
    if folder is None:
        return Files(_on_the_hub(Repository(name), revision))
    if revision is not None:
        raise ValueError(f"{name} is a folder, and only a repository on the Hub has a revision; leave out {revision!r}")
    return Files(lambda file: _in_folder(folder / file))


def _in_folder(path: Path) -> Path | None:
    """The path, if something is there. What is no file is not as good as absent: another file would be read for it."""
    if not os.path.lexists(path):
        return None
    if not os.path.isfile(path):
        what = "a folder" if os.path.isdir(path) else "a link to no file" if os.path.islink(path) else "no regular file"
        raise CheckpointError(f"{path} is {what}: put the file in its place, or take it away")
    return path


class Repository(NamedTuple):
    """One on the Hub: a model's, which the user may have meant as a folder, or one that minilens names itself."""

    name: str
    type: str = "model"  # or "space"
    instead: str = ""  # of one that minilens names: what to use where the Hub cannot be reached

    def __str__(self) -> str:
        return self.name


def of_repository(repo: Repository, revision: str | None = None) -> Files:
    """The files of a repository on the Hub, which may be in its folders. Raises as `locate` and `Files` do."""
    return Files(_on_the_hub(repo, revision))


def _on_the_hub(repo: Repository, revision: str | None) -> Find:
    """How to find files in a repository, all of them in the commit in which the first was found."""

    def find(file: str) -> Path | None:
        nonlocal revision
        path = _download(repo, file, revision)
        revision = path.parents[file.count("/")].name if path else revision
        return path

    return find


def _download(repo: Repository, file: str, revision: str | None) -> Path | None:
    """A file of a repository, from the cache as far as that will do; None where the repository has no such file."""
    from huggingface_hub import errors, hf_hub_url, try_to_load_from_cache

    known = ", ".join(bundled())
    trouble = None
    place: dict[str, Any] = dict(repo_id=repo.name, filename=file, revision=revision, repo_type=repo.type)
    try:
        cached = try_to_load_from_cache(**place)  # a path, a mark of absence, or None: unknown
        found = cached
        if cached is None or not re.fullmatch(COMMIT, revision or ""):  # a commit never changes
            answer = _asked(hf_hub_url(**place))
            if isinstance(answer, str):
                trouble = answer
            else:
                found = _fetched(place, answer)
    except errors.HFValidationError as error:
        raise ValueError(f"there is no model {repo.name!r}: it is not bundled ({known}) and not a folder") from error
    except errors.GatedRepoError as error:
        raise CheckpointError(f"{repo} asks for permission: get it on the Hub, then `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        elsewhere = "" if repo.instead else f"not bundled ({known}), not a folder and "
        raise ValueError(
            f"there is no {repo.type} {repo.name!r}: it is {elsewhere}not on the Hub, or it is private there and needs "
            "`hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{repo} has no revision {revision!r}") from error
    except Exception as error:  # the client lets those of the libraries below it through
        if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
            return None
        raise CheckpointError(f"{file} of {repo} cannot be downloaded: {said(error)}") from error
    if found is None:
        missing = (
            f"{file} of {repo}" if repo.instead else f"there is no folder {repo.name!r}, {file} of that repository"
        )
        raise Unreachable(
            f"{missing} is not in the cache, and {trouble}; connect to the network or try again later, or use "
            + (repo.instead or f"a folder or a bundled model ({known})")
        )
    if not isinstance(found, str):
        return None
    if found != cached:
        _check_hash(repo.name, Path(found))
    return Path(found)


def _asked(url: str) -> Any:
    """What the Hub says of a file, after one try: its metadata, or the error that is a clear no.

    Otherwise why it cannot be asked, as a clause: the client would try again for minutes, or wait for as long as the
    Hub says, and log each try.
    """
    from huggingface_hub import errors, get_hf_file_metadata

    try:
        answer = get_hf_file_metadata(url)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        return error
    except errors.RemoteEntryNotFoundError as error:
        commit = error.response.headers.get("X-Repo-Commit")  # under which the client notes that there is no file
        return error if commit is None or re.fullmatch(COMMIT, commit) else NO_HUB
    except errors.HfHubHTTPError as error:
        return f"the Hub refuses ({said(error)})"
    except Exception as error:  # as above
        return f"the Hub cannot be reached ({said(error)})"
    is_hub = re.fullmatch(COMMIT, answer.commit_hash or "") and re.fullmatch(ETAG, answer.etag or "")
    return answer if is_hub else NO_HUB


def _fetched(place: dict[str, Any], answer: Any) -> str:
    """The file, downloaded where it is not in the cache, by an answer of `_asked`, which is raised if it is an error.

    The client would ask once more, and make names of folders and files of the commit and the ETag. Whoever answers in
    place of the Hub may say another thing the second time: so the client is given the answer that is known.
    """
    import huggingface_hub
    from huggingface_hub import file_download

    ask: Callable[..., Any] = file_download.get_hf_file_metadata
    of_this = huggingface_hub.hf_hub_url(**place)

    def known(url: str, *args: Any, **options: Any) -> Any:
        if url != of_this:  # of another thread
            return ask(url, *args, **options)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with ONE_AT_A_TIME:
        file_download.get_hf_file_metadata = known
        try:
            return str(huggingface_hub.hf_hub_download(**place))
        finally:
            file_download.get_hf_file_metadata = ask


def said(error: Exception) -> str:
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
    with opened(blob) as content:
        is_whole = sha256_of(content) == blob.name
    if not is_whole:
        path.unlink()
        blob.unlink()
        raise CheckpointError(f"{path.name} of {repo} was damaged on its way, and is removed; try again")


def weights(find: Find, folder: Path) -> tuple[list[Path], Path | None]:
    """The weight files, one or several, safetensors before pickle; and the index, if there is one."""
    index, files = weight_files(find, folder)
    return [weight_file(find, index, file) for file in files], index


def weight_files(find: Find, folder: Path) -> tuple[Path | None, list[str]]:
    """The index, if there is one, and the names of the weight files."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if find(name):
            return None, [name]
        if index := find(f"{name}.index.json"):
            return index, sorted(set(weight_map(index).values()))
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


def weight_map(index: Path) -> dict[str, str]:
    """What an index says: the file of each tensor."""
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(file, str) for file in files.values()):
        raise CheckpointError(f'{index} must map tensors to files in "weight_map"')
    return files


def weight_file(find: Find, index: Path | None, file: str) -> Path:
    """Where a weight file is."""
    if PureWindowsPath(file).name != file or file in ("", ".."):  # which parts folders at / and at \
        raise CheckpointError(f"{index} names {file!r:.80}, which is not a file in the model's own folder")
    path = find(file)
    if path is None:
        raise CheckpointError(f"{index} names {file!r:.80}, which is missing")
    return path

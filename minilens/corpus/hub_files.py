"""Files of datasets on the Hugging Face Hub: found by their names in one commit, and streamed from there.

A name is hf://datasets/OWNER/NAME/PATH, or hf://datasets/OWNER/NAME@REVISION/PATH. The path may be a pattern, with *, ?
and **. A commit never changes, so that all who know it read the same.
"""

import errno
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

from ..checkpoint.hub import COMMIT, NO_HUB, REVISION, said

SCHEME = "hf:/+"  # a Path makes one slash of two
NAME = rf"{SCHEME}datasets/([^/@\s]+/[^/@\s]+)(?:@(refs/(?:convert|pr)/[^/]+|[^/]+))?/(.+)"
BLOCK = 2**22  # bytes of a .parquet file that are asked for together
SECONDS = 10  # until the Hub must answer, as in its client


@dataclass(frozen=True)
class HubFile:
    """A file of a dataset, in one commit."""

    dataset: str
    revision: str  # the branch, tag or commit that was asked for
    commit: str
    file: str  # its path in the dataset
    size: int  # bytes
    sha256: str | None  # what the Hub says of a large file

    def __str__(self) -> str:
        return f"hf://{self.place}"

    @property
    def place(self) -> str:
        return f"{_root(self.dataset, self.commit)}/{self.file}"

    @property
    def name(self) -> str:
        return PurePosixPath(self.file).name

    @property
    def pin(self) -> tuple[str, str]:
        """What was asked for, and the commit that it stood for when the sweep began: sweep.json has them."""
        return f"{self.dataset}@{self.revision}", self.commit

    def opened(self, anywhere: bool) -> io.BufferedReader:
        """Its bytes, from the first to the last or, if need be, anywhere. What the Hub does not give is an OSError."""
        return io.BufferedReader(_Remote(self, anywhere))


def is_on_hub(name: str) -> bool:
    """Whether a name is that of something on the Hub."""
    return re.match(SCHEME, name) is not None


def on_hub(name: str, begun: Mapping[str, str]) -> list[HubFile]:
    """The files that a name stands for, in the order of their paths.

    begun: the commit of each dataset and revision, as OWNER/NAME@REVISION, that a sweep has begun with. Raises
    ValueError for another name, and for what is not there or cannot be had.
    """
    parts = re.fullmatch(NAME, name)
    if not parts or not re.fullmatch(REVISION, revision := unquote(parts[2] or "main")):
        raise ValueError(f"{name} is no file of a dataset: it must be hf://datasets/OWNER/NAME[@REVISION]/PATH")
    from huggingface_hub import errors

    dataset, commit = parts[1], revision
    try:
        commit = _commit(dataset, begun.get(f"{dataset}@{revision}", revision))
        root = _root(dataset, commit)
        found = _listed(root, parts[3])
    except errors.HFValidationError as error:
        raise ValueError(f"{name} is no file of a dataset: {dataset!r} cannot be the name of one") from error
    except errors.GatedRepoError as error:
        raise ValueError(f"{dataset} asks for permission: get it on the Hub, then `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        why = "it is not on the Hub, or it is private there and needs `hf auth login`"
        raise ValueError(f"there is no dataset {dataset}: {why}") from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"the dataset {dataset} has no revision {revision!r}") from error
    except (FileNotFoundError, errors.EntryNotFoundError):
        found = {}
    except Exception as error:  # the client lets those of the libraries below it through
        raise ValueError(f"{name} cannot be found: the Hub cannot be reached, or refuses ({said(error)})") from error
    if not found:
        raise ValueError(f"{name} is no file: the dataset has none of that name at {commit[:12]}; a folder needs /*")
    return [HubFile(dataset, revision, commit, *_described(root, path, info)) for path, info in sorted(found.items())]


def _root(dataset: str, commit: str) -> str:
    return f"datasets/{dataset}@{commit}"


def _commit(dataset: str, revision: str) -> str:
    """The commit that a branch, a tag or a commit stands for now."""
    from huggingface_hub import HfApi

    commit = HfApi().repo_info(dataset, repo_type="dataset", revision=revision, timeout=SECONDS).sha or ""
    if not re.fullmatch(COMMIT, commit) or (re.fullmatch(COMMIT, revision) and commit != revision):
        raise RuntimeError(NO_HUB)
    return commit


def _listed(root: str, path: str) -> dict[str, Any]:
    """What the Hub says of the files whose path is this, or like this."""
    from huggingface_hub import HfFileSystem

    files, place = HfFileSystem(), f"{root}/{path}"
    found: Any = files.glob(place, detail=True) if re.search(r"[*?[]", path) else {place: files.info(place)}
    return {name: info for name, info in found.items() if info["type"] == "file"}


def _described(root: str, path: str, info: Mapping[str, Any]) -> tuple[str, int, str | None]:
    """A file's path in the dataset, its size and its hash.

    Raises ValueError where the Hub names a path that leads out of the dataset or hides what it is, or no size.
    """
    file, size, lfs = path.removeprefix(f"{root}/"), info["size"], info["lfs"] or {}
    if file == path or {"", ".", ".."} & {*file.split("/")} or not file.isprintable():
        raise ValueError(f"the Hub names a file {file!a:.80}, which is no path in a dataset: {NO_HUB}")
    if not isinstance(size, int) or size < 0:
        raise ValueError(f"the Hub names no size of {file}: {NO_HUB}")
    return file, size, lfs.get("sha256")


class _Remote(io.RawIOBase):
    """The bytes of a file on the Hub, no more and no fewer than it is to have."""

    def __init__(self, of: HubFile, anywhere: bool) -> None:
        from huggingface_hub import HfFileSystem

        self.of, self.anywhere, self.at = of, anywhere, 0
        how = {"block_size": BLOCK, "size": of.size} if anywhere else {"block_size": 0}
        self.file = self._asked(lambda: HfFileSystem().open(of.place, "rb", **how))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self.anywhere

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + (0, self.at, self.of.size)[whence]
        self.file.seek(self.at)
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        found: bytes = self._asked(lambda: self.file.read(len(buffer)))
        self.at += len(found)
        if self.at > self.of.size or (not found and self.at < self.of.size and len(buffer)):
            raise OSError(errno.EIO, f"the Hub gives another number of bytes than the {self.of.size} that it names")
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        if not self.closed and hasattr(self, "file"):
            self.file.close()
        super().close()

    def _asked(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except Exception as error:  # as above
            raise OSError(errno.EIO, f"the Hub cannot be reached, or refuses ({said(error)})") from error

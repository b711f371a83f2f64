"""What a checkpoint's files say: settings and tensors by their Hub names, each taken once.

`Settings` is config.json, `Checkpoint` is the weights. Both know what was asked of them, so that a key or a tensor
that nobody read is an error and not a silent difference from the model that was trained.
"""

import json
import sys
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor

T = TypeVar("T")


class CheckpointError(Exception):
    """A file of a checkpoint is missing, broken, or not what its neighbours say it is."""


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable as JSON: {_why(path, error)}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object; it holds a {type(value).__name__}")
    return value


class Settings:
    """config.json, key by key. Every reader raises CheckpointError, naming key and value, for what it cannot use.

    A size that is null counts as absent: GPT-2's n_inner is.
    """

    def __init__(self, values: Mapping[str, Any], path: Path) -> None:
        self.path = path
        self._unread = dict(values)

    def take(self, key: str, default: Any = None) -> Any:
        """The value as it stands; the default where it is absent or null."""
        value = self._unread.pop(key, None)
        return default if value is None else value

    def integer(self, key: str, default: int | None = None) -> int:
        """A size: at least 1."""
        value = self.take(key, default)
        if type(value) is not int or value < 1:
            raise self.refusal(key, value, "a whole number of at least 1")
        return value

    def number(self, key: str, default: float) -> float:
        """A positive number."""
        value = self._unread.pop(key, default)
        if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
            raise self.refusal(key, value, "a positive number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self._unread.pop(key, default)
        if type(value) is not bool:
            raise self.refusal(key, value, "true or false")
        return value

    def choice(self, key: str, choices: Mapping[str, T], default: str | None = None) -> T:
        """One of the things named."""
        value = self._unread.pop(key, default)
        if not isinstance(value, str) or value not in choices:
            raise self.refusal(key, value, " or ".join(f'"{name}"' for name in choices))
        return choices[value]

    def refusal(self, key: str, value: Any, expected: str) -> CheckpointError:
        """The error to raise for a value that is not supported."""
        found = "is missing or null" if value is None else f"is {json.dumps(value)[:80]}"
        return CheckpointError(f'{self.path}: "{key}" {found}; minilens supports {expected}')

    def finish(self, ignored: frozenset[str], only: Mapping[str, Any]) -> None:
        """Raise for every key that was not read, unless it is ignored by name or has the only value supported."""
        for key, value in self._unread.items():
            if key in only:
                if value is not None and value != only[key]:
                    raise self.refusal(key, value, f"{json.dumps(only[key])} only")
            elif key not in ignored:
                raise CheckpointError(
                    f"{self.path}: unknown key {json.dumps(key)}, of value {json.dumps(value)[:80]}: minilens does not "
                    "know whether it changes the numbers, so it does not load the model"
                )


class Checkpoint:
    """Tensors by their Hub names, without the `transformer.` that some files put before them.

    Tensors of the dtype and device asked for stay where they are, in the memory-mapped file; others are converted as
    they are taken.
    """

    def __init__(self, paths: Sequence[Path], *, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self.path = paths[0]
        self._dtype, self._device = dtype, device
        self._unread: dict[str, Tensor] = {}
        for path in paths:
            for name, tensor in read_tensors(path).items():
                short = name.removeprefix("transformer.")
                if short in self._unread:
                    raise CheckpointError(f'{path}: the tensor "{short}" is there twice')
                self._unread[short] = tensor

    def take(self, name: str, *shape: int) -> Tensor:
        """The tensor of that name, once. Raises CheckpointError where it is missing or has another shape."""
        tensor = self._unread.pop(name, None)
        if tensor is None:
            raise CheckpointError(f'{self.path}: the tensor "{name}", of shape {list(shape)}, is missing')
        if tensor.shape != shape:
            raise CheckpointError(
                f'{self.path}: the tensor "{name}" has shape {list(tensor.shape)}, but the config implies {list(shape)}'
            )
        if not tensor.is_floating_point():
            raise CheckpointError(f'{self.path}: the tensor "{name}" holds {tensor.dtype}, not floating-point weights')
        return tensor.to(self._device, self._dtype)

    def tied(self, name: str, to: Tensor) -> None:
        """Read a tensor that may be stored but must equal another one: the unembedding of a tied model."""
        if name in self._unread and not torch.equal(self.take(name, *to.shape), to):
            raise CheckpointError(f'{self.path}: "{name}" differs from the embedding, to which it should be tied')

    def ignore(self, *names: str) -> None:
        """Leave buffers that are not weights unread: masks that the code makes itself."""
        for name in names:
            self._unread.pop(name, None)

    def finish(self) -> None:
        """Raise CheckpointError if any tensor was not read."""
        if self._unread:
            names = [json.dumps(name) for name in sorted(self._unread)]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise CheckpointError(f"{self.path}: this model has no place for the tensor {', '.join(names[:3])}{more}")


def read_tensors(path: Path) -> Mapping[str, Tensor]:
    """The tensors of one file, memory-mapped."""
    is_pickle = path.suffix != ".safetensors"
    if is_pickle:
        warnings.warn(f"{path} is a pickle file; reading it with torch's weights-only loader", stacklevel=4)
    try:
        if is_pickle:
            # Files from before torch 1.6 are not zip archives, and only those can be memory-mapped.
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        else:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as weights: {_why(path, error)}") from error
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    ):
        raise CheckpointError(f"{path} cannot be read as weights: it does not map names to tensors")
    return tensors


def _why(path: Path, error: Exception) -> str:
    """What is wrong with a file that could not be read, in the user's words where the cause is a common one."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as unreadable:
        return unreadable.strerror or str(unreadable)
    if not start:
        return "it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "it is a web page; download the file itself"
    if path.suffix == ".bin" and not isinstance(error, RuntimeError):  # one of torch's unpickler, with unsafe advice
        return "it is cut short or broken, or it holds more than tensors, and minilens runs no code from a file"
    return f"it is cut short or broken ({' '.join(str(error).split()).split('. ')[0]})"

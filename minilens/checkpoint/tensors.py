"""The weights of a checkpoint: tensors by their Hub names, each taken once.

`Checkpoint` knows which tensors were asked for. A tensor that nobody read is an error, not a silent difference from the
model that was trained.
"""

import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from .pickled import Fault, check_pickle
from .settings import LONGEST_HEADER, CheckpointError, parsed, shown, why

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Checkpoint:
    """Tensors by their Hub names, without the `transformer.` that some files put before them.

    Tensors of the dtype and device asked for stay where they are, in the memory-mapped file; others are converted as
    they are taken, one at a time: of a safetensors file never more than one tensor is in memory beside its copies.
    """

    def __init__(self, paths: Sequence[Path], *, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self.path = paths[0]
        self.dtype, self.device = dtype, torch.device(device)
        self._unread: dict[str, Tensor] = {}
        self._files: dict[str, tuple[Path, str]] = {}  # of what is to be converted: where it is, and its name there
        for path in paths:
            for name, tensor in read_tensors(path).items():
                short = name.removeprefix("transformer.")
                if short in self._unread:
                    raise CheckpointError(f"{path}: the tensor {shown(short)} is there twice")
                if (tensor.dtype, tensor.device) != (self.dtype, self.device) and path.suffix == ".safetensors":
                    self._files[short] = path, name
                    tensor = tensor.to("meta")  # its shape alone: the mapping goes, with what opening it has read
                self._unread[short] = tensor

    def take(self, name: str, *shape: int) -> Tensor:
        """The tensor of that name, once. Raises CheckpointError where it is missing or has another shape."""
        tensor = self._unread.pop(name, None)
        if tensor is None:
            raise CheckpointError(f'{self.path}: the tensor "{name}", of shape {list(shape)}, is missing')
        if tensor.shape != shape:
            raise CheckpointError(
                f'{self.path}: the tensor "{name}" has shape {shown(tensor.shape)}, but the config implies '
                f"{list(shape)}"
            )
        if tensor.dtype not in DTYPES:
            raise CheckpointError(
                f'{self.path}: the tensor "{name}" holds {tensor.dtype}; minilens reads weights in float16, bfloat16, '
                "float32 or float64"
            )
        return self._converted(name, _alone(*self._files[name]) if name in self._files else tensor)

    def _converted(self, name: str, tensor: Tensor) -> Tensor:
        converted = tensor.to(self.device, self.dtype)
        overflows = self.dtype == torch.float16 and not converted.is_meta and converted.isinf().any()
        if overflows and not tensor.isinf().any():
            raise CheckpointError(
                f'{self.path}: the tensor "{name}" has numbers beyond 65504, where float16 ends; load it with '
                "dtype=torch.bfloat16 or torch.float32"
            )
        return converted

    def tied(self, name: str, to: Tensor) -> None:
        """Read a tensor that may be stored but must equal another one: the unembedding of a tied model.

        On the device "meta" there are no values to compare.
        """
        if name in self._unread and not ((head := self.take(name, *to.shape)).is_meta or torch.equal(head, to)):
            raise CheckpointError(f'{self.path}: "{name}" differs from the embedding, to which it should be tied')

    def ignore(self, *names: str) -> None:
        """Leave buffers that are not weights unread: masks that the code makes itself."""
        for name in names:
            self._unread.pop(name, None)

    def finish(self) -> None:
        """Raise CheckpointError if any tensor was not read."""
        if self._unread:
            names = [shown(name) for name in sorted(self._unread)]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise CheckpointError(f"{self.path}: this model has no place for the tensor {', '.join(names[:3])}{more}")


def read_tensors(path: Path) -> Mapping[str, Tensor]:
    """The tensors of one file, memory-mapped."""
    is_pickle = path.suffix != ".safetensors"
    if is_pickle:
        warnings.warn(f"{path} is a pickle file; reading it with torch's weights-only loader", stacklevel=4)
    try:
        if is_pickle:
            check_pickle(path)
            # Files from before torch 1.6 are not zip archives, and only those can be memory-mapped.
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
            return {name: tensor.detach() for name, tensor in found.items()}
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        if is_pickle and not isinstance(error, Fault):  # what torch says may advise against safety
            error = Fault(
                "it is cut short or broken, or it holds more than tensors, and minilens runs no code from a file"
            )
        raise CheckpointError(f"{path} cannot be read as weights: {why(path, error)}") from error


def _check_header(path: Path) -> None:
    """Refuse what safetensors lets pass: names that are there twice, and more of them than fit in memory."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LONGEST_HEADER:
            raise ValueError(f"its header claims {length:,} bytes")
        parsed(file.read(length).decode())


def _alone(path: Path, name: str) -> Tensor:
    """One tensor, in a mapping of its own: what is read of a mapped file stays in memory as long as the mapping."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)  # type: ignore[no-any-return]
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as weights: {why(path, error)}") from error

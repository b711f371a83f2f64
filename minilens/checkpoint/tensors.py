"""The weights of a checkpoint: tensors by their Hub names, each taken once.

`Checkpoint` knows which tensors were asked for. A tensor that nobody read is an error, not a silent difference from the
model that was trained.
"""

import warnings
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from .hub import MERGE, weight_map
from .pickled import Fault, check_pickle
from .reading import opened
from .settings import LONGEST_HEADER, CheckpointError, parsed, shown, why

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# What tools put before the names of all tensors: torch's DataParallel and compile, a model within another, peft.
WRAPPERS = ("module.", "_orig_mod.", "base_model.model.", "base_model.", "model.")
RENAMED = {"lm_head.decoder.weight": "lm_head.weight"}  # of GPT-2 before transformers 2.0
HEADS = {  # what may stand on top beside the language model's own head -> what it is
    "v_head.": "a value head, as TRL trains it",
    "score.": "a head for whole texts",
    "classifier.": "a head of classes",
    "multiple_choice_head.": "a head for choices",
    "summary.": "a head for whole texts",
    "qa_outputs.": "a head for answers",
}


class Checkpoint:
    """Tensors by their Hub names, without the `transformer.` that some files put before them.

    Tensors of the dtype and device asked for stay where they are, in the memory-mapped file, unless `mmap` is False;
    others are converted as they are taken, one at a time: of a safetensors file never more than one tensor is in memory
    beside its copies.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        index: Path | None = None,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        mmap: bool = True,
    ) -> None:
        self.path = paths[0]
        self.dtype, self.device, self.mmap = dtype, torch.device(device), mmap
        self._unread: dict[str, Tensor] = {}
        self._files: dict[str, tuple[Path, str]] = {}  # of what is to be converted: where it is, and its name there
        files = [(path, read_tensors(path)) for path in paths]
        self.prefix = common_prefix([name for _, tensors in files for name in tensors])  # taken off each name
        self.left: dict[str, str] = {}  # tensors of other heads -> what they are, once it is finished
        for path, tensors in files:
            for name, tensor in tensors.items():
                short = self.short(name)
                if short in self._unread:
                    raise CheckpointError(f"{path}: the tensor {shown(short)} is there twice")
                is_mapped = mmap and (tensor.dtype, tensor.device) == (self.dtype, self.device)
                if not is_mapped and path.suffix == ".safetensors":
                    self._files[short] = path, name
                    tensor = tensor.to("meta")  # its shape alone: the mapping goes, with what opening it has read
                self._unread[short] = tensor
        check_index(index, {(name, path.name) for path, tensors in files for name in tensors})
        if any(".lora_" in name for name in self._unread):
            raise CheckpointError(f"{self.path} holds a LoRA adapter: {MERGE}")

    def short(self, name: str) -> str:
        """The name of a tensor as the families know it."""
        name = name.removeprefix(self.prefix).removeprefix("transformer.")
        return RENAMED.get(name, name)

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
        converted = tensor.to(self.device, self.dtype, copy=not self.mmap)
        overflows = self.dtype == torch.float16 and not converted.is_meta and converted.isinf().any()
        if overflows and not tensor.isinf().any():
            raise CheckpointError(
                f'{self.path}: the tensor "{name}" has numbers beyond 65504, where float16 ends; load it with '
                "dtype=torch.bfloat16 or torch.float32"
            )
        return converted

    def unembedding(self, name: str, W_E: Tensor, is_tied: bool) -> Float[Tensor, "d_model d_vocab"]:
        """The embedding, transposed; or a tensor of its own, where the model is not tied and has another one.

        A tied model may store it all the same, but then it must equal the embedding. On the device "meta" there are no
        values to compare.
        """
        if name not in self._unread and not is_tied:
            raise CheckpointError(
                f'{self.path}: the tensor "{name}" is missing, and "tie_word_embeddings" is false: set it to true if '
                "the model was trained with one matrix for both"
            )
        if name not in self._unread:
            return W_E.mT
        head = self.take(name, *W_E.shape)
        if is_tied and not head.is_meta and not torch.equal(head, W_E):
            raise CheckpointError(
                f'{self.path}: "{name}" differs from the embedding, to which it should be tied; if the model was '
                'trained so, set "tie_word_embeddings" to false in config.json'
            )
        return W_E.mT if is_tied or (not head.is_meta and torch.equal(head, W_E)) else head.mT

    def ignore(self, *names: str) -> None:
        """Leave buffers that are not weights unread: masks that the code makes itself."""
        for name in names:
            self._unread.pop(name, None)

    def finish(self) -> None:
        """Raise CheckpointError if any tensor was not read, but for those of other heads, which are left and named."""
        self.left = {name: what for name in self._unread if (what := other_head(name))}
        if unread := sorted(self._unread.keys() - self.left.keys()):
            names = [shown(name) for name in unread]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise CheckpointError(f"{self.path}: this model has no place for the tensor {', '.join(names[:3])}{more}")
        if self.prefix:
            warnings.warn(f"{self.path}: the names of all tensors begin with {self.prefix!r}, taken off", stacklevel=3)
        for what in dict.fromkeys(self.left.values()):
            names = [shown(name) for name in self.left if self.left[name] == what]
            warnings.warn(f"{self.path}: {what} is left out: {', '.join(names)[:200]}", stacklevel=3)


def common_prefix(names: Sequence[str]) -> str:
    """What tools have put before all names; nothing, as a rule."""
    prefix = ""
    while wrapper := next((w for w in WRAPPERS if names and all(n.startswith(prefix + w) for n in names)), ""):
        prefix += wrapper
    return prefix


def other_head(name: str) -> str | None:
    """What head a tensor belongs to that stands on top beside the language model's own; None for all others."""
    return next((what for start, what in HEADS.items() if name.startswith(start)), None)


def check_index(index: Path | None, stored: Collection[tuple[str, str]]) -> None:
    """Refuse an index that says of a tensor that it is in a file, and there it is not.

    stored: the tensors by their names, each with the name of its file.
    """
    for name, file in weight_map(index).items() if index else ():
        if (name, file) not in stored:
            raise CheckpointError(f"{index} names the tensor {shown(name)}, which is not in {shown(file)}")


def read_tensors(path: Path) -> Mapping[str, Tensor]:
    """The tensors of one file, memory-mapped."""
    if path.suffix != ".safetensors":
        return {name: tensor.detach() for name, tensor in _unpickled(path, nested=False).items()}
    try:
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise _unreadable(path, error) from error


def read_nested(path: Path) -> Any:
    """What torch.save wrote, memory-mapped: dictionaries, lists, numbers and texts, with tensors among them."""
    return _unpickled(path, nested=True)


def _unpickled(path: Path, *, nested: bool) -> Any:
    warnings.warn(f"{path} is a pickle file; reading it with torch's weights-only loader", stacklevel=5)
    try:
        check_pickle(path, nested=nested)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # the check has seen each instruction
            # Files from before torch 1.6 are not zip archives, and only those can be memory-mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        if not isinstance(error, Fault):  # what torch says may advise against safety
            error = Fault(
                "it is cut short or broken, or it holds more than tensors, and minilens runs no code from a file"
            )
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read as weights: {why(path, error)}")


def _check_header(path: Path) -> None:
    """Refuse what safetensors lets pass: names that are there twice, and more of them than fit in memory."""
    with opened(path) as file:
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
        raise _unreadable(path, error) from error

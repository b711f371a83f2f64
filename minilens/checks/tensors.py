"""The weights of a checkpoint, checked tensor by tensor."""

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checkpoint.settings import CheckpointError
from ..checkpoint.tensors import Checkpoint, other_head, read_tensors
from ..model import Model

MOST = 100  # tensors that are missing or do not fit before the rest are not looked for: a config may promise any number
PIECE = 2**20  # numbers of a tensor that are looked at together


class Weight(NamedTuple):
    """A tensor as it is stored, or one that should be.

    The SHA-256 is that of the tensor's numbers and nothing else: row by row, each in its own dtype, little-endian. It
    is what `hashlib.sha256(array.tobytes())` gives of the numpy array that safetensors reads.
    """

    name: str
    file: str
    dtype: str  # as torch has it, such as "float32"
    shape: tuple[int, ...]
    not_finite: int  # how many numbers are NaN or infinite
    sha256: str
    use: (
        str  # "read", "tied", "ignored" (a mask), "left out: ..." (another head), or where something is wrong "untied",
    )
    # "misfit", "missing", "no place", "not read"
    fault: str | None


def stored_tensors(path: Path, each: Callable[[Sequence[str]], Iterable[str]]) -> Iterator[Weight]:
    """The tensors in a file, before anybody asks for them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a note about pickle files, which comes again when the model is built
        tensors = read_tensors(path)
    for name in each(list(tensors)):
        tensor = tensors[name].detach()
        dtype = str(tensor.dtype).removeprefix("torch.")
        is_float = tensor.is_floating_point() and not dtype.startswith("float4")  # all its numbers are finite
        digest, not_finite = sha256(), 0
        for piece in _pieces(tensor):
            digest.update(piece.view(torch.uint8).numpy().data)
            if is_float:
                wide = piece.float() if piece.element_size() < 4 else piece
                not_finite += int((wide - wide).count_nonzero())  # 0 of what is finite; quicker than isfinite
        fault = None
        if not_finite:
            fault = f"{path}: {not_finite} of the {tensor.numel()} numbers of {json.dumps(name)} are NaN or infinite"
        yield Weight(name, path.name, dtype, tuple(tensor.shape), not_finite, digest.hexdigest(), "not read", fault)


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """The numbers of a tensor in row-major order, some at a time, without a copy where they lie so in the file."""
    if tensor.is_contiguous() or tensor.ndim < 2:
        yield from (piece.contiguous() for piece in torch.split(tensor.flatten(), PIECE))
    else:
        for row in tensor:
            yield from _pieces(row)


class _Use(NamedTuple):
    """What a family does with a tensor."""

    use: str
    shape: tuple[int, ...]  # the one asked for
    fault: str | None


class _Ledger(Checkpoint):
    """A checkpoint that notes how each tensor is used, and gives zeros for one that is missing or does not fit."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(paths, dtype=torch.float32)
        self.uses: dict[str, _Use] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        try:
            tensor = super().take(name, *shape)
        except CheckpointError as error:
            self.uses[name] = _Use("misfit", shape, str(error))
            if self.misfits > MOST or prod(shape) >= 2**62:  # more than a tensor can have
                raise
            return torch.zeros(()).expand(shape)
        self.uses[name] = _Use("read", shape, None)
        return tensor

    def unembedding(self, name: str, W_E: Tensor, is_tied: bool) -> Tensor:
        W_U, fault = W_E.mT, None
        try:
            W_U = super().unembedding(name, W_E, is_tied)
        except CheckpointError as error:
            fault = str(error)
        if name in self.uses and self.uses[name].use == "read" and (fault or W_U.data_ptr() == W_E.data_ptr()):
            self.uses[name] = _Use("untied" if fault else "tied", tuple(W_E.shape), fault)
        elif fault and name not in self.uses:
            self.uses[name] = _Use("misfit", tuple(W_E.shape), fault)
        return W_U

    def ignore(self, *names: str) -> None:
        super().ignore(*names)
        self.uses |= dict.fromkeys(names, _Use("ignored", (), None))

    @property
    def misfits(self) -> int:
        return sum(use.use == "misfit" for use in self.uses.values())


def built(
    build: Callable[[Any, Checkpoint], Model], config: Any, paths: list[Path], stored: list[Weight]
) -> tuple[Model | None, list[Weight]]:
    """The model, if nothing that it needs is missing, and the tensors with their use; missing ones come last.

    Raises CheckpointError where a tensor is stored twice.
    """
    ledger = _Ledger(paths)
    model, is_whole = None, False
    with suppress(CheckpointError):  # the ledger has it
        model = build(config, ledger)
        is_whole = True
    names, rows = set(), []
    for weight in stored:
        name = ledger.short(weight.name)
        names.add(name)
        use, _, fault = ledger.uses.get(name, _Use("no place" if is_whole else "not read", (), None))
        if use == "no place" and (head := other_head(name)):
            use = f"left out: {head}"
        elif use == "no place":
            fault = f"{paths[0]}: this model has no place for the tensor {json.dumps(name)}"
        is_left = use == "ignored" or use.startswith("left out")
        faults = [sentence for sentence in (fault, weight.fault) if sentence and not is_left]
        rows.append(weight._replace(use=use, fault="; ".join(faults) or None))
    for name, (use, shape, fault) in ledger.uses.items():
        if use == "misfit" and name not in names:
            rows.append(Weight(name, "", "", shape, 0, "", "missing", fault))
    return None if ledger.misfits else model, rows

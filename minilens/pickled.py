"""The tensors in a file that torch.save wrote, read without running anything.

A pickle is a program for a machine with a stack, and one instruction of that machine calls any function by its name.
The machine below knows the few instructions that a dictionary of tensors needs, and the names of three functions and
of the storages; whatever else a file asks for is refused. Keys must be text: tuples within tuples as a key can keep
Python busy for years, or overflow its stack. torch's weights-only loader (2.13) can be hung and crashed so, and before
2.10 it could be made to run code (CVE-2025-32434, CVE-2026-24747).

The program names the storages, and the bytes of each lie elsewhere in the file: in a zip archive (since torch 1.6) as
entries of their own, in older files one after the other behind the program. Where they are aligned they are
memory-mapped.
"""

import io
import math
import pickletools
import struct
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from torch import Tensor

LONGEST = 4 * 2**20  # bytes of program that are read: CTRL's 48 layers take 0.1 MiB
MAGIC = 0x1950A86A20F9469CFC6C  # first in an older file (torch/serialization.py)

NO_TENSORS = "it does not map names to tensors"


class _Storage(NamedTuple):
    dtype: torch.dtype
    key: str
    n: int  # elements


class _View(NamedTuple):
    """A tensor to be: a view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _view(storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: bool, hooks: Any) -> _View:
    if not isinstance(storage, _Storage) or not all(type(n) is int and n >= 0 for n in (offset, *shape, *strides)):
        raise UnpicklingError("a tensor in it has an impossible shape")
    return _parameter(_View(storage, offset, shape, strides), requires_grad, hooks)


def _parameter(view: _View, requires_grad: bool, hooks: Any) -> _View:
    if type(requires_grad) is not bool or hooks != {}:
        raise UnpicklingError("a tensor in it is more than its numbers")
    return view


_NAMES: dict[str, Any] = {
    "collections OrderedDict": lambda: {},
    "torch._utils _rebuild_tensor_v2": _view,
    "torch._utils _rebuild_parameter": _parameter,
    "torch DoubleStorage": torch.float64,
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
}


def read_pickled(path: Path) -> dict[str, Tensor]:
    """Tensors by their names. Raises UnpicklingError that says why not, and other exceptions for a broken file."""
    with path.open("rb") as file:
        found, places = _zip(file) if file.peek(4).startswith(b"PK\3\4") else _legacy(file)
    if not isinstance(found, dict) or not all(isinstance(view, _View) for view in found.values()):
        raise UnpicklingError(NO_TENSORS)
    size = path.stat().st_size
    # A stride of 0 and a shared storage make much of little. Tied embeddings, honestly stored, make twice.
    if sum(math.prod(view.shape) * view.storage.dtype.itemsize for view in found.values()) > 2 * size:
        raise UnpicklingError("it is cut short or broken (its tensors are larger than the file)")
    whole = torch.UntypedStorage.from_file(str(path), False, size)

    def tensor(view: _View) -> Tensor:
        start, n_bytes = places[view.storage.key]
        if n_bytes != view.storage.n * view.storage.dtype.itemsize or start + n_bytes > size:
            raise UnpicklingError("it is cut short or broken (a storage is not of the size that it claims)")
        end = view.offset + sum((n - 1) * stride for n, stride in zip(view.shape, view.strides, strict=True)) + 1
        if end > view.storage.n and 0 not in view.shape:  # torch would make the storage larger
            raise UnpicklingError("it is cut short or broken (a tensor is larger than its storage)")
        storage = whole[start : start + n_bytes]
        aligned = storage if start % view.storage.dtype.itemsize == 0 else storage.clone()
        return torch.empty(0, dtype=view.storage.dtype).set_(aligned, view.offset, view.shape, view.strides)

    return {name: tensor(view) for name, view in found.items()}


_Places = dict[str, tuple[int, int]]
"""Where in the file each storage begins, and its bytes."""


def _zip(file: io.BufferedReader) -> tuple[Any, _Places]:
    # The directory is last: a record of 56 bytes in large archives, where that is (20), and the end (22).
    file.seek(-98, io.SEEK_END)
    size_if_large, locator, end, size, comment = struct.unpack("<40xQ8x4s16x4s8xL4xH", file.read())
    if end != b"PK\5\6" or comment:
        raise UnpicklingError("it is cut short or broken (the directory of a zip archive is not at its end)")
    if (size_if_large if locator == b"PK\6\7" else size) > LONGEST:
        raise UnpicklingError("it holds far more than the names of tensors")
    with zipfile.ZipFile(file) as archive:
        top = archive.namelist()[0].partition("/")[0] + "/"
        entries = {entry.filename.removeprefix(top): entry for entry in archive.infolist()}
        unlike_torch = any(entry.compress_type or entry.flag_bits & 1 for entry in entries.values())
        if unlike_torch or len(entries) < len(archive.infolist()):
            raise UnpicklingError("entries of this zip archive are compressed, encrypted or there twice")
        if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
            raise UnpicklingError("its numbers are big-endian")
        if entries["data.pkl"].file_size > LONGEST:
            raise UnpicklingError("it holds far more than the names of tensors")
        found = _run(io.BytesIO(archive.read(entries["data.pkl"])))
        places = {}
        for name, entry in entries.items():
            archive.open(entry).close()  # which raises where the entry's own header does not agree with the directory
            file.seek(entry.header_offset + 26)
            header = 30 + sum(struct.unpack("<HH", file.read(4)))
            places[name.removeprefix("data/")] = entry.header_offset + header, entry.file_size
    return found, places


def _legacy(file: io.BufferedReader) -> tuple[Any, _Places]:
    programs = io.BytesIO(file.read(LONGEST))
    if _run(programs) != MAGIC:
        raise UnpicklingError("it is not a file that torch.save wrote")
    _, system = _run(programs), _run(programs)
    if system["little_endian"] is not True:
        raise UnpicklingError("its numbers are big-endian")
    storages: dict[str, _Storage] = {}
    found, keys = _run(programs, storages), _run(programs)
    places, start = {}, programs.tell()
    for key in keys:
        n_bytes = storages[key].n * storages[key].dtype.itemsize
        file.seek(start)
        if struct.unpack("<q", file.read(8)) != (storages[key].n,):
            raise UnpicklingError("it is cut short or broken (a storage is not of the size that it claims)")
        places[key] = start + 8, n_bytes
        start += 8 + n_bytes
    return found, places


def _run(program: io.BytesIO, storages: dict[str, _Storage] | None = None) -> Any:
    """What a program leaves on the stack; the storages that it names are added to those given."""
    stacks: list[list[Any]] = [[]]  # each mark begins a stack of its own
    memo: dict[Any, Any] = {}
    storages = {} if storages is None else storages
    for instruction, value, _ in pickletools.genops(program):
        stack = stacks[-1]
        match instruction.name:
            case "PROTO":
                pass
            case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1":
                stack.append(value)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[instruction.name])
            case "GLOBAL":
                if value not in _NAMES:
                    raise UnpicklingError(f"it asks for {value!r:.80}, and minilens runs no code from a file")
                stack.append(_NAMES[value])
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "MARK":
                stacks.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stacks.pop()
                stacks[-1].append(tuple(stack))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [stack.pop() for _ in range(int(instruction.name[-1]))]
                stack.append(tuple(reversed(items)))
            case "EMPTY_LIST":
                stack.append([])
            case "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            case "APPENDS":
                stacks.pop()
                stacks[-1][-1].extend(stack)
            case "EMPTY_DICT":
                stack.append({})
            case "SETITEM":
                item, name = stack.pop(), stack.pop()
                _set_items(stack[-1], [name, item])
            case "SETITEMS":
                stacks.pop()
                _set_items(stacks[-1][-1], stack)
            case "BINPERSID":
                storage = _storage(*stack.pop())
                stack.append(storages.setdefault(storage.key, storage))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(stack.pop()(*arguments))
            case "BUILD":  # the versions of the modules that a state dict came from
                if not isinstance(stack.pop(), dict):
                    raise UnpicklingError(NO_TENSORS)
            case "STOP":
                return stack.pop()
            case unknown:
                raise UnpicklingError(f"it has the instruction {unknown}, and minilens runs no code from a file")


def _set_items(target: Any, pairs: list[Any]) -> None:
    for name, item in zip(pairs[::2], pairs[1::2], strict=True):
        if not isinstance(target, dict) or not isinstance(name, str):
            raise UnpicklingError(NO_TENSORS)
        if name in target:
            raise UnpicklingError("a name is there twice in it")
        target[name] = item


def _storage(kind: Any, dtype: Any, key: Any, device: Any, n: Any, view: Any = None) -> _Storage:
    if (kind, view) != ("storage", None) or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
        raise UnpicklingError("a storage in it is of a kind that minilens does not read")
    return _Storage(dtype, key, n)

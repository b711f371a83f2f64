"""Whether a file that torch.save wrote holds tensors by their names and nothing else, found out before torch reads it.

A pickle is a program for a machine with a stack, and one instruction of that machine calls any function by its name.
torch's weights-only loader knows few functions, but before 2.10 it could be made to run code all the same
(CVE-2025-32434, CVE-2026-24747), and in 2.13 a tuple of tuples as a key keeps it busy for ever or crashes it. The
machine below runs the program without torch. It knows what a dictionary of tensors needs: a few instructions, three
functions, the storages, and text as keys; where a file may be nested also numbers, lists, and layers as keys. Whatever
else a file asks for is refused.

The program names the storages, and the bytes of each lie elsewhere in the file: in a zip archive (since torch 1.6) as
entries of their own, in older files one after the other behind the program.
"""

import io
import math
import os
import pickletools
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from .reading import opened

LONGEST = 2**20  # bytes of program, and of a zip archive's directory: of CTRL's 48 layers they take 0.1 MiB each
MAGIC = [0x1950A86A20F9469CFC6C, 1001]  # what the first two programs of an older file leave (torch/serialization.py)
MOST_AXES = 64  # of a tensor: GPT-2's masks, which have the most, have 4
LARGEST_KEY = 2**20  # of whole numbers as keys, such as layers: Python's dictionaries grow slow of chosen large ones
NO_TENSORS = "it does not map names to tensors"
WRONG_SIZE = "it is cut short or broken (a storage is not of the size that it claims)"


class Fault(ValueError):
    """What is wrong with a file, as a clause for the user."""


def check_pickle(path: Path, *, nested: bool = False) -> None:
    """Raises Fault where the file is not a dictionary of tensors, and other exceptions where it is broken.

    nested: it may hold dictionaries, lists, numbers and texts as well, as a training script's own checkpoint does.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        found = (
            _check_zip(file, size, nested) if file.peek(4).startswith(b"PK\3\4") else _check_legacy(file, size, nested)
        )
    if not nested and (not isinstance(found, dict) or not all(isinstance(each, _Tensor) for each in found.values())):
        raise Fault(NO_TENSORS)
    # A stride of 0 and a shared storage make much of little. Tied embeddings, honestly stored, make twice.
    if _n_bytes(found) > 2 * size:
        raise Fault("it is cut short or broken (its tensors are larger than the file)")


def _n_bytes(found: Any) -> int:
    """The bytes of all tensors; what is in a dictionary or list that is there several times counts once."""
    total, seen, left = 0, set(), [found]
    while left:
        if isinstance(each := left.pop(), _Tensor):
            total += each
        elif isinstance(each, (dict, list, tuple)) and id(each) not in seen:
            seen.add(id(each))
            left.extend(each.values() if isinstance(each, dict) else each)
    return total


def _check_zip(file: io.BufferedReader, size: int, nested: bool) -> Any:
    # The directory is last: its entries, in large archives a record (56 bytes) and where that is (20), the end (22).
    # Readers look for it in several ways, which must all lead to the same.
    file.seek(size - 98)
    record, length_64, start_64, locator, record_start, end, length, start, comment = struct.unpack(
        "<4s36xQQ4s4xQ4x4s8xIIH", file.read()
    )
    found_at = (b"PK\5\6", 0, size - 22, record, record_start)
    if locator == b"PK\6\7":
        length, start = length_64, start_64
        found_at = (b"PK\5\6", 0, size - 98, b"PK\6\6", size - 98)
    if (end, comment, start + length, record, record_start) != found_at:
        raise Fault("it is cut short or broken (the directory of a zip archive is not at its end)")
    if length > LONGEST:
        raise Fault("it holds far more than the names of tensors")
    with zipfile.ZipFile(file) as archive:
        top = archive.namelist()[0].partition("/")[0] + "/"
        entries = {entry.filename.removeprefix(top).lower(): entry for entry in archive.infolist()}
        # Of an entry marked as a folder, or of no size when compressed, torch returns memory as it finds it.
        if len(entries) < len(archive.infolist()) or any(
            e.compress_type or e.compress_size != e.file_size or e.external_attr & 16 for e in entries.values()
        ):
            raise Fault("entries of this zip archive are compressed, folders, or there twice")
        if [name for name in entries if name.endswith(".pkl")] != ["data.pkl"]:  # in TorchScript there are others
            raise Fault("it is a zip archive of something else than tensors")
        if entries["data.pkl"].file_size > LONGEST:
            raise Fault("it holds far more than the names of tensors")
        found, storages = _run(io.BytesIO(archive.read(entries["data.pkl"])), nested=nested)
        for key, storage in storages.items():
            entry = entries[f"data/{key}"]
            archive.open(entry).close()  # which raises where the entry's own header does not agree with the directory
            file.seek(entry.header_offset + 26)
            header = 30 + sum(struct.unpack("<HH", file.read(4)))
            if entry.file_size != storage.n_bytes or entry.header_offset + header + entry.file_size > start:
                raise Fault(WRONG_SIZE)
    return found


def _check_legacy(file: io.BufferedReader, size: int, nested: bool) -> Any:
    programs = io.BytesIO(file.read(LONGEST))
    if _is_tar(programs.getvalue()[:512]) or [_run(programs)[0], _run(programs)[0]] != MAGIC:
        raise Fault("it is not a file that torch.save wrote")
    _about_the_system, (found, storages) = _run(programs), _run(programs, nested=nested)
    keys, _ = _run(programs)
    if not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(storages):
        raise Fault("it is cut short or broken (storages are missing)")
    start = programs.tell()
    for key in keys:
        file.seek(start)
        start += 8 + storages[key].n_bytes
        if struct.unpack("<q", file.read(8)) != (storages[key].n,) or start > size:
            raise Fault(WRONG_SIZE)
    return found


def _is_tar(start: bytes) -> bool:
    """Whether torch would take a file that begins so for a tar archive, which is an older form still.

    It opens those that are not compressed, and looks at the first header. What `tarfile` makes of headers after that,
    or of a file that it must unpack first, may take any time and memory.
    """
    try:
        tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True


class _Storage(NamedTuple):
    n: int  # elements
    itemsize: int
    n_bytes: int


class _Tensor(int):
    """The bytes that a tensor takes."""


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any) -> _Tensor:
    if (
        not isinstance(storage, _Storage)
        or not isinstance(shape, tuple)
        or not isinstance(strides, tuple)
        or not len(shape) == len(strides) <= MOST_AXES
        or not all(type(n) is int and 0 <= n < 2**63 for n in (offset, *shape, *strides))
    ):
        raise Fault("a tensor in it has an impossible shape")
    end = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + 1
    if end > storage.n and 0 not in shape:  # torch would make the storage larger
        raise Fault("it is cut short or broken (a tensor is larger than its storage)")
    return _Tensor(math.prod(shape) * storage.itemsize)


ITEMSIZE = {"Double Long": 8, "Float Int": 4, "Half BFloat16 Short": 2, "Char Byte Bool": 1}
NAMES: dict[str, Any] = {
    "collections OrderedDict": lambda: {},
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": lambda tensor, requires_grad, hooks: tensor,
    **{f"torch {kind}Storage": n_bytes for kinds, n_bytes in ITEMSIZE.items() for kind in kinds.split()},
}
NEW: dict[str, Any] = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}
NEW |= {"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False}
TAKEN = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2}  # from the stack, for a tuple or a list


def read_plain(path: Path) -> Any:
    """What a pickle without tensors holds: dictionaries, lists, numbers and texts. Raises Fault for anything else."""
    with opened(path) as file:
        found, storages = _run(io.BytesIO(file.read(LONGEST)), nested=True)
    if storages:
        raise Fault("it holds tensors")
    return found


NESTED = ("BINFLOAT", "SHORT_BINUNICODE")  # values that stand between tensors, and texts of newer pickles


def _run(program: io.BytesIO, *, nested: bool = False) -> tuple[Any, dict[str, _Storage]]:
    """What a program leaves on the stack, and the storages that it names.

    nested: numbers may stand between the tensors and be keys, and the pickle may be of a newer protocol.
    """
    stacks: list[list[Any]] = [[]]  # each mark begins a stack of its own
    memo: dict[Any, Any] = {}
    storages: dict[str, _Storage] = {}
    for instruction, value, _ in pickletools.genops(program):
        stack, name = stacks[-1], instruction.name
        items = [stack.pop() for _ in range(TAKEN.get(name, 0))][::-1]
        if name in ("TUPLE", "APPENDS", "SETITEMS"):
            items = stacks.pop()
            stack = stacks[-1]
        match name:
            case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1":
                stack.append(value)
            case _ if nested and name in NESTED:
                stack.append(value)
            case "MEMOIZE" if nested:
                memo[len(memo)] = stack[-1]
            case "FRAME" | "PROTO" if nested:
                pass
            case _ if name in NEW:
                stack.append(NEW[name]())
            case "GLOBAL":
                if value not in NAMES:
                    raise Fault(f"it asks for {value!r:.80}, and minilens runs no code from a file")
                stack.append(NAMES[value])
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "MARK":
                stacks.append([])
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(items))
            case "APPEND" | "APPENDS":
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                for key, item in zip(items[::2], items[1::2], strict=True):
                    is_key = isinstance(key, str) or (nested and isinstance(key, int) and 0 <= key < LARGEST_KEY)
                    if not isinstance(stack[-1], dict) or not is_key:
                        raise Fault(NO_TENSORS)
                    if key in stack[-1]:
                        raise Fault("a name is there twice in it")
                    stack[-1][key] = item
            case "BUILD":  # the versions of the modules that a state dict came from
                if stack.pop().keys() != {"_metadata"} or not isinstance(stack[-1], dict):
                    raise Fault(NO_TENSORS)
            case "BINPERSID":
                kind, itemsize, key, device, n, *view = stack.pop()
                types = [type(part) for part in (itemsize, key, device, n)]
                if kind != "storage" or types != [int, str, str, int] or not 0 <= n < 2**63:
                    raise Fault("a storage in it is of a kind that minilens does not read")
                storage = _Storage(n, itemsize, n * itemsize)
                if view not in ([], [None]) or storages.setdefault(key, storage) != storage:
                    raise Fault("a storage is there twice in it")
                stack.append(storage)
            case "REDUCE" if isinstance(stack[-1], tuple):
                arguments = stack.pop()
                stack.append(stack.pop()(*arguments))
            case "STOP":
                break
            case _ if (name, value) != ("PROTO", 2):
                raise Fault(f"it has the instruction {name}, and minilens runs no code from a file")
    return stacks[-1].pop(), storages

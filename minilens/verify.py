"""Is a checkpoint what it says, and does minilens compute it rightly? Everything that is wrong, not only the first.

`load` stops where something is wrong. Here each part is gone through to its end, whatever the others are like: the keys
of config.json, the tensors as they are stored, the identities of the model that they make, and what others have
published of it.
"""

import ast
import inspect
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from math import lcm, prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .checkpoint import Checkpoint, CheckpointError, Settings, read_json, read_tensors
from .hub import FAMILIES, HARMLESS, IGNORED, ONLY, Find, bundled, locate, unnamed_family, weight_file, weight_files
from .identities import Identity, identities
from .published import PUBLISHED, Published, check
from .text import Tokenizer, load_tokenizer
from .trace import Model

MOST = 100  # tensors that are missing or do not fit before the rest are not looked for: a config may promise any number
MOST_HEADS = 64
PIECE = 2**20  # numbers of a tensor that are looked at together


class File(NamedTuple):
    """A file of the checkpoint that was read."""

    name: str
    size: int  # bytes
    sha256: str


class Key(NamedTuple):
    """A key of config.json, or one that the family would read there."""

    key: str
    value: str  # as JSON, cut to 80 characters; of a key that is not there the default
    status: str  # "read", "default", "missing", "only" (one value is supported), "ignored", "unknown", "not read"
    meaning: str  # the field of Config that it sets, the value supported, or why it is ignored
    fault: str | None


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
    use: str  # "read", "tied", "ignored" (a mask), "untied", "misfit", "missing", "no place", "not read"
    fault: str | None


@dataclass(frozen=True)
class Report:
    """What was found of a checkpoint."""

    model: str
    family: str | None
    files: tuple[File, ...]
    broken: tuple[str, ...]  # what is wrong with whole files, a sentence each
    config: tuple[Key, ...]
    tensors: tuple[Weight, ...]
    identities: tuple[Identity, ...] | None  # None where the files make no model
    published: tuple[dict[str, Any], ...]  # as `published.check` gives them; none where nothing is known

    @property
    def loads(self) -> bool:
        """Whether `load` takes it."""
        uses = {weight.use for weight in self.tensors}
        return not self.broken and not any(key.fault for key in self.config) and uses <= {"read", "tied", "ignored"}

    @property
    def faults(self) -> tuple[str, ...]:
        """Everything that is wrong, a sentence each; none where the checkpoint passes."""
        differ = [
            f"{each['measure']} of {each['prompt']!r} is {each['found']!r}; published is {each['published']!r}"
            for each in self.published
            if each["status"] != "OK"
        ]
        keys, tensors = [key.fault for key in self.config], [weight.fault for weight in self.tensors]
        amiss = [identity.fault for identity in self.identities or ()]
        return tuple(fault for fault in (*keys, *self.broken, *tensors, *amiss, *differ) if fault)


def verify(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    known_as: str | None = None,
    each: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> Report:
    """Everything that can be checked of a checkpoint, named as for `load`, in float32 on the CPU.

    known_as: the repository whose published outputs it should give, where the name is not that repository's. each: goes
    through the names of the tensors in a file, and may show how far it is. Weights stay in the memory-mapped file as
    they do for `load`, and the files are read three times: for their own hash, for those of the tensors, and as a
    model.

    Raises ValueError for a name that leads nowhere and for a repository of which nothing was published, CheckpointError
    where the Hub cannot be asked. All that is wrong with the files is in the report.

    >>> report = minilens.verify("tales-gpt2")
    >>> report.faults
    ()
    >>> report.tensors[0].name, report.tensors[0].dtype
    ('transformer.h.0.attn.c_attn.bias', 'float16')
    """
    name = os.fspath(name)
    known = _published(name, known_as)
    paths: dict[str, Path] = {}
    find = _noting(locate(name, revision), paths)
    broken: list[str] = []

    path = find("config.json")
    family, config = None, None
    keys: list[Key] = []
    if path is None:
        broken.append(f"{name!r} has no config.json, so it is not a model that minilens can read")
    else:
        with _noted(broken):
            family, config, keys = _audit(read_json(path), path)

    files: list[str] = []
    with _noted(broken):
        index, files = weight_files(find, path.parent if path else Path(name))
    stored: list[Weight] = []
    weights: list[Path] = []
    for file in files:
        with _noted(broken):
            weight = weight_file(find, index, file)
            stored += _stored(weight, each)
            weights.append(weight)
    model = None
    if family and config and files and len(weights) == len(files):
        with _noted(broken):
            model, stored = _built(FAMILIES[family].build, config, weights, stored)

    tokenizer = None
    if family:
        with _noted(broken):
            tokenizer = load_tokenizer(find, family)
    return Report(
        model=name,
        family=family,
        files=tuple(_file(*item) for item in sorted(paths.items())),
        broken=tuple(broken),
        config=tuple(keys),
        tensors=tuple(stored),
        identities=identities(model, config, tokenizer) if model else None,
        published=tuple(_checked(each, model, tokenizer) for each in known) if model else (),
    )


@contextmanager
def _noted(faults: list[str]) -> Iterator[None]:
    """Note what is wrong with a file, and go on."""
    try:
        yield
    except CheckpointError as error:
        faults.append(str(error))


def _noting(find: Find, paths: dict[str, Path]) -> Find:
    def noting(file: str) -> Path | None:
        if file not in paths and (path := find(file)):
            paths[file] = path
        return paths.get(file)

    return noting


def _file(name: str, path: Path) -> File:
    digest, size = sha256(), 0
    with suppress(OSError), path.open("rb") as content:  # that it cannot be read, its reader has said
        while chunk := content.read(2**20):
            digest.update(chunk)
            size += len(chunk)
    return File(name, size, digest.hexdigest())


# ---- config.json


class _Noting(Settings):
    """Settings that know which key was refused."""

    refused = ""

    def refusal(self, key: str, value: Any, expected: str) -> CheckpointError:
        self.refused = key
        return super().refusal(key, value, expected)


def _audit(values: dict[str, Any], path: Path) -> tuple[str | None, Any, list[Key]]:
    """The family, its Config where every key that it reads is right, and all keys."""
    settings = _Noting(values, path)
    family, config, fields, faults = None, None, {}, {}
    try:
        family = settings.choice("model_type", {name: name for name in FAMILIES}, unnamed_family(values))
    except CheckpointError as error:
        faults["model_type"] = str(error)
    else:
        config, faults = _config(FAMILIES[family], values, path)
        fields = _fields(FAMILIES[family])
    reasons = {key: why for why, names in HARMLESS.items() for key in names.split()}

    def row(key: str, value: Any) -> Key:
        if key in fields or key == "model_type":
            return Key(key, _json(value), "read", fields.get(key, "family"), faults.get(key))
        if key in IGNORED:
            return Key(key, _json(value), "ignored", reasons[key], None)
        if key not in ONLY and family is None:
            return Key(key, _json(value), "not read", "", None)
        refusals: list[str] = []
        with _noted(refusals):
            Settings({key: value}, path).finish(IGNORED, ONLY)
        status, meaning = ("only", _json(ONLY[key])) if key in ONLY else ("unknown", "")
        return Key(key, _json(value), status, meaning, refusals[0] if refusals else None)

    keys = [row(key, value) for key, value in values.items()]
    set_by_others = {fields.get(key) for key in values}
    for key, field in fields.items():
        if key not in values and key in faults:
            keys.append(Key(key, "", "missing", field, faults[key]))
        elif key not in values and config and field and field not in set_by_others:
            keys.append(Key(key, _json(getattr(config, field)), "default", field, None))
    if "model_type" not in values:
        keys.append(
            Key("model_type", _json(family), "default" if family else "missing", "family", faults.get("model_type"))
        )
    return family, config, keys


def _config(family: Any, values: dict[str, Any], path: Path) -> tuple[Any, dict[str, str]]:
    """The Config, if no key is refused, and what is wrong with each key that is.

    A key that is refused gets its default, or a number that the other sizes divide, or 1, so that the next is seen.
    """
    faults: dict[str, str] = {}
    stand_ins = lcm(*(n for n in values.values() if type(n) is int and 0 < n <= MOST_HEADS)), 1
    trial, left = dict(values), dict[str, Iterator[int]]()
    while True:
        settings = _Noting(trial, path)
        try:
            config = family.Config.read(settings)
        except CheckpointError as error:
            key = settings.refused
            if key not in faults:
                faults[key], left[key] = str(error), iter(stand_ins)
                trial.pop(key, None)
            elif (stand_in := next(left[key], None)) is not None:
                trial[key] = stand_in
            else:
                return None, faults
        else:
            return None if faults else config, faults


def _fields(family: Any) -> dict[str, str]:
    """The keys that a family reads, and the field of Config that each sets, if it does, as the source has it."""
    tree = ast.parse(inspect.getsource(family))
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}

    def keys(source: ast.AST) -> Iterator[str]:
        """Those read there, or in a function of the file that is called there."""
        for node in ast.walk(source):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name("settings")), args=[ast.Constant(str(key)), *_]):
                    yield key
                case ast.Call(func=ast.Name(name)) if name in functions:
                    yield from keys(functions[name])

    found = dict.fromkeys(keys(functions["read"]), "")
    for node in ast.walk(functions["read"]):
        match node:
            case ast.Assign(targets=[ast.Name(field)], value=value) | ast.keyword(arg=str(field), value=value):
                found |= dict.fromkeys(keys(value), field)
    return found


def _json(value: Any) -> str:
    """A value of config.json; of a field of Config, the name of a function."""
    return json.dumps(value, default=lambda function: function.__name__)[:80]


# ---- Tensors


def _stored(path: Path, each: Callable[[Sequence[str]], Iterable[str]]) -> Iterator[Weight]:
    """The tensors in a file, before anybody asks for them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a note about pickle files, which comes again when the model is built
        tensors = read_tensors(path)
    for name in each(list(tensors)):
        tensor = tensors[name].detach()
        digest, not_finite = sha256(), 0
        for piece in _pieces(tensor):
            digest.update(piece.view(torch.uint8).numpy().data)
            if piece.is_floating_point():
                wide = piece.float() if piece.element_size() < 4 else piece
                not_finite += int((wide - wide).count_nonzero())  # 0 of what is finite; quicker than isfinite
        dtype = str(tensor.dtype).removeprefix("torch.")
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

    def tied(self, name: str, to: Tensor) -> None:
        fault = None
        try:
            super().tied(name, to)
        except CheckpointError as error:
            fault = str(error)
        if name in self.uses and self.uses[name].use == "read":
            self.uses[name] = _Use("untied" if fault else "tied", tuple(to.shape), fault)

    def ignore(self, *names: str) -> None:
        super().ignore(*names)
        self.uses |= dict.fromkeys(names, _Use("ignored", (), None))

    @property
    def misfits(self) -> int:
        return sum(use.use == "misfit" for use in self.uses.values())


def _built(
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
        name = weight.name.removeprefix("transformer.")
        names.add(name)
        use, _, fault = ledger.uses.get(name, _Use("no place" if is_whole else "not read", (), None))
        if use == "no place":
            fault = f"{paths[0]}: this model has no place for the tensor {json.dumps(name)}"
        faults = [] if use == "ignored" else [sentence for sentence in (fault, weight.fault) if sentence]
        rows.append(weight._replace(use=use, fault="; ".join(faults) or None))
    for name, (use, shape, fault) in ledger.uses.items():
        if use == "misfit" and name not in names:
            rows.append(Weight(name, "", "", shape, 0, "", "missing", fault))
    return None if ledger.misfits else model, rows


# ---- What was published


def _published(name: str, known_as: str | None) -> list[Published]:
    """What is known of a repository, which may go by its older name, without an owner; nothing of other folders."""
    is_folder = name in bundled() or os.path.isdir(os.path.expanduser(name))
    repo = (known_as or ("" if is_folder else name)).lower()
    found = [each for each in PUBLISHED if repo in (each.repo.lower(), each.repo.lower().partition("/")[2])]
    if known_as and not found:
        known = ", ".join(dict.fromkeys(each.repo for each in PUBLISHED))
        raise ValueError(f"no outputs of {known_as!r} are known; there are some of {known}")
    return found


def _checked(each: Published, model: Model, tokenizer: Tokenizer | None) -> dict[str, Any]:
    try:
        return check(each, model, tokenizer)
    except (IndexError, ValueError) as error:  # the model has no such token, or no such block
        record = dict(model=each.repo, measure=each.measure.__name__, prompt=each.prompt, status="DIFF")
        return record | dict(published=each.expected, found=str(error))

"""Is a checkpoint what it says, and does minilens compute it rightly? Everything that is wrong, not only the first.

`load` stops where something is wrong. Here each part is gone through to its end, whatever the others are like: the keys
of config.json, the tensors as they are stored, the identities of the model that they make, and what others have
published of it.
"""

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..arguments import check_function, model_name, names, quoted
from ..checkpoint.hub import bundled, locate, weight_file, weight_files
from ..checkpoint.reading import opened, sha256_of
from ..checkpoint.settings import CheckpointError, read_json
from ..checkpoint.tensors import check_index, common_prefix
from ..checkpoint.tokenizer import Tokenizer
from ..checkpoint.tokenizer_files import load_tokenizer
from ..loading import FAMILIES
from ..model import Model
from .config import Key, audit, noted
from .identities import Identity, identities
from .published import PUBLISHED, Published, check
from .tensors import Weight, built, stored_tensors


class File(NamedTuple):
    """A file of the checkpoint that was read."""

    name: str
    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class Report:
    """What was found of a checkpoint."""

    model: str
    family: str | None
    files: tuple[File, ...]
    broken: tuple[str, ...]  # what is wrong with whole files, a sentence each
    no_tokenizer: tuple[str, ...]  # why there is none, if there are files of one: `load` gives the model without it
    config: tuple[Key, ...]
    tensors: tuple[Weight, ...]
    prefix: str  # what the names of all tensors begin with, and no family has
    special: Mapping[str, str]  # the tokens that are no part of the language -> the file that each is from
    identities: tuple[Identity, ...] | None  # None where the files make no model
    published: tuple[dict[str, Any], ...]  # as `published.check` gives them; none where nothing is known

    def __repr__(self) -> str:
        parts = "files", "config", "tensors", "identities", "published"
        counts = ", ".join(f"{name} {len(getattr(self, name) or ())}" for name in parts)
        how = f"{len(self.faults)} faults" if self.faults else "passed"
        return f"Report on {self.model!r} ({self.family or 'no family'}): {how}\n  {counts}"

    @property
    def loads(self) -> bool:
        """Whether `load` takes it."""
        uses = {weight.use for weight in self.tensors}
        amiss = [use for use in uses if use not in ("read", "tied", "ignored") and not use.startswith("left out")]
        return not self.broken and not any(key.fault for key in self.config) and not amiss

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
        return tuple(fault for fault in (*keys, *self.broken, *self.no_tokenizer, *tensors, *amiss, *differ) if fault)


def verify(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    known_as: str | None = None,
    ignoring: Collection[str] = (),
    each: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> Report:
    """Everything that can be checked of a checkpoint, named as for `load`, in float32 on the CPU.

    ignoring: keys of config.json to ignore, as for `load`. known_as: the repository whose published outputs it should
    give, where the name is not that repository's. each: goes through the names of the tensors in a file, and may show
    how far it is. Weights stay in the memory-mapped file as
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
    name, ignoring = model_name(name), names("ignoring", ignoring)
    check_function("each", each, "a function that gives what it goes through")
    known = _published(name, known_as)
    find = locate(name, revision)
    broken: list[str] = []

    path, family, config = None, None, None
    keys: list[Key] = []
    with noted(broken):
        if (path := find("config.json")) is None:
            raise CheckpointError(f"{name!r} has no config.json, so it is not a model that minilens can read")
        family, config, keys = audit(read_json(path), path, ignoring)

    files: list[str] = []
    with noted(broken):
        index, files = weight_files(find, path.parent if path else Path(name))
    stored: list[Weight] = []
    weights: list[Path] = []
    for file in files:
        with noted(broken):
            weight = weight_file(find, index, file)
            stored += stored_tensors(weight, each)
            weights.append(weight)
    model = None
    if files and len(weights) == len(files):
        with noted(broken):
            check_index(index, {(weight.name, weight.file) for weight in stored})
    if family and config and files and len(weights) == len(files):
        with noted(broken):
            model, stored = built(FAMILIES[family].build, config, weights, stored)

    tokenizer, no_tokenizer = None, list[str]()
    if family:
        with noted(no_tokenizer):
            tokenizer = load_tokenizer(find, family)
    amiss = identities(model, config, tokenizer) if model else None
    outputs = tuple(_checked(each, model, tokenizer) for each in known) if model else ()
    read = tuple(_file(*item) for item in sorted(find.paths.items()))
    with noted(broken):
        find.check_unchanged()
    return Report(
        model=name,
        family=family,
        files=read,
        broken=tuple(broken),
        no_tokenizer=tuple(no_tokenizer),
        config=tuple(keys),
        tensors=tuple(stored),
        prefix=common_prefix([weight.name for weight in stored]),
        special=tokenizer.special if tokenizer else {},
        identities=amiss,
        published=outputs,
    )


def _file(name: str, path: Path) -> File:
    try:
        with opened(path) as file:
            return File(name, os.fstat(file.fileno()).st_size, sha256_of(file))
    except OSError:  # its reader has said so
        return File(name, 0, "")


def _published(name: str, known_as: str | None) -> list[Published]:
    """The outputs known of a repository; its older name, without an owner, will do. None of other folders."""
    if known_as is not None and not isinstance(known_as, str):
        raise ValueError(f"known_as must be the name of a repository; got {quoted(known_as)}")
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

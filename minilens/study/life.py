"""The life of a model: what lens, heads and study say of its checkpoints, from the first step of training to the last.

The folder of a life holds a file for each checkpoint, which is written when all of it is measured. What is there is not
measured again: whoever runs the same life on the same folder goes on with it, after a kill or beside others.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import nan
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..arguments import model_name, names, quoted
from ..checkpoint.hub import COMMIT, local_folder, locate, weights
from ..checkpoint.reading import blocks, opened, sha256_of
from ..corpus.documents import TextFile
from ..corpus.machine import machine
from ..corpus.measure import Plan
from ..corpus.named import Names, text_files
from ..corpus.shared_files import claim, compare, digest, explained, locked, make
from ..corpus.tally import VALUES
from ..files import replacing
from ..instruments.heads import HeadScores
from ..loading import check_device, load
from .checkpoint import DRAWS, LENGTH, SKIP, TEXTS, measured

REQUEST = "request.json"  # all that the numbers depend on, beside the checkpoints


class Checkpoint(NamedTuple):
    """A model at a step of its training."""

    step: int
    model: str
    revision: str | None = None

    @property
    def name(self) -> str:
        """What tells it from the others."""
        return self.revision or os.path.basename(os.path.normpath(self.model))


class Curve(NamedTuple):
    """Numbers over the checkpoints, with their standard errors; not a number where there is none."""

    mean: Float[Tensor, "checkpoint *of"]
    standard_error: Float[Tensor, "checkpoint *of"]


@dataclass(frozen=True, eq=False)
class Life:
    """What was measured of each checkpoint, in the order of the steps."""

    checkpoints: tuple[Checkpoint, ...]
    records: tuple[dict[str, Any], ...]  # of each, as its file has it

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(checkpoint.step for checkpoint in self.checkpoints)

    @property
    def rows(self) -> tuple[str, ...]:
        """The labels of the lens' rows."""
        return tuple(self.records[0]["rows"])

    def lens(self, statistic: str) -> Curve:
        """A statistic of the lens by checkpoint and row: nats, or a share of the tokens from 0 to 1.

        Raises ValueError for one that a corpus does not have.
        """
        if statistic not in VALUES:
            raise ValueError(f"there is no statistic {quoted(statistic)}; there are {', '.join(VALUES)}")
        return self._curve("lens", statistic)

    def heads(self, kind: str) -> Curve:
        """A score of every head, "induction", "previous" or "duplicate", by checkpoint, layer and head."""
        if kind not in HeadScores._fields:
            raise ValueError(f"there is no score {quoted(kind)}; there are {', '.join(HeadScores._fields)}")
        return self._curve("heads", kind)

    def best_head(self, kind: str) -> Curve:
        """The highest score of a kind at each checkpoint, which need not be one head's."""
        mean, error = (part.flatten(1) for part in self.heads(kind))
        best = mean.argmax(1, keepdim=True)
        return Curve(mean.gather(1, best)[:, 0], error.gather(1, best)[:, 0])

    def block_0(self, what: str) -> Curve:
        """A mean length, "embedding" or "write", or the "ratio" of the second to the first, by checkpoint."""
        return self._curve("block_0", what)

    def verdicts(self) -> dict[str, list[str]]:
        """Of each finding "shown", "not shown" or "not measurable", by checkpoint; empty where no study can be made."""
        found = [{each["statement"]: each["verdict"] for each in record["findings"]} for record in self.records]
        return {statement: [of.get(statement, "not measurable") for of in found] for statement in found[-1]}

    def _curve(self, part: str, name: str) -> Curve:
        found = [record[part][name] for record in self.records]
        return Curve(*(_numbers([each[of] for each in found]) for of in Curve._fields))

    def __repr__(self) -> str:
        first, last = self.steps[0], self.steps[-1]
        return f"Life of {len(self.steps)} checkpoints, steps {first} to {last}; {len(self.rows)} rows"


def life(
    models: str | PathLike[str] | Sequence[str | PathLike[str]],
    files: Names,
    folder: str | PathLike[str],
    *,
    revisions: str | Sequence[str] = (),
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    ignoring: Collection[str] = (),
    any_machine: bool = False,
    each: Callable[[Sequence[Checkpoint]], Iterable[Checkpoint]] = iter,
    **options: Any,
) -> Life:
    """Measure the checkpoints of a model on files of text, each once, and keep the results in a folder.

    models: one checkpoint each, by folder or name; or one repository on the Hub with `revisions`. The step of a
    checkpoint is the last number in its revision, or in the name of its folder; they are taken by their steps. Where
    one has no number, or two have the same, they stay in the order given, and the step is the place in it.
    files: as for `fit`.
    device, dtype, ignoring: as for `load`.
    any_machine: also go on with what another kind of machine began.
    each: goes through the checkpoints to be measured, and may show how far it is.
    options: those of `Plan`: decoders, of which there must be one, norm, sites, window, prefix, by default the first
    control code, if there are any, batch, shard.

    Raises ValueError for what is no checkpoint, or has no tokenizer, for checkpoints of different sizes, for text that
    cannot be read, and for a folder that holds something else, or a checkpoint that has changed since it was measured.
    """
    several = isinstance(models, Iterable) and not isinstance(models, (str, PathLike))
    found = _checkpoints(models if several else [models], names("revisions", revisions))  # type: ignore[arg-type]
    folder, kind = Path(folder), machine(check_device(device, dtype))
    texts = text_files(files, folder)
    _begin(folder, _request(texts, options, dtype, kind), kind, any_machine)
    for wait in (False, True):  # those that another process is at are left to the end
        missing = [checkpoint for checkpoint in found if not _file(folder, checkpoint).exists()]
        for checkpoint in each(missing):
            with locked(path := _file(folder, checkpoint), wait) as is_ours:
                if is_ours and not path.exists():
                    how: Any = dict(device=device, dtype=dtype, ignoring=ignoring, mmap=False)
                    model, tokenizer = load(checkpoint.model, revision=checkpoint.revision, **how)
                    if tokenizer is None:
                        raise ValueError(f"{checkpoint.name} has no tokenizer that minilens reads: put one beside it")
                    sweep = path.with_suffix("")
                    record = {"model": checkpoint.model, "revision": checkpoint.revision, "hash": _hash(checkpoint)}
                    record |= measured(checkpoint.name, model, tokenizer, texts, options, sweep, any_machine)
                    with replacing(path) as new:
                        new.write_text(json.dumps(record, allow_nan=False), encoding="utf-8")
                    shutil.rmtree(sweep)
    return Life(tuple(found), _read(folder, found))


def _checkpoints(models: Iterable[Any], revisions: Sequence[str]) -> list[Checkpoint]:
    """Those asked for, by their steps."""
    every = [model_name(model) for model in models]
    if not every or (revisions and len(every) > 1):
        raise ValueError(f"name checkpoints, or one repository with revisions; got {len(every)} models")
    found = [Checkpoint(n, every[0], each) for n, each in enumerate(revisions)]
    found = found or [Checkpoint(n, each) for n, each in enumerate(every)]
    if len({(each.model, each.revision) for each in found}) < len(found):
        raise ValueError(f"name each checkpoint once; got {', '.join(each.name for each in found)}")
    plain = ["" if re.fullmatch(COMMIT, each.name) else each.name for each in found]  # the digits of a hash are no step
    steps = [int(number[1]) for name in plain if (number := re.search("([0-9]{1,15})[^0-9]*$", name))]
    if len({*steps}) < len(found):
        return found
    return sorted(each._replace(step=step) for each, step in zip(found, steps, strict=True))


def _request(
    files: Sequence[TextFile], options: Mapping[str, Any], dtype: torch.dtype, kind: Mapping[str, Any]
) -> dict[str, Any]:
    """All that the numbers depend on beside the checkpoints."""
    from ..version import __version__

    plan = asdict(Plan(**options)) | {"prefix": options.get("prefix")}
    if len(plan["decoders"]) != 1:
        raise ValueError(f"a life has one decoder; got {', '.join(plan['decoders']) or 'none'}")
    texts = sorted(files, key=lambda file: file.digest)
    of_files = {name: [getattr(file, name) for file in texts] for name in ("digest", "is_json", "lines", "key")}
    request = {"minilens": __version__, **kind, "dtype": str(dtype), **of_files, **plan, "skip": SKIP}
    read_back: dict[str, Any] = json.loads(json.dumps(request | {"heads": [DRAWS, TEXTS, LENGTH]}))  # with no tuples
    return read_back


def _begin(folder: Path, request: dict[str, Any], kind: dict[str, Any], any_machine: bool) -> None:
    """Make the folder of a life, or go on with it."""
    make(folder)
    if not (folder / REQUEST).exists() and any(not name.startswith("request.") for name in os.listdir(folder)):
        raise ValueError(f"{folder} is there, and no life has begun in it: give another folder")
    claim(folder / REQUEST, request)
    compare(folder / REQUEST, "life", request, kind, any_machine)
    make(folder / "checkpoints")


def _file(folder: Path, checkpoint: Checkpoint) -> Path:
    """Where its record is: the name, and a hash, for others may have the same."""
    of = digest((checkpoint.model, checkpoint.revision or ""))[:12]
    return folder / "checkpoints" / f"{re.sub('[^A-Za-z0-9_-]', '_', checkpoint.name)[:60]}-{of}.json"


def _hash(checkpoint: Checkpoint) -> str | None:
    """A hash of the files of a folder; nothing of a revision, which stays as it is and may not be here any more."""
    folder = local_folder(checkpoint.model)
    if folder is None:
        return None
    find = locate(checkpoint.model, None)
    found = []
    for path in [find("config.json"), *weights(find, folder)[0]]:
        if path:
            with opened(path) as file:
                found.append(sha256_of(file))
    return digest(tuple(found))


def _read(folder: Path, found: Sequence[Checkpoint]) -> tuple[dict[str, Any], ...]:
    """The records, all of one model's sizes, of checkpoints that are as they were."""
    records = []
    for checkpoint in found:
        path = _file(folder, checkpoint)
        with explained(path), opened(path) as file:
            records.append(json.loads(b"".join(blocks(file))))
        if records[-1]["hash"] != _hash(checkpoint):
            raise ValueError(
                f"{checkpoint.model} has changed since it was measured: delete {path} to have it done anew"
            )
        first, last = ({key: record[key] for key in ("family", "rows")} for record in (records[0], records[-1]))
        if first != last:
            raise ValueError(f"{checkpoint.name} has other rows than {found[0].name}: a life is of one model")
    return tuple(records)


def _numbers(values: list[Any]) -> Float[Tensor, "..."]:
    """Lists of numbers, where None is not one."""

    def filled(value: Any) -> Any:
        return list(map(filled, value)) if isinstance(value, list) else nan if value is None else value

    return torch.tensor(filled(values), dtype=torch.double)

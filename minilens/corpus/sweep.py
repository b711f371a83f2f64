"""Sums over a corpus: shard by shard into a folder, by any number of processes.

What is summed is the reader's affair: what the logit lens says (measure.py), or what a learned lens is fitted to. The
tallies of a shard are a file of the folder, and what is there is not read again. A process takes a shard by locking
a file beside it; the system takes the lock away when the process ends, however it ends. Processes know of each other
through the folder alone, but for the counts of tokens, which torch's distributed processes take together. The sum over
all shards is taken in the order of their names, which follow from what the files hold: who did what does not matter.

Whoever counts the tokens of a shard notes a digest of its texts. With other texts it is not read, and it says itself
what texts and what sweep it is of: a file that changes, under whatever size and time, never gets into the sums.

The last bits of a product depend on the processor, on the libraries that take it, on how many threads it is spread over
and on what else is in the batch. So a folder is for machines of one kind, unless its user says otherwise.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
import torch.distributed as dist
from jaxtyping import Int, UInt8
from torch import Tensor

from ..checkpoint.tokenizer import Tokenizer
from ..model import Model
from .documents import TextFile
from .hub_files import HubFile
from .machine import machine
from .shared_files import (
    as_tensor,
    claim,
    compare,
    digest,
    explained,
    locked,
    make,
    read_arrays,
    write_arrays,
)

F_co = TypeVar("F_co", covariant=True)


class Counted(NamedTuple):
    """What the files hold."""

    shards: Int[Tensor, "file"]
    texts: UInt8[Tensor, "shard 32"]  # a digest of the documents of each
    documents: int
    empty: int  # of them, without a token
    tokens: Int[Tensor, "d_vocab"]  # how often each occurs


class Shard(NamedTuple):
    """Some documents of a file, and where their tallies are."""

    path: Path
    text: UInt8[Tensor, "32"]


@runtime_checkable
class Reader(Protocol[F_co]):
    """What reads the documents of a sweep, and takes sums of them. CorpusLens is one.

    Its tallies are frozen dataclasses of tensors that add up: those of two parts of a corpus make that of both.
    """

    @property
    def model(self) -> Model: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def shard(self) -> int: ...  # characters of text whose sums are kept apart

    def identity(self) -> dict[str, Any]:
        """All that the sums depend on beside the model, the tokenizer and the files, as JSON can hold it."""
        ...

    def encode(self, document: str) -> Int[Tensor, "pos"]:
        """A document's tokens. Raises ValueError for what it cannot read."""
        ...

    def empty(self) -> list[Any]:
        """The tallies of no text."""
        ...

    def tallies(self, documents: Sequence[Int[Tensor, "_"]], counts: Int[Tensor, "d_vocab"]) -> list[Any]:
        """The tallies of these documents' tokens. counts: how often each token occurs in the corpus."""
        ...

    def n_tokens(self, tallies: Sequence[Any]) -> int:
        """How many tokens were read for them."""
        ...

    def findings(self, files: tuple[TextFile, ...], counted: Counted, tallies: list[Any]) -> F_co:
        """What the tallies of the whole corpus say."""
        ...


class Sweep(Generic[F_co]):
    """A reader over some files, and the folder of its results, which is made or gone on with.

    any_machine: also go on with a sweep that began on another kind of machine; the shards then agree within rounding.
    Raises ValueError for the same text twice, and for a folder that holds something else. What its methods cannot read
    or write is a ValueError, too, and so is a file that changes under their hands.
    """

    def __init__(
        self, lens: Reader[F_co], files: Sequence[TextFile], folder: Path, *, any_machine: bool = False
    ) -> None:
        self.lens, self.folder, self.any_machine = lens, folder, any_machine
        self.files = sorted(files, key=lambda file: file.digest)
        for one, other in pairwise(self.files):
            if one.digest == other.digest:
                raise ValueError(f"{one.path} and {other.path} hold the same text: name it once")
        self.n_machines = 0  # kinds of them that made the shards of the last sum
        self._counted: Counted | None = None
        make(self.folder)
        with explained(self.folder, "give another folder"):
            others = [name for name in os.listdir(self.folder) if not _is_of_a_beginning(name)]
        # Looked for after them: another worker that begins just now makes this one first, so it is never missed.
        if (self.folder / "sweep.json").exists():
            self._compare()
        elif others:
            raise ValueError(f"{self.folder} is there, and no sweep has begun in it: give another folder")

    def count(self, worker: int = 0, n_workers: int = 1) -> Counted:
        """Tokens and documents of all files; with others of torch's distributed processes, each takes its share."""
        path, d_vocab = self.folder / "counts.npz", self.lens.model.W_U.shape[1]
        if self._counted:
            return self._counted
        is_there = torch.tensor(int(path.exists()))
        if n_workers > 1:  # another run may be writing it just now: the first worker says
            is_there = self._together(is_there, lambda values: dist.broadcast(values, 0))
        if is_there:
            self._compare()  # another sweep may have begun here since this one looked
            shards, texts, total = self._read_counts(path)
        else:
            shards = torch.zeros(len(self.files), dtype=torch.long)
            total = torch.zeros(2 + d_vocab, dtype=torch.long)  # documents, empty ones, and each token
            found = []
            for n, file in enumerate(self.files):
                for number, documents in enumerate(file.shards(self.lens.shard)):
                    shards[n] += 1
                    found.append(as_tensor(digest(tuple(documents))))
                    if number % n_workers == worker:
                        tokens = self._encoded(file, documents)
                        total[0] += len(tokens)
                        total[1] += sum(len(each) == 0 for each in tokens)
                        total[2:] += torch.cat(tokens).bincount(minlength=d_vocab)
            texts = torch.stack(found) if found else torch.zeros(0, 32, dtype=torch.uint8)
            if n_workers > 1:
                total = self._together(total, dist.all_reduce)
            if total[2:].any():
                self._claim()
                with locked(path, wait=True):
                    write_arrays(path, {"shards": shards, "texts": texts, "total": total, "of": self._begun})
        if not total[2:].any():
            raise ValueError("there is nothing to read: the files hold no tokens")
        make(self.folder / "shards")
        self._counted = Counted(shards, texts, int(total[0]), int(total[1]), total[2:])
        return self._counted

    def _read_counts(self, path: Path) -> tuple[Tensor, Tensor, Tensor]:
        """The shards of each file, a digest of each shard's documents, and the counts, as `count` wrote them."""
        n_files, n_total = len(self.files), 2 + self.lens.model.W_U.shape[1]
        # Each document has a character at least, for its end, and a long one is several.
        most = torch.tensor([2 * (file.longest + 1) // self.lens.shard + 1 for file in self.files])
        with read_arrays(path, 8 * (n_files + n_total) + 32 * int(most.sum())) as found:
            shards, texts, total = found["shards"], found["texts"], found["total"]
            if (
                (shards.dtype, texts.dtype, total.dtype) != (torch.long, torch.uint8, torch.long)
                or (shards.shape, total.shape) != ((n_files,), (n_total,))
                or not (min(shards.min(), total.min()) >= 0 and (shards <= most).all())
                or texts.shape != (int(shards.sum()), 32)
                or not torch.equal(found["of"], self._begun)
            ):
                raise ValueError("it is of other files")
        return shards, texts, total

    def _together(self, values: Tensor, share: Callable[[Tensor], Any]) -> Tensor:
        """The values, shared by torch's distributed processes."""
        on_device = values.to(self.lens.model.W_U.device)
        try:
            share(on_device)
        except RuntimeError as error:  # of gloo, nccl or torch, several lines long
            raise ValueError("another worker has stopped, or cannot be reached: run again") from error
        return on_device.cpu()

    def run(self) -> Iterator[int]:
        """Read what is not there, shard by shard; after each, how many tokens it had.

        Shards that another process is at are left to the end, when each is waited for.
        """
        counts = self.count().tokens
        for wait in (False, True):
            for shard, file, documents in self._missing():
                with locked(shard.path, wait) as is_ours:
                    if is_ours and not shard.path.exists():
                        if not torch.equal(as_tensor(digest(tuple(documents))), shard.text):
                            raise file.changed()
                        tokens = self._encoded(file, documents)
                        tallies = self.lens.tallies(tokens, counts)
                        arrays = {f"{n}.{name}": a for n, each in enumerate(tallies) for name, a in vars(each).items()}
                        about = {"of": self._begun, "text": shard.text, "machine": self._machine}
                        write_arrays(shard.path, arrays | about)
                        yield sum(map(len, tokens))

    def n_done(self) -> int:
        """How many shards are there."""
        return sum(name.endswith(".npz") for name in os.listdir(self.folder / "shards"))

    def findings(self) -> F_co:
        """What all shards say together. Raises ValueError as `total` does."""
        whole = self.total()
        n_tokens, n_counted = self.lens.n_tokens(whole), int(self.count().tokens.sum())
        if n_tokens != n_counted:
            raise ValueError(
                f"the shards of {self.folder} hold {n_tokens} tokens, and its counts.npz {n_counted}: give another "
                "folder"
            )
        return self.lens.findings(tuple(self.files), self.count(), whole)

    def total(self, of: Callable[[int], bool] = lambda shard: True) -> list[Any]:
        """The tallies of all shards added up, or of those of some numbers, counted from 0 in the order of the sum.

        Raises ValueError where a shard is missing, or cannot be read, or is of other texts.
        """
        whole = self.lens.empty()
        most = sum(array.nbytes for each in whole for array in vars(each).values())
        every, machines = (shard for _, shards in self._shards() for shard in shards), set()
        for shard in (shard for number, shard in enumerate(every) if of(number)):
            with read_arrays(shard.path, most) as found:
                if not (torch.equal(found["of"], self._begun) and torch.equal(found["text"], shard.text)):
                    raise ValueError("it is of another sweep, or of other texts")
                machines.add(bytes(found["machine"].tolist()))
                for n, so_far in enumerate(whole):
                    part = {name: found[f"{n}.{name}"] for name in vars(so_far)}
                    if any((v.shape, v.dtype) != (part[k].shape, part[k].dtype) for k, v in vars(so_far).items()):
                        raise ValueError("its arrays are of other shapes")
                    if not all(array.isfinite().all() for array in part.values()):
                        raise ValueError("its sums are not finite")
                    whole[n] = so_far + type(so_far)(**part)
        self.n_machines = len(machines)
        return whole

    def _claim(self) -> None:
        """Make the folder this sweep's, now that its texts are known to be readable; another may just have done so."""
        claim(self.folder / "sweep.json", self._identity)
        self._compare()

    def _compare(self) -> None:
        """Refuse a folder that is another sweep's, or another kind of machine's."""
        kind = machine(self.lens.model.W_U.device)
        raw = compare(self.folder / "sweep.json", "sweep", self._identity, kind, self.any_machine)
        self._begun, self._machine = as_tensor(digest(raw)), as_tensor(digest(json.dumps(kind)))

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """All that the numbers depend on."""
        from ..version import __version__

        lens, commits = self.lens, dict(file.path.pin for file in self.files if isinstance(file.path, HubFile))
        return {
            "minilens": __version__,
            **machine(lens.model.W_U.device),
            "model": digest(lens.model),
            "tokenizer": digest(lens.tokenizer.state()),
            "files": [file.digest for file in self.files],
            "json": [file.is_json for file in self.files],
            "lines": [file.lines for file in self.files],
            "key": [file.key for file in self.files],
            **({"hub": commits} if commits else {}),
            **lens.identity(),
        }

    def _shards(self) -> Iterator[tuple[TextFile, list[Shard]]]:
        """Those of each file, in the order in which they are summed."""
        counted = self.count()
        for file, texts in zip(self.files, torch.split(counted.texts, counted.shards.tolist()), strict=True):
            names = [f"{file.digest[:16]}-{number:07}.npz" for number in range(len(texts))]
            yield file, [Shard(self.folder / "shards" / name, text) for name, text in zip(names, texts, strict=True)]

    def _missing(self) -> Iterator[tuple[Shard, TextFile, list[str]]]:
        """Those that are not there, with their documents, or with others if the file has changed."""
        for file, shards in self._shards():
            if not all(shard.path.exists() for shard in shards):
                for shard, documents in zip(shards, file.shards(self.lens.shard), strict=False):
                    if not shard.path.exists():
                        yield shard, file, documents

    def _encoded(self, file: TextFile, documents: Sequence[str]) -> list[Tensor]:
        nothing = self.lens.encode("")  # there may be millions of blank lines
        try:
            return [self.lens.encode(document) if document else nothing for document in documents]
        except ValueError as error:
            raise ValueError(f"{file.path} cannot be read: {error}") from error


def _is_of_a_beginning(name: str) -> bool:
    """Whether a file may be what another worker makes of a sweep that it has not quite begun."""
    return name in ("shards", "sweep.lock") or name.startswith("sweep.json")

"""Fitting a lens to a model on files of text: the sums of a sweep, and what follows from them.

The folder of a fit holds `sums`, the sweep of the closed form; for `tuned` also `steps`, a sweep and its maps for each
step; and at the end lens.safetensors and lens.json. Whoever runs the same fit on the same folder goes on with it, after
a kill or beside others: shards are shared as in any sweep, and all find the same lens.

Every eighth shard is left out while something is chosen: the ridge, and the step of `tuned` that is kept. The sums of
the other shards are then added for the closed form. The shards of even and of odd number give two more fits, the twins:
how far they are apart is how far chance moves the lens.
"""

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from ..arguments import quoted
from ..checkpoint.tokenizer import Tokenizer
from ..corpus.documents import TextFile
from ..corpus.measure import CorpusLens, Plan
from ..corpus.named import Names, text_files
from ..corpus.shared_files import as_tensor, digest, locked, read_arrays, write_arrays
from ..corpus.sweep import Counted, Sweep
from ..lens import residuals
from ..model import Model
from ..ops import upcast
from ..vocab import not_finite
from .affine import RECORD, LearnedLens, RowMap, Subject
from .moments import Map, Moments, MomentSums, best_map, choose_ridge, constant_map, likeness, r_squared
from .tuned import Point, SlopeSums, next_map, whitening

FITTED = ("mean", "affine", "tuned")  # the kinds that this module fits
FOLDS = 8  # every eighth shard is left out
SHARDS = 24  # how many a fit cuts its text into, more or less
SHORTEST = 2**14  # characters of a shard
PATIENCE = 3  # steps of `tuned` without a better one for any row, after which it ends


@dataclass(frozen=True)
class Recipe:
    """What is fitted, and how. Raises ValueError for what cannot be.

    kind: "mean", "affine" or "tuned".
    decoder, norm, sites: as in `Lens`; every row but the last gets a map.
    window, prefix, batch: as in `Plan`.
    skip: how many tokens at the start of a window, the prefix among them, are left out: the first is an outlier in many
    models.
    ridge: how strongly A is pulled towards the identity, as a part of the mean variance of h; by default it is chosen.
    steps: how many `tuned` takes at most.
    shard: characters of text whose sums are kept apart; by default about a 24th of the text.
    """

    kind: str = "affine"
    decoder: str = "final"
    norm: str = "final"
    sites: tuple[str, ...] = ("resid_post",)
    window: int | None = None
    prefix: str = ""
    skip: int = 1
    ridge: float | None = None
    steps: int = 12
    batch: int | None = None
    shard: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in FITTED:
            raise ValueError(f"a lens of the kind {quoted(self.kind)} is none that fit knows; {', '.join(FITTED)} are")
        if self.kind == "tuned" and (self.decoder, self.norm) != ("final", "final"):
            raise ValueError('a tuned lens is for the decoder "final" and the norm "final"')
        if self.skip < 0:
            raise ValueError(f"skip must be at least 0; it is {self.skip}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1; it is {self.steps}")
        if self.ridge is not None and not 0 <= self.ridge < inf:
            raise ValueError(f"the ridge must be a number from 0 up; it is {self.ridge}")
        if self.ridge is not None and self.kind == "mean":
            raise ValueError('a ridge is for the kinds "affine" and "tuned"; "mean" has none')

    def plan(self, files: Iterable[TextFile]) -> Plan:
        shard = max(SHORTEST, sum(file.longest for file in files) // SHARDS) if self.shard is None else self.shard
        return Plan((self.decoder,), self.norm, self.sites, self.window, self.prefix, self.batch, shard)


@runtime_checkable
class Summed(Protocol):
    """What a fit sums over the tokens of a corpus: MomentSums and SlopeSums."""

    def identity(self) -> dict[str, Any]: ...
    def empty(self, n_rows: int, d_model: int) -> Any: ...
    def add(self, so_far: Any, rows: Any, y: Any) -> None: ...


class Totals(NamedTuple):
    """A finished sweep of a fit."""

    files: tuple[TextFile, ...]
    counted: Counted
    whole: Any  # the sums of all shards


class FitReader:
    """What a sweep of a fit reads: the residuals of all rows but the last, and those of the last."""

    def __init__(self, lens: CorpusLens, skip: int, summed: Summed) -> None:
        self.lens, self.skip, self.summed = lens, skip, summed
        self.model, self.tokenizer, self.shard = lens.model, lens.tokenizer, lens.shard
        self.encode = lens.encode

    def identity(self) -> dict[str, Any]:
        return {**self.lens.identity(), "skip": self.skip, **self.summed.identity()}

    def empty(self) -> list[Any]:
        (sites,) = self.lens.sites.values()
        return [self.summed.empty(len(sites) - 1, self.model.W_U.shape[0])]

    def tallies(self, documents: Sequence[Int[Tensor, "_"]], counts: Int[Tensor, "d_vocab"]) -> list[Any]:
        device = self.model.W_U.device
        (so_far,) = (_moved(each, device) for each in self.empty())
        for batch in self.lens.batches(documents):
            (readout,) = self.lens.readouts(batch)
            kept = (batch.is_text & (torch.arange(batch.tokens.shape[1]) >= self.skip)).to(device)
            *rows, y = (upcast(resid)[kept] for _, resid in residuals(self.model, readout.embed, readout.sites))
            so_far.tokens.add_(int(batch.is_text.sum()))
            self.summed.add(so_far, rows, y)
        if not all(part.isfinite().all() for part in vars(so_far).values()):
            raise not_finite("the residuals", self.model.W_U.dtype)
        return [_moved(so_far, torch.device("cpu"))]

    def n_tokens(self, tallies: Sequence[Any]) -> int:
        return int(tallies[0].tokens)

    def findings(self, files: tuple[TextFile, ...], counted: Counted, tallies: list[Any]) -> Totals:
        return Totals(files, counted, tallies[0])


def _moved(sums: Any, device: torch.device) -> Any:
    return type(sums)(**{name: part.to(device) for name, part in vars(sums).items()})


def read_all(sweep: Sweep[Any]) -> None:
    """Read all of a sweep."""
    for _ in sweep.run():
        pass


def fit(
    model: Model,
    tokenizer: Tokenizer,
    files: Names,
    folder: str | PathLike[str],
    *,
    any_machine: bool = False,
    overwrite: bool = False,
    read: Callable[[Sweep[Any]], None] = read_all,
    **options: Any,
) -> LearnedLens:
    """Fit a lens to a model on files of text, and write it into a folder, in which the work can be gone on with.

    files: text with a line of <|endoftext|> after each document, .jsonl or .parquet; compressed or not, here or on the
    Hub; or a `TextFile`.
    options: those of `Recipe`: kind, decoder, norm, sites, window, prefix, skip, ridge, steps, batch, shard.
    any_machine: also go on with what another kind of machine began.
    overwrite: replace another lens that is there.
    read: what reads each sweep to its end; a caller may show there how far it is.

    Raises ValueError for options that no fit has, for text that cannot be read or is too little, and for a folder that
    holds something else.
    """
    texts = text_files(files, Path(folder))
    return Fit(model, tokenizer, texts, Path(folder), Recipe(**options), any_machine, overwrite, read).lens()


class Fit:
    """One fit in its folder."""

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        files: Sequence[TextFile],
        folder: Path,
        recipe: Recipe,
        any_machine: bool,
        overwrite: bool,
        read: Callable[[Sweep[Any]], None],
    ) -> None:
        if (folder / RECORD).exists() and not (folder / "sums").exists() and not overwrite:
            raise ValueError(f"{folder} holds a lens already: give another folder, or --overwrite")
        self.model, self.files, self.folder, self.recipe = model, files, folder, recipe
        self.any_machine, self.overwrite, self.read = any_machine, overwrite, read
        self.source = CorpusLens(model, tokenizer, recipe.plan(files))
        ((*self.sites, _),) = self.source.sites.values()
        if not self.sites:
            raise ValueError("there is nothing to fit: the lens has no row but the model's own output")

    def lens(self) -> LearnedLens:
        """Read what is not there yet, fit, and write the lens."""
        return self.lenses()[0]

    def lenses(self) -> tuple[LearnedLens, dict[str, LearnedLens]]:
        """The lens, and those to measure it by, which the same sums give.

        "mean" and "affine", if its kind comes after them; "twin 1" and "twin 2", each of half the shards; "wrong row",
        the lens with each row's map moved to the next; "constant", that of shuffled targets.
        """
        sweep, sums = self._swept(self.folder / "sums", MomentSums())
        n_shards = int(sums.counted.shards.sum())
        if n_shards < 2:
            raise ValueError(
                f"the text is one shard of {self.source.shard:,} characters, and one must be left out to choose by: "
                "give more text, or a smaller --shard"
            )
        self.fold = min(FOLDS, n_shards)
        left_out, rest = self._parts(sweep)
        if not left_out.n or not rest.n:
            raise ValueError(
                "the text that is left out to choose by, or the rest of it, holds no tokens: give more text"
            )
        twins = [sweep.total(lambda n, odd=odd: n % 2 == odd)[0] for odd in (0, 1)]  # type: ignore[misc]
        rows = range(len(self.sites))
        ridges = [self._ridge(rest, left_out, row) for row in rows]
        maps = [best_map(sums.whole, row, ridges[row]) for row in rows]
        tried = [best_map(rest, row, ridges[row]) for row in rows]
        made = {
            "files": sorted([file.name, file.digest] for file in sums.files),
            "documents": sums.counted.documents,
            "tokens": int(sums.whole.n),
            "window": self.source.window,
            "prefix": self.recipe.prefix,
            "skip": self.recipe.skip,
            "ridge": [None if ridge == inf else ridge for ridge in ridges],
            "left_out": {
                "tokens": int(left_out.n),
                "r_squared": [r_squared(left_out, row, tried[row]) for row in rows],
            },
            "twins": [[*likeness(*(best_map(twin, row, ridges[row]) for twin in twins))] for row in rows],
        }
        if self.recipe.kind == "tuned":
            maps, made["steps"] = self._tuned(tried, rest)
        made["departure"] = [float((T[:-1] - torch.eye(T.shape[1]).to(T)).norm()) for T in maps]
        lens = self._lens(self.recipe.kind, maps, self.folder.resolve().name, made)
        lens.save(self.folder, overwrite=self.overwrite)
        closed = {"mean": [inf] * len(rows), "affine": ridges}  # those that the kind is to do better than
        better = FITTED[: FITTED.index(self.recipe.kind)]
        others = {name: [best_map(sums.whole, row, closed[name][row]) for row in rows] for name in better}
        for n, twin in enumerate(twins, 1):
            others[f"twin {n}"] = [best_map(twin, row, ridges[row]) for row in rows]
        if len(rows) > 1:
            others["wrong row"] = [*maps[-1:], *maps[:-1]]
        others["constant"] = [constant_map(sums.whole, row) for row in rows]
        kinds = {"mean": "mean", "wrong row": self.recipe.kind}
        return lens, {name: self._lens(kinds.get(name, "affine"), of, name, {}) for name, of in others.items()}

    def _lens(self, kind: str, maps: Sequence[Map], name: str, made: dict[str, Any]) -> LearnedLens:
        of_rows = {site: RowMap.of(T[:-1], T[-1]).to(torch.float32) for site, T in zip(self.sites, maps, strict=True)}
        recipe = self.recipe
        return LearnedLens(kind, of_rows, Subject.of(self.model), recipe.decoder, recipe.norm, made, name)

    def _swept(self, folder: Path, summed: Summed) -> tuple[Sweep[Totals], Totals]:
        """A sweep of these texts that is finished, and what it found."""
        reader = FitReader(self.source, self.recipe.skip, summed)
        sweep: Sweep[Totals] = Sweep(reader, self.files, folder, any_machine=self.any_machine)
        sweep.count()
        self.read(sweep)
        return sweep, sweep.findings()

    def _parts(self, sweep: Sweep[Totals]) -> tuple[Any, Any]:
        """The sums of the shards that are left out, and of the rest."""
        (left_out,), (rest,) = (
            sweep.total(lambda n: n % self.fold == self.fold - 1),
            sweep.total(lambda n: n % self.fold != self.fold - 1),
        )
        return left_out, rest

    def _ridge(self, rest: Moments, left_out: Moments, row: int) -> float:
        if self.recipe.kind == "mean":
            return inf
        return choose_ridge(rest, left_out, row) if self.recipe.ridge is None else self.recipe.ridge

    def _tuned(self, start: Sequence[Map], rest: Moments) -> tuple[list[Map], dict[str, Any]]:
        """The maps after L-BFGS: of each row those of the step with the smallest KL on the shards that are left out.

        The maps of a step, and its sums, are files: whoever is first makes them, and its shards go after the next step.
        """
        d_model, rows = self.model.W_U.shape[0], range(len(start))
        if rest.n < d_model * (d_model + 1):
            raise ValueError(
                f"a tuned lens has {d_model * (d_model + 1):,} numbers a row, and the text gives {int(rest.n):,} "
                "tokens to find them by: give more text, or fit an affine lens"
            )
        of = as_tensor(digest((repr(replace(self.recipe, steps=1)), rest.S, rest.R)))  # more steps go on from here
        roots = [whitening(rest, row) for row in rows]
        points: list[list[Point]] = [[] for _ in rows]
        left_out: list[list[float]] = []
        while len(left_out) < self.recipe.steps:
            maps = [next_map(points[row], roots[row]) for row in rows] if left_out else [*start]
            T, sums = self._step(len(left_out), torch.stack(maps), of)
            left_out.append(sums["left_out"].tolist())
            for row in rows:
                points[row].append(Point(T[row], float(sums["kl"][row]), sums["G"][row]))
            best = torch.tensor(left_out).argmin(0).tolist()
            if len(left_out) > max(best) + PATIENCE:
                break
        of_steps = [[point.kl for point in of_row] for of_row in points]
        return [points[row][best[row]].T for row in rows], {
            "kl": [list(step) for step in zip(*of_steps, strict=True)],
            "kl_left_out": left_out,
            "best": best,
        }

    def _step(self, step: int, maps: Tensor, of: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The maps of a step and its means over the tokens, each from a file, which whoever is first makes."""
        name, most = str(self.folder / f"step-{step:02}"), 2 * maps.nbytes
        T = _kept(Path(f"{name}.maps.npz"), lambda: {"T": maps}, of, most)["T"]
        done = Path(f"{name}.sums.npz")
        if done.exists():
            return T, _kept(done, dict, of, most)
        sweep, _ = self._swept(Path(name), SlopeSums(self.model, T))

        def means() -> dict[str, Tensor]:
            left_out, rest = self._parts(sweep)
            return {"kl": rest.kl / rest.n, "G": rest.G / rest.n, "left_out": left_out.kl / left_out.n}

        found = _kept(done, means, of, most)
        if step:  # all have these sums, so nobody is at the shards of the step before
            shutil.rmtree(self.folder / f"step-{step - 1:02}", ignore_errors=True)
        return T, found


def _kept(path: Path, make: Callable[[], dict[str, Tensor]], of: Tensor, most: int) -> dict[str, Tensor]:
    """The tensors of a file, of so many bytes at most; who comes first makes them.

    Raises ValueError for a file of another fit.
    """
    with locked(path, wait=True):
        if not path.exists():
            write_arrays(path, {**make(), "of": of})
    with read_arrays(path, most) as found:
        if not torch.equal(found["of"], of):
            raise ValueError("it is of another fit")
        return {name: found[name] for name in found if name != "of"}

"""A Jacobian lens of files of text: a sweep that sums Jacobians, and the lens of its sums.

Of a corpus few texts are needed, and each takes d_model backward passes. So every shard gives some of its documents,
the first ones that are long enough, and of each the first window. Whoever runs the same fit on the same folder goes on
with it. The shards of even and of odd number are twins, and how far they are apart is how far chance moves the lens.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..arguments import whole_number
from ..checkpoint.tokenizer import Tokenizer
from ..corpus.documents import TextFile
from ..corpus.measure import CorpusLens
from ..corpus.named import Names, text_files
from ..corpus.sweep import Counted, Sweep
from ..model import Model
from .affine import RECORD, LearnedLens
from .fit import SHARDS, Recipe, Totals, read_all
from .jacobian import SKIP, JacobianSums, alignment, jacobian_lens, jacobian_sums, no_jacobians

WINDOW = 128  # tokens of a text, as in the reference (anthropics/jacobian-lens, fitting.py)


class JacobianReader:
    """What a sweep of Jacobians reads.

    texts: of each shard, at most. skip, cotangents, seed: as in `jacobian_sums`.
    """

    def __init__(self, lens: CorpusLens, texts: int, skip: int, cotangents: int | None, seed: int) -> None:
        self.lens, self.texts = lens, texts
        self.how: dict[str, Any] = {"skip": skip, "cotangents": cotangents, "seed": seed}
        self.model, self.tokenizer, self.shard, self.encode = lens.model, lens.tokenizer, lens.shard, lens.encode
        ((self.decoder, sites),) = lens.sites.items()
        self.n_rows = len(sites) - 1

    @property
    def options(self) -> dict[str, Any]:
        """Those of the lens."""
        return {"decoder": self.decoder, "sites": self.lens.plan.sites}

    def identity(self) -> dict[str, Any]:
        return {**self.lens.identity(), "sums": "jacobians", "texts": self.texts, **self.how}

    def empty(self) -> list[JacobianSums]:
        return [no_jacobians(self.n_rows, len(self.model.W_U))]

    def tallies(self, documents: Sequence[Int[Tensor, "_"]], counts: Int[Tensor, "d_vocab"]) -> list[JacobianSums]:
        windows = (torch.cat([self.lens.prefix, tokens])[None, : self.lens.window] for tokens in documents)
        chosen = [tokens for tokens in windows if tokens.shape[1] > self.how["skip"] + 1][: self.texts]
        device = self.model.W_U.device
        sums = jacobian_sums(self.model, [tokens.to(device) for tokens in chosen], **self.how, **self.options)
        return [replace(sums, tokens=torch.tensor(sum(map(len, documents))))]

    def n_tokens(self, tallies: Sequence[JacobianSums]) -> int:
        return int(tallies[0].tokens)

    def findings(self, files: tuple[TextFile, ...], counted: Counted, tallies: list[Any]) -> Totals:
        return Totals(files, counted, tallies[0])


def fit_jacobian(
    model: Model,
    tokenizer: Tokenizer,
    files: Names,
    folder: str | PathLike[str],
    *,
    texts: int = 100,
    window: int | None = None,
    prefix: str = "",
    decoder: str = "final",
    sites: Sequence[str] = ("resid_post",),
    skip: int = SKIP,
    cotangents: int | None = None,
    seed: int = 0,
    shard: int | None = None,
    any_machine: bool = False,
    overwrite: bool = False,
    read: Callable[[Sweep[Any]], None] = read_all,
) -> LearnedLens:
    """The Jacobian lens of a model on files of text, written into a folder, in which the work can be gone on with.

    texts: of how many documents, more or less, a Jacobian is taken; each shard has its share.
    window: tokens of each, the prefix among them; by default 128, or the model's context where it is less.
    prefix: put before each, such as a control code.
    decoder, sites: as in `Lens`; every row but the last gets a map.
    skip, cotangents, seed: as in `jacobian_sums`.
    shard: characters of text whose sums are kept apart; by default about a 24th of the text.
    any_machine, overwrite, read: as in `fit`.

    Raises ValueError as `fit` and `jacobian_sums` do.
    """
    found = text_files(files, Path(folder))
    if (texts := whole_number("texts", texts)) < 1:
        raise ValueError(f"texts must be at least 1; it is {texts}")
    window = min(WINDOW, model.config.n_ctx) if window is None else window
    plan = Recipe(decoder=decoder, sites=tuple(sites), window=window, prefix=prefix, shard=shard).plan(found)
    reader = JacobianReader(CorpusLens(model, tokenizer, plan), math.ceil(texts / SHARDS), skip, cotangents, seed)
    if not reader.n_rows:
        raise ValueError("there is nothing to fit: the lens has no row but the model's own output")
    folder = Path(folder)
    if (folder / RECORD).exists() and not (folder / "sums").exists() and not overwrite:
        raise ValueError(f"{folder} holds a lens already: give another folder, or --overwrite")
    sweep: Sweep[Totals] = Sweep(reader, found, folder / "sums", any_machine=any_machine)
    sweep.count()
    read(sweep)
    totals = sweep.findings()
    twins = [sweep.total(lambda n, odd=odd: n % 2 == odd)[0] for odd in (0, 1)]  # type: ignore[misc]
    made = {
        "files": sorted([file.name, file.digest] for file in totals.files),
        "documents": totals.counted.documents,
        "tokens": int(totals.whole.tokens),
        "window": window,
        "prefix": prefix,
        **reader.how,
        "twins": alignment(*twins).tolist() if all(twin.texts for twin in twins) else None,
        "departure": totals.whole.weight.square().sum((-2, -1)).sqrt().tolist(),
    }
    lens = replace(jacobian_lens(totals.whole, model, made, **reader.options), name=folder.name)
    lens.save(folder, overwrite=overwrite)
    return lens

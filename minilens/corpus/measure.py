"""The logit lens on documents: what each decoder's rows say of all their tokens, summed up."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from ..arguments import check_numbers
from ..checkpoint.tokenizer import Tokenizer
from ..device import at_once, check_precision
from ..lens import Lens, Readout, residuals
from ..model import Model
from ..ops import upcast
from ..vocab import vocab_stats
from .batches import Batch, batches, windows
from .documents import SHARD, TextFile
from .shared_files import digest
from .sweep import Counted
from .tally import (
    FREQUENCIES,
    NUMBERS,
    RANKS,
    SPLITS,
    Group,
    Means,
    Observations,
    Tally,
    differences,
    empty,
    groups,
    no_differences,
    tally,
)

AT_ONCE = 2**13  # tokens whose sums are taken together, or those of one document
STATS = frozenset(NUMBERS) - {"cross_entropy"}  # the others come of a token's standing


@dataclass(frozen=True)
class Plan:
    """How documents are read: with the model, the device and the number of threads, all that the numbers depend on."""

    decoders: tuple[str, ...] = ("final",)  # as in `logit_lens`, and so are norm and sites
    norm: str = "final"
    sites: tuple[str, ...] = ("resid_post",)
    window: int | None = None  # tokens that the model sees together, the prefix among them; by default its context
    prefix: str = ""  # put before every window, such as a control code; it is not counted
    batch: int | None = None  # tokens that are read at once; by default what suits the device, on the CPU 1024
    shard: int = SHARD  # characters of text whose sums are kept apart
    precision: str = "full"  # of the products with the unembedding, as in `logit_lens`


class Decoded(NamedTuple):
    """What one decoder's rows say of a corpus."""

    labels: tuple[str, ...]  # of the rows, as in LensTable
    layers: tuple[int, ...]
    tally: Tally
    base: str = ""  # of a lens with a transport: the decoder without it that its values are compared with
    above: Means | None = None  # how far they lie above that one's


@dataclass(frozen=True, eq=False)
class Findings:
    """What the lens says of a corpus."""

    lens: "CorpusLens"
    files: tuple[TextFile, ...]
    counted: Counted
    groups: tuple[Group, ...]
    decoders: dict[str, Decoded]


class CorpusLens:
    """A plan for one model. Raises ValueError where they do not suit each other.

    others: lenses to be read beside the plan's decoders, by their names, such as those with a learned transport. Each
    is compared, token by token, with the plan's first decoder that has the same rows. A sweep knows a transport by its
    parts, so it must be a dataclass.
    """

    def __init__(
        self, model: Model, tokenizer: Tokenizer, plan: Plan, others: Mapping[str, Lens] | None = None
    ) -> None:
        for name, value in (("batch", plan.batch), ("shard", plan.shard)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; it is {value}")
        if not plan.decoders or len(set(plan.decoders)) < len(plan.decoders):
            raise ValueError(f"name each decoder once; got {', '.join(plan.decoders) or 'none'}")
        check_numbers(model)
        check_precision(plan.precision, model.W_U.device)
        self.batch = at_once(model.W_U.device).tokens if plan.batch is None else plan.batch
        self.model, self.tokenizer, self.plan = model, tokenizer, plan
        self.window = model.config.n_ctx if plan.window is None else plan.window
        self.prefix = tokenizer.encode(plan.prefix)[0]
        if not len(self.prefix) < self.window <= model.config.n_ctx:
            n, n_ctx = len(self.prefix), model.config.n_ctx
            raise ValueError(
                f"the window must be of {n + 1} to {n_ctx} tokens, the model's context"
                f"{f', for {n} are the prefix' if n else ''}; it is {self.window}"
            )
        self.groups = groups(self.window - len(self.prefix))
        self.others = dict(others or {})
        for name, lens in self.others.items():
            if name in plan.decoders:
                raise ValueError(f'"{name}" is the name of a decoder: give the lens another one')
            if not is_dataclass(lens.transport):
                raise ValueError(f'the transport of the lens "{name}" must be a dataclass, whose parts tell what it is')
        self.lenses = {decoder: Lens(decoder, plan.norm, sites=plan.sites) for decoder in plan.decoders} | self.others
        one = torch.zeros(1, 1, dtype=torch.long, device=model.W_U.device)
        found = {name: lens.of(model, one) for name, lens in self.lenses.items()}
        self.labels = {name: readout.labels for name, readout in found.items()}  # of the rows, as in LensTable
        self.sites = {name: readout.sites for name, readout in found.items()}
        self.layers = {name: tuple(site.layer for site in sites) for name, sites in self.sites.items()}
        self.bases = {name: self._base(name) for name in self.others}

    def _base(self, name: str) -> str:
        """The plan's decoder that a lens beside them is compared with."""
        for decoder in self.plan.decoders:
            if self.labels[decoder] == self.labels[name] and self.lenses[name].decoder == decoder:
                return decoder
        raise ValueError(
            f'the lens "{name}" is for the decoder "{self.lenses[name].decoder}", which is not among those read: '
            f"{', '.join(self.plan.decoders)}"
        )

    @property
    def shard(self) -> int:
        return self.plan.shard

    def identity(self) -> dict[str, Any]:
        """All that the numbers depend on beside the model, the tokenizer and the files."""
        plan = self.plan
        others = {"lenses": {name: digest(lens) for name, lens in self.others.items()}} if self.others else {}
        return {
            "decoder": list(plan.decoders),
            "norm": plan.norm,
            "sites": list(plan.sites),
            "window": self.window,
            "prefix": self.prefix.tolist(),
            "batch": self.batch,
            "shard": plan.shard,
            **({} if plan.precision == "full" else {"precision": plan.precision}),
            **others,
        }

    def encode(self, document: str) -> Int[Tensor, "pos"]:
        """A document's tokens. Raises ValueError for what is no text, and for tokens that the model does not have."""
        tokens = self.tokenizer.encode(document)[0]
        d_vocab = self.model.W_U.shape[1]
        if len(tokens) and int(tokens.max()) >= d_vocab:
            raise ValueError(f"token id {int(tokens.max())} is out of range: the model's ids go to {d_vocab - 1}")
        return tokens

    def batches(self, documents: Sequence[Int[Tensor, "_"]]) -> Iterator[Batch]:
        """The documents as the model reads them."""
        return batches(windows(documents, self.window - len(self.prefix)), self.prefix, self.batch)

    def empty(self) -> list[Means]:
        """The tallies of no text."""
        n_groups = len(self.groups)
        return [
            *(empty(n_groups, len(labels)) for labels in self.labels.values()),
            *(no_differences(n_groups, len(self.labels[name])) for name in self.others),
        ]

    def n_tokens(self, tallies: Sequence[Means]) -> int:
        return int(tallies[0].tokens[0, 0])

    def findings(self, files: tuple[TextFile, ...], counted: Counted, tallies: list[Any]) -> Findings:
        """What the tallies of a whole corpus say."""
        own, above = tallies[: len(self.lenses)], dict(zip(self.others, tallies[len(self.lenses) :], strict=True))
        decoders = {
            name: Decoded(self.labels[name], self.layers[name], each, self.bases.get(name, ""), above.get(name))
            for name, each in zip(self.lenses, own, strict=True)
        }
        return Findings(self, files, counted, self.groups, decoders)

    def tallies(self, documents: Sequence[Int[Tensor, "_"]], counts: Int[Tensor, "d_vocab"]) -> list[Means]:
        """The tally of each decoder, and the differences of each lens beside them.

        counts: how often each token occurs in the corpus, for the groups of frequency.
        """
        n, end, numbers = sum(map(len, documents)), 0, upcast(self.model.W_U[:0])
        # All room is taken first: results that lay between what batches take and free would leave the heap in pieces.
        # It is on the model's device, where results stay until all are there.
        observed = [
            Observations(
                numbers.new_empty(len(NUMBERS), len(labels), n),
                numbers.new_empty(len(RANKS), len(labels), n, dtype=torch.long),
                numbers.new_empty(len(labels), n),
            )
            for labels in self.labels.values()
        ]
        group, document = torch.empty(len(SPLITS), n, dtype=torch.long), torch.empty(n, dtype=torch.long)
        for batch in self.batches(documents):
            here = slice(end, end := end + len(batch.next))
            group[:, here], document[here] = self._groups(batch, counts), batch.document
            for whole, part in zip(observed, self._observations(batch), strict=True):
                for values, found in zip(whole, part, strict=True):
                    values[..., here] = found
        on_cpu = [Observations(*(each.cpu() for each in of)) for of in observed]
        return self._summed(dict(zip(self.lenses, on_cpu, strict=True)), group, document)

    def _summed(
        self, observed: dict[str, Observations], group: Int[Tensor, "split token"], document: Int[Tensor, "token"]
    ) -> list[Means]:
        """The tallies of all these documents, some at a time: what is made of a number takes much more room than it."""
        so_far, n_groups = self.empty(), len(self.groups)
        turn = document.bincount().cumsum(0)[document] // AT_ONCE
        for n in sorted({*turn.tolist()}):
            some = (turn == n).nonzero()[:, 0]
            here = {name: Observations(*(each[..., some] for each in of)) for name, of in observed.items()}
            where = group[:, some], document[some], n_groups
            found = [
                *(tally(each, *where) for each in here.values()),
                *(differences(here[name], here[base], *where) for name, base in self.bases.items()),
            ]
            so_far = [one + other for one, other in zip(so_far, found, strict=True)]
        return so_far

    def readouts(self, batch: Batch) -> list[Readout]:
        """Every lens on a batch."""
        tokens = batch.tokens.to(self.model.W_U.device)
        return [lens.of(self.model, tokens) for lens in self.lenses.values()]

    def _observations(self, batch: Batch) -> list[Observations]:
        """What each decoder says; the blocks of the model run once for all."""
        lenses = self.readouts(batch)
        embed, W_U, b_U = lenses[0].embed, self.model.W_U, self.model.b_U
        at = batch.is_text.flatten().nonzero()[:, 0].to(embed.device)  # a mask there would have the device waited for
        read = [upcast(embed.new_empty(len(lens.sites), len(batch.next), embed.shape[-1])) for lens in lenses]
        for site, resid in residuals(self.model, embed, {site for lens in lenses for site in lens.sites}):
            for lens, x in zip(lenses, read, strict=True):
                if site in lens.sites:
                    reader, decoded = lens.read(site, resid)
                    x[lens.sites.index(site)] = reader.final_norm(decoded).flatten(0, 1)[at]
        asked: dict[Hashable, Tensor] = {
            "next": batch.next.clamp(min=0).to(embed.device),
            "input": batch.tokens[batch.is_text].to(embed.device),
        }
        observed = []
        for lens, x in zip(lenses, read, strict=True):
            found = vocab_stats(x, W_U, b_U, asked, k=1, stats=STATS, precision=self.plan.precision)
            found.check_finite(lens.labels, embed.dtype)
            numbers = {**found.stats, "cross_entropy": -found.tokens["next"].logprob}
            observed.append(
                Observations(
                    torch.stack([numbers[name] for name in NUMBERS]),
                    torch.stack([of_token.rank for of_token in found.tokens.values()]),
                    found.top.prob[..., 0],
                )
            )
        return observed

    def _groups(self, batch: Batch, counts: Tensor) -> Int[Tensor, "split token"]:
        """The groups of each token: all, that of its place, and that of the true next token's frequency."""
        splits = [group.split for group in self.groups]
        place = (batch.place + 0.5).log2().floor().long() + 1  # 0, 1, 2 to 3, 4 to 7 ...
        share = counts[batch.next.clamp(min=0)].double() / counts.sum()
        rate = (share < torch.tensor(FREQUENCIES, dtype=torch.double)[:, None]).sum(0) + splits.index("frequency")
        return torch.stack(
            [torch.zeros_like(place), place + splits.index("position"), rate.masked_fill(batch.next < 0, -1)]
        )

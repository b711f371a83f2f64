"""The logit lens on documents: what each decoder's rows say of all their tokens, summed up."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from ..arguments import check_numbers
from ..checkpoint.tokenizer import Tokenizer
from ..lens import Lens, Readout, residuals
from ..model import Model
from ..ops import upcast
from ..vocab import vocab_stats
from .batches import Batch, batches, windows
from .documents import SHARD
from .tally import FREQUENCIES, NUMBERS, RANKS, SPLITS, Observations, Tally, empty, groups, tally

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
    batch: int = 1024  # tokens that are read at once
    shard: int = SHARD  # characters of text whose sums are kept apart


class CorpusLens:
    """A plan for one model. Raises ValueError where they do not suit each other."""

    def __init__(self, model: Model, tokenizer: Tokenizer, plan: Plan) -> None:
        for name in ("batch", "shard"):
            if getattr(plan, name) < 1:
                raise ValueError(f"{name} must be at least 1; it is {getattr(plan, name)}")
        if not plan.decoders or len(set(plan.decoders)) < len(plan.decoders):
            raise ValueError(f"name each decoder once; got {', '.join(plan.decoders) or 'none'}")
        check_numbers(model)
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
        lenses = {decoder: self._lens(decoder, torch.zeros(1, 1, dtype=torch.long)) for decoder in plan.decoders}
        self.labels = {decoder: lens.labels for decoder, lens in lenses.items()}  # of the rows, as in LensTable
        self.layers = {decoder: tuple(site.layer for site in lens.sites) for decoder, lens in lenses.items()}

    def encode(self, document: str) -> Int[Tensor, "pos"]:
        """A document's tokens. Raises ValueError for what is no text, and for tokens that the model does not have."""
        tokens = self.tokenizer.encode(document)[0]
        d_vocab = self.model.W_U.shape[1]
        if len(tokens) and int(tokens.max()) >= d_vocab:
            raise ValueError(f"token id {int(tokens.max())} is out of range: the model's ids go to {d_vocab - 1}")
        return tokens

    def empty(self) -> list[Tally]:
        """The tallies of no text, one for each decoder."""
        return [empty(len(self.groups), len(labels)) for labels in self.labels.values()]

    def tallies(self, documents: Sequence[Int[Tensor, "_"]], counts: Int[Tensor, "d_vocab"]) -> list[Tally]:
        """The tally of each decoder. counts: how often each token occurs in the corpus, for the groups of frequency."""
        n, end, dtype = sum(map(len, documents)), 0, upcast(self.model.W_U[:0]).dtype
        # All room is taken first: results that lay between what batches take and free would leave the heap in pieces.
        observed = [
            Observations(
                torch.empty(len(NUMBERS), len(labels), n, dtype=dtype),
                torch.empty(len(RANKS), len(labels), n, dtype=torch.long),
                torch.empty(len(labels), n, dtype=dtype),
            )
            for labels in self.labels.values()
        ]
        group, document = torch.empty(len(SPLITS), n, dtype=torch.long), torch.empty(n, dtype=torch.long)
        for batch in batches(windows(documents, self.window - len(self.prefix)), self.prefix, self.plan.batch):
            here = slice(end, end := end + len(batch.next))
            group[:, here], document[here] = self._groups(batch, counts), batch.document
            for whole, part in zip(observed, self._observations(batch), strict=True):
                for values, found in zip(whole, part, strict=True):
                    values[..., here] = found
        return [self._summed(of_decoder, group, document) for of_decoder in observed]

    def _summed(
        self, observed: Observations, group: Int[Tensor, "split token"], document: Int[Tensor, "token"]
    ) -> Tally:
        """The tally of all these documents, some at a time: what is made of a number takes much more room than it."""
        so_far = empty(len(self.groups), observed.ranks.shape[1])
        turn = document.bincount().cumsum(0)[document] // AT_ONCE
        for n in sorted({*turn.tolist()}):
            some = (turn == n).nonzero()[:, 0]
            so_far += tally(
                Observations(*(each[..., some] for each in observed)), group[:, some], document[some], len(self.groups)
            )
        return so_far

    def _lens(self, decoder: str, tokens: Tensor) -> Readout:
        lens = Lens(decoder, self.plan.norm, sites=self.plan.sites)
        return lens.of(self.model, tokens.to(self.model.W_U.device))

    def _observations(self, batch: Batch) -> list[Observations]:
        """What each decoder says; the blocks of the model run once for all."""
        lenses = [self._lens(decoder, batch.tokens) for decoder in self.plan.decoders]
        embed, W_U, b_U = lenses[0].embed, self.model.W_U, self.model.b_U
        is_text = batch.is_text.to(embed.device)
        read = [upcast(embed.new_empty(len(lens.sites), len(batch.next), embed.shape[-1])) for lens in lenses]
        for site, resid in residuals(self.model, embed, {site for lens in lenses for site in lens.sites}):
            for lens, x in zip(lenses, read, strict=True):
                if site in lens.sites:
                    reader, decoded = lens.read(site, resid)
                    x[lens.sites.index(site)] = reader.final_norm(decoded)[is_text]
        asked: dict[Hashable, Tensor] = {
            "next": batch.next.clamp(min=0).to(embed.device),
            "input": batch.tokens[batch.is_text].to(embed.device),
        }
        observed = []
        for lens, x in zip(lenses, read, strict=True):
            found = vocab_stats(x, W_U, b_U, asked, k=1, stats=STATS)
            found.check_finite(lens.labels, embed.dtype)
            numbers = {**found.stats, "cross_entropy": -found.tokens["next"].logprob}
            observed.append(
                Observations(
                    torch.stack([numbers[name] for name in NUMBERS]).cpu(),
                    torch.stack([of_token.rank for of_token in found.tokens.values()]).cpu(),
                    found.top.prob[..., 0].cpu(),
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

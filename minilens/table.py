"""What the lens found: numbers for every row and position, which the views show."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import Any, Generic, TypeVar, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .checkpoint.tokenizer import Tokenizer
from .lens import lens_of
from .model import Model
from .ops import upcast
from .shapes import Tokens
from .traces import Edit, untouched
from .vocab import KL, Standing, Top, survey

T = TypeVar("T")


class Stat(Generic[T]):
    """A statistic of a LensTable, which is there where it was asked for."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, table: "LensTable | None", owner: type) -> T:
        if table is None:
            return cast(T, self)  # of the class, as help() asks
        if self.name not in table.stats:
            how = "give logit_lens tokens to track" if self.name == "tracked" else "name it in the stats of logit_lens"
            raise AttributeError(f'this table was made without "{self.name}": {how}')
        return cast(T, table.stats[self.name])


@dataclass(frozen=True, eq=False)
class LensTable:
    """What every row of the lens says at every position: numbers on the CPU, no row of logits.

    Rows are residuals, from the stream entering block 0 ("input row") to the one whose logits are the model's own
    ("final row"). Information is in nats. The row axis comes first, then pos.
    """

    labels: tuple[str, ...]  # for each row, as in LensRow
    layers: tuple[int, ...]
    decoder: str
    norm: str
    centre: bool
    positions: Int[Tensor, "pos"]  # the places in the text that the columns show
    tokens: Int[Tensor, "pos"]  # the input token at each
    final_tokens: Int[Tensor, "pos"]  # the model's own top-1: the best token of the final row
    next_tokens: Int[Tensor, "pos"]  # the true next token; -1 at the end of the text
    track: tuple[int, ...]
    stats: dict[str, Any]  # those that were asked for, by name
    tokenizer: Tokenizer | None = None  # how the views show tokens; without one, by their ids

    top = Stat[Top]()  # the best tokens, [row, pos, k]
    final = Stat[Standing]()  # how final_tokens stand in each row, [row, pos]
    next = Stat[Standing]()  # of next_tokens; where there is none, not a number, and rank 0
    input = Stat[Standing]()  # of tokens
    tracked = Stat[Standing]()  # of track, [row, pos, token]
    entropy = Stat[Float[Tensor, "row pos"]]()
    kl_final = Stat[Float[Tensor, "row pos"]]()  # KL(final row || row)
    kl_row_final = Stat[Float[Tensor, "row pos"]]()  # KL(row || final row)
    kl_input = Stat[Float[Tensor, "row pos"]]()  # KL(input row || row)
    kl_row_input = Stat[Float[Tensor, "row pos"]]()  # KL(row || input row)
    js = Stat[Float[Tensor, "row pos"]]()  # Jensen and Shannon's divergence of row and final row
    change = Stat[Float[Tensor, "row pos"]]()  # KL(row || the row before it); in the input row not a number

    @property
    def cross_entropy(self) -> Float[Tensor, "row pos"]:
        """Of the true next token: -log p."""
        return -self.next.logprob

    @property
    def agrees(self) -> Bool[Tensor, "row pos"]:
        """Where the row's best token is the model's own (or ties with it)."""
        return self.final.rank == 1

    @property
    def settled(self) -> Int[Tensor, "pos"]:
        """The first row from which on, to the last, the best token is the model's own."""
        return len(self.labels) - self.agrees.flip(0).int().cumprod(0).sum(0)

    def columns(self, chosen: slice) -> "LensTable":
        """The table of some of its columns."""

        def cut(value: Any) -> Any:
            return type(value)(*map(cut, value)) if isinstance(value, tuple) else value[:, chosen]

        names = ("positions", "tokens", "final_tokens", "next_tokens")
        stats = {name: cut(value) for name, value in self.stats.items()}
        return replace(self, **{name: getattr(self, name)[chosen] for name in names}, stats=stats)

    def __repr__(self) -> str:
        how = f"decoder {self.decoder}, norm {self.norm}" + ", centred" * self.centre
        size, held = f"{len(self.labels)} rows and {len(self.positions)} positions", ", ".join(self.stats)
        return f"LensTable of {size}: {how}; {held or 'no statistics'}"


STATS = ("top", "final", "next", "input", "entropy", *KL, "js")
DEFAULT_STATS = ("top", "final", "next", "entropy", "kl_final")


def logit_lens(
    model: Model,
    tokens: Tokens,
    *,
    decoder: str = "final",
    norm: str = "final",
    centre: bool = False,
    sites: Sequence[str] = ("resid_post",),
    layers: Iterable[int] | None = None,
    positions: Iterable[int] | None = None,
    track: Iterable[int] = (),
    top_k: int = 5,
    stats: Iterable[str] = DEFAULT_STATS,
    transport: Edit = untouched,
    edit: Edit = untouched,
    tokenizer: Tokenizer | None = None,
) -> LensTable:
    """The lens on one text, of shape [1, pos], in numbers; decoder to layers, transport and edit as in `lens_rows`.

    positions: the columns to show, negative ones counted from the end; the model sees the whole text in any case.
    track: tokens to follow everywhere. stats: which of STATS to compute, or "all"; the default is what one pass over
    the vocabulary gives cheaply, and "js" takes another. tokenizer: how the table's views show tokens. Raises
    ValueError for what does not exist, and where logits are not finite.

    Logits are taken a tile of the vocabulary at a time, in float32 at least whatever the weights' dtype: see vocab.py.
    """
    if isinstance(tokens, Tensor) and tokens.ndim == 2 and tokens.shape[0] != 1:
        raise ValueError(
            f"logit_lens reads one text, of shape [1, pos]; got {tokens.shape[0]} of them: use logit_lenses"
        )
    wanted = {*STATS} if stats == "all" else {stats} if isinstance(stats, str) else {*stats}
    if unknown := sorted(wanted - {*STATS}):
        raise ValueError(f'there is no statistic "{unknown[0]}"; there are {", ".join(STATS)}')
    d_vocab = model.W_U.shape[1]
    if not 1 <= top_k <= d_vocab:
        raise ValueError(f"top_k must be between 1 and the size of the vocabulary, {d_vocab}; it is {top_k}")
    track = tuple(dict.fromkeys(index(token) for token in track))
    if bad := [token for token in track if not 0 <= token < d_vocab]:
        raise ValueError(f"token id {bad[0]} cannot be tracked: the model's ids go from 0 to {d_vocab - 1}")

    lens = lens_of(model, tokens, decoder, norm, centre, sites, layers, transport, edit)
    columns = _columns(positions, tokens.shape[1])
    x = upcast(lens.embed.new_empty(len(lens.sites), len(columns), lens.embed.shape[-1]))
    for r, (_, reader, resid) in enumerate(lens.rows()):
        x[r] = reader.final_norm(resid)[0, columns]

    text = tokens[0].to(x.device)
    shown, follows = text[columns], torch.cat([text[1:], text.new_tensor([-1])])[columns]
    asked = {"next": follows.clamp(min=0), "input": shown}
    asked = {name: asked[name] for name in asked if name in wanted}
    every = torch.stack([shown, *asked.values(), *(torch.full_like(shown, token) for token in track)])[1:]
    found = survey(x, model.W_U, model.b_U, every, k=top_k, stats=frozenset(wanted & {"entropy", "js", *KL}))
    found.check_finite(lens.labels, lens.embed.dtype)

    values: dict[str, Any] = {name: number.cpu() for name, number in found.stats.items()}
    standings = [Standing(*(part.cpu() for part in parts)) for parts in zip(*found.standing, strict=True)]
    values |= zip(("final", *asked), standings, strict=False)
    values["tracked"] = Standing(*(part[1 + len(asked) :].movedim(0, -1).cpu() for part in found.standing))
    values["top"] = Top(*(part.cpu() for part in found.top))
    if "next" in wanted:
        nothing = (follows < 0).cpu()
        logit, logprob, rank = values["next"]
        values["next"] = Standing(
            logit.masked_fill(nothing, torch.nan), logprob.masked_fill(nothing, torch.nan), rank.masked_fill(nothing, 0)
        )
    return LensTable(
        labels=lens.labels,
        layers=tuple(site.layer for site in lens.sites),
        decoder=decoder,
        norm=norm,
        centre=centre,
        positions=torch.tensor(columns),
        tokens=shown.cpu(),
        final_tokens=values["top"].tokens[-1, :, 0],
        next_tokens=follows.cpu(),
        track=track,
        stats={name: values[name] for name in (*STATS, "tracked") if name in wanted or (name == "tracked" and track)},
        tokenizer=tokenizer,
    )


def logit_lenses(
    model: Model, tokens: Tokens, lengths: Int[Tensor, "batch"] | Sequence[int], **options: Any
) -> list[LensTable]:
    """The lens on several texts, as `tokenizer.encode` gives a list of them: a table for each, without the padding.

    options: those of `logit_lens`. A causal model reads each text as if it stood alone. Raises ValueError as that does,
    and where there is not one length for each text.
    """
    if len(tokens) != len(lengths):
        raise ValueError(f"there are {len(tokens)} texts and {len(lengths)} lengths: give each text its own")
    once: Any = {name: tuple(value) if isinstance(value, Iterator) else value for name, value in options.items()}
    return [logit_lens(model, text[None, : int(n)], **once) for text, n in zip(tokens, lengths, strict=True)]


def _columns(positions: Iterable[int] | None, n: int) -> list[int]:
    """The positions to show of a text of n tokens, counted from 0."""
    if positions is None:
        return list(range(n))
    chosen = [index(position) for position in positions]
    if not chosen:
        raise ValueError("positions is empty: choose at least one, or leave it out to see all")
    for position in chosen:
        if not -n <= position < n:
            raise ValueError(f"position {position} does not exist: the text has {n} tokens, so positions 0 to {n - 1}")
    return [position % n for position in chosen]

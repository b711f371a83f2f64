"""The lens in numbers, for every row and position. The views show them."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .arguments import check_ids, check_numbers, names, positions_in, quoted, tokens_in, top_count, whole_numbers
from .checkpoint.tokenizer import Tokenizer
from .device import check_precision
from .lens import Lens
from .model import Model, side_by_side
from .ops import upcast
from .shapes import Tokens
from .traces import Edit, untouched
from .vocab import OF_ALL_LOGITS, TokenStats, Top, vocab_stats

T = TypeVar("T")


class Stat(Generic[T]):
    """A statistic of a LensTable. It is there if it was asked for."""

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
    lens: str = ""  # the name of a learned lens; of the logit lens nothing
    precision: str = "full"  # of the products with the unembedding, as in `logit_lens`

    top = Stat[Top]()  # the best tokens, [row, pos, k]
    final = Stat[TokenStats]()  # how final_tokens stand in each row, [row, pos]
    next = Stat[TokenStats]()  # of next_tokens; where there is none, not a number, and rank 0
    input = Stat[TokenStats]()  # of tokens
    tracked = Stat[TokenStats]()  # of track, [row, pos, token]
    entropy = Stat[Float[Tensor, "row pos"]]()
    kl_final = Stat[Float[Tensor, "row pos"]]()  # KL(output ‖ row)
    kl_row_final = Stat[Float[Tensor, "row pos"]]()  # KL(row ‖ output)
    kl_input = Stat[Float[Tensor, "row pos"]]()  # KL(input row ‖ row)
    kl_row_input = Stat[Float[Tensor, "row pos"]]()  # KL(row ‖ input row)
    js = Stat[Float[Tensor, "row pos"]]()  # Jensen and Shannon's divergence of row and final row
    change = Stat[Float[Tensor, "row pos"]]()  # KL(row ‖ the row before it); in the input row not a number

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

    @property
    def way(self) -> str:
        """Its decoder or its learned lens, in a few words, and its precision where that is not full."""
        way = f"lens {self.lens}" if self.lens else f"decoder {self.decoder}"
        return way if self.precision == "full" else f"{way}, {self.precision}"

    def columns(self, chosen: slice) -> "LensTable":
        """The table of some of its columns."""

        def cut(value: Any) -> Any:
            return type(value)(*map(cut, value)) if isinstance(value, tuple) else value[:, chosen]

        names = ("positions", "tokens", "final_tokens", "next_tokens")
        stats = {name: cut(value) for name, value in self.stats.items()}
        return replace(self, **{name: getattr(self, name)[chosen] for name in names}, stats=stats)

    def __repr__(self) -> str:
        how = f"{self.way}, norm {self.norm}{', centred' if self.centre else ''}"
        size, held = f"{len(self.labels)} rows and {len(self.positions)} positions", ", ".join(self.stats)
        return f"LensTable of {size}: {how}; {held or 'no statistics'}"


STATS = ("top", "final", "next", "input", *OF_ALL_LOGITS)
DEFAULT_STATS = ("top", "final", "next", "entropy", "kl_final")


def logit_lens(
    model: Model,
    tokens: Tokens,
    *,
    positions: int | Iterable[int] | None = None,
    track: int | Iterable[int] = (),
    top_k: int = 5,
    stats: str | Iterable[str] = DEFAULT_STATS,
    precision: str = "full",
    edit: Edit = untouched,
    tokenizer: Tokenizer | None = None,
    **options: Any,
) -> LensTable:
    """The lens on one text, of shape [1, pos], in numbers.

    positions: the columns to show, negative ones counted from the end; the model sees the whole text in any case.
    track: tokens to follow everywhere.
    top_k: how many of the best tokens to name.
    stats: which of STATS to compute, or "all". The default is what one pass over the vocabulary gives cheaply; "js"
    takes another.
    precision: of the products with the unembedding. "full" is float32 at least. "bfloat16" has operands in bfloat16 and
    sums in float32, for devices with units for it. "emulated" is the same on any device, no faster than "full". Their
    errors are in docs/speed.md.
    edit: as in `lens_rows`.
    tokenizer: how the table's views show tokens.
    options: decoder, norm, centre, sites, layers and transport, as in `Lens`.

    Logits are taken a tile of the vocabulary at a time, in float32 at least whatever the weights' dtype: see vocab.py.
    Raises ValueError as `lens_rows` does, for a position, token, statistic or precision that is not there, and for
    logits that are not finite.
    """
    which: Any = dict(positions=positions, track=track, top_k=top_k, stats=stats)
    how: Any = dict(precision=precision, edit=edit, tokenizer=tokenizer)
    return _side_by_side(model, tokens, None, **which, **how, **options)


def _side_by_side(
    model: Model,
    tokens: Tokens,
    lengths: list[int] | None,
    *,
    positions: int | Iterable[int] | None = None,
    track: int | Iterable[int] = (),
    top_k: int = 5,
    stats: str | Iterable[str] = DEFAULT_STATS,
    precision: str = "full",
    edit: Edit = untouched,
    tokenizer: Tokenizer | None = None,
    **options: Any,
) -> LensTable:
    """The table of one text, or those of texts of some lengths as one: the columns of the first, of the second ..."""
    lens, wanted = Lens(**options), _wanted(stats)
    readout = lens.of(model, tokens, edit)
    check_numbers(model)
    check_precision(precision, model.W_U.device)
    if lengths is None and len(tokens) != 1:
        raise ValueError(f"logit_lens reads one text, of shape [1, pos]; got {len(tokens)} of them: use logit_lenses")
    d_vocab = model.W_U.shape[1]
    k, followed = top_count(top_k, d_vocab), tokens_in(track, d_vocab)
    ends = lengths or [tokens.shape[1]]
    chosen = [positions_in("the text has", positions, end) for end in ends]
    texts = torch.tensor([text for text, each in enumerate(chosen) for _ in each], device="cpu")
    columns = torch.tensor([column for each in chosen for column in each], device="cpu")
    x = upcast(readout.embed.new_empty(len(readout.sites), len(columns), readout.embed.shape[-1]))
    for r, (_, reader, resid) in enumerate(readout.rows()):
        x[r] = reader.final_norm(resid)[texts, columns]

    shown = tokens[texts, columns].to(x.device)
    goes_on = columns + 1 < torch.tensor(ends, device="cpu")[texts]
    follows = tokens[texts, columns + goes_on].to(x.device).where(goes_on.to(x.device), -1)
    asked: dict[Hashable, Tensor] = {}
    if "next" in wanted:
        asked["next"] = follows.clamp(min=0)
    if "input" in wanted:
        asked["input"] = shown
    asked |= {token: torch.full_like(shown, token) for token in followed}
    of_all = frozenset(wanted.intersection(OF_ALL_LOGITS))
    found = vocab_stats(x, model.W_U, model.b_U, asked, k=k, stats=of_all, precision=precision)
    found.check_finite(readout.labels, readout.embed.dtype)

    values: dict[Hashable, Any] = {"top": found.top} | found.tokens | found.stats
    if "next" in wanted:
        values["next"] = found.tokens["next"].where(follows >= 0)
    if followed:
        values["tracked"] = TokenStats(
            *(torch.stack(part, -1) for part in zip(*(found.tokens[token] for token in followed), strict=True))
        )
        wanted |= {"tracked"}
    return LensTable(
        labels=readout.labels,
        layers=tuple(site.layer for site in readout.sites),
        decoder=lens.decoder,
        norm=lens.norm,
        centre=lens.centre,
        positions=columns,
        tokens=shown.cpu(),
        final_tokens=found.top.tokens[-1, :, 0].cpu(),
        next_tokens=follows.cpu(),
        track=followed,
        stats={name: _on_cpu(values[name]) for name in (*STATS, "tracked") if name in wanted},
        tokenizer=tokenizer,
        lens=getattr(lens.transport, "name", ""),
        precision=precision,
    )


def logit_lenses(
    model: Model, tokens: Tokens, lengths: Int[Tensor, "batch"] | Sequence[int], **options: Any
) -> list[LensTable]:
    """The lens on several texts, as `tokenizer.encode` gives a list of them: a table for each, without the padding.

    options: those of `logit_lens`. A causal model reads each text as if it stood alone, and short ones are read side by
    side: tables agree with those of `logit_lens` within rounding. With an edit each text is read by itself. Raises
    ValueError as that does, and where there is not one length for each text, from 1 to the tokens that there are.
    """
    check_ids(tokens)
    n_texts, longest = tokens.shape
    each = whole_numbers("lengths", lengths)
    if n_texts != len(each):
        raise ValueError(f"there are {n_texts} texts and {len(each)} lengths: give each text its own")
    for n in each:
        if not 1 <= n <= longest:
            raise ValueError(f"lengths must be from 1 to {longest}, the tokens of the longest text; got {n}")
    once: Any = {name: tuple(value) if isinstance(value, Iterator) else value for name, value in options.items()}
    edited = once.get("edit", untouched) is not untouched
    # A pad is not of the text: a mean over the positions would see it, and a function of the caller's might.
    padded = not once.get("centre", False) and once.get("transport", untouched) is untouched
    tables: dict[int, LensTable] = {}
    for texts, together, ends in side_by_side(tokens, each, alone=edited, padded=padded):
        table, start = _side_by_side(model, together, ends, **once), 0
        for text, n in zip(texts, ends, strict=True):
            width = n if once.get("positions") is None else len(table.positions) // len(texts)
            tables[text] = table.columns(slice(start, start := start + width))
    return [tables[text] for text in range(n_texts)]


def _wanted(stats: str | Iterable[str]) -> set[str]:
    """The names of statistics; "all" is all of them."""
    wanted = {*STATS} if isinstance(stats, str) and stats == "all" else {*names("stats", stats)}
    if unknown := sorted(wanted - {*STATS}):
        raise ValueError(f"there is no statistic {quoted(unknown[0])}; there are {', '.join(STATS)}")
    return wanted


def _on_cpu(found: Any) -> Any:
    """A tensor, or a named tuple of them."""
    return found.cpu() if isinstance(found, Tensor) else type(found)(*(part.cpu() for part in found))

"""The logit lens: decode the residual stream of every layer as if it were the last one's.

nostalgebraist 2020, "interpreting GPT: the logit lens"; the extended decoder and the rows between attention and MLP are
of the 2021 extension. As in 2021, every row goes through the final norm with its gain and bias.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import index
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from . import vocab
from .ops import check_layer, upcast
from .run import decode, run
from .shapes import Logits, Resid, Tokens
from .trace import Model
from .vocab import Standing, Top

LENS_SITES = ("resid_pre", "resid_mid", "resid_post")


class LensRow(NamedTuple):
    """One residual, decoded."""

    label: str  # "embed", or layer and site, such as "3.resid_post"
    layer: int  # -1 for embed
    logits: Logits


@dataclass(frozen=True, eq=False)
class LensTable:
    """What every row of the lens says at every position: numbers on the CPU, no row of logits.

    Rows are residuals, from the stream entering block 0 to the one whose logits are the model's own. Information is in
    nats. The row axis comes first, then pos, then k (best first).
    """

    labels: tuple[str, ...]  # for each row, as in LensRow
    layers: tuple[int, ...]
    decoder: str
    positions: Int[Tensor, "pos"]  # the places in the text that the columns show
    tokens: Int[Tensor, "pos"]  # the input token at each
    final_tokens: Int[Tensor, "pos"]  # the model's own top-1: the best token of the last row
    next_tokens: Int[Tensor, "pos"]  # the true next token; -1 at the end of the text
    top: Top  # [row, pos, k]
    final: Standing  # of final_tokens, [row, pos]
    next: Standing  # of next_tokens, [row, pos]; where there is none, not a number, and rank 0
    kl_final: Float[Tensor, "row pos"]  # KL(final row || row)
    entropy: Float[Tensor, "row pos"]


def lens_rows(
    model: Model,
    tokens: Tokens,
    *,
    decoder: str = "final",
    sites: Sequence[str] = ("resid_post",),
    layers: Iterable[int] | None = None,
) -> Iterator[LensRow]:
    """Decode the stream entering block 0, then that at each of the sites, a row of logits at a time.

    decoder: "final", the final norm and the unembedding, or "block:K", the last K blocks before them as well; residuals
    inside the decoder have no row. sites: any of resid_pre, resid_mid and resid_post. layers: the blocks that get rows,
    by default all. The first row is always `embed`, and the last one is always the stream that enters the decoder, so
    its logits are the model's own, bit for bit. Raises ValueError for a decoder, site or layer that does not exist.
    """
    start = _start(decoder, model.n_layers)
    residuals = _residuals(model, tokens, sites, layers, start)
    return (LensRow(label, layer, decode(model, resid, start=start)) for label, layer, resid in residuals)


def logit_lens(
    model: Model,
    tokens: Tokens,
    *,
    decoder: str = "final",
    sites: Sequence[str] = ("resid_post",),
    layers: Iterable[int] | None = None,
    positions: Iterable[int] | None = None,
    top_k: int = 5,
) -> LensTable:
    """The lens on one text, of shape [1, pos], in numbers; decoder, sites and layers as in `lens_rows`.

    positions: the columns to show, negative ones counted from the end; the model sees the whole text in any case.
    Raises ValueError for what does not exist, and where logits are not finite.
    """
    if isinstance(tokens, Tensor) and tokens.ndim == 2 and tokens.shape[0] != 1:
        raise ValueError(
            f"logit_lens reads one text, of shape [1, pos]; got {tokens.shape[0]} of them: call it for each"
        )
    start = _start(decoder, model.n_layers)
    rows = list(_residuals(model, tokens, sites, layers, start))
    columns = _columns(positions, tokens.shape[1])

    def logits_of(row: _Residual) -> Float[Tensor, "column d_vocab"]:
        logits = upcast(decode(model, row.resid, start=start)[0, columns])
        if not logits.isfinite().all():
            raise ValueError(
                f"the logits of row {row.label} are not finite: there is a NaN or an infinity in the weights, or the "
                f"numbers are too large for {row.resid.dtype}; if so, load the model with dtype=torch.float32"
            )
        return logits

    final = logits_of(rows[-1])
    if not 1 <= top_k <= final.shape[-1]:
        raise ValueError(f"top_k must be between 1 and the size of the vocabulary, {final.shape[-1]}; it is {top_k}")
    final_tokens = vocab.top(final, top_k).tokens[:, 0]
    next_tokens = torch.cat([tokens[0, 1:], tokens.new_tensor([-1])])[columns].to(final.device)
    is_last = (next_tokens < 0).cpu()

    tops, finals, nexts, kls, entropies = [], [], [], [], []
    for row in rows:
        logits = final if row is rows[-1] else logits_of(row)
        tops.append(vocab.top(logits, top_k))
        finals.append(vocab.standing(logits, final_tokens))
        nexts.append(vocab.standing(logits, next_tokens.clamp(min=0)))
        kls.append(vocab.kl(final, logits))
        entropies.append(vocab.entropy(logits))

    next_logit, next_logprob, next_rank = _stack(nexts)
    return LensTable(
        labels=tuple(row.label for row in rows),
        layers=tuple(row.layer for row in rows),
        decoder=decoder,
        positions=torch.tensor(columns),
        tokens=tokens[0, columns].cpu(),
        final_tokens=final_tokens.cpu(),
        next_tokens=next_tokens.cpu(),
        top=Top(*_stack(tops)),
        final=Standing(*_stack(finals)),
        next=Standing(
            next_logit.masked_fill(is_last, torch.nan),
            next_logprob.masked_fill(is_last, torch.nan),
            next_rank.masked_fill(is_last, 0),
        ),
        kl_final=torch.stack(kls).cpu(),
        entropy=torch.stack(entropies).cpu(),
    )


def _stack(rows: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    """Statistics of each row -> each statistic with the rows as its first axis."""
    return [torch.stack(values).cpu() for values in zip(*rows, strict=True)]


class _Residual(NamedTuple):
    """A value of the residual stream that gets a row."""

    label: str
    layer: int
    resid: Resid


def _residuals(
    model: Model, tokens: Tokens, sites: Sequence[str], layers: Iterable[int] | None, stop: int
) -> Iterator[_Residual]:
    """The residuals to decode, up to the stream entering block `stop`; what does not exist is refused at once."""
    sites = (sites,) if isinstance(sites, str) else sites
    layers = range(model.n_layers) if layers is None else [index(layer) for layer in layers]
    for site in sites:
        if site not in LENS_SITES:
            raise ValueError(f'the lens has no rows for "{site}"; it has them for {", ".join(LENS_SITES)}')
    for layer in layers:
        check_layer(layer, model.n_layers)
    wanted = {(layer, site) for layer in layers for site in sites} | {(stop - 1, "resid_post")}
    return _walk(model, model.embed(tokens), wanted, stop)


def _walk(model: Model, resid: Resid, wanted: set[tuple[int, str]], stop: int) -> Iterator[_Residual]:
    yield _Residual("embed", -1, resid)
    for block in run(model, resid, stop=stop):
        for site in LENS_SITES:
            if (block.layer, site) in wanted:
                yield _Residual(f"{block.layer}.{site}", block.layer, getattr(block, site))


def _start(decoder: str, n_layers: int) -> int:
    """The first block that belongs to the decoder."""
    if decoder == "final":
        return n_layers
    kind, _, count = decoder.partition(":")
    if kind != "block" or not re.fullmatch("[0-9]{1,9}", count):
        raise ValueError(f'there is no decoder "{decoder}": it must be "final", or "block:K" for the last K blocks')
    if not 1 <= int(count) <= n_layers:
        raise ValueError(
            f'the decoder "{decoder}" does not fit: this model has {n_layers} blocks, so K is 1 to {n_layers}'
        )
    return n_layers - int(count)


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

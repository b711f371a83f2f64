"""Vectors of the stream's width in tokens: what a part writes, a row of W_out, a column of a probe.

A vector v is read in two ways:

    alone    the lens on v, as if v were the residual: final_norm(v) @ W_U + b_U
    share    what v adds to each logit: (v - mean(v)) / scale * ln_final.w @ W_U

The norm of the first takes the size of v away: it shows what v would say if nothing else were there. In the second the
scale of the final norm, sqrt(variance + eps) of the whole residual, is held as it is. Shares of what a residual is the
sum of are then those of `attribute`, for all tokens at once. Their mean over the vocabulary moves no probability. So
the tokens that v raises and lowers are told less that mean.
"""

from collections.abc import Hashable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..arguments import check_numbers, quoted, top_count
from ..model import Model
from ..ops import upcast
from ..shapes import shapes_of
from ..vocab import Top, vocab_stats

Vectors = Float[Tensor, "row pos d_model"]
Scale = Float[Tensor, "pos"]
NO_STATS: frozenset[str] = frozenset()


class Shares(NamedTuple):
    """Some tokens, and what a vector adds to their logits, less the mean over the vocabulary."""

    tokens: Int[Tensor, "*vector k"]
    share: Float[Tensor, "*vector k"]

    def __repr__(self) -> str:
        return shapes_of(self)


class VectorTokens(NamedTuple):
    """Vectors in tokens, on the CPU."""

    alone: Top  # the best tokens of the vector as a residual of its own
    raised: Shares  # the tokens whose logits it adds most to, the most first
    lowered: Shares  # those that it takes most from, the most first
    mean: Float[Tensor, "*vector"]  # what it adds to all logits alike

    def __repr__(self) -> str:
        return shapes_of(self)


@torch.no_grad()
def vector_tokens(
    model: Model, vectors: Float[Tensor, "*vector d_model"], *, scale: float = 1.0, top_k: int = 5
) -> VectorTokens:
    """Any vectors of the stream's width in tokens: the best ones alone, and those most raised and lowered.

    scale: that of the final norm. Shares are divided by it: 1 tells them for a stream whose entries have a variance
    of 1.
    top_k: how many tokens to name.

    Raises ValueError for vectors of another width, and for numbers that are not finite.

    >>> model, tokenizer = minilens.load("tales-gpt2")
    >>> found = minilens.vector_tokens(model, model.blocks[7].W_out[:100])
    >>> found.raised.tokens.shape, found.alone.prob.shape
    (torch.Size([100, 5]), torch.Size([100, 5]))
    """
    check_numbers(model)
    d_model, d_vocab = model.W_U.shape
    if not isinstance(vectors, Tensor) or vectors.shape[-1:] != (d_model,):
        found = list(vectors.shape) if isinstance(vectors, Tensor) else quoted(vectors)
        raise ValueError(f"vectors must be a tensor whose last axis is d_model, {d_model}; got {found}")
    rows = upcast(vectors.to(model.W_U)).reshape(-1, 1, d_model)
    at = rows.new_full((1,), scale)
    read, _ = in_tokens(model, rows, at, top_count(top_k, d_vocab), [f"vector {n}" for n in range(len(rows))])

    def shaped(part: Tensor) -> Tensor:
        return part.reshape(vectors.shape[:-1] + part.shape[2:])

    return VectorTokens(
        Top(*map(shaped, read.alone)),
        Shares(*map(shaped, read.raised)),
        Shares(*map(shaped, read.lowered)),
        shaped(read.mean),
    )


def in_tokens(
    model: Model,
    vectors: Vectors,
    scale: Scale,
    k: int,
    labels: list[str],
    token: Int[Tensor, "pos"] | None = None,
) -> tuple[VectorTokens, Float[Tensor, "row pos"]]:
    """The vectors in tokens, and their shares of one token at each position. labels: of the rows, for errors."""
    residual = upcast(model.final_norm(vectors.to(model.W_U.dtype)))
    alone = vocab_stats(residual, model.W_U, model.b_U, {}, k=k, stats=NO_STATS)
    alone.check_finite(labels, model.W_U.dtype)
    x = normed(model, vectors, scale)
    asked: dict[Hashable, Tensor] = {} if token is None else {"token": token}
    both = vocab_stats(torch.cat([x, -x]), model.W_U, None, asked, k=k, stats=NO_STATS)
    mean = x @ model.W_U.mean(1, dtype=x.dtype)
    (high, low), (most, least) = (torch.split(part, len(x)) for part in (both.top.tokens, both.top.logit))
    share = both.tokens["token"].logit[: len(x)] if token is not None else mean
    return VectorTokens(
        Top(*(part.cpu() for part in alone.top)),
        Shares(high.cpu(), (most - mean[..., None]).cpu()),
        Shares(low.cpu(), (-least - mean[..., None]).cpu()),
        mean.cpu(),
    ), share.cpu()


def normed(model: Model, vectors: Float[Tensor, "*row pos d_model"], scale: Scale) -> Float[Tensor, "*row pos d_model"]:
    """What the final norm makes of the vectors, with its scale held, and without its bias."""
    return (vectors - vectors.mean(-1, keepdim=True)) / scale[..., None] * upcast(model.ln_final.w)

"""Statistics over the vocabulary, a tile of it at a time.

Logits are x @ W_U + b_U, for vectors x that have been through the final norm. A tile's sums are relative to the highest
logit in it, D = logit - highest, and are put together at the end, as in an online softmax (Milakov and Gimelshein 2018,
arXiv 1805.02867). With sums over the vocabulary,

    Z = sum exp(D)      log-probability = D - log Z      entropy = log Z - sum exp(D) D / Z
    KL(p || q) = sum exp(D_p) (D_p - D_q) / Z_p - log Z_p + log Z_q

The rank of the last row's best token in the other rows can be counted only when that token is known. So the last row
runs ahead of the others by some positions: of it alone logits are whole, for those positions, and no product is taken
twice. Information is in nats. Logits are taken in float32 at least, and the sums over tiles in float64.
"""

from math import log
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

Rows = Float[Tensor, "row pos d_model"]
Queries = Float[Tensor, "query d_model"]
Unembedding = Float[Tensor, "d_model d_vocab"]
Bias = Float[Tensor, "d_vocab"]
PerPos = Float[Tensor, "*row pos"]
Ids = Int[Tensor, "*row pos"]

WIDTH = 512  # tokens in a tile
TILE = {"cpu": 2**20}  # logits in a tile, of all rows and some positions: 4 MB in float32, which a CPU's caches hold
TILE_ELSEWHERE = 2**26
WHOLE = 2**23  # whole logits of the last row, in each of two buffers
GROUP = 64  # neighbours in the vocabulary of which the pass keeps only the best, to find the top k afterwards

ALL, FIRST, LAST = slice(None), slice(0, 1), slice(-1, None)
KL = {  # the rows p and q of each divergence
    "kl_final": (LAST, ALL),
    "kl_row_final": (ALL, LAST),
    "kl_input": (FIRST, ALL),
    "kl_row_input": (ALL, FIRST),
    "change": (slice(1, None), slice(None, -1)),
}


class Top(NamedTuple):
    """The k best tokens of each position, best first; of equal logits any may come first."""

    tokens: Int[Tensor, "*row pos k"]
    logit: Float[Tensor, "*row pos k"]
    logprob: Float[Tensor, "*row pos k"]

    @property
    def prob(self) -> Float[Tensor, "*row pos k"]:
        return self.logprob.exp()


class Standing(NamedTuple):
    """How one token per position stands among all tokens.

    The rank is 1 + the number of tokens with a strictly higher logit: 1 is best, and tokens that tie share the better
    rank.
    """

    logit: PerPos
    logprob: PerPos
    rank: Ids

    @property
    def prob(self) -> PerPos:
        return self.logprob.exp()


class Survey(NamedTuple):
    """What `survey` finds."""

    top: Top  # [row, pos, k]
    standing: Standing  # [token, row, pos]: of the last row's best token, then of those asked for
    stats: dict[str, Float[Tensor, "row pos"]]


@torch.no_grad()
def survey(
    x: Rows, W_U: Unembedding, b_U: Bias | None, asked: Int[Tensor, "token pos"], *, k: int, stats: frozenset[str]
) -> Survey:
    """All statistics of some rows of vectors, of which the first is called the input and the last one final.

    asked: tokens whose logit, log-probability and rank are wanted at each position. k: how many of the best tokens.
    stats: of "entropy", "kl_final" (final || row), "kl_row_final" (row || final), "kl_input" (input || row),
    "kl_row_input" (row || input), "change" (row || the one before; not a number in the first row) and "js" (Jensen and
    Shannon's, of row and final, which takes a second pass). Where logits are not finite, no log-probability is.
    """
    n_rows, n_pos, _ = x.shape
    d_vocab = W_U.shape[1]
    n = max(1, min(TILE.get(x.device.type, TILE_ELSEWHERE) // (n_rows * WIDTH), WHOLE // d_vocab, n_pos))
    whole, ahead = x.new_empty(2, n, d_vocab)
    _logits(x[-1, :n], W_U, b_U, ALL, out=whole)
    chunks = []
    for p in range(0, n_pos, n):
        here, after = slice(p, p + n), slice(p + n, p + 2 * n)
        chunks.append(_survey(x[:, here], whole, x[-1, after], ahead, W_U, b_U, asked[:, here], k, stats))
        whole, ahead = ahead, whole

    lse = torch.cat([chunk.lse for chunk in chunks], 1)
    own = torch.cat([chunk.own for chunk in chunks], 2)
    rank = torch.cat([chunk.rank for chunk in chunks], 2)
    groups = torch.cat([chunk.groups for chunk in chunks], 1)
    rest = _top(x[:-1].flatten(0, 1), W_U, b_U, groups.flatten(0, 1), k)
    last = (torch.cat([chunk.best[i] for chunk in chunks])[None] for i in (0, 1))
    logit, tokens = (torch.cat([a.view(-1, n_pos, k), b]) for a, b in zip(rest, last, strict=True))
    return Survey(
        Top(tokens, logit, (logit - lse[..., None]).to(x.dtype)),
        Standing(own, (own - lse).to(x.dtype), rank),
        {name: torch.cat([chunk.stats[name] for chunk in chunks], 1).to(x.dtype) for name in stats},
    )


class _Chunk(NamedTuple):
    """The survey of some positions."""

    best: tuple[Tensor, Tensor]  # the last row's best logits and their tokens, [pos, k] each
    groups: Ids  # of the other rows, the groups that hold their best tokens, [row, pos, n]
    own: PerPos  # logits of the tokens asked for, [token, row, pos]
    rank: Ids  # and their ranks
    lse: PerPos  # log sum exp
    stats: dict[str, PerPos]


def _survey(
    x: Rows,
    whole: Float[Tensor, "n d_vocab"],
    x_ahead: Queries,
    ahead: Float[Tensor, "n d_vocab"],
    W_U: Unembedding,
    b_U: Bias | None,
    asked: Ids,
    k: int,
    stats: frozenset[str],
) -> _Chunk:
    """The survey of some positions, given the last row's logits there; `ahead` is filled with those further on."""
    n_rows, n_pos, _ = x.shape
    whole, ahead = whole[:n_pos], ahead[: len(x_ahead)]
    best = whole.topk(k)
    asked = torch.cat([best.indices.mT[:1], asked])
    own = torch.stack([(x * W_U.mT[tokens]).sum(-1) + (0 if b_U is None else b_U[tokens]) for tokens in asked])
    own[:, -1] = whole.gather(1, asked.mT).mT
    token, order = asked.flatten().sort()
    at, value = order % n_pos, own.movedim(1, 0).flatten(1)[:, order]

    n_tiles = -(-W_U.shape[1] // WIDTH)
    cuts = torch.searchsorted(token, WIDTH * torch.arange(n_tiles + 1, device=x.device)).tolist()
    groups = x.new_empty(n_tiles, n_rows, n_pos, WIDTH // GROUP)
    high, Z, ED = x.new_empty(3, n_tiles, n_rows, n_pos)
    gaps = {name: x.new_empty(n_tiles, n_rows - (name == "change"), n_pos) for name in KL if name in stats}
    better = torch.zeros_like(own)
    queries = torch.cat([x[:-1].flatten(0, 1), x_ahead])
    D, E = x.new_empty(2, n_rows, n_pos, WIDTH)
    logits, last = D.view(-1, WIDTH)[: len(queries)], slice((n_rows - 1) * n_pos, None)
    for tile in range(n_tiles):
        tokens = slice(tile * WIDTH, (tile + 1) * WIDTH)
        width = whole[:, tokens].shape[1]
        if width < WIDTH:  # the last tile: what is past the vocabulary is too low to count
            D.fill_(torch.finfo(x.dtype).min)
        _logits(queries, W_U, b_U, tokens, out=logits[:, :width])
        ahead[:, tokens] = logits[last, :width]
        D[-1, :, :width] = whole[:, tokens]
        # The logits asked for come from another product. Put here, they are the tile's own to the bit, so that no token
        # is above itself.
        here = slice(cuts[tile], cuts[tile + 1])
        D[:, at[here], token[here] - tokens.start] = value[:, here]
        for count, logit in zip(better, own, strict=True):
            count += torch.gt(D, logit[..., None], out=E).sum(-1)

        torch.amax(D.unflatten(-1, (-1, GROUP)), -1, out=groups[tile])
        torch.amax(groups[tile], -1, out=high[tile])
        D.sub_(high[tile][..., None])
        torch.exp(D, out=E)
        torch.sum(E, -1, out=Z[tile])
        for name, gap in gaps.items():
            gap[tile] = _gap(E, D, *KL[name])
        torch.sum(E.mul_(D), -1, out=ED[tile])

    highest = high.amax(0)
    shift = (high - highest).double()
    Z_tiles = Z * shift.exp()
    Z, ED = Z_tiles.sum(0), (ED * shift.exp() + shift * Z_tiles).sum(0)
    lse = highest + Z.log()
    numbers = {"entropy": (Z.log() - ED / Z).clamp(min=0)}
    for name, gap in gaps.items():
        p, q = KL[name]
        gap = (gap * shift[:, p].exp() + (shift[:, p] - shift[:, q]) * Z_tiles[:, p]).sum(0)
        numbers[name] = (gap / Z[p] - Z[p].log() + Z[q].log()).clamp(min=0)
    if "change" in stats:
        numbers["change"] = torch.cat([torch.full_like(Z[:1], torch.nan), numbers["change"]])
    if "js" in stats:
        numbers["js"] = _jensen_shannon(x, lse, W_U, b_U)
    best_groups = groups[:, :-1].movedim(0, 2).flatten(2).topk(min(k, n_tiles * WIDTH // GROUP)).indices
    return _Chunk((best.values, best.indices), best_groups, own, 1 + better.long(), lse, numbers)


def _logits(x: Queries, W_U: Unembedding, b_U: Bias | None, tokens: slice, out: Tensor | None = None) -> Tensor:
    """x @ W_U + b_U for some of the tokens, in the dtype of x."""
    W = W_U[:, tokens].to(x.dtype)
    return torch.mm(x, W, out=out) if b_U is None else torch.addmm(b_U[tokens].to(x.dtype), x, W, out=out)


def _gap(E: Float[Tensor, "row pos tile"], D: Float[Tensor, "row pos tile"], p: slice, q: slice) -> PerPos:
    """sum of E_p (D_p - D_q) over a tile."""
    if p in (FIRST, LAST):  # one row against all: for each position a product of matrices
        sums = torch.bmm(E[p].transpose(0, 1), D.permute(1, 2, 0))[:, 0].mT
        return sums[p] - sums[q]
    return (E[p] * (D[p] - D[q])).sum(-1)


def _jensen_shannon(x: Rows, lse: PerPos, W_U: Unembedding, b_U: Bias | None) -> PerPos:
    """(KL(p || m) + KL(q || m)) / 2, where m is the mean of p and q, and q the last row: a pass of its own."""
    total = torch.zeros_like(lse)
    for start in range(0, W_U.shape[1], WIDTH):
        logits = _logits(x.flatten(0, 1), W_U, b_U, slice(start, start + WIDTH)).view(*lse.shape, -1)
        p = (logits - lse[..., None]).to(x.dtype)
        q = p[-1:]
        m = torch.logaddexp(p, q) - log(2)
        total += (p.exp() * (p - m) + q.exp() * (q - m)).sum(-1) / 2
    return total.clamp(min=0)


def _top(
    x: Queries, W_U: Unembedding, b_U: Bias | None, groups: Int[Tensor, "query n"], k: int
) -> tuple[Float[Tensor, "query k"], Int[Tensor, "query k"]]:
    """The k best logits and their tokens: of the groups that hold them, all logits are taken again."""
    found = x.new_full((*groups.shape, GROUP), torch.finfo(x.dtype).min)
    queries = torch.split(groups.flatten().argsort(), groups.flatten().bincount().tolist())
    for group, at in enumerate(queries):
        if not len(at):
            continue
        logits = _logits(x[at // groups.shape[1]], W_U, b_U, slice(group * GROUP, (group + 1) * GROUP))
        found.view(-1, GROUP)[at, : logits.shape[1]] = logits
    best = found.flatten(1).topk(k)
    return best.values, groups.gather(1, best.indices // GROUP) * GROUP + best.indices % GROUP

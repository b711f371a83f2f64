"""Statistics over the vocabulary, a tile of it at a time.

Logits are x @ W_U + b_U, for vectors x that have been through the final norm. A tile's sums are relative to the highest
logit in it, D = logit - highest, and are put together at the end, as in an online softmax (Milakov and Gimelshein 2018,
arXiv 1805.02867). With sums over the vocabulary,

    Z = sum exp(D)      log-probability = D - log Z      entropy = log Z - sum exp(D) D / Z
    KL(p || q) = sum exp(D_p) (D_p - D_q) / Z_p - log Z_p + log Z_q

The rank of the last row's best token in the other rows can be counted only when that token is known. So the last row
runs ahead of the others by some positions: of it alone logits are whole, for those positions, and no product is taken
twice. Information is in nats. Logits are taken in float32 at least, and the sums over tiles in float64.

A product of matrices rounds a logit in its own way wherever it stands, and in another way on another processor. So what
must be equal is made equal and not computed twice: of tokens with one embedding and one bias, the logit of the first
serves all. Then they tie on every machine, and the last row's best token is first in it.

In float32, against float64 on the same vectors, entropies, divergences and log-probabilities are within 2e-6 of
1 + the largest logit, and 1e-5 of their size; in float64 within 1e-11 and 1e-9. Ranks are exact but where logits of
other tokens differ by no more than rounding. The tests hold these bounds.
"""

from collections.abc import Sequence
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

WIDTH = 576  # tokens in a tile
TILE = {"cpu": 600_000}  # logits in a tile, of all rows and some positions: 2.4 MB in float32, which the caches hold
TILE_ELSEWHERE = 2**26
WHOLE = 2**23  # whole logits of the last row, in each of two buffers
SAMPLE = 4  # numbers of an embedding that are looked at to find others like it
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
    rank. Tokens with the same embedding and bias tie, whatever the processor. Of the last row's best token the rank
    there is 1.
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

    def check_finite(self, labels: Sequence[str], dtype: torch.dtype) -> None:
        """Raise ValueError for the first row whose logits, of residuals in dtype, are not all finite."""
        for label, finite in zip(labels, self.standing.logprob[0].isfinite().all(-1).tolist(), strict=True):
            if not finite:
                raise ValueError(
                    f"the logits of row {label} are not finite: there is a NaN or an infinity in the weights, or "
                    f"the numbers are too large for {dtype}; if so, load it in a wider dtype, torch.float32 or "
                    "torch.float64"
                )


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
    # Two tensors, since one of twice the size would find no room in what a forward pass has freed.
    whole, ahead = (x.new_empty(n, -(-d_vocab // WIDTH) * WIDTH) for _ in range(2))
    for buffer in (whole, ahead):
        buffer[:, d_vocab:] = torch.finfo(x.dtype).min  # past the vocabulary, all is too low to count
    _logits(x[-1, :n], W_U, b_U, ALL, out=whole[:, :d_vocab])
    first = first_alike(W_U, b_U)
    chunks = []
    for p in range(0, n_pos, n):
        here, after = slice(p, p + n), slice(p + n, p + 2 * n)
        chunks.append(_survey(x[:, here], whole, x[-1, after], ahead, W_U, b_U, first, asked[:, here], k, stats))
        whole, ahead = ahead, whole

    lse = torch.cat([chunk.lse for chunk in chunks], 1)
    own = torch.cat([chunk.own for chunk in chunks], 2)
    rank = torch.cat([chunk.rank for chunk in chunks], 2)
    groups = torch.cat([chunk.groups for chunk in chunks], 1)
    rest = _top(x[:-1].flatten(0, 1), W_U, b_U, groups.flatten(0, 1), k)
    last = (torch.cat([chunk.best[i] for chunk in chunks])[None] for i in (0, 1))
    logit, tokens = (torch.cat([a.view(-1, n_pos, k), b]) for a, b in zip(rest, last, strict=True))
    return Survey(
        Top(tokens, logit, (logit - lse[..., None]).clamp(max=0).to(x.dtype)),
        Standing(own, (own - lse).clamp(max=0).to(x.dtype), rank),
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
    whole: Float[Tensor, "n padded"],
    x_ahead: Queries,
    ahead: Float[Tensor, "n padded"],
    W_U: Unembedding,
    b_U: Bias | None,
    first: Int[Tensor, "d_vocab"],
    asked: Ids,
    k: int,
    stats: frozenset[str],
) -> _Chunk:
    """The survey of some positions, given the last row's logits there; `ahead` is filled with those further on."""
    n_rows, n_pos, _ = x.shape
    whole, ahead = whole[:n_pos], ahead[: len(x_ahead)]
    later = (first != torch.arange(len(first), device=x.device)).nonzero()[:, 0]
    whole[:, later] = whole[:, first[later]]
    best = _top_of_whole(whole, k)
    # Each token at each position is taken once, so that it has one logit whoever asks for it.
    asked = first[torch.cat([best[1].mT[:1], asked])] * n_pos + torch.arange(n_pos, device=x.device)
    once, place = torch.unique(asked, return_inverse=True)
    token, at = once // n_pos, once % n_pos
    value = torch.cat([_own_logits(x[:-1, at], W_U, b_U, token), whole[at, token][None]])
    own = value[:, place].movedim(0, 1)

    queries = torch.cat([x[:-1].flatten(0, 1), x_ahead])
    n_tiles = whole.shape[1] // WIDTH
    groups = x.new_empty(n_tiles, n_rows, n_pos, WIDTH // GROUP)
    high, Z, ED = x.new_empty(3, n_tiles, n_rows, n_pos)
    better, logits_asked = torch.zeros_like(own), own[..., None]
    D, E = x.new_empty(2, n_rows, n_pos, WIDTH)
    logits, last = D.view(-1, WIDTH)[: len(queries)], slice((n_rows - 1) * n_pos, None)
    D_groups = D.view(n_rows, n_pos, -1, GROUP)
    gaps = {name: _Gap(E, D, p, q, n_tiles) for name, (p, q) in KL.items() if name in stats}
    for tile, (best_of, high_of, Z_of, ED_of) in enumerate(zip(groups, high, Z, ED, strict=True)):
        tokens = slice(tile * WIDTH, (tile + 1) * WIDTH)
        if tokens.stop > W_U.shape[1]:
            D.fill_(torch.finfo(x.dtype).min)
        _logits(queries, W_U, b_U, tokens, out=logits[:, : W_U.shape[1] - tokens.start])
        ahead[:, tokens] = logits[last]
        D[-1] = whole[:, tokens]
        # The logits asked for stand where their tokens do, and those like them: none is above itself by rounding.
        column, which = (first[tokens, None] == token).nonzero(as_tuple=True)
        D[:, at[which], column] = value[:, which]
        for count, logit in zip(better, logits_asked, strict=True):
            count += torch.gt(D, logit, out=E).sum(-1)

        torch.amax(D_groups, -1, out=best_of)
        torch.amax(best_of, -1, out=high_of)
        D.sub_(high_of[..., None])
        torch.exp(D, out=E)
        torch.sum(E, -1, out=Z_of)
        for gap in gaps.values():
            gap.add(tile)
        torch.sum(E.mul_(D), -1, out=ED_of)

    highest = high.amax(0)
    shift = (high - highest).double()
    Z_tiles = Z * shift.exp()
    Z, ED = Z_tiles.sum(0), (ED * shift.exp() + shift * Z_tiles).sum(0)
    lse = highest + Z.log()
    numbers = {"entropy": (Z.log() - ED / Z).clamp(min=0)}
    for name, (p, q) in KL.items():
        if name in stats:
            gap = (gaps[name].sums() * shift[:, p].exp() + (shift[:, p] - shift[:, q]) * Z_tiles[:, p]).sum(0)
            numbers[name] = (gap / Z[p] - Z[p].log() + Z[q].log()).clamp(min=0)
    if "change" in stats:
        numbers["change"] = torch.cat([torch.full_like(Z[:1], torch.nan), numbers["change"]])
    if "js" in stats:
        numbers["js"] = _jensen_shannon(x, lse, W_U, b_U)
    best_groups = groups[:, :-1].movedim(0, 2).flatten(2).topk(min(k, n_tiles * WIDTH // GROUP)).indices
    return _Chunk(best, best_groups, own, 1 + better.long(), lse, numbers)


def _logits(x: Queries, W_U: Unembedding, b_U: Bias | None, tokens: slice, out: Tensor | None = None) -> Tensor:
    """x @ W_U + b_U for some of the tokens, in the dtype of x."""
    W = W_U[:, tokens].to(x.dtype)
    return torch.mm(x, W, out=out) if b_U is None else torch.addmm(b_U[tokens].to(x.dtype), x, W, out=out)


def _own_logits(
    x: Float[Tensor, "row query d_model"], W_U: Unembedding, b_U: Bias | None, token: Int[Tensor, "query"]
) -> Float[Tensor, "row query"]:
    """The logit of one token for each query."""
    logits = torch.einsum("rqd,qd->rq", x, W_U.mT[token].to(x.dtype))
    return logits if b_U is None else logits + b_U[token].to(x.dtype)


def first_alike(W_U: Unembedding, b_U: Bias | None) -> Int[Tensor, "d_vocab"]:
    """For each token the first one that has the same embedding and the same bias: as a rule the token itself."""

    def bits(numbers: Tensor) -> Tensor:
        """Whole numbers, the same for the same numbers; with their sum, -0.0 is 0.0."""
        return (numbers.cpu().double() + 0.0).view(torch.int64)

    d_model, d_vocab = W_U.shape
    first = torch.arange(d_vocab, device="cpu")
    key = torch.zeros_like(first)
    for numbers in W_U[:: -(-d_model // SAMPLE)]:
        key = key * 0x5851F42D4C957F2D + bits(numbers)  # Knuth's multiplier: what differs seldom has the same key
    key, order = key.sort()
    is_again = torch.nn.functional.pad(key[1:] == key[:-1], (1, 1))
    if len(maybe := order[is_again[1:] | is_again[:-1]]):
        there = maybe.to(W_U.device)
        numbers = W_U[:, there] if b_U is None else torch.cat([W_U[:, there], b_U[None, there]])
        _, group = torch.unique(bits(numbers), dim=1, return_inverse=True)
        first[maybe] = torch.full_like(maybe, d_vocab).scatter_reduce(0, group, maybe, "amin")[group]
    return first.to(W_U.device)


class _Gap:
    """The sums of E_p (D_p - D_q) over each tile, as it stands in E and D."""

    def __init__(self, E: Tensor, D: Tensor, p: slice, q: slice, n_tiles: int) -> None:
        self.p, self.q = p, q
        self.E_p, self.D_p, self.D_q = E[p], D[p], D[q]
        self.is_one_row = p in (FIRST, LAST)  # against all: for each position a product of matrices
        self.left, self.right = E[p].transpose(0, 1), D.permute(1, 2, 0)
        n_rows, n_pos, _ = D.shape
        self.found = D.new_empty((n_tiles, n_pos, 1, n_rows) if self.is_one_row else (n_tiles, len(D[p]), n_pos))

    def add(self, tile: int) -> None:
        if self.is_one_row:
            torch.bmm(self.left, self.right, out=self.found[tile])
        else:
            torch.sum(self.E_p * (self.D_p - self.D_q), -1, out=self.found[tile])

    def sums(self) -> Float[Tensor, "tile row pos"]:
        if not self.is_one_row:
            return self.found
        products = self.found[:, :, 0].mT
        return products[:, self.p] - products[:, self.q]


def _jensen_shannon(x: Rows, lse: PerPos, W_U: Unembedding, b_U: Bias | None) -> PerPos:
    """(KL(p || m) + KL(q || m)) / 2, where m is the mean of p and q, and q the last row: a pass of its own."""
    total, queries = torch.zeros_like(lse), x.flatten(0, 1)
    buffers = x.new_empty(4, len(queries) * WIDTH)
    wide = lse.new_empty(len(queries) * WIDTH)
    for start in range(0, W_U.shape[1], WIDTH):
        n = min(WIDTH, W_U.shape[1] - start)
        p, m, gap, p_gap = (buffer[: len(queries) * n].view(*lse.shape, n) for buffer in buffers)
        _logits(queries, W_U, b_U, slice(start, start + n), out=p.view(len(queries), -1))
        p.copy_(wide[: p.numel()].view_as(p).copy_(p).sub_(lse[..., None]))
        q = p[-1:]
        torch.logaddexp(p, q, out=m).sub_(log(2))
        torch.exp(p, out=p_gap).mul_(torch.sub(p, m, out=gap))
        torch.sub(q, m, out=gap).mul_(q.exp())
        total += p_gap.add_(gap).sum(-1) / 2
    total[-1] *= 0  # of the last row and itself, but for rounding
    return total.clamp(min=0)


def _top(
    x: Queries, W_U: Unembedding, b_U: Bias | None, groups: Int[Tensor, "query n"], k: int
) -> tuple[Float[Tensor, "query k"], Int[Tensor, "query k"]]:
    """The k best logits and their tokens: of the groups that hold them, all logits are taken again."""
    found = x.new_empty(*groups.shape, GROUP)
    queries = torch.split(groups.flatten().argsort(), groups.flatten().bincount().tolist())
    for group, at in enumerate(queries):
        if len(at):
            logits = _logits(x[at // groups.shape[1]], W_U, b_U, slice(group * GROUP, (group + 1) * GROUP))
            if logits.shape[1] < GROUP:
                logits = torch.nn.functional.pad(logits, (0, GROUP - logits.shape[1]), value=torch.finfo(x.dtype).min)
            found.view(-1, GROUP)[at] = logits
    return _pick(found, groups, k)


def _top_of_whole(logits: Float[Tensor, "query padded"], k: int) -> tuple[Tensor, Tensor]:
    """The k best of whole rows of logits, by way of the groups that hold them: quicker than topk alone."""
    each = logits.view(len(logits), -1, GROUP)
    groups = each.amax(-1).topk(min(k, each.shape[1])).indices
    return _pick(each.gather(1, groups[..., None].expand(-1, -1, GROUP)), groups, k)


def _pick(
    found: Float[Tensor, "query n GROUP"], groups: Int[Tensor, "query n"], k: int
) -> tuple[Float[Tensor, "query k"], Int[Tensor, "query k"]]:
    """The k best of the logits in some groups, and their tokens."""
    best = found.flatten(1).topk(k)
    return best.values, groups.gather(1, best.indices // GROUP) * GROUP + best.indices % GROUP

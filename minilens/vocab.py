"""Statistics over the vocabulary, a tile of it at a time.

Logits are x @ W_U + b_U, for vectors x that have been through the final norm. A tile's sums are relative to the highest
logit in it, D = logit - highest, and are put together at the end, as in an online softmax (Milakov and Gimelshein 2018,
arXiv 1805.02867). With sums over the vocabulary,

    Z = sum exp(D)      log-probability = D - log Z      entropy = log Z - sum exp(D) D / Z
    KL(p || q) = sum exp(D_p) (D_p - D_q) / Z_p - log Z_p + log Z_q

The rank of the last row's best token in the other rows can be counted only when that token is known. So the last row
runs ahead of the others by some positions: of it alone logits are whole, for those positions, and no product is taken
twice. Information is in nats. Logits are taken in float32 at least, and the sums over tiles on the CPU in float64.

A product of matrices rounds a logit in its own way wherever it stands, and in another way on another processor. So what
must be equal is made equal and not computed twice: of tokens with one embedding and one bias, the logit of the first
serves all. Then they tie on every machine, and the last row's best token is first in it.

In float32, against float64 on the same vectors, entropies, divergences and log-probabilities are within 2e-6 of
1 + the largest logit, and 1e-5 of their size; in float64 within 1e-11 and 1e-9. Ranks are exact but where logits of
other tokens differ by no more than rounding. The tests hold these bounds.
"""

from collections.abc import Hashable, Mapping, Sequence
from math import log
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .device import at_once, products
from .shapes import shapes_of

Rows = Float[Tensor, "row pos d_model"]
Queries = Float[Tensor, "query d_model"]
Unembedding = Float[Tensor, "d_model d_vocab"]
Bias = Float[Tensor, "d_vocab"]
PerPos = Float[Tensor, "*row pos"]
Ids = Int[Tensor, "*row pos"]

SUMS = {"cpu": torch.float64}  # of the sums over tiles; elsewhere float32, which keeps the bounds above, too
SAMPLE = 4  # numbers of an embedding that are looked at to find others like it
GROUP = 64  # neighbours in the vocabulary; the pass keeps the best of them, and finds the top k with it afterwards

ALL, FIRST, LAST = slice(None), slice(0, 1), slice(-1, None)
KL = {  # the rows p and q of each divergence
    "kl_final": (LAST, ALL),
    "kl_row_final": (ALL, LAST),
    "kl_input": (FIRST, ALL),
    "kl_row_input": (ALL, FIRST),
    "change": (slice(1, None), slice(None, -1)),
}
OF_ALL_LOGITS = ("entropy", *KL, "js")  # the statistics that vocab_stats can be asked for


class Top(NamedTuple):
    """The k best tokens of each position, best first; of equal logits any may come first."""

    tokens: Int[Tensor, "*row pos k"]
    logit: Float[Tensor, "*row pos k"]
    logprob: Float[Tensor, "*row pos k"]

    @property
    def prob(self) -> Float[Tensor, "*row pos k"]:
        return self.logprob.exp()

    def __repr__(self) -> str:
        return shapes_of(self)


class TokenStats(NamedTuple):
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

    def where(self, there: Bool[Tensor, "pos"]) -> "TokenStats":
        """The same where there is a token; elsewhere not a number, and rank 0."""
        logit, logprob = (part.where(there, torch.nan) for part in (self.logit, self.logprob))
        return TokenStats(logit, logprob, self.rank.where(there, 0))

    def __repr__(self) -> str:
        return shapes_of(self)


class VocabStats(NamedTuple):
    """What `vocab_stats` finds."""

    top: Top  # [row, pos, k]
    tokens: dict[Hashable, TokenStats]  # [row, pos] each: "final", the last row's best token, and those asked for
    stats: dict[str, Float[Tensor, "row pos"]]

    def check_finite(self, labels: Sequence[str], dtype: torch.dtype) -> None:
        """Raise ValueError for the first row whose logits, of residuals in dtype, are not all finite."""
        for label, finite in zip(labels, self.tokens["final"].logprob.isfinite().all(-1).tolist(), strict=True):
            if not finite:
                raise not_finite(f"the logits of row {label}", dtype)


def not_finite(what: str, dtype: torch.dtype) -> ValueError:
    """The error to raise for numbers that are not, of a model in dtype."""
    return ValueError(
        f"{what} are not finite: there is a NaN or an infinity in the weights, or the numbers are too large for "
        f"{dtype}; if so, load it in a wider dtype, torch.float32 or torch.float64"
    )


@torch.no_grad()
def vocab_stats(
    x: Rows,
    W_U: Unembedding,
    b_U: Bias | None,
    asked: Mapping[Hashable, Int[Tensor, "pos"]],
    *,
    k: int,
    stats: frozenset[str],
    precision: str = "full",
) -> VocabStats:
    """All statistics of some rows of vectors. The first row is called the input, the last one final.

    asked: the tokens to measure, one at each position, under a name of the caller's choice.
    k: how many of the best tokens.
    stats: of OF_ALL_LOGITS, that is "entropy", "kl_final" (output ‖ row), "kl_row_final" (row ‖ output), "kl_input"
    (input ‖ row), "kl_row_input" (row ‖ input), "change" (row ‖ the one before; not a number in the first row) and "js"
    (Jensen and Shannon's, of row and final, which takes a second pass).

    precision: of the products, as `check_precision` has them; all else is in float32 at least.

    Where logits are not finite, no log-probability is.
    """
    n_rows, n_pos, _ = x.shape
    x = x if precision == "full" else x.bfloat16().float()
    size, sizes = W_U.shape[1], at_once(x.device)
    width = sizes.width or -(-size // GROUP) * GROUP
    vocabulary = _Vocabulary(W_U, b_U, first_alike(W_U, b_U), width, precision)
    n = max(1, min(sizes.logits // (n_rows * width), sizes.whole // size, n_pos))
    # Two tensors, since one of twice the size would find no room in what a forward pass has freed.
    whole, ahead = (x.new_empty(n, -(-size // width) * width) for _ in range(2))
    for buffer in (whole, ahead):
        buffer[:, size:] = torch.finfo(x.dtype).min  # past the vocabulary, all is too low to count
    vocabulary.logits(x[-1, :n], ALL, out=whole[:, :size])
    ids = torch.stack([*asked.values()]) if asked else torch.zeros(0, n_pos, dtype=torch.long, device=x.device)
    chunks = []
    for p in range(0, n_pos, n):
        here, after = slice(p, p + n), slice(p + n, p + 2 * n)
        tiles = _Tiles(x[:, here], whole, x[-1, after], ahead, vocabulary, ids[:, here], k, stats)
        for tile in range(tiles.n):
            tiles.add(tile)
        chunks.append(tiles.finish())
        del tiles  # and with it the room that the next ones need
        whole, ahead = ahead, whole

    lse = torch.cat([chunk.lse for chunk in chunks], 1)
    own = torch.cat([chunk.own for chunk in chunks], 2)
    rank = torch.cat([chunk.rank for chunk in chunks], 2)
    if width < size:
        groups = torch.cat([chunk.groups for chunk in chunks], 1)
        rest: Sequence[Tensor] = _top(x[:-1].flatten(0, 1), vocabulary, groups.flatten(0, 1), k)
    else:
        rest = [torch.cat([chunk.others[i] for chunk in chunks], 1) for i in (0, 1)]
    last = (torch.cat([chunk.best[i] for chunk in chunks])[None] for i in (0, 1))
    logit, tokens = (torch.cat([a.view(-1, n_pos, k), b]) for a, b in zip(rest, last, strict=True))
    of_tokens = zip(own, (own - lse).clamp(max=0).to(x.dtype), rank, strict=True)
    return VocabStats(
        Top(tokens, logit, (logit - lse[..., None]).clamp(max=0).to(x.dtype)),
        {name: TokenStats(*parts) for name, parts in zip(("final", *asked), of_tokens, strict=True)},
        {name: torch.cat([chunk.stats[name] for chunk in chunks], 1).to(x.dtype) for name in stats},
    )


class _Vocabulary(NamedTuple):
    """The unembedding. Of tokens with one embedding and one bias, the first serves all."""

    W_U: Unembedding
    b_U: Bias | None
    first: Int[Tensor, "d_vocab"]
    width: int  # tokens in a tile
    precision: str

    @property
    def size(self) -> int:
        return self.W_U.shape[1]

    def logits(self, x: Queries, tokens: slice, out: Tensor | None = None) -> Tensor:
        """x @ W_U + b_U for some of the tokens, in the dtype of x."""
        W = self.W_U[:, tokens]
        if out is None or self.precision != "bfloat16" or x.device.type != "cpu":
            W = self._rounded(W)  # those of a whole tile the CPU's library rounds itself, in less time
        W = W.to(x.dtype)
        with products(self.precision):
            if self.b_U is None:
                return torch.mm(x, W, out=out)
            return torch.addmm(self.b_U[tokens].to(x.dtype), x, W, out=out)

    def logits_of(
        self, x: Float[Tensor, "row query d_model"], token: Int[Tensor, "query"]
    ) -> Float[Tensor, "row query"]:
        """The logit of one token for each query."""
        logits = torch.einsum("rqd,qd->rq", x, self._rounded(self.W_U.mT[token]).to(x.dtype))
        return logits if self.b_U is None else logits + self.b_U[token].to(x.dtype)

    def _rounded(self, W: Tensor) -> Tensor:
        return W if self.precision == "full" else W.bfloat16()

    def make_alike(self, whole: Float[Tensor, "n padded"]) -> None:
        """In whole rows of logits: that of the first for all that are like it."""
        later = (self.first != torch.arange(self.size, device=whole.device)).nonzero()[:, 0]
        whole[:, later] = whole[:, self.first[later]]


class _Chunk(NamedTuple):
    """The statistics of some positions."""

    best: tuple[Tensor, Tensor]  # the last row's best logits and their tokens, [pos, k] each
    groups: Ids  # of the other rows, the groups that hold their best tokens, [row, pos, n],
    others: tuple[
        Tensor, ...
    ]  # or, where one tile is the whole vocabulary, their best logits and tokens, [row, pos, k]
    own: PerPos  # logits of the tokens asked for, [token, row, pos]
    rank: Ids  # and their ranks
    lse: PerPos  # log sum exp
    stats: dict[str, PerPos]


class _Tiles:
    """The pass over the vocabulary for some positions: `add` every tile once, in order, then `finish`.

    `whole` holds the last row's logits there. `ahead` is filled with those of the positions further on.
    """

    def __init__(
        self,
        x: Rows,
        whole: Float[Tensor, "n padded"],
        x_ahead: Queries,
        ahead: Float[Tensor, "n padded"],
        vocabulary: _Vocabulary,
        asked: Ids,
        k: int,
        stats: frozenset[str],
    ) -> None:
        n_rows, n_pos, _ = x.shape
        self.x, self.vocabulary, self.k, self.stats = x, vocabulary, k, stats
        self.whole, self.ahead = whole[:n_pos], ahead[: len(x_ahead)]
        self.n, width = whole.shape[1] // vocabulary.width, vocabulary.width
        vocabulary.make_alike(self.whole)
        self.best = _top_of_whole(self.whole, k)

        # Each token at each position is taken once, so that it has one logit whoever asks for it.
        tokens = vocabulary.first[torch.cat([self.best[1].mT[:1], asked])]
        once, place = torch.unique(tokens * n_pos + torch.arange(n_pos, device=x.device), return_inverse=True)
        self.token, self.at = once // n_pos, once % n_pos
        others, last = vocabulary.logits_of(x[:-1, self.at], self.token), self.whole[self.at, self.token]
        self.value = torch.cat([others, last[None]])
        self.own = self.value[:, place].movedim(0, 1)
        self.better = torch.zeros_like(self.own)  # how many tokens have a higher logit
        self.others: tuple[Tensor, ...] = ()

        self.queries = torch.cat([x[:-1].flatten(0, 1), x_ahead])
        self.groups = x.new_empty(self.n, n_rows, n_pos, width // GROUP)
        self.high, self.Z, self.ED = x.new_empty(3, self.n, n_rows, n_pos)
        self.D, self.E = x.new_empty(2, n_rows, n_pos, width)
        self.gaps = {name: _Gap(self.E, self.D, p, q, self.n) for name, (p, q) in KL.items() if name in stats}

    def add(self, tile: int) -> None:
        """All that is to be known of a tile, relative to its highest logit."""
        D, E, width = self.D, self.E, self.vocabulary.width
        self._fill(slice(tile * width, (tile + 1) * width))
        for count, logit in zip(self.better, self.own, strict=True):
            count += torch.gt(D, logit[..., None], out=E).sum(-1)
        torch.amax(D.unflatten(-1, (-1, GROUP)), -1, out=self.groups[tile])
        torch.amax(self.groups[tile], -1, out=self.high[tile])
        if self.n == 1:
            self.others = _top_of_whole(D[:-1].flatten(0, 1), self.k)
        D.sub_(self.high[tile][..., None])
        torch.exp(D, out=E)
        torch.sum(E, -1, out=self.Z[tile])
        for gap in self.gaps.values():
            gap.add(tile)
        torch.sum(E.mul_(D), -1, out=self.ED[tile])  # the last sum, since it overwrites E

    def _fill(self, tokens: slice) -> None:
        """Put the logits of these tokens into D."""
        D, size = self.D, self.vocabulary.size
        if tokens.stop > size:  # so low that exp(D) is 0, and not -inf, since 0 times -inf is not a number
            D[..., size - tokens.start :] = torch.finfo(D.dtype).min
        logits = D.view(-1, D.shape[-1])[: len(self.queries)]
        self.vocabulary.logits(self.queries, tokens, out=logits[:, : size - tokens.start])
        self.ahead[:, tokens] = logits[len(self.queries) - len(self.ahead) :]
        D[-1] = self.whole[:, tokens]
        # The logits asked for stand where their tokens do, and those like them: none is above itself by rounding.
        column, which = (self.vocabulary.first[tokens, None] == self.token).nonzero(as_tuple=True)
        D[:, self.at[which], column] = self.value[:, which]

    def finish(self) -> _Chunk:
        """What the tiles say together."""
        highest = self.high.amax(0)
        dtype = torch.promote_types(highest.dtype, SUMS.get(highest.device.type, torch.float32))
        shift = (self.high - highest).to(dtype)
        Z_tiles = self.Z * shift.exp()
        Z, ED = Z_tiles.sum(0), (self.ED * shift.exp() + shift * Z_tiles).sum(0)
        lse = highest + Z.log()
        numbers = {"entropy": (Z.log() - ED / Z).clamp(min=0)}
        for name, each in self.gaps.items():
            p, q = KL[name]
            gap = (each.sums() * shift[:, p].exp() + (shift[:, p] - shift[:, q]) * Z_tiles[:, p]).sum(0)
            numbers[name] = (gap / Z[p] - Z[p].log() + Z[q].log()).clamp(min=0)
        if "change" in self.stats:
            numbers["change"] = torch.cat([torch.full_like(Z[:1], torch.nan), numbers["change"]])
        if "js" in self.stats:
            numbers["js"] = _jensen_shannon(self.x, lse, self.vocabulary)
        k = min(self.k, self.n * self.vocabulary.width // GROUP)
        best_groups = self.groups[:, :-1].movedim(0, 2).flatten(2).topk(k).indices
        others = tuple(each.view(*self.x[:-1].shape[:2], self.k) for each in self.others)
        return _Chunk(self.best, best_groups, others, self.own, 1 + self.better.long(), lse, numbers)


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


def _jensen_shannon(x: Rows, lse: PerPos, vocabulary: _Vocabulary) -> PerPos:
    """(KL(p || m) + KL(q || m)) / 2, where m is the mean of p and q, and q the last row: a pass of its own."""
    total, queries, width = torch.zeros_like(lse), x.flatten(0, 1), min(vocabulary.width, vocabulary.size)
    high = lse.to(x.dtype)
    low = (lse - high).to(x.dtype)  # a pair of float32 holds what float64 does
    buffers = x.new_empty(4, len(queries) * width)
    for start in range(0, vocabulary.size, width):
        n = min(width, vocabulary.size - start)
        p, m, gap, p_gap = (buffer[: len(queries) * n].view(*lse.shape, n) for buffer in buffers)
        vocabulary.logits(queries, slice(start, start + n), out=p.view(len(queries), -1))
        p.sub_(high[..., None]).sub_(low[..., None])
        q = p[-1:]
        torch.logaddexp(p, q, out=m).sub_(log(2))
        torch.exp(p, out=p_gap).mul_(torch.sub(p, m, out=gap))
        torch.sub(q, m, out=gap).mul_(q.exp())
        total += p_gap.add_(gap).sum(-1) / 2
    total[-1] *= 0  # of the last row and itself, but for rounding
    return total.clamp(min=0)


def _top(
    x: Queries, vocabulary: _Vocabulary, groups: Int[Tensor, "query n"], k: int
) -> tuple[Float[Tensor, "query k"], Int[Tensor, "query k"]]:
    """The k best logits and their tokens: of the groups that hold them, all logits are taken again."""
    found = x.new_empty(*groups.shape, GROUP)
    queries = torch.split(groups.flatten().argsort(), groups.flatten().bincount().tolist())
    for group, at in enumerate(queries):
        if len(at):
            logits = vocabulary.logits(x[at // groups.shape[1]], slice(group * GROUP, (group + 1) * GROUP))
            if logits.shape[1] < GROUP:
                logits = torch.nn.functional.pad(logits, (0, GROUP - logits.shape[1]), value=torch.finfo(x.dtype).min)
            found.view(-1, GROUP)[at] = logits
    return _pick(found, groups, k)


def _top_of_whole(logits: Float[Tensor, "query padded"], k: int) -> tuple[Tensor, Tensor]:
    """The k best of whole rows of logits, by way of the groups that hold them: quicker than topk alone."""
    each = logits.view(len(logits), logits.shape[1] // GROUP, GROUP)
    groups = each.amax(-1).topk(min(k, each.shape[1])).indices
    return _pick(each.gather(1, groups[..., None].expand(-1, -1, GROUP)), groups, k)


def _pick(
    found: Float[Tensor, "query n GROUP"], groups: Int[Tensor, "query n"], k: int
) -> tuple[Float[Tensor, "query k"], Int[Tensor, "query k"]]:
    """The k best of the logits in some groups, and their tokens."""
    best = found.flatten(1).topk(k)
    return best.values, groups.gather(1, best.indices // GROUP) * GROUP + best.indices % GROUP

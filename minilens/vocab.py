"""Statistics over the vocabulary: what one row of logits says at each position.

Information is in nats. Logits come in float32 at least: see `ops.upcast`.
"""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

Rows = Float[Tensor, "pos d_vocab"]
PerPos = Float[Tensor, "*row pos"]
Ids = Int[Tensor, "*row pos"]


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


def top(logits: Rows, k: int) -> Top:
    """The k tokens with the highest logits."""
    best = logits.topk(k, dim=-1)
    return Top(best.indices, best.values, best.values - logits.logsumexp(-1, keepdim=True))


def standing(logits: Rows, tokens: Ids) -> Standing:
    """Logit, log-probability and rank of one given token per position."""
    logit = logits.gather(-1, tokens[:, None])
    rank = 1 + (logits > logit).sum(-1)
    return Standing(logit[:, 0], (logit - logits.logsumexp(-1, keepdim=True))[:, 0], rank)


def entropy(logits: Rows) -> PerPos:
    """- sum p log p."""
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


def kl(p: Rows, q: Rows) -> PerPos:
    """KL(p || q) = sum p (log p - log q), of the distributions with these logits.

    Never negative: what rounding takes below zero is zero.
    """
    logp, logq = p.log_softmax(-1), q.log_softmax(-1)
    return (logp.exp() * (logp - logq)).sum(-1).clamp(min=0)

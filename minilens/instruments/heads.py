"""Which heads look back to where: at the token before, at the same token, or at what followed it.

Each score is a share of attention, from 0 to 1, on texts of random tokens that are repeated once. No token occurs twice
in a half, so that for each query one key is the right one. For the query at position q in the second half of a text of
2 n tokens, that key is

    induction  q - n + 1   what followed the same token the first time
    previous   q - 1       the token before
    duplicate  q - n       the same token, the first time

and the score of a head is the weight that it gives this key, averaged over the queries of the second half and over the
texts. A head that attends alike to all it sees has about 0.7 / n. Induction is the "prefix matching score" of Olsson et
al. 2022, "In-context Learning and Induction Heads", arXiv 2209.11895; there 25 tokens are repeated four times.
TransformerLens's `detect_head` marks the same keys, but divides by all attention, that of the first half included.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..arguments import check_numbers, quoted, whole_number
from ..model import Model, run
from ..ops import upcast
from ..shapes import shapes_of
from ..traces import Edit, untouched
from ..vocab import not_finite

PerHead = Float[Tensor, "layer head"]


class Head(NamedTuple):
    """One head and one of its scores."""

    layer: int
    head: int
    score: float


class HeadScores(NamedTuple):
    """The scores of every head, on the CPU."""

    induction: PerHead
    previous: PerHead
    duplicate: PerHead

    def __repr__(self) -> str:
        return shapes_of(self)

    def best(self, kind: str, k: int = 5) -> list[Head]:
        """The k heads of the highest score of a kind, "induction", "previous" or "duplicate", best first."""
        if kind not in self._fields:
            raise ValueError(f"there is no score {quoted(kind)}; there are {', '.join(self._fields)}")
        scores: PerHead = getattr(self, kind)
        order = scores.flatten().argsort(descending=True, stable=True)[: whole_number("k", k)].tolist()
        n_heads = scores.shape[1]
        return [Head(at // n_heads, at % n_heads, float(scores.flatten()[at])) for at in order]


@torch.no_grad()
def head_scores(
    model: Model, *, length: int = 25, batch: int = 16, seed: int = 0, edit: Edit = untouched
) -> HeadScores:
    """The scores of every head, on `batch` texts of `length` random tokens, twice; the seed decides which tokens.

    A head of a local layer sees all three keys only where its window is longer than `length`. edit: as for `run`.
    Raises ValueError for a length that the vocabulary or the context is too small for, or less than 3, where two scores
    would share a key, for a model on the device "meta", and for one
    that gives numbers that are not finite.

    >>> model, _ = minilens.load("tales-gpt2")
    >>> minilens.head_scores(model).induction.shape
    torch.Size([8, 8])
    """
    check_numbers(model)
    length, batch, seed = whole_number("length", length), whole_number("batch", batch), whole_number("seed", seed)
    d_vocab = model.W_U.shape[1]
    if not 3 <= length <= d_vocab:
        raise ValueError(f"length must be between 3 and the size of the vocabulary, {d_vocab}; it is {length}")
    if batch < 1:
        raise ValueError(f"batch must be at least 1; it is {batch}")
    random = torch.Generator().manual_seed(seed)
    once = torch.stack([torch.randperm(d_vocab, generator=random, device="cpu")[:length] for _ in range(batch)])
    tokens = once.repeat(1, 2).to(model.W_U.device)
    steps_back = (length - 1, 1, length)  # in the order of HeadScores
    found = []
    for block in run(model, model.embed(tokens), edit=edit):
        second = upcast(block.pattern[:, :, length:])
        found.append(
            torch.stack([second.diagonal(length - back, dim1=-2, dim2=-1).mean((0, 2)) for back in steps_back])
        )
        if not found[-1].isfinite().all():
            raise not_finite(f"the patterns of block {block.layer}", model.W_E.dtype)
        del block
    return HeadScores(*torch.stack(found, 1).cpu())

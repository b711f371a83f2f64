"""Heads by their weights alone: what each looks for, and what it copies.

The formulas are those of Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits". A head has two
matrices of tokens by tokens. With x[token] the stream of a token that stands alone, they are

    QK[query, key]   = (norm(x[query]) @ W_Q + b_Q) · (norm(x[key]) @ W_K + b_K)
    OV[token, other] = norm(x[token]) @ W_V @ W_O @ U[:, other]

QK is the score of a query for a key, before the family's own factor. OV is what the head adds to the logit of `other`
where it attends to `token`, with the scale of the final norm held at 1. The choices in them:

- x[token] is the embedding, without a position. Heads of block 0 read just that. For later blocks, what the MLP of
  block 0 makes of it is added (Wang et al. 2022, "Interpretability in the Wild", do the same): trained models rewrite
  their embeddings there. What attention has brought to the stream is in neither. norm is the block's own ln1.
- U is W_U as the final norm uses it: its gain is in it, and the mean over d_model is subtracted. So is the mean over
  the vocabulary, which softmax does not see.
- From each column of OV its mean is subtracted: what the head adds whatever the token, biases included.

A matrix of tokens by tokens is never in memory: it is kept as two factors that are d_head wide.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor
from torch.nn.functional import layer_norm

from .. import ctrl, gpt2, gpt_neo
from ..arguments import check_model, check_numbers, token_id, whole_number
from ..edits import zero
from ..model import Model
from ..ops import check_layer, upcast
from ..shapes import shapes_of
from ..vocab import not_finite
from .heads import PerHead

TILE = 2**12  # tokens at a time
WHOLE = 2**23  # numbers of a matrix of tokens by tokens at a time
Block = gpt2.Block | gpt_neo.Block | ctrl.Block


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """The weights of attention, head by head: of one layer, or of all with the layer before the head."""

    W_Q: Float[Tensor, "*layer head d_model d_head"]
    W_K: Float[Tensor, "*layer head d_model d_head"]
    W_V: Float[Tensor, "*layer head d_model d_head"]
    W_O: Float[Tensor, "*layer head d_head d_model"]
    b_Q: Float[Tensor, "*layer head d_head"]
    b_K: Float[Tensor, "*layer head d_head"]
    b_V: Float[Tensor, "*layer head d_head"]
    b_O: Float[Tensor, "*layer d_model"]

    __repr__ = shapes_of


def head_weights(model: Model, layer: int | None = None) -> HeadWeights:
    """The weights of the heads of a layer, alike for the three families: views, which share the model's memory.

    layer: without one, those of all layers, which are copied side by side.

    With them q = ln1_out @ W_Q + b_Q for each head, and attn_out is the sum of z @ W_O over heads, + b_O. GPT-Neo has
    no bias in q, k and v: there they are zeros. Raises ValueError for a layer that does not exist.

    >>> model, _ = minilens.load("tales-gpt2")
    >>> minilens.head_weights(model).W_Q.shape, minilens.head_weights(model, 5).W_O.shape
    (torch.Size([8, 8, 256, 32]), torch.Size([8, 32, 256]))
    """
    check_model(model)
    if layer is None:
        layers = [vars(head_weights(model, each)) for each in range(model.n_layers)]
        return HeadWeights(**{name: torch.stack([each[name] for each in layers]) for name in layers[0]})
    n_heads, d_model = model.config.n_heads, model.W_E.shape[1]
    match block := block_of(model, layer):
        case gpt2.Block():
            W, b = block.W_QKV.chunk(3, -1), block.b_QKV.chunk(3)
        case gpt_neo.Block():
            W, b = (block.W_Q, block.W_K, block.W_V), (torch.zeros_like(block.b_O),) * 3
        case ctrl.Block():
            W, b = (block.W_Q, block.W_K, block.W_V), (block.b_Q, block.b_K, block.b_V)
    W_Q, W_K, W_V = (each.view(d_model, n_heads, -1).transpose(0, 1) for each in W)
    b_Q, b_K, b_V = (each.view(n_heads, -1) for each in b)
    return HeadWeights(W_Q, W_K, W_V, block.W_O.view(n_heads, -1, d_model), b_Q, b_K, b_V, block.b_O)


@dataclass(frozen=True, eq=False)
class Circuit:
    """A matrix of tokens by tokens, left @ right. A row is of the query, or of the token that is attended to."""

    left: Float[Tensor, "d_vocab d_head"]
    right: Float[Tensor, "d_head d_vocab"]

    __repr__ = shapes_of

    def row(self, token: int) -> Float[Tensor, "d_vocab"]:
        """All numbers of one row. Raises ValueError for a token that does not exist."""
        return self.left[token_id("token", token, len(self.left))] @ self.right

    def highest(self, token: int, k: int = 10) -> list[tuple[int, float]]:
        """The k tokens with the highest numbers in a row, best first, and these numbers."""
        return self._ends(token, k, largest=True)

    def lowest(self, token: int, k: int = 10) -> list[tuple[int, float]]:
        """The k tokens with the lowest numbers in a row, the lowest first, and these numbers."""
        return self._ends(token, k, largest=False)

    def own_rank(self) -> Int[Tensor, "d_vocab"]:
        """The rank of every token in its own row: 1 where no number there is higher.

        `(circuit.own_rank() <= 5).float().mean()` is the share of tokens that an OV circuit has among its 5 best. This
        takes 2 * d_vocab * d_vocab * d_head operations: half a minute for a head of GPT-2.
        """
        ranks, n = [], max(1, WHOLE // len(self.left))
        for start in range(0, len(self.left), n):
            rows = self.left[start : start + n] @ self.right
            ranks.append(1 + (rows > rows.diagonal(start)[:, None]).sum(1))
        return torch.cat(ranks)

    @property
    def eigenvalues(self) -> Complex[Tensor, "d_head"]:
        """The eigenvalues that need not be 0, those of right @ left; in complex128 on the CPU."""
        return _eigenvalues(self.right @ self.left)

    @property
    def eigenvalue_score(self) -> float:
        """Their sum by the sum of their absolute values, from -1 to 1.

        At 1 every token raises itself, or tokens like it: of OV that is copying, of QK attention to the same token.
        """
        return float(_score(self.eigenvalues))

    def _ends(self, token: int, k: int, *, largest: bool) -> list[tuple[int, float]]:
        row = self.row(token)
        found = row.topk(min(whole_number("k", k), len(row)), largest=largest)
        return list(zip(found.indices.tolist(), found.values.tolist(), strict=True))


@torch.no_grad()
def qk_circuit(model: Model, layer: int, head: int) -> Circuit:
    """What a head looks for: a row for each query, a column for each key. Raises ValueError for no such head."""
    weights, block = _one(model, layer, head)
    W_Q, W_K, b_Q, b_K = (upcast(each[head]) for each in (weights.W_Q, weights.W_K, weights.b_Q, weights.b_K))
    w, b = map(upcast, block.ln1)
    tiles = [x * w + b for x in _alone(model, layer)]
    queries, keys = (torch.cat([x @ W + bias for x in tiles]) for W, bias in ((W_Q, b_Q), (W_K, b_K)))
    finite(queries + keys, f"the queries and keys of head {layer}.{head}", model)
    return Circuit(queries, keys.mT)


@torch.no_grad()
def ov_circuit(model: Model, layer: int, head: int) -> Circuit:
    """What a head writes: a row for each token that it attends to, a column for each logit.

    Raises ValueError for no such head.

    >>> model, tokenizer = minilens.load("tales-gpt2")
    >>> circuit = minilens.ov_circuit(model, 5, 1)
    >>> [tokenizer.decode([token]) for token, _ in circuit.highest(int(tokenizer.encode(" Sue")), 2)]
    [' Sue', 'Sue']
    """
    weights, block = _one(model, layer, head)
    W_V, W_O, w = (upcast(each) for each in (weights.W_V[head], weights.W_O[head], block.ln1.w))
    left = torch.cat([x * w @ W_V for x in _alone(model, layer)])
    right = torch.cat([W_O @ U for U in _unembedding(model)], 1)
    finite(left + right.mT, f"the values of head {layer}.{head}", model)
    return Circuit(centred(left, 0), right)


@torch.no_grad()
def copying_scores(model: Model) -> PerHead:
    """The eigenvalue score of the OV circuit of every head, on the CPU: see Circuit. A head of zeros has 0.

    Raises ValueError for weights that are not finite.
    """
    check_numbers(model)
    first, later = (_all_tokens(model, layer) for layer in (0, 1))
    found = []
    for layer in range(model.n_layers):
        w, weights = block_of(model, layer).ln1.w.cpu().double(), head_weights(model, layer)
        W_O, W_V = weights.W_O.cpu().double(), weights.W_V.cpu().double()
        found.append(finite(W_O @ ((later if layer else first) * w) @ W_V, f"the OV circuits of block {layer}", model))
    return _score(_eigenvalues(torch.stack(found))).float()


def _all_tokens(model: Model, layer: int) -> Float[Tensor, "d_model d_model"]:
    """U @ norm(x) over the whole vocabulary, without the gain of ln1: the same for all blocks but the first.

    The mean of a column of OV changes no eigenvalue that is not 0, since U has no mean.
    """
    tiles = zip(_unembedding(model), _alone(model, layer), strict=True)
    return sum(((U @ x).cpu().double() for U, x in tiles), torch.zeros((), dtype=torch.float64, device="cpu"))


def _alone(model: Model, layer: int) -> Iterator[Float[Tensor, "tile d_model"]]:
    """x of the docstring, of some tokens at a time, through the norm of a block without gain and bias."""
    d_vocab, d_model = model.W_E.shape
    scale = sqrt(d_model) if model.family == "ctrl" else 1.0  # as in `embed`
    for start in range(0, d_vocab, TILE):
        resid = model.W_E[start : start + TILE, None] * scale  # texts of one token
        if layer > 0:
            resid = model.block(0, resid, zero(0, "attn_out")).resid_post
        yield layer_norm(upcast(resid[:, 0]), (d_model,), eps=model.config.ln_eps)


def _unembedding(model: Model) -> Iterator[Float[Tensor, "d_model tile"]]:
    """U of the docstring, of some tokens at a time."""
    gain, W_U = upcast(model.ln_final.w)[:, None], model.W_U
    mean = W_U.mean(1, dtype=gain.dtype)[:, None]
    for start in range(0, W_U.shape[1], TILE):
        yield centred(gain * (upcast(W_U[:, start : start + TILE]) - mean), 0)


def centred(x: Tensor, dim: int) -> Tensor:
    return x - x.mean(dim, keepdim=True)


def _eigenvalues(core: Float[Tensor, "*head d_head d_head"]) -> Complex[Tensor, "*head d_head"]:
    found: Tensor = torch.linalg.eigvals(core.cpu().double())
    return found


def _score(eigenvalues: Complex[Tensor, "*head d_head"]) -> Float[Tensor, "*head"]:
    return eigenvalues.real.sum(-1) / eigenvalues.abs().sum(-1).clamp(min=torch.finfo(torch.float64).tiny)


def block_of(model: Model, layer: int) -> Block:
    check_layer(layer, model.n_layers)
    block = model.blocks[layer]
    assert isinstance(block, Block)
    return block


def _one(model: Model, layer: int, head: int) -> tuple[HeadWeights, Block]:
    """The weights of a layer that has this head."""
    check_numbers(model)
    weights, n_heads = head_weights(model, layer), model.config.n_heads
    if whole_number("head", head) not in range(n_heads):
        raise ValueError(f"head {head} does not exist: the model's heads are 0 to {n_heads - 1}")
    return weights, block_of(model, layer)


def finite(x: Tensor, what: str, model: Model) -> Tensor:
    if not x.isfinite().all():
        raise not_finite(what, model.W_E.dtype)
    return x

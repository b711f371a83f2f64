"""Which heads read what other heads write: composition, from the weights alone.

Let A be W_V @ W_O of the first head, and B what the second one makes of the stream. Composition is then
||A @ B|| / (||A|| ||B||) in Frobenius norms, from 0 to 1 (Elhage et al. 2021, "A Mathematical Framework for Transformer
Circuits"). B is

    W_Q @ W_K.T    for the second head's queries
    W_K @ W_Q.T    for its keys
    W_V @ W_O      for its values

The gain of ln1 is in B, and of A and B the part is left out that every norm subtracts, as TransformerLens does when it
folds the norms into the weights. Where A is turned at random, the square of composition is 1 / (d_model - 1) on
average: exactly, since a turn spreads it over all directions alike, and the mean is not one of them. That is the
baseline.
"""

from math import sqrt
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from ..arguments import check_numbers
from ..model import Model
from ..ops import upcast
from ..shapes import shapes_of
from .circuits import block_of, centred, finite, head_weights


class Composition(NamedTuple):
    """How much each head reads of what each earlier one writes, on the CPU; not a number where it is not earlier.

    query, key, value: what the reading head uses it for. The writing head's layer and number come first.
    random: the baseline, 1 / sqrt(d_model - 1). Twice that is twice as much as two heads have in common by chance.
    """

    query: Float[Tensor, "layer head layer head"]
    key: Float[Tensor, "layer head layer head"]
    value: Float[Tensor, "layer head layer head"]
    random: float

    def __repr__(self) -> str:
        return shapes_of(self)


@torch.no_grad()
def composition(model: Model) -> Composition:
    """The composition of all pairs of heads. A head of zeros has 0 with all.

    Raises ValueError for weights that are not finite.

    >>> model, _ = minilens.load("tales-gpt2")
    >>> minilens.composition(model).key.shape
    torch.Size([8, 8, 8, 8])
    """
    check_numbers(model)
    n_layers, n_heads, d_model = model.n_layers, model.config.n_heads, model.W_E.shape[1]
    found = torch.full((n_layers, n_heads, 3, n_layers, n_heads), torch.nan, device="cpu")
    writes: list[Float[Tensor, "head*d_head d_model"]] = []
    for layer in range(n_layers):
        write, reads = _writes_and_reads(model, layer)
        for earlier, written in enumerate(writes):
            products = (written @ reads).view(n_heads, -1, 3, n_heads, written.shape[0] // n_heads)
            found[earlier, :, :, layer] = products.square().sum((1, 4)).sqrt().cpu()
        writes.append(write)
    query, key, value = found.unbind(2)
    return Composition(query, key, value, sqrt(1 / max(1, d_model - 1)))


def _writes_and_reads(model: Model, layer: int) -> tuple[Tensor, Tensor]:
    """Of the heads of a layer A, [head * d_head, d_model], and B as query, key and value, [d_model, 3 * head * d_head].

    Each is of norm 1. A product X @ Y has the norm of R @ Y, where X = Q @ R and the columns of Q are orthonormal: so A
    and B are as narrow as a head.
    """
    weights, w = head_weights(model, layer), upcast(block_of(model, layer).ln1.w)
    Q, K, V = (centred(w[:, None] * upcast(W), -2) for W in (weights.W_Q, weights.W_K, weights.W_V))
    O = centred(upcast(weights.W_O), -1)  # noqa: E741  # the field's letter
    finite(Q.sum() + K.sum() + V.sum() + O.sum(), f"the weights of the heads of block {layer}", model)
    A = _unit(_R(V) @ O)
    B = torch.stack([_unit(Q @ _R(K).mT), _unit(K @ _R(Q).mT), _unit(V @ _R(O.mT).mT)])
    return A.flatten(0, 1), B.permute(2, 0, 1, 3).flatten(1)


def _R(W: Float[Tensor, "head d_model d_head"]) -> Float[Tensor, "head d_head d_head"]:
    R: Tensor = torch.linalg.qr(W, mode="r").R
    return R


def _unit(W: Float[Tensor, "head m n"]) -> Float[Tensor, "head m n"]:
    """Each head's matrix by its norm; zeros stay zeros."""
    return normalize(W.flatten(1)).view_as(W)

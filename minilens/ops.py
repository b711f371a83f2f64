"""The few operations that GPT-2, GPT-Neo and CTRL share to the letter."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from .arguments import check_ids, whole_number
from .shapes import Grid, Heads, Keys, Mask, Resid, Tokens, shapes_of


class LayerNorm(NamedTuple):
    """The learned gain w and bias b of a LayerNorm."""

    w: Float[Tensor, "d_model"]
    b: Float[Tensor, "d_model"]

    def __repr__(self) -> str:
        return shapes_of(self)


def layer_norm(resid: Resid, norm: LayerNorm, eps: float) -> Resid:
    """(x - mean) / sqrt(variance + eps) * w + b over the last axis; the variance is the biased one.

    torch takes mean and variance in float32 at least, whatever the dtype of x.
    """
    return F.layer_norm(resid, norm.w.shape, norm.w, norm.b, eps)


def linear(
    x: Float[Tensor, "batch pos d_in"],
    W: Float[Tensor, "d_in d_out"],
    b: Float[Tensor, "d_out"] | None = None,
) -> Float[Tensor, "batch pos d_out"]:
    """x @ W + b, the product and the sum in one step."""
    if x.device.type == "mps":  # where torch 2.8 reads a view like W.mT wrongly (pytorch issue 161640)
        return x @ W if b is None else x @ W + b
    return F.linear(x, W.mT, b)  # torch writes W the other way round


def split_heads(x: Float[Tensor, "batch pos d_model"], n_heads: int) -> Heads:
    """Cut the last axis into heads, in order, and put the heads before the positions."""
    return x.view(*x.shape[:-1], n_heads, -1).transpose(1, 2)


def merge_heads(z: Heads) -> Float[Tensor, "batch pos d_model"]:
    """The inverse of split_heads."""
    return z.transpose(1, 2).flatten(-2)


def causal_mask(resid: Resid) -> Mask:
    """True where a query may see a key: at its own position and before. Of resid only length and device count."""
    n = resid.shape[1]
    return torch.ones(n, n, dtype=torch.bool, device=resid.device).tril()


def upcast(x: Tensor) -> Tensor:
    """x in float32 at least: what is wider stays as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def attention_scores(q: Heads, k: Keys) -> Grid:
    """q @ k.mT: how much each query asks for each key, in float32 at least, which half precision could overflow."""
    return upcast(q) @ upcast(k).mT


def softmax(scores: Grid, dtype: torch.dtype) -> Grid:
    """exp(score) / sum of exp over the keys, taken in float32 at least. What it gives has this dtype, that of v."""
    return scores.softmax(-1, dtype=torch.promote_types(dtype, torch.float32)).to(dtype)


def gelu_new(x: Tensor) -> Tensor:
    """x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))), the tanh approximation of GELU.

    Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2. torch takes it in one pass.
    """
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": gelu_new,
    "gelu_pytorch_tanh": gelu_new,  # the same function
    "gelu_fast": gelu_new,  # and the same again
    "gelu": F.gelu,  # the exact one, x times the normal distribution's cdf; in Cerebras-GPT
    "relu": F.relu,
}


def check_tokens(tokens: Tokens, d_vocab: int, n_ctx: int) -> None:
    """Raise ValueError, in one sentence, for tokens that a model of this vocabulary and context cannot read."""
    check_ids(tokens)
    if tokens.numel() == 0:
        raise ValueError("the prompt is empty: it must hold at least one token")
    if tokens.shape[1] > n_ctx:
        raise ValueError(f"the prompt has {tokens.shape[1]} tokens, but the model's context holds {n_ctx}: shorten it")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= d_vocab:
        wrong = low if low < 0 else high
        raise ValueError(f"token id {wrong} is out of range: the model's ids go from 0 to {d_vocab - 1}")


def check_layer(layer: int, n_layers: int) -> None:
    """Raise ValueError for a layer that the model does not have."""
    if whole_number("layer", layer) not in range(n_layers):
        raise ValueError(f"layer {layer} does not exist: the model's layers are 0 to {n_layers - 1}")

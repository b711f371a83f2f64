"""CTRL, from the first line to the last.

Keskar et al. 2019, "CTRL: A Conditional Transformer Language Model for Controllable Generation", arXiv 1909.05858; code
at github.com/salesforce/ctrl, weights converted for transformers, whose `CTRLModel` is the reference here. The same
computation as gpt2.py, line for line, but for these departures, by the name of the value or the method:

- `embed`: the embedding is multiplied by sqrt(d_model) before the positions are added. The unembedding is not.
- `positions`: not learned but sines and cosines, as in the Transformer of 2017. The sines fill the first half of the
  vector and the cosines the second. They do not take turns (salesforce/ctrl, `positional_encoding`).
- `q, k, v`: three matrices, each with a bias.
- `scores`: divided by sqrt(d_head) in every checkpoint. As in gpt2.py they are taken in float32 at least, where
  transformers takes those of weights in half precision in half precision.
- `mlp_post`: the activation is ReLU. The width of the MLP is a setting of its own (8192 for d_model 1280 in the paper).
- `ln_eps`: the norms inside the blocks have the epsilon 1e-6. Only that of the final norm is a setting.
- `b_U`: the unembedding is the embedding, with a bias for each token.

A prompt begins with a control code, such as `Links` or `Wikipedia`: the model has never seen one without.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .checkpoint.settings import Settings
from .checkpoint.tensors import Checkpoint
from .ops import (
    LayerNorm,
    attention_scores,
    causal_mask,
    check_layer,
    check_tokens,
    layer_norm,
    linear,
    merge_heads,
    softmax,
    split_heads,
)
from .shapes import Logits, Resid, Tokens, shapes_of
from .traces import BlockTrace, Edit, editable, untouched


@dataclass(frozen=True)
class Config:
    """The sizes of one checkpoint, and what else its config.json chooses."""

    d_vocab: int
    n_ctx: int
    d_model: int
    n_layers: int
    n_heads: int
    d_mlp: int
    ln_eps: ClassVar[float] = 1e-6  # inside the blocks (salesforce/ctrl, `EncoderLayer`); no checkpoint can change it
    ln_final_eps: float
    is_tied: bool  # the unembedding is the embedding

    @classmethod
    def read(cls, settings: Settings) -> "Config":
        """The sizes in a config.json, under their names on the Hub."""
        d_model = settings.integer("n_embd")
        n_heads = settings.integer("n_head")
        if d_model % n_heads:
            raise settings.refusal("n_head", n_heads, f"a divisor of n_embd, {d_model}")
        return cls(
            d_vocab=settings.integer("vocab_size"),
            n_ctx=settings.integer("n_positions"),
            d_model=d_model,
            n_layers=settings.integer("n_layer"),
            n_heads=n_heads,
            d_mlp=settings.integer("dff"),
            ln_final_eps=settings.number("layer_norm_epsilon", 1e-6),
            is_tied=settings.flag("tie_word_embeddings", True),
        )


@dataclass(frozen=True, eq=False)
class Block:
    """The weights of one block; each W is written so that it maps x to x @ W."""

    ln1: LayerNorm
    W_Q: Float[Tensor, "d_model d_model"]
    b_Q: Float[Tensor, "d_model"]
    W_K: Float[Tensor, "d_model d_model"]
    b_K: Float[Tensor, "d_model"]
    W_V: Float[Tensor, "d_model d_model"]
    b_V: Float[Tensor, "d_model"]
    W_O: Float[Tensor, "d_model d_model"]
    b_O: Float[Tensor, "d_model"]
    ln2: LayerNorm
    W_in: Float[Tensor, "d_model d_mlp"]
    b_in: Float[Tensor, "d_mlp"]
    W_out: Float[Tensor, "d_mlp d_model"]
    b_out: Float[Tensor, "d_model"]

    __repr__ = shapes_of


@dataclass(frozen=True, eq=False)
class CTRL:
    """A model: its sizes and its weights, which nothing changes."""

    family: ClassVar[str] = "ctrl"
    config: Config
    W_E: Float[Tensor, "d_vocab d_model"]
    blocks: tuple[Block, ...]
    ln_final: LayerNorm
    W_U: Float[Tensor, "d_model d_vocab"]
    b_U: Float[Tensor, "d_vocab"]

    __repr__ = shapes_of

    @property
    def n_layers(self) -> int:
        return self.config.n_layers

    @property
    def ln_final_eps(self) -> float:
        return self.config.ln_final_eps

    def __call__(self, tokens: Tokens) -> Logits:
        """The whole forward pass: logits of the next token. Raises ValueError for tokens that it cannot read."""
        resid = self.embed(tokens)
        for layer in range(self.n_layers):
            resid = self.block(layer, resid).resid_post
        return self.unembed(resid)

    def embed(self, tokens: Tokens) -> Resid:
        """The stream entering block 0. Raises ValueError for tokens that the model cannot read."""
        check_tokens(tokens, self.config.d_vocab, self.config.n_ctx)
        return self.W_E[tokens] * math.sqrt(self.config.d_model) + self.positions(tokens.shape[1])

    def positions(self, n: int) -> Float[Tensor, "pos d_model"]:
        """What `embed` adds to the first n tokens' embeddings."""
        # As many as the next power of two, so that texts of like lengths share one table.
        return sinusoids(1 << (n - 1).bit_length(), self.config.d_model)[:n].to(self.W_E)

    def block(self, layer: int, resid: Resid, edit: Edit = untouched) -> BlockTrace:
        """Everything that block `layer` computes from the stream entering it. Raises ValueError for no such layer."""
        check_layer(layer, self.config.n_layers)
        w, cfg = self.blocks[layer], self.config
        at = editable(edit, layer)  # at("z", z) is z, unless the caller's edit replaces it; SITES has the names

        # Attention reads the residual stream...
        resid_pre = at("resid_pre", resid)  # batch pos d_model
        ln1_out = layer_norm(resid_pre, w.ln1, cfg.ln_eps)  # batch pos d_model
        q, k, v = linear(ln1_out, w.W_Q, w.b_Q), linear(ln1_out, w.W_K, w.b_K), linear(ln1_out, w.W_V, w.b_V)
        q = at("q", split_heads(q, cfg.n_heads))  # batch head pos d_head
        k = at("k", split_heads(k, cfg.n_heads))  # batch head pos d_head
        v = at("v", split_heads(v, cfg.n_heads))  # batch head pos d_head
        scores = attention_scores(q * q.shape[-1] ** -0.5, k)  # batch head query key
        visible = causal_mask(resid)  # query key
        scores = scores.where(visible, -torch.inf)
        pattern = at("pattern", softmax(scores, v.dtype))  # batch head query key
        z = at("z", pattern @ v)  # batch head pos d_head
        attn_out = at("attn_out", linear(merge_heads(z), w.W_O, w.b_O))  # batch pos d_model
        # ...and adds to it; the MLP reads the sum...
        resid_mid = at("resid_mid", resid_pre + attn_out)  # batch pos d_model
        ln2_out = layer_norm(resid_mid, w.ln2, cfg.ln_eps)  # batch pos d_model
        mlp_pre = linear(ln2_out, w.W_in, w.b_in)  # batch pos d_mlp
        mlp_post = at("mlp_post", mlp_pre.relu())  # batch pos d_mlp
        mlp_out = at("mlp_out", linear(mlp_post, w.W_out, w.b_out))  # batch pos d_model
        # ...and adds to it in turn.
        resid_post = at("resid_post", resid_mid + mlp_out)  # batch pos d_model

        # Everything, in the order in which it was computed.
        return BlockTrace(
            layer, resid_pre, ln1_out, q, k, v, scores, pattern, z, attn_out,
            resid_mid, ln2_out, mlp_pre, mlp_post, mlp_out, resid_post,
        )  # fmt: skip

    def final_norm(self, resid: Resid) -> Resid:
        """The norm after the last block: what the unembedding reads."""
        return layer_norm(resid, self.ln_final, self.ln_final_eps)

    def unembed(self, resid: Resid) -> Logits:
        """The final norm and the unembedding: logits of the next token."""
        return linear(self.final_norm(resid), self.W_U, self.b_U)


@lru_cache(maxsize=1)
@torch.inference_mode(False)  # so that the next caller may take gradients, whatever this one does
def sinusoids(n: int, d_model: int) -> Float[Tensor, "pos d_model"]:
    """The vectors of positions 0 to n - 1: sines, then cosines, of position / 10000**(2i / d_model).

    In float32, on the CPU and in transformers' order of operations, so as to equal it. Salesforce's own code takes the
    angles in float64, which differs by 4e-5 at 512 positions.
    """
    i, position = (torch.arange(size, dtype=torch.float32, device="cpu") for size in (d_model, n))
    angles = position[:, None] * (1 / torch.pow(10000, 2 * (i // 2) / d_model))
    return torch.cat([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=-1)


def build(config: Config, checkpoint: Checkpoint) -> CTRL:
    """The model of these sizes with the weights of a checkpoint, under their names on the Hub."""
    d_model, d_mlp, take = config.d_model, config.d_mlp, checkpoint.take

    def norm(name: str) -> LayerNorm:
        return LayerNorm(take(f"{name}.weight", d_model), take(f"{name}.bias", d_model))

    def block(h: str) -> Block:
        return Block(
            ln1=norm(f"{h}.layernorm1"),
            W_Q=take(f"{h}.multi_head_attention.Wq.weight", d_model, d_model).mT,
            b_Q=take(f"{h}.multi_head_attention.Wq.bias", d_model),
            W_K=take(f"{h}.multi_head_attention.Wk.weight", d_model, d_model).mT,
            b_K=take(f"{h}.multi_head_attention.Wk.bias", d_model),
            W_V=take(f"{h}.multi_head_attention.Wv.weight", d_model, d_model).mT,
            b_V=take(f"{h}.multi_head_attention.Wv.bias", d_model),
            W_O=take(f"{h}.multi_head_attention.dense.weight", d_model, d_model).mT,
            b_O=take(f"{h}.multi_head_attention.dense.bias", d_model),
            ln2=norm(f"{h}.layernorm2"),
            W_in=take(f"{h}.ffn.0.weight", d_mlp, d_model).mT,
            b_in=take(f"{h}.ffn.0.bias", d_mlp),
            W_out=take(f"{h}.ffn.2.weight", d_model, d_mlp).mT,
            b_out=take(f"{h}.ffn.2.bias", d_model),
        )

    W_E = take("w.weight", config.d_vocab, d_model)
    return CTRL(
        config=config,
        W_E=W_E,
        blocks=tuple(block(f"h.{layer}") for layer in range(config.n_layers)),
        ln_final=norm("layernorm"),
        W_U=checkpoint.unembedding("lm_head.weight", W_E, config.is_tied),
        b_U=take("lm_head.bias", config.d_vocab),
    )

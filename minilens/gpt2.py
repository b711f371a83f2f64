"""GPT-2, from the first line to the last.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; code at github.com/openai/gpt-2. GPT-Neo and
CTRL are told as departures from this file. What may surprise here:

- The norms stand before attention and MLP, inside the branches, so nothing but sums touches the residual stream; one
  more norm follows the last block (section 2.3 of the paper).
- Positions are learned, one vector for each place in the context.
- One matrix makes queries, keys and values, side by side in this order (openai/gpt-2, `attn`).
- GELU is the tanh approximation (openai/gpt-2, `gelu`).
- The unembedding is the embedding, without a bias (openai/gpt-2, `model`).
- A checkpoint may leave out the division of the scores by sqrt(d_head), or divide those of layer n by n + 1 as well
  (transformers' `scale_attn_weights` and `scale_attn_by_inverse_layer_idx`; Stanford's Mistral uses the second).
- Scores and their softmax are taken in float32 at least, whatever the dtype of the weights. transformers does that for
  weights in half precision only where a checkpoint sets `reorder_and_upcast_attn`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .checkpoint.settings import Settings
from .checkpoint.tensors import Checkpoint
from .ops import (
    ACTIVATIONS,
    LayerNorm,
    causal_mask,
    check_layer,
    check_tokens,
    layer_norm,
    linear,
    merge_heads,
    softmax,
    split_heads,
    upcast,
)
from .shapes import Logits, Resid, Tokens
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
    ln_eps: float
    activation: Callable[[Tensor], Tensor]
    scale_by_d_head: bool
    scale_by_layer: bool

    @classmethod
    def read(cls, settings: Settings) -> "Config":
        """The sizes in a config.json, under their names on the Hub."""
        d_model = settings.integer("n_embd")
        n_heads = settings.integer("n_head")
        if d_model % n_heads:
            raise settings.refusal("n_head", n_heads, f"a divisor of n_embd, {d_model}")
        settings.flag("reorder_and_upcast_attn", False)  # either way: scores are in float32 at least
        return cls(
            d_vocab=settings.integer("vocab_size"),
            n_ctx=settings.integer("n_positions"),
            d_model=d_model,
            n_layers=settings.integer("n_layer"),
            n_heads=n_heads,
            d_mlp=settings.integer("n_inner", 4 * d_model),
            ln_eps=settings.number("layer_norm_epsilon", 1e-5),
            activation=settings.choice("activation_function", ACTIVATIONS, "gelu_new"),
            scale_by_d_head=settings.flag("scale_attn_weights", True),
            scale_by_layer=settings.flag("scale_attn_by_inverse_layer_idx", False),
        )

    def score_scale(self, layer: int) -> float:
        """What the scores of a layer are multiplied by."""
        d_head = self.d_model // self.n_heads
        scale = d_head**-0.5 if self.scale_by_d_head else 1.0
        return scale / (layer + 1) if self.scale_by_layer else scale


@dataclass(frozen=True, eq=False)
class Block:
    """The weights of one block; each W is written so that it maps x to x @ W."""

    ln1: LayerNorm
    W_QKV: Float[Tensor, "d_model 3*d_model"]
    b_QKV: Float[Tensor, "3*d_model"]
    W_O: Float[Tensor, "d_model d_model"]
    b_O: Float[Tensor, "d_model"]
    ln2: LayerNorm
    W_in: Float[Tensor, "d_model d_mlp"]
    b_in: Float[Tensor, "d_mlp"]
    W_out: Float[Tensor, "d_mlp d_model"]
    b_out: Float[Tensor, "d_model"]


@dataclass(frozen=True, eq=False)
class GPT2:
    """A model: its sizes and its weights, which nothing changes."""

    family: ClassVar[str] = "gpt2"
    b_U: ClassVar[None] = None
    config: Config
    W_E: Float[Tensor, "d_vocab d_model"]
    W_pos: Float[Tensor, "n_ctx d_model"]
    blocks: tuple[Block, ...]
    ln_final: LayerNorm

    @property
    def n_layers(self) -> int:
        return self.config.n_layers

    @property
    def ln_final_eps(self) -> float:
        return self.config.ln_eps

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        return self.W_E.mT

    def embed(self, tokens: Tokens) -> Resid:
        """The stream entering block 0. Raises ValueError for tokens that the model cannot read."""
        check_tokens(tokens, self.config.d_vocab, self.config.n_ctx)
        return self.W_E[tokens] + self.positions(tokens.shape[1])

    def positions(self, n: int) -> Float[Tensor, "pos d_model"]:
        """What `embed` adds to the first n tokens' embeddings."""
        return self.W_pos[:n]

    def block(self, layer: int, resid: Resid, edit: Edit = untouched) -> BlockTrace:
        """Everything that block `layer` computes from the stream entering it. Raises ValueError for no such layer."""
        check_layer(layer, self.config.n_layers)
        w, cfg = self.blocks[layer], self.config
        at = editable(edit, layer)  # marks the places where a caller may replace a value

        # Attention reads the residual stream...
        resid_pre = at("resid_pre", resid)
        ln1_out = layer_norm(resid_pre, w.ln1, cfg.ln_eps)
        q, k, v = linear(ln1_out, w.W_QKV, w.b_QKV).chunk(3, -1)
        q = at("q", split_heads(q, cfg.n_heads))
        k = at("k", split_heads(k, cfg.n_heads))
        v = at("v", split_heads(v, cfg.n_heads))
        scores = upcast(q) @ upcast(k).mT * cfg.score_scale(layer)
        visible = causal_mask(resid)
        scores = scores.masked_fill(~visible, -torch.inf)
        pattern = at("pattern", softmax(scores, v.dtype))
        z = at("z", pattern @ v)
        attn_out = at("attn_out", linear(merge_heads(z), w.W_O, w.b_O))
        # ...and adds to it; the MLP reads the sum...
        resid_mid = at("resid_mid", resid_pre + attn_out)
        ln2_out = layer_norm(resid_mid, w.ln2, cfg.ln_eps)
        mlp_pre = linear(ln2_out, w.W_in, w.b_in)
        mlp_post = at("mlp_post", cfg.activation(mlp_pre))
        mlp_out = at("mlp_out", linear(mlp_post, w.W_out, w.b_out))
        # ...and adds to it in turn.
        resid_post = at("resid_post", resid_mid + mlp_out)

        return BlockTrace(
            layer=layer,
            resid_pre=resid_pre,
            ln1_out=ln1_out,
            q=q,
            k=k,
            v=v,
            scores=scores,
            pattern=pattern,
            z=z,
            attn_out=attn_out,
            resid_mid=resid_mid,
            ln2_out=ln2_out,
            mlp_pre=mlp_pre,
            mlp_post=mlp_post,
            mlp_out=mlp_out,
            resid_post=resid_post,
        )

    def final_norm(self, resid: Resid) -> Resid:
        """What the unembedding reads."""
        return layer_norm(resid, self.ln_final, self.config.ln_eps)

    def unembed(self, resid: Resid) -> Logits:
        """The final norm and the unembedding: logits of the next token."""
        return linear(self.final_norm(resid), self.W_U, self.b_U)


def build(config: Config, checkpoint: Checkpoint) -> GPT2:
    """The model of these sizes with the weights of a checkpoint, under their names on the Hub."""
    d_model, d_mlp, take = config.d_model, config.d_mlp, checkpoint.take

    def norm(name: str) -> LayerNorm:
        return LayerNorm(take(f"{name}.weight", d_model), take(f"{name}.bias", d_model))

    def block(h: str) -> Block:
        checkpoint.ignore(f"{h}.attn.bias", f"{h}.attn.masked_bias")  # the causal mask
        return Block(
            ln1=norm(f"{h}.ln_1"),
            W_QKV=take(f"{h}.attn.c_attn.weight", d_model, 3 * d_model),
            b_QKV=take(f"{h}.attn.c_attn.bias", 3 * d_model),
            W_O=take(f"{h}.attn.c_proj.weight", d_model, d_model),
            b_O=take(f"{h}.attn.c_proj.bias", d_model),
            ln2=norm(f"{h}.ln_2"),
            W_in=take(f"{h}.mlp.c_fc.weight", d_model, d_mlp),
            b_in=take(f"{h}.mlp.c_fc.bias", d_mlp),
            W_out=take(f"{h}.mlp.c_proj.weight", d_mlp, d_model),
            b_out=take(f"{h}.mlp.c_proj.bias", d_model),
        )

    W_E = take("wte.weight", config.d_vocab, d_model)
    checkpoint.tied("lm_head.weight", W_E)
    return GPT2(
        config=config,
        W_E=W_E,
        W_pos=take("wpe.weight", config.n_ctx, d_model),
        blocks=tuple(block(f"h.{layer}") for layer in range(config.n_layers)),
        ln_final=norm("ln_f"),
    )

"""GPT-2, from the first line to the last.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; code at github.com/openai/gpt-2. A block
adds two things to the residual stream x, one after the other:

    x = x + attention(norm(x))
    x = x + MLP(norm(x))

Read `embed`, `block` and `unembed` first. `at(name, value)` in them is the value, unless a caller asks for another; a
comment such as "batch pos d_model" is a shape. gpt_neo.py and ctrl.py list only in what they differ from this file.

What may surprise, by the name of the value or the method:

- `ln1_out`, `ln2_out`: the norms stand before attention and MLP, inside the branches. Only sums touch the residual
  stream. One more norm follows the last block (section 2.3 of the paper).
- `positions`: learned, one vector for each place in the context.
- `q, k, v`: one matrix makes queries, keys and values, side by side in this order (openai/gpt-2, `attn`).
- `scores`: multiplied by 1 / sqrt(d_head), and taken in float32 at least. For weights in half precision transformers
  takes them in float32 only where a checkpoint sets `reorder_and_upcast_attn`. That setting changes nothing here.
- `score_scale`: the factor of the scores, by layer. A few checkpoints set it to 1, or divide it by n + 1 in layer n
  (transformers, `scale_attn_weights` and `scale_attn_by_inverse_layer_idx`; the second is set in the GPT-2s that
  Stanford trained and called Mistral).
- `mlp_post`: GELU is the tanh approximation (openai/gpt-2, `gelu`).
- `W_U`, `b_U`: the unembedding is the embedding transposed, and has no bias (openai/gpt-2, `model`). A few checkpoints
  have another matrix (transformers, `tie_word_embeddings`).
- `build`: the Hub's files hold these matrices as x @ W needs them (transformers, `Conv1D`), so none is transposed.
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
    ln_eps: float
    activation: Callable[[Tensor], Tensor]
    score_scale: tuple[float, ...]  # for each layer
    is_tied: bool  # the unembedding is the embedding

    @classmethod
    def read(cls, settings: Settings) -> "Config":
        """The sizes in a config.json, under their names on the Hub."""
        d_model = settings.integer("n_embd")
        n_layers = settings.integer("n_layer", most=10_000)  # a hostile file could ask for billions
        n_heads = settings.integer("n_head")
        if d_model % n_heads:
            raise settings.refusal("n_head", n_heads, f"a divisor of n_embd, {d_model}")
        settings.flag("reorder_and_upcast_attn", False)  # read, and without effect: scores are in float32 at least
        return cls(
            d_vocab=settings.integer("vocab_size"),
            n_ctx=settings.integer("n_positions"),
            d_model=d_model,
            n_layers=n_layers,
            n_heads=n_heads,
            d_mlp=settings.integer("n_inner", 4 * d_model),
            ln_eps=settings.number("layer_norm_epsilon", 1e-5),
            activation=settings.choice("activation_function", ACTIVATIONS, "gelu_new"),
            score_scale=_score_scale(settings, d_model // n_heads, n_layers),
            is_tied=settings.flag("tie_word_embeddings", True),
        )


def _score_scale(settings: Settings, d_head: int, n_layers: int) -> tuple[float, ...]:
    """The factor of the scores of each layer: 1 / sqrt(d_head), but in the few checkpoints that say otherwise."""
    scale = d_head**-0.5 if settings.flag("scale_attn_weights", True) else 1.0
    by_layer = settings.flag("scale_attn_by_inverse_layer_idx", False)
    return tuple(scale / (layer + 1) if by_layer else scale for layer in range(n_layers))


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

    __repr__ = shapes_of


@dataclass(frozen=True, eq=False)
class GPT2:
    """A model: its sizes and its weights, which nothing changes."""

    family: ClassVar[str] = "gpt2"
    b_U: ClassVar[None] = None  # the unembedding has no bias; CTRL's has one
    config: Config
    W_E: Float[Tensor, "d_vocab d_model"]
    W_pos: Float[Tensor, "n_ctx d_model"]
    blocks: tuple[Block, ...]
    ln_final: LayerNorm
    W_U: Float[Tensor, "d_model d_vocab"]

    __repr__ = shapes_of

    @property
    def n_layers(self) -> int:
        return self.config.n_layers

    @property
    def ln_final_eps(self) -> float:
        return self.config.ln_eps

    def __call__(self, tokens: Tokens) -> Logits:
        """The whole forward pass: logits of the next token. Raises ValueError for tokens that it cannot read."""
        resid = self.embed(tokens)
        for layer in range(self.n_layers):
            resid = self.block(layer, resid).resid_post
        return self.unembed(resid)

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
        at = editable(edit, layer)  # at("z", z) is z, unless the caller's edit replaces it; SITES has the names

        # Attention reads the residual stream...
        resid_pre = at("resid_pre", resid)  # batch pos d_model
        ln1_out = layer_norm(resid_pre, w.ln1, cfg.ln_eps)  # batch pos d_model
        q, k, v = linear(ln1_out, w.W_QKV, w.b_QKV).chunk(3, -1)  # each batch pos d_model
        q = at("q", split_heads(q, cfg.n_heads))  # batch head pos d_head
        k = at("k", split_heads(k, cfg.n_heads))  # batch head pos d_head
        v = at("v", split_heads(v, cfg.n_heads))  # batch head pos d_head
        scores = attention_scores(q * cfg.score_scale[layer], k)  # batch head query key
        visible = causal_mask(resid)  # query key
        scores = scores.where(visible, -torch.inf)
        pattern = at("pattern", softmax(scores, v.dtype))  # batch head query key
        z = at("z", pattern @ v)  # batch head pos d_head
        attn_out = at("attn_out", linear(merge_heads(z), w.W_O, w.b_O))  # batch pos d_model
        # ...and adds to it; the MLP reads the sum...
        resid_mid = at("resid_mid", resid_pre + attn_out)  # batch pos d_model
        ln2_out = layer_norm(resid_mid, w.ln2, cfg.ln_eps)  # batch pos d_model
        mlp_pre = linear(ln2_out, w.W_in, w.b_in)  # batch pos d_mlp
        mlp_post = at("mlp_post", cfg.activation(mlp_pre))  # batch pos d_mlp
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


def build(config: Config, checkpoint: Checkpoint) -> GPT2:
    """The model of these sizes with the weights of a checkpoint, under their names on the Hub."""
    d_model, d_mlp, take = config.d_model, config.d_mlp, checkpoint.take

    def norm(name: str) -> LayerNorm:
        return LayerNorm(take(f"{name}.weight", d_model), take(f"{name}.bias", d_model))

    def block(h: str) -> Block:
        checkpoint.ignore(f"{h}.attn.bias", f"{h}.attn.masked_bias")  # stored causal masks
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
    return GPT2(
        config=config,
        W_E=W_E,
        W_pos=take("wpe.weight", config.n_ctx, d_model),
        blocks=tuple(block(f"h.{layer}") for layer in range(config.n_layers)),
        ln_final=norm("ln_f"),
        W_U=checkpoint.unembedding("lm_head.weight", W_E, config.is_tied),
    )

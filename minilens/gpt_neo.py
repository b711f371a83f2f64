"""GPT-Neo, from the first line to the last.

Black et al. 2021; code at github.com/EleutherAI/gpt-neo, weights converted for transformers, whose `GPTNeoModel` is the
reference here. The same computation as gpt2.py, line for line, but for these departures, by the name of the value:

- `q, k, v`: three matrices without a bias.
- `scores`: not divided by sqrt(d_head), since mesh-tensorflow, in which the model was trained, does not do it either
  (transformers issue 20828). Unscaled, they overflow float16, so they are taken in float32. The reference takes them so
  even where the weights are float64.
- `visible`: layers take turns between global attention and local attention. A query of a local layer sees itself and
  the `window - 1` positions before it (transformers, `GPTNeoSelfAttention`).
- `build`: the Hub's files hold the matrices as torch's `nn.Linear` needs them, so each is transposed, which moves no
  number. float16 is refused. At 2048 tokens it is reported to give NaN even with the scores in float32 (transformers
  issue 11076).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .checkpoint.settings import Settings, shown
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
    is_local: tuple[bool, ...]  # for each layer
    window: int
    is_tied: bool  # the unembedding is the embedding

    @classmethod
    def read(cls, settings: Settings) -> "Config":
        """The sizes in a config.json, under their names on the Hub."""
        d_model = settings.integer("hidden_size")
        n_layers = settings.integer("num_layers", most=10_000)  # a hostile file could ask for billions
        n_heads = settings.integer("num_heads")
        if d_model % n_heads:
            raise settings.refusal("num_heads", n_heads, f"a divisor of hidden_size, {d_model}")
        return cls(
            d_vocab=settings.integer("vocab_size"),
            n_ctx=settings.integer("max_position_embeddings"),
            d_model=d_model,
            n_layers=n_layers,
            n_heads=n_heads,
            d_mlp=settings.integer("intermediate_size", 4 * d_model),
            ln_eps=settings.number("layer_norm_epsilon", 1e-5),
            activation=settings.choice("activation_function", ACTIVATIONS, "gelu_new"),
            is_local=_is_local(settings, n_layers),
            window=settings.integer("window_size", 256),
            is_tied=settings.flag("tie_word_embeddings", True),
        )


def _is_local(settings: Settings, n_layers: int) -> tuple[bool, ...]:
    """Which layers attend locally: `attention_types`, such as [[["global", "local"], 6]], or its expansion."""
    types, layers = settings.take("attention_types"), settings.take("attention_layers")
    kinds = layers
    if types is not None:
        try:
            kinds = []
            for pattern, times in types:
                # A count may be anything; one more than can be right is enough.
                kinds += pattern * min(times, n_layers // max(1, len(pattern)) + 1)
                if len(kinds) > n_layers:
                    break
        except (TypeError, ValueError):
            kinds = None
    if not isinstance(kinds, list) or len(kinds) != n_layers or not all(k in ("global", "local") for k in kinds):
        raise settings.refusal("attention_types", types, f'"global" or "local" for each of the {n_layers} layers')
    if layers not in (None, kinds):
        raise settings.refusal("attention_layers", layers, f"the expansion of attention_types, {shown(kinds)}")
    return tuple(kind == "local" for kind in kinds)


@dataclass(frozen=True, eq=False)
class Block:
    """The weights of one block; each W is written so that it maps x to x @ W."""

    ln1: LayerNorm
    W_Q: Float[Tensor, "d_model d_model"]
    W_K: Float[Tensor, "d_model d_model"]
    W_V: Float[Tensor, "d_model d_model"]
    W_O: Float[Tensor, "d_model d_model"]
    b_O: Float[Tensor, "d_model"]
    ln2: LayerNorm
    W_in: Float[Tensor, "d_model d_mlp"]
    b_in: Float[Tensor, "d_mlp"]
    W_out: Float[Tensor, "d_mlp d_model"]
    b_out: Float[Tensor, "d_model"]

    __repr__ = shapes_of


@dataclass(frozen=True, eq=False)
class GPTNeo:
    """A model: its sizes and its weights, which nothing changes."""

    family: ClassVar[str] = "gpt_neo"
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
        q, k, v = linear(ln1_out, w.W_Q), linear(ln1_out, w.W_K), linear(ln1_out, w.W_V)  # each batch pos d_model
        q = at("q", split_heads(q, cfg.n_heads))  # batch head pos d_head
        k = at("k", split_heads(k, cfg.n_heads))  # batch head pos d_head
        v = at("v", split_heads(v, cfg.n_heads))  # batch head pos d_head
        scores = attention_scores(q.float(), k.float())  # batch head query key
        visible = causal_mask(resid)  # query key
        if cfg.is_local[layer]:
            visible = visible.triu(1 - cfg.window)  # nothing further back than the window
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


def build(config: Config, checkpoint: Checkpoint) -> GPTNeo:
    """The model of these sizes with the weights of a checkpoint, under their names on the Hub.

    Raises ValueError for float16.
    """
    if checkpoint.dtype == torch.float16:
        raise ValueError(
            "GPT-Neo is not computed in float16, whose range its unscaled attention scores overflow: load it with "
            "dtype=torch.bfloat16 or torch.float32"
        )
    d_model, d_mlp, take = config.d_model, config.d_mlp, checkpoint.take

    def norm(name: str) -> LayerNorm:
        return LayerNorm(take(f"{name}.weight", d_model), take(f"{name}.bias", d_model))

    def block(h: str) -> Block:
        checkpoint.ignore(f"{h}.attn.attention.bias", f"{h}.attn.attention.masked_bias")  # stored causal masks
        return Block(
            ln1=norm(f"{h}.ln_1"),
            W_Q=take(f"{h}.attn.attention.q_proj.weight", d_model, d_model).mT,
            W_K=take(f"{h}.attn.attention.k_proj.weight", d_model, d_model).mT,
            W_V=take(f"{h}.attn.attention.v_proj.weight", d_model, d_model).mT,
            W_O=take(f"{h}.attn.attention.out_proj.weight", d_model, d_model).mT,
            b_O=take(f"{h}.attn.attention.out_proj.bias", d_model),
            ln2=norm(f"{h}.ln_2"),
            W_in=take(f"{h}.mlp.c_fc.weight", d_mlp, d_model).mT,
            b_in=take(f"{h}.mlp.c_fc.bias", d_mlp),
            W_out=take(f"{h}.mlp.c_proj.weight", d_model, d_mlp).mT,
            b_out=take(f"{h}.mlp.c_proj.bias", d_model),
        )

    W_E = take("wte.weight", config.d_vocab, d_model)
    return GPTNeo(
        config=config,
        W_E=W_E,
        W_pos=take("wpe.weight", config.n_ctx, d_model),
        blocks=tuple(block(f"h.{layer}") for layer in range(config.n_layers)),
        ln_final=norm("ln_f"),
        W_U=checkpoint.unembedding("lm_head.weight", W_E, config.is_tied),
    )

"""What must hold of any model of the three families, whatever its weights: measured on a few tokens.

Where a value is a sum of products, its bound is Higham's (2002, "Accuracy and Stability of Numerical Algorithms",
section 3.1): a sum of n products taken in float32, in any order, misses the exact one by at most g(n) times the sum of
the products' absolute values, with g(n) = n u / (1 - n u) and u = 2**-24. So the measured error is given relative to
that sum, and no weights, however large, are a reason to miss the bound.
"""

from collections.abc import Iterator
from dataclasses import fields
from math import isnan, nan
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..checkpoint.tokenizer import ByteBPE, Subwords, Tokenizer
from ..lens import lens_rows
from ..model import Model, decode, trace
from ..ops import merge_heads
from ..shapes import Tokens
from ..table import logit_lens
from ..traces import BlockTrace, Trace

LENGTH, CHANGED = 12, 4  # tokens of the probe, and those at its end that are changed to see what hears of it
BEYOND = 8  # positions of the probe past the end of a local layer's window
TILE = 2**13  # tokens of the vocabulary that are taken to float64 at a time
PLAIN, HARD = "once upon a time there was a little cat", " 3 naïve cats ☃\n\tin the\u00a0snow 🐈"


class Identity(NamedTuple):
    """A number that must not be larger than its bound."""

    what: str
    value: float  # not a number where it could not be measured; then it does not hold
    bound: float
    why: str  # the reason for the bound

    @property
    def holds(self) -> bool:
        return self.value <= self.bound

    @property
    def fault(self) -> str | None:
        if self.holds:
            return None
        found = "not a number" if isnan(self.value) else f"{self.value:.3g}"
        return f"{self.what}: {found}, where at most {self.bound:.3g} is right"


@torch.no_grad()
def identities(model: Model, config: Any, tokenizer: Tokenizer | None) -> tuple[Identity, ...]:
    """The identities of a model in float32 on the CPU, and those of its tokenizer if it has one.

    config: the model's; d_vocab, n_ctx and, if there is one, the window are read. The tokens
    are spread evenly over the vocabulary. Some six forward passes of twelve tokens are run; beside the model there is
    little more in memory than one block's weights in float64.
    """
    d_vocab, n_layers = config.d_vocab, model.n_layers
    tokens = probe(min(LENGTH, config.n_ctx), d_vocab)
    whole = trace(model, tokens)
    last = whole.blocks[-1].resid_post
    kept = max(1, tokens.shape[1] - CHANGED)
    ending = torch.cat([tokens[:, :kept], (tokens[:, kept:] + 1) % d_vocab], 1)
    middle = n_layers // 2
    *_, final_row = lens_rows(model, tokens, layers=[])
    bit_for_bit = "bit for bit: the same operations on the same numbers"

    found = [
        Identity("numbers that are NaN or infinite", _not_finite(whole), 0, "none can come of finite weights"),
        Identity(
            "the stream is the sum of what is written to it",
            _largest(*_steps(model, whole)),
            0,
            "bit for bit: blocks only add to it",
        ),
        Identity(
            "what blocks write, less its parts in float64",
            _largest(*_writes(model, whole)),
            _g(max(model.blocks[0].W_out.shape) + 1),
            "relative: rounding of a sum of n = d_mlp + 1",
        ),
        Identity(
            "places seen that a query must not see, or hidden ones",
            _wrongly_seen(model, config, whole),
            0,
            "causal, and in a local layer within the window",
        ),
        Identity(
            "sums of the rows of attention, less 1",
            _largest(*(block.pattern.double().sum(-1) - 1 for block in whole.blocks)),
            _g(tokens.shape[1] + 2),
            "rounding of a sum of n = keys + 2",
        ),
        Identity(
            "what the logits hear of tokens that come later",
            _largest(whole.logits[:, :kept] - trace(model, ending).logits[:, :kept]),
            0,
            "bit for bit: masked keys have the weight 0",
        ),
        Identity(
            "the final norm, less its formula in float64",
            _norm_error(model, last),
            _g(last.shape[-1] + 2),
            "relative: rounding of a sum of n = d_model + 2",
        ),
        Identity(
            "logits less those of a run that resumes half-way",
            _largest(whole.logits - decode(model, whole.blocks[middle].resid_pre, start=middle)),
            0,
            bit_for_bit,
        ),
        Identity("logits less the last row of the lens", _largest(whole.logits - final_row.logits), 0, bit_for_bit),
        *_vocabulary(model, tokens, whole, middle),
    ]
    if tokenizer:
        found += _of_tokenizer(tokenizer, d_vocab)
    return tuple(found)


def probe(n: int, d_vocab: int) -> Tokens:
    """n tokens, spread evenly over the vocabulary."""
    return (torch.arange(n) * d_vocab // n)[None]


def _g(n: int) -> float:
    return n * 2**-24 / (1 - n * 2**-24)


def _largest(*errors: Tensor) -> float:
    """The largest of all numbers without their signs; not a number where one of them is none."""
    return torch.stack([error.abs().amax().double() for error in errors]).max().item()


def _share(error: Tensor, of: Tensor) -> Tensor:
    """The error relative to something positive; an error of 0 is 0 of anything."""
    return error.abs() / of.clamp(min=torch.finfo(of.dtype).tiny)


def _not_finite(whole: Trace) -> float:
    values = [whole.embed, whole.logits]
    for block in whole.blocks:
        values += [getattr(block, field.name) for field in fields(block) if field.name not in ("layer", "scores")]
        values.append(block.scores.masked_fill(block.scores.isneginf(), 0))  # masked
    return float(sum(int((~value.isfinite()).sum()) for value in values))


def _steps(model: Model, whole: Trace) -> Iterator[Tensor]:
    """Each value of the stream, less the sum that it should be."""
    stream = whole.embed
    for block in whole.blocks:
        yield block.resid_pre - stream
        yield block.resid_mid - (block.resid_pre + block.attn_out)
        yield block.resid_post - (block.resid_mid + block.mlp_out)
        stream = block.resid_post
    yield whole.logits - model.unembed(stream)


def _writes(model: Model, whole: Trace) -> Iterator[Tensor]:
    """What each block writes, less the same taken from its weights in float64; relative."""
    for weights, block in zip(model.blocks, whole.blocks, strict=True):
        for written, value, W, b in (
            (block.attn_out, merge_heads(block.z), weights.W_O, weights.b_O),
            (block.mlp_out, block.mlp_post, weights.W_out, weights.b_out),
        ):
            x, W64, b64 = value.double(), W.double(), b.double()
            yield _share(written - (x @ W64 + b64), x.abs() @ W64.abs() + b64.abs())


def _wrongly_seen(model: Model, config: Any, whole: Trace) -> float:
    """Over all layers; and of the first local one again, on a text that is longer than its window."""
    is_local = getattr(config, "is_local", (False,) * model.n_layers)
    window = getattr(config, "window", config.n_ctx)
    found = sum(_seen_amiss(block, window if is_local[block.layer] else config.n_ctx) for block in whole.blocks)
    if True in is_local:
        n = min(config.n_ctx, window + BEYOND)
        found += _seen_amiss(model.block(is_local.index(True), model.embed(probe(n, config.d_vocab))), window)
    return float(found)


def _seen_amiss(block: BlockTrace, window: int) -> int:
    n = block.scores.shape[-1]
    back = torch.arange(n)[:, None] - torch.arange(n)
    hidden = (back < 0) | (back >= window)
    amiss = (block.scores.isneginf() != hidden) | (hidden & (block.pattern != 0))
    return int(amiss.sum())


def _norm_error(model: Model, resid: Tensor) -> float:
    """Relative to the parts: x and the mean that is taken from it, the variance with its own error, and the bias."""
    x, w, b = resid.double(), model.ln_final.w.double(), model.ln_final.b.double()
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)
    scale = (variance + model.ln_final_eps).rsqrt()
    squares = x.square().mean(-1, keepdim=True) * scale.square()
    size = (x.abs() + x.abs().mean(-1, keepdim=True) + (x - mean).abs() * squares) * scale * w.abs() + b.abs()
    return _largest(_share(model.final_norm(resid) - ((x - mean) * scale * w + b), size))


def _vocabulary(model: Model, tokens: Tokens, whole: Trace, middle: int) -> Iterator[Identity]:
    """The unembedding, and the statistics of the lens, against whole rows of logits in float64."""
    stream = [whole.embed, whole.blocks[middle].resid_post, whole.blocks[-1].resid_post]
    logits, sizes = _unembedded(model, torch.cat([model.final_norm(resid) for resid in stream]))
    rounding = _largest(_share(whole.logits[0] - logits[-1], sizes[-1]))
    yield Identity(
        "logits less final norm @ W_U + b_U in float64",
        rounding,
        _g(stream[0].shape[-1] + 1),
        "relative: rounding of a sum of n = d_model + 1",
    )
    logprob = logits.log_softmax(-1)
    exact = {
        "entropy": -(logprob.exp() * logprob).sum(-1),
        "kl_final": (logprob[-1:].exp() * (logprob[-1:] - logprob)).sum(-1),
        "logprob": logprob.amax(-1),
    }
    try:
        table = logit_lens(model, tokens, layers=[middle], top_k=1, stats=("top", "entropy", "kl_final"))
    except ValueError:  # logits that are not finite
        shares = [torch.tensor(nan)]
    else:
        rows = [0, table.labels.index(f"{middle}.resid_post"), -1]
        values = {"entropy": table.entropy, "kl_final": table.kl_final, "logprob": table.top.logprob[..., 0]}
        delta = 4 * rounding * sizes.amax()
        shares = []
        for name, value in values.items():
            bound = 2e-6 * (1 + logits.abs().amax()) + 1e-5 * exact[name].abs() + delta * (4 + 2 * exact[name].abs())
            shares.append(_share(value[rows] - exact[name], bound))
    yield Identity(
        "statistics of the lens less log_softmax in float64",
        _largest(*shares),
        1,
        "a share of vocab.py's bound for the rounding above",
    )


def _unembedded(
    model: Model, x: Float[Tensor, "row pos d_model"]
) -> tuple[Float[Tensor, "row pos d_vocab"], Float[Tensor, "row pos d_vocab"]]:
    """x @ W_U + b_U in float64, and the same sum of absolute values."""
    x, tiles = x.double(), []
    for start in range(0, model.W_U.shape[1], TILE):
        tokens = slice(start, start + TILE)
        W = model.W_U[:, tokens].double()
        b = W.new_zeros(()) if model.b_U is None else model.b_U[tokens].double()
        tiles.append((x @ W + b, x.abs() @ W.abs() + b.abs()))
    logits, sizes = (torch.cat(parts, -1) for parts in zip(*tiles, strict=True))
    return logits, sizes


def _of_tokenizer(tokenizer: Tokenizer, d_vocab: int) -> Iterator[Identity]:
    yield Identity(
        "ids of the tokenizer that the model does not have",
        max(0, tokenizer.size - d_vocab),
        0,
        "each token of a text must have an embedding",
    )
    if isinstance(tokenizer, Subwords):  # which may change a text, and need not know every letter
        return
    text = " ".join([*tokenizer.codes[:1], PLAIN])
    if isinstance(tokenizer, ByteBPE):
        text = f" {text}{HARD}"  # where a checkpoint asks for a space before each text, a second one is not added
    yield Identity(
        "a text that its tokens do not give back",
        float(tokenizer.decode(tokenizer.encode(text)[0]) != text),
        0,
        "any text where tokens are bytes, else a plain one",
    )

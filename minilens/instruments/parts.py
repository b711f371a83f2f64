"""What each part of a model writes to the stream: how large it is, which way it goes, what it says in tokens.

The stream is a sum: the token's embedding, the position, and what attention and MLP of each block write. What attention
writes is a sum again: z @ W_O of each head, and a bias. So is what an MLP writes: each neuron's activation times its
row of W_out, and a bias. directions.py says how a write is read in tokens.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..arguments import check_numbers, positions_in, quoted, top_count, whole_number
from ..checkpoint.tokenizer import Tokenizer
from ..edits import then
from ..model import Model, run
from ..ops import check_layer, upcast
from ..shapes import Resid, Tokens
from ..traces import RESID_SITES, ROW_SITES, BlockTrace, Edit, Site, untouched
from ..vocab import Top, vocab_stats
from .directions import NO_STATS, Shares, Vectors, in_tokens, normed

WHOLE = 2**23  # numbers of the writes at some positions, which are in memory at a time
PerPart = Float[Tensor, "part pos"]
PerPos = Float[Tensor, "pos"]


@dataclass(frozen=True, eq=False)
class Parts:
    """What some parts of a model write, at some positions of a text: numbers on the CPU.

    Labels: "embed" and "positions", which make the stream that enters block 0; "3.attn_out" and "3.mlp_out";
    "3.head.5" and "3.attn_bias"; "3.neuron.17" and "3.mlp_bias". What an edit changed in a sum is a part of its own,
    such as "3.resid_mid_edit": the new value less the one it took the place of.
    """

    labels: tuple[str, ...]
    positions: Int[Tensor, "pos"]  # the places in the text that the columns show
    tokens: Int[Tensor, "pos"]  # the input token at each
    final_tokens: Int[Tensor, "pos"]  # the best token of the model's output at each
    norm: PerPart  # of the write
    stream: PerPart  # the norm of the stream that it is added to; for "embed" and "positions" that of their sum
    cosine: PerPart  # of the write and that stream
    share: PerPart  # what it adds to the logit of final_tokens: that of `attribute`
    alone: Top  # [part pos k], and so are the next two; see VectorTokens
    raised: Shares
    lowered: Shares
    mean: PerPart
    stream_error: PerPos  # the sum of all parts, less what they make: the norm of that by the norm of what they make
    logit_error: PerPos  # the sum of all shares, less the share of what they make
    tokenizer: Tokenizer | None = None  # how the views show tokens; without one, by their ids

    @property
    def ratio(self) -> PerPart:
        """The norm of the write by that of the stream that it is added to."""
        return self.norm / self.stream

    def largest(self, k: int = 10) -> "Parts":
        """The k parts of the largest norm, each where it is largest; the largest first."""
        order = self.norm.amax(1).argsort(descending=True, stable=True)[: whole_number("k", k)]

        def cut(value: Any) -> Any:
            return type(value)(*map(cut, value)) if isinstance(value, tuple) else value[order]

        numbers = ("norm", "stream", "cosine", "share", "alone", "raised", "lowered", "mean")
        labels = tuple(self.labels[part] for part in order.tolist())
        return replace(self, labels=labels, **{name: cut(getattr(self, name)) for name in numbers})

    def __repr__(self) -> str:
        missed, miscounted = float(self.stream_error.max()), float(self.logit_error.abs().max())
        return (
            f"Parts: {len(self.labels)} from {self.labels[0]} to {self.labels[-1]} at {len(self.positions)} positions; "
            f"the sum of all misses what they make by {missed:.1e} of it, and a logit by {miscounted:.1e}"
        )


@torch.no_grad()
def parts(
    model: Model,
    tokens: Tokens,
    layer: int | None = None,
    *,
    by: str = "head",
    positions: int | Iterable[int] | None = None,
    top_k: int = 5,
    edit: Edit = untouched,
    tokenizer: Tokenizer | None = None,
) -> Parts:
    """What each part writes, in one text of shape [1, pos].

    layer: whose heads or neurons to show. Without one: the embedding, and attention and MLP of every layer.
    by: "head" or "neuron", of that layer.
    positions: those to show, negative ones counted from the end; the model sees the whole text in any case.
    top_k: how many tokens to name.
    edit: as for `run`. The parts are then those of the edited pass.
    tokenizer: how the views show tokens.

    Numbers are of float32 at least. Beside the model there are in memory the writes at some positions and a tile of
    logits, never all neurons' logits. Raises ValueError for a layer or a position that does not exist, for neurons
    without a layer, and for numbers that are not finite.

    >>> model, tokenizer = minilens.load("tales-gpt2")
    >>> found = minilens.parts(model, tokenizer.encode("Once upon a time"))
    >>> found.labels[:4], found.ratio.shape
    (('embed', 'positions', '0.attn_out', '0.mlp_out'), torch.Size([18, 4]))
    >>> bool(found.logit_error.abs().max() < 1e-4)
    True
    """
    check_numbers(model)
    embed, k = model.embed(tokens), top_count(top_k, model.W_U.shape[1])
    if len(tokens) != 1:
        raise ValueError(f"parts reads one text, of shape [1, pos]; got {len(tokens)}: give each alone, unpadded")
    if by not in ("head", "neuron"):
        raise ValueError(f'by must be "head" or "neuron"; got {quoted(by)}')
    if layer is not None:
        check_layer(layer, model.n_layers)
    elif by == "neuron":
        raise ValueError("neurons are shown of one layer: name it")
    columns = positions_in("the text has", positions, tokens.shape[1])
    written, last = _written(model, embed, columns, layer, by, edit)

    output = vocab_stats(upcast(model.final_norm(last)), model.W_U, model.b_U, {}, k=1, stats=NO_STATS)
    output.check_finite(["output"], embed.dtype)
    best, logit = output.top.tokens[0, :, 0], output.top.logit[0, :, 0]
    u = upcast(model.W_U[:, best]).mT  # pos d_model
    scale = (upcast(last[0]).var(-1, correction=0) + model.ln_final_eps).sqrt()
    if layer is None:  # what the parts make is the last residual: its share is the model's own logit, less biases
        made = logit - u @ upcast(model.ln_final.b) - (0 if model.b_U is None else upcast(model.b_U[best]))
    else:
        made = (normed(model, written.whole, scale) * u).sum(-1)

    found: list[tuple[Tensor, ...]] = []
    size = max(1, WHOLE // (len(written.labels) * embed.shape[-1]))
    for start in range(0, len(columns), size):
        here = slice(start, start + size)
        vectors, stream = written.at(here), written.stream[:, here]
        read, share = in_tokens(model, vectors, scale[here], k, [*written.labels], best[here])
        whole = written.whole[here]
        missed = (vectors.sum(0) - whole).norm(dim=-1) / whole.norm(dim=-1).clamp(min=torch.finfo(whole.dtype).tiny)
        sizes = (
            vectors.norm(dim=-1),
            stream.norm(dim=-1).expand(len(vectors), -1),
            cosine_similarity(vectors, stream, -1),
        )
        found.append((missed[None], *sizes, share, *read.alone, *read.raised, *read.lowered, read.mean))
    (missed, norm, stream, cosine, share, *words, mean) = (
        torch.cat(each, 1).cpu() for each in zip(*found, strict=True)
    )
    return Parts(
        labels=written.labels,
        positions=torch.tensor(columns, device="cpu"),
        tokens=tokens[0, columns].cpu(),
        final_tokens=best.cpu(),
        norm=norm,
        stream=stream,
        cosine=cosine,
        share=share,
        alone=Top(*words[:3]),
        raised=Shares(*words[3:5]),
        lowered=Shares(*words[5:]),
        mean=mean,
        stream_error=missed[0],
        logit_error=share.sum(0) - made.cpu(),
        tokenizer=tokenizer,
    )


class _Written(NamedTuple):
    """The writes of the parts, at the columns."""

    labels: tuple[str, ...]
    at: Callable[[slice], Vectors]  # at some of the columns
    stream: Vectors  # what each is added to; one for all, or one for each
    whole: Float[Tensor, "pos d_model"]  # what they make


def _written(
    model: Model, embed: Resid, columns: list[int], layer: int | None, by: str, edit: Edit
) -> tuple[_Written, Float[Tensor, "1 column d_model"]]:
    """The writes, and the last residual: one forward pass."""
    before: dict[str, Tensor] = {}

    def note(site: Site, value: Tensor) -> Tensor:
        before[site.name] = value
        return value

    def here(x: Float[Tensor, "1 *head pos d"]) -> Float[Tensor, "*head column d"]:
        return upcast(x[0][..., columns, :])

    positions = here(model.positions(embed.shape[1])[None])
    every = [("embed", here(embed) - positions, here(embed)), ("positions", positions, here(embed))]
    written = None
    for block in run(model, embed, edit=then(note, edit)):
        for name in ROW_SITES if layer is None else ():
            value, old = getattr(block, name), before[name]
            if name not in RESID_SITES:
                entering = block.resid_pre if name == "attn_out" else block.resid_mid
                every.append((f"{block.layer}.{name}", here(value), here(entering)))
            elif value is not old:
                every.append((f"{block.layer}.{name}_edit", here(value) - here(old), here(old)))
        if layer == block.layer:
            written = _within(model, block, by, before, here)
        last = block.resid_post[:, columns]
        before.clear()
        del block
    if written is None:
        labels, vectors, streams = zip(*every, strict=True)
        stacked = torch.stack(vectors)
        written = _Written(labels, lambda some: stacked[:, some], torch.stack(streams), upcast(last[0]))
    return written, last


def _within(
    model: Model, block: BlockTrace, by: str, before: dict[str, Tensor], here: Callable[[Tensor], Tensor]
) -> _Written:
    """The writes of the heads or neurons of one block."""
    w, layer = model.blocks[block.layer], block.layer
    if by == "head":
        name, stream, W, bias = "attn_out", block.resid_pre, w.W_O, w.b_O
        values = here(block.z)  # head pos d_head
    else:
        name, stream, W, bias = "mlp_out", block.resid_mid, w.W_out, w.b_out
        values = here(block.mlp_post).mT[..., None]  # d_mlp pos 1
    W = upcast(W).view(len(values), -1, W.shape[-1])  # part d d_model
    whole = getattr(block, name)
    labels = [*(f"{layer}.{by}.{n}" for n in range(len(values))), f"{layer}.{name.removesuffix('_out')}_bias"]
    others = [upcast(bias).expand(values.shape[1], -1)]
    if whole is not before[name]:
        labels.append(f"{layer}.{name}_edit")
        others.append(here(whole) - here(before[name]))
    rest = torch.stack(others)
    vectors = lambda some: torch.cat([values[:, some] @ W, rest[:, some]])  # noqa: E731
    return _Written(tuple(labels), vectors, here(stream)[None], here(whole))

"""Gradients: a trace that they flow through, and what they say of patching before it is done.

Patching runs the model once for each cell. A gradient of the metric estimates all cells at once:

    attribution patching    (clean - corrupt) · the gradient in the corrupt run           two passes and one backwards
    integrated gradients    (clean - corrupt) · its mean on the line between both values  `steps` passes for each value

summed over what a cell holds. The first is Nanda 2023, "Attribution Patching"; Syed et al. 2023 (arXiv 2310.10348)
compare it with patching. It takes the model for linear, and is worst where it is not: in the stream of early layers.
The second is Sundararajan et al. 2017 (arXiv 1703.01365), with a layer's value as the input and the corrupt run's as
the baseline. Its cells sum to all that the value at this layer brings back.
"""

from collections.abc import Iterable, Sequence
from dataclasses import fields

import torch
from jaxtyping import Int
from torch import Tensor

from ..arguments import check_function, check_numbers, whole_number
from ..checkpoint.tokenizer import Tokenizer
from ..edits import Lengths
from ..model import Model, run
from ..shapes import Tokens
from ..traces import BlockTrace, Edit, Site, Trace, untouched
from .cells import Each, Grid, Subject, chosen, fold
from .metrics import Metric
from .patching import Pair, Patching, of_pairs


def gradient_trace(model: Model, tokens: Tokens, *, edit: Edit = untouched) -> Trace:
    """A trace that gradients flow through: after a `backward`, every value in it has its gradient in `.grad`.

    It may be called under torch.no_grad. The weights take no part, unless they require gradients. Raises ValueError as
    `trace` does, and for a model that was loaded under torch.inference_mode.

    >>> model, tokenizer = minilens.load("tales-gpt2")
    >>> found = minilens.gradient_trace(model, tokenizer.encode("Once upon a time"))
    >>> found.logits[0, -1, tokenizer.id(" there")].backward()
    >>> found.blocks[3].resid_post.grad.shape, found.blocks[3].pattern.grad.shape
    (torch.Size([1, 4, 256]), torch.Size([1, 8, 4, 4]))
    """
    check_differentiable(model)
    with torch.inference_mode(False), torch.enable_grad():
        embed = model.embed(tokens)
        embed = embed if embed.requires_grad else embed.requires_grad_()
        blocks = tuple(run(model, embed, edit=edit))
        whole = Trace(embed=embed, blocks=blocks, logits=model.unembed(blocks[-1].resid_post))
    of_blocks = (getattr(block, field.name) for block in blocks for field in fields(block))
    for value in (embed, *of_blocks, whole.logits):
        if isinstance(value, Tensor) and value.requires_grad:
            value.retain_grad()
    return whole


@torch.inference_mode(False)
@torch.no_grad()
def attribution_patching(
    model: Model,
    clean: Tokens,
    corrupt: Int[Tensor, "corrupt_batch corrupt_pos"],
    metric: Metric | Sequence[Metric],
    *,
    sites: str | Iterable[str] = ("resid_pre", "attn_out", "mlp_out"),
    by: str = "position",
    position: int = -1,
    lengths: Lengths = None,
    tokenizer: Tokenizer | None = None,
) -> Patching:
    """An estimate of `patching`, cell by cell, from one gradient of the corrupt run.

    All is as in `patching`; the metric must let gradients through. How far an estimate is off, only `patching` tells.
    Raises ValueError as both do.

    >>> model, tokenizer = minilens.load("tales-gpt2")
    >>> clean, corrupt = (tokenizer.encode(f"Tom and Sue are here. {name} gave it to") for name in ("Tom", "Sue"))
    >>> metric = minilens.logit_difference(tokenizer.id(" Sue"), tokenizer.id(" Tom"))
    >>> estimate = minilens.attribution_patching(model, clean, corrupt, metric, sites="z", by="head_position")
    >>> estimate.recovered("z").shape
    torch.Size([8, 8, 10])
    """
    check_differentiable(model)
    sites = chosen(sites, by)

    def found(pair: Pair) -> Grid:
        subject, grid = pair.corrupt, pair.corrupt.blank(sites, by)
        with torch.enable_grad():
            blocks = tuple(run(model, subject.embed.detach().requires_grad_()))
            values = {Site(block.layer, site): getattr(block, site) for block in blocks for site in sites}
            gradients = _gradients(subject, blocks[-1].resid_post, [*values.values()])
        clean_run = run(model, pair.clean_embed)
        ours = {Site(block.layer, site): getattr(block, site) for block in clean_run for site in sites}
        for (at, value), gradient in zip(values.items(), gradients, strict=True):
            _estimate(grid, subject, ours[at], value.detach(), gradient, at, by)
        return grid

    return of_pairs(found, model, clean, corrupt, metric, by, position, lengths, tokenizer)


@torch.inference_mode(False)
@torch.no_grad()
def integrated_gradients(
    model: Model,
    clean: Tokens,
    corrupt: Int[Tensor, "corrupt_batch corrupt_pos"],
    metric: Metric | Sequence[Metric],
    *,
    steps: int = 16,
    sites: str | Iterable[str] = ("resid_pre", "attn_out", "mlp_out"),
    by: str = "position",
    position: int = -1,
    lengths: Lengths = None,
    tokenizer: Tokenizer | None = None,
    each: Each = iter,
) -> Patching:
    """The share that each cell has in what a layer's whole value brings back, from gradients at `steps` points.

    The points are the middles of as many equal parts of the line from the corrupt run's value to the clean one's. All
    else is as in `patching`; the metric must let gradients through. Raises ValueError also for less than one step.

    Where a layer's value holds all that the texts differ in, as resid_pre does, its cells sum to 1 of `recovered`.
    """
    check_differentiable(model)
    sites = chosen(sites, by)
    check_function("each", each, "a function that gives what it goes through")
    if (steps := whole_number("steps", steps)) < 1:
        raise ValueError(f"steps must be at least 1; it is {steps}")

    def found(pair: Pair) -> Grid:
        subject, grid = pair.corrupt, pair.corrupt.blank(sites, by)
        pairs = zip(run(model, pair.clean_embed), run(model, subject.embed), strict=True)
        for layer, site in each([(layer, site) for layer in range(model.n_layers) for site in sites]):
            if site == sites[0]:
                ours, theirs = next(pairs)
            gradient = _mean_gradient(subject, ours, theirs, site, steps)
            _estimate(grid, subject, getattr(ours, site), getattr(theirs, site), gradient, Site(layer, site), by)
        return grid

    return of_pairs(found, model, clean, corrupt, metric, by, position, lengths, tokenizer)


def _mean_gradient(subject: Subject, ours: BlockTrace, theirs: BlockTrace, site: str, steps: int) -> Tensor:
    """The gradient of the metric by a value, averaged over the line between two runs: [1 (head) pos ...]."""
    start, end = getattr(theirs, site), getattr(ours, site)
    middles = (torch.arange(steps, device=start.device, dtype=start.dtype) + 0.5) / steps
    total = torch.zeros_like(start)
    for some in subject.several(middles):
        with torch.enable_grad():
            line = start.lerp(end, some.view(-1, *[1] * (start.ndim - 1))).requires_grad_()
            resid = theirs.resid_pre.expand(len(some), -1, -1)
            for block in run(subject.model, resid, start=theirs.layer, edit=_set(Site(theirs.layer, site), line)):
                resid = block.resid_post
            (gradient,) = _gradients(subject, resid, [line])
        total = total + gradient.sum(0, keepdim=True)
    return total / steps


def _set(site: Site, line: Tensor) -> Edit:
    return lambda here, value: line if here == site else value


def _gradients(subject: Subject, resid: Tensor, values: Sequence[Tensor]) -> Sequence[Tensor]:
    """The gradients of the metric by these values: of several texts, each has its own.

    Raises ValueError for a metric that lets none through.
    """
    total = subject.measured(resid).sum()
    if not total.requires_grad:
        raise ValueError("no gradient flows through the metric: make it of torch's own operations on the logits")
    found: Sequence[Tensor] = torch.autograd.grad(total, values, materialize_grads=True)
    return found


def _estimate(grid: Grid, subject: Subject, ours: Tensor, theirs: Tensor, gradient: Tensor, at: Site, by: str) -> None:
    """Put into the grid what a gradient says of one value. Where nothing can change, it says nothing."""
    differs = subject.differs(ours, theirs, at, by).cpu()
    change = fold(((ours - theirs).cpu().double() * gradient.cpu().double()).sum(-1)[0], by, torch.sum)
    grid.can_change[at.name][at.layer] = differs
    grid.metric[at.name][at.layer] = torch.where(differs, subject.value + change, subject.value)


def check_differentiable(model: Model) -> None:
    """Raise ValueError for a model that no gradient flows through."""
    check_numbers(model)
    if model.W_E.is_inference():
        raise ValueError("a model that is loaded under torch.inference_mode has no gradients: load it outside")

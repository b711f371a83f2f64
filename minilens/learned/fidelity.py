"""Does a direction do in the model what a lens says of it?

A push changes the residuals of one row, at all positions alike: it ablates a direction, or swaps two. The lens says
what follows: its row of the pushed residuals. What does follow is the output of the model run on with them. Each is
compared with itself before the push, in one of two ways:

    size       KL(before ‖ after), the mean over positions, in nats
    log-odds   of one token against another, after less before, the mean over positions

Over many pushes, Spearman's correlation of what the lens says with what follows tells whether the lens knows which of
them matter (Belrose et al. 2023, arXiv 2303.08112, section 5). The alignment tells whether it knows what they do: it is
the cosine of the two changes of log-probabilities, a and b, in Aitchison's geometry with the output's p as weights,

    <a, b> = sum of p (a - mean(a)) (b - mean(b)),      mean(a) = sum of p a

As a null stand the same pushes turned: one random rotation of the residual space takes each change of a residual to
another direction, and keeps its norm. Errors are over texts: a text is left out at a time (the jackknife).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..arguments import check_numbers, whole_number
from ..edits import at
from ..lens import EMBED, Lens, label, residuals
from ..model import Model, run
from ..ops import upcast
from ..shapes import Resid, Tokens, shapes_of
from ..traces import Site, untouched
from .affine import LearnedLens
from .pushes import Push, random_rotation, turned

LogProbs = Float[Tensor, "pos d_vocab"]


class Estimate(NamedTuple):
    """A number, and its standard error; of a single text there is none."""

    value: float
    error: float


class Changes(NamedTuple):
    """What pushes do, in each text: sizes, or changes of log-odds, in nats."""

    lens: Float[Tensor, "push text"]  # as the lens says
    model: Float[Tensor, "push text"]  # as it is
    cosine: Float[Tensor, "push text"]  # of the two changes of log-probabilities

    @property
    def spearman(self) -> Estimate:
        """The correlation, over pushes, of what the lens says with what follows."""
        return jackknife(lambda c: spearman(c.lens.mean(1), c.model.mean(1)), self)

    @property
    def alignment(self) -> Estimate:
        """The mean cosine of the change that the lens says with the one that follows."""
        return jackknife(lambda c: float(c.cosine.mean()), self)

    @property
    def effect(self) -> Estimate:
        """The mean of what follows, in nats."""
        return jackknife(lambda c: float(c.model.mean()), self)

    def __repr__(self) -> str:
        return shapes_of(self)


@dataclass(frozen=True, eq=False)
class Fidelity:
    """What a lens says of some pushes at one row, and what they do."""

    row: str
    pushed: Changes
    turned: Changes  # the same pushes, each in a random direction

    def __repr__(self) -> str:
        (rho, error), (null, _) = self.pushed.spearman, self.turned.spearman
        size = "{} pushes in {} texts".format(*self.pushed.lens.shape)
        return f"Fidelity at {self.row}, {size}: Spearman {rho:.2f} ± {error:.2f} (turned: {null:.2f})"


def fidelity(
    model: Model,
    texts: Sequence[Tokens],
    site: Site,
    pushes: Sequence[Push],
    lens: LearnedLens | None = None,
    *,
    skip: int = 1,
    seed: int = 0,
) -> Fidelity:
    """What a lens says of pushes at a row, and what they do in the model, over texts of shape [1, pos] each.

    site: of the row; (-1, "embed") is the stream entering block 0.
    lens: by default the plain one.
    skip: positions at the start of each text that are neither pushed nor measured: the first is an outlier in many
    models.
    seed: of the random rotation.

    Raises ValueError as `Lens` does, for a row that is the model's own output, and for texts of too few tokens.
    """
    check_numbers(model)
    if not pushes or not texts:
        raise ValueError("fidelity needs at least one push and one text")
    rotation = random_rotation(len(model.W_U), whole_number("seed", seed)).to(upcast(model.W_U[:0]))
    both = [*pushes, *(turned(push, rotation) for push in pushes)]
    columns = [_in_text(model, tokens, site, both, lens, skip) for tokens in texts]
    found = [torch.stack(part, 1) for part in zip(*columns, strict=True)]
    n = len(pushes)
    return Fidelity(label(site), Changes(*(each[:n] for each in found)), Changes(*(each[n:] for each in found)))


@torch.no_grad()
def _in_text(
    model: Model, tokens: Tokens, site: Site, pushes: Sequence[Push], lens: LearnedLens | None, skip: int
) -> tuple[Tensor, ...]:
    """The changes by each push, as the lens says and as they are, and their alignment: [push] each."""
    if len(tokens) != 1 or not 0 <= whole_number("skip", skip) < tokens.shape[1]:
        raise ValueError(f"each text must be of shape [1, pos], with more than {skip} tokens; got {list(tokens.shape)}")
    options: dict[str, Any] = {} if lens is None else dict(decoder=lens.decoder, norm=lens.norm, transport=lens)
    options |= dict(layers=[]) if site == EMBED else dict(layers=[site.layer], sites=site.name)
    readout = Lens(**options).of(model, tokens)
    if site not in readout.sites[:-1]:
        raise ValueError(f"the row {label(site)} is the model's own output, or within the decoder: name an earlier one")
    start = max(site.layer, 0)
    entering = Site(start - 1, "resid_post") if start else EMBED
    streams = dict(residuals(model, readout.embed, (entering, site)))

    def row(change: Callable[[Resid], Resid]) -> LogProbs:
        reader, resid = readout.read(site, change(streams[site]))
        return upcast(reader.unembed(resid[:, skip:]))[0].log_softmax(-1)

    def output(change: Callable[[Resid], Resid]) -> LogProbs:
        resid = change(streams[EMBED]) if site == EMBED else streams[entering]
        edit = untouched if site == EMBED else at(site.layer, site.name, change)
        for block in run(model, resid, start=start, edit=edit):
            resid = block.resid_post
            del block
        return upcast(model.unembed(resid[:, skip:]))[0].log_softmax(-1)

    said, was = row(lambda old: old), output(lambda old: old)
    found = []
    for push in pushes:

        def change(old: Resid, push: Push = push) -> Resid:
            return torch.cat([old[:, :skip], push.change(old[:, skip:])], 1)

        says, is_now = row(change), output(change)
        numbers = _measured(said, says, push.pair), _measured(was, is_now, push.pair)
        found.append(torch.stack([*numbers, _cosine(says - said, is_now - was, was.exp()).mean()]).double().cpu())
    return torch.stack(found).unbind(1)


def _measured(before: LogProbs, after: LogProbs, pair: tuple[int, int] | None) -> Float[Tensor, ""]:
    if pair is None:
        return (before.exp() * (before - after)).sum(-1).mean()
    changed = (after - before)[:, list(pair)]
    return (changed[:, 1] - changed[:, 0]).mean()


def _cosine(a: LogProbs, b: LogProbs, p: LogProbs) -> Float[Tensor, "pos"]:
    """Of two changes, in Aitchison's geometry; 0 where there is none."""
    a, b = (each - (p * each).sum(-1, keepdim=True) for each in (a, b))
    norms = ((p * a**2).sum(-1) * (p * b**2).sum(-1)).sqrt()
    return ((p * a * b).sum(-1) / norms).where(norms > 0, 0)


def spearman(one: Float[Tensor, "_"], other: Float[Tensor, "_"]) -> float:
    """Spearman's rank correlation; ties share their mean rank. Not a number where all of one are equal."""
    a, b = ((each[:, None] > each).sum(1) + (each[:, None] == each).sum(1) / 2 for each in (one, other))
    return float(torch.corrcoef(torch.stack([a, b]).double())[0, 1])


def jackknife(statistic: Callable[[Changes], float], changes: Changes) -> Estimate:
    """A statistic, and its standard error from leaving one text out at a time (Efron and Stein 1981)."""
    n = changes.lens.shape[1]
    kept = [[t for t in range(n) if t != left] for left in range(n)] if n > 1 else []
    without = torch.tensor([statistic(Changes(*(part[:, of] for part in changes))) for of in kept]).double()
    error = float(((n - 1) * without.var(correction=0)).sqrt()) if kept else torch.nan
    return Estimate(statistic(changes), error)

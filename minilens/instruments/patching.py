"""Activation patching: which values of one run, put into another, bring back what the first one did.

Vig et al. 2020 and Meng et al. 2022 (causal tracing); "clean" and "corrupt" are TransformerLens's words.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import fmean

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..arguments import check_function, check_numbers, quoted
from ..checkpoint.tokenizer import Tokenizer
from ..edits import Lengths
from ..model import Model, run
from ..shapes import Tokens
from .cells import Each, Grid, Subject, chosen, metrics_of
from .metrics import Metric
from .texts import texts_of


@dataclass(frozen=True, eq=False)
class Patching:
    """A metric of the corrupt run, with one value at a time from the clean run in its place.

    A cell is a layer and a place: a position, a head at all positions, or a head at a position. Numbers are on the CPU.
    Of several pairs of texts they are means over the pairs.
    """

    by: str  # "position", "head" or "head_position"
    metric: dict[str, Float[Tensor, "layer *place"]]  # by site
    can_change: dict[str, Bool[Tensor, "layer *place"]]  # where not, no path leads from the cell to the metric, or both
    # runs have the same value there; the metric is the corrupt run's, and nothing was run
    clean: float  # the metric of either run as it is
    corrupt: float
    clean_tokens: Int[Tensor, "pos"]  # -1 where several texts have different tokens
    corrupt_tokens: Int[Tensor, "pos"]
    tokenizer: Tokenizer | None = None  # how the views show tokens; without one, by their ids
    texts: tuple["Patching", ...] = ()  # of several pairs of texts, each by itself

    def recovered(self, site: str) -> Float[Tensor, "layer *place"]:
        """How far each cell takes the metric from the corrupt run's, 0, to the clean one's, 1.

        Of several pairs of texts it is made of the means. Raises ValueError for a site that was not patched.
        """
        return (self._of(site) - self.corrupt) / (self.clean - self.corrupt)

    def standard_error(self, site: str) -> Float[Tensor, "layer *place"]:
        """The standard error of `recovered` over the pairs of texts.

        It is that of a ratio of two means (Cochran 1977, "Sampling Techniques", section 2.11): of each pair's distance
        from the line through 0 that all pairs together have. Raises ValueError for one pair.
        """
        if not self.texts:
            raise ValueError("one pair of texts has no standard error: give patching a batch of pairs")
        recovered = self.recovered(site)
        rests = [each._of(site) - each.corrupt - recovered * (each.clean - each.corrupt) for each in self.texts]
        n = len(rests)
        return torch.stack(rests).square().sum(0).div((n - 1) * n).sqrt() / abs(self.clean - self.corrupt)

    def _of(self, site: str) -> Float[Tensor, "layer *place"]:
        if site not in [*self.metric]:
            raise ValueError(f"{quoted(site)} was not patched; those that were are {', '.join(self.metric)}")
        return self.metric[site]

    def __repr__(self) -> str:
        n_layers, *sizes = next(iter(self.metric.values())).shape
        places = " by ".join(f"{n} {axis}s" for n, axis in zip(sizes, self.by.split("_"), strict=True))
        many = f", means of {len(self.texts)} pairs of texts" if self.texts else ""
        return (
            f"Patching of {', '.join(self.metric)} in {n_layers} layers by {places}: "
            f"metric {self.clean:.4g} clean, {self.corrupt:.4g} corrupt{many}"
        )


@torch.no_grad()
def patching(
    model: Model,
    clean: Tokens,
    corrupt: Int[Tensor, "corrupt_batch corrupt_pos"],  # of the same shape, which is checked here
    metric: Metric | Sequence[Metric],
    *,
    sites: str | Iterable[str] = ("resid_pre", "attn_out", "mlp_out"),
    by: str = "position",
    position: int = -1,
    lengths: Lengths = None,
    tokenizer: Tokenizer | None = None,
    each: Each = iter,
) -> Patching:
    """Run the corrupt text once for each cell, with that cell's value from the clean text, and take the metric.

    clean, corrupt: two texts of the same length, [1, pos]; or pairs of texts, [batch, pos]. A clean text and a corrupt
    one match position by position.
    metric: a function of the logits at one position; or a list of them, one for each pair.
    sites: any of SITES; by="head" and by="head_position" take q, k, v, pattern and z.
    by: "position", "head" for a head at all positions, or "head_position" for a head at each.
    position: of the metric, by default the last of each text.
    lengths: the tokens of each pair where the batch is padded. Positions are then no places that pairs have in common:
    only by="head" takes pairs of different lengths.
    each: goes through the jobs in order, and may show how far it is; of several pairs, those of each.

    Only the blocks from the patched one on are run, several cells at a time. Raises ValueError for texts that do not
    match, for sites and positions that do not exist, and where the metric is the same for both texts: nothing could be
    recovered.
    """
    sites = chosen(sites, by)
    check_function("each", each, "a function that gives what it goes through")

    def swept(pair: "Pair") -> Grid:
        values = ({site: getattr(block, site) for site in sites} for block in run(model, pair.clean_embed))
        return pair.corrupt.swept(values, sites, by, each)

    return of_pairs(swept, model, clean, corrupt, metric, by, position, lengths, tokenizer)


class Pair:
    """A clean and a corrupt text, and the metric of either. Raises ValueError where it is no number, or the same."""

    def __init__(self, model: Model, clean: Tokens, corrupt: Tokens, metric: Metric, position: int) -> None:
        self.clean_tokens, self.clean_embed = clean, model.embed(clean)
        self.corrupt = Subject(model, corrupt, metric, position)
        *_, last = run(model, self.clean_embed)
        self.clean = float(self.corrupt.measured(last.resid_post))
        metrics = self.clean, self.corrupt.value
        if not all(map(isfinite, metrics)):
            raise ValueError(f"the metric is {metrics[0]:g} and {metrics[1]:g} for the two texts; it must be finite")
        if self.clean == self.corrupt.value:
            raise ValueError(f"the metric is {self.clean:g} for both texts, so that there is nothing to recover")


def of_pairs(
    found: Callable[[Pair], Grid],
    model: Model,
    clean: Tokens,
    corrupt: Int[Tensor, "corrupt_batch corrupt_pos"],
    metric: Metric | Sequence[Metric],
    by: str,
    position: int,
    lengths: Lengths,
    tokenizer: Tokenizer | None,
) -> Patching:
    """What is found of each pair of texts, and the means over the pairs."""
    check_numbers(model)
    model.embed(clean), model.embed(corrupt)  # refuse what is no text before anything else is said
    if clean.shape != corrupt.shape:
        raise ValueError(
            f"patching needs two texts of the same length, [1, pos], or as many pairs of them, [batch, pos]; got "
            f"{list(clean.shape)} and {list(corrupt.shape)}"
        )
    pairs = list(zip(texts_of(clean, lengths), texts_of(corrupt, lengths), metrics_of(metric, len(clean)), strict=True))
    if by != "head" and len({ours.shape for ours, _, _ in pairs}) > 1:
        raise ValueError(f'by="{by}" takes pairs of one length, so that their positions match; by="head" takes any')
    each = []
    for ours, theirs, measure in pairs:
        pair = Pair(model, ours, theirs, measure, position)
        texts = ours[0].cpu(), theirs[0].cpu()
        each.append(Patching(by, *found(pair), pair.clean, pair.corrupt.value, *texts, tokenizer))
    return each[0] if len(each) == 1 else _mean(each)


def _mean(each: list[Patching]) -> Patching:
    """The means over pairs of texts. Raises ValueError where those of the metric are the same."""
    clean, corrupt = (fmean(getattr(one, which) for one in each) for which in ("clean", "corrupt"))
    if clean == corrupt:
        raise ValueError(f"the metric is {clean:g} for clean and corrupt texts on average: nothing to recover")
    sites = each[0].metric
    return Patching(
        by=each[0].by,
        metric={site: torch.stack([one.metric[site] for one in each]).mean(0) for site in sites},
        can_change={site: torch.stack([one.can_change[site] for one in each]).any(0) for site in sites},
        clean=clean,
        corrupt=corrupt,
        clean_tokens=_common([one.clean_tokens for one in each]),
        corrupt_tokens=_common([one.corrupt_tokens for one in each]),
        tokenizer=each[0].tokenizer,
        texts=tuple(each),
    )


def _common(texts: list[Int[Tensor, "_"]]) -> Int[Tensor, "pos"]:
    """The tokens that all texts have, and -1 where they have not."""
    together = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=-1)
    return torch.where((together == together[0]).all(0), together[0], -1)

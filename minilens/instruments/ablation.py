"""Ablation over many texts: how much a metric owes to each head, or to what is written at each position.

What takes the place of a value:

    zero              zeros
    mean              its mean over all texts and positions of a reference
    mean_by_position  its mean over the texts of the reference, at each position by itself (Wang et al. 2022)
    resample          its value in another text of the reference, drawn at random (Chan et al. 2022, "Causal Scrubbing")

Zeros may be far from all that the model ever sees there. A mean is nearer, and the value of another text is one that
did occur.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from ..arguments import check_function, check_numbers, quoted, whole_number
from ..edits import Lengths
from ..model import Model, run
from ..shapes import Tokens
from .cells import Each, Subject, Values, chosen, metrics_of
from .metrics import Metric
from .texts import Mean, Text, over_texts, texts_of

HOW = ("zero", "mean", "mean_by_position", "resample")


@dataclass(frozen=True, eq=False)
class Ablation:
    """A metric of several texts, with one value at a time replaced. Numbers are on the CPU."""

    how: str
    by: str
    metric: dict[str, Float[Tensor, "text layer *place"]]  # by site
    untouched: Float[Tensor, "text"]  # the metric of each text as it is

    def change(self, site: str) -> Mean:
        """The metric with each cell's value replaced, less that of the text as it is: [layer *place], over the texts.

        Raises ValueError for a site that was not ablated.
        """
        if site not in [*self.metric]:
            raise ValueError(f"{quoted(site)} was not ablated; those that were are {', '.join(self.metric)}")
        values = self.metric[site]
        return over_texts(values - self.untouched.view(-1, *[1] * (values.ndim - 1)))

    def __repr__(self) -> str:
        n, n_layers, *_ = next(iter(self.metric.values())).shape
        return (
            f"Ablation ({self.how}) of {', '.join(self.metric)} in {n_layers} layers by {self.by}: "
            f"{n} text{'' if n == 1 else 's'}, metric {self.untouched.mean():.4g} untouched"
        )


@torch.no_grad()
def ablation(
    model: Model,
    tokens: Tokens,
    metric: Metric | Sequence[Metric],
    *,
    how: str = "mean",
    reference: Int[Tensor, "reference_batch reference_pos"] | None = None,
    sites: str | Iterable[str] = "z",
    by: str = "head",
    position: int = -1,
    lengths: Lengths = None,
    reference_lengths: Lengths = None,
    seed: int = 0,
    each: Each = iter,
) -> Ablation:
    """Run every text once for each cell, with that cell's value replaced, and take the metric.

    tokens: texts, [batch, pos]. lengths: the tokens of each where they are padded.
    metric: a function of the logits at one position; or a list of them, one for each text.
    how: "zero", "mean", "mean_by_position" or "resample".
    reference: the texts that means and values are taken of, with their lengths; by default tokens themselves. A text is
    never resampled from itself, unless the reference is another batch.
    sites, by, position, each: as in `patching`.
    seed: decides which text is drawn.

    Raises ValueError where positions do not match: a text longer than all others of the reference cannot be resampled,
    nor have a mean by position. Texts of several lengths have no positions in common: they take by="head".

    >>> model, tokenizer = minilens.load("tales-gpt2")
    >>> texts, lengths = tokenizer.encode(["Tom saw Sue. Tom gave Sue a", "Once upon a time there was a"])
    >>> metric = minilens.log_probability(tokenizer.id(" big"))
    >>> minilens.ablation(model, texts, metric, lengths=lengths).change("z").mean.shape
    torch.Size([8, 8])
    """
    check_numbers(model)
    sites = chosen(sites, by)
    if how not in HOW:
        raise ValueError(f"there is no ablation {quoted(how)}; there are {', '.join(HOW)}")
    check_function("each", each, "a function that gives what it goes through")
    model.embed(tokens)  # refuses what is no text
    texts = texts_of(tokens, lengths)
    if by != "head" and len({text.shape for text in texts}) > 1:
        raise ValueError(f'by="{by}" takes texts of one length, so that their positions match; by="head" takes any')
    others = texts if reference is None else texts_of(reference, reference_lengths)
    replaced = _Reference(model, others, reference is None, whole_number("seed", seed)).values(how, sites)
    grids, values = [], []
    for number, (text, measure) in enumerate(zip(texts, metrics_of(metric, len(texts)), strict=True)):
        subject = Subject(model, text, measure, position)
        grids.append(subject.swept(replaced(number, text), sites, by, each).metric)
        values.append(subject.value)
    metrics = {site: torch.stack([grid[site] for grid in grids]) for site in sites}
    return Ablation(how, by, metrics, torch.tensor(values, dtype=torch.float64, device="cpu"))


class _Reference:
    """The texts that values are taken of. are_own: they are the texts that are ablated, in the same order."""

    def __init__(self, model: Model, texts: list[Text], are_own: bool, seed: int) -> None:
        self.model, self.texts, self.are_own = model, texts, are_own
        self.random = torch.Generator().manual_seed(seed)

    def drawn(self, number: int, text: Text) -> Text:
        """Another text, as long as this one."""
        n = text.shape[1]
        others = [each for at, each in enumerate(self.texts) if not (self.are_own and at == number)]
        able = [other for other in others if other.shape[1] >= n]
        if not able:
            raise ValueError(f"text {number} has {n} tokens, and there is no other text of as many to resample it from")
        return able[int(torch.randint(len(able), (), generator=self.random, device="cpu"))][:, :n]

    def means(self, sites: Sequence[str], by_position: bool) -> list[Values]:
        """The mean of each value over all texts, layer by layer: [1 (head) pos d], with 1 pos where it is over all."""
        if "pattern" in sites:
            raise ValueError('"pattern" has no mean over texts, since they have different keys; ablate z instead')
        longest = max(text.shape[1] for text in self.texts)
        sums: list[dict[str, Tensor]] = [{} for _ in range(self.model.n_layers)]
        for text in self.texts:
            for block in run(self.model, self.model.embed(text)):
                for site in sites:
                    value = pad(getattr(block, site).cpu().double(), (0, 0, 0, longest - text.shape[1]))
                    sums[block.layer][site] = value + sums[block.layer].get(site, 0)
        ends = torch.tensor([text.shape[1] for text in self.texts], device="cpu")
        n = (torch.arange(longest, device="cpu") < ends[:, None]).sum(0)

        def mean(total: Tensor) -> Tensor:
            where = n[:, None]
            return total / where if by_position else total.sum(-2, keepdim=True) / where.sum()

        return [{site: mean(total) for site, total in layer.items()} for layer in sums]

    def check_positions(self, number: int, text: Text) -> None:
        """Raise ValueError where a position has no other text to take a mean over."""
        n, least = text.shape[1], 2 if self.are_own else 1
        if sum(each.shape[1] >= n for each in self.texts) < least:
            raise ValueError(f"text {number} has {n} tokens, and no other text has as many, for a mean by position")

    def values(self, how: str, sites: Sequence[str]) -> Callable[[int, Text], Iterator[Values]]:
        """What takes the place of the values of a text, layer by layer, by its number and its tokens."""
        model = self.model
        means = self.means(sites, how == "mean_by_position") if how.startswith("mean") else []

        def of(number: int, text: Text) -> Iterator[Values]:
            if how == "mean_by_position":
                self.check_positions(number, text)
            for block in run(model, model.embed(self.drawn(number, text) if how == "resample" else text)):
                found = {site: getattr(block, site) for site in sites}
                if how == "zero":
                    found = {site: torch.zeros_like(value) for site, value in found.items()}
                elif means:
                    n, layer = text.shape[1], means[block.layer]
                    found = {site: layer[site][..., :n, :].to(value).expand_as(value) for site, value in found.items()}
                yield found

        return of

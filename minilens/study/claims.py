"""The findings of the logit lens' first users, each put to a model as numbers with thresholds.

A finding about one model is no law: another may or may not show it, and the thresholds here are ours. They are chosen
so that a model with fresh random weights shows nothing.
"""

from math import inf, nan
from typing import NamedTuple

import torch
from torch import Tensor

from .experiments import Study

LATE = 10  # a rank; and how many times better a rank must be to count as noticed
EVEN = 3  # the largest step of a smooth road, in steps of equal size


class Check(NamedTuple):
    """A number beside its threshold."""

    what: str
    value: float  # not a number where there is nothing to measure; then it does not hold
    relation: str  # "at most" or "at least"
    threshold: float

    @property
    def holds(self) -> bool:
        return self.value <= self.threshold if self.relation == "at most" else self.value >= self.threshold


class Claim(NamedTuple):
    """A finding, which a model shows where all its checks hold; without its premise there is nothing to be found."""

    statement: str
    source: str
    premise: Check | None
    checks: tuple[Check, ...]

    @property
    def verdict(self) -> str:
        """ "shown", "not shown" or "not measurable"."""
        if self.premise and not self.premise.holds:
            return "not measurable"
        return "shown" if all(check.holds for check in self.checks) else "not shown"

    @property
    def asked(self) -> tuple[Check, ...]:
        """The premise, if there is one, and the checks."""
        return (self.premise, *self.checks) if self.premise else self.checks


def claims(study: Study) -> tuple[Claim, ...]:
    """The findings, put to the model that was studied.

    On the passage, with the final decoder, unless a claim says otherwise; KL are medians over the positions.
    """
    n = study.n_layers
    labels = study.tables["passage", "final"].labels
    whole = [r for r, label in enumerate(labels) if not label.endswith("resid_mid")]  # embed, then n blocks
    kl_final = study.quartiles("passage", "final", "kl_final")[1, whole]
    kl_input = study.quartiles("passage", "final", "kl_input")[1, whole]
    input_first = study.share("passage", "final", "input_first")[whole].tolist()
    agrees = study.share("passage", "final", "agrees")[whole].tolist()
    earlier = f"{n - 3}.resid_post"
    with_block, with_mlp = (
        study.share("passage", reading, "agrees")[study.tables["passage", reading].labels.index(earlier)]
        for reading in ("block:1", "mlp")
    )
    late = [ranks[whole, -1] <= LATE for ranks in _all_words(study, "repetition")]
    noticed = [ranks[whole, 0] >= LATE * ranks[whole, -1] for ranks in _all_words(study, "extreme")]
    words = f"{len(late)} words" if len(late) > 1 else "one word"
    return (
        Claim(
            "Block 0 leaves the input at once",
            "the post of 2020, of GPT-2",
            Check("input token first before it: share of positions", input_first[0], "at least", 0.5),
            (
                Check("input token first after it: share of positions", input_first[1], "at most", 0.1),
                Check(
                    "KL(output || row) over KL(input || row) after it", _ratio(kl_final[1], kl_input[1]), "at most", 1
                ),
            ),
        ),
        Claim(
            "The last block must be in the decoder",
            "the notebook of 2021, of GPT-Neo",
            None,
            (
                Check("output's token first before the last block: share", agrees[n - 1], "at most", 0.25),
                Check("that share a block earlier, with block:1", with_block.item(), "at least", 0.5),
                Check("and with mlp, over that with block:1", _ratio(with_mlp, with_block), "at most", 0.5),
            ),
        ),
        Claim(
            "The input fades step by step",
            "the notebook of 2021, of CTRL: a smooth road",
            Check("input token first in the output: share of positions", input_first[-1], "at most", 0.1),
            (
                Check("input token first after block 0: share of positions", input_first[1], "at least", 0.5),
                Check("largest rise of KL(input || row), in even steps", _largest(kl_input), "at most", EVEN),
            ),
        ),
        Claim(
            "The output comes step by step",
            "the notebook of 2021, of CTRL: a smooth road",
            Check("KL(output || row) before block 0, nats", kl_final[0].item(), "at least", 1),
            (
                Check("largest fall of KL(output || row), in even steps", _largest(-kl_final), "at most", EVEN),
                Check("largest rise of it, in even steps", _largest(kl_final), "at most", EVEN / 10),
            ),
        ),
        Claim(
            "A rare word is rebuilt late, not copied early",
            "the post of 2020, of GPT-2; on the repetition",
            Check(f"in the output's top {LATE} where it comes again: share of {words}", _last(late), "at least", 0.5),
            (Check("from which block on, as share of all; their median", _onset(late), "at least", 2 / 3),),
        ),
        Claim(
            "Only the upper half notices repetition",
            "the post of 2020, of GPT-2; on the extreme form",
            Check(
                f"rank {LATE} times better the last time than the first: share of {words}",
                _last(noticed),
                "at least",
                0.5,
            ),
            (Check("from which block on, as share of all; their median", _onset(noticed), "at least", 1 / 2),),
        ),
    )


def _all_words(study: Study, prompt: str) -> list[Tensor]:
    return [study.word_ranks(prompt), *study.other_ranks(prompt).values()]


def _ratio(a: Tensor, b: Tensor) -> float:
    return (a / b).item() if b else inf if a else nan


def _largest(values: Tensor) -> float:
    """The largest rise from one to the next, where 1 is that of equal steps through the whole range."""
    return _ratio(values.diff().max().clamp(min=0) * (len(values) - 1), values.max() - values.min())


def _last(holds: list[Tensor]) -> float:
    """For which share of the words it holds in the output."""
    return sum(bool(each[-1]) for each in holds) / len(holds)


def _onset(holds: list[Tensor]) -> float:
    """After which share of the blocks it holds to the end: the median of the words for which it does."""
    lasting = [int(each.flip(0).int().cumprod(0).sum()) for each in holds if each[-1]]
    shares = [(len(holds[0]) - rows) / (len(holds[0]) - 1) for rows in lasting]
    return torch.tensor(shares).median().item() if shares else nan

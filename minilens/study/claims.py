"""The findings of the logit lens' first users, each put to a model as numbers with thresholds.

A finding about one model is no law: another may or may not show it, and the thresholds here are ours. They are chosen
so that a model with fresh random weights shows nothing.
"""

from collections.abc import Callable
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
    """A finding. A model shows it if all checks hold; without the premise there is nothing to be found."""

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
    return tuple(finding(study) for finding in (*ON_PASSAGE, *ON_WORDS))


def block_0_leaves_the_input(study: Study) -> Claim:
    input_first = _share(study, "input_first")
    to_output, to_input = _median(study, "kl_final"), _median(study, "kl_input")
    return Claim(
        "Block 0 leaves the input at once",
        "the post of 2020, of GPT-2",
        Check("input token first before it: share of positions", input_first[0], "at least", 0.5),
        (
            Check("input token first after it: share of positions", input_first[1], "at most", 0.1),
            Check("KL(output ‖ row) over KL(input ‖ row) after it", _ratio(to_output[1], to_input[1]), "at most", 1),
        ),
    )


def last_block_in_the_decoder(study: Study) -> Claim:
    before_last = study.n_layers - 1
    earlier = f"{study.n_layers - 3}.resid_post"
    with_block, with_mlp = (
        study.share("passage", reading, "agrees")[study.tables["passage", reading].labels.index(earlier)]
        for reading in ("block:1", "mlp")
    )
    alone = _share(study, "agrees")[before_last]
    return Claim(
        "The last block must be in the decoder",
        "the notebook of 2021, of GPT-Neo",
        None,
        (
            Check("output's token first before the last block: share", alone, "at most", 0.25),
            Check("that share a block earlier, with block:1", with_block.item(), "at least", 0.5),
            Check("and with mlp, over that with block:1", _ratio(with_mlp, with_block), "at most", 0.5),
        ),
    )


def input_fades_step_by_step(study: Study) -> Claim:
    input_first = _share(study, "input_first")
    return Claim(
        "The input fades step by step",
        "the notebook of 2021, of CTRL: a smooth road",
        Check("input token first in the output: share of positions", input_first[-1], "at most", 0.1),
        (
            Check("input token first after block 0: share of positions", input_first[1], "at least", 0.5),
            Check(
                "largest rise of KL(input ‖ row), in even steps", _largest(_median(study, "kl_input")), "at most", EVEN
            ),
        ),
    )


def output_comes_step_by_step(study: Study) -> Claim:
    to_output = _median(study, "kl_final")
    return Claim(
        "The output comes step by step",
        "the notebook of 2021, of CTRL: a smooth road",
        Check("KL(output ‖ row) before block 0, nats", to_output[0].item(), "at least", 1),
        (
            Check("largest fall of KL(output ‖ row), in even steps", _largest(-to_output), "at most", EVEN),
            Check("largest rise of it, in even steps", _largest(to_output), "at most", EVEN / 10),
        ),
    )


def rare_word_rebuilt_late(study: Study) -> Claim:
    late = [ranks[_whole(study), -1] <= LATE for ranks in _all_words(study, "repetition")]
    what = f"in the output's top {LATE} where it comes again: share of {_words(late)}"
    return Claim(
        "A rare word is rebuilt late, not copied early",
        "the post of 2020, of GPT-2; on the repetition",
        Check(what, _last(late), "at least", 0.5),
        (Check("from which block on, as share of all; their median", _onset(late), "at least", 2 / 3),),
    )


def repetition_noticed_late(study: Study) -> Claim:
    rows = _whole(study)
    noticed = [ranks[rows, 0] >= LATE * ranks[rows, -1] for ranks in _all_words(study, "extreme")]
    what = f"rank {LATE} times better the last time than the first: share of {_words(noticed)}"
    return Claim(
        "Only the upper half notices repetition",
        "the post of 2020, of GPT-2; on the extreme form",
        Check(what, _last(noticed), "at least", 0.5),
        (Check("from which block on, as share of all; their median", _onset(noticed), "at least", 1 / 2),),
    )


Finding = Callable[[Study], Claim]
ON_PASSAGE: tuple[Finding, ...] = (
    block_0_leaves_the_input,
    last_block_in_the_decoder,
    input_fades_step_by_step,
    output_comes_step_by_step,
)
ON_WORDS: tuple[Finding, ...] = (rare_word_rebuilt_late, repetition_noticed_late)


def _whole(study: Study) -> list[int]:
    """The rows between whole blocks: embed, then one for each block."""
    labels = study.tables["passage", "final"].labels
    return [row for row, label in enumerate(labels) if not label.endswith("resid_mid")]


def _median(study: Study, statistic: str) -> Tensor:
    """By row, over the positions of the passage."""
    return study.quartiles("passage", "final", statistic)[1, _whole(study)]


def _share(study: Study, share: str) -> list[float]:
    """By row, of the positions of the passage."""
    return study.share("passage", "final", share)[_whole(study)].tolist()


def _words(holds: list[Tensor]) -> str:
    return f"{len(holds)} words" if len(holds) > 1 else "one word"


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

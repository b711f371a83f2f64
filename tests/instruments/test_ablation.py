"""Ablation: each number is a run with that one value replaced, of each text by itself; and its mean and error."""

from math import isnan, sqrt
from typing import Any

import pytest
import torch
from conftest import FAMILIES, Tiny
from torch import Tensor

import minilens
from minilens import Edit, ablation, logit_difference, trace

METRIC = logit_difference(17, 23)
LENGTHS = [9, 12, 7]


@pytest.fixture
def padded(tokens: Tensor) -> Tensor:
    """Three texts; what stands after their ends is no part of them."""
    return torch.cat([tokens[:, :12], tokens[:1, 12:24]])


def texts_of(padded: Tensor) -> list[Tensor]:
    return [padded[text : text + 1, :end] for text, end in enumerate(LENGTHS)]


@pytest.mark.parametrize("how", ["zero", "mean", "mean_by_position", "resample"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_number_is_a_run_with_that_value_replaced(tiny: Tiny, padded: Tensor, family: str, how: str) -> None:
    model, _ = minilens.load(tiny(family)[1], dtype=torch.float64)
    reference, lengths = padded.flip(1), torch.tensor([12, 10, 12])
    options: dict[str, Any] = dict(reference=reference, reference_lengths=lengths)
    found = ablation(model, padded, METRIC, how=how, lengths=LENGTHS, **options)
    known = [trace(model, reference[text : text + 1, :end]).blocks[1] for text, end in enumerate(lengths.tolist())]

    def edits(head: int, n: int) -> list[Edit]:
        """What the edit may be; the text that is drawn may be any that is long enough."""
        if how == "zero":
            return [minilens.zero(1, "z", heads=head)]
        if how == "mean":
            block = trace(model, reference).blocks[1]
            return [minilens.mean(block, "z", heads=head, reference_lengths=lengths)]
        values = [block.z[:, head, :n] for block in known]
        if how == "resample":
            return [minilens.at(1, "z", lambda old, v=v: v[:, None], heads=head) for v in values if v.shape[1] == n]
        at_each = [torch.cat([v[:, p] for v in values if v.shape[1] > p]).mean(0) for p in range(n)]
        return [minilens.at(1, "z", lambda old: torch.stack(at_each)[None, None], heads=head)]

    near = 1e-5 if family == "gpt_neo" else 1e-9
    for number, text in enumerate(texts_of(padded)):
        assert abs(found.untouched[number] - METRIC(trace(model, text).logits[:, -1])) < near
        for head in (0, 3):
            runs = [METRIC(trace(model, text, edit=edit).logits[:, -1]).item() for edit in edits(head, text.shape[1])]
            assert min(abs(run - found.metric["z"][number, 1, head].item()) for run in runs) < near
            assert all(abs(run - found.untouched[number]) > 10 * near for run in runs)


def test_the_mean_and_its_error(tiny: Tiny, padded: Tensor) -> None:
    model, _ = minilens.load(tiny("gpt2")[1])
    found = ablation(model, padded, METRIC, lengths=LENGTHS, sites=("z", "v"))
    change = (found.metric["v"] - found.untouched[:, None, None]).numpy()
    mean, error = found.change("v")
    assert (mean.numpy() == pytest.approx(change.mean(0))) and error.numpy() == pytest.approx(
        change.std(0, ddof=1) / sqrt(3)
    )
    alone = ablation(model, padded[:1], METRIC, how="zero")
    assert isnan(alone.change("z").standard_error[0, 0])
    assert repr(found).startswith("Ablation (mean) of z, v in 3 layers by head: 3 texts, metric ")
    each = ablation(model, padded, [METRIC, logit_difference(23, 17), METRIC], lengths=LENGTHS, how="zero")
    plain = ablation(model, padded, METRIC, lengths=LENGTHS, how="zero")
    assert torch.allclose(each.metric["z"][1], -plain.metric["z"][1])
    by_position = ablation(model, padded, METRIC, how="zero", sites="mlp_out", by="position")
    run = trace(model, padded, edit=minilens.zero(2, "mlp_out", positions=11)).logits[:, -1]
    assert (by_position.metric["mlp_out"][:, 2, 11] - METRIC(run)).abs().max() < 1e-4


def test_a_text_is_not_drawn_for_itself(tiny: Tiny, padded: Tensor) -> None:
    model, _ = minilens.load(tiny("gpt2")[1], dtype=torch.float64)
    two = padded[:2]
    for seed in range(4):
        found = ablation(model, two, METRIC, how="resample", seed=seed)
        for number in (0, 1):
            other = minilens.patch(trace(model, two[1 - number : 2 - number]).blocks[0], "z", heads=2)
            run = METRIC(trace(model, two[number : number + 1], edit=other).logits[:, -1])
            assert abs(found.metric["z"][number, 0, 2] - run) < 1e-9
    seeds = [ablation(model, padded, METRIC, how="resample", seed=seed).metric["z"] for seed in (0, 0, 1, 2, 3)]
    assert torch.equal(seeds[0], seeds[1]) and not all(torch.equal(seeds[0], other) for other in seeds[2:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"how": "noise"}, 'there is no ablation "noise"; there are zero, mean, mean_by_position, resample'),
        ({"how": "resample"}, "text 1 has 12 tokens, and there is no other text of as many to resample it from"),
        ({"how": "mean_by_position"}, "text 1 has 12 tokens, and no other text has as many"),
        ({"sites": "pattern"}, '"pattern" has no mean over texts'),
        ({"by": "position", "sites": "z"}, 'by="position" takes texts of one length'),
        ({"lengths": [9, 13, 7]}, r"lengths must be 3 numbers from 1 to 12, the tokens of each text; got \[9, 13, 7\]"),
        ({"metric": [METRIC]}, "metric must be one for all texts, or one for each of the 3; got 1"),
    ],
)
def test_refusals(tiny: Tiny, padded: Tensor, options: dict[str, Any], message: str) -> None:
    model, _ = minilens.load(tiny("gpt2")[1])
    with pytest.raises(ValueError, match=message):
        ablation(model, padded, **{"metric": METRIC, "lengths": LENGTHS, **options})
    with pytest.raises(ValueError, match='"q" was not ablated; those that were are z'):
        ablation(model, padded, METRIC, how="zero").change("q")

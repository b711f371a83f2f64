"""Gradients: equal to finite differences in float64, through every value; and what is made of them."""

from typing import Any

import pytest
import torch
from conftest import FAMILIES, Tiny
from torch import Tensor

import minilens
from minilens import at, attribution_patching, decode, gradient_trace, integrated_gradients, logit_difference, trace
from minilens.traces import SITES

METRIC = logit_difference(17, 23)
# GPT-Neo's scores are in float32 always: a smaller step would be lost in their rounding.
STEP = {"gpt2": 1e-5, "ctrl": 1e-5, "gpt_neo": 1e-2}
NEAR = {"gpt2": 1e-7, "ctrl": 1e-7, "gpt_neo": 1e-3}


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tiny: Tiny) -> minilens.Model:
    return minilens.load(tiny(request.param)[1], dtype=torch.float64)[0]


@pytest.fixture
def texts(tokens: Tensor) -> tuple[Tensor, Tensor]:
    clean = tokens[:1, :9]
    corrupt = clean.clone()
    corrupt[0, 4] = (corrupt[0, 4] + 5) % 101
    return clean, corrupt


def central(model: minilens.Model, text: Tensor, layer: int, site: str, direction: Tensor) -> float:
    """The derivative of the metric along a direction of one value: the difference of two runs."""
    step = STEP[model.family]

    def moved(far: float) -> Tensor:
        edit = at(layer, site, lambda value: value + far * direction)
        return METRIC(trace(model, text, edit=edit).logits[:, -1])

    return float((moved(step) - moved(-step)) / (2 * step))


def test_every_value_has_its_gradient(model: minilens.Model, texts: tuple[Tensor, Tensor]) -> None:
    text, random = texts[0], torch.Generator().manual_seed(5)
    with torch.no_grad():
        found = gradient_trace(model, text)
    METRIC(found.logits[:, -1]).sum().backward()
    for layer, block in enumerate(found.blocks):
        for site in SITES:
            value = getattr(block, site)
            direction = torch.randn(value.shape, generator=random, dtype=value.dtype)
            wanted = central(model, text, layer, site, direction)
            assert abs((value.grad * direction).sum() - wanted) < NEAR[model.family] * max(1, abs(wanted)), (
                layer,
                site,
            )
        assert block.scores.grad is not None and block.ln2_out.grad is not None
    assert found.embed.grad is found.blocks[0].resid_pre.grad is not None
    assert torch.equal(found.logits.detach(), trace(model, text).logits)
    assert not model.W_E.requires_grad and model.W_E.grad is None


def test_gradients_of_an_edited_run_and_of_weights(model: Any, texts: tuple[Tensor, Tensor]) -> None:
    cut = at(1, "attn_out", lambda value: value.detach())
    found = gradient_trace(model, texts[0], edit=cut)
    found.logits[0, -1, 17].backward()
    assert found.blocks[1].mlp_out.grad is not None and found.blocks[1].z.grad is None
    with torch.inference_mode():
        assert gradient_trace(model, texts[0]).logits.requires_grad
    W_E = model.W_E.clone().requires_grad_()
    own = type(model)(**{**vars(model), "W_E": W_E})
    gradient_trace(own, texts[0]).logits[0, -1, 17].backward()
    assert W_E.grad is not None and W_E.grad[texts[0][0, 3]].abs().sum() > 0


def test_attribution_patching_is_the_slope_of_patching(model: minilens.Model, texts: tuple[Tensor, Tensor]) -> None:
    """What a cell would do, if all went on as a very small part of it does."""
    clean, corrupt = texts
    source, target = (trace(model, text).blocks for text in texts)
    for site, by in (("mlp_out", "position"), ("z", "head"), ("q", "head_position")):
        found = attribution_patching(model, clean, corrupt, METRIC, sites=site, by=by)
        assert found.can_change[site].any()
        for cell in found.can_change[site].nonzero().tolist()[::7]:
            change = getattr(source[cell[0]], site) - getattr(target[cell[0]], site)
            kept = torch.zeros_like(change)
            where = {"position": (0, cell[-1]), "head": (0, cell[1]), "head_position": (0, *cell[1:])}[by]
            kept[where] = change[where]
            slope = central(model, corrupt, cell[0], site, kept)
            assert abs(found.metric[site][tuple(cell)] - found.corrupt - slope) < NEAR[model.family] * 10
        assert (found.metric[site][~found.can_change[site]] == found.corrupt).all()


def test_integrated_gradients_are_complete(model: minilens.Model, texts: tuple[Tensor, Tensor]) -> None:
    """The stream holds all that the texts differ in: its cells sum to the whole, in every layer."""
    found = integrated_gradients(model, *texts, METRIC, steps=80, sites="resid_pre")
    assert (found.recovered("resid_pre").sum(1) - 1).abs().max() < 5e-3
    # In a value's own line: a head's share is the integral of its slope, here by hand with three points.
    cell = integrated_gradients(model, *texts, METRIC, steps=3, sites="z", by="head")
    source, target = (trace(model, text).blocks[1].z for text in texts)
    slopes = []
    for far in (1 / 6, 1 / 2, 5 / 6):
        value = target.lerp(source, far).requires_grad_()
        logits = trace(model, texts[1], edit=at(1, "z", lambda old, value=value: value)).logits
        (gradient,) = torch.autograd.grad(METRIC(logits[:, -1]).sum(), value)
        slopes.append(((source - target) * gradient).sum((0, 2, 3)))
    assert (cell.metric["z"][1] - cell.corrupt - torch.stack(slopes).mean(0)).abs().max() < NEAR[model.family]


def test_lines_cut_into_batches(tiny: Tiny, texts: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = minilens.load(tiny("gpt2")[1], dtype=torch.float64)
    whole = integrated_gradients(model, *texts, METRIC, steps=5)
    monkeypatch.setattr("minilens.instruments.cells.TOGETHER", 20)
    cut = integrated_gradients(model, *texts, METRIC, steps=5)
    assert all((whole.metric[site] - cut.metric[site]).abs().max() < 1e-9 for site in whole.metric)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own, when jvp is first used
def test_torch_func(model: minilens.Model, texts: tuple[Tensor, Tensor]) -> None:
    """grad, jvp and vmap through the blocks, on streams side by side."""
    resid = model.embed(texts[0])

    def metric(resid: Tensor) -> Tensor:
        return METRIC(decode(model, resid, start=1)[:, -1])[0]

    gradient = torch.func.grad(metric)(resid)
    leaf = resid.clone().requires_grad_()
    metric(leaf).backward()
    assert (gradient - leaf.grad).abs().max() < 1e-9
    direction = torch.randn(resid.shape, generator=torch.Generator().manual_seed(1), dtype=resid.dtype)
    value, slope = torch.func.jvp(metric, (resid,), (direction,))
    assert abs(value - metric(resid)) < 1e-9
    near = 1e-5 if model.family == "gpt_neo" else 1e-9
    assert abs(slope - (gradient * direction).sum()) < near * max(1, abs(slope))
    streams = torch.stack([resid, resid + direction])
    together = torch.func.vmap(torch.func.grad(metric))(streams)
    assert (together - torch.stack([torch.func.grad(metric)(each) for each in streams])).abs().max() < near * 100


def test_refusals(tiny: Tiny, texts: tuple[Tensor, Tensor]) -> None:
    model, _ = minilens.load(tiny("gpt2")[1])
    for estimate in (attribution_patching, integrated_gradients):
        with pytest.raises(ValueError, match="no gradient flows through the metric"):
            estimate(model, *texts, lambda logits: logits.detach()[:, 17])
    with pytest.raises(ValueError, match="steps must be at least 1; it is 0"):
        integrated_gradients(model, *texts, METRIC, steps=0)
    with torch.inference_mode():
        assert attribution_patching(model, *texts, METRIC).metric  # the weights are as they were loaded
        inside, _ = minilens.load(tiny("gpt2")[1], mmap=False)
    if inside.W_E.is_inference():
        with pytest.raises(ValueError, match=r"under torch\.inference_mode has no gradients"):
            gradient_trace(inside, texts[0])

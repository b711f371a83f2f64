"""Fidelity: lenses that are right or wrong by construction, pushes, directions, errors, and what is refused."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Tensors, changed
from conftest import FAMILIES, Tiny
from torch import Tensor

import minilens
from minilens.learned.affine import LearnedLens, RowMap, Subject
from minilens.learned.fidelity import Changes, Fidelity, fidelity, jackknife, spearman
from minilens.learned.pushes import (
    Push,
    ablations,
    mean_residual,
    principal_directions,
    random_rotation,
    swaps,
    token_directions,
    turned,
)
from minilens.lens import EMBED
from minilens.traces import Site

D = 30
ROW = Site(1, "resid_post")
SILENT = ("c_proj.weight", "out_proj.weight", "dense.weight", "ffn.2.weight")


def texts(n: int = 3, length: int = 9) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2026)
    return [torch.randint(0, 101, (1, length), generator=generator) for _ in range(n)]


def silent(tiny: Tiny, tmp_path: Path, family: str) -> minilens.Model:
    """A model whose blocks write nothing but biases."""

    def tensors(found: Tensors) -> Tensors:
        return {name: tensor * (not name.endswith(SILENT)) for name, tensor in found.items()}

    return minilens.load(changed(tiny(family)[1], tmp_path / family, tensors=tensors), dtype=torch.float64)[0]


def lens_of(model: minilens.Model, A: Tensor, b: Tensor | None = None) -> LearnedLens:
    """The same map for all rows."""
    row = RowMap.of(A, torch.zeros(D) if b is None else b)
    sites = [EMBED, *(Site(n, name) for n in range(3) for name in minilens.lens.ROW_SITES)]
    return LearnedLens("affine", dict.fromkeys(sites, row), Subject.of(model))


def right(model: minilens.Model, site: Site) -> LearnedLens:
    """Of a silent model: what follows the row is a sum of biases."""
    after = [block.b_O + block.b_out for block in model.blocks[site.layer + 1 :]]
    after += [model.blocks[site.layer].b_out] if site.name == "resid_mid" else []
    return lens_of(model, torch.eye(D).double(), sum(after, torch.zeros(D).double()))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", [EMBED, Site(0, "resid_post"), Site(1, "resid_mid"), ROW], ids=str)
def test_a_lens_that_is_right_is_faithful(tiny: Tiny, tmp_path: Path, family: str, site: Site) -> None:
    model, found = silent(tiny, tmp_path, family), texts()
    lens = right(model, site)
    directions = principal_directions(model, lens, site, 3)
    pushes = ablations(directions, mean_residual(model, found, site))
    pushes += swaps(model, lens, site, [(3, 5), (7, 99)])
    result = fidelity(model, found, site, pushes, lens)
    for changes in (result.pushed, result.turned):
        torch.testing.assert_close(changes.lens, changes.model, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(changes.cosine, torch.ones(5, 3, dtype=torch.float64))
        assert changes.model[:3].min() > 1e-6  # which are sizes
    assert result.pushed.spearman == result.turned.spearman == (pytest.approx(1), pytest.approx(0, abs=1e-9))
    assert result.pushed.alignment.value == pytest.approx(1)
    assert result.pushed.effect.value == pytest.approx(float(result.pushed.model.mean()))
    assert result.turned.effect.value == pytest.approx(float(result.turned.model.mean()))
    assert str(result).startswith(f"Fidelity at {minilens.lens.label(site)}, 5 pushes in 3 texts: Spearman 1.00 ± 0.00")


def test_a_lens_that_is_wrong_is_not(tiny: Tiny, tmp_path: Path) -> None:
    model, found = silent(tiny, tmp_path, "gpt2"), texts()
    wrong = lens_of(model, random_rotation(D, 7).double())
    pushes = ablations(torch.eye(D).double()[:12], mean_residual(model, found, ROW))
    good = fidelity(model, found, ROW, pushes, right(model, ROW))
    bad = fidelity(model, found, ROW, pushes, wrong)
    assert good.pushed.spearman.value == pytest.approx(1)
    assert abs(bad.pushed.spearman.value) < 0.6
    assert abs(bad.pushed.alignment.value) < 0.3
    assert bad.pushed.spearman.error > 1e-3
    torch.testing.assert_close(bad.pushed.model, good.pushed.model)  # the model is the same


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_run_on_with_what_is_pushed(tiny: Tiny, family: str) -> None:
    """Against the whole model with an edit, from the first token on but for those that are skipped."""
    model, (text,) = minilens.load(tiny(family)[1], dtype=torch.float64)[0], texts(1)
    push = torch.randn(D, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    before, after = (
        minilens.trace(model, text, edit=edit).logits[0, 2:].log_softmax(-1)
        for edit in (minilens.untouched, minilens.add(1, "resid_post", push, positions=range(2, 9)))
    )
    kl = (before.exp() * (before - after)).sum(-1).mean()
    odds = (after - before)[:, 8] - (after - before)[:, 6]
    result = fidelity(model, [text], ROW, [Push(lambda h: h + push), Push(lambda h: h + push, (6, 8))], skip=2)
    torch.testing.assert_close(result.pushed.model[:, 0], torch.stack([kl, odds.mean()]))
    rows = [
        list(minilens.lens_rows(model, text, transport=lambda site, resid, by=by: resid + by))[2].logits[0, 2:]
        for by in (0 * push, push)
    ]
    before, after = (row.log_softmax(-1) for row in rows)
    torch.testing.assert_close(result.pushed.lens[0, 0], (before.exp() * (before - after)).sum(-1).mean())
    assert math.isnan(result.pushed.spearman.error)  # of one text


def test_an_ablation_leaves_the_mean() -> None:
    generator = torch.Generator().manual_seed(7)
    h, direction, mean = (torch.randn(*shape, generator=generator) for shape in ((1, 9, D), (1, D), (D,)))
    (push,) = ablations(direction, mean)
    pushed, v = push.change(h)[0], direction[0]
    torch.testing.assert_close(pushed @ v, (mean @ v).expand(9))
    orthogonal = torch.eye(D) - v.outer(v) / (v @ v)
    torch.testing.assert_close(pushed @ orthogonal, h[0] @ orthogonal)
    half = push.change(h.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half[0].float(), pushed, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("centred", [False, True])
def test_a_swap_exchanges_two_coordinates(tiny: Tiny, centred: bool) -> None:
    model, _ = minilens.load(tiny("gpt2")[1], dtype=torch.float64)
    lens = lens_of(model, random_rotation(D, 7).double())
    V = token_directions(model, lens, ROW, [3, 5], centred=centred)
    (push,) = swaps(model, lens, ROW, [(3, 5)], centred=centred)
    assert push.pair == (3, 5)
    h = torch.randn(1, 9, D, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    coordinates = [torch.linalg.lstsq(V.T, each[0].T).solution for each in (h, push.change(h))]
    torch.testing.assert_close(coordinates[1], coordinates[0].flip(0))
    orthogonal = torch.eye(D) - torch.linalg.pinv(V) @ V
    torch.testing.assert_close(push.change(h) @ orthogonal, h @ orthogonal)
    torch.testing.assert_close(push.change(push.change(h)), h)
    mean = token_directions(model, lens, ROW, range(101)).mean(0)  # type: ignore[arg-type]
    raw = token_directions(model, lens, ROW, [3, 5])
    torch.testing.assert_close(V, raw - mean if centred else raw)


def test_a_turned_push_keeps_the_norm_of_each_change() -> None:
    h = torch.randn(2, 9, D, generator=torch.Generator().manual_seed(7))
    push = Push(lambda h: h * h, (1, 2))
    change = push.change(h) - h
    other = turned(push, random_rotation(D, 0))
    found = other.change(h) - h
    assert other.pair == push.pair
    torch.testing.assert_close(found.norm(dim=-1), change.norm(dim=-1))
    torch.testing.assert_close(found @ found.mT, change @ change.mT)  # and the angles between them
    assert torch.nn.functional.cosine_similarity(found, change, dim=-1).abs().mean() < 0.3
    torch.testing.assert_close(
        turned(push, random_rotation(D, 1)).change(h).norm(), other.change(h).norm(), rtol=0.2, atol=0
    )
    assert not torch.equal(random_rotation(D, 1), random_rotation(D, 0))


@pytest.mark.parametrize("family", FAMILIES)
def test_token_directions_are_gradients_of_the_lens(tiny: Tiny, family: str) -> None:
    """But for what goes to the scale of the norm: along the residual itself."""
    model, _ = minilens.load(tiny(family)[1], dtype=torch.float64)
    lens = lens_of(model, random_rotation(D, 7).double())
    h = torch.randn(D, dtype=torch.float64, generator=torch.Generator().manual_seed(7))

    def logit(h: Tensor) -> Tensor:
        return model.unembed(lens(ROW, h[None, None]))[0, 0, 42]

    gradient = torch.autograd.functional.jacobian(logit, h)
    z = lens(ROW, h[None, None])[0, 0]
    scale = (z.var(correction=0) + model.ln_final_eps).sqrt()
    (v,) = token_directions(model, lens, ROW, [42])
    radial = lens.maps[ROW].A.double() @ (z - z.mean())
    left = v / scale - gradient
    torch.testing.assert_close(left, (left @ radial) / (radial @ radial) * radial, rtol=1e-6, atol=1e-6)
    if family != "ctrl":
        plain = replace(model, ln_final=minilens.ops.LayerNorm(torch.ones(D).double(), torch.zeros(D).double()))  # type: ignore[type-var]
        (v,) = token_directions(plain, None, ROW, [42])
        torch.testing.assert_close(v, model.W_U[:, 42] - model.W_U[:, 42].mean())


def test_principal_directions_move_the_logits_most(tiny: Tiny) -> None:
    model, _ = minilens.load(tiny("gpt2")[1], dtype=torch.float64)
    lens = lens_of(model, torch.randn(D, D, generator=torch.Generator().manual_seed(7)).double())
    directions = principal_directions(model, lens, ROW, 4)
    torch.testing.assert_close(directions @ directions.T, torch.eye(4, dtype=torch.float64))
    of_tokens = token_directions(model, lens, ROW, range(101), centred=True)  # type: ignore[arg-type]
    moved = (directions @ of_tokens.T).norm(dim=1)
    torch.testing.assert_close(moved, torch.linalg.svdvals(of_tokens)[:4])


def test_ranks_and_errors() -> None:
    x = torch.tensor([3.0, 1.0, 4.0, 1.5, 5.0])
    assert spearman(x, x.exp()) == pytest.approx(1)
    assert spearman(x, -(x**3)) == pytest.approx(-1)
    assert spearman(torch.tensor([1.0, 2, 2, 4]), torch.tensor([1.0, 3, 2, 4])) == pytest.approx(0.9486832981)
    assert math.isnan(spearman(x, torch.ones(5)))
    values = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    mean, error = jackknife(lambda changes: float(changes.model.mean()), Changes(values, values, values))
    assert mean == pytest.approx(float(values.mean()))
    assert error == pytest.approx(float(values.mean(0).std() / 6**0.5))


def test_no_change_has_no_direction(tiny: Tiny) -> None:
    model, _ = minilens.load(tiny("gpt2")[1], dtype=torch.float64)
    result = fidelity(model, texts(), ROW, [Push(lambda h: h)])
    assert [part.abs().max() for part in result.pushed] == [0, 0, 0]
    assert isinstance(result, Fidelity)


@pytest.mark.parametrize(
    ("site", "given", "options", "sentence"),
    [
        (Site(2, "resid_post"), None, {}, "the row 2.resid_post is the model's own output, or within the decoder: "),
        (Site(7, "resid_post"), None, {}, "layer 7 does not exist: the model's layers are 0 to 2"),
        (Site(1, "mlp_post"), None, {}, 'the lens has no rows for "mlp_post"'),
        (ROW, torch.zeros(2, 9).long(), {}, "each text must be of shape [1, pos], with more than 1 tokens; got [2, 9]"),
        (ROW, torch.zeros(1, 3).long(), {"skip": 3}, "with more than 3 tokens; got [1, 3]"),
        (ROW, None, {"pushes": []}, "fidelity needs at least one push and one text"),
    ],
)
def test_what_has_no_fidelity(tiny: Tiny, site: Site, given: Any, options: dict[str, Any], sentence: str) -> None:
    model, _ = minilens.load(tiny("gpt2")[1])
    found = {"pushes": [Push(lambda h: h)], **options}
    with pytest.raises(ValueError, match=re.escape(sentence)):
        fidelity(model, texts(1) if given is None else [given], site, **found)


def test_directions_that_are_not_there(tiny: Tiny) -> None:
    model, _ = minilens.load(tiny("gpt2")[1])
    lens = LearnedLens("affine", {EMBED: RowMap(torch.zeros(D, D), torch.zeros(D))}, Subject.of(model), name="x")
    with pytest.raises(ValueError, match=r"the lens x has no map for the row 1\.resid_post"):
        principal_directions(model, lens, ROW, 3)
    with pytest.raises(ValueError, match=r"have almost the same direction at 1\.resid_post, with a cosine of 1\.0000"):
        swaps(model, None, ROW, [(3, 3)])
    with pytest.raises(ValueError, match="token is 101, which is out of range"):
        token_directions(model, None, ROW, [101])

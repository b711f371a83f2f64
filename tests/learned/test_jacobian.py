"""Jacobian lenses: the sums against whole Jacobians, random cotangents, errors, twins, and what is refused."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAMILIES, Tiny
from torch import Tensor

import minilens
from minilens.learned.affine import read_lens
from minilens.learned.jacobian import alignment, jacobian_lens, jacobian_sums, no_jacobians
from minilens.lens import EMBED
from minilens.traces import Site

SKIP = 4
BOUND = {"gpt2": 1e-10, "gpt_neo": 1e-4, "ctrl": 1e-10}  # of the largest number; GPT-Neo's scores are in float32


def loaded(tiny: Tiny, family: str, dtype: torch.dtype = torch.float64) -> minilens.Model:
    return minilens.load(tiny(family)[1], dtype=dtype)[0]


def texts(n: int, length: int = 14) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2026)
    return [torch.randint(0, 101, (1, length), generator=generator) for _ in range(n)]


def whole_jacobian(model: minilens.Model, tokens: Tensor, layer: int, stop: int) -> Tensor:
    """J - I of the stream entering a block, to that leaving block stop - 1, from all derivatives of all positions."""
    resid = model.embed(tokens)
    for block in minilens.run(model, resid, stop=layer):
        resid = block.resid_post

    def rest(resid: Tensor) -> Tensor:
        for block in minilens.run(model, resid, start=layer, stop=stop):
            resid = block.resid_post
        return resid

    J = torch.autograd.functional.jacobian(rest, resid)[0, :, :, 0]  # pos d_out pos d_in
    V = slice(SKIP, -1)
    assert J[0, :, 1].abs().max() == 0 < J[1, :, 0].abs().max()  # attention looks back, and only back
    return J[V][:, :, V].sum((0, 2)) / len(range(tokens.shape[1])[V]) - torch.eye(J.shape[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sums_are_those_of_whole_jacobians(tiny: Tiny, family: str) -> None:
    model, (one, other) = loaded(tiny, family), texts(2)
    other = other[:, :11]
    sums = jacobian_sums(model, [one, other[:, : SKIP + 1], other], skip=SKIP)
    assert (sums.texts, sums.tokens) == (2, 14 + 5 + 11)  # the one between them has no position that counts
    each = torch.stack([torch.stack([whole_jacobian(model, t, n, 3) for n in range(3)]) for t in (one, other)])
    torch.testing.assert_close(sums.sums, each.sum(0), rtol=0, atol=BOUND[family] * float(each.abs().max()))
    error = each.std(0).square().sum((-2, -1)).div(2).sqrt()  # of the mean of two
    torch.testing.assert_close(sums.standard_error, error, rtol=1e-3 if family == "gpt_neo" else 1e-8, atol=0)


def test_other_rows_and_another_decoder(tiny: Tiny) -> None:
    """J leads to the stream that the decoder reads. At resid_pre it is that of the block before."""
    model, (text,) = loaded(tiny, "gpt2"), texts(1)
    sums = jacobian_sums(model, [text], skip=SKIP, decoder="block:1", sites=["resid_pre", "resid_mid", "resid_post"])
    lens = jacobian_lens(sums, model, decoder="block:1", sites=["resid_pre", "resid_mid", "resid_post"])
    assert [(site.layer, site.name) for site in lens.maps] == [
        (-1, "embed"), (0, "resid_pre"), (0, "resid_mid"), (0, "resid_post"), (1, "resid_pre"), (1, "resid_mid"),
    ]  # fmt: skip
    torch.testing.assert_close(sums.sums[0], whole_jacobian(model, text, 0, 2))
    torch.testing.assert_close(sums.sums[4], whole_jacobian(model, text, 1, 2))
    assert torch.equal(lens.maps[Site(1, "resid_pre")].weight, sums.weight[4].float())


def test_random_cotangents_are_right_in_the_mean(tiny: Tiny) -> None:
    model, (text,) = loaded(tiny, "gpt2"), texts(1)
    exact = jacobian_sums(model, [text], skip=SKIP).weight
    n, k, d_model = 60, 10, len(model.W_U)
    drawn = no_jacobians(3, d_model)
    for seed in range(n):
        drawn = drawn + jacobian_sums(model, [text], skip=SKIP, cotangents=k, seed=seed)
    # The expected distance, squared, of one draw is (d_model / k - 1) times the norm of J - I, squared.
    norms = exact.square().sum((-2, -1))
    distance = (drawn.weight - exact).square().sum((-2, -1))
    expected = (d_model / k - 1) * norms / n
    assert ((distance > expected / 2) & (distance < expected * 2)).all()
    torch.testing.assert_close(drawn.standard_error.square(), expected, rtol=0.2, atol=0)
    again, other = (jacobian_sums(model, [text], skip=SKIP, cotangents=k, seed=seed).sums for seed in (7, 8))
    assert torch.equal(again, jacobian_sums(model, [text], skip=SKIP, cotangents=k, seed=7).sums)
    assert not torch.equal(again, other)


def test_parts_add_up_and_twins_are_alike(tiny: Tiny) -> None:
    model, found = loaded(tiny, "ctrl"), texts(4)
    parts = [jacobian_sums(model, found[n::2], skip=SKIP) for n in (0, 1)]
    whole, total = jacobian_sums(model, found, skip=SKIP), parts[0] + parts[1]
    for name, value in vars(whole).items():
        torch.testing.assert_close(getattr(total, name), value)
    assert total.texts == 4
    torch.testing.assert_close(alignment(whole, whole), torch.ones(3, dtype=torch.float64))
    assert (alignment(*parts) < 1 - 1e-6).all()
    empty = no_jacobians(3, len(model.W_U)) + whole
    assert all(torch.equal(getattr(empty, name), value) for name, value in vars(whole).items())


def test_a_model_without_blocks_to_speak_of(tiny: Tiny, tmp_path: Path) -> None:
    """Where blocks write only biases, J is I, and the lens of each row is the plain one."""
    from checkpoints import Tensors, changed

    def silent(tensors: Tensors) -> Tensors:
        return {
            name: tensor * 0 if name.endswith("c_proj.weight") else tensor.clone() for name, tensor in tensors.items()
        }

    model, _ = minilens.load(changed(tiny("gpt2")[1], tmp_path / "silent", tensors=silent), dtype=torch.float64)
    sums = jacobian_sums(model, texts(2), skip=SKIP)
    assert sums.sums.abs().max() < 1e-12
    tokens = texts(1)[0]
    rows = minilens.lens_rows(model, tokens, transport=jacobian_lens(sums, model))
    for row, plain in zip(rows, minilens.lens_rows(model, tokens), strict=True):
        torch.testing.assert_close(row.logits, plain.logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_lens_is_saved_and_decodes(tiny: Tiny, tmp_path: Path, family: str) -> None:
    model = loaded(tiny, family, torch.float32)
    sums = jacobian_sums(model, texts(2), skip=SKIP)
    jacobian_lens(sums, model, {"on": "random tokens"}).save(tmp_path / "lens")
    lens = read_lens(tmp_path / "lens")
    assert (lens.kind, lens.made["texts"], lens.made["on"]) == ("jacobian", 2, "random tokens")
    assert lens.made["standard_errors"].keys() == {"embed", "0.resid_post", "1.resid_post"}
    tokens = texts(1)[0]
    J = (sums.sums[0] / 2 + torch.eye(len(model.W_U))).float()
    first, *_, last = minilens.lens_rows(model, tokens, transport=lens)
    torch.testing.assert_close(first.logits, model.unembed(model.embed(tokens) @ J.T), rtol=1e-3, atol=1e-3)
    assert torch.equal(last.logits, model(tokens))
    assert lens.maps[EMBED].bias.abs().max() == 0


def test_a_pass_under_inference_mode_is_the_same(tiny: Tiny) -> None:
    model, (text,) = loaded(tiny, "gpt2"), texts(1)
    expected = jacobian_sums(model, [text], skip=SKIP).sums
    with torch.inference_mode():
        assert torch.equal(jacobian_sums(model, [text.clone()], skip=SKIP).sums, expected)


@pytest.mark.parametrize(
    ("given", "options", "sentence"),
    [
        (torch.zeros(2, 9, dtype=torch.long), {}, "each text must be tokens of shape [1, pos]; got [2, 9]"),
        (None, {"cotangents": 31}, "cotangents must be between 1 and the width of the model, 30; got 31"),
        (None, {"skip": -1}, "skip must be 0 or more positions; got -1"),
        (None, {"layers": 3}, "layer 3 does not exist: the model's layers are 0 to 2"),
    ],
)
def test_what_cannot_be_summed(tiny: Tiny, given: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        jacobian_sums(loaded(tiny, "gpt2"), texts(1) if given is None else [given], **options)


def test_what_makes_no_lens(tiny: Tiny) -> None:
    model = loaded(tiny, "gpt2")
    with pytest.raises(ValueError, match="no text to take a Jacobian of: each needs two tokens more than skip"):
        jacobian_lens(jacobian_sums(model, texts(2), skip=13), model)
    sums = jacobian_sums(model, texts(1), skip=SKIP)
    with pytest.raises(ValueError, match="the sums are of 3 rows, and the lens has 6: give the same options"):
        jacobian_lens(sums, model, sites=["resid_mid", "resid_post"])
    half = minilens.load(tiny("gpt2")[1], dtype=torch.bfloat16)[0]
    with pytest.raises(ValueError, match=r"needs weights in float32 or float64; these are torch\.bfloat16: load it so"):
        jacobian_sums(half, texts(1))
    infinite = replace(model.blocks[1], W_O=model.blocks[1].W_O * torch.inf)  # type: ignore[type-var]
    broken = replace(model, blocks=(model.blocks[0], infinite, model.blocks[2]))  # type: ignore[type-var]
    with pytest.raises(ValueError, match="a Jacobian is not finite: there is a NaN"):
        jacobian_sums(broken, texts(1), skip=SKIP)

"""The library on a GPU gives what it gives on the CPU; where there is no GPU, at least nothing strays from its device.

Each test runs on the CPU as well, so that only the device is new where one is there. The reference is float64 on the
CPU: transformers for the forward pass, the definitions for the statistics, minilens itself for the rest.
"""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import torch
from conftest import FAMILIES, Tiny
from test_loading import weights
from test_parity import VARIANTS, reference_values, values
from test_vocab import EVERY, plainly, ranks, vectors
from torch import Tensor

import minilens
from minilens.device import CPU
from minilens.traces import HEAD_SITES, SITES
from minilens.vocab import vocab_stats

WITHIN = 1e-4  # float32, in the order of summation of any device, beside float64
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NO_GPU)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # which on a GPU means no TF32, whose numbers have 10 bits
    yield request.param
    torch.set_float32_matmul_precision(before)


@pytest.fixture(params=FAMILIES)
def both(request: pytest.FixtureRequest, tiny: Tiny, device: str) -> tuple[minilens.Model, minilens.Model]:
    """A model in float32 on the device, and in float64 on the CPU."""
    _, folder = tiny(request.param)
    return minilens.load(folder, device=device)[0], minilens.load(folder, dtype=torch.float64)[0]


@pytest.fixture
def text(tokens: Tensor) -> Tensor:
    return tokens[:1]


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest, from the same device; where both are infinite, as scores of keys that come later, there is none."""
    ours = ours.double().cpu()
    return (ours - theirs).masked_fill(ours == theirs, 0).abs().max().item()


@pytest.mark.parametrize(("family", "config"), VARIANTS, ids=str)
def test_every_value_equals_the_reference(
    tiny: Tiny, tokens: Tensor, device: str, family: str, config: dict[str, Any]
) -> None:
    reference, folder = tiny(family, **config)
    model, _ = minilens.load(folder, device=device)
    expected = reference_values(reference, tokens)
    for place in {"cpu", device}:  # tokens as the tokenizer gives them, or already there
        found = values(model, tokens.to(place))
        assert {value.device.type for value in found.values()} == {device}
        assert found.keys() == expected.keys()
        far = {name: far for name in expected if not (far := difference(found[name], expected[name])) < WITHIN}
        assert not far


def test_every_field_of_a_block_equals_the_cpu(
    both: tuple[minilens.Model, minilens.Model], tokens: Tensor, device: str
) -> None:
    ours, theirs = (minilens.trace(model, tokens) for model in both)
    for mine, other in zip(ours.blocks, theirs.blocks, strict=True):
        for name in (field.name for field in fields(mine) if field.name != "layer"):
            assert getattr(mine, name).device.type == device
            assert difference(getattr(mine, name), getattr(other, name)) < WITHIN, name


@pytest.mark.parametrize("scale", [0.01, 0.3, 3.0])
@pytest.mark.parametrize("whole", [2**12, 2**23], ids=["few at a time", "all at a time"])
@pytest.mark.parametrize("width", [576, None], ids=["tiles", "one tile"])
def test_the_vocabulary_pass(
    device: str, monkeypatch: pytest.MonkeyPatch, scale: float, whole: int, width: int | None
) -> None:
    """The bounds that vocab.py states, however positions and vocabulary are cut."""
    monkeypatch.setattr("minilens.vocab.at_once", lambda device: CPU._replace(width=width, whole=whole))
    x, W_U, b_U = vectors(8, 40, 64, 3000, scale, 0, torch.float32)
    logits = x.double() @ W_U.double() + b_U.double()
    asked = torch.randint(0, 3000, (2, 40), generator=torch.Generator().manual_seed(0))
    found = vocab_stats(
        x.to(device), W_U.to(device), b_U.to(device), dict(enumerate(asked.to(device))), k=5, stats=EVERY
    )
    of_tokens = [part for of_token in found.tokens.values() for part in of_token]
    assert {value.device.type for value in (*found.top, *of_tokens, *found.stats.values())} == {device}
    for name, expected in plainly(logits).items():
        error = (found.stats[name].cpu() - expected)[1:].abs()
        assert (error <= 2e-6 * (1 + logits.abs().max()) + 1e-5 * expected[1:]).all(), name
    assert torch.allclose(found.top.logit.cpu().double(), logits.topk(5).values, atol=1e-5, rtol=1e-5)
    for name, tokens in enumerate(asked):
        rank = found.tokens[name].rank.cpu()
        assert (rank == ranks(logits, tokens)).float().mean() > 0.99  # logits that differ by rounding may change places
    assert (found.tokens["final"].rank[-1] == 1).all()


@pytest.mark.parametrize(
    "options",
    [{}, dict(norm="plain", centre=True), dict(decoder="block:1"), dict(decoder="mlp", positions=[3, -1], track=[7])],
    ids=str,
)
def test_the_lens(both: tuple[minilens.Model, minilens.Model], text: Tensor, options: dict[str, Any]) -> None:
    mine, other = (minilens.logit_lens(model, text, stats="all", **options) for model in both)
    assert {value.device.type for value in (mine.tokens, mine.positions, *mine.top, *mine.final)} == {"cpu"}
    assert torch.equal(mine.final_tokens, other.final_tokens)
    assert torch.equal(mine.final.rank, other.final.rank)
    for name in ("kl_final", "kl_row_final", "kl_input", "js", "entropy", "cross_entropy"):
        assert torch.allclose(getattr(mine, name).double(), getattr(other, name), atol=WITHIN, equal_nan=True), name


def test_edits(both: tuple[minilens.Model, minilens.Model], text: Tensor) -> None:
    """Of every kind, at every site."""

    def edited(model: minilens.Model, site: str) -> Tensor:
        source = minilens.trace(model, text.flip(1)).blocks[1]
        where = dict(positions=[3, -1], heads=[0, -2]) if site in HEAD_SITES else dict(positions=[3, -1])
        edit = minilens.then(
            minilens.zero(0, site, **where),
            minilens.patch(source, site, **where),
            minilens.add(2, site, getattr(source, site)[0].flatten(0, -2)[0], **where),
            minilens.mean(source, "attn_out", positions=5),
            minilens.towards(model, 2, "resid_post", 7, 0.5, positions=range(4, 9)),
        )
        return minilens.trace(model, text, edit=edit).logits

    for site in SITES:
        ours, theirs = (edited(model, site) for model in both)
        assert difference(ours, theirs) < WITHIN, site


def test_patching_attribution_heads_and_geometry(both: tuple[minilens.Model, minilens.Model], text: Tensor) -> None:
    metric = minilens.logit_difference(17, 23)
    for by, sites in (("position", ("resid_pre", "q", "mlp_post")), ("head", ("z", "pattern"))):
        ours, theirs = (
            minilens.patching(model, text[:, :5], text[:, 5:10], metric, sites=sites, by=by) for model in both
        )
        for site in sites:
            assert torch.equal(ours.can_change[site], theirs.can_change[site])
            assert difference(ours.metric[site], theirs.metric[site]) < WITHIN
    parts, expected = (minilens.attribute(model, text, token=17, against=23, neurons=1) for model in both)
    assert difference(parts.contributions, expected.contributions) < WITHIN
    for ours, theirs in zip(*(minilens.head_scores(model, length=15) for model in both), strict=True):
        assert difference(ours, theirs) < WITHIN
    assert difference(*map(minilens.copying_scores, both)) < WITHIN
    assert difference(*(minilens.composition(model).key.nan_to_num() for model in both)) < WITHIN
    assert difference(*(minilens.ov_circuit(model, 1, 2).row(3) for model in both)) < WITHIN
    mine, other = (minilens.geometry(model) for model in both)
    assert mine == pytest.approx(other, abs=WITHIN)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision(tiny: Tiny, text: Tensor, device: str, family: str, dtype: torch.dtype) -> None:
    """Scores and statistics are in float32; of the best tokens of 33 positions, rounding may change a few."""
    if (family, dtype) == ("gpt_neo", torch.float16):
        pytest.skip("GPT-Neo is refused in float16")
    _, folder = tiny(family)
    model, _ = minilens.load(folder, device=device, dtype=dtype)
    assert {(weight.device.type, weight.dtype) for weight in weights(model)} == {(device, dtype)}
    block = minilens.trace(model, text).blocks[2]
    assert (block.scores.dtype, block.pattern.dtype, block.resid_post.dtype) == (torch.float32, dtype, dtype)
    table, exact = minilens.logit_lens(model, text), minilens.logit_lens(minilens.load(folder)[0], text)
    assert table.kl_final.dtype == torch.float32
    assert (table.final_tokens == exact.final_tokens).float().mean() > 0.8


@NO_GPU
def test_memory_on_the_gpu_is_returned(tiny: Tiny, text: Tensor) -> None:
    _, folder = tiny("gpt2")
    before = torch.cuda.memory_allocated()
    model, _ = minilens.load(folder, device="cuda")
    table = minilens.logit_lens(model, text)
    assert torch.cuda.memory_allocated() > before
    del model
    assert torch.cuda.memory_allocated() == before
    assert table.kl_final.device.type == "cpu"


# ---- Without a GPU: a device that holds no values, on which nothing else can be mixed in


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_pass_stays_on_the_models_device(tiny: Tiny, tokens: Tensor, family: str, dtype: torch.dtype) -> None:
    model, _ = minilens.load(tiny(family)[1], device="meta", dtype=dtype)
    trace = minilens.trace(model, tokens)
    found = [trace.embed, trace.logits, *(row.logits for row in minilens.lens_rows(model, tokens, norm="plain"))]
    for block in trace.blocks:
        found += [getattr(block, field.name) for field in fields(block) if field.name != "layer"]
    assert {value.device.type for value in found} == {"meta"}


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_made_on_the_default_device(tiny: Tiny, text: Tensor, family: str) -> None:
    """On a GPU's model the default device is another one, the CPU; here the model is on the CPU and the default not."""
    model, _ = minilens.load(tiny(family)[1])

    def all_of_it() -> list[Any]:
        trace, table = minilens.trace(model, text), minilens.logit_lens(model, text, stats="all", track=[7])
        parts, shape = minilens.attribute(model, text, neurons=1), minilens.geometry(model)
        numbers = [table.kl_final, table.js, *table.top, *table.next, *table.tracked, table.final_tokens, trace.logits]
        return [numbers, parts.contributions, [*minilens.head_scores(model, length=15)], shape]

    expected = all_of_it()
    with torch.device("meta"):
        found = all_of_it()
    torch.testing.assert_close(found[:3], expected[:3], rtol=0, atol=0, equal_nan=True)
    assert found[3] == expected[3]

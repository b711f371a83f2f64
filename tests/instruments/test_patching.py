"""Patching: every cell is a whole forward pass with that one value replaced, and a cell said not to change does not."""

import sys
from typing import Any

import pytest
import torch
from conftest import FAMILIES, Tiny

import minilens
from minilens.instruments.metrics import METRICS, kl_from, log_probability, logit_difference, named_metric
from minilens.instruments.patching import Patching, patching
from minilens.traces import HEAD_SITES, SITES

METRIC = logit_difference(17, 23)


@pytest.fixture
def texts(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two texts of 12 tokens that differ at positions 3 and 7."""
    clean = tokens[:1, :12]
    corrupt = clean.clone()
    corrupt[0, [3, 7]] = (corrupt[0, [3, 7]] + 5) % 101
    return clean, corrupt


def plain(
    model: minilens.Model,
    clean: torch.Tensor,
    corrupt: torch.Tensor,
    sites: Any,
    by: str,
    positions: tuple[int, ...],
) -> dict[str, torch.Tensor]:
    """A forward pass for each cell, from the first block to the last: [position, layer, place]."""
    source = minilens.trace(model, clean).blocks
    n = 5 if by == "head" else corrupt.shape[1]
    result = {site: torch.zeros(len(positions), model.n_layers, n, dtype=torch.float64) for site in sites}
    for site, grid in result.items():
        for layer in range(model.n_layers):
            for place in range(n):
                where: dict[str, Any] = {"heads": place} if by == "head" else {"positions": place}
                logits = minilens.trace(model, corrupt, edit=minilens.patch(source[layer], site, **where)).logits
                grid[:, layer, place] = torch.cat([METRIC(logits[:, position]) for position in positions])
    return result


@pytest.mark.parametrize("by", ["position", "head"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_cell_is_a_run_of_its_own(
    tiny: Tiny, texts: tuple[torch.Tensor, torch.Tensor], family: str, by: str
) -> None:
    """In float64; GPT-Neo's window of 7 is shorter than the texts."""
    model, _ = minilens.load(tiny(family)[1], dtype=torch.float64)
    sites, positions = HEAD_SITES if by == "head" else SITES, (-1, 5)
    runs = plain(model, *texts, sites, by, positions)
    for n, position in enumerate(positions):
        found = patching(model, *texts, METRIC, sites=sites, by=by, position=position)
        ends = [METRIC(minilens.trace(model, text).logits[:, position]).item() for text in texts]
        assert [found.clean, found.corrupt] == pytest.approx(ends, abs=1e-9)
        for site in sites:
            wanted = runs[site][n]
            # GPT-Neo's scores are in float32 always, so that texts side by side differ in the last digits.
            assert (found.metric[site].double() - wanted).abs().max() < (1e-4 if family == "gpt_neo" else 1e-5)
            changes = (wanted - ends[1]).abs() > 1e-4
            assert not (changes & ~found.can_change[site]).any()
            assert (found.metric[site] == found.metric[site].new_tensor(found.corrupt))[~found.can_change[site]].all()
        assert any(found.can_change[site].any() for site in sites)


def test_the_causal_cone(tiny: Tiny, texts: tuple[torch.Tensor, torch.Tensor]) -> None:
    """By hand: nothing before the first difference, nothing after the metric's position, and in the last block the
    stream counts only where it is read."""
    model, _ = minilens.load(tiny("gpt2")[1])
    found = patching(model, *texts, METRIC, sites=("resid_pre", "k", "attn_out"), position=9)

    def cells(site: str, layer: int) -> list[int]:
        return found.can_change[site][layer].nonzero()[:, 0].tolist()

    assert cells("resid_pre", 0) == [3, 7]  # the embeddings differ there only
    assert cells("resid_pre", 1) == cells("resid_pre", 2) == [3, 4, 5, 6, 7, 8, 9]
    assert cells("k", 2) == [3, 4, 5, 6, 7, 8, 9]
    assert cells("attn_out", 1) == [3, 4, 5, 6, 7, 8, 9]
    assert cells("attn_out", 2) == [9]


def test_a_window_cuts_the_cone(tiny: Tiny, texts: tuple[torch.Tensor, torch.Tensor]) -> None:
    """tiny GPT-Neo sees everything in block 0 and seven positions, itself included, in blocks 1 and 2."""
    model, _ = minilens.load(tiny("gpt_neo")[1])
    found = patching(model, *texts, METRIC, sites=("resid_pre", "v"))
    assert found.can_change["v"][2].nonzero()[:, 0].tolist() == [5, 6, 7, 8, 9, 10, 11]
    assert found.can_change["resid_pre"][2].nonzero()[:, 0].tolist() == [5, 6, 7, 8, 9, 10, 11]
    assert found.can_change["resid_pre"][1].nonzero()[:, 0].tolist() == [3, 4, 5, 6, 7, 8, 9, 10, 11]


def test_recovered_is_0_at_the_corrupt_run_and_1_at_the_clean_one(tiny: Tiny, tokens: torch.Tensor) -> None:
    """Texts that differ in one token: its embedding alone is the whole difference."""
    model, _ = minilens.load(tiny("ctrl")[1])
    clean = tokens[:1, :8]
    corrupt = clean.clone()
    corrupt[0, 2] = (corrupt[0, 2] + 1) % 101
    found = patching(model, clean, corrupt, log_probability(42), sites="resid_pre")
    assert found.recovered("resid_pre")[0].tolist() == pytest.approx([0, 0, 1, 0, 0, 0, 0, 0], abs=1e-4)
    logp = [minilens.trace(model, text).logits[0, -1].log_softmax(-1)[42].item() for text in (clean, corrupt)]
    assert [found.clean, found.corrupt] == pytest.approx(logp, abs=1e-5)


def test_cells_side_by_side_are_cells_one_by_one(
    tiny: Tiny, texts: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = minilens.load(tiny("gpt2")[1])
    together = patching(model, *texts, METRIC, sites=SITES)
    for places in (1, 40):
        monkeypatch.setattr(sys.modules["minilens.instruments.cells"], "TOGETHER", places)
        alone = patching(model, *texts, METRIC, sites=SITES)
        for site in SITES:
            assert (alone.metric[site] - together.metric[site]).abs().max() < 1e-4


def test_blocks_below_the_patch_are_not_run_again(
    tiny: Tiny, texts: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = minilens.load(tiny("gpt2")[1])
    ran = []
    block = type(model).block

    def counted(self: Any, layer: int, *args: Any, **options: Any) -> Any:
        ran.append(layer)
        return block(self, layer, *args, **options)

    monkeypatch.setattr(type(model), "block", counted)
    patching(model, *texts, METRIC, sites="mlp_out")
    # Two runs to begin with, the two to compare, and for each patched layer the blocks from it on.
    assert [ran.count(layer) for layer in range(3)] == [4 + 1, 4 + 2, 4 + 3]


def test_each_sees_every_job_in_order(tiny: Tiny, texts: tuple[torch.Tensor, torch.Tensor]) -> None:
    model, _ = minilens.load(tiny("gpt2")[1])
    seen: list[Any] = []

    def each(jobs: Any) -> Any:
        for job in jobs:
            seen.append(job)
            yield job

    found = patching(model, *texts, METRIC, sites=("z", "v"), by="head", each=each)
    assert seen == [(layer, site) for layer in range(3) for site in ("z", "v")]
    assert isinstance(found, Patching) and found.by == "head"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sites": "scores"}, r'"scores" cannot be patched by position; resid_pre, q, k, v, .* can'),
        ({"sites": ("z", "mlp_out"), "by": "head"}, r'"mlp_out" cannot be patched by head; q, k, v, pattern, z can'),
        ({"sites": ()}, "sites is empty: name at least one"),
        ({"by": "layer"}, 'by must be "position", "head" or "head_position"; got "layer"'),
        ({"position": 12}, "position 12 does not exist: the texts have 12 tokens, so positions 0 to 11"),
    ],
)
def test_refusals(tiny: Tiny, texts: tuple[torch.Tensor, torch.Tensor], options: dict[str, Any], message: str) -> None:
    model, _ = minilens.load(tiny("gpt2")[1])
    with pytest.raises(ValueError, match=message):
        patching(model, *texts, METRIC, **options)


def test_texts_that_do_not_match(tiny: Tiny, texts: tuple[torch.Tensor, torch.Tensor]) -> None:
    model, _ = minilens.load(tiny("gpt2")[1])
    clean, corrupt = texts
    with pytest.raises(ValueError, match=r"two texts of the same length, .* got \[1, 12\] and \[1, 11\]"):
        patching(model, clean, corrupt[:, 1:], METRIC)
    with pytest.raises(ValueError, match="for both texts, so that there is nothing to recover"):
        patching(model, clean, clean, METRIC)


@pytest.mark.parametrize(
    ("metric", "found"),
    [
        (lambda logits: logits[0, [17]] - logits[0, [23]], r"\[1\]"),  # one number for the whole batch
        (lambda logits: logits[:, 17].mean(), r"\[\]"),
        (lambda logits: logits[:, :2], r"\[2, 2\]"),
        (lambda logits: 1.0, "1.0"),
    ],
)
def test_a_metric_gives_each_text_its_number(
    tiny: Tiny, texts: tuple[torch.Tensor, torch.Tensor], metric: Any, found: str
) -> None:
    model, _ = minilens.load(tiny("gpt2")[1])
    message = rf"must give a tensor of one number for each text, \[2\]; it gave {found}"
    with pytest.raises(ValueError, match=message):
        patching(model, *texts, metric)


def test_tokens_of_a_metric(tiny: Tiny, texts: tuple[torch.Tensor, torch.Tensor]) -> None:
    model, _ = minilens.load(tiny("gpt2")[1])
    for made in (log_probability, lambda token: logit_difference(3, token)):
        with pytest.raises(ValueError, match="token id -1 does not exist"):
            made(-1)
        with pytest.raises(ValueError, match="token id 101 does not exist: the model's ids go from 0 to 100"):
            patching(model, *texts, made(101))


def test_float64_stays_float64(tiny: Tiny, texts: tuple[torch.Tensor, torch.Tensor]) -> None:
    model, _ = minilens.load(tiny("gpt2")[1], dtype=torch.float64)
    one = texts[0].clone()
    one[0, 0] = (one[0, 0] + 1) % 101
    found = patching(model, texts[0], one, METRIC, sites="resid_pre")
    assert abs(found.recovered("resid_pre")[0, 0].item() - 1) < 1e-12


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_at_a_position(tiny: Tiny, texts: tuple[torch.Tensor, torch.Tensor], family: str) -> None:
    """A whole forward pass for each cell; those of a head sum up nothing, but stand where both say that they do."""
    model, _ = minilens.load(tiny(family)[1], dtype=torch.float64)
    found = patching(model, *texts, METRIC, sites=("z", "k"), by="head_position")
    source = minilens.trace(model, texts[0]).blocks
    assert found.metric["z"].shape == (3, 5, 12)
    for site, layer, head, place in (("z", 1, 4, 11), ("z", 0, 2, 5), ("k", 2, 0, 8), ("k", 1, 3, 3), ("z", 2, 1, 11)):
        edit = minilens.patch(source[layer], site, heads=head, positions=place)
        wanted = METRIC(minilens.trace(model, texts[1], edit=edit).logits[:, -1]).item()
        assert abs(found.metric[site][layer, head, place] - wanted) < (1e-4 if family == "gpt_neo" else 1e-9)
        assert found.can_change[site][layer, head, place]
    for by, axes in (("head", -1), ("position", -2)):
        can = patching(model, *texts, METRIC, sites=("z", "k"), by=by).can_change
        assert all(torch.equal(can[site], found.can_change[site].any(axes)) for site in ("z", "k"))


def test_pairs_of_texts(tiny: Tiny, tokens: torch.Tensor) -> None:
    """Each pair by itself, without its padding; then the ratio of means, and how far pairs stray from it."""
    model, _ = minilens.load(tiny("gpt2")[1], dtype=torch.float64)
    clean, lengths = tokens[:, :24].reshape(4, 12), torch.tensor([12, 9, 7, 12])
    corrupt = clean.clone()
    corrupt[:, [2, 5]] = (corrupt[:, [2, 5]] + 5) % 101
    metrics = [logit_difference(17, 23), logit_difference(5, 9), logit_difference(1, 2), log_probability(3)]
    found = patching(model, clean, corrupt, metrics, sites="z", by="head", lengths=lengths)
    alone = [
        patching(model, a[None, :n], b[None, :n], metric, sites="z", by="head")
        for a, b, n, metric in zip(clean, corrupt, lengths.tolist(), metrics, strict=True)
    ]
    assert all(torch.equal(ours.metric["z"], one.metric["z"]) for ours, one in zip(found.texts, alone, strict=True))
    gains = torch.stack([one.metric["z"] - one.corrupt for one in alone])
    wholes = torch.tensor([one.clean - one.corrupt for one in alone], dtype=torch.float64)[:, None, None]
    recovered = gains.sum(0) / wholes.sum(0)
    assert (found.recovered("z") - recovered).abs().max() < 1e-12
    rests = gains - recovered * wholes
    error = (rests.square().sum(0) / 3).sqrt() / 2 / abs(wholes.mean())
    assert (found.standard_error("z") - error).abs().max() < 1e-12
    assert found.can_change["z"].equal(torch.stack([one.can_change["z"] for one in alone]).any(0))
    assert found.clean_tokens.tolist() == [-1] * 12 and ", means of 4 pairs of texts" in repr(found)
    like = torch.cat([clean[:1], corrupt[:1]])
    assert patching(model, like, like.flip(0), metrics[:2], sites="z").clean_tokens[[1, 2, 3]].tolist() == [
        clean[0, 1], -1, clean[0, 3]
    ]  # fmt: skip
    with pytest.raises(ValueError, match='by="position" takes pairs of one length, so that their positions match'):
        patching(model, clean, corrupt, metrics, lengths=lengths)
    with pytest.raises(ValueError, match="metric must be one for all texts, or one for each of the 4; got 3"):
        patching(model, clean, corrupt, metrics[1:])
    with pytest.raises(ValueError, match="one pair of texts has no standard error: give patching a batch of pairs"):
        alone[0].standard_error("z")
    with pytest.raises(ValueError, match="for clean and corrupt texts on average: nothing to recover"):
        patching(model, like, like.flip(0), METRIC, sites="z")


def test_metrics_by_name() -> None:
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(3))
    logp = logits.log_softmax(-1)
    named = {name: named_metric(name, 4, 7 if name == "logit_difference" else None)(logits) for name in METRICS}
    assert torch.equal(named["logit_difference"], logits[:, 4] - logits[:, 7])
    assert torch.equal(named["log_probability"], logp[:, 4]) and torch.equal(named["logit"], logits[:, 4])
    assert torch.allclose(named["probability"], logp[:, 4].exp())
    kl = torch.nn.functional.kl_div(logp, logp[:1].expand(3, -1), reduction="none", log_target=True).sum(-1)
    assert torch.allclose(kl_from(logits[0])(logits), kl, atol=1e-6) and kl[0] == 0 < kl[1]
    for (name, *ids), message in {
        ("kl", 4): 'there is no metric "kl"; there are logit_difference, log_probability, probability, logit',
        ("logit_difference", 4): "logit_difference takes the right token, and a wrong one as well",
        ("logit", 4, 7): "logit takes the right token, and no wrong one",
    }.items():
        with pytest.raises(ValueError, match=message):
            named_metric(name, *ids)

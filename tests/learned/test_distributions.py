"""Bias and twins of a lens are what whole distributions say; nulls hold nothing."""

from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, Tiny
from texts import documents, loaded, text_file

import minilens
from minilens.corpus.measure import Plan
from minilens.learned.affine import LearnedLens, RowMap, Subject
from minilens.learned.distributions import measure
from minilens.learned.nulls import shuffled, transfers
from minilens.lens import EMBED

SITES = (EMBED, minilens.Site(0, "resid_post"), minilens.Site(1, "resid_post"))


def drawn(model: minilens.Model, seed: int) -> LearnedLens:
    d, random = model.W_U.shape[0], torch.Generator().manual_seed(seed)
    maps = {site: RowMap(torch.randn(d, d, generator=random) * 0.1, torch.randn(d, generator=random)) for site in SITES}
    return LearnedLens("affine", maps, Subject.of(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_figures_are_those_of_the_plain_way(tiny: Tiny, tmp_path: Path, family: str) -> None:
    """One document at a time; each is a shard, so an error is that over documents left out."""
    model, tokenizer = loaded(tiny, tmp_path, family)
    texts = [text for text in documents(4, n=9, longest=30) if text]
    lens, *twins = (drawn(model, seed) for seed in range(3))
    plan = Plan(shard=1, batch=70)
    found = measure(
        model, tokenizer, [text_file(tmp_path / "a.txt", texts)], tmp_path / "sums", plan, lens, twins, skip=1
    )
    sums = []
    for text in texts:
        tokens = tokenizer.encode(text)
        rows = {
            name: torch.stack([row.logits[0] for row in minilens.lens_rows(model, tokens, **options)])[:, 1:]
            for name, options in [("plain", {})] + [(f"{n}", each.options) for n, each in enumerate((lens, *twins))]
        }
        logp = {name: logits.double().log_softmax(-1) for name, logits in rows.items()}
        one, two = logp["1"][:-1], logp["2"][:-1]
        p = {name: logp[name].exp().sum(1) for name in ("plain", "0")}
        sums.append((one.shape[1], p["plain"][-1], p["plain"][:-1], p["0"][:-1], (one.exp() * (one - two)).sum((1, 2))))

    def figures(of: list[tuple]) -> dict[str, torch.Tensor]:
        n, output, plain, mapped, kl = (sum(parts) for parts in zip(*of, strict=True))
        output, plain, mapped = output / n, plain / n, mapped / n
        bias = {"bias_plain": plain, "bias": mapped}
        wanted = {name: (output * (output.log() - q.log())).sum(-1) for name, q in bias.items()}
        return wanted | {"twins_kl": kl / n}

    kept = [each for each in sums if each[0]]
    left_out = [figures(kept[:n] + kept[n + 1 :]) for n in range(len(kept))]
    for name, wanted in figures(kept).items():
        each = torch.stack([one[name] for one in left_out])
        error = ((len(kept) - 1) / len(kept) * (each - each.mean(0)).square().sum(0)).sqrt()
        assert torch.allclose(found[name].value, wanted, rtol=1e-5), name
        assert torch.allclose(found[name].error, error, rtol=1e-4), name
    assert (found["bias"].value > 0.01).all() and (found["twins_kl"].value > 0.01).all()


def test_without_twins_and_of_one_shard(tiny: Tiny, tmp_path: Path) -> None:
    model, tokenizer = loaded(tiny, tmp_path, "gpt2")
    lens = drawn(model, 0)
    whole = model, tokenizer, [text_file(tmp_path / "a.txt", ["cat red cat"])]
    found = measure(*whole, tmp_path / "sums", Plan(), lens)
    assert [*found] == ["bias_plain", "bias"] and found["bias"].error.isnan().all()
    with pytest.raises(ValueError, match="the text to measure on holds no tokens: give other text"):
        measure(*whole, tmp_path / "none", Plan(), lens, skip=9)
    with pytest.raises(ValueError, match='are measured for the decoder "final" and the norm "final"'):
        measure(*whole, tmp_path / "mlp", Plan(), LearnedLens("affine", lens.maps, lens.model, "mlp"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shuffled_model_has_the_same_numbers_elsewhere(tiny: Tiny, family: str) -> None:
    model, _ = minilens.load(tiny(family)[1])
    other = shuffled(model, 1)
    tokens = torch.arange(12)[None]
    assert not torch.allclose(other(tokens), model(tokens), atol=0.1)
    assert torch.equal(other(tokens), shuffled(model, 1)(tokens)) and other.config == model.config
    for name in ("W_E", "W_U"):
        ours, theirs = getattr(other, name), getattr(model, name)
        assert ours.shape == theirs.shape and not torch.equal(ours, theirs)
        assert torch.equal(ours.flatten().sort().values, theirs.flatten().sort().values)
    assert torch.equal(other.W_U, other.W_E.mT) is torch.equal(model.W_U, model.W_E.mT)
    assert type(other.ln_final) is type(model.ln_final) and len(other.blocks) == model.n_layers
    assert not torch.equal(other.blocks[1].W_O, model.blocks[1].W_O)


def test_a_transfer_reads_every_row_by_one_map(tiny: Tiny) -> None:
    model, _ = minilens.load(tiny("gpt2")[1])
    lens = drawn(model, 0)
    found = transfers(lens)
    assert [*found] == ["map of embed", "map of 0.resid_post", "map of 1.resid_post"]
    for one, (name, each) in zip(SITES, found.items(), strict=True):
        assert each.name == name and [*each.maps] == [*SITES]
        assert all(row is lens.maps[one] for row in each.maps.values())

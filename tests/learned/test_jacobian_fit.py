"""Jacobian lenses of files: which texts are taken, work that is gone on with, twins, and what is refused."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAMILIES, Tiny
from texts import documents, loaded, text_file

import minilens
from minilens.checkpoint.hub import bundled
from minilens.corpus.sweep import Sweep
from minilens.learned.affine import Subject, read_lens
from minilens.learned.jacobian import alignment, jacobian_sums
from minilens.learned.jacobian_fit import fit_jacobian
from minilens.learned.named import bundled_lenses

HOW: dict[str, Any] = dict(texts=40, window=12, skip=3, shard=300)  # two texts of each shard


@pytest.mark.parametrize("family", FAMILIES)
def test_the_lens_is_that_of_the_first_texts_of_each_shard(tiny: Tiny, tmp_path: Path, family: str) -> None:
    model, tokenizer = loaded(tiny, tmp_path, family)
    file = text_file(tmp_path / "a.txt", documents(7, 50))
    prefix = "red" if family == "ctrl" else ""
    lens = fit_jacobian(model, tokenizer, file, tmp_path / "lens", prefix=prefix, **HOW)
    code = tokenizer.encode(prefix)
    shards = [
        [
            tokens
            for tokens in (torch.cat([code, tokenizer.encode(text)], 1)[:, :12] for text in shard)
            if tokens.shape[1] > 4
        ]
        for shard in file.shards(300)
    ]
    assert len(shards) > 3
    sums = [jacobian_sums(model, shard[:2], skip=3) for shard in shards]
    assert [int(each.texts) for each in sums[:2]] == [2, 2]
    whole = sum(sums[1:], sums[0])
    for of_row, weight in zip(lens.maps.values(), whole.weight, strict=True):
        torch.testing.assert_close(of_row.weight, weight.float())
    assert lens.made["texts"] == whole.texts
    assert lens.made["files"] == [["a.txt", file.digest]]
    twins = [sum(sums[n + 2 :: 2], sums[n]) for n in (0, 1)]
    assert lens.made["twins"] == pytest.approx(alignment(*twins).tolist())
    assert lens.made["departure"] == pytest.approx(whole.weight.square().sum((-2, -1)).sqrt().tolist())
    again = read_lens(tmp_path / "lens")
    assert {**again.made} == {**lens.made}
    assert (again.name, again.kind) == ("lens", "jacobian")


def test_work_that_was_begun_is_gone_on_with(tiny: Tiny, tmp_path: Path) -> None:
    model, tokenizer = loaded(tiny, tmp_path, "gpt2")
    files = [text_file(tmp_path / f"{n}.txt", documents(n, 30)) for n in (7, 8)]

    def stopped(sweep: Sweep[Any]) -> None:
        next(sweep.run())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_jacobian(model, tokenizer, files, tmp_path / "lens", read=stopped, **HOW)
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "lens" / "sums" / "shards").glob("*.npz")}
    assert len(done) == 1
    lens = fit_jacobian(model, tokenizer, files, tmp_path / "lens", **HOW)
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())
    whole = fit_jacobian(model, tokenizer, files[::-1], tmp_path / "at once", **HOW)
    for one, other in zip(lens.maps.values(), whole.maps.values(), strict=True):
        assert torch.equal(one.weight, other.weight)
    with pytest.raises(
        ValueError, match=r"holds a sweep with another value of skip \(3; here 2\): give another folder"
    ):
        fit_jacobian(model, tokenizer, files, tmp_path / "lens", **{**HOW, "skip": 2})


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"texts": 0}, "texts must be at least 1; it is 0"),
        ({"skip": 12}, "there is no text to take a Jacobian of: each needs two tokens more than skip"),
        ({"window": 41}, "the window must be of 1 to 40 tokens, the model's context; it is 41"),
        ({"decoder": "block:3"}, "there is nothing to fit: the lens has no row but the model's own output"),
        ({"cotangents": 31}, "cotangents must be between 1 and the width of the model, 30; got 31"),
    ],
)
def test_what_cannot_be_fitted(tiny: Tiny, tmp_path: Path, how: dict[str, Any], sentence: str) -> None:
    model, tokenizer = loaded(tiny, tmp_path, "gpt2")
    file = text_file(tmp_path / "a.txt", documents(7, 3))
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        fit_jacobian(model, tokenizer, file, tmp_path / "lens", **{**HOW, **how})
    assert not (tmp_path / "lens" / "lens.json").exists()


def test_another_lens_is_not_written_over(tiny: Tiny, tmp_path: Path) -> None:
    model, tokenizer = loaded(tiny, tmp_path, "gpt2")
    (tmp_path / "lens").mkdir()
    (tmp_path / "lens" / "lens.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a lens already: give another folder, or --overwrite"):
        fit_jacobian(model, tokenizer, text_file(tmp_path / "a.txt", documents(7)), tmp_path / "lens")


STORY = (
    "Once upon a time there was a little girl who lived in a small house near the wood with her mother and her old "
    "grey cat. One day her mother said that she should take a basket to her grandmother, and not stop on the way. "
    "The girl put on her red cloak, took the basket in her hand and went out into the sun."
)


@pytest.mark.parametrize("name", sorted(bundled()))
def test_the_bundled_lenses_are_like_the_jacobian_of_a_text(name: str) -> None:
    """Of some random directions of the output: exactly, of this text, against the mean over other texts."""
    model, tokenizer = minilens.load(name)
    assert tokenizer is not None
    lens = minilens.load_lens(f"{name}/jacobian")
    assert (lens.kind, lens.name, lens.model.departures(Subject.of(model))) == ("jacobian", "jacobian", [])
    tokens = tokenizer.encode(f"{lens.made['prefix']}{STORY}")
    sums = jacobian_sums(model, [tokens], cotangents=16)
    for row, (site, of_row) in enumerate(lens.maps.items()):
        drawn = torch.linalg.svd(sums.weight[row].float())[0][:, :16]  # the directions that were drawn span these
        ours, of_text = drawn.T @ of_row.weight, drawn.T @ sums.weight[row].float()
        others = torch.cosine_similarity(ours.flatten(), of_text.flatten(), dim=0)
        assert others > 0.6, site
        assert torch.cosine_similarity(ours.T.flatten(), of_text.flatten(), dim=0) < 0.55, site
    folder = bundled_lenses(name)["jacobian"]
    assert folder.joinpath("lens.safetensors").stat().st_size < 1.2e6  # in float16
    assert folder.joinpath("README.md").exists()

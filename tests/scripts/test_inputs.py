"""scripts/inputs.py measures what the lens shows, its nulls are nulls, and the grid goes on where it was killed."""

import gzip
import importlib
import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import minilens
from minilens.study.experiments import PASSAGE, STORY

SCRIPTS = Path(__file__).parents[2] / "scripts"
TEXTS = [PASSAGE, STORY.repetition.replace("{}", "cat"), "One day a bird came to the house and ate all the red apples."]


@pytest.fixture(scope="module")
def scripts() -> Iterator[Any]:
    """The three scripts, which import one another by name."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        yield SimpleNamespace(
            **{name: importlib.import_module(name) for name in ("inputs", "inputs_grid", "inputs_table")}
        )
    finally:
        sys.path.remove(str(SCRIPTS))


@pytest.mark.parametrize("name", ["tales-gpt2", "tales-ctrl"])
def test_the_share_is_the_lens_own_and_falls_as_the_write_grows(scripts: Any, name: str) -> None:
    inputs: ModuleType = scripts.inputs
    model, tokenizer = minilens.load(name)
    documents = inputs.encode(model, tokenizer, TEXTS)
    tables = [minilens.logit_lens(model, tokens, layers=0, stats=("input",)) for tokens in documents]
    shares = [(table.input.rank[:2, inputs.SKIP :] == 1).double().mean(1).tolist() for table in tables]
    before, first = (math.fsum(row) / len(row) for row in zip(*shares, strict=True))
    found = inputs.measured(model, documents)
    assert found["before"].mean == pytest.approx(before, abs=0.03)
    assert found["first"].mean == pytest.approx(first, abs=0.03)

    curve = inputs.curve(model, documents, "write", factors=(0.0, 0.125, 1.0, 32.0))
    assert curve.first.mean(1).tolist()[0::2] == pytest.approx([found["before"].mean, found["first"].mean], abs=1e-6)
    assert curve.ratio[1:].mean(1) / found["ratio"].mean == pytest.approx([0.125, 1, 32], rel=1e-5)
    assert curve.first[3].mean() < 0.1 < curve.first[0].mean()
    # A factor of the stream before block 0 makes the token's part longer, and so the ratio smaller.
    small, one = inputs.curve(model, documents, "embedding", factors=(0.125, 1.0)).ratio.mean(1)
    assert one == pytest.approx(found["ratio"].mean) and small < one / 4


def test_other_tokens_are_first_by_chance_and_other_directions_are_as_long(scripts: Any) -> None:
    inputs = scripts.inputs
    model, tokenizer = minilens.load("tales-ctrl")
    documents = inputs.encode(model, tokenizer, TEXTS)
    found = inputs.measured(model, documents)
    assert found["null"].mean < 0.1 < found["first"].mean
    at = inputs.start(model, documents[0], torch.Generator().manual_seed(0))
    for direction in inputs.DIRECTIONS:
        turned = inputs.turned(at.write, direction, torch.Generator().manual_seed(1))
        torch.testing.assert_close(turned.norm(dim=-1), at.write.norm(dim=-1))
        cosine = torch.cosine_similarity(turned, at.write, dim=-1).mean()
        assert (cosine > 0.99) == (direction == "own")


def test_the_half_of_random_vectors_is_what_chance_says(scripts: Any) -> None:
    """Embeddings of one length, and a write of any direction."""
    draw, d_model, d_vocab = torch.Generator().manual_seed(0), 64, 500
    W_E = torch.randn(d_vocab, d_model, generator=draw)
    W_E, write = W_E / W_E.norm(dim=1, keepdim=True), torch.randn(d_vocab, d_model, generator=draw)
    write = write / write.norm(dim=1, keepdim=True)
    ratios = torch.logspace(-1, 1.5, 30)
    firsts = [((W_E + r * write) @ W_E.T).argmax(1).eq(torch.arange(d_vocab)).double().mean() for r in ratios]
    half = scripts.inputs.crossing(ratios, torch.stack(firsts))
    assert half == pytest.approx(scripts.inputs.chance(d_model, d_vocab), rel=0.2)
    assert math.isnan(scripts.inputs.crossing(ratios, torch.zeros(30)))


def test_a_grid_that_is_killed_goes_on_to_the_same_model_and_is_shown(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = scripts.inputs_grid
    for half in ("train", "valid"):
        text = "".join(f"{text} {n}\n<|endoftext|>\n" for n in range(8) for text in TEXTS)
        (tmp_path / f"stories-{half}.txt.gz").write_bytes(gzip.compress(text.encode()))
    small = replace(grid.BASE, d_model=32, n_layers=2, d_vocab=300, n_ctx=32, batch=2, tokens=8 * 64, embed_scale=True)
    monkeypatch.setitem(grid.RECIPES, "base", small)
    monkeypatch.setattr(grid, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(grid, "N_DOCUMENTS", 2)
    monkeypatch.setattr(grid, "FACTORS", (0.5, 1.0, 1.0, 2.0))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    grid.run(tmp_path, whole, "base", 0)
    rate = grid.rate

    def killed(step: int, *args: Any) -> float:
        if step == 5:
            raise KeyboardInterrupt
        return float(rate(step, *args))

    monkeypatch.setattr(grid, "rate", killed)
    with pytest.raises(KeyboardInterrupt):
        grid.run(tmp_path, broken, "base", 0)
    monkeypatch.setattr(grid, "rate", rate)
    grid.run(tmp_path, broken, "base", 0)
    one, two = (minilens.load(folder / "base-0")[0] for folder in (whole, broken))
    for a, b in ((one.W_U, two.W_U), (one.blocks[1].W_out, two.blocks[1].W_out)):
        assert (a - b).abs().mean() < 1e-5  # a step moves a weight by some 1e-3
    found, again = (json.loads((folder / "base-0.json").read_text()) for folder in (whole, broken))
    assert [point["step"] for point in again["history"]] == [0, 1, 2, 4, 8]
    for point, same in zip(found["history"], again["history"], strict=True):
        assert same["ratio"]["mean"] == pytest.approx(point["ratio"]["mean"], rel=1e-3)
    assert found["largest_logit_difference"] < 1e-3  # of a model whose embedding is scaled, and exported untied

    (broken / "base-1.json").write_text(json.dumps(again | {"seed": 1}))
    curves = {"machine": "here", "models": {"tiny": scripts.inputs.model_record(str(broken / "base-0"), TEXTS, [])}}
    (tmp_path / "curves.json").write_text(json.dumps(curves))
    paths = [tmp_path / name for name in ("curves.json", "inputs.csv", "inputs.png")]
    argv = ["inputs_table.py", str(paths[0]), str(broken), "--csv", str(paths[1]), "--figure", str(paths[2])]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(scripts.inputs_table, "DEALS", 2)
    scripts.inputs_table.main()
    printed = capsys.readouterr().out
    ratio = again["history"][-1]["ratio"]["mean"]
    assert re.search(rf"^\| base \| 2 \|.*\| {ratio:.1f} ± 0\.0 \|", printed, re.MULTILINE)
    lines = paths[1].read_text().splitlines()
    assert f"base,1,training,1,8,{ratio:.4g}" in paths[1].read_text()
    assert len(lines) == 1 + 4 * 25 + 2 * (5 + 2 * 2) and paths[2].stat().st_size > 10_000

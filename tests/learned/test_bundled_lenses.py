"""The lenses that come with the bundled models: better than two means, and better than none, on held-out text."""

import gzip
from pathlib import Path

import pytest
import torch

import minilens
from minilens.checkpoint.hub import bundled
from minilens.learned.affine import Subject
from minilens.learned.fit import fit
from minilens.learned.named import bundled_lenses, load_lens

N_DOCUMENTS, LONGEST = 16, 64  # tokens of each that are read


def documents(shared: Path, name: str) -> list[str]:
    text = gzip.decompress((shared / "corpus" / f"{name}.txt.gz").read_bytes()).decode()
    return text.split("\n<|endoftext|>\n")


@pytest.mark.parametrize("name", sorted(bundled()))
def test_each_model_has_an_affine_lens_of_its_own(name: str) -> None:
    model, _ = minilens.load(name)
    lens = load_lens(f"{name}/affine")
    assert "affine" in bundled_lenses(name) and lens.kind == lens.name == "affine"
    assert lens.model.departures(Subject.of(model)) == []
    assert len(lens.maps) == model.n_layers
    assert bundled_lenses(name)["affine"].joinpath("lens.safetensors").stat().st_size < 1.2e6  # in float16
    assert bundled_lenses(name)["affine"].joinpath("README.md").exists()


@pytest.mark.parametrize("name", sorted(bundled()))
def test_affine_beats_mean_and_plain_at_every_row(name: str, shared: Path, tmp_path: Path) -> None:
    """By more than five standard errors, from the differences of each document.

    Only in one model are two means better than none at every row.
    """
    model, tokenizer = minilens.load(name)
    assert tokenizer is not None
    prefix = tokenizer.codes[0] if tokenizer.codes else ""
    text = tmp_path / "train.txt"
    text.write_text("\n<|endoftext|>\n".join(documents(shared, "stories-train")[:20]))
    mean = fit(model, tokenizer, text, tmp_path / "mean", kind="mean", prefix=prefix, shard=4096)
    lenses = {"plain": {}, "mean": {"transport": mean}, "affine": {"transport": load_lens(f"{name}/affine")}}
    sums: dict[str, list[torch.Tensor]] = {way: [] for way in lenses}
    counts = []
    for document in documents(shared, "stories-valid")[:N_DOCUMENTS]:
        tokens = tokenizer.encode(f"{prefix} {document}" if prefix else document)[:, :LONGEST]
        counts.append(tokens.shape[1])
        for way, options in lenses.items():
            sums[way].append(minilens.logit_lens(model, tokens, stats=["kl_final"], **options).kl_final.double().sum(1))
    n = torch.tensor(counts, dtype=torch.double)
    for better, worse in (("affine", "mean"), ("mean" if name == "tales-gpt-neo" else "affine", "plain")):
        gain = torch.stack(sums[worse]) - torch.stack(sums[better])
        mean_gain = gain.sum(0) / n.sum()
        spread = (gain - mean_gain * n[:, None]).square().sum(0)
        error = (len(n) / (len(n) - 1) * spread).sqrt() / n.sum()
        assert (mean_gain > 5 * error)[:-1].all(), (better, mean_gain / error)
        assert (gain[:, -1] == 0).all()

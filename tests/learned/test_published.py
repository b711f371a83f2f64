"""Published lenses: parity with torch's own layers, the rows they are for, the Hub, and all that can be wrong."""

import json
import os
import pickle
import re
import warnings
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Tiny
from local_hub import Fault, LocalHub
from torch import Tensor, nn

import minilens
from minilens import CheckpointError
from minilens.learned.affine import LearnedLens
from minilens.learned.named import load_lens
from minilens.learned.published import JACOBIAN_FILES, load_published
from minilens.lens import EMBED, label
from minilens.traces import Site

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is a pickle file"),
    pytest.mark.filterwarnings("ignore:.*has no map for the row embed"),
]
D, LAYERS = 30, 3
TOKENS = torch.tensor([[5, 17, 3, 99, 0, 42, 42, 8, 64, 11]])


def translators() -> nn.ModuleList:
    torch.manual_seed(7)
    return nn.ModuleList(nn.Linear(D, D) for _ in range(LAYERS))


def save_tuned(folder: Path, params: Any = None, **config: Any) -> Path:
    """As tuned-lens 0.2 writes it (TunedLens.save)."""
    folder.mkdir()
    about = dict(base_model_name_or_path="x", d_model=D, num_hidden_layers=LAYERS, bias=True, base_model_revision=None)
    about |= dict(unembed_hash=None, lens_type="linear_tuned_lens")
    (folder / "config.json").write_text(json.dumps({**about, **config}))
    torch.save(translators().state_dict() if params is None else params, folder / "params.pt")
    return folder


def matrices(n: int = LAYERS - 1) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {layer: torch.eye(D) + 0.2 * torch.randn(D, D, generator=generator) for layer in range(n)}


def save_jacobian(path: Path, **changed: Any) -> Path:
    """As jlens writes it (JacobianLens.save), with what TransformerLens adds."""
    J = {layer: matrix.half() for layer, matrix in matrices().items()}
    whole = dict(J=J, n_prompts=277, source_layers=[*J], d_model=D)
    whole |= dict(metadata={"corpus": "x", "dim_batch": 8, "rate": 0.5, "who": None, "processing": {"raw": [True]}})
    torch.save({key: value for key, value in {**whole, **changed}.items() if value is not None}, path)
    return path


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo"])
@pytest.mark.parametrize("older", [False, True])
def test_a_folder_of_tuned_lens_decodes_as_torch_would(tiny: Tiny, tmp_path: Path, family: str, older: bool) -> None:
    """Translator i reads hidden_states[i] of transformers, the stream entering block i, and adds to it."""
    reference, checkpoint = tiny(family)
    layers, folder = translators(), save_tuned(tmp_path / "lens")
    if older:
        torch.save(layers.state_dict(), folder / "params.pt", _use_new_zipfile_serialization=False)
    with torch.no_grad():
        hidden = reference(TOKENS, output_hidden_states=True).hidden_states
        rows = [h + t(h) for h, t in zip(hidden[:-1], layers.double(), strict=True)]
        expected = [reference.lm_head(reference.transformer.ln_f(row)) for row in rows]
    model, _ = minilens.load(checkpoint, dtype=torch.float64)
    lens = load_published(f"tuned:{folder}")
    *found, last = minilens.lens_rows(model, TOKENS, transport=lens)
    assert [row.label for row in found] == ["embed", "0.resid_post", "1.resid_post"]
    for row, logits in zip(found, expected, strict=True):
        torch.testing.assert_close(row.logits, logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(last.logits, model(TOKENS))
    assert (lens.kind, lens.name, lens.made["base_model_name_or_path"]) == ("tuned", f"tuned:{folder}", "x")


@pytest.mark.parametrize("is_sum", [False, True])
def test_a_jacobian_file_decodes_as_torch_would(tiny: Tiny, tmp_path: Path, is_sum: bool) -> None:
    """J[l] reads hidden_states[l + 1] of transformers, the output of block l."""
    reference, checkpoint = tiny("gpt2")
    J = {layer: matrix.half().double() for layer, matrix in matrices().items()}
    path = save_jacobian(tmp_path / "lens.pt")
    if is_sum:
        sums = {layer: 4 * matrix.float() for layer, matrix in J.items()}
        torch.save(
            dict(jacobian_sum=sums, n_done=4, next_idx=5, source_layers=[0, 1], target_layer=2), path, pickle_protocol=3
        )
    with torch.no_grad():
        hidden = reference(TOKENS, output_hidden_states=True).hidden_states
        expected = [reference.lm_head(reference.transformer.ln_f(hidden[n + 1] @ J[n].T)) for n in J]
    model, _ = minilens.load(checkpoint, dtype=torch.float64)
    lens = load_published(f"jacobian:{path}")
    embed, *found, last = minilens.lens_rows(model, TOKENS, transport=lens)
    for row, logits in zip(found, expected, strict=True):
        torch.testing.assert_close(row.logits, logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(embed.logits, model.unembed(model.embed(TOKENS)))
    assert torch.equal(last.logits, model(TOKENS))
    for n, matrix in J.items():  # the final norm would not tell a sum from a mean
        torch.testing.assert_close(lens.maps[Site(n, "resid_post")].A.double(), matrix.T, rtol=1e-6, atol=1e-6)
    assert (lens.made["texts"], lens.made["as_it_stands"]) == (4 if is_sum else 277, ["embed"])
    assert lens.model.n_layers == (3 if is_sum else None)


def test_the_two_kinds_count_rows_from_different_ends(tmp_path: Path) -> None:
    """tuned-lens's n is what enters block n, the Jacobian's what leaves it: 1 and 0 are the same row."""
    tuned = load_published(f"tuned:{save_tuned(tmp_path / 'lens')}")
    jacobian = load_published(f"jacobian:{save_jacobian(tmp_path / 'lens.pt')}")
    assert [*map(label, tuned.maps)] == [*map(label, jacobian.maps)] == ["embed", "0.resid_post", "1.resid_post"]
    row, params = Site(0, "resid_post"), torch.load(tmp_path / "lens" / "params.pt")
    assert torch.equal(tuned.maps[row].weight, params["1.weight"])
    assert torch.equal(tuned.maps[EMBED].bias, params["0.bias"])
    assert torch.equal(jacobian.maps[row].A, matrices()[0].half().float().T)


def test_what_a_file_leaves_unsaid_is_said(tmp_path: Path) -> None:
    folder, path = save_tuned(tmp_path / "lens", rank=4), save_jacobian(tmp_path / "lens.pt")
    with pytest.warns(UserWarning, match='config.json: "rank" is passed over'):
        load_published(f"tuned:{folder}")
    with pytest.warns(UserWarning, match=r"lens\.pt has no map for the row embed, which is decoded as it stands"):
        load_published(f"jacobian:{path}")


def test_the_hash_of_the_unembedding_is_that_of_tuned_lens(tiny: Tiny, tmp_path: Path) -> None:
    """Of what numpy prints (tuned_lens.utils.tensor_hash). It tells little, so another one is but a warning."""
    reference, checkpoint = tiny("gpt2", tie_word_embeddings=False, vocab_size=2000)
    printed = np.array_str(reference.lm_head.weight.detach().float().numpy(), precision=1)
    model, _ = minilens.load(checkpoint)
    good = save_tuned(tmp_path / "good", unembed_hash=sha256(printed.encode()).hexdigest())
    list(minilens.lens_rows(model, TOKENS, transport=load_lens(f"tuned:{good}")))
    other = load_lens(f"tuned:{save_tuned(tmp_path / 'other', unembed_hash='0' * 64)}")
    with pytest.warns(UserWarning, match="may be for another model: its unembed_hash is not that of this one's W_U"):
        next(minilens.lens_rows(model, TOKENS, transport=other))


def test_names_that_are_not_of_published_lenses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tuned:x").mkdir()
    with pytest.raises(CheckpointError, match=r"tuned:x has no lens\.json, so it is not a lens that minilens wrote"):
        load_lens("tuned:x")
    with pytest.raises(ValueError, match="only a published lens has a revision, and 'x' is none; leave out 'main'"):
        load_lens("x", revision="main")


def test_a_lens_without_biases(tmp_path: Path) -> None:
    weights = {name: tensor for name, tensor in translators().state_dict().items() if name.endswith("weight")}
    lens = load_published(f"tuned:{save_tuned(tmp_path / 'lens', weights, bias=False)}")
    assert lens.maps[EMBED].bias.abs().max() == 0 < lens.maps[EMBED].weight.abs().max()


def test_another_model_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    model, _ = minilens.load(tiny("gpt2")[1])
    folder = save_tuned(tmp_path / "lens", dict(list(translators().state_dict().items())[:4]), num_hidden_layers=2)
    with pytest.raises(ValueError, match="is for another model: n_layers 2 and not 3"):
        next(minilens.lens_rows(model, TOKENS, transport=load_published(f"tuned:{folder}")))
    path = save_jacobian(tmp_path / "lens.pt", target_layer=4)
    with pytest.raises(ValueError, match="is for another model: n_layers 5 and not 3"):
        next(minilens.lens_rows(model, TOKENS, transport=load_published(f"jacobian:{path}")))
    with pytest.raises(ValueError, match=r"has no map for the row 0\.resid_mid"):
        rows = minilens.lens_rows(
            model, TOKENS, sites="resid_mid", transport=load_published(f"jacobian:{save_jacobian(path)}")
        )
        next(rows)


# --- Files that are wrong ---


class Code:
    def __reduce__(self) -> Any:
        return os.mkdir, ("made-by-a-pickle",)


def refused(name: str) -> str:
    """The sentence about a file that is no lens: one line, which names it."""
    with pytest.raises(CheckpointError) as info, warnings.catch_warnings():
        load_published(name)
    sentence = str(info.value)
    assert sentence.isprintable() and name.partition(":")[2] in sentence
    return sentence


J0 = {0: torch.eye(D)}
TUNED: list[tuple[Any, dict[str, Any], str]] = [
    ({}, {}, 'lacks the tensor "0.bias", and'),
    ({**translators().state_dict(), "x": torch.zeros(1)}, {}, 'has no place for the tensor "x"'),
    ({**translators().state_dict(), "0.bias": torch.zeros(D + 1)}, {}, "bias of the map for embed must have the shape"),
    ({**translators().state_dict(), "1.bias": torch.full((D,), torch.nan)}, {}, "the map for 0.resid_post holds a NaN"),
    ({**translators().state_dict(), "1.bias": torch.zeros(D).long()}, {}, "there is torch.int64"),
    ({**translators().state_dict(), "1.bias": Code()}, {}, "minilens runs no code from a file"),
    (None, {"bias": False}, 'has no place for the tensor "0.bias"'),
    (None, {"d_model": 31}, "weight of the map for embed must have the shape [31, 31]; it has [30, 30]"),
    (None, {"d_model": "30"}, '"d_model" is "30"; minilens supports a whole number'),
    (None, {"lens_type": "mlp"}, '"lens_type" is "mlp"; minilens supports "linear_tuned_lens"'),
    (None, {"num_hidden_layers": 2}, 'has no place for the tensor "2.bias"'),
    (None, {"num_hidden_layers": 10**9}, "a whole number from 1 to 10000"),
    (None, {"unembed_hash": ["x"]}, '"unembed_hash" is ["x"]; minilens supports a text'),
]


@pytest.mark.parametrize(("params", "config", "sentence"), TUNED)
def test_what_is_no_folder_of_tuned_lens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: Any, config: dict[str, Any], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sentence in refused(f"tuned:{save_tuned(tmp_path / 'lens', params, **config)}")
    assert not Path("made-by-a-pickle").exists()


JACOBIAN: list[tuple[dict[str, Any], str]] = [
    ({"J": None}, 'it has neither "J" nor "jacobian_sum", a matrix by layer'),
    ({"J": [torch.eye(D)]}, 'it has neither "J" nor "jacobian_sum", a matrix by layer'),
    ({"J": {}}, "must have a matrix for at least one layer"),
    ({"J": {"0": torch.eye(D)}}, "must have a matrix for at least one layer, by its number"),
    ({"J": {20_000: torch.eye(D)}}, "must have a matrix for at least one layer, by its number"),
    ({"J": {0: {0: torch.eye(D)}}, "source_layers": [0]}, "there is a dict"),
    ({"J": {0: torch.eye(D).long()}, "source_layers": [0]}, "there is torch.int64"),
    ({"J": {0: torch.zeros(D, D + 1)}, "source_layers": [0]}, "the matrix of layer 0 has the shape [30, 31]"),
    ({"J": {0: torch.full((D, D), torch.inf)}, "source_layers": [0]}, "the map for 0.resid_post holds a NaN"),
    ({"d_model": 31}, "the matrix of layer 0 has the shape [30, 30], and d_model is 31"),
    ({"d_model": "30"}, "d_model must be a whole number"),
    ({"n_prompts": "many"}, "n_prompts must be a whole number"),
    ({"source_layers": [1, 0]}, "source_layers does not name the layers of its matrices"),
    ({"J": None, "jacobian_sum": J0, "source_layers": None}, "n_done does not say over how many"),
    ({"J": None, "jacobian_sum": J0, "source_layers": None, "n_done": 0}, "n_done does not say over how many"),
    ({"J": None, "jacobian_sum": J0, "source_layers": None, "n_done": 2**400}, "n_done does not say over how many"),
    ({"metadata": {"x": Code()}}, "minilens runs no code from a file"),
    ({"metadata": {2**20: 1}}, "it does not map names to tensors"),
    ({"metadata": {-1: 1}}, "it does not map names to tensors"),
    ({"metadata": {(1, 2): 1}}, "it does not map names to tensors"),
    ({"metadata": torch.zeros(1).expand(10**9)}, "its tensors are larger than the file"),
    ({"metadata": [{"x": [torch.zeros(1).expand(10**9)]}]}, "its tensors are larger than the file"),
]


@pytest.mark.parametrize(("changed", "sentence"), JACOBIAN)
def test_what_is_no_jacobian_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sentence in refused(f"jacobian:{save_jacobian(tmp_path / 'lens.pt', **changed)}")
    assert not Path("made-by-a-pickle").exists()


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, -1])
def test_files_that_are_cut_short(tmp_path: Path, kept: float) -> None:
    folder, path = save_tuned(tmp_path / "lens"), save_jacobian(tmp_path / "lens.pt")
    for file, name in ((folder / "params.pt", f"tuned:{folder}"), (path, f"jacobian:{path}")):
        data = file.read_bytes()
        file.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
        assert re.search("it is (empty|cut short or broken)", refused(name))


def test_other_things_on_disk(tmp_path: Path) -> None:
    assert "has no config.json, so it is not a folder of tuned-lens" in refused(f"tuned:{tmp_path}")
    (tmp_path / "config.json").write_text("[")
    assert "has no params.pt, so it is not a folder of tuned-lens" in refused(f"tuned:{tmp_path}")
    assert "is not a file: name the .pt of a Jacobian lens" in refused(f"jacobian:{tmp_path}")
    path = tmp_path / "lens.pt"
    path.write_bytes(pickle.dumps({"J": Code()}))
    assert "cannot be read as weights" in refused(f"jacobian:{path}")
    with pytest.raises(ValueError, match="only a repository has a revision; leave out 'main'"):
        load_published(f"jacobian:{path}", "main")


# --- The Hub ---

SPACE, REPO = "spaces/AlignmentResearch/tuned-lens", "neuronpedia/jacobian-lens"


def test_lenses_from_the_hub(hub: LocalHub, tmp_path: Path) -> None:
    """A Space for the one, in which both files are of one commit; a repository for the other."""
    (tmp_path / "space" / "lens").mkdir(parents=True)
    save_tuned(tmp_path / "space" / "lens" / "gpt2")
    path = tmp_path / "repository" / JACOBIAN_FILES["gpt2"]
    path.parent.mkdir(parents=True)
    save_jacobian(path)
    commit = hub.push(SPACE, tmp_path / "space")
    hub.push(REPO, tmp_path / "repository")
    tuned, jacobian = load_published("tuned:gpt2"), load_published("jacobian:gpt2")
    assert (tuned.name, jacobian.name) == ("tuned:gpt2", "jacobian:gpt2")
    assert hub.downloads() == ["lens/gpt2/config.json", "lens/gpt2/params.pt", JACOBIAN_FILES["gpt2"]]
    assert {ask.revision for ask in hub.asked if ask.file.endswith("params.pt") and ask.method == "HEAD"} == {commit}
    assert same(load_published("tuned:gpt2", commit), tuned)
    assert len(hub.downloads()) == 3
    for name, sentence in (
        (
            "tuned:gpt2-xl",
            "tuned-lens has no lens for 'gpt2-xl', since it has no lens/gpt2-xl/config.json",
        ),
        ("jacobian:gpt2-xl", "minilens knows jacobian:gpt2; for others use the path of a file: jacobian:FILE"),
        ("tuned:../../no-such-lens", "'../../no-such-lens' is not on disk, and no model of the Hub is called so"),
        ("affine:gpt2", "'affine:gpt2' names no published lens: write tuned:MODEL or jacobian:MODEL"),
        ("tuned:", "'tuned:' names no published lens"),
    ):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            load_published(name)
    hub.faults.append(Fault(status=503))
    assert same(load_published("tuned:gpt2"), tuned)


def same(one: LearnedLens, other: LearnedLens) -> bool:
    return all(torch.equal(one.maps[site].weight, other.maps[site].weight) for site in one.maps | other.maps)


Break = Callable[[LocalHub], Any]


@pytest.mark.parametrize(
    ("name", "spoil", "sentence"),
    [
        (
            "tuned:gpt2",
            lambda hub: hub.stop(),
            "lens/gpt2/config.json of AlignmentResearch/tuned-lens is not in the cache",
        ),
        ("jacobian:gpt2", lambda hub: hub.stop(), "or use the path of a file: jacobian:FILE"),
        (
            "tuned:gpt2",
            lambda hub: None,
            "there is no space 'AlignmentResearch/tuned-lens': it is not on the Hub, or it",
        ),
    ],
)
def test_a_hub_without_them(hub: LocalHub, name: str, spoil: Break, sentence: str) -> None:
    spoil(hub)
    with pytest.raises((CheckpointError, ValueError), match=re.escape(sentence)):
        load_published(name)

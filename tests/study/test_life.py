"""The life of a model: its numbers are those of corpus, heads and study; nothing is measured twice, or mixed up."""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from checkpoints import changed
from conftest import Tiny
from rich.console import Console
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

import minilens
from minilens.command.main import main
from minilens.corpus.documents import SEPARATOR, TextFile
from minilens.corpus.measure import CorpusLens, Plan
from minilens.corpus.sweep import Sweep
from minilens.corpus.tally import VALUES
from minilens.study import life as module
from minilens.study.checkpoint import DRAWS, SKIP, TEXTS
from minilens.study.claims import claims
from minilens.study.experiments import study
from minilens.study.life import Checkpoint, Life, _checkpoints

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch
NAMES = ("step-100", "step-20", "step-0")  # by name another order than by step
N_CTX = 160


@pytest.fixture(scope="module")
def trained(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The folders of three checkpoints, with weights of different size, that read any text, byte by byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE({char: token for token, char in enumerate(alphabet)}, []))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.add_tokens([AddedToken(" dragon", normalized=False)])
    source, root = tiny("gpt2", vocab_size=bpe.get_vocab_size(), n_positions=N_CTX)[1], tmp_path_factory.mktemp("life")
    for n, name in enumerate(NAMES):
        changed(
            source,
            root / name,
            tensors=lambda all, n=n: {key: each / (n + 1) for key, each in all.items()},  # type: ignore[misc]
            files={"tokenizer.json": bpe.to_str().encode()},
        )
    return [str(root / name) for name in NAMES]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_text(f"\n{SEPARATOR}\n".join(["once upon a time there was a cat", "", "a red dragon sat", "on"]))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lives") / "life"


@pytest.fixture(scope="module")
def found(trained: list[str], text: Path, folder: Path) -> Life:
    return minilens.life(trained, text, folder, window=20)


@pytest.fixture
def unstudied(monkeypatch: Patch) -> None:
    """A study takes longer than all the rest."""
    monkeypatch.setattr("minilens.study.checkpoint.study", Mock(side_effect=ValueError("left out")))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- What is measured


def test_the_lens_is_that_of_a_corpus(found: Life, trained: list[str], text: Path, tmp_path: Path) -> None:
    assert found.steps == (0, 20, 100)
    assert repr(found) == "Life of 3 checkpoints, steps 0 to 100; 4 rows"
    model, tokenizer = minilens.load(trained[0])
    assert tokenizer is not None
    sweep = Sweep(CorpusLens(model, tokenizer, Plan(window=20)), [TextFile(text)], tmp_path / "sweep")
    list(sweep.run())
    wanted = sweep.findings().decoders["final"]
    assert found.rows == wanted.labels
    for value in VALUES:
        curve = found.lens(value)
        torch.testing.assert_close(curve.mean[-1], wanted.tally.mean(value)[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            curve.standard_error[-1], wanted.tally.standard_error(value)[0], rtol=1e-4, atol=1e-6, equal_nan=True
        )


def test_the_lengths_are_those_of_the_stream(found: Life, trained: list[str], text: Path) -> None:
    """Of all positions but the first of a window; the error of a ratio of sums is that of its line through 0."""
    model, tokenizer = minilens.load(trained[1])
    assert tokenizer is not None
    sums = []
    for document in TextFile(text).documents():
        total = torch.zeros(3, dtype=torch.double)
        for tokens in tokenizer.encode(document).split(20, dim=1):
            if tokens.shape[1]:
                trace = minilens.trace(model, tokens)
                embed, write = trace.embed.double(), (trace.blocks[0].resid_post - trace.embed).double()
                lengths = torch.stack([torch.ones(tokens.shape), embed.norm(dim=-1)[:], write.norm(dim=-1)])
                total += lengths[:, 0, SKIP:].sum(1)
        sums += [total] if total[0] else []
    n, embedding, write = torch.stack(sums).T
    for what, over, under in (("embedding", embedding, n), ("write", write, n), ("ratio", write, embedding)):
        mean, error = (part[1] for part in found.block_0(what))
        ratio = over.sum() / under.sum()
        residual = over - ratio * under
        torch.testing.assert_close(mean, ratio, rtol=1e-5, atol=0)
        wanted = (residual.square().sum() * len(n) / (len(n) - 1)).sqrt() / under.sum()
        torch.testing.assert_close(error, wanted, rtol=1e-3, atol=1e-7)


def test_heads_and_findings_are_those_of_the_instruments(found: Life, trained: list[str]) -> None:
    model, tokenizer = minilens.load(trained[0])
    assert tokenizer is not None
    draws = [minilens.head_scores(model, batch=TEXTS, seed=seed).induction.double() for seed in range(DRAWS)]
    mean, error = torch.stack(draws).mean(0), torch.stack(draws).std(0) / DRAWS**0.5
    curve = found.heads("induction")
    torch.testing.assert_close(curve.mean[-1], mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(curve.standard_error[-1], error, rtol=1e-2, atol=1e-6)
    best = found.best_head("induction")
    at = mean.flatten().argmax()
    torch.testing.assert_close(best.mean[-1], mean.flatten()[at], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(best.standard_error[-1], error.flatten()[at], rtol=1e-2, atol=1e-6)
    wanted = claims(study("a model", model, tokenizer))
    assert {name: each[-1] for name, each in found.verdicts().items()} == {one.statement: one.verdict for one in wanted}
    assert len({*found.records[-1]["findings"][0]["checks"][0]}) == 4


def test_what_is_no_statistic(found: Life) -> None:
    with pytest.raises(ValueError, match='there is no statistic "kl"; there are kl_final, '):
        found.lens("kl")
    with pytest.raises(ValueError, match='there is no score "copying"; there are induction, '):
        found.best_head("copying")


# ---- The folder


@pytest.mark.usefixtures("unstudied")
def test_a_kill_costs_one_checkpoint_at_most(
    found: Life, folder: Path, trained: list[str], text: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    measured, names = module.measured, []

    def killed(name: str, *args: Any) -> dict[str, Any]:
        names.append(name)
        if len(names) == 2:
            raise KeyboardInterrupt
        return measured(name, *args)

    monkeypatch.setattr(module, "measured", killed)
    with pytest.raises(KeyboardInterrupt):
        minilens.life(trained, text, tmp_path / "life", window=20)
    before = files(tmp_path / "life" / "checkpoints")
    again = minilens.life(trained, text, tmp_path / "life", window=20)
    assert names == ["step-0", "step-20", "step-20", "step-100"]
    after = files(tmp_path / "life")
    assert before.items() <= after.items()
    assert len(before) == 1 and after.keys() == {"request.json", *files(folder / "checkpoints")}
    assert again.records[0]["hash"] == found.records[0]["hash"]


def test_what_is_measured_is_not_read_again(
    found: Life, folder: Path, trained: list[str], text: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(module, "load", None)
    again = minilens.life(trained[1:], text, folder, window=20)
    assert again.records == found.records[:2]


@pytest.mark.usefixtures("unstudied")
def test_revisions_are_of_one_repository(trained: list[str], text: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    """The Hub is asked for each that is not measured; of a measured one nothing needs to be there any more."""
    asked = []

    def load(name: str, *, revision: str, **options: Any) -> Any:
        asked.append((name, revision))
        return minilens.load(trained[len(asked) - 1], **options)

    monkeypatch.setattr(module, "load", load)
    how: Any = dict(revisions=["checkpoint-400", "checkpoint-50"], window=20)
    found = minilens.life("some/model", text, tmp_path / "life", **how)
    assert asked == [("some/model", "checkpoint-50"), ("some/model", "checkpoint-400")]
    assert found.steps == (50, 400)
    monkeypatch.setattr(module, "load", None)
    assert minilens.life("some/model", text, tmp_path / "life", **how).records == found.records


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (dict(window=19), "holds a life with another value of window (20; here 19): give another folder"),
        (dict(dtype=torch.float64), 'another value of dtype ("torch.float32"; here "torch.float64")'),
        (dict(revisions=["a", "b"]), "name checkpoints, or one repository with revisions; got 3 models"),
        (dict(models=[]), "name checkpoints, or one repository with revisions; got 0 models"),
        (dict(models=["step-1", "step-1"]), "name each checkpoint once; got step-1, step-1"),
        (dict(decoders=("final", "mlp")), "a life has one decoder; got final, mlp"),
        (dict(device="nowhere"), "the device 'nowhere' cannot be used"),
        (dict(folder="."), "is there, and no life has begun in it: give another folder"),
    ],
)
def test_a_folder_is_for_one_life(
    found: Life, folder: Path, trained: list[str], text: Path, change: dict[str, Any], why: str
) -> None:
    given: dict[str, Any] = dict(models=trained, window=20) | change
    where = folder.parent if given.pop("folder", None) else folder
    with pytest.raises(ValueError, match=re.escape(why)):
        minilens.life(given.pop("models"), text, where, **given)


@pytest.mark.usefixtures("unstudied")
def test_a_checkpoint_that_has_changed_is_refused(trained: list[str], text: Path, tiny: Tiny, tmp_path: Path) -> None:
    folder = changed(Path(trained[0]), tmp_path / "step-7")
    minilens.life(folder, text, tmp_path / "life", window=20)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"step-7 has changed since it was measured: delete .*step-7-"):
        minilens.life(folder, text, tmp_path / "life", window=20)


def test_checkpoints_of_two_models_are_refused(trained: list[str], text: Path, tiny: Tiny, tmp_path: Path) -> None:
    two_blocks = tiny("gpt2", vocab_size=257, n_positions=N_CTX, n_layer=2)[1]
    tokenizer: dict[str, bytes | None] = {"tokenizer.json": Path(trained[0], "tokenizer.json").read_bytes()}
    other = changed(two_blocks, tmp_path / "step-8", files=tokenizer)
    with pytest.raises(ValueError, match="step-100 has other rows than step-8: a life is of one model"):
        minilens.life([trained[0], other], text, tmp_path / "life", window=20)
    (record,) = minilens.life(other, text, tmp_path / "life", window=20).records
    assert record["findings"] == []
    assert record["no_findings"] == "a study compares first, middle and last blocks: it needs three, not 2"


@pytest.mark.parametrize(
    ("models", "revisions", "steps"),
    [
        (["a/step-100", "a/step-20/", "b/step_003"], [], [3, 20, 100]),
        (["a/first", "a/step-20"], [], [0, 1]),
        (["a/run-1", "b/run-1"], [], [0, 1]),
        (["of/gpt2"], ["checkpoint-400", "checkpoint-90-ema"], [90, 400]),
        (["of/gpt2"], ["1" * 40, "2" * 39 + "a"], [0, 1]),
    ],
)
def test_steps_are_read_from_the_names(models: list[str], revisions: list[str], steps: list[int]) -> None:
    found = _checkpoints(models, revisions)
    assert [each.step for each in found] == steps
    assert {(each.model, each.revision) for each in found} == {(m, r) for m in models for r in revisions or [None]}


# ---- The command


def test_the_command(
    found: Life, folder: Path, trained: list[str], text: Path, capsys: Capture, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(module, "load", None)  # all is measured
    monkeypatch.setattr("minilens.views.plots.drawn", Mock(return_value=b"a picture"))
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["life", *trained, str(text), "--window", "20", "--out", str(folder), "--stat", "entropy"]) == 0
    out, err = capsys.readouterr()
    assert err == f"minilens: {folder} holds life.json, life.csv, life.png\n"
    assert out.startswith("3 checkpoints, from step 0 to step 100\nentropy, nats\n")
    entropy = found.lens("entropy")
    (line,) = [line for line in out.splitlines() if line.startswith("  1.post")]
    assert [f"{entropy.mean[n, 2]:.1f}"[:3] == cell[:3] for n, cell in zip((0, -1), line.split()[2::2], strict=True)]
    assert re.search(r"  to what followed it +[▁▂▃▄▅▆▇█]{3} +0\.\d{3} ±0\.\d{3} 0\.\d{3} ±0\.\d{3}", out)
    assert out.count("●") + out.count("○") > 1
    record = json.loads((folder / "life.json").read_text())
    assert [each["step"] for each in record["checkpoints"]] == [0, 20, 100]
    assert record == json.loads(json.dumps(minilens.life_record(found)))
    lines = list(csv.DictReader(io.StringIO((folder / "life.csv").read_text())))
    cells = {(line["step"], line["part"], line["name"], line["of"]): line for line in lines}
    assert len(cells) == len(lines)
    for n, step in enumerate(found.steps):
        for r, row in enumerate(found.rows):
            for value in VALUES:
                cell = cells[str(step), "lens", value, row]
                assert cell["value"] == str(found.lens(value).mean[n, r].item())
                assert cell["standard_error"] == str(found.lens(value).standard_error[n, r].item())
        assert cells[str(step), "heads", "previous", "2.4"]["value"] == str(
            found.heads("previous").mean[n, 2, 4].item()
        )
        assert cells[str(step), "block_0", "ratio", ""]["value"] == str(found.block_0("ratio").mean[n].item())
    written = files(folder)
    assert main(["life", *trained, str(text), "--window", "20", "--out", str(folder), "--stat", "entropy"]) == 0
    assert files(folder) == written  # the same to the byte, or it would be refused
    capsys.readouterr()
    assert main(["life", *trained[1:], str(text), "--window", "20", "--out", str(folder)]) == 2
    assert "life.json is there, with other names" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--revision", "main"], "--revision is for one checkpoint: give --revisions"),
        (["--stat", "kl"], "--stat kl: there is no such statistic; there are kl_final, "),
    ],
)
def test_options_that_do_not_go_together(capsys: Capture, options: list[str], why: str) -> None:
    assert main(["life", "step-1", "text.txt", *options]) == 2
    assert why in capsys.readouterr().err


def test_many_checkpoints_are_drawn_and_shown(found: Life) -> None:
    """A line is as long as a terminal allows, and keeps the first and the last; two lives are two kinds of line."""
    many = Life(tuple(Checkpoint(n, "a") for n in range(99)), found.records * 33)
    out = io.StringIO()
    Console(file=out, width=120).print(minilens.life_view(many, title="a\x1b[31m"))
    assert out.getvalue().startswith("a\\x1b[31m: 99 checkpoints, from step 0 to step 98\n")
    bars = re.findall("[▁▂▃▄▅▆▇█]+", out.getvalue())
    assert {len(each) for each in bars} == {40}
    figure = minilens.life_figure({"one": found, "two": found}, stats=("kl_final", "agrees"))
    lines: Callable[[int], list[Any]] = lambda n: figure.axes[n].get_lines()  # noqa: E731
    assert [len(lines(n)) for n in range(4)] == [8, 8, 6, 6]
    assert {line.get_linestyle() for line in lines(0)} == {"-", "--"}
    assert (lines(0)[1].get_ydata() == found.lens("kl_final").mean[:, 1].numpy()).all()

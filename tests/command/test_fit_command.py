"""`minilens fit`, and learned lenses in `minilens lens` and `minilens corpus`."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import changed, tokenizer_json
from conftest import Tiny
from texts import documents, text_file

import minilens
from minilens.command.main import main
from minilens.corpus.documents import TextFile
from minilens.corpus.measure import CorpusLens, Plan
from minilens.corpus.sweep import Sweep
from minilens.learned.affine import read_lens

pytestmark = pytest.mark.usefixtures("undrawn")
Capture = pytest.CaptureFixture[str]
LENSES = ["affine", "mean", "twin 1", "twin 2", "wrong row", "constant"]


@pytest.fixture(scope="module")
def model(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return changed(tiny("gpt2")[1], tmp_path_factory.mktemp("fit") / "gpt2", files={"tokenizer.json": tokenizer_json()})


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_file(tmp_path_factory.mktemp("text") / "a.txt", documents(1, n=60)).path


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_file(tmp_path_factory.mktemp("other") / "b.txt", documents(2, n=12)).path


@pytest.fixture(scope="module")
def lens(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lens") / "mine"
    minilens.fit(*minilens.load(model), text, folder, shard=400, batch=200)  # type: ignore[arg-type]
    return folder


def run(capsys: Capture, *args: str | Path) -> tuple[str, str]:
    assert main([*map(str, args)]) == 0
    return capsys.readouterr()


def refused(capsys: Capture, *args: str | Path) -> str:
    assert main([*map(str, args)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    return line


def test_a_lens_is_fitted_and_measured(
    model: Path, text: Path, other: Path, lens: Path, tmp_path: Path, capsys: Capture, undrawn: pytest.MonkeyPatch
) -> None:
    undrawn.undo()
    out = tmp_path / "mine"
    command = ("fit", model, text, "--out", out, "--shard", "400", "--batch", "200", "--held-out", other, "--transfer")
    printed, err = run(capsys, *command)
    for name in ("lens.safetensors", "lens.json"):
        assert (out / name).read_bytes() == (lens / name).read_bytes()
    made = read_lens(out).made
    lines = printed.splitlines()
    assert lines[0].split() == "R² on text twins: twins: bias of the bias of twins:".split()
    for line, row in zip(lines[2:5], range(3), strict=True):
        (one, two), r_squared = made["twins"][row], made["left_out"]["r_squared"][row]
        assert line.split()[1:5] == [f"{r_squared:.3f}", f"{made['ridge'][row]:g}", f"{one:.2f}", f"{two:.2f}"]
    assert f"{out} holds the lens: minilens lens TEXT --lens {out}" in err
    record = json.loads((out / "held-out" / "report.json").read_text())
    assert [*record["decoders"]] == ["final", *LENSES]
    assert [found.get("beside") for found in record["decoders"].values()] == [None, *["final"] * len(LENSES)]
    assert "lens affine: means in nats" in printed and "KL above" in printed
    maps = json.loads((out / "held-out" / "maps.json").read_text())
    rows, numbers = maps["rows"], list(csv.reader(io.StringIO((out / "held-out" / "maps.csv").read_text())))
    labels = ["embed", "0.resid_post", "1.resid_post"]
    assert [row["row"] for row in rows] == labels == [*maps["transfer"]]
    own = record["decoders"]["affine"]["groups"][0]["mean"]["kl_final"]
    page = (out / "held-out" / "report.html").read_text()
    assert page.count("in detail") == 2 and page.count("<h3>") == 1 + len(LENSES)
    for n, (label, row) in enumerate(zip(labels, rows, strict=True)):
        assert maps["transfer"][label][label][0] == pytest.approx(own[n])
        assert row["twins"] == dict(zip("Ab", made["twins"][n], strict=True)) and row["bias"] < row["bias_plain"]
        assert [label, "bias", str(row["bias"]), str(row["bias_error"] or "")] in numbers
        assert lines[2 + n].split()[-2].startswith(f"{row['twins_kl']:.1f}")
    again, err = run(capsys, *command)
    assert again == printed


def test_a_null_is_fitted_to_shuffled_weights(
    model: Path, text: Path, other: Path, lens: Path, tmp_path: Path, capsys: Capture
) -> None:
    """It says so in its report, and is no lens for the model itself."""
    out = tmp_path / "null"
    run(capsys, "fit", model, text, "--out", out, "--shard", "400", "--shuffle", "3", "--held-out", other)
    record = json.loads((out / "held-out" / "report.json").read_text())
    assert record["model"] == f"{model}, weights shuffled by 3"
    mine, null = read_lens(lens), read_lens(out)
    assert all(not torch.equal(null.maps[site].weight, row.weight) for site, row in mine.maps.items())
    assert "is for another model: other weights" in refused(capsys, "lens", "a", "--model", model, "--lens", out)


def test_a_jacobian_lens_is_fitted_as_well(
    model: Path, text: Path, other: Path, tmp_path: Path, capsys: Capture
) -> None:
    out, how = tmp_path / "mine", ("--documents", "3", "--cotangents", "4", "--skip", "2")
    printed, _ = run(
        capsys, "fit", model, text, "--kind", "jacobian", "--out", out, "--shard", "900", *how, "--held-out", other
    )
    lens = read_lens(out)
    assert lens.kind == "jacobian" and lens.made["cotangents"] == 4 and lens.made["skip"] == 2
    assert printed.splitlines()[2].split()[:3] == [
        "embed", f"{lens.made['twins'][0]:.2f}", f"{lens.made['departure'][0]:.3g}"
    ]  # fmt: skip
    assert "lens jacobian: means in nats" in printed


def test_differences_are_paired(model: Path, other: Path, lens: Path, tmp_path: Path, capsys: Capture) -> None:
    """The mean difference, and the error of it over documents, from the values of each token in both lenses."""
    out = tmp_path / "out"
    printed, _ = run(capsys, "corpus", model, other, "--lens", lens, "--out", out, "--csv", "--batch", "100")
    record = json.loads((out / "report.json").read_text())
    loaded, tokenizer = minilens.load(model)
    assert tokenizer is not None
    learned, sums, counts = read_lens(lens), [], []
    for document in filter(None, documents(2, n=12)):
        above = []
        for window in tokenizer.encode(document)[0].split(40):
            tables = [minilens.logit_lens(loaded, window[None], **how) for how in ({"transport": learned}, {})]
            above.append(tables[0].kl_final - tables[1].kl_final)
        sums.append(torch.cat(above, 1).double().sum(1))
        counts.append(sum(part.shape[1] for part in above))
    S, n = torch.stack(sums), torch.tensor(counts, dtype=torch.double)
    mean = S.sum(0) / n.sum()
    error = (len(n) / (len(n) - 1) * (S - mean * n[:, None]).square().sum(0)).sqrt() / n.sum()
    found = record["decoders"][str(lens)]["groups"][0]["above"]
    assert torch.tensor(found["mean"]["kl_final"]).numpy() == pytest.approx(mean.numpy(), abs=1e-5)
    assert torch.tensor(found["standard_error"]["kl_final"]).numpy() == pytest.approx(error.numpy(), abs=1e-5)
    plain, ours = (record["decoders"][name]["groups"][0]["mean"]["kl_final"] for name in ("final", str(lens)))
    assert [a - b for a, b in zip(ours, plain, strict=True)] == pytest.approx(found["mean"]["kl_final"], abs=1e-9)
    lines = [*csv.DictReader(io.StringIO(printed))]
    (line,) = [
        line for line in lines
        if (line["statistic"], line["row"], line["split"]) == ("kl_final_above_final", "embed", "all")
    ]  # fmt: skip
    assert line["mean"] == str(found["mean"]["kl_final"][0]) and line["decoder"] == str(lens)


def test_a_sweep_of_another_lens_is_another(model: Path, other: Path, lens: Path, tmp_path: Path) -> None:
    loaded, tokenizer = minilens.load(model)
    assert tokenizer is not None
    one, two = read_lens(lens), read_lens(lens)
    first = next(iter(two.maps))
    two.maps[first].bias[0] += 1  # type: ignore[index]
    readers = [CorpusLens(loaded, tokenizer, Plan(), {"a": minilens.Lens(transport=each)}) for each in (one, two)]
    Sweep(readers[0], [TextFile(other)], tmp_path / "out").count()
    with pytest.raises(ValueError, match="another value of lenses"):
        Sweep(readers[1], [TextFile(other)], tmp_path / "out")
    with pytest.raises(ValueError, match="must be a dataclass, whose parts tell what it is"):
        CorpusLens(loaded, tokenizer, Plan(), {"a": minilens.Lens(transport=lambda site, resid: resid)})
    with pytest.raises(ValueError, match='"final" is the name of a decoder'):
        CorpusLens(loaded, tokenizer, Plan(), {"final": minilens.Lens(transport=one)})
    with pytest.raises(ValueError, match='for the decoder "final", which is not among those read: mlp'):
        CorpusLens(loaded, tokenizer, Plan(("mlp",)), {"a": minilens.Lens(transport=one)})


def test_the_lens_command_takes_a_learned_lens(model: Path, lens: Path, tmp_path: Path, capsys: Capture) -> None:
    loaded, tokenizer = minilens.load(model)
    assert tokenizer is not None
    text = ("lens", "once upon a time", "--model", model)
    record = json.loads(run(capsys, *text, "--lens", lens, "--json")[0])
    table = minilens.logit_lens(loaded, tokenizer.encode(text[1]), transport=read_lens(lens))
    assert record["lens"] == "mine" and json.loads(run(capsys, *text, "--json")[0])["lens"] is None
    for row, kl in zip(record["rows"], table.kl_final, strict=True):
        assert row["kl_final"] == pytest.approx(kl.tolist(), abs=1e-6)
    assert repr(table).startswith("LensTable of 4 rows and") and "lens mine, norm final" in repr(table)
    printed, _ = run(capsys, *text, "--lens", lens, "--decoder", "final")
    assert re.search("lens +none +mine", printed)
    alone, _ = run(capsys, *text, "--lens", lens)
    assert "lens mine" in alone and "none" not in alone
    run(
        capsys,
        *text,
        "--lens",
        lens,
        "--decoder",
        "final,mlp",
        "--html",
        tmp_path / "a.html",
        "--png",
        tmp_path / "a.png",
    )
    page = (tmp_path / "a.html").read_text()
    assert '"lens":"mine"' in page and page.count('"lens":""') == 2


def test_what_cannot_be_is_refused_in_one_line(
    model: Path, text: Path, other: Path, lens: Path, tmp_path: Path, capsys: Capture
) -> None:
    shown = ("lens", "once", "--model", model, "--lens")
    fitted = ("fit", model, text, "--out", tmp_path / "out")
    for args, message in (
        ((*shown, "nowhere"), "there is no lens 'nowhere': it is not a folder, and not bundled"),
        ((*shown, tmp_path), "has no lens.json, so it is not a lens that minilens wrote"),
        ((*shown, lens, "--lens", lens), "is named twice"),
        ((*shown, lens, "--centre"), "--lens reads residuals as they are: leave out --centre"),
        ((*shown, lens, "--norm", "plain"), "--lens reads residuals as they are: leave out --centre, --norm plain"),
        ((*shown, lens, "--sites", "resid_mid"), "has no map for the row 0.resid_mid"),
        ((*shown, lens, "--decoder", "mlp", "--json"), "--json takes one lens"),
        (("lens", "once", "--lens", lens), "the lens mine is for another model: d_model 30 and not 256, n_layers 3"),
        (("corpus", model, other, "--out", tmp_path / "out", "--lens", lens, "--lens", lens), "name each lens once"),
        ((*fitted, "--kind", "x"), "--kind x: there is no such lens; there are mean, affine, tuned, jacobian"),
        ((*fitted, "--kind", "mean", "--ridge", "1"), "--ridge is for --kind affine and tuned, not mean"),
        ((*fitted, "--cotangents", "3"), "--cotangents is for --kind jacobian, not affine"),
        ((*fitted, "--kind", "jacobian", "--norm", "plain"), "--kind jacobian is for --norm final"),
        ((*fitted, "--kind", "tuned", "--shard", "400"), "a tuned lens has 930 numbers a row"),
        ((*fitted, "--ridge", "much"), "argument --ridge: invalid float value: 'much'"),
        ((*fitted, "--ridge", "-1"), "the ridge must be a number from 0 up"),
        ((*fitted, "--held-out", text), f"--held-out {text} is text that the lens is fitted to: give other text"),
        ((*fitted, "--transfer"), "--transfer is measured on other text: name it with --held-out"),
        ((*fitted, "--threads", "0"), "--threads must be from 1 to 1024"),
    ):
        assert message in refused(capsys, *args), args
    assert not (tmp_path / "out" / "lens.json").exists() and not (tmp_path / "out" / "report.json").exists()


def test_bundled_lenses_are_found_by_their_name(capsys: Capture) -> None:
    text = ("lens", "Once upon a time there was a little", "--json")
    record: dict[str, Any] = json.loads(run(capsys, *text, "--lens", "affine")[0])
    assert (record["lens"], record["model"]) == ("affine", "tales-gpt2")
    plain = json.loads(run(capsys, *text)[0])
    ours, theirs = ([sum(row["kl_final"]) for row in each["rows"][:-1]] for each in (record, plain))
    assert sum(ours) < sum(theirs) / 2 and all(one != other for one, other in zip(ours, theirs, strict=True))
    assert record["rows"][-1] == plain["rows"][-1]

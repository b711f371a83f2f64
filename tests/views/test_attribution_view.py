"""Attribution shown: rows add up to what a layer adds, and each view has every number of the grid."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Tiny
from rich.console import Console
from test_patching_view import Page

import minilens
from minilens import Attributions, attributions
from minilens.command.main import main
from minilens.views.attribution import BY, attribution_page, attribution_record, attribution_view

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def found(tiny: Tiny) -> Attributions:
    """Two texts of one length, with all neurons apart, and an edit that changes the stream."""
    model, _ = minilens.load(tiny("gpt2")[1], dtype=torch.float64)
    tokens = torch.arange(24).view(2, 12)
    edit = minilens.at(1, "resid_mid", lambda value: value / 2)
    return attributions(model, tokens, token=[3, 5], against=7, neurons=range(3), edit=edit)


def shown(found: Any, by: str) -> str:
    out = io.StringIO()
    Console(file=out, width=1000).print(attribution_view(found, by=by, title="Sue", width=1000))
    return out.getvalue()


def two(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}".replace("+0.00", "0.00")


@pytest.mark.parametrize("by", BY)
def test_every_view_has_every_number(found: Attributions, by: str) -> None:
    record = json.loads(json.dumps(attribution_record(found, by=by)))
    mean, error = (torch.tensor(record[name], dtype=torch.float64) for name in ("mean", "standard_error"))
    in_stream = torch.tensor([0.0, found.of("contributions").mean[found.labels.index("1.resid_mid_edit")], 0.0])
    assert (mean.sum(-1) + in_stream - found.of("by_layer").mean).abs().max() < 1e-6
    assert mean.shape[1] == len(record["columns"]) == {"layer": 2, "head": 7, "position": 14, "neuron": 6}[by]
    if by in ("head", "position"):
        wanted = found.of(f"by_{by}")
        assert torch.allclose(mean[:, :-2], wanted.mean) and torch.allclose(mean[:, -1], found.of("mlp").mean)
        assert torch.allclose(error[:, :-2], wanted.standard_error)
    marks = record.get("neurons", [[None] * mean.shape[1]] * 3)
    if by == "neuron":
        neurons = found.of("by_neuron").mean
        assert all(
            abs(neurons[0, n] - value) < 1e-6 for n, value in zip(marks[0][:-1], record["mean"][0], strict=False)
        )
        assert abs(neurons[2]).topk(5).indices.tolist() == marks[2][:-1]

    def written(layer: int, column: int) -> str:
        if marks[layer][column] is not None:
            return f"{marks[layer][column]}:{two(float(mean[layer, column]))}"
        return f"{two(float(mean[layer, column]))}±{error[layer, column]:.2f}"

    lines = shown(found, by).splitlines()
    page = Page(attribution_page(found, by=by, title="<b>Sue"))
    grid, numbers = page.tables
    for layer in range(3):
        wanted = [written(layer, column) for column in range(mean.shape[1])]
        (line,) = [line for line in lines if line.startswith(f"layer {layer} ")]
        assert line.split()[2:] == wanted
        assert [text for _, text in grid[3 - layer][1:]] == wanted
        assert [float(text) for _, text in numbers[3 - layer][1:]] == pytest.approx(mean[layer].tolist(), rel=6e-4)
    assert "b" not in page.tags and lines[0] == "Sue"
    assert any("1.resid_mid_edit" in line and "embed" in line for line in lines)


def test_one_text_has_no_errors(found: Attributions) -> None:
    one = found.texts[0]
    assert "±" not in shown(one, "head") and attribution_record(one)["standard_error"] is None
    record = attribution_record(one)
    assert [part["label"] for part in record["parts"]] == [*one.labels]
    assert [part["mean"] for part in record["parts"]] == one.contributions.tolist()
    assert record["texts"][0]["token"]["id"] == 3 and record["texts"][0]["logit"] == one.logit
    assert "Attribution" in one._repr_html_() and "±" in found._repr_html_()  # type: ignore[attr-defined]


def test_the_figure_has_every_number(found: Attributions) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib, of the extra plot, is not installed")
    figure = minilens.attribution_figure(found, by="head", title="$Sue$")
    (axes,) = [each for each in figure.axes if each.images]
    mean = torch.tensor(attribution_record(found)["mean"])
    assert axes.images[0].get_array().data == pytest.approx((mean / mean.abs().max()).numpy(), abs=1e-6)
    assert [label.get_text() for label in axes.get_xticklabels()][-3:] == ["head 4", "bias", "mlp"]
    figure.canvas.draw()


def test_refusals(found: Attributions, tiny: Tiny) -> None:
    model, _ = minilens.load(tiny("gpt2")[1])
    whole = minilens.attribute(model, torch.arange(5)[None])
    for by, message in {
        "part": 'there is no attribution by "part"; there is one by layer, head, position, neuron',
        "neuron": 'by "neuron" takes an attribution of all neurons',
    }.items():
        with pytest.raises(ValueError, match=message):
            attribution_view(whole, by=by)
    with pytest.raises(ValueError, match="texts of several lengths have no positions in common"):
        attribution_view(attributions(model, torch.arange(10).view(2, 5), lengths=[5, 3]), by="position")


def run(capsys: Capture, *args: Any) -> str:
    assert main(["attribute", *map(str, args)]) == 0
    return capsys.readouterr().out


def test_the_command(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    model, tokenizer = minilens.load("tales-gpt2")
    assert tokenizer is not None
    texts = ["Once upon a time there was a little", "Tom saw a little"]
    tokens, lengths = tokenizer.encode(texts)
    girl, boy = tokenizer.id(" girl"), tokenizer.id(" boy")
    found = attributions(model, tokens, lengths=lengths, token=girl, against=boy, tokenizer=tokenizer)
    asked = ("--token", " girl", "--against", " boy")
    out = run(capsys, *texts, *asked, "--by", "head")
    assert out == shown(found, "head").replace("Sue", "tales-gpt2: logits of 2 texts, on average")
    (tmp_path / "texts").write_text("\n".join(texts) + "\n")
    assert run(capsys, "--file", tmp_path / "texts", *asked, "--by", "head") == out
    each = run(capsys, *texts, "--token", " girl", "--token", f"#{girl}", "--against", " boy", "--by", "head")
    assert each == out
    one = run(capsys, texts[0], *asked, "--zero", "5.mlp_out")
    assert re.match(
        r"tales-gpt2: logit [\d.]+ of ·girl less that of ·boy, at position 7; edited: zero 5.mlp_out\n", one
    )
    record = json.loads(run(capsys, *texts, *asked, "--json"))
    assert record["model"] == "tales-gpt2" and record["by"] == "layer" and len(record["texts"]) == 2
    run(capsys, *texts, "--by", "neuron", "--html", tmp_path / "a.html")
    assert "largest 1" in (tmp_path / "a.html").read_text()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["a", "--file", "b"], "a text and --file are both given: choose one"),
        (
            ["a", "b", "--token", " a", "--token", " b", "--token", " a"],
            "token must be one for all texts, or one",
        ),
        (["a", "--by", "part"], 'there is no attribution by "part"; there is one by layer, head, position, neuron'),
        (["a", "--json", "--html", "x"], "--json and --html are both given: choose one"),
        (["a", "", "--by", "head"], "lengths must be 2 numbers from 1 to 1, the tokens of each text; got [1, 0]"),
        (["a", "--position", "1"], "position 1 does not exist: the text has 1 tokens"),
    ],
)
def test_what_the_command_refuses(capsys: Capture, given: list[str], sentence: str) -> None:
    assert main(["attribute", *given]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.removeprefix("minilens: error: ").startswith(sentence)

"""Parts and attention as they are shown: every number stands where it belongs."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Letters
from conftest import Tiny
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor

import minilens
from minilens.command.main import main
from minilens.views.attention import attention_record
from minilens.views.parts import SHOWN, parts_record

N = 6


@pytest.fixture(scope="module")
def model(tiny: Tiny) -> Any:
    return minilens.load(tiny("gpt2")[1])[0]


@pytest.fixture(scope="module")
def text() -> Tensor:
    return torch.tensor([[3, 41, 3, 77, 5, 9]])


def found(model: Any, text: Tensor, **how: Any) -> minilens.Parts:
    return minilens.parts(model, text, tokenizer=Letters({}), top_k=3, **how)


def lines(view: Any, width: int = 200) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(view)
    return out.getvalue().splitlines()


def row(text: list[str], name: str, after: str = "") -> list[str]:
    """The cells of the first row of this name, after a line that begins so."""
    start = next(n for n, line in enumerate(text) if line.startswith(after))
    return next(line for line in text[start:] if line.startswith(name)).removeprefix(name).split()


def test_a_grid_for_each_kind(model: Any, text: Tensor) -> None:
    parts = found(model, text, layer=1)
    shown = lines(minilens.parts_view(parts, show=["norm", "lowered", "alone"], title="the title"))
    assert shown[0] == "the title"
    for n, label in enumerate(parts.labels):
        assert row(shown, label, "norm") == [f"{value:.2f}" for value in parts.norm[n].tolist()]
        assert row(shown, label, "lowered") == [f"t{token}" for token in parts.lowered.tokens[n, :, 0].tolist()]
        assert row(shown, label, "alone") == [f"t{token}" for token in parts.alone.tokens[n, :, 0].tolist()]
    assert row(shown, "input") == ["t3", "t41", "t3", "t77", "t5", "t9"]
    assert row(shown, "output") == [f"t{token}" for token in parts.final_tokens.tolist()]
    assert row(shown, "position") == list("012345")
    rows = [line.split()[0] for line in shown if line.startswith("1.")][: len(parts.labels)]
    assert rows == list(parts.labels)[::-1]  # the last on top
    missed = re.fullmatch(
        r"The sum of all parts misses what they make by (\S+) of it, and a logit by (\S+)\.", shown[-1]
    )
    assert missed and float(missed[1]) == pytest.approx(parts.stream_error.max().item(), rel=0.5)


def test_all_of_one_position(model: Any, text: Tensor) -> None:
    parts = found(model, text, positions=4)
    shown = lines(minilens.parts_view(parts))
    assert any(line.startswith(f"position 4, after t5; output t{int(parts.final_tokens)}") for line in shown)
    for n, label in enumerate(parts.labels):
        numbers = [getattr(parts, name)[n, 0].item() for name in ("ratio", "cosine", "share")]
        tokens = [f"t{token}" for token in parts.raised.tokens[n, 0].tolist()]
        assert row(shown, label) == [*(f"{round(value, 2) + 0.0:.2f}" for value in numbers), *tokens]


def test_the_page_and_the_figure_have_every_kind(model: Any, text: Tensor) -> None:
    parts = found(model, text, layer=1, by="neuron").largest(4)
    page = minilens.parts_page(parts)
    for name in SHOWN:
        assert f'aria-label="{name}: ' in page
    for value in parts.share.flatten().tolist():
        assert f'title="{value:#.4g}">{round(value, 2) + 0.0:.2f}</td>' in page
    token, share = int(parts.raised.tokens[2, 3, 0]), float(parts.raised.share[2, 3, 0])
    assert f'title="t{token} {share:#.4g}">t{token}</td>' in page
    figure = minilens.parts_figure(parts, show="raised", title="$x$")
    assert isinstance(figure, Figure)
    drawn = [each.get_text() for each in figure.axes[0].texts]
    assert drawn == [f"t{token}" for token in parts.raised.tokens[..., 0].flatten().tolist()]


def test_the_record(model: Any, text: Tensor) -> None:
    parts = found(model, text, positions=[1, 2])
    record = json.loads(json.dumps(parts_record(parts)))
    assert [part["label"] for part in record["parts"]] == list(parts.labels)
    assert record["positions"] == [1, 2] and [token["id"] for token in record["tokens"]] == [41, 3]
    part = record["parts"][3]
    for name in ("norm", "stream", "ratio", "cosine", "share", "mean"):
        assert part[name] == pytest.approx(getattr(parts, name)[3].tolist())
    for name in ("raised", "lowered"):
        of = getattr(parts, name)
        assert [[each["id"] for each in place] for place in part[name]] == of.tokens[3].tolist()
        assert [[each["share"] for each in place] for place in part[name]] == of.share[3].tolist()
    assert [[each["logprob"] for each in place] for place in part["alone"]] == parts.alone.logprob[3].tolist()
    assert record["logit_error"] == parts.logit_error.tolist()


@pytest.mark.parametrize("show", [(), ("rank",)])
def test_what_parts_do_not_have(model: Any, text: Tensor, show: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="show is empty" if not show else 'parts have no "rank"; they have norm, '):
        minilens.parts_view(found(model, text), show=show)


# ---- Attention


def test_the_strongest_keys(model: Any, text: Tensor) -> None:
    block = minilens.trace(model, text).blocks[1]
    how: dict[str, Any] = dict(head=2, tokenizer=Letters({}))
    shown = lines(minilens.attention_view(text, block, k=3, **how))
    for query, line in enumerate(shown[1 : 1 + N]):
        weights, keys = block.pattern[0, 2, query, : query + 1].topk(min(3, query + 1))
        assert line.split()[:2] == [str(query), f"t{text[0, query]}"]
        expected = [
            f"{weight:.2f} {key} t{text[0, key]}".removeprefix("0")
            for weight, key in zip(weights.tolist(), keys.tolist(), strict=True)
        ]
        assert line.split()[2:] == " ".join(expected).split()
    every = lines(minilens.attention_view(text, block, tokenizer=Letters({}), queries=[-1]))
    assert every[0].split() == ["head", *"01234"]
    assert [cell for cell in every[1].split()[3::3]] == [
        str(key) for key in block.pattern[0, :, -1].argmax(-1).tolist()
    ]

    page = minilens.attention_page(text, block, **how)
    for weight in block.pattern[0, 2].tril()[-1].tolist():
        assert f'title="{weight:#.4g}">{weight:.2f}</td>' in page
    record = attention_record(text, block, queries=[1, -1], **how)
    assert record["pattern"] == [block.pattern[0, 2, [1, 5]].tolist()] and record["queries"] == [1, 5]
    drawn = [each.get_text() for each in minilens.attention_figure(text, block, **how).axes[0].texts]
    assert drawn[0] == f"{block.pattern[0, 2, -1, 0]:.2f}"  # the last query is the lowest row
    for wrong, message in ((dict(head=5), "head 5 does not exist"), (dict(queries=[6]), "position 6 does not exist")):
        with pytest.raises(ValueError, match=message):
            minilens.attention_view(text, block, **wrong)


# ---- The commands


def test_the_commands(capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny: Tiny) -> None:
    words = ["--ids", "3 41 3", "--model", str(tiny("gpt_neo")[1])]
    for command, expected in (
        (["parts", "--layer", "1", "--by", "neuron", "--most", "2", "--json"], 2),
        (["parts", "--layer", "1", "--by", "neuron", "--json"], 20),
        (["parts", "--zero", "1.attn_out", "--json"], 8),
        (["parts", "--layer", "1", "--zero", "1.attn_out", "--json"], 7),
    ):
        assert main([*command, *words]) == 0
        record = json.loads(capsys.readouterr().out)
        assert len(record["parts"]) == expected
        assert record["edits"] == (["zero 1.attn_out"] if "--zero" in command else [])
    assert main(["attention", "--layer", "2", "--zero", "2.q", *words]) == 0
    shown = capsys.readouterr().out
    assert "layer 2; edited: zero 2.q" in shown and ".33" in shown
    for command, message in (
        (["parts", "--by", "neuron"], "neurons are shown of one layer: name it"),
        (["parts", "--json", "--show", "norm"], "--show is for cells, and --json has all numbers"),
        (["parts", "--most", "0"], "--most must be at least 1; got 0"),
        (["parts", "--json", "--html", str(tmp_path / "x.html")], "--json and --html are both given: choose one"),
        (["attention", "--layer", "3"], "layer 3 does not exist: the model's layers are 0 to 2"),
        (["attention", "--layer", "0", "--top-k", "0"], "--top-k must be at least 1; got 0"),
        (["attention", "--layer", "0", "--head", "9"], "head 9 does not exist: the model's heads are 0 to 4"),
    ):
        assert main([*command, *words]) == 2
        assert message in capsys.readouterr().err

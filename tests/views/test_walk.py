"""A walk shows every line of the source, in order, and numbers that are the trace's."""

import ast
import io
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Letters, changed, tokenizer_json
from conftest import FAMILIES, Tiny
from rich.cells import cell_len, set_cell_size
from rich.console import Console

import minilens
from minilens.command.main import main
from minilens.traces import RESID_SITES
from minilens.views.tokens import token_label
from minilens.views.walk import Line, block_view, source_lines, walk_view

NAMES = [field.name for field in fields(minilens.BlockTrace) if field.name != "layer"]
AXES = {
    3: {30: "batch pos d_model", 50: "batch pos d_mlp"},
    4: {6: "batch head pos d_head", 33: "batch head query key"},
}  # of the tiny models, on a text of 33 tokens
NIGHTMARES = {
    0: b"\x1b[31m",
    1: b"\n",
    2: "日本語が長い".encode(),
    3: b"[red]",
    4: b"\xe2\x82",
    5: "e\u0301\u200b".encode(),
}
LETTERS = Letters(NIGHTMARES)


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tiny: Tiny) -> minilens.Model:
    return minilens.load(tiny(request.param)[1])[0]


def shown(model: minilens.Model, tokens: torch.Tensor, layer: int = 1, *, colour: bool = False, **options: Any) -> str:
    return printed(model, tokens, minilens.trace(model, tokens).blocks[layer], colour=colour, **options)


def printed(
    model: minilens.Model, tokens: torch.Tensor, block: minilens.BlockTrace, *, colour: bool = False, **options: Any
) -> str:
    out = io.StringIO()
    width = options.setdefault("width", 200)
    Console(file=out, width=width, force_terminal=colour, highlight=False).print(
        block_view(model, tokens, block, **{"tokenizer": LETTERS, **options})
    )
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def block_of(family: str) -> tuple[list[str], ast.FunctionDef]:
    """The lines of a family's file, and its model's method `block` in it."""
    source = (Path(minilens.__file__).parent / f"{family}.py").read_text()
    (method,) = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.name == "block" and node.args.args[0].arg == "self"
    ]
    return source.splitlines(), method


def cut(label: str) -> str:
    """A label in 8 terminal cells at most."""
    return label if cell_len(label) <= 8 else set_cell_size(label, 7) + "…"


def steps(text: str) -> Iterator[tuple[list[str], str, str, str, list[str]]]:
    """For each value: the lines of source so far, its name, its index, its shape, and the lines below that."""
    lines, source = text.splitlines(), []
    for at, line in enumerate(lines):
        if re.match(r"\d+  ", line):
            source.append(line.split("  ", 1)[1])
        elif found := re.fullmatch(r" +(\w+)\[(.+)\] of \[(.+)\]", line):
            yield list(source), *found.groups(), lines[at + 1 : lines.index("", at)]  # type: ignore[misc]


def test_every_line_of_the_source_in_order(model: minilens.Model, tokens: torch.Tensor) -> None:
    """A statement or a comment that is added to the file appears; nothing else does."""
    lines, method = block_of(model.family)
    docstring, *_, end = method.body
    shape = re.compile(r"  # (batch|query)( \w+)+$")  # told by the caption of the numbers
    wanted = [
        f"{number}  {shape.sub('', lines[number - 1].removeprefix('        '))}"
        for number in range(docstring.end_lineno + 1, end.lineno)  # type: ignore[operator]
        if lines[number - 1].strip()
    ]
    numbered = [line for line in shown(model, tokens[:1]).splitlines() if re.match(r"\d+  ", line)]
    assert numbered == [*wanted, f"{end.lineno}  return BlockTrace(...)"]
    starts = [int(line.split()[0]) for line in numbered]
    assert [node.lineno for node in method.body[1:]] == [
        at for at in starts if at in {node.lineno for node in method.body}
    ]
    assert len(method.body) > 18


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_returned_is_what_was_assigned_last(family: str) -> None:
    """Which is why a value may stand at its name's last assignment."""
    end = block_of(family)[1].body[-1]
    assert isinstance(end, ast.Return) and isinstance(end.value, ast.Call)
    assert [ast.unparse(value) for value in end.value.args] == ["layer", *NAMES]


class Odd:
    def block(self, layer: int, resid: Any) -> minilens.BlockTrace:
        """A method with all that may come up.

        Its docstring has two paragraphs.
        """
        at = dict(q=1)
        q, k = 1, 2  # both

        # In between.
        q += (
            at["q"]
            # within
            + k
        )
        if layer:
            v: int = 3
            resid = v
        else:
            q = 4
        scores = pattern = 5
        return minilens.BlockTrace(layer, q, k, v, resid, scores, pattern)  # type: ignore[call-arg, arg-type]


def test_a_value_stands_where_its_name_is_assigned_last() -> None:
    lines = list(source_lines(Odd.block))
    source = Path(__file__).read_text().splitlines()
    assert [source[line.number - 1].removeprefix(" " * 8) for line in lines[:-1]] == [
        line.source for line in lines[:-1]
    ]
    assert {line.source.strip(): line.gives for line in lines if line.gives} == {
        "q, k = 1, 2  # both": ["k"],
        "q = 4": ["q", "v"],
        "scores = pattern = 5": ["scores", "pattern"],
    }
    assert len(lines) == 15
    assert lines[-1] == Line(lines[-2].number + 1, "return minilens.BlockTrace(...)", [])


def test_each_value_once_after_its_line(model: minilens.Model, tokens: torch.Tensor) -> None:
    text = shown(model, tokens[:1])
    assert [name for _, name, *_ in steps(text)] == NAMES
    *_, (source, *_) = steps(text)
    for before, name, *_ in steps(text):
        assert before[-1].startswith(f"{name} = ")
        assert not any(line.startswith(f"{name} = ") for line in source[len(before) :])


@pytest.mark.parametrize(("position", "head"), [(-1, 0), (0, 4), (5, 2), (-33, 1), (32, 3), (20, 0)])
def test_every_number_is_the_traces(model: minilens.Model, tokens: torch.Tensor, position: int, head: int) -> None:
    block = minilens.trace(model, tokens[:1]).blocks[2]
    row = block.pattern[0, head, position]
    for _, name, index, shape, below in steps(shown(model, tokens[:1], 2, position=position, head=head)):
        value = getattr(block, name)
        axes = AXES[value.ndim][value.shape[-1]].split()
        assert shape == ", ".join(f"{axis} {size}" for axis, size in zip(axes, value.shape, strict=True))
        place = {"batch": 0, "head": head, "pos": position % 33, "query": position % 33}
        *which, last = index.split(", ", len(axes) - 1)
        assert [int(part) for part in which] == [place[axis] for axis in axes[:-1]]
        if "key" in axes:
            keys = ast.literal_eval(last)
            assert keys == sorted(keys)
            weights = row.clone()
            weights[keys] = -1
            assert len(keys) == 8 and row[keys].min() >= weights.max()  # those of most weight
            labels = [token_label(LETTERS, token) for token in tokens[0, keys].tolist()]
            assert " ".join(below.pop(0).split()) == " ".join(map(cut, labels))
        numbers = eval(f"value[{index}]", {"value": value}).tolist()
        texts = below[0].split()
        assert len(numbers) == len(texts) > 5
        for number, text in zip(numbers, texts, strict=True):
            mantissa, _, exponent = text.partition("e")
            unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
            assert number == float(text) or abs(number - float(text)) <= 0.501 * unit, (name, number, text)


@pytest.mark.parametrize(
    ("size", "forms"),
    [
        (1.0, "-1.00 0.11"),
        (700.0, "-700.00 77.00"),
        (2e4, "-2.0e+04 2.2e+03"),
        (0.01, "-0.0100 0.0011"),
        (1e-5, "-1.0e-05 1.1e-06"),
        (0.0, "-0.00 0.00"),
        (torch.inf, "-inf inf"),
        (torch.nan, "nan nan"),
    ],
)
def test_numbers_keep_two_digits_of_the_largest(tiny: Tiny, size: float, forms: str) -> None:
    model, _ = minilens.load(tiny("gpt2")[1])
    tokens = torch.tensor([[7]])
    block = minilens.trace(model, tokens).blocks[0]
    z = torch.zeros_like(block.z)
    z[..., 0], z[..., 1] = -size, 0.11 * size
    (below,) = [below for _, name, *_, below in steps(printed(model, tokens, replace(block, z=z))) if name == "z"]
    assert below[0].split()[:2] == forms.split()


def test_a_short_text_shows_all_keys_and_what_is_masked(model: minilens.Model, tokens: torch.Tensor) -> None:
    found = {name: (index, below) for _, name, index, _, below in steps(shown(model, tokens[:1, :6], position=2))}
    index, (labels, numbers, check) = found["scores"]
    assert (index, labels.split()) == ("0, 0, 2, :8", [token_label(LETTERS, token) for token in tokens[0, :6].tolist()])
    assert (numbers.split()[3:], check.strip()) == (["-inf"] * 3, "position 2 sees 3 of 6 keys")
    assert found["pattern"][1][1].split()[3:] == ["0.00"] * 3


def test_only_what_is_masked_cannot_be_seen(tiny: Tiny, tokens: torch.Tensor) -> None:
    model, _ = minilens.load(tiny("gpt2")[1])
    block = minilens.trace(model, tokens[:1]).blocks[0]
    low = replace(block, scores=block.scores.clamp(max=-1e30))
    assert "position 20 sees 21 of 33 keys" in printed(model, tokens[:1], low, position=20)


def test_a_window_can_be_seen(tiny: Tiny, tokens: torch.Tensor) -> None:
    model, _ = minilens.load(tiny("gpt_neo")[1])
    assert "position 32 sees 33 of 33 keys" in shown(model, tokens[:1], 0)
    assert "position 32 sees 7 of 33 keys" in shown(model, tokens[:1], 1)


def test_checks_are_tried(model: minilens.Model, tokens: torch.Tensor) -> None:
    tokens = tokens[:1]
    block = minilens.trace(model, tokens).blocks[1]
    sums = "every row sums to 1", "resid_mid == resid_pre + attn_out", "resid_post == resid_mid + mlp_out"

    def answers(block: minilens.BlockTrace) -> list[str]:
        text = printed(model, tokens, block)
        return [re.findall(rf"{re.escape(check)}: (\w+)", text)[0] for check in sums]

    assert answers(block) == ["True"] * 3
    off = block.attn_out.clone()
    off[0, 3, 3] += 1e-3
    assert answers(replace(block, attn_out=off)) == ["True", "False", "True"]
    assert answers(replace(block, mlp_out=off)) == ["True", "True", "False"]
    pattern = block.pattern.clone()
    pattern[0, 4, 7, 0] += 1e-3
    assert answers(replace(block, pattern=pattern)) == ["False", "True", "True"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_checks_hold_in_any_dtype(tiny: Tiny, tokens: torch.Tensor, dtype: torch.dtype) -> None:
    model, _ = minilens.load(tiny("gpt2")[1], dtype=dtype)
    text = shown(model, tokens[:1])
    assert (text.count(": True"), text.count(": False")) == (3, 0)


@pytest.mark.parametrize("position", [-1, 4])
def test_the_lens_at_the_end(model: minilens.Model, tokens: torch.Tensor, position: int) -> None:
    table = minilens.logit_lens(model, tokens[:1], sites=RESID_SITES, layers=[1], positions=[position])
    *_, caption, pre, mid, post = shown(model, tokens[:1], position=position).splitlines()
    assert caption.startswith(f"the lens at position {position % 33}: ")
    for site, line in zip(RESID_SITES, (pre, mid, post), strict=True):
        r = table.labels.index(f"1.{site}")
        best, prob = int(table.top.tokens[r, 0, 0]), float(table.top.prob[r, 0, 0])
        name, number, label = line.split(maxsplit=2)
        assert (name, label) == (site, token_label(LETTERS, best))
        assert abs(float(number) - prob) <= 0.00501


@pytest.mark.parametrize("width", [40, 80, 133])
def test_hostile_tokens_within_the_width(model: minilens.Model, width: int) -> None:
    tokens = torch.arange(6)[None]
    for position in range(6):
        text = shown(model, tokens, position=position, width=width)
        assert all(char.isprintable() or char == "\n" for char in text)
        assert max(map(cell_len, text.splitlines())) <= width
        label = token_label(LETTERS, position)
        assert label in text.replace("\n", "")  # whole, in the heading
    assert width < 80 or ("[red]" in text and "日本語 …" in text)
    coloured = shown(model, tokens, colour=True)
    assert set(re.findall(r"\x1b\[([\d;]*)m", coloured)) <= {"0", "1", "2", "3"}


@pytest.mark.parametrize(("width", "few"), [(40, 3), (60, 6), (80, 8)])
def test_a_narrow_terminal_has_fewer_numbers_but_whole_ones(model: minilens.Model, width: int, few: int) -> None:
    def numbers(width: int) -> list[list[str]]:
        lines = shown(model, torch.tensor([[7]]), width=width).splitlines()
        return [line.split() for line in lines if re.fullmatch(r" +(-?\d+\.\d\d *)+", line)]

    assert numbers(width) == [row[:few] for row in numbers(200)]
    assert len(numbers(width)) == len(NAMES)


def test_where_we_are(tiny: Tiny, tokens: torch.Tensor) -> None:
    model, _ = minilens.load(tiny("gpt_neo")[1])
    first, second, *_ = shown(model, tokens[:1], 2, position=-2, head=3).splitlines()
    assert first == "minilens/gpt_neo.py: GPTNeo.block, layer 2 of 0 to 2"
    assert second == f"position 31 of 0 to 32, {token_label(LETTERS, int(tokens[0, 31]))}; head 3 of 0 to 4"


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return changed(tiny(request.param)[1], tmp_path_factory.mktemp("walk") / request.param)


def rows(text: str) -> dict[str, tuple[float, float, str]]:
    """The stream in a walk: label, norm, probability and best next token."""
    found = re.findall(r"^(embed|\d\.resid_post) +([\d.]+) +([\d.]+)  (.*)$", text, re.MULTILINE)
    return {label: (float(norm), float(prob), best) for label, norm, prob, best in found}


@pytest.mark.parametrize(("layer", "position"), [(0, -1), (1, 4), (2, 20)])
def test_the_whole_model(model: minilens.Model, tokens: torch.Tensor, layer: int, position: int) -> None:
    """Tokens, embedding, one block in full, the stream at the others, and the unembedding: the trace's own numbers."""
    tokens, at = tokens[:1], position % 33
    trace = minilens.trace(model, tokens)
    out = io.StringIO()
    view = walk_view(model, tokens, layer, position=position, tokenizer=LETTERS, width=200)
    Console(file=out, width=200, highlight=False).print(view)
    text = "\n".join(line.rstrip() for line in out.getvalue().splitlines())
    assert text.splitlines()[0] == f"the tokens: {', '.join(map(str, tokens[0].tolist()))}"
    assert printed(model, tokens, trace.blocks[layer], position=position) in text
    table = minilens.logit_lens(model, tokens, positions=[position])
    stream = {"embed": trace.embed, **{f"{block.layer}.resid_post": block.resid_post for block in trace.blocks}}
    assert [*rows(text)] == [*stream] == list(table.labels)
    for row, (label, (norm, prob, best)) in enumerate(rows(text).items()):
        assert abs(norm - stream[label][0, at].norm().item()) <= 0.00501
        assert abs(prob - table.top.prob[row, 0, 0].item()) <= 0.00501
        assert best == token_label(LETTERS, int(table.top.tokens[row, 0, 0]))
    vectors = {"W_E[tokens]": model.W_E[tokens][0, at], "positions": model.positions(33)[at]}
    vectors |= {"embed": trace.embed[0, at], "final_norm": model.final_norm(trace.blocks[-1].resid_post)[0, at]}
    for name, vector in vectors.items():
        below = text.split(f"{name}[")[-1].split("\n")[1].split()
        assert [float(number) for number in below] == pytest.approx(vector[:8].tolist(), abs=6e-3, rel=0.06)
    *_, labels, logits, probs = text.splitlines()
    best = trace.logits[0, at].topk(8)
    assert labels.split() == " ".join(cut(token_label(LETTERS, token)) for token in best.indices.tolist()).split()
    assert [float(logit) for logit in logits.split()] == pytest.approx(best.values.tolist(), abs=0.00501)
    assert [float(prob) for prob in probs.split()] == pytest.approx(
        trace.logits[0, at].softmax(-1)[best.indices].tolist(), abs=0.00501
    )
    for name in ("embed", "block", "final_norm", "unembed"):
        assert f"{type(model).__name__}.{name}" in text


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    model, _ = minilens.load(folder)
    tokens = torch.tensor([[5, 17, 3]])

    def command(*options: str) -> str:
        assert main(["walk", "--ids", "5 17 3", "--model", str(folder), *options]) == 0
        return "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())

    assert shown(model, tokens, 0, width=80, tokenizer=None) in command()
    options = ("--layer", "2", "--position", "-2", "--head", "3")
    assert shown(model, tokens, 2, position=1, head=3, width=80, tokenizer=None) in command(*options)


def test_the_command_reads_text(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = changed(tiny("gpt2")[1], tmp_path / "gpt2", files={"tokenizer.json": tokenizer_json()})
    assert main(["walk", "once\x1b\n", "--model", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "↵; head 0 of 0 to 4" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layer", "3"], "layer 3 does not exist: the model's layers are 0 to 2"),
        (["--layer=-1"], "layer -1 does not exist: the model's layers are 0 to 2"),
        (["--head", "5"], "head 5 does not exist: the model's heads are 0 to 4"),
        (["--head", "-1"], "head -1 does not exist: the model's heads are 0 to 4"),
        (["--position", "3"], "position 3 does not exist: the text has 3 tokens, so positions 0 to 2"),
        (["--position", "-4"], "position -4 does not exist: the text has 3 tokens, so positions 0 to 2"),
        (["--layer", "x"], "argument --layer: invalid int value: 'x' (see minilens walk --help)"),
    ],
    ids=" ".join,
)
def test_what_does_not_exist(tiny: Tiny, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    assert main(["walk", "--ids", "5 17 3", "--model", str(tiny("gpt2")[1]), *options]) == 2
    assert capsys.readouterr() == ("", f"minilens: error: {message}\n")


def test_weights_that_are_not_finite(tiny: Tiny, tmp_path: Path) -> None:
    model, _ = minilens.load(changed(tiny("gpt2")[1], tmp_path / "model"))
    model.ln_final.w[3] = torch.nan  # type: ignore[index]
    with pytest.raises(ValueError, match="the logits at position 1 are not finite: there is a NaN or an infinity in"):
        walk_view(model, torch.tensor([[7, 8]]), layer=1)

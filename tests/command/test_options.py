"""How the command reads its arguments: requests, values that begin with a minus sign, tokens without a space."""

import argparse
import re
from dataclasses import FrozenInstanceError, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import changed, tokenizer_json
from conftest import Tiny
from safetensors.torch import load_file

import minilens
import minilens.command
from minilens.command.main import COMMANDS, _parser, main
from minilens.command.options import read

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def gpt2(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    files: dict[str, bytes | None] = {"tokenizer.json": tokenizer_json()}
    return changed(tiny("gpt2")[1], tmp_path_factory.mktemp("options") / "gpt2", files=files)


def request(*words: str) -> Any:
    args = _parser().parse_args(words)
    return read(args.command.request, args)


def refused(capsys: Capture, *words: str | Path) -> str:
    assert main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    return line.removeprefix("minilens: error: ")


def test_no_command_sees_a_namespace() -> None:
    for path in Path(minilens.command.__file__).parent.glob("[!_]*.py"):
        if path.stem not in ("main", "options"):
            assert not re.search(r"argparse|Namespace|getattr\(args", path.read_text()), path
    for command in COMMANDS:
        assert is_dataclass(command.request)


def test_a_request_is_frozen_and_has_the_groups_of_options() -> None:
    found = request("lens", "a", "--model", "x", "--dtype", "float64", "--zero", "0.z", "--zero", "1.z", "--top-k", "3")
    assert (found.source.prompt, found.source.model.name, found.source.model.loading.dtype) == ("a", "x", "float64")
    assert (found.edits.zero, found.edits.mean, found.top_k, found.centre) == (["0.z", "1.z"], [], 3, False)
    with pytest.raises(FrozenInstanceError):
        found.top_k = 4


# ---- Values that begin with a minus sign


@pytest.mark.parametrize("option", ["--positions", "--layers", "--pos", "--ids", "--track", "--decoder", "--html"])
@pytest.mark.parametrize("value", ["-3:", "-1,2", "-1", "-x", "-", "-3:-1"])
def test_a_value_may_begin_with_a_minus_sign(option: str, value: str) -> None:
    args = _parser().parse_args(["lens", option, value])
    name = {"--pos": "positions"}.get(option, option[2:])
    found = getattr(args, name)
    assert found == ([value] if option == "--track" else Path(value) if option == "--html" else value)
    assert args.prompt is None


def test_an_option_is_never_taken_for_a_value() -> None:
    args = _parser().parse_args(["lens", "--patterns", "--json", "--positions=-2:", "-"])
    assert (args.patterns, args.json, args.positions, args.prompt) == (":", True, "-2:", "-")
    args = _parser().parse_args(["lens", "--patterns", "-2:", "--json", "--", "--positions"])
    assert (args.patterns, args.json, args.prompt) == ("-2:", True, "--positions")
    assert _parser().parse_args(["lens", "--track", "a", "--zero=0.z", "--", "-3:"]).prompt == "-3:"
    assert _parser().parse_args(["walk", "--position", "-3", "--layer", "-1", "a"]).position == -3
    for words in (["--track", "--json"], ["--track", "--js"], ["--track", "--"], ["--track", "-h"], ["--top-k"]):
        with pytest.raises(ValueError, match=r"expected one argument; .* stands after =, as in --positions=-3:"):
            _parser().parse_args(["lens", *words])
    with pytest.raises(ValueError, match="unrecognized arguments: -foo: there is no such option, and a text that"):
        _parser().parse_args(["lens", "--json", "-foo"])
    with pytest.raises(ValueError, match="unrecognized arguments: -foo"):
        _parser().parse_args(["lens", "--zero=0.z", "-foo"])


def test_the_last_columns_and_rows_as_typed(gpt2: Path, capsys: Capture) -> None:
    typed = ["--positions", "-2:", "--layers", "-1:"]
    joined = ["--positions=-2:", "--layers=-1:"]
    shown = []
    for options in (typed, joined):
        assert main(["lens", "a red cat", "--model", str(gpt2), *options]) == 0
        shown.append(capsys.readouterr())
    assert shown[0] == shown[1] and shown[0].out


# ---- Tokens


def test_a_word_that_lacks_its_space(gpt2: Path, capsys: Capture) -> None:
    """Of this vocabulary "t" and " t" are tokens, and so is "A", but not " A"."""
    pair = ["patching", "a red cat", "e red cat", "--model", gpt2]
    ask = {"--track": ["lens", "a red cat", "--model", gpt2], "--right": pair, "--wrong": [*pair, "--right", "B"]}
    for option, command in ask.items():
        assert main([str(word) for word in (*command, option, "t")]) == 0
        assert capsys.readouterr().err == f"minilens: note: {option} 't' has no space before it: did you mean ' t'?\n"
        for token in ("A", " t", "#83"):
            assert main([str(word) for word in (*command, option, token)]) == 0
            assert capsys.readouterr().err == ""
        assert refused(capsys, *command, option, "cat as").endswith(
            "a word within a text often begins with a space. #464 is the token with that id"
        )


def test_a_word_that_is_a_token_only_after_a_space(capsys: Capture) -> None:
    sentence = refused(capsys, "lens", "a", "--track", "girl")
    assert sentence == (
        "--track takes one token, and 'girl' is 2: g irl; did you mean ' girl'? #464 is the token with that id"
    )


# ---- The model's device and dtype


RUNS = {
    "lens": ["a red cat"],
    "generate": ["a red cat", "--n", "1"],
    "trace": ["a red cat", "--out", "OUT"],
    "walk": ["a red cat"],
    "attribute": ["a red cat", "e red cat"],
    "patching": ["a red cat", "e red cat", "--right", "A"],
    "heads": ["--length", "3"],
    "geometry": [],
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", RUNS)
def test_every_command_that_runs_a_model_takes_a_dtype(
    gpt2: Path, tmp_path: Path, capsys: Capture, name: str, dtype: str
) -> None:
    words = [word.replace("OUT", str(tmp_path / "out")) for word in RUNS[name]]
    assert main([name, *words, "--model", str(gpt2), "--dtype", dtype, "--device", "cpu"]) == 0
    if name == "trace":
        assert load_file(tmp_path / "out")["logits"].dtype == getattr(torch, dtype)


def test_a_device_that_is_not_there(gpt2: Path, capsys: Capture) -> None:
    sentence = refused(capsys, "lens", "a", "--model", gpt2, "--device", "nowhere")
    assert "the device 'nowhere' cannot be used" in sentence


def test_the_dtype_is_the_models(gpt2: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """study and corpus name their models without --model."""
    asked: list[Any] = []

    def load(name: str, **how: Any) -> Any:
        asked.append((name, how["dtype"], how["device"], how["revision"]))
        raise ValueError("stop")

    monkeypatch.setattr("minilens.command.inputs.load", load)
    text = tmp_path / "text"
    text.write_text("a")
    loading = ["--dtype", "bfloat16", "--device", "cuda:7", "--revision", "r"]
    for words in (
        ["study", "x", "--out", str(tmp_path / "s")],
        ["corpus", "x", str(text), "--out", str(tmp_path / "c")],
    ):
        assert refused(capsys, *words, *loading) == "stop"
    for name, words in RUNS.items():
        words = [word.replace("OUT", str(tmp_path / "out")) for word in words]
        assert refused(capsys, name, *words, "--model", "x", *loading) == "stop"
    assert asked == [("x", torch.bfloat16, "cuda:7", "r")] * (2 + len(RUNS))
    assert "invalid choice: 'int8'" in refused(capsys, "lens", "a", "--dtype", "int8")


def test_the_version(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert (done.value.code, capsys.readouterr().out) == (0, f"minilens {minilens.__version__}\n")


def test_every_option_is_a_field_with_help() -> None:
    (commands,) = [each for each in _parser()._actions if isinstance(each, argparse._SubParsersAction)]
    assert list(commands.choices) == [command.name for command in COMMANDS]
    for parser in commands.choices.values():
        assert all(action.help for action in parser._actions)

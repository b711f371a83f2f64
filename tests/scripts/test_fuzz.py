"""scripts/fuzz.py: every case made by hand and a few of the drawn ones are clean, and what is not clean is seen."""

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import minilens
from minilens import CheckpointError

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))  # for fuzzing, beside it
SCRIPT: dict[str, Any] = runpy.run_path(str(SCRIPTS / "fuzz.py"))
sys.path.remove(str(SCRIPTS))
Case, KINDS = SCRIPT["Case"], SCRIPT["KINDS"]
LOAD = minilens.load


def test_every_case_is_refused_or_loads() -> None:
    """As a process of its own, in which nothing checks types: the library has to."""
    script = [sys.executable, str(SCRIPTS / "fuzz.py"), "--cases", "15", "--seed", "2020"]
    ran = subprocess.run(script, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(SCRIPTS.parent)})
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout
    rows = {
        name: [int(number) for number in numbers[:5]] for name, *numbers in map(str.split, ran.stdout.splitlines()[1:])
    }
    assert rows.keys() == {*KINDS, "all"}
    for kind, (cases, by_hand, refused, loaded, anything_else) in rows.items():
        assert cases == by_hand + 15 * (len(KINDS) if kind == "all" else 1)
        assert anything_else == 0
        assert by_hand > 70
        assert loaded > 5
        assert refused > 50 or kind == "values"


def crash(folder: Path) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def hang(folder: Path) -> Any:
    while True:
        pass


def bug(folder: Path) -> Any:
    raise KeyError("x")


def babble(folder: Path) -> Any:
    raise CheckpointError("It broke.\nHere is why.")


def greed(folder: Path) -> Any:
    torch.ones(2**28).sum()
    return LOAD(folder)


def write(folder: Path) -> Any:
    Path("../canary/new").touch()
    return LOAD(folder)


def change(folder: Path) -> Any:
    model, tokenizer = LOAD(folder)
    model.W_E[0, 0] += 1
    return model, tokenizer


@pytest.mark.parametrize(
    ("load", "outcome"),
    [
        (crash, "the process dies of SIGKILL: "),
        (hang, "it takes more than 1 seconds"),
        (bug, "KeyError: 'x': "),
        (babble, "it does not name the file: It broke."),
        (greed, "memory rises by 1,"),
        (write, "files were written: "),
        (change, "the logits differ"),
    ],
)
def test_what_is_not_clean_is_seen_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: Callable[[Path], Any], outcome: str
) -> None:
    monkeypatch.setattr(minilens, "load", load)
    monkeypatch.setitem(SCRIPT["survey"].__globals__, "SECONDS", 1 if load is hang else 10)
    results = SCRIPT["survey"]([Case("values", 0, "gpt2 torch.float64")] * 2, tmp_path)
    for _, result in results:  # a new process follows one that died
        assert result.outcome.startswith(outcome)
    assert (tmp_path / "offending" / "values-gpt2-torch-float64-0" / "config.json").is_file()
    assert SCRIPT["table"](results).splitlines()[1].split()[:6] == ["values", "2", "2", "0", "0", "2"]


def test_a_drawn_case_is_the_same_again(tmp_path: Path) -> None:
    for kind in KINDS:
        for name in ("one", "other"):
            SCRIPT["write"](kind, 7, "3", tmp_path / f"{kind} {name}")
        one, other = ({f.name: f.read_bytes() for f in (tmp_path / f"{kind} {n}").iterdir()} for n in ("one", "other"))
        assert one == other

"""scripts/gpu.py runs, as far as it can without a GPU."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

MAIN = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "gpu.py"))["main"]


def test_it_runs_on_the_cpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu"])
    assert MAIN() == 0
    said = capsys.readouterr().out
    assert said.count("right") == 6 and "WRONG" not in said
    assert said.count("tokens/s") == (5 if "gains nothing" in said else 6)


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert MAIN() == 2
    assert "there is no GPU that torch can use" in capsys.readouterr().err

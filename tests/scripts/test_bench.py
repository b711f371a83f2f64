"""scripts/bench.py runs; its figures are for a person to take, on a machine that does nothing else."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

ROOT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "bench.py"))


def test_it_runs_and_both_lenses_agree() -> None:
    command = [
        sys.executable,
        str(ROOT / "scripts" / "bench.py"),
        "--quick",
        "--repeat",
        "1",
        "lens",
        "patching",
        "short",
        "generation",
        "learned",
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "the same top tokens at 100.000%" in run.stdout
    assert run.stdout.count("a bare products") == 1
    assert "the same tokens: True" in run.stdout
    assert "KL(output ‖ row) differs by" in run.stdout


def test_the_checkpoints_of_loading_are_read_by_all_contenders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCRIPT["checkpoint"].__globals__, "SHARD", 50_000)
    for name in ("GPT2_XL", "GPT_NEO", "CTRL"):
        size = SCRIPT[name]._replace(**SCRIPT["TINY"])
        path = SCRIPT["checkpoint"](size, tmp_path)
        assert len(list(path.glob("*.safetensors"))) > 2
        reference = getattr(transformers, SCRIPT["CLASSES"][size.family])
        numbers = {}
        for what, load in SCRIPT["LOADERS"].items():
            found = list(SCRIPT["weights"](load(path, reference)))
            numbers[what] = sorted(weight.double().sum().item() for weight in found)
            assert {weight.dtype for weight in found} == {torch.bfloat16 if "bfloat16" in what else torch.float32}
        (stored, whole, half), rest = list(numbers.values())[:3], list(numbers.values())[3:]
        assert (stored, [whole, half]) == (whole, rest), name


def test_what_loading_measures(tmp_path: Path) -> None:
    size = SCRIPT["GPT2"]._replace(**SCRIPT["TINY"])
    path = SCRIPT["checkpoint"](size, tmp_path)
    command = [
        sys.executable,
        str(ROOT / "scripts" / "bench.py"),
        "_probe_loading",
        "minilens.load",
        str(path),
        "9",
        "1",
    ]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found["mapped"] == 0
    assert found["read MB"] >= size.megabytes
    assert min(found["load"], found["lens"]) > 0

"""scripts/machines.py: each line has its environment, and its row the counts; and the machine that is not there."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from rounding import OtherRounding

SCRIPTS = Path(__file__).parents[2] / "scripts"
TEST = """
import os, pytest
def test_this_line(): assert os.environ.get("MKL_CBWR") == "AVX2,STRICT"
def test_fails(): assert False
@pytest.mark.skip
def test_is_skipped(): pass
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.delenv("MKL_CBWR", raising=False)
    names = runpy.run_path(str(SCRIPTS / "machines.py"))
    names["SHARED"].clear()  # one process is enough for a test
    return names


def test_the_table(script: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test_one.py").write_text(TEST)
    tests = ["--", "--override-ini=addopts=", str(tmp_path)]
    assert script["main"](["MKL_CBWR=AVX2,STRICT", "as it is", *tests]) == 1
    named, _, _, _, *rows = capfd.readouterr().out.splitlines()
    assert f"torch {torch.__version__}" in named
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    note = "pytest's exit status 1"
    assert cells == [["MKL_CBWR=AVX2,STRICT", "1", "1", "1", note], ["as it is", "0", "2", "1", note]]
    assert script["main"](["MKL_CBWR=AVX2,STRICT", *tests, "-k", "this_line"]) == 0
    assert script["main"](["strict"]) == 2


def test_the_tests_of_numbers_are_there(script: dict[str, Any]) -> None:
    assert all((SCRIPTS.parent / path).exists() for path in script["NUMERIC"])


def test_a_processor_that_rounds_in_another_way() -> None:
    """By the layout of the operands, not by their values; whole numbers are exact, and no row depends on another."""
    one, other = torch.randn(2, 20, 30, generator=torch.Generator().manual_seed(0))
    across = other.T.contiguous().T
    with OtherRounding(1):
        assert torch.equal(one @ other.T, one @ other.T)
        assert not torch.equal(one @ other.T, one @ across.T)
        assert torch.allclose(one @ other.T, one @ across.T, rtol=1e-5, atol=1e-5)
        assert torch.equal((torch.cat([one[:9], other[9:]]) @ other.T)[:9], (one @ other.T)[:9])
        assert torch.equal(one.round() @ other.round().T, one.round() @ across.round().T)

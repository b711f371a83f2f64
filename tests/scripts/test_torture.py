"""scripts/torture.py: a little of each part finds nothing amiss, and what is amiss is seen."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import minilens

if not hasattr(os, "fork"):
    pytest.skip("this system cannot fork a process", allow_module_level=True)
SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))  # for fuzzing, beside it
SCRIPT: dict[str, Any] = runpy.run_path(str(SCRIPTS / "torture.py"))
sys.path.remove(str(SCRIPTS))


def test_a_little_of_each_part() -> None:
    script = [sys.executable, str(SCRIPTS / "torture.py"), "--quick"]
    ran = subprocess.run(script, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(SCRIPTS.parent)})
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in ran.stdout.splitlines()[2:]]
    assert [row[0] for row in rows if row[0] != "memory"] == ["kill", "full", "readonly", "threads"]
    assert {amiss for *_, amiss in rows} == {"0"}
    assert {"load", "logit_lens", "lens_page"} < {what for part, what, *_ in rows if part == "memory"}


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Of a command that writes two files at once."""

    def command(arguments: list[str]) -> int:
        for name in ("a", "b"):
            (Path(arguments[1]) / name).write_text(arguments[0])
        return 0

    monkeypatch.setitem(SCRIPT["start"].__globals__, "minilens_command", command)
    monkeypatch.setitem(SCRIPT["COMMANDS"], "two", ["TEXT", "OUT"])
    return SCRIPT["Scene"]("two", tmp_path, tmp_path, 0)


@pytest.mark.parametrize(
    ("name", "content", "amiss"),
    [
        ("a", None, "a is lost then"),
        ("a", b"hal", "a has 3 bytes, neither old nor new, then"),
        ("a", b"", "a has 0 bytes, neither old nor new, then"),
        ("a.123.0123456789abcdef", b"", "a.123.0123456789abcdef is left then"),
        ("c", b"c", "c has 1 bytes, neither old nor new, then"),
    ],
)
def test_files_that_are_amiss_are_seen(scene: Any, name: str, content: bytes | None, amiss: str) -> None:
    folder, there = scene.begin()
    scene.check(folder, there, "then")
    assert scene.amiss == []
    folder, there = scene.begin()
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    scene.check(folder, there, "then")
    assert amiss in scene.amiss


@pytest.mark.parametrize(
    ("status", "said", "is_well"),
    [(0, "", True), (2, "minilens: error: full", True), (2, "", False), (2, "minilens: error: x\n" * 2, False)]
    + [(status, "minilens: error: full", False) for status in (0, 1, 70)],
)
def test_a_failure_that_is_not_said_in_one_line_is_seen(
    scene: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int, said: str, is_well: bool
) -> None:
    def fails(arguments: list[str]) -> int:
        os.write(2, said.encode())
        return status

    monkeypatch.setitem(SCRIPT["start"].__globals__, "minilens_command", fails)
    scene.run(tmp_path)
    assert (scene.amiss == []) == is_well


def test_memory_that_grows_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bytes] = []
    monkeypatch.setattr(minilens, "__all__", ["trace"])
    found = {"keeps": lambda: kept.append(os.urandom(2**22)), "does not": lambda: os.urandom(2**22)}
    rows = {row.what: row.amiss for row in SCRIPT["memory"](found, 40)}
    assert rows["keeps"] == ["memory grows"]
    assert rows["does not"] == []
    assert rows["trace"] == ["no call of it in this script"]


def test_threads_that_see_one_another_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real, last = minilens.logit_lens, list[Any]()

    def of_another(model: Any, tokens: Any, **options: Any) -> Any:
        last.append(real(model, tokens, **options))
        return last[-1] if len(last) <= 8 else last[0]

    monkeypatch.setattr(minilens, "logit_lens", of_another)
    row = SCRIPT["threads"](1)
    assert row.outcome == "others" and row.amiss

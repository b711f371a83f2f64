"""Every command and every block of Python in README.md, run, with the output that is printed there."""

import io
import re
import runpy
import shlex
import subprocess
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from minilens.command.main import main

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
# What the test run itself does, or what would install something.
NOT_RUN = ("scripts/test", "pip install .")


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def test_python() -> None:
    """The blocks build on one another, as for somebody who types them in; the output of each follows it."""
    names: dict[str, object] = {}
    followers = [*BLOCKS[1:], ("", "")]
    ran = 0
    for (kind, code), (next_kind, expected) in zip(BLOCKS, followers, strict=True):
        if kind == "python":
            out = io.StringIO()
            with redirect_stdout(out):
                exec(compile(code, "README.md", "exec"), names)
            assert lines(out.getvalue()) == (lines(expected) if next_kind == "text" else []), code
            ran += 1
    assert ran >= 3


@pytest.mark.parametrize("block", [text for kind, text in BLOCKS if kind == "console"])
def test_commands(
    block: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, expected = step.partition("\n")
        if command in NOT_RUN:
            continue
        words = shlex.split(command)
        if words[0] == "printf":  # which makes the file that the next command reads
            subprocess.run(command, shell=True, check=True)
            continue
        if words[0] == "git":
            real = subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout
        else:
            if words[0] == ".venv/bin/python":
                status = runpy.run_path(str(ROOT / words[1]))["main"](words[2:])
            else:
                assert words[0] in ("scripts/lens", "minilens"), command
                status = main(["lens", *words[1:]] if words[0] == "scripts/lens" else words[1:])
            assert status == 0, command
            real = capsys.readouterr().out
        # In an excerpt, ... stands for lines that are left out.
        shown = (r"(.*\n)*?" if line == "..." else re.escape(f"{line}\n") for line in lines(expected))
        assert re.fullmatch("".join(shown), "\n".join([*lines(real), ""])), f"{command}\n{real}"

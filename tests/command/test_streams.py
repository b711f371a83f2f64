"""Streams that are closed or full, terminals of any width, and Ctrl-C."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import changed, tokenizer_json
from conftest import Tiny

import minilens
from minilens.command.main import main

FULL = Path("/dev/full")
NEEDS_FULL = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full on this system")
NEEDS_SH = pytest.mark.skipif(os.name != "posix", reason="a shell closes the streams")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def gpt2(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 with a tokenizer; verify finds a fault in it, so that its status is 1."""
    files: dict[str, bytes | None] = {"tokenizer.json": tokenizer_json()}
    return changed(tiny("gpt2")[1], tmp_path_factory.mktemp("streams") / "gpt2", files=files)


# Everything that prints, in one process: each command once, and what its status should be.
SCRIPT = """
import sys
from minilens.command.main import main
model = sys.argv[1]
found = []
for line in sys.argv[2:]:
    try:
        found.append(main(line.replace("MODEL", model).split()))
    except SystemExit as done:
        found.append(done.code)
import os
os.write(3, " ".join(map(str, found)).encode())
os._exit(0)
"""
PRINTS = [
    "lens a --model MODEL",
    "lens a --model MODEL --json",
    "lens a --model MODEL --csv",
    "patching a b --right A --model MODEL",
    "patching a b --right A --model MODEL --json",
    "attribute a --model MODEL",
    "attribute a --model MODEL --json",
    "generate a --n 2 --model MODEL",
    "generate a --n 2 --model MODEL --json",
    "walk a --model MODEL",
    "diff gpt2 ctrl",
    "heads --length 3 --batch 1 --model MODEL",
    "heads --length 3 --batch 1 --model MODEL --json",
    "geometry --model MODEL",
    "geometry --model MODEL --json",
    "verify MODEL",
    "verify MODEL --json",
    "models",
    "glossary KL",
    "--version",
    "--help",
    "lens --help",
]


def statuses(redirected: str, lines: list[str], gpt2: Path, tmp_path: Path) -> list[int]:
    """Of these commands, with streams redirected by a shell."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(minilens.__file__).parents[1]), "HF_HOME": str(tmp_path)}
    command = ["sh", "-c", f'exec "$@" 3>"{tmp_path}/found" {redirected}', "sh", sys.executable, script, gpt2, *lines]
    ran = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert "Traceback" not in ran.stderr
    return [int(status) for status in (tmp_path / "found").read_text().split()]


@NEEDS_SH
def test_stdout_that_is_closed(gpt2: Path, tmp_path: Path) -> None:
    assert statuses(">&-", PRINTS, gpt2, tmp_path) == [int(line.startswith("verify")) for line in PRINTS]


@NEEDS_SH
@NEEDS_FULL
def test_stdout_that_is_full(gpt2: Path, tmp_path: Path) -> None:
    assert statuses(f">{FULL}", PRINTS, gpt2, tmp_path) == [2] * len(PRINTS)


@NEEDS_SH
@NEEDS_FULL
def test_a_report_is_written_before_it_is_printed(gpt2: Path, tmp_path: Path) -> None:
    """What took minutes is not lost where stdout is full."""
    text = tmp_path / "text"
    text.write_text("Once upon a time there was a little girl. She had a red ball.")
    line = f"study tales-gpt2 --file {text} --out {tmp_path}/study"
    assert statuses(f">{FULL}", [line], gpt2, tmp_path) == [2]
    assert (tmp_path / "study" / "report.html").exists()


@NEEDS_SH
@NEEDS_FULL
@pytest.mark.parametrize("redirected", ["2>&-", f"2>{FULL}"], ids=["closed", "full"])
def test_stderr_that_is_closed_or_full(gpt2: Path, tmp_path: Path, redirected: str) -> None:
    """The work is done, and an error has the status that it always has."""
    text, out = tmp_path / "text", tmp_path / "out"
    text.write_text("once upon a time\n" * 3)
    works = [
        *([f"corpus MODEL {text} --lines --out {out}"] if redirected == "2>&-" else []),  # it takes the longest
        "verify MODEL",
        "patching a b --right A --model MODEL",
        f"trace a --model MODEL --out {tmp_path}/trace.safetensors",
        f"lens a --model MODEL --html {tmp_path}/lens.html",
    ]
    fails = ["lens a --model nowhere", "lens --positions", "nothing", f"trace a --out {tmp_path}/none/a"]
    expected = [int(line.startswith("verify")) for line in works] + [2] * len(fails)
    assert statuses(f"{redirected} >/dev/null", [*works, *fails], gpt2, tmp_path) == expected
    assert (out / "report.json").exists() == (redirected == "2>&-")
    assert (tmp_path / "trace.safetensors").exists() and (tmp_path / "lens.html").exists()


@NEEDS_SH
@NEEDS_FULL
@pytest.mark.parametrize(
    ("redirected", "arguments", "unbuffered"),
    [
        (f">{FULL}", "--help", ""),
        (f">{FULL}", "--help", "1"),
        (f">{FULL} 2>{FULL}", "lens --help", ""),
        (">&- 2>&-", "nothing", ""),
    ],
)
def test_what_is_left_in_buffers_changes_no_status(redirected: str, arguments: str, unbuffered: str) -> None:
    """As a process of its own, which flushes its streams when it ends."""
    shell = f'exec "{sys.executable}" -m minilens {arguments} {redirected} </dev/null'
    how: dict[str, Any] = dict(cwd=Path(minilens.__file__).parents[1])
    how["env"] = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    ran = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, **how)
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr and "Exception ignored" not in ran.stderr


@pytest.mark.parametrize("columns", ["9" * 20, "9" * 5000, "\u00b2", "0", "-5", "", "1"])
def test_any_number_of_columns(gpt2: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    for command in (["verify", str(gpt2)], ["lens", "a", "--model", str(gpt2)], ["diff", "gpt2", "ctrl"]):
        assert main(command) == (command[0] == "verify")
        out, err = capsys.readouterr()
        assert out and not err
        assert columns == "1" or max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to ..."), None])
def test_no_memory(gpt2: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, error: BaseException | None) -> None:
    """torch's error for the CPU's memory is a RuntimeError as any other; those stay what they are."""

    def load(*_: Any, **options: Any) -> Any:
        if error:
            raise error
        return torch.empty(2**50)

    monkeypatch.setattr("minilens.command.inputs.load", load)
    assert main(["lens", "a", "--model", str(gpt2)]) == 2
    why = "minilens: error: there is not enough memory: take a shorter text, a smaller model, or --dtype bfloat16\n"
    assert capsys.readouterr().err == why
    monkeypatch.setattr("minilens.command.inputs.load", lambda *_, **options: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        main(["lens", "a", "--model", str(gpt2)])


def as_from_a_terminal() -> None:
    """A shell starts what runs in the background deaf to Ctrl-C, and these tests may run there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(os.name != "posix", reason="a process signals itself")
@pytest.mark.parametrize("way", ["-m", "script"])
def test_ctrl_c_while_torch_is_imported(tmp_path: Path, way: str) -> None:
    """A module in torch's place stands for one whose import takes long."""
    (tmp_path / "torch.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    script = tmp_path / "minilens"  # as pip writes it
    script.write_text("import sys\nfrom minilens.__main__ import main\nsys.exit(main())\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(minilens.__file__).parents[1]}"}
    command = [sys.executable, *(["-m", "minilens"] if way == "-m" else [str(script)]), "--help"]
    options: dict[str, Any] = dict(capture_output=True, text=True, timeout=300, preexec_fn=as_from_a_terminal)
    ran = subprocess.run(command, env=environment, cwd=tmp_path.parent, **options)
    assert (ran.returncode, ran.stdout, ran.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.skipif(os.name != "posix", reason="a process signals itself")
def test_ctrl_c_is_an_exception_again_when_the_command_runs(tmp_path: Path) -> None:
    """And garbage is collected again. In a program that imports minilens it never is otherwise."""
    script = tmp_path / "minilens"
    script.write_text(
        "import gc, os, signal, sys\n"
        "from minilens import __main__\n"
        "import minilens.command.main\n"
        "print(gc.isenabled())\n"
        "def interrupted(): print(gc.isenabled(), flush=True); os.kill(os.getpid(), signal.SIGINT); signal.pause()\n"
        "minilens.command.main.main = interrupted\n"
        "sys.exit(__main__.main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(minilens.__file__).parents[1])}
    options: dict[str, Any] = dict(capture_output=True, text=True, timeout=300, preexec_fn=as_from_a_terminal)
    ran = subprocess.run([sys.executable, str(script)], env=environment, **options)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "False\nTrue\n", "")
    (tmp_path / "torch.py").write_text(
        "import gc, signal\n"
        "print(gc.isenabled(), signal.getsignal(signal.SIGINT) is signal.default_int_handler)\n"
        "raise SystemExit"
    )
    environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{environment['PYTHONPATH']}"
    ran = subprocess.run([sys.executable, "-c", "import minilens"], env=environment, **options)
    assert ran.stdout == "True True\n"

"""The test suite as on other machines: with every path through the libraries that a variable of the environment opens.

    python scripts/machines.py                                every line of the matrix
    python scripts/machines.py MKL_CBWR=COMPATIBLE            this line; any assignment may be one
    python scripts/machines.py --numeric                      the tests of numbers alone
    python scripts/machines.py --numeric -- -k parity         what follows -- goes to pytest

A processor rounds products of matrices in its own way, and so do its libraries, by the instructions that they choose,
the threads, and how operands lie in memory. MKL_CBWR=COMPATIBLE takes MKL's oldest path. OTHER_ROUNDING stands for
machines that are not there: see tests/rounding.py. It is for tests of numbers only, since it does not reach the threads
and processes that others start. pytest prints to standard error; the table follows on standard output. Exit status 1 if
a line failed.
"""

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from parity import machine

ROOT = Path(__file__).parents[1]
AS_IT_IS = "as it is"
MATRIX = (
    AS_IT_IS,
    "MKL_CBWR=COMPATIBLE",
    "MKL_CBWR=AVX2,STRICT",
    "ATEN_CPU_CAPABILITY=default",
    "ATEN_CPU_CAPABILITY=avx2",
    "OMP_NUM_THREADS=1",
    "OMP_NUM_THREADS=4",
    "ONEDNN_MAX_CPU_ISA=SSE41",
    "OPENBLAS_CORETYPE=Prescott",
    "OPENBLAS_NUM_THREADS=1",
)
IN_NUMBERS = "OTHER_ROUNDING=1"  # a line for the tests of numbers
NUMERIC = (
    "tests/test_parity.py",
    "tests/test_run.py",
    "tests/test_lens.py",
    "tests/test_vocab.py",
    "tests/test_edits.py",
    "tests/test_loading.py",
    "tests/test_weights.py",
    "tests/test_cuda.py",
    "tests/scripts/test_parity_script.py",
    "tests/checks",
    "tests/instruments",
    "tests/corpus",
    "tests/study",
    "tests/views/test_walk.py",
)
RESULTS = ["passed", "failed", "skipped"]
SHARED = ["--numprocesses", "2", "--dist", "worksteal"]  # as in scripts/test


def check(line: str, tests: tuple[str, ...], arguments: list[str]) -> tuple[list[str], bool]:
    """Run the tests in one environment: its row of the table, and whether all is well."""
    environ = dict(os.environ)
    if line != AS_IT_IS:
        environ.update([line.split("=", 1)])
    with tempfile.TemporaryDirectory(prefix="minilens-machines-") as folder:
        report = Path(folder) / "report.xml"
        pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *SHARED, *tests, *arguments]
        print(f"\n{line}: {shlex.join(pytest)}", file=sys.stderr, flush=True)
        command = [*pytest, f"--junit-xml={report}"]
        status = subprocess.run(command, cwd=ROOT, env=environ, stdout=sys.stderr).returncode
        counts = ["", "", ""]
        if report.exists():
            (suite,) = ElementTree.parse(report).getroot()
            total, failures, errors, skipped = (
                int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped")
            )
            counts = [str(n) for n in (total - failures - errors - skipped, failures + errors, skipped)]
    return [line, *counts, f"pytest's exit status {status}" if status else ""], status == 0


def table(rows: list[list[str]]) -> str:
    """In Markdown, with columns of even width."""
    cells = [["environment", *RESULTS, "note"], *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in cells)


def main(words: list[str]) -> int:
    cut = words.index("--") if "--" in words else len(words)
    lines, arguments = [word for word in words[:cut] if word != "--numeric"], words[cut + 1 :]
    tests = NUMERIC if "--numeric" in words[:cut] else ()
    if wrong := [line for line in lines if line != AS_IT_IS and "=" not in line]:
        print(f"machines: error: {wrong[0]!r} is no assignment such as {MATRIX[1]}", file=sys.stderr)
        return 2
    found = [check(line, tests, arguments) for line in lines or (*MATRIX, *[IN_NUMBERS] * bool(tests))]
    print(f"{machine()}\n\n{table([row for row, _ in found])}")
    return 0 if all(good for _, good in found) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""The test suite on every Python that minilens names, with the pinned versions and with the lowest ones it allows.

    python scripts/versions.py                                every environment
    python scripts/versions.py 3.13-pinned 3.10-lowest        these
    python scripts/versions.py 3.13-pinned -- -k "not page"   what follows -- goes to pytest

Each environment is made afresh with uv in a temporary folder, and deleted after its run. The pinned versions are those
of constraints.txt; the lowest are the bounds of pyproject.toml, where the warnings of other packages are not errors.
A Python that is neither on the PATH nor in pyenv is fetched by uv. pytest prints to standard error; the table follows
on standard output. Exit status 1 if an environment whose Python is to be had could not be made, or failed, or if there
was none. Needs Python 3.11, a network, and 20 GB for torch with its CUDA libraries.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import tomllib

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ["3.10-lowest", *(f"3.{minor}-pinned" for minor in range(10, 15))]
PACKAGES = ["torch", "numpy", "safetensors", "huggingface-hub", "tokenizers", "rich", "jaxtyping", "transformers"]
RESULTS = ["passed", "failed", "skipped"]
SHARED = ["--numprocesses", "2", "--dist", "worksteal"]  # as in scripts/test
# Old packages beside new ones warn of one another; what minilens does to be warned of remains an error.
OWN_WARNINGS = ["-o", "filterwarnings=default\nerror:::minilens"]


def command(*words: object, **options: object) -> str:
    """What the command prints; a RuntimeError with the last line of its complaint if it fails."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, **options)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(lines[-1].strip())
    return done.stdout


def interpreter(version: str) -> str:
    """This version's Python on the PATH or in pyenv; else the version itself, for uv to find or fetch."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for path in (shutil.which(f"python{version}"), *pyenv.glob(f"{version}.*/bin/python{version}")):
        done = subprocess.run([path, "--version"], capture_output=True) if path else None
        if done and done.returncode == 0:  # pyenv puts a python3.10 on the PATH that only says where the real one is
            return str(path)
    return version


def constraints(kind: str, work: Path) -> Path:
    """The file that says which versions are to be installed."""
    if kind == "pinned":
        return ROOT / "scripts/constraints.txt"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = [*project["dependencies"], *project["optional-dependencies"]["plot"]]
    lowest = work / "lowest.txt"
    lowest.write_text("\n".join(bounds).replace(">=", "=="))
    return lowest


def check(name: str, work: Path, arguments: list[str]) -> tuple[dict[str, str], bool]:
    """Make one environment and run the suite in it: its row of the table, and whether all is well."""
    version, kind = name.split("-")
    row = {"environment": name}
    uv, venv, report = work / "tools/bin/uv", work / "venv", work / "report.xml"
    report.unlink(missing_ok=True)
    environ = {"UV_CACHE_DIR": str(work / "cache"), "UV_PYTHON_INSTALL_DIR": str(work / "pythons"), **os.environ}
    python = interpreter(version)
    try:
        command(uv, "venv", "--clear", "--python", python, venv, env=environ)
    except RuntimeError as error:
        try:
            command(uv, "python", "find", python, env=environ)
        except RuntimeError:
            return row | {"note": f"no Python {version} to be had here: {error}"}, True
        return row | {"note": f"could not be made: {error}"}, False
    try:
        wanted = ["--constraint", constraints(kind, work), "--editable", f"{ROOT}[test]"]
        command(uv, "pip", "install", "--python", venv, *wanted, env=environ)
        listed = json.loads(command(uv, "pip", "list", "--python", venv, "--format", "json", env=environ))
    except RuntimeError as error:
        return row | {"note": f"could not be made: {error}"}, False
    found = {package["name"]: package["version"] for package in listed}
    row["Python"] = command(venv / "bin/python", "--version").split()[1]
    row |= {package: found[package] for package in PACKAGES}

    own = OWN_WARNINGS if kind == "lowest" else []
    options = ["-rs", "--tb=short", "-p", "no:cacheprovider", *SHARED, *own, *arguments]
    pytest = [venv / "bin/python", "-m", "pytest", *options]
    print(f"\n{name}: {shlex.join(map(str, pytest))}", file=sys.stderr, flush=True)
    status = subprocess.run([*pytest, f"--junit-xml={report}"], cwd=ROOT, stdout=sys.stderr).returncode
    if report.exists():
        (suite,) = ElementTree.parse(report).getroot()
        total, failures, errors, skipped = (int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped"))
        row |= zip(RESULTS, map(str, (total - failures - errors - skipped, failures + errors, skipped)), strict=True)
    return row | ({"note": f"pytest's exit status {status}"} if status else {}), status == 0


def table(rows: list[dict[str, str]]) -> str:
    """In Markdown, with columns of even width."""
    names = ["environment", "Python", *PACKAGES, *RESULTS, "note"]
    cells = [names, *([row.get(name, "") for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in cells)


def main(words: list[str]) -> int:
    cut = words.index("--") if "--" in words else len(words)
    names, arguments = words[:cut] or ENVIRONMENTS, words[cut + 1 :]
    if unknown := [name for name in names if name not in ENVIRONMENTS]:
        print(f"versions: error: no environment {unknown[0]!r}; there are {', '.join(ENVIRONMENTS)}", file=sys.stderr)
        return 2
    rows, well = [], True
    with tempfile.TemporaryDirectory(prefix="minilens-versions-") as folder:
        work = Path(folder)
        command(sys.executable, "-m", "venv", work / "tools")
        command(work / "tools/bin/pip", "install", "uv")
        for name in names:
            row, good = check(name, work, arguments)
            rows.append(row)
            well &= good
    print(table(rows))
    return 0 if well and any("passed" in row for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

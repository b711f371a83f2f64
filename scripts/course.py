"""The notebooks of the course: docs/course/student and docs/course/solution, made from docs/course/lessons.

    python scripts/course.py           check that they are as they would be made now
    python scripts/course.py --write   make them
    python scripts/course.py --run     run every one (needs nbclient and ipykernel): the solutions are right, and in the
                                       student's edition each blank is told from an answer
    python scripts/course.py --mistakes    how many of the mistakes in tests/course/planted.py `minilens check` finds

A lesson is a Python file of cells. `# %% text` begins a text, `# %% code` code, `# %% exercise 1.2, 10 minutes` an
exercise: its question in comments, with lines that begin with "hint:" and "null:"; code that is given; and below
`# solution` the lines that the student's edition leaves out. The last of them assigns answer_1_2, which
minilens.course.lessons.check_1_2 looks at; `# with: lens` names what that is given too.
"""

import json
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LESSONS = ROOT / "docs" / "course" / "lessons"
EDITIONS = ("student", "solution")
ADDRESS = re.search(
    r'^Repository = "(https://github\.com/[^"/]+/[^"/]+)"$', (ROOT / "pyproject.toml").read_text(), re.M
)
SET_UP = """import importlib.util

if not importlib.util.find_spec("minilens"):  # as on Colab
    %pip install -q {}"""
IMPORTS = "\n".join([
    "import torch",
    "",
    "import minilens",
    "from minilens.course import lessons",
    "from minilens.course.lessons import GAVE, STORY",
])  # fmt: skip


def notebook(lesson: Path, edition: str, address: str = ADDRESS[1] if ADDRESS else "") -> dict[str, Any]:
    """A lesson as a notebook, for students or with the solutions.

    address: of the repository on GitHub. Where there is one, the notebook installs minilens from it and has a link that
    opens it in Colab.
    """
    cells = [("code", SET_UP.format(f"git+{address}" if address else "minilens")), ("code", IMPORTS)]
    parts = re.split(r"^# %% (.+)\n", lesson.read_text(), flags=re.MULTILINE)[1:]
    for kind, text in zip(parts[::2], parts[1::2], strict=True):
        cells += [("markdown", _uncommented(text))] if kind == "text" else []
        cells += [("code", text.strip())] if kind == "code" else []
        cells += _exercise(kind, text, edition) if kind.startswith("exercise") else []
    (first, *_) = [at for at, (kind, _) in enumerate(cells) if kind == "markdown"]
    title = cells.pop(first)[1]
    if address:
        place = f"{address.removeprefix('https://github.com/')}/blob/main/docs/course/{edition}/{lesson.stem}.ipynb"
        title += f"\n\n[Open in Colab](https://colab.research.google.com/github/{place})"
    cells.insert(0, ("markdown", title))  # above the set-up
    return {
        "cells": [_cell(kind, text, f"{lesson.stem}-{at}") for at, (kind, text) in enumerate(cells)],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _exercise(head: str, text: str, edition: str) -> Iterator[tuple[str, str]]:
    """The question, the code to write, and the check."""
    number, minutes = re.fullmatch(r"exercise (\S+), (\d+) minutes", head).groups()  # type: ignore[union-attr]
    name = number.replace(".", "_")
    above, solution = text.split("# solution\n")
    question, given = re.fullmatch(r"((?:#[^\n]*\n)*)(.*)", above, re.DOTALL).groups()  # type: ignore[union-attr]
    told, *marked = re.split(r"\n(?=hint: |null: |with: )", _uncommented(question))
    marks = [each.split(": ", 1) for each in marked]
    hints, nulls, others = ([each for mark, each in marks if mark == kind] for kind in ("hint", "null", "with"))
    shown = [f"### Exercise {number} ({minutes} minutes)", told]
    shown += [f"<details><summary>Hint {n}</summary>\n\n{hint}\n\n</details>" for n, hint in enumerate(hints, 1)]
    yield "markdown", "\n\n".join([*shown, *(f"**If nothing were there:** {each}" for each in nulls)])
    yield "code", (given + (solution if edition == "solution" else f"answer_{name} = ...")).strip()
    yield "code", f"lessons.check_{name}({', '.join([f'answer_{name}', *others])})"


def _uncommented(text: str) -> str:
    return re.sub(r"^# ?", "", text.strip(), flags=re.MULTILINE)


def _cell(kind: str, text: str, name: str) -> dict[str, Any]:
    cell: dict[str, Any] = {"cell_type": kind, "id": name, "metadata": {}, "source": text.splitlines(keepends=True)}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def made() -> dict[Path, str]:
    """All notebooks, as they would be made now."""
    return {
        ROOT / "docs" / "course" / edition / f"{lesson.stem}.ipynb": json.dumps(notebook(lesson, edition), indent=1)
        + "\n"
        for lesson in sorted(LESSONS.glob("*.py"))
        for edition in EDITIONS
    }


def run(path: Path) -> list[str]:
    """What the checks of a notebook print, when it is run from top to bottom."""
    import nbformat
    from nbclient import NotebookClient

    ran = NotebookClient(nbformat.read(path, as_version=4), timeout=300, kernel_name="python3").execute()
    return [
        "".join(output["text"] for output in cell["outputs"] if output["output_type"] == "stream")
        for cell in ran["cells"]
        if cell["cell_type"] == "code" and cell["source"].startswith("lessons.check_")
    ]


def mistakes() -> int:
    """Print a table of the planted mistakes: of how many the line is found, the mistake named, another one named."""
    planted = runpy.run_path(str(ROOT / "tests" / "course" / "planted.py"))
    print("| family | planted | line found | mistake named | wrongly named |", "|---|---|---|---|---|", sep="\n")
    wrong = 0
    for family in ("gpt2", "gpt_neo", "ctrl"):
        n, *off = planted["measured"](family)
        missed, unnamed, misnamed = map(len, off)
        named = n - missed - unnamed - misnamed
        print(f"| {family} | {n} | {1 - missed / n:.0%} | {named / n:.0%} | {misnamed / n:.0%} |")
        wrong += missed + misnamed
    return 1 if wrong else 0


def main() -> int:
    if "--mistakes" in sys.argv:
        return mistakes()
    wrong = 0
    for path, text in made().items():
        name = path.relative_to(ROOT)
        if "--write" in sys.argv:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        elif not path.is_file() or path.read_text() != text:
            print(f"{name} is not as it would be made now: run scripts/course.py --write")
            wrong += 1
        if "--run" in sys.argv:
            want = "Right. " if path.parent.name == "solution" else "Not yet: "
            told = run(path)
            off = [each for each in told if not each.startswith(want)]
            print(f"{name}: {len(told) - len(off)} of {len(told)} checks say {want.strip()}", *off, flush=True)
            wrong += bool(off or not told)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

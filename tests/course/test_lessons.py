"""The lessons: the notebooks are those that the script makes, the solutions are right, and a blank is told as one."""

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from minilens.course import lessons

ROOT = Path(__file__).parents[2]
course = SimpleNamespace(**runpy.run_path(str(ROOT / "scripts" / "course.py")))
LESSONS = sorted(course.LESSONS.glob("*.py"))
NAMES = [name for name in dir(lessons) if name.startswith("check_")]


def test_the_notebooks_are_as_they_would_be_made_now() -> None:
    assert {path: path.read_text() for path in course.made()} == course.made()


def test_every_exercise_has_a_check_hints_and_a_null() -> None:
    texts = [
        "".join(cell["source"])
        for lesson in LESSONS
        for cell in course.notebook(lesson, "student")["cells"]
        if "### Exercise" in "".join(cell["source"])
    ]
    assert len(texts) == len(NAMES) and all("Hint 1" in each and "If nothing were there" in each for each in texts)


def test_a_known_address_gives_a_link_to_colab_and_the_place_to_install_from() -> None:
    (plain, first), (linked, second) = (
        ["".join(cell["source"]) for cell in course.notebook(LESSONS[0], "student", address)["cells"][:2]]
        for address in ("", "https://github.com/a/b")
    )
    place = "https://colab.research.google.com/github/a/b/blob/main/docs/course/student/1_tokens.ipynb"
    assert linked == f"{plain}\n\n[Open in Colab]({place})"
    assert first.endswith("install -q minilens") and second.endswith("install -q git+https://github.com/a/b")


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
def test_a_lesson_runs_in_both_editions(lesson: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cell after cell, as a notebook runs them; in the student's edition with every blank left as it is."""
    for edition, said in (("student", "Not yet: write code"), ("solution", "Right. ")):
        names: dict[str, Any] = {}
        told = []
        for cell in course.notebook(lesson, edition)["cells"]:
            code = "".join(cell["source"])
            if cell["cell_type"] == "code" and "%pip" not in code:
                exec(code, names)
                if code.startswith("lessons.check_"):
                    told.append(capsys.readouterr().out)
        assert len(told) == 3 and all(f"\n{said}" in f"\n{each}" for each in told), told


def test_a_notebook_runs_in_jupyter() -> None:
    """One of them; scripts/course.py --run runs them all."""
    told = course.run(ROOT / "docs" / "course" / "solution" / "1_tokens.ipynb")
    assert len(told) == 3 and all(each.startswith("Right. ") for each in told)


@pytest.mark.parametrize(
    "name, answer, told",
    [
        ("check_1_1", [596, 519, 1], "has 3 parts, and should have 23"),
        ("check_1_1", [0] * 23, "is right up to part 0"),
        ("check_1_1", 5, "is a int, and should be a list of 23"),
        ("check_1_3", 0.5, "differs at 1 of 1 places"),
        ("check_2_1", torch.zeros(1, 8, 23, 22), "has the shape [1, 8, 23, 22]"),
        ("check_2_3", [0.1, 0.2], "differs at 2 of 2 places"),
        ("check_3_2", None, "is None"),
        ("check_3_2", torch.full((9,), torch.nan), "is NaN"),
    ],
)
def test_a_wrong_answer_is_told_by_how_it_differs(
    name: str, answer: Any, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    getattr(lessons, name)(answer)
    out = capsys.readouterr().out
    assert out.startswith("Not yet: the answer ") and told in out

"""A student's file in a process of its own, and the two commands; what an exercise looks like."""

import re
from pathlib import Path

import pytest

from minilens.command.main import main
from minilens.course.exercise import HINTS, exercise, solution
from minilens.course.glossary import glossary
from minilens.loading import FAMILIES


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return tmp_path / "my_gpt2.py"


def test_a_solution_is_right_and_what_it_prints_is_shown(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine.with_name("beside.py").write_text("WORD = 'seen\\x1b[2J'")
    assert main(["exercise", "gpt2", str(mine), "--solution"]) == 0
    mine.write_text(mine.read_text() + "\n\nfrom beside import WORD\n\nprint(WORD)\n")
    assert main(["check", str(mine)]) == 0
    out = capsys.readouterr().out
    assert "The file printed:\n  seen\\x1b[2J\n" in out and "this is the whole model" in out


@pytest.mark.parametrize(
    "right, wrong, told",
    [
        ("z = pattern @ v", "while True: merge_heads(v)", "line {line} is not done after 1 seconds"),
        ("return F.linear(x, W.mT, b)", "__import__('os')._exit(3)", "ended its process, with the status 3"),
    ],
)  # fmt: skip
def test_what_stops_the_check_is_said(
    right: str, wrong: str, told: str, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = solution("gpt2").replace(right, wrong)
    mine.write_text(source)
    assert main(["check", str(mine), "--limit", "1"]) == 1
    line = source[: source.index(wrong)].count("\n") + 1
    assert told.format(line=line) in " ".join(capsys.readouterr().out.split())


def test_what_cannot_be_checked_is_an_error(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(mine)]) == 2
    assert capsys.readouterr().err == f"minilens: error: {mine} cannot be read: No such file or directory\n"
    assert main(["check", str(mine), "--limit", "0"]) == 2
    mine.write_text("#" * 2**20 + "\n")
    assert main(["check", str(mine)]) == 2 and "has more than 1,048,576 bytes" in capsys.readouterr().err
    if Path("/dev/zero").exists():
        assert main(["check", "/dev/zero"]) == 2 and "a device" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, told",
    [
        (["gpt3", "a.py"], 'there is no family "gpt3"; there are gpt2, gpt_neo, ctrl'),
        (["gpt2", "a.py", "--from", "gpt2"], "gpt2 is named twice"),
        (["gpt2", "a.py", "--from", "ctrl", "--solution"], "--solution and --from are both given"),
        (["gpt2", "a.txt"], "must end in .py"),
        (["gpt2", "there.py"], "there.py exists"),
    ],
)
def test_an_exercise_that_cannot_be_written_is_an_error(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.py").write_text("mine")
    assert main(["exercise", *words]) == 2
    assert told in capsys.readouterr().err and Path("there.py").read_text() == "mine"


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exercise_has_a_blank_and_a_hint_for_each_line(family: str) -> None:
    """The same functions and lines as the solution; beside each blank of `block` its hint."""
    empty, right = exercise(family), solution(family)
    assert re.findall(r"def \w+|^ +\w+(?:, \w+)* =", empty, re.MULTILINE) != []
    blanks = re.findall(r"^ +(\w+(?:, \w+)*) = \.\.\.(?:, \.\.\.)*  # (.+)", empty, re.MULTILINE)
    lines = re.findall(
        r"^ {8,12}(\w+(?:, \w+)*) = (?!self\.blocks|resid\b)", right[right.index("def block") :].split("def ")[1], re.M
    )
    assert [names for names, _ in blanks] == lines
    assert all(any(hint in told for hint in HINTS[names]) for names, told in blanks)
    assert empty.count("return ...") == right.count("def ") - 1
    assert not re.search(r"\bat\(|check_\w+\(|ValueError", right)
    assert max(map(len, empty.splitlines())) <= 120


def test_each_hint_has_its_line() -> None:
    text = "".join(exercise(family) for family in FAMILIES)
    assert [hint for hints in HINTS.values() for hint in hints if hint not in text] == []


# ---- The glossary


@pytest.mark.parametrize(
    "word, told",
    [
        ("logit", "logit (the model)\n  a token's score as the next one"),
        ("Logits", "logit (the model)\n"),
        ("kl", "KL(p ‖ q) (information)\n"),
        ("resid_mid", "resid_mid, mid (places in a block)\n"),
        ("  residual  Stream", "residual stream, resid (the model)\n"),
        ("residual", "residual stream, resid (the model)\n"),
        ("neurons", "MLP (the model)\n"),  # found in what it means
    ],
)
def test_a_word_is_looked_up(word: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["glossary", word]) == 0
    assert told in capsys.readouterr().out


def test_all_words_are_shown_and_an_unknown_one_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["glossary"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for entry in glossary() for word in entry.words) and len(glossary()) > 40
    assert main(["glossary", "logtis"]) == 2
    assert capsys.readouterr().err == 'minilens: error: the glossary has no "logtis": did you mean logit?\n'
    assert main(["glossary", "\x1b[2J"]) == 2
    assert "\x1b" not in capsys.readouterr().err

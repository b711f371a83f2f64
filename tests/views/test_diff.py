"""The difference of two families: every line of mathematics that differs, with the reasons of the docstrings."""

import inspect
import io
from itertools import pairwise, permutations

import pytest
from rich.console import Console

from minilens.command.main import main
from minilens.loading import FAMILIES
from minilens.views.diff import METHODS, departures, diff_view

CLASSES = {"gpt2": "GPT2", "gpt_neo": "GPTNeo", "ctrl": "CTRL"}
NOT_A_LINE = {"build"}  # departures that stand in no method of a forward pass


def shown(first: str, second: str) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=1000, highlight=False).print(diff_view(first, second))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def code(family: str, method: str) -> set[str]:
    """The lines of a method, without comments."""
    lines = inspect.getsource(getattr(getattr(FAMILIES[family], CLASSES[family]), method)).splitlines()
    return {line.partition("  # ")[0].strip() for line in lines} - {""}


@pytest.mark.parametrize(("first", "second"), [*permutations(FAMILIES, 2)])
def test_every_line_that_differs_and_no_other(first: str, second: str) -> None:
    lines = shown(first, second)
    for sign, here, there in (("-", first, second), ("+", second, first)):
        found = [line.split("  ", 1)[1].strip() for line in lines if line.startswith(f"{sign} {here}.py:")]
        found = [line.partition("  # ")[0] for line in found if not line.startswith("#")]
        wanted = [line for method in METHODS for line in code(here, method) - code(there, method)]
        assert sorted(found) == sorted(wanted)
        for line in lines:  # the numbers are those of the file
            if line.startswith(f"{sign} {here}.py:"):
                place, source = line.removeprefix(f"{sign} {here}.py:").split("  ", 1)
                real = inspect.getsource(FAMILIES[here]).splitlines()[int(place) - 1]
                assert real.strip().startswith(source.strip())


@pytest.mark.parametrize(("first", "second"), [*permutations(FAMILIES, 2)])
def test_every_group_has_its_reasons(first: str, second: str) -> None:
    """Below the last line of each group stands why; every departure of either family is told."""
    lines = shown(first, second)
    assert not any(line.startswith(("- ", "+ ")) and not after for line, after in pairwise(lines))
    text = "\n".join(lines)
    shared = departures(FAMILIES["gpt2"])
    for family, other in ((first, second), (second, first)):
        own = departures(FAMILIES[family])
        for name, reason in own.items() if family != "gpt2" else ():
            theirs = (shared | departures(FAMILIES[other])).get(name)
            if name not in NOT_A_LINE and reason != theirs:
                assert reason in text, name
                assert theirs is None or theirs in text, name


@pytest.mark.parametrize("family", FAMILIES)
def test_departures_are_named(family: str) -> None:
    """A bullet without a name would be told nowhere."""
    bullets = [line for line in (FAMILIES[family].__doc__ or "").splitlines() if line.startswith("- ")]
    assert len(bullets) >= 4
    assert all(line.startswith("- `") for line in bullets)
    assert {"q", "k", "v", "scores"} <= departures(FAMILIES[family]).keys()


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "gpt2", "gpt_neo"]) == 0
    assert "final_norm: the same lines in both" in capsys.readouterr().out
    assert main(["diff", "gpt2", "gptneo"]) == 2
    assert capsys.readouterr().err == 'minilens: error: there is no family "gptneo"; there are gpt2, gpt_neo, ctrl\n'
    assert main(["diff", "ctrl", "ctrl"]) == 2
    assert "ctrl is named twice" in capsys.readouterr().err

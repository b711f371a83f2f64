"""The rules of the house that a machine can check."""

import ast
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "minilens"

# A file imports from the lines above its own, or from its own wing. What stands on one line never meets.
ORDER = """
shapes | arguments | device | files | version
ops | traces | vocab | checkpoint/
gpt2 | gpt_neo | ctrl | model
edits | loading
lens
table | instruments/ | corpus/
study/ | checks/ | learned/ | course/
views/
__init__ | live/
command/
__main__
"""
LINE = {room.strip(" /"): number for number, line in enumerate(ORDER.split("\n")) for room in line.split("|")}
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imports(name: str) -> set[str]:
    """The modules of minilens that a file imports, within functions too; a name from the package's face is its face."""
    parts = ("minilens." + name).split(".") if name != "__init__" else ["minilens", "__init__"]
    package = parts if FILES[name].name == "__init__.py" and name != "__init__" else parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            found |= {known(f"{module}.{alias.name}") or known(module) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {known(alias.name) for alias in node.names}
    return found - {""}


def known(module: str) -> str:
    """The file of minilens with this name, or nothing."""
    name = "__init__" if module == "minilens" else module.removeprefix("minilens.") if "." in module else ""
    return name if module.startswith("minilens") and name in FILES else ""


def test_every_file_has_its_place() -> None:
    assert {name.partition(".")[0] for name in FILES} <= LINE.keys()


@pytest.mark.parametrize("name", FILES)
def test_imports_go_down_the_list(name: str) -> None:
    room = name.partition(".")[0]
    for other in imports(name):
        theirs = other.partition(".")[0]
        assert theirs == room or LINE[theirs] < LINE[room], f"{name} imports {other}"


def test_no_file_imports_itself_by_way_of_others() -> None:
    left = {name: imports(name) - {name} for name in FILES}
    while ready := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in ready:
            del left[name]
    assert not left


def test_a_long_file_has_a_reason() -> None:
    """The table of docs/design.md names the files above 250 lines, and no others."""
    named = re.findall(r"^\| `(.+\.(?:py|js))` \|", (ROOT / "docs" / "design.md").read_text(), re.MULTILINE)
    files = [path for kind in ("*.py", "*.js") for path in PACKAGE.rglob(kind)]
    long = [path for path in files if len(path.read_text().splitlines()) > 250]
    assert sorted(named) == sorted(path.relative_to(PACKAGE).as_posix() for path in long)


@pytest.mark.parametrize("line", ["from . import load", "from .. import __version__", "import minilens"])
def test_the_face_is_seen_as_an_import(line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "measure.py"
    path.write_text(line)
    name = "measure" if "from . " in line else "corpus.measure"
    monkeypatch.setitem(FILES, name, path)
    assert imports(name) == {"__init__"}


@pytest.mark.parametrize("name", FILES)
def test_the_library_never_imports_transformers(name: str) -> None:
    assert not re.search(r"^\s*(import|from)\s+transformers", FILES[name].read_text(), re.MULTILINE)


OPENS = r"(?<![.\w])open\(|\.open\(.*\"rb\"|\.read_(text|bytes)\("
OPENERS = {"checkpoint.reading", "corpus.hub_files", "corpus.machine"}  # the one place; of the network; of the system
ROOMS = ("checkpoint", "checks", "corpus", "learned", "loading", "study")  # that read what others made


@pytest.mark.parametrize("name", sorted(name for name in FILES.keys() - OPENERS if name.partition(".")[0] in ROOMS))
def test_what_others_made_is_opened_in_one_place(name: str) -> None:
    """By `reading.opened`, which waits for no pipe and reads no device."""
    assert not re.search(OPENS, FILES[name].read_text())


WRITES = r"(\.write_text|\.write_bytes|\bsave_file|\.savez\w*)\(|\w\.open\('[wxa]"
WRITERS = {"files", "course.nanogpt"}  # the one place; a folder that is gone before its caller has the result


@pytest.mark.parametrize("name", sorted(FILES.keys() - WRITERS))
def test_files_are_written_in_one_place(name: str) -> None:
    """By `files.replacing`, each whole or not at all."""
    nodes = list(ast.walk(ast.parse(FILES[name].read_text())))
    whole = [node for node in nodes if isinstance(node, ast.With) and "replacing(" in ast.unparse(node.items[0])]
    within = {id(part) for node in whole for part in ast.walk(node)}
    calls = [ast.unparse(node) for node in nodes if isinstance(node, ast.Call) and id(node) not in within]
    assert not [call for call in calls if re.search(WRITES, call)]


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "ctrl"])
def test_hub_names_appear_only_where_the_checkpoint_is_read(family: str) -> None:
    """The mathematics speaks of W_Q, not of c_attn."""
    tree = ast.parse(FILES[family].read_text())
    readers = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name in ("build", "read", "_is_local")
    ]
    lines = {line for node in readers for line in range(node.lineno, (node.end_lineno or 0) + 1)}
    docstrings = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or 0) + 1)
    }
    hub_names = re.compile(
        r"c_attn|c_proj|c_fc|[qkv]_proj|out_proj|\bW[qkv]\b|lm_head|hidden_size|num_heads|dff|ffn\.|wte|wpe|\bln_[12f]\b|layernorm\d|n_embd|n_head\b"
    )
    for number, line in enumerate(FILES[family].read_text().splitlines(), 1):
        if number not in lines | docstrings:
            assert not hub_names.search(line), f"{family}.py:{number}: {line}"


def test_the_three_blocks_are_alike_line_for_line() -> None:
    """A reader of one family finds every other line where it was: only the departures differ."""

    def block(family: str) -> dict[str, str]:
        methods = [node for node in ast.walk(ast.parse(FILES[family].read_text())) if isinstance(node, ast.FunctionDef)]
        (node,) = [node for node in methods if node.name == "block" and node.args.args[0].arg == "self"]
        return {ast.unparse(statement): ast.unparse(statement).split(" = ")[0].strip("()") for statement in node.body}

    gpt2 = block("gpt2")
    for family, departures in (
        ("gpt_neo", {"q, k, v", "scores"}),
        ("ctrl", {"q, k, v", "scores", "mlp_post"}),
    ):
        assert {gpt2[statement] for statement in gpt2.keys() - block(family).keys()} == departures


def test_every_mistake_that_mutate_plants_has_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """scripts/mutate.py takes minutes to run; that its replacements still match takes none."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    mistakes = runpy.run_path(str(ROOT / "scripts" / "mutate.py"))["MISTAKES"]
    assert len(mistakes) >= 12
    for mistake in mistakes:
        assert mistake.right in (PACKAGE / mistake.file).read_text(), mistake.what

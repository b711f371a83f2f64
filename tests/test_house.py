"""The rules of the house that a machine can check."""

import ast
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "minilens"

# What each file may import from minilens: arrows point down the chain only, and families never see each other.
GRAPH = {
    "shapes": set(),
    "ops": {"shapes"},
    "trace": {"ops", "shapes"},
    "pickled": set(),
    "checkpoint": {"pickled"},
    "gpt2": {"trace", "ops", "checkpoint", "shapes"},
    "gpt_neo": {"trace", "ops", "checkpoint", "shapes"},
    "ctrl": {"trace", "ops", "checkpoint", "shapes"},
    "run": {"trace", "shapes"},
    "edits": {"trace"},
    "vocab": set(),
    "patching": {"ops", "run", "shapes", "text", "trace"},
    "table": {"text", "vocab"},
    "lens": {"run", "edits", "vocab", "ops", "table", "text", "trace", "shapes"},
    "study": {"lens", "table", "text", "trace"},
    "claims": {"study"},
    "corpus": set(),
    "tally": set(),
    "corpus_lens": {"corpus", "lens", "ops", "tally", "text", "trace", "vocab"},
    "shared_files": set(),
    "sweep": {"corpus", "corpus_lens", "shared_files", "tally", "trace"},
    "attribution": {"run", "edits", "ops", "trace", "shapes"},
    "heads": {"run", "ops", "trace"},
    "geometry": {"trace"},
    "published": {"run", "text", "trace"},
    "text": {"checkpoint", "shapes"},
    "identities": {"lens", "ops", "run", "shapes", "text", "trace"},
    "verify": {"checkpoint", "hub", "identities", "published", "text", "trace"},
    "hub": {"gpt2", "gpt_neo", "ctrl", "checkpoint", "text", "trace"},
    "views.tokens": {"text"},
    "views.panels": {"table"},
    "views.terminal": {"table", "trace", "views.panels", "views.tokens"},
    "views.notebook": set(),
    "views.export": {"patching", "table", "text", "views.tokens", "vocab"},
    "views.page": {"lens", "shapes", "table", "trace", "views.notebook", "views.terminal", "views.tokens", "vocab"},
    "views.patches": {"patching", "views.notebook", "views.terminal", "views.tokens"},
    "views.patches_figure": {"patching", "views.figure", "views.patches"},
    "views.curves": {"study", "views.figure"},
    "views.report": {"claims", "study", "table", "views.curves", "views.figure", "views.tokens"},
    "views.figure": {"table", "text", "views.panels", "views.tokens"},
    "views.verify": {"identities", "verify", "views.tokens"},
    "views.walk": {"ops", "shapes", "text", "trace", "views.tokens"},
    "views.corpus": {"sweep", "tally", "views.tokens"},
    "views.corpus_curves": {"views.corpus", "views.curves", "views.figure", "views.tokens"},
    "views.corpus_page": {"tally", "views.corpus", "views.corpus_curves", "views.report", "views.tokens"},
    "views": set(),
    "arguments": {"edits", "ops", "run", "shapes", "text", "trace", "views.tokens"},
    "corpus_command": {
        "arguments",
        "checkpoint",
        "corpus",
        "corpus_lens",
        "hub",
        "shared_files",
        "sweep",
        "views.corpus",
        "views.corpus_page",
    },
    "commands": {
        "arguments",
        "corpus_command",
        "geometry",
        "hub",
        "lens",
        "ops",
        "patching",
        "run",
        "shapes",
        "study",
        "text",
        "trace",
        "verify",
        "views.export",
        "views.figure",
        "views.page",
        "views.patches",
        "views.patches_figure",
        "views.report",
        "views.panels",
        "views.terminal",
        "views.tokens",
        "views.verify",
        "views.walk",
    },
    "cli": {"arguments", "checkpoint", "commands", "corpus", "lens", "trace", "views.panels"},
    "__init__": {
        "attribution",
        "checkpoint",
        "edits",
        "geometry",
        "heads",
        "hub",
        "lens",
        "patching",
        "run",
        "table",
        "trace",
        "verify",
    },
    "__main__": {"cli"},
}
# The only arrows that point up, drawn only where a notebook asks a table or a patching to show itself.
LATE = {"table": {"views.page"}, "patching": {"views.patches"}}
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imports(name: str, *, late: bool) -> set[str]:
    """The modules of minilens that a file imports: at the top, or also within functions."""
    here = ("minilens." + name).split(".")
    package = here if FILES[name].name == "__init__.py" and name != "__init__" else here[:-1]
    found = set()
    tree = ast.parse(FILES[name].read_text())
    for node in ast.walk(tree) if late else tree.body:
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            names = {f"{module}.{alias.name}" for alias in node.names} | {module}
        elif isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        else:
            continue
        found |= {name.removeprefix("minilens.") for name in names if name.startswith("minilens.")}
    return found & FILES.keys()


def test_every_file_has_its_place() -> None:
    assert FILES.keys() == GRAPH.keys()


@pytest.mark.parametrize("name", FILES)
def test_imports_follow_the_graph(name: str) -> None:
    assert imports(name, late=False) <= GRAPH[name]
    assert imports(name, late=True) <= GRAPH[name] | LATE.get(name, set())


def test_the_graph_has_no_cycle() -> None:
    done: set[str] = set()
    while ready := [name for name in GRAPH if name not in done and GRAPH[name] <= done]:
        done |= set(ready)
    assert done == GRAPH.keys()


@pytest.mark.parametrize("name", FILES)
def test_the_library_never_imports_transformers(name: str) -> None:
    assert not re.search(r"^\s*(import|from)\s+transformers", FILES[name].read_text(), re.MULTILINE)


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
        ("gpt_neo", {"q, k, v", "q", "k", "v", "scores"}),
        ("ctrl", {"q, k, v", "q", "k", "v", "scores", "mlp_post"}),
    ):
        assert {gpt2[statement] for statement in gpt2.keys() - block(family).keys()} == departures


def test_every_mistake_that_mutate_plants_has_its_place() -> None:
    """scripts/mutate.py takes minutes to run; that its replacements still match takes none."""
    mistakes = runpy.run_path(str(ROOT / "scripts" / "mutate.py"))["MISTAKES"]
    assert len(mistakes) >= 12
    for mistake in mistakes:
        assert mistake.right in (PACKAGE / mistake.file).read_text(), mistake.what

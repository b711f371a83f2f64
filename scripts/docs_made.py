"""The pages that scripts/docs.py makes: docs/command*.md from the options of commands, docs/api*.md from the source.

The text of docs/api*.md is that of the docstrings, and signatures and fields stand there as the source has them.
"""

import argparse
import ast
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import minilens
from minilens.command.main import _parser
from minilens.views import VIEWS

PACKAGE = Path(__file__).parents[1] / "minilens"
MADE_BY = "<!-- Made by scripts/docs.py: change the source, then run it with --write. -->"
WIDTH = 110  # of a signature
# Options that several commands have, told once under a heading. A command that lacks some of the text's, the edits' or
# the files' tells the others itself.
OF_TEXTS = ("lens", "generate", "trace", "walk", "attention", "parts", "attribute", "patching")
LOADING = "How the model is loaded"
SHARED = {
    "The text": ("file", "ids", "bos"),
    "Edits": ("zero", "mean", "patch", "source"),
    "Files": ("html", "png", "svg", "pdf", "dpi", "overwrite"),
    LOADING: ("revision", "ignore_key", "device", "dtype"),
}


def command_page(of_texts: bool) -> str:
    """Commands with all their options: those that read a text or two, or the others."""
    (commands,) = (each for each in _parser()._actions if isinstance(each, argparse._SubParsersAction))
    texts = {choice.dest: choice.help or "" for choice in commands._choices_actions}
    parts = [
        MADE_BY,
        f"# The command: {'on a text' if of_texts else 'models and files'}",
        "`minilens COMMAND --help` prints the same. What is in brackets may be left out.",
    ]
    chosen = {name: parser for name, parser in commands.choices.items() if (name in OF_TEXTS) == of_texts}
    here, there = ("", "command-models.md") if of_texts else ("command.md", "")
    links = (f"[{name}]({here if name in OF_TEXTS else there}#minilens-{name})" for name in texts)
    parts.append(" · ".join(links))
    told: dict[str, dict[str, str]] = {title: {} for title in SHARED}
    for name, parser in chosen.items():
        usage = [_spelled(action) for action in parser._actions if not action.option_strings or action.required]
        parts.append(f"## minilens {name}\n`minilens {' '.join([name, *usage, '[options]'])}`: {texts[name]}.")
        options = {action.dest: action for action in parser._actions[1:]}
        elsewhere = []
        for title, group in SHARED.items():
            if title == LOADING or options.keys() >= {*group}:
                shared = [options.pop(dest) for dest in group if dest in options]
                told[title] |= {action.dest: _row(parser, action) for action in shared}
                names = ", ".join(f"`{action.option_strings[0]}`" for action in shared)
                link = f"[{title[0].lower()}{title[1:]}](#{title.lower().replace(' ', '-')})"
                elsewhere += [f"| {names} | {link} |"] if shared else []
        if rows := [*(_row(parser, action) for action in options.values()), *elsewhere]:
            parts.append("\n".join(["| | |", "|---|---|", *rows]))
    for title, of_group in told.items():
        if not of_group:
            continue
        parts += [f"## {title}", "\n".join(["| | |", "|---|---|", *of_group.values()])]
    return "\n\n".join(parts) + "\n"


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    return f"| `{_named(action)}` | {_told(parser, action)} |"


def _spelled(action: argparse.Action) -> str:
    """An argument as the line of usage has it."""
    name = _named(action)
    name += " …" if action.nargs in ("+", "*") else ""
    return f"[{name}]" if action.nargs in ("?", "*") and not action.option_strings else name


def _named(action: argparse.Action) -> str:
    """An option with the name of its value."""
    value = str(action.metavar or action.dest.upper())
    if not action.option_strings:
        return value if action.metavar else action.dest
    if action.nargs == 0:
        return ", ".join(action.option_strings)
    return f"{', '.join(action.option_strings)} {f'[{value}]' if action.nargs == '?' else value}"


def _told(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    text = parser._get_formatter()._expand_help(action)
    text = re.sub(r"(?<![\w`])(--?[a-z][\w-]*)", r"`\1`", text)
    return re.sub(r"(<\|?\w+\|?>)", r"`\1`", text).replace("|", r"\|")


INSTRUMENTS = ("attention", "attribution", "heads", "parts", "patching")  # how the names of their views begin
PAGES = {  # of the API, beside its index: name of the page -> its title, and the names on it; others go to the last
    "api-run": (
        "Loading, running, editing",
        "load run trace decode Model Trace BlockTrace CheckpointError "
        "SITES Site Edit untouched at zero mean patch add towards then",
    ),
    "api-text": ("Tokens and generation", "Tokenizer generate generate_steps GenerationStep"),
    "api-lens": ("The lens in Python", "Lens lens_rows LensRow logit_lens logit_lenses LensTable life Life"),
    "api-learned": ("Learned lenses", "load_lens fit Recipe fit_jacobian LearnedLens"),
    "api-views": ("Views", " ".join(name for name in VIEWS if not name.startswith(INSTRUMENTS))),
    "api-views-instruments": ("Views of instruments", " ".join(name for name in VIEWS if name.startswith(INSTRUMENTS))),
    "api-circuits": (
        "Circuits",
        "head_weights HeadWeights ov_circuit qk_circuit Circuit copying_scores composition Composition",
    ),
    "api-parts": ("Parts and coordinates", "parts Parts vector_tokens VectorTokens coordinates clamp swap"),
    "api-instruments": (
        "Instruments and checks",
        "attribute Attribution attributions Attributions head_scores HeadScores geometry Geometry verify Report",
    ),
    "api-patching": (
        "Patching and ablation",
        "patching Patching path_patching ablation Ablation logit_difference log_probability kl_from named_metric",
    ),
    "api-gradients": ("Gradients", "gradient_trace attribution_patching integrated_gradients"),
}


def api_index() -> str:
    """Every public name with the first sentence that its docstring has."""
    parts = [MADE_BY, "# The Python API", "What `import minilens` gives, a page a subject."]
    for page, (title, _) in PAGES.items():
        rows = ["| | |", "|---|---|"]
        for name in _names(page):
            _, node, _ = _definition(name)
            text = ast.get_docstring(node) if isinstance(node, ast.FunctionDef | ast.ClassDef) else _text_after(name)
            first = re.match(r".*?(?<!al)\.(?=\s|$)|.*", (text or "").replace("\n", " "))
            told = _prose(first[0] if first else "").replace("||", r"\|\|")
            anchor = _title(name, node).lower().replace(" ", "-")
            rows.append(f"| [`{name}`]({page}.md#{anchor}) | {told} |")
        parts += [f"## [{title}]({page}.md)", "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def api_page(page: str) -> str:
    """The names of one page: for each its signature or its fields, and its docstring."""
    parts = [MADE_BY, f"# {PAGES[page][0]}"]
    parts.append(
        "Shapes are in the words of [shapes.py](../minilens/shapes.py): `Tokens` is batch pos, "
        "`Resid` batch pos d_model, `Heads` batch head pos d_head, `Keys` the same, "
        "`Grid` batch head query key, `Hidden` batch pos d_mlp, `Logits` batch pos d_vocab."
    )
    for name in _names(page):
        parts += _entry(name)
    return "\n\n".join(parts) + "\n"


def _names(page: str) -> list[str]:
    """The public names of a page."""
    listed = [name for _, names in PAGES.values() for name in names.split()]
    others = {*minilens.__all__} - {*listed, "__version__"} if page == [*PAGES][-1] else set()
    return [name for name in PAGES[page][1].split() if name in {*minilens.__all__, *VIEWS}] + sorted(others)


def _entry(name: str) -> Iterator[str]:
    """One public name."""
    path, node, source = _definition(name)
    yield f"## {_title(name, node)}"
    names: list[str] = []
    if isinstance(node, ast.FunctionDef):
        yield f"```python not run: a signature\n{_signature(node)}\n```"
        text = ast.get_docstring(node)
        names = [arg.arg for arg in (*node.args.args, *node.args.kwonlyargs, node.args.kwarg) if arg]
    elif isinstance(node, ast.ClassDef):
        if fields := _fields(node, source):
            yield f"```python not run: the fields\nclass {_heading(node)}:\n{fields}\n```"
        text = ast.get_docstring(node)
        names = [ast.unparse(each.target) for each in node.body if isinstance(each, ast.AnnAssign)]
    else:
        yield f"```python not run: a definition\n{_code(node)}\n```"
        text = _text_after(name)
    yield from _doc(text, f"[{path}](../minilens/{path})", names)
    members = [each for each in getattr(node, "body", ()) if isinstance(each, ast.FunctionDef) and each.name[0] != "_"]
    if isinstance(node, ast.ClassDef) and members:
        yield "\n".join(f"- {_member(each, name)}" for each in members)


def _title(name: str, node: ast.stmt) -> str:
    """The heading of a name; Trace is not trace."""
    return f"class {name}" if isinstance(node, ast.ClassDef) else name


def _definition(name: str) -> tuple[Path, ast.stmt, list[str]]:
    """The file of a public name, its definition there, and the file's lines: found by the imports of __init__.py."""
    path = Path("views", f"{VIEWS[name]}.py") if name in VIEWS else None
    for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text())):
        if isinstance(node, ast.ImportFrom) and name in [alias.asname or alias.name for alias in node.names]:
            path = Path(*(node.module or "").split(".")).with_suffix(".py")
    if path is None:
        raise LookupError(f"minilens/__init__.py imports no {name}")
    text = (PACKAGE / path).read_text()
    for each in ast.parse(text).body:
        targets = each.targets if isinstance(each, ast.Assign) else [getattr(each, "target", None)]
        if name in [getattr(each, "name", None), *(getattr(target, "id", None) for target in targets)]:
            return path, each, text.splitlines()
    raise LookupError(f"{path} defines no {name}")


def _signature(node: ast.FunctionDef) -> str:
    """A function's name, arguments and result; in several lines where they are long."""
    returns = f" -> {_code(node.returns)}" if node.returns else ""
    arguments = _arguments(node.args)
    if len(line := f"{node.name}({', '.join(arguments)}){returns}") <= WIDTH:
        return line
    lines = [""]
    for each in arguments:
        if len(lines[-1]) + len(each) > WIDTH - 6:
            lines.append("")
        lines[-1] += f"{' ' if lines[-1] else ''}{each},"
    return "\n".join([f"{node.name}(", *(f"    {line}" for line in lines), f"){returns}"])


def _arguments(args: ast.arguments) -> list[str]:
    """Each argument with its type and its default."""

    def told(arg: ast.arg, default: ast.expr | None = None, stars: str = "") -> str:
        kind = f": {_code(arg.annotation)}" if arg.annotation else ""
        return f"{stars}{arg.arg}{kind}" + (f" = {_code(default)}" if default else "")

    missing: list[ast.expr | None] = [None] * (len(args.args) - len(args.defaults))
    found = [told(*each) for each in zip(args.args, [*missing, *args.defaults], strict=True)]
    if args.vararg:
        found.append(told(args.vararg, stars="*"))
    elif args.kwonlyargs:
        found.append("*")
    found += [told(*each) for each in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    return [*found, told(args.kwarg, stars="**")] if args.kwarg else found


def _code(node: ast.AST) -> str:
    """Source text with the quotes of the house."""
    return ast.unparse(node).replace("'", '"')


def _heading(node: ast.ClassDef) -> str:
    bases = ", ".join(map(ast.unparse, node.bases))
    return f"{node.name}({bases})" if bases else node.name


def _fields(node: ast.ClassDef, source: list[str]) -> str:
    """The lines of a class's fields, with the comments beside and below them."""
    lines = []
    for each in node.body:
        if isinstance(each, ast.AnnAssign | ast.Assign):
            end = each.end_lineno or each.lineno
            while source[end].strip().startswith("#"):
                end += 1
            lines += source[each.lineno - 1 : end]
    return "\n".join(lines)


def _member(node: ast.FunctionDef, parent: str) -> str:
    """A method or a property, with the first paragraph of its docstring."""
    is_property = any(getattr(each, "id", "") == "property" for each in node.decorator_list)
    first = (ast.get_docstring(node) or "").split("\n\n")[0]
    returns = f" -> {_code(node.returns)}".replace('"' + parent + '"', parent) if node.returns else ""
    arguments = "" if is_property else f"({', '.join(_arguments(node.args)[1:])})"
    return f"`{node.name}{arguments}{returns}`" + (f": {_prose(first)}" if first else "")


def _doc(text: str | None, where: str, names: Sequence[str]) -> Iterator[str]:
    """A docstring, and where it stands; each argument in a line of its own, what doctests show in blocks."""
    first, *others = (text or "").split("\n\n")
    yield f"{_prose(first)} ({where})".strip()
    for paragraph in others:
        if paragraph.startswith(">>>"):
            yield from _doctest(paragraph)
        elif paragraph.startswith(" "):
            yield f"```text not run: a layout\n{paragraph}\n```"
        else:
            yield from _items(" ".join(paragraph.split()), names)


def _items(text: str, names: Sequence[str]) -> Iterator[str]:
    """A paragraph; where it tells of arguments, as "positions: the columns to show", those as a list."""
    one = "|".join(names) or "(?!)"
    start = rf"(?:{one})(?:, (?:{one}))*: "
    pieces = re.split(rf"(?:^|(?<=[.)\"] ))(?={start})|(?<=\. )(?=Raises )", text)
    items: list[str] = []
    for piece in filter(None, map(str.strip, pieces)):
        if re.match(start, piece):
            name, _, told = piece.partition(": ")
            items.append(f"- `{name}`: {_prose(told)}")
        else:
            if items:
                yield "\n".join(items)
                items = []
            yield _prose(piece)
    if items:
        yield "\n".join(items)


MARKED = re.compile(r"(?<![\w\"])(\[[^\]]*\]|[\w.]*\w\([^()]*\)|[\w.]*_[\w.]*\w|<\S+>)")  # as code


def _prose(paragraph: str) -> str:
    """The text on one line, with names, calls and shapes marked as code."""
    pieces = re.split(r"(`[^`]*`|\"[^\"]*\")", " ".join(paragraph.split()))
    return "".join(piece if piece[:1] in ("`", '"') else MARKED.sub(r"`\1`", piece) for piece in pieces)


def _doctest(text: str) -> Iterator[str]:
    """Its lines of Python, with print where it shows a value, and what they print."""
    code, shown = ["import minilens", ""], []
    for line in text.splitlines():
        if line.startswith((">>> ", "... ")):
            code.append(line[4:])
        else:
            value = ast.parse(code[-1], mode="eval").body
            code[-1] = f"print(({code[-1]}))" if isinstance(value, ast.Tuple) else f"print({code[-1]})"
            shown.append(line)
    yield "```python\n" + "\n".join(code) + "\n```"
    if shown:
        yield "```text\n" + "\n".join(shown) + "\n```"


def _text_after(name: str) -> str | None:
    """The string that follows a definition, as a docstring would."""
    path, node, _ = _definition(name)
    for following in ast.parse((PACKAGE / path).read_text()).body:
        if following.lineno == (node.end_lineno or 0) + 1 and isinstance(following, ast.Expr):
            return str(ast.literal_eval(following.value))
    return None


MADE: dict[str, Callable[[], str]] = {
    "docs/command.md": partial(command_page, True),
    "docs/command-models.md": partial(command_page, False),
    "docs/api.md": api_index,
    **{f"docs/{page}.md": partial(api_page, page) for page in PAGES},
}

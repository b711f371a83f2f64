"""Whatever a prompt, a vocabulary or a name holds, every view shows it as text, and every command reads or refuses it.

What is shown is compared with what the same view makes of a harmless vocabulary: the same elements, lines as wide, and
nothing that a terminal, a browser or an XML reader would obey.
"""

import argparse
import contextlib
import csv
import inspect
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest
import torch
from checkpoints import Letters, changed
from conftest import Tiny
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from rich.cells import cell_len
from rich.console import Console, Group
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RawTokenizer

import minilens
from minilens.checkpoint.tokenizer import Tokenizer, WordBPE
from minilens.checks.verify import Report, verify
from minilens.command.inputs import LARGEST
from minilens.command.main import _parser, main
from minilens.command.outputs import FIGURES as KINDS
from minilens.corpus.documents import TextFile
from minilens.corpus.measure import CorpusLens, Findings, Plan
from minilens.corpus.sweep import Sweep
from minilens.corpus.tally import VALUES
from minilens.instruments.metrics import log_probability
from minilens.instruments.parts import Parts, parts
from minilens.instruments.patching import Patching, patching
from minilens.study.experiments import Study, study
from minilens.study.life import Checkpoint, Life
from minilens.views import (
    attention,
    attention_figure,
    attribution,
    attribution_figure,
    corpus_curves,
    corpus_page,
    corpus_record,
    corpus_terminal,
    generation,
    heads,
    lens_figure,
    lens_page,
    lens_terminal,
    life_figure,
    notebook,
    parts_figure,
    patching_figure,
    plots,
    records,
    study_curves,
    study_report,
    walk,
)
from minilens.views import life as life_views
from minilens.views import parts as parts_views
from minilens.views import patching as patching_views
from minilens.views import verify as verify_views
from minilens.views.tokens import as_unicode, printable, text_label, token_label

HOSTILE = [
    *("\0", "\x07", "\x1b[31m", "\x1b]0;title\x07", "\x1b]8;;http://x\x1b\\", "\x9b2J", "\r", "\n", "\t", "\x7f"),
    *("\x85", "\u202e", "\u2066", "\u2069", "\u200f", "\u061c", "\u200b", "\u200d", "\ufeff", "\u2028", "\xa0", "\xad"),
    *("</script><script>alert(1)</script>", "<!--", "-->", "]]>", "<img src=x onerror=alert(1)>", "</td>", "</title>"),
    *(
        '"><b x="',
        "'",
        "&lt;",
        "&#27;",
        "$title",
        "${title}",
        "PUT THE DATA HERE",
        "[red]",
        "[/red]",
        "[link=x]y[/link]",
    ),
    *("$x_{", r"$\frac{1}{2}$", "{}", "%s", "%(prog)s", '=1+1;"', "@SUM(A1)", "a,b", '"', "\\x1b", "\\", "·", "∅", "◌"),
    *("אבג", "مرحبا", "a" + "\u0301" * 300, "\u0301", "\u1161" * 300, "\u3164", "\ufdd0", "\U0010ffff"),
    *("猫" * 20, "👩\u200d🚀", "🇩🇪", "e\ufe0f"),
]
NAME = "</title>\n\x1b[31m\u202e$x_{猫"  # of a study and of titles; and a token
PARTS = st.sampled_from(HOSTILE) | st.characters(exclude_categories=["Cs"])
TEXTS = st.lists(PARTS, max_size=6).map("".join)
PROMPTS = st.lists(PARTS | st.characters(categories=["Cs"]), max_size=6).map("".join)
PIECES = TEXTS.map(str.encode) | st.binary(max_size=8)  # a token may be broken UTF-8
N = 12  # tokens that have hostile pieces
HARMLESS = Letters({})
WIDTH = 80


# ---- One lens, one patching and one study, which each test shows with a vocabulary of its own


@pytest.fixture(scope="module")
def table(tiny: Tiny) -> minilens.LensTable:
    """Hostile tokens as input, next token, best token and tracked token."""
    model, _ = minilens.load(tiny("gpt2")[1])
    made = minilens.logit_lens(model, torch.arange(N)[None], track=(0, 1), stats="all", top_k=2)
    top = made.top._replace(tokens=made.top.tokens % N)
    return replace(made, final_tokens=made.final_tokens % N, stats={**made.stats, "top": top})


@pytest.fixture(scope="module")
def patched(tiny: Tiny) -> Patching:
    model, _ = minilens.load(tiny("gpt2")[1])
    clean, corrupt = torch.arange(N)[None], torch.arange(N)[None].clone()
    corrupt[0, 2] = 7
    return patching(model, clean, corrupt, log_probability(5), sites=["z"])


@pytest.fixture(scope="module")
def attributed(tiny: Tiny) -> minilens.Attribution:
    model, _ = minilens.load(tiny("gpt2")[1])
    return minilens.attribute(model, torch.arange(N)[None], token=3, against=4)


@pytest.fixture(scope="module")
def wrote(tiny: Tiny) -> Parts:
    model, _ = minilens.load(tiny("gpt2")[1])
    made = parts(model, torch.arange(N)[None], top_k=2)
    named = {name: getattr(made, name) for name in ("alone", "raised", "lowered")}
    hostile = {name: each._replace(tokens=each.tokens % N) for name, each in named.items()}
    return replace(made, final_tokens=made.final_tokens % N, **hostile).largest(2)


@pytest.fixture(scope="module")
def walked(tiny: Tiny) -> SimpleNamespace:
    model, _ = minilens.load(tiny("gpt2")[1])
    tokens = torch.arange(N)[None]
    return SimpleNamespace(model=model, tokens=tokens, block=minilens.trace(model, tokens).blocks[1])


@pytest.fixture(scope="module")
def written(tiny: Tiny) -> list[minilens.GenerationStep]:
    model, _ = minilens.load(tiny("gpt2")[1])
    steps = minilens.generate_steps(model, torch.arange(N)[None], N)
    return [step._replace(tokens=torch.tensor([n]), best=step.best % N) for n, step in enumerate(steps)]


@pytest.fixture(scope="module")
def gpt2(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 that reads any text, byte by byte, and has some of the hostile strings as tokens of their own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = RawTokenizer(models.BPE({char: token for token, char in enumerate(alphabet)}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.add_tokens([AddedToken(text, normalized=False) for text in (*HOSTILE[:40], NAME)])
    folder = tmp_path_factory.mktemp("prompts") / "gpt2"
    files: dict[str, bytes | None] = {"tokenizer.json": raw.to_str().encode()}
    return changed(tiny("gpt2", vocab_size=raw.get_vocab_size(), n_positions=1000)[1], folder, files=files)


@pytest.fixture(scope="module")
def studied(gpt2: Path) -> Study:
    model, tokenizer = minilens.load(gpt2)
    assert tokenizer is not None
    return study(NAME, model, tokenizer, passage="".join(HOSTILE)[:300], word=NAME)


@pytest.fixture(scope="module")
def findings(gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Findings:
    """Of a file with a hostile name, after a hostile prefix."""
    path = tmp_path_factory.mktemp("corpus") / f"{NAME.replace('/', '')}.txt"
    path.write_text("".join(HOSTILE), encoding="utf-8")
    model, tokenizer = minilens.load(gpt2)
    assert tokenizer is not None
    sweep = Sweep(CorpusLens(model, tokenizer, Plan(prefix=NAME, window=100)), [TextFile(path)], path.with_suffix(""))
    assert list(sweep.run())
    return sweep.findings()


def lived(name: str) -> Life:
    """Of two checkpoints with this name."""
    curve, rows = {"mean": [0.5, None], "standard_error": [0.1, None]}, ["embed", "0.resid_post"]
    block_0 = {"mean": 2.0, "standard_error": None}
    record = {
        "model": name,
        "revision": name,
        "rows": rows,
        "lens": dict.fromkeys(VALUES, curve),
        "heads": {kind: {of: [each] for of, each in curve.items()} for kind in minilens.HeadScores._fields},
        "block_0": dict.fromkeys(life_views.BLOCK_0, block_0),
        "findings": [{"statement": "a finding", "verdict": "shown", "checks": [{"what": "a number", "value": 1.0}]}],
    }
    return Life((Checkpoint(0, name, name), Checkpoint(9, name, name)), (record, record))


@pytest.fixture(scope="module")
def verified(gpt2: Path) -> Report:
    return verify(gpt2)


def named(report: Report, name: str) -> Report:
    """What it says of files, keys and tensors that are all called this."""
    return replace(
        report,
        model=name,
        files=tuple(file._replace(name=name) for file in report.files),
        broken=(name,),
        config=tuple(key._replace(key=name, value=name, fault=name) for key in report.config),
        tensors=tuple(weight._replace(name=name, file=name, fault=name) for weight in report.tensors),
    )


@pytest.fixture(scope="module")
def everything(
    table: minilens.LensTable,
    patched: Patching,
    attributed: minilens.Attribution,
    wrote: Parts,
    walked: Any,
    written: list[minilens.GenerationStep],
    studied: Study,
    findings: Findings,
    verified: Report,
) -> SimpleNamespace:
    """All that a view may show."""
    return SimpleNamespace(
        table=table,
        patched=patched,
        attributed=attributed,
        wrote=wrote,
        walked=walked,
        written=written,
        studied=studied,
        findings=findings,
        verified=verified,
    )


# ---- What no view may give out


def assert_shown(text: str) -> None:
    """Ink, spaces and the ends of lines: no control character, nothing that turns text round, no lone surrogate."""
    assert all(char.isprintable() or char == "\n" for char in text), sorted({c for c in text if not c.isprintable()})


class Structure(HTMLParser):
    """The elements of a page with the names of their attributes; comments and declarations, too."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.parts: list[Any] = []
        self.attributes: dict[str, list[str]] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.parts.append((tag, [name for name, _ in attrs]))
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value or "")

    def handle_endtag(self, tag: str) -> None:
        self.parts.append(f"/{tag}")

    def handle_comment(self, data: str) -> None:
        self.parts.append("comment")

    def unknown_decl(self, data: str) -> None:
        self.parts.append("declaration")


def same_html(text: str, harmless: str) -> None:
    assert_shown(text)
    found, wanted = Structure(text), Structure(harmless)
    assert found.parts == wanted.parts
    assert "srcdoc" not in found.attributes or [part[0] for part in found.parts] == ["style", "/", "iframe", "/"]
    for inner, other in zip(found.attributes.get("srcdoc", []), wanted.attributes.get("srcdoc", []), strict=True):
        same_html(inner, other)
    for data in re.findall(r'<script type="application/json" id="data">(.*?)</script', text, re.DOTALL):
        assert json.loads(data)["tokens"]


def printed(view: Any, colour: bool = False) -> str:
    out = io.StringIO()
    kind: Any = "truecolor" if colour else None
    Console(file=out, width=WIDTH, force_terminal=colour, color_system=kind, highlight=False).print(view)
    return out.getvalue()


def same_terminal(view: Any) -> None:
    plain = printed(view)
    assert_shown(plain)
    assert max(map(cell_len, plain.splitlines())) <= WIDTH
    assert re.sub(r"\x1b\[[\d;]*m", "", printed(view, colour=True)) == plain  # colours, and nothing else


def same_figure(drawn: Figure, tmp_path: Path) -> None:
    """As an SVG that holds its texts: XML, of no other elements than matplotlib's; warnings are errors."""
    path = tmp_path / "figure.svg"
    for fonttype in ("none", "path"):  # "path" has the texts as comments
        with matplotlib.rc_context({"svg.fonttype": fonttype}):
            plots.save_figure(path, drawn)
        text = path.read_text(encoding="utf-8")
        assert_shown(text)
        names = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(text).iter()}
        assert not names & {"script", "img", "foreignObject", "a", "b", "iframe"}


def same_record(record: Any, tokenizer: Tokenizer) -> None:
    """ASCII that reads back as it was, every token with its label and its text."""
    text = json.dumps(record)
    assert text.isascii() and json.loads(text) == record

    def tokens(part: Any) -> Iterator[dict[str, Any]]:
        if isinstance(part, dict) and "text" in part:
            yield part
        elif isinstance(part, dict | list):
            for inner in part.values() if isinstance(part, dict) else part:
                yield from tokens(inner)

    found = list(tokens(record))
    assert found or "files" in record
    for token in found:
        assert token["label"] == token_label(tokenizer, token["id"])
        assert token["text"] == tokenizer.decode(torch.tensor([token["id"]]))


def same_lines(lines: list[list[Any]]) -> None:
    """CSV that reads back as it was."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    assert_shown(out.getvalue())
    read = list(csv.reader(io.StringIO(out.getvalue())))
    assert read == [["" if cell is None else str(cell) for cell in line] for line in lines]
    assert len(lines) > 1 and len({len(line) for line in read}) == 1


# ---- The views

Shown = SimpleNamespace  # table, patched, walked, written, studied and a title
VIEWS: dict[str, Callable[[Shown], Any]] = {
    "lens_terminal.lens_view": lambda it: lens_terminal.lens_view(
        it.table, show=["prob", "kl", "tracked_rank"], width=WIDTH
    ),
    "lens_page.lens_page": lambda it: lens_page.lens_page(
        it.table, title=it.title, tokens=it.walked.tokens, patterns=[it.walked.block]
    ),
    "notebook.lens_html": lambda it: notebook.lens_html(it.table),
    "notebook.in_frame": lambda it: notebook.in_frame(printable(it.title), "<p></p>"),
    "records.as_record": lambda it: records.as_record(it.table),
    "records.as_lines": lambda it: list(records.as_lines(it.table)),
    "records.patching_record": lambda it: records.patching_record(it.patched),
    "records.token_record": lambda it: records.token_record(it.table.tokenizer, 0),
    "corpus_record.corpus_record": lambda it: corpus_record.corpus_record(it.title, it.findings),
    "corpus_record.corpus_lines": lambda it: list(
        corpus_record.corpus_lines(corpus_record.corpus_record(it.title, it.findings))
    ),
    "verify.verify_record": lambda it: verify_views.verify_record(named(it.verified, as_unicode(it.title))),
    "generation.generation_view": lambda it: Group(
        *generation.generation_view(it.walked.tokens, it.written, tokenizer=it.table.tokenizer)
    ),
    "generation.generation_record": lambda it: generation.generation_record(
        it.walked.tokens, it.written, tokenizer=it.table.tokenizer
    ),
    "attribution.attribution_view": lambda it: attribution.attribution_view(
        it.attributed, by="position", title=it.title, width=WIDTH
    ),
    "attribution.attribution_page": lambda it: attribution.attribution_page(
        it.attributed, by="position", title=it.title
    ),
    "attribution.attribution_record": lambda it: attribution.attribution_record(it.attributed),
    "notebook.attribution_html": lambda it: notebook.attribution_html(it.attributed),
    "patching.patching_view": lambda it: patching_views.patching_view(it.patched, title=it.title, width=WIDTH),
    "patching.patching_page": lambda it: patching_views.patching_page(it.patched, title=it.title),
    "notebook.patching_html": lambda it: notebook.patching_html(it.patched),
    "parts.parts_view": lambda it: parts_views.parts_view(
        it.wrote, show=["ratio", "lowered"], title=it.title, width=WIDTH
    ),
    "parts.parts_page": lambda it: parts_views.parts_page(it.wrote, show=["cosine", "alone"], title=it.title),
    "parts.parts_record": lambda it: parts_views.parts_record(it.wrote),
    "attention.attention_view": lambda it: attention.attention_view(
        it.walked.tokens, it.walked.block, head=1, tokenizer=it.table.tokenizer, title=it.title, width=WIDTH
    ),
    "attention.attention_page": lambda it: attention.attention_page(
        it.walked.tokens, it.walked.block, tokenizer=it.table.tokenizer, title=it.title
    ),
    "attention.attention_record": lambda it: attention.attention_record(
        it.walked.tokens, it.walked.block, head=1, tokenizer=it.table.tokenizer
    ),
    "heads.heads_view": lambda it: heads.heads_view(
        minilens.head_scores(it.walked.model, length=4, batch=1),
        minilens.copying_scores(it.walked.model),
        minilens.composition(it.walked.model),
        title=it.title,
        width=WIDTH,
    ),
    "life.life_view": lambda it: life_views.life_view(lived(it.title), title=it.title),
    "life.life_lines": lambda it: list(life_views.life_lines(lived(it.title))),
    "walk.walk_view": lambda it: walk.walk_view(
        it.walked.model, it.walked.tokens, tokenizer=it.table.tokenizer, width=WIDTH
    ),
    "walk.block_view": lambda it: walk.block_view(
        it.walked.model, it.walked.tokens, it.walked.block, tokenizer=it.table.tokenizer, width=WIDTH
    ),
}
SLOW: dict[str, Callable[[Shown], Any]] = {
    "lens_figure.lens_figure": lambda it: lens_figure.lens_figure(
        it.table, show=["prob", "tracked_rank"], title=it.title
    ),
    "attribution_figure.attribution_figure": lambda it: attribution_figure.attribution_figure(
        it.attributed, by="position", title=it.title
    ),
    "patching_figure.patching_figure": lambda it: patching_figure.patching_figure(it.patched, title=it.title),
    "parts_figure.parts_figure": lambda it: parts_figure.parts_figure(it.wrote, title=it.title),
    "notebook.parts_html": lambda it: notebook.parts_html(it.wrote),
    "attention_figure.attention_figure": lambda it: attention_figure.attention_figure(
        it.walked.tokens, it.walked.block, tokenizer=it.table.tokenizer, title=it.title
    ),
    "corpus_terminal.corpus_tables": lambda it: Group(
        *corpus_terminal.corpus_tables(corpus_record.corpus_record(it.title, it.findings))
    ),
    "corpus_curves.overview": lambda it: corpus_curves.overview(
        [corpus_record.corpus_record(it.title, it.findings)] * 2
    ),
    "corpus_curves.details": lambda it: corpus_curves.details(
        corpus_record.corpus_record(it.title, it.findings), "final"
    ),
    "corpus_page.corpus_page": lambda it: corpus_page.corpus_page([corpus_record.corpus_record(it.title, it.findings)]),
    "life_figure.life_figure": lambda it: life_figure.life_figure(
        {it.title: lived(it.title), "b": lived("b")}, title=it.title
    ),
    "verify.verify_view": lambda it: verify_views.verify_view(named(it.verified, it.title)),
    "study_curves.study_figure": lambda it: study_curves.study_figure([(it.title, it.studied, "final")]),
    "study_report.overview": lambda it: study_report.overview([it.studied]),
    "study_report.study_report": lambda it: study_report.study_report([it.studied]),
    "study_report.study_lines": lambda it: list(study_report.study_lines([it.studied])),
    "study_report.verdict_tables": lambda it: Group(*study_report.verdict_tables([it.studied], width=WIDTH)),
}
# What the views are made of: it gives numbers, names of panels, or parts that only a view prints.
PARTS_OF_VIEWS = """
    attention.panel attention.strongest_keys parts.errors parts.legend parts.panels
    colours.of_share colours.of_sign corpus_page.corpus_picture corpus_record.called
    corpus_record.mean_and_error corpus_terminal.corpus_summary corpus_terminal.names corpus_terminal.nats
    course.check_view course.summary course.wrong_lines
    life.life_record
    diff.departures diff.diff_view fit_record.fit_lines fit_record.fit_record
    fit_terminal.fit_table grid.fit grid.in_panels heads.strongest
    heatmap.add_axes heatmap.cell_size heatmap.label_axes heatmap.write_cells lens_panels.long_name
    lens_page.attention_record lens_page.table_record
    lens_panels.of_one_text lens_panels.panel lens_panels.spread lens_panels.stat lens_panels.stats_for
    one_file.as_json one_file.one_file
    notebook.heads_html notebook.patterns_html notebook.show_in_notebooks
    attribution.asked attribution.columns attribution.legend attribution.outside attribution.panel attribution.several
    patching.columns patching.legend patching.panels shaded.exact shaded.in_terminal shaded.page shaded.signed
    shaded_figure.shaded_figure
    pictures.heads_page pictures.patterns_page plots.add_legend plots.as_image plots.depths plots.drawable
    plots.drawn plots.labels plots.legend_label plots.plain plots.save_figure plots.scale_nats
    records.heads_record tokens.as_unicode tokens.printable tokens.text_label tokens.token_label tokens.visible
    walk.body_lines walk.check_place walk.fitting walk.source_lines
""".split()


def test_every_view_is_among_them() -> None:
    folder = Path(lens_terminal.__file__).parent
    modules = {path.stem: import_module(f"minilens.views.{path.stem}") for path in folder.glob("[!_]*.py")}
    public = {
        f"{stem}.{name}"
        for stem, module in modules.items()
        for name, each in inspect.getmembers(module, inspect.isfunction)
        if each.__module__ == module.__name__ and not name.startswith("_")
    }
    assert public == {*VIEWS, *SLOW, *PARTS_OF_VIEWS}


def assert_same(view: Callable[[Shown], Any], it: Shown, tmp_path: Path) -> None:
    """What this view shows is safe, and has the form of what it shows of a harmless vocabulary and title."""
    found = view(it)
    if isinstance(found, str):
        same_html(found, view(harmless(it)))
    elif isinstance(found, Group):
        same_terminal(found)
    elif isinstance(found, Figure):
        same_figure(found, tmp_path)
    elif isinstance(found, dict):
        same_record(found, it.table.tokenizer)
    else:
        same_lines(found)


def harmless(it: Shown) -> Shown:
    def replaced(each: minilens.LensTable) -> minilens.LensTable:
        return replace(each, tokenizer=Letters({}, size=1000))

    tables = {key: replaced(each) for key, each in it.studied.tables.items()}
    texts = dict.fromkeys(it.studied.texts, "text")
    studied = replace(it.studied, name="name", tables=tables, texts=texts)
    names = ("patched", "attributed", "wrote")
    shown = {name: replace(getattr(it, name), tokenizer=HARMLESS) for name in names}
    return Shown(**{**vars(it), **shown, "table": replaced(it.table), "studied": studied, "title": "title"})


def with_tokens(it: Shown, pieces: dict[int, bytes], title: str) -> Shown:
    letters = Letters(pieces)
    names = ("table", "patched", "attributed", "wrote")
    shown = {name: replace(getattr(it, name), tokenizer=letters) for name in names}
    return Shown(**{**vars(it), **shown, "title": title})


@pytest.mark.parametrize("name", VIEWS)
def test_any_vocabulary_in_every_view(everything: Shown, name: str, tmp_path: Path) -> None:
    @settings(max_examples=12, deadline=None)
    @example(pieces=[text.encode() for text in HOSTILE[:N]], title=PROMPTS_AT_ONCE)
    @given(pieces=st.lists(PIECES, min_size=N, max_size=N), title=PROMPTS)
    def check(pieces: list[bytes], title: str) -> None:
        assert_same(VIEWS[name], with_tokens(everything, dict(enumerate(pieces)), title), tmp_path)

    check()


PROMPTS_AT_ONCE = "".join(HOSTILE) + "\ud800\udcff"


@pytest.mark.parametrize("name", [*VIEWS, *SLOW])
def test_all_that_is_hostile_in_every_view(everything: Shown, name: str, tmp_path: Path) -> None:
    """A token of each string, as many at once as the table has columns."""
    each = [HOSTILE[at : at + N] for at in range(0, len(HOSTILE), N)]
    for texts in each if name in VIEWS else [[*HOSTILE[:8], "$x_{", "猫" * 20, "a" + "\u0301" * 300, "אבג"]]:
        pieces = {token: text.encode() for token, text in enumerate(texts)}
        assert_same({**VIEWS, **SLOW}[name], with_tokens(everything, pieces, NAME), tmp_path)


@settings(max_examples=40, deadline=None)
@given(pieces=st.lists(PIECES, min_size=N, max_size=N))
def test_columns_stay_below_one_another(table: minilens.LensTable, pieces: list[bytes]) -> None:
    """All lines of a grid are as wide, counted in terminal cells, and no pile of marks has no width."""
    letters = Letters(dict(enumerate(pieces)))
    text = printed(lens_terminal.lens_view(replace(table, tokenizer=letters), width=WIDTH))
    grids = re.split(r"\n *\n", text)[:-1]
    assert grids
    for grid in grids:
        assert len({cell_len(line) for line in grid.strip("\n").split("\n")}) == 1
    for line in text.split("\n"):
        assert len(line) <= 5 * WIDTH + 5


@given(text=PROMPTS)
def test_names_are_labels_with_spaces(text: str) -> None:
    assert_shown(text_label(text))
    assert_shown(printable(text))
    assert printable(text_label(text)) == text_label(text)
    assert text_label(text).count(" ") == text.count(" ")


# ---- The command


@pytest.fixture(autouse=True)
def terminal_of_width_80(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def ran(*args: str | Path) -> tuple[int, str, str]:
    """Status, stdout and stderr; no traceback, and nothing on either that a terminal would obey."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = main([str(arg) for arg in args])
    assert_shown(out.getvalue())
    assert_shown(err.getvalue())
    assert all(line.startswith("minilens: ") for line in err.getvalue().splitlines())
    return status, out.getvalue(), err.getvalue()


# Of each command: what follows the model, where TEXT is the prompt and OUT a file to be.
COMMANDS = {
    "lens": [
        ["--", "TEXT"],
        ["--show", "kl", "--", "TEXT"],
        ["--json", "--", "TEXT"],
        ["--csv", "--", "TEXT"],
        ["--html", "OUT.html", "--patterns", "0", "--", "TEXT"],
        ["--zero", "0.z", "--", "TEXT"],
        ["--patch", "0.z@0", "--from=TEXT", "--html", "OUT.html", "--", "TEXT"],
        ["--patch", "0.z@0", "--from=TEXT", "--json", "--", "TEXT"],
        ["--patch", "0.z@0", "--from=TEXT", "--", "TEXT"],
        ["--patch", "0.z@0", "--from=TEXT", "--csv", "--", "TEXT"],
        ["--track=TEXT", "--", "a"],
    ],
    "generate": [
        ["--n", "2", "--", "TEXT"],
        ["--n", "1", "--patch", "0.z@0", "--from=TEXT", "--", "TEXT"],
        ["--n", "1", "--json", "--", "TEXT"],
    ],
    "live": [["--html", "OUT.html", "--text=TEXT"]],
    "parts": [["--positions=-2:", "--", "TEXT"], ["--layer", "0", "--most", "1", "--json", "--", "TEXT"]],
    "attention": [
        ["--layer", "0", "--", "TEXT"],
        ["--layer", "0", "--head", "1", "--positions", "-1", "--json", "--", "TEXT"],
    ],
    "trace": [["--patch", "0.z@0", "--from=TEXT", "--out", "OUT.safetensors", "--", "TEXT"]],
    "walk": [["--", "TEXT"]],
    "attribute": [
        ["--", "TEXT", "a"],
        ["--by", "position", "--patch", "0.z@0", "--from=TEXT", "--", "TEXT"],
        ["--json", "--", "TEXT"],
        ["--by", "neuron", "--html", "OUT.html", "--", "TEXT"],
        ["--token=TEXT", "--against", "a", "--", "a"],
    ],
    "patching": [
        ["--right", "a", "--", "TEXTa", "TEXTb"],
        ["--right=TEXT", "--", "a", "b"],
        ["--right", "a", "--json", "--", "TEXTa", "TEXTb"],
        ["--right", "a", "--html", "OUT.html", "--", "TEXTa", "TEXTb"],
    ],
}
EVERY_FILE = [word for kind in ("html", *KINDS) for word in (f"--{kind}", f"OUT.{kind}")]
FIGURES = {
    "lens": [[f"--{kind}", f"OUT.{kind}", "--patch", "0.z@0", "--from=TEXT", "--", "TEXT"] for kind in KINDS],
    "attribute": [[f"--{kind}", f"OUT.{kind}", "--by", "position", "--", "TEXT"] for kind in KINDS],
    "patching": [[f"--{kind}", f"OUT.{kind}", "--right=TEXT", "--", "TEXT", "a"] for kind in KINDS],
    "parts": [["--positions=-2:", *EVERY_FILE, "--", "TEXT"]],
    "attention": [["--layer", "0", *EVERY_FILE, "--", "TEXT"]],
    "study": [["--word=TEXT", "--out", "OUT"]],
}
NO_TEXT = {
    "check",
    "diff",
    "exercise",
    "geometry",
    "glossary",
    "heads",
    "models",
    "serve",
    "verify",
}  # names, or the source
FILES = {"corpus", "fit", "life"}  # they read whole files


def test_every_command_and_every_output_is_among_them() -> None:
    (commands,) = [each for each in _parser()._actions if isinstance(each, argparse._SubParsersAction)]
    assert commands.choices.keys() == COMMANDS.keys() | FIGURES.keys() | NO_TEXT | FILES
    for name in commands.choices.keys() - NO_TEXT - FILES:
        outputs = {"--json", "--csv", "--html", "--out", *(f"--{kind}" for kind in KINDS)}
        options = {option for action in commands.choices[name]._actions for option in action.option_strings}
        used = {word for arguments in (*COMMANDS.get(name, []), *FIGURES.get(name, [])) for word in arguments}
        assert options & outputs <= used, name


@pytest.fixture
def same_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded once in each test: hundreds of prompts are read."""
    loaded = cache(minilens.load)
    monkeypatch.setattr("minilens.command.inputs.load", lambda name, **_: loaded(name))


def run_with(text: str, name: str, arguments: list[str], model: Path, folder: Path) -> None:
    out = folder / "out"
    words = [word.replace("TEXT", text).replace("OUT", str(out)) for word in arguments]
    options = [] if name == "study" else ["--overwrite"] if f"{out}" in " ".join(words) else []
    head = [name, str(model), "--overwrite"] if name in ("study", "live") else [name, "--model", str(model), *options]
    status, stdout, stderr = ran(*head, *words)
    valid = not re.search("[\ud800-\udfff]", text)
    said = [line for line in stderr.splitlines() if not re.search(" has no space before it: did you mean ", line)]
    if status:
        assert status == 2 and stdout == ""
        (error,) = said
        assert error.startswith("minilens: error: ")
        no_one_token = {"--right=TEXT", "--token=TEXT"} & {*arguments} and " takes one token, and " in error
        needs_a_reason = "--track=TEXT" in arguments or no_one_token or not text
        assert needs_a_reason or (not valid and "lone surrogate, U+D" in error)
        return
    assert valid
    said = [line for line in said if line not in {f"minilens: {path} is written" for path in folder.iterdir()}]
    assert not said or name == "study" or ("--csv" in arguments and "note: this is the lens of an edited" in said[0])
    if "--json" in arguments:
        record = json.loads(stdout)
        record |= record["texts"][0] if name == "attribute" else {}
        tokens = record["clean_tokens"] if name == "patching" else record["tokens"]
        assert_is_text(tokens, text + "a" if name == "patching" else text)
    elif "--csv" in arguments:
        rows = list(csv.DictReader(io.StringIO(stdout)))
        assert not any(None in row or None in row.values() for row in rows)
    elif stdout and name != "study":
        assert max(map(cell_len, stdout.splitlines())) <= WIDTH
    for path in folder.glob("out.*"):
        if path.suffix in (".html", ".svg"):
            content = path.read_text(encoding="utf-8")
            assert_shown(content)
            if path.suffix == ".svg":
                ElementTree.fromstring(content)
        path.unlink()


def assert_is_text(tokens: list[dict[str, Any]], text: str) -> None:
    """Tokens of bytes, whose labels say which bytes, are the prompt."""

    def raw(label: str) -> bytes:
        marks = {"·": b" ", "↵": b"\n", "⇥": b"\t"}
        parts = re.findall(r"\\x[0-9a-f]{2}|\\u[0-9a-f]{4}|\\U[0-9a-f]{8}|.", label.replace("◌", ""))
        return b"".join(
            bytes.fromhex(part[2:])
            if part[:2] == "\\x"
            else chr(int(part[2:], 16)).encode()
            if len(part) > 1
            else marks.get(part, part.encode())
            for part in parts
        )

    assert b"".join(raw(token["label"]) for token in tokens) == text.encode()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [(name, each) for name, several in COMMANDS.items() for each in several],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_any_prompt_in_every_command(
    gpt2: Path, same_model: None, tmp_path: Path, name: str, arguments: list[str]
) -> None:
    @settings(max_examples=6, deadline=None)
    @example(text=PROMPTS_AT_ONCE[:200].replace("\0", ""))
    @example(text="\0")
    @example(text=" " * 100)
    @example(text="\ud800")
    @given(text=PROMPTS)
    def check(text: str) -> None:
        run_with(text, name, arguments, gpt2, tmp_path)

    check()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [(name, each) for name, several in FIGURES.items() for each in several],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
@pytest.mark.parametrize("text", [NAME, "\udcff"], ids=ascii)
def test_some_prompts_in_every_figure(
    gpt2: Path, same_model: None, tmp_path: Path, name: str, arguments: list[str], text: str
) -> None:
    run_with(text, name, arguments, gpt2, tmp_path)
    if name == "study" and text == NAME:
        (folder,) = tmp_path.iterdir()
        assert_shown((folder / "report.html").read_text(encoding="utf-8"))
        assert_shown((folder / "numbers.csv").read_text(encoding="utf-8"))


def test_a_folder_of_a_hostile_name(gpt2: Path, tmp_path: Path) -> None:
    folder = tmp_path / f"{NAME.replace('/', '')}"
    folder.symlink_to(gpt2)
    for command in (["lens", "a"], ["walk", "a"], ["patching", "a", "b", "--right", "a"], ["geometry"], ["heads"]):
        status, out, err = ran(*command, "--model", folder)
        assert (status, err) == (0, "") and out
    for option in ("html", "svg"):
        path = tmp_path / f"out.{option}"
        for command in (["lens", "a", "--zero", "0.z"], ["patching", "a", "b", "--right", "a"]):
            assert ran(*command, "--model", folder, f"--{option}", path)[0] == 0
            assert_shown(path.read_text(encoding="utf-8"))
            path.unlink()
    assert ran("trace", "a", "--model", folder, "--out", tmp_path / "out")[0] == 0


def test_a_corpus_of_a_hostile_name(gpt2: Path, tmp_path: Path) -> None:
    out = tmp_path / NAME.replace("/", "")
    path = out.with_suffix(".txt")
    path.write_text("\n<|endoftext|>\n".join(HOSTILE * 3), encoding="utf-8")
    for options in ([], ["--json"], ["--csv"]):
        status, stdout, _ = ran("corpus", gpt2, path, "--out", out, "--window", "50", *options)
        assert status == 0 and stdout
    for name in ("report.html", "report.json", "numbers.csv"):
        assert_shown((out / name).read_text(encoding="utf-8"))


def test_arguments_that_are_not_utf8(gpt2: Path) -> None:
    """As a process gets them, in UTF-8 mode; a file and stdin of such bytes are in test_bad_input.py."""
    command = [sys.executable, "-m", "minilens", "lens", b"caf\xe9", "--model", str(gpt2)]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONUTF8": "1"})
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode() == (
        "minilens: error: the text is not valid Unicode: character 3 is a lone surrogate, U+DCE9; remove it or read "
        "the text as UTF-8\n"
    )


@pytest.mark.parametrize("name", ["lens", "trace", "walk", "study"])
def test_ten_megabytes(gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Refused before it is decoded, whatever it is; a byte less than the bound is read, and is beyond the context."""
    path, options = tmp_path / "text", {"trace": ["--out", tmp_path / "out"], "study": ["--out", tmp_path / "out"]}
    model = [gpt2, "--word", NAME] if name == "study" else ["--model", gpt2]
    path.write_bytes(b"\xff" * 10_000_000)
    sentence = f"minilens: error: {path} has more than 1,000,000 bytes, too many for any context: shorten it\n"
    assert ran(name, "--file", path, *model, *options.get(name, [])) == (2, "", sentence)
    if name != "study":
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
        found = ran(name, *model, *options.get(name, []))
        assert found == (2, "", sentence.replace(str(path), "stdin"))
    path.write_bytes(b" " * LARGEST)
    status, out, err = ran(name, "--file", path, *model, *options.get(name, []))
    assert (status, out) == (2, "")
    assert "has 1000000 tokens, but the model's context holds 1000: shorten it" in err


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="there is no /dev/zero on this system")
def test_a_file_without_an_end(gpt2: Path) -> None:
    assert ran("lens", "--file", "/dev/zero", "--model", gpt2)[2].startswith("minilens: error: /dev/zero has more than")


def test_a_passage_of_white_space_that_python_knows_and_ctrl_does_not(tiny: Tiny) -> None:
    """Such a character is a word to the tokenizer; the control code goes before it."""
    model, _ = minilens.load(tiny("ctrl", n_positions=200)[1])
    vocab = {"<unk>": 0, "Links": 1} | {f"w{n}": n for n in range(2, 101)}
    merges = [("w", "9"), ("w9", "9</w>"), ("L", "i"), ("Li", "n"), ("Lin", "k"), ("Link", "s</w>")]
    tokenizer = WordBPE(vocab, merges)
    found = study("x", model, tokenizer, passage="\x1c \x1d", word="w99")
    assert found.texts["passage"] == "Links \x1c \x1d"
    assert found.texts["repetition"].startswith("Links ")

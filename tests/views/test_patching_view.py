"""Patching shown: every number is the Patching's, what cannot change looks it, and no token is anything but text."""

import html
import importlib
import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import Letters, changed, tokenizer_json
from conftest import Tiny
from rich.console import Console

import minilens
from minilens.command.main import main
from minilens.instruments.metrics import log_probability, logit_difference
from minilens.instruments.patching import Patching, patching
from minilens.views.patching import patching_page, patching_view
from minilens.views.records import patching_record
from minilens.views.tokens import token_label

HOSTILE = "</td><img src=x onerror=alert(1)>$title"
LETTERS = Letters({0: HOSTILE.encode(), 1: b"\x1b[31m", 2: b"\n", 3: b"\xe2\x82", 4: "\u202e".encode(), 5: b'"><!--'})
CLEAN = [0, 1, 2, 3, 4, 5, 100, 7, 8]
CORRUPT = [0, 1, 5, 3, 4, 5, 100, 0, 8]  # others at positions 2 and 7
WAYS = ["position", "head"]
Opener = Callable[..., Any]


def made(by: str) -> Patching:
    """Numbers from -3 to 3 of the way, some of them exactly 0 or 1, in two sites of four layers."""
    random = torch.Generator().manual_seed(7)
    n_places = len(CLEAN) if by == "position" else 5
    metric, can_change = {}, {}
    for site in ("q", "z"):
        recovered = torch.randn(4, n_places, generator=random).clamp(-3, 3)
        recovered[1, :4] = torch.tensor([0.0, 1.0, -1.0, -0.004])
        can_change[site] = torch.rand(4, n_places, generator=random) > 0.4
        can_change[site][1, :4] = True
        metric[site] = torch.where(can_change[site], 2 * recovered - 0.5, torch.tensor(-0.5))
    return Patching(by, metric, can_change, 1.5, -0.5, torch.tensor(CLEAN), torch.tensor(CORRUPT), LETTERS)


@pytest.fixture(params=WAYS)
def found(request: pytest.FixtureRequest) -> Patching:
    return made(request.param)


def parts(found: Patching) -> dict[str, tuple[Any, Any, Any]]:
    """recovered, metric and can_change of each site, reckoned here."""
    return {
        site: ((metric.double().numpy() + 0.5) / 2, metric.double().numpy(), found.can_change[site].numpy())
        for site, metric in found.metric.items()
    }


def two(value: float) -> str:
    text = f"{value:.2f}"
    return "0.00" if text == "-0.00" else text


def texts(found: Patching) -> tuple[list[str], list[str]]:
    """What stands above the columns and below them."""
    label = [token_label(LETTERS, token) for token in CLEAN]
    above = [text if ours != theirs else "" for text, ours, theirs in zip(label, CLEAN, CORRUPT, strict=True)]
    return above, [token_label(LETTERS, token) for token in CORRUPT]


def shown(found: Patching, width: int = 1000, **options: Any) -> str:
    out = io.StringIO()
    Console(file=out, width=width, **options).print(patching_view(found, title="Sue, not Tom", width=width))
    return out.getvalue()


# ---- The terminal


@pytest.mark.parametrize("width", [1000, 80, 30])
def test_the_terminal_has_every_number(found: Patching, width: int) -> None:
    title, *lines = shown(found, width).splitlines()
    assert title == "Sue, not Tom"
    assert max(map(len, lines)) <= width
    for site, (recovered, _, can_change) in parts(found).items():
        order = [line.split()[0] for line in lines if re.match(rf"\d\.{site} ", line)]
        assert order[:4] == [f"3.{site}", f"2.{site}", f"1.{site}", f"0.{site}"]  # the last layer on top
        for layer in range(4):
            cells = [cell for line in lines if line.startswith(f"{layer}.{site} ") for cell in line.split()[1:]]
            pairs = zip(recovered[layer], can_change[layer], strict=True)
            assert cells == [two(value) if can else "░░░░" for value, can in pairs]


def test_the_terminal_has_the_tokens_and_the_legend() -> None:
    lines = shown(made("position")).splitlines()
    above, below = texts(made("position"))
    heads = [line.split() for line in lines if line.startswith("position")]
    assert heads == [["position", *map(str, range(9))]] * 2
    wide = [text if len(text) <= 12 else text[:11] + "…" for text in below]
    assert [line.split()[1:] for line in lines if line.startswith("corrupt")] == [wide] * 2
    starts = [match.start() for match in re.finditer(r"\S+", next(line for line in lines if line.startswith("corr")))]
    (clean, _) = [line for line in lines if line.startswith("clean")]
    assert clean.split()[1:] == [above[2], above[7]]
    assert [clean.index(above[2], 5), clean.index(above[7], starts[8] - 1)] == [starts[3], starts[8]]
    assert lines[-3:] == [
        "recovered: 0 is the corrupt run (metric -0.5000), 1 the clean one (1.500)",
        "blue: towards the clean run; orange: away from it; deepest from 1 and -1 on",
        "hatched: cannot change",
    ]
    of_heads = made("head")
    everything = replace(of_heads, can_change={site: can | True for site, can in of_heads.can_change.items()})
    assert "hatched" not in shown(everything) and "░" not in shown(everything)
    assert "corrupt  " not in shown(everything) and "head  " in shown(everything)


def test_colours_tell_the_directions_apart(found: Patching) -> None:
    """Blue grows from 0 to 1 and orange from 0 to -1; further out they stay as they are."""
    coloured = shown(found, force_terminal=True, color_system="truecolor")
    for site, (recovered, _, can_change) in parts(found).items():
        for layer in range(4):
            (line,) = [line for line in coloured.splitlines() if re.match(rf"\x1b\[2m{layer}\.{site} ", line)]
            cells = re.findall(r"\x1b\[38;2;0;0;0;48;2;(\d+);(\d+);(\d+)m([ -]\d\.\d\d)", line)
            assert len(cells) == can_change[layer].sum()
            assert line.count("\x1b[2m ░░░░") == (~can_change[layer]).sum()
            for value, (*rgb, text) in zip(recovered[layer][can_change[layer]], cells, strict=True):
                assert text.strip() == two(value)
                end = (86, 180, 233) if value > 0 else (230, 159, 0)
                wanted = [244 + (to - 244) * min(abs(value), 1) for to in end]
                assert all(abs(int(c) - w) <= 1 for c, w in zip(rgb, wanted, strict=True))


def test_what_is_no_number_has_no_shade() -> None:
    found = made("head")
    found.metric["q"][1, 0] = torch.nan
    coloured = shown(found, force_terminal=True, color_system="truecolor")
    assert re.search(r"48;2;244;244;244m nan", coloured)
    assert '--far: 0.0%" title="metric nan">nan</td>' in patching_page(found)


# ---- The page


class Page(HTMLParser):
    """The tables of a page as [row][cell], a cell being its attributes and its text, and every tag that there is."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[list[tuple[dict[str, str | None], str]]]] = []
        self.tags: set[str] = set()
        self.is_open = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append((dict(attrs), ""))
            self.is_open = True

    def handle_endtag(self, tag: str) -> None:
        self.is_open = self.is_open and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.is_open:
            attrs, text = self.tables[-1][-1].pop()
            self.tables[-1][-1].append((attrs, text + data))


def test_the_page_has_every_number(found: Patching) -> None:
    tables = Page(patching_page(found)).tables
    assert len(tables) == 4  # a grid for each site, then the metric of each
    frame = 2 if found.by == "position" else 0
    for (site, (recovered, metric, can_change)), grid, numbers in zip(
        parts(found).items(), tables[:2], tables[2:], strict=True
    ):
        for table in (grid, numbers):
            assert len(table) == 1 + 4 + frame
            assert [text for _, text in table[0]] == [found.by, *map(str, range(metric.shape[1]))]
        for row in range(4):
            layer = 3 - row
            (_, name), *cells = grid[row + 1 + frame // 2]
            assert name == f"{layer}.{site}"
            for place, (attrs, text) in enumerate(cells):
                if not can_change[layer, place]:
                    assert (attrs, text) == ({"class": "cannot", "title": "cannot change"}, "")
                    continue
                value = recovered[layer, place]
                assert text == two(value)
                assert (attrs["class"] == "towards") == (value > 0)
                far = float(str(attrs["style"]).removeprefix("--far: ").removesuffix("%"))
                assert far == pytest.approx(100 * min(abs(value), 1), abs=0.051)
                assert float(str(attrs["title"]).removeprefix("metric ")) == pytest.approx(
                    metric[layer, place], rel=5.1e-4
                )
            values = [float(text) for _, text in numbers[row + 1 + frame // 2][1:]]
            assert values == pytest.approx(metric[layer].tolist(), rel=5.1e-4)


def test_tokens_on_the_page_are_text() -> None:
    page = patching_page(made("position"), title=HOSTILE)
    read = Page(page)
    assert read.tags == set("html head meta title style body main h1 p dl dt dd span mark div table".split()) | set(
        "thead tbody tfoot tr th td details summary".split()
    )
    above, below = texts(made("position"))
    for table in read.tables:
        assert [text for _, text in table[1]] == ["clean", *above]
        assert [text for _, text in table[-1]] == ["corrupt", *below]
    assert page.count(f"<title>{html.escape(HOSTILE)}</title>") == 1
    assert html.escape(HOSTILE) in page and "\x1b" not in page and "\u202e" not in page
    for kind, tokens, others in (("Clean", CLEAN, CORRUPT), ("Corrupt", CORRUPT, CLEAN)):
        ((text,),) = [re.findall(rf"<dt>{kind} text, 9 tokens</dt><dd>(.*?)</dd>", page)]
        marked = [html.unescape(mark) for mark in re.findall("<mark>(.*?)</mark>", text)]
        assert marked == [token_label(LETTERS, a) for a, b in zip(tokens, others, strict=True) if a != b]
    assert "#100" in page  # an id without text


def test_a_page_names_nothing_outside_itself(found: Patching) -> None:
    page = patching_page(replace(found, tokenizer=None))
    assert not re.search(r"https?:|//|src=|href=|url\(|@import|<script", page)
    assert "default-src 'none'" in page and "script-src" not in page
    assert "Activation patching" in page and "-0.5000 (0)" in page and "1.500 (1)" in page
    assert ("a head at all positions" in page) == (found.by == "head")


def test_a_page_in_a_browser(opened: Opener) -> None:
    found = made("position")
    page = opened(patching_page(found))
    recovered, _, can_change = parts(found)["q"]
    read = """() => [...document.querySelectorAll('table')[0].tBodies[0].rows].map(row =>
      [...row.cells].slice(1).map(cell => [getComputedStyle(cell).backgroundColor,
                                           getComputedStyle(cell).backgroundImage, getComputedStyle(cell).color]))"""

    def check(ends: dict[bool, tuple[int, int, int]], neutral: tuple[int, int, int]) -> None:
        for layer, row in zip((3, 2, 1, 0), page.evaluate(read), strict=True):
            for value, can, (colour, image, ink) in zip(recovered[layer], can_change[layer], row, strict=True):
                assert ("gradient" in image) == (not can)
                if not can:
                    continue
                rgb = [float(part) * 255 for part in re.findall(r"[\d.]+", colour)[:3]]
                pairs = zip(neutral, ends[bool(value > 0)], strict=True)
                wanted = [zero + (end - zero) * min(abs(value), 1) for zero, end in pairs]
                assert rgb == pytest.approx(wanted, abs=1)
                assert contrast(wanted, [int(part) for part in re.findall(r"\d+", ink)]) >= 4.5  # WCAG 2, AA

    check({True: (86, 180, 233), False: (230, 159, 0)}, (244, 244, 244))
    page.emulate_media(color_scheme="dark")
    check({True: (0, 103, 159), False: (149, 80, 0)}, (40, 44, 49))
    for width in (400, 1200):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") == width
    # The whole of it by keyboard: each grid can be scrolled, and the numbers unfolded.
    for _ in range(3):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector('details').open")
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    assert page.locator("td.token").first.inner_text() == texts(found)[0][2]


def contrast(one: list[float], other: list[float]) -> float:
    """The contrast ratio of WCAG 2."""

    def luminance(rgb: list[float]) -> float:
        c = np.array(rgb) / 255
        return float(np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_a_notebook_gets_a_frame_in_which_nothing_runs(found: Patching, opened: Opener) -> None:
    frame = found._repr_html_()
    (page,) = re.findall(
        r'<iframe class="minilens" title="Activation patching" sandbox="" srcdoc="([^"<>]*)" style="[^"]*"', frame
    )
    assert html.unescape(page) == patching_page(found)
    n = 9 if found.by == "position" else 5
    assert repr(found) == f"Patching of q, z in 4 layers by {n} {found.by}s: metric 1.5 clean, -0.5 corrupt"
    shown = opened(f"<!doctype html><meta charset=utf-8>{frame}").frame_locator("iframe")
    assert shown.locator("td.cannot").count() == sum(int((~can).sum()) for can in found.can_change.values())


# ---- The figure


def test_the_figure_has_every_number(found: Patching) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib, of the extra plot, is not installed")
    from minilens.views.patching_figure import patching_figure

    figure = patching_figure(found, title="$Sue$")
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == 2
    for axes, (site, (recovered, _, can_change)) in zip(panels, parts(found).items(), strict=True):
        image = axes.images[0]
        assert (np.ma.getmaskarray(image.get_array()) == ~can_change).all()
        assert np.allclose(image.get_array().compressed(), recovered[can_change])
        assert (image.norm.vmin, image.norm.vmax, image.origin) == (-1, 1, "lower")
        low, zero, high = (image.cmap(image.norm(value)) for value in (-1, 0, 1))
        assert low[0] > low[2] and high[2] > high[0] and min(zero[:3]) > 0.9  # orange, blue, and nearly white
        written = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}
        n_layers, n_places = recovered.shape
        assert written == {
            (x, y): two(recovered[y, x]) if can_change[y, x] else "" for y in range(n_layers) for x in range(n_places)
        }
        (hatched,) = axes.collections
        corners = {tuple(np.round(path.vertices.min(0) + 0.5).astype(int)) for path in hatched.get_paths()}
        assert hatched.get_hatch() and corners == {(x, y) for y, x in np.argwhere(~can_change)}
        assert [label.get_text() for label in axes.get_yticklabels()] == [f"{layer}.{site}" for layer in (3, 2, 1, 0)]
        assert axes.get_title(loc="left") == f"$Sue$\n{site}"
        below = [label.get_text() for label in axes.get_xticklabels()]
        if found.by == "head":
            assert below == [f"head {head}" for head in range(5)]
        else:
            cut = [text if len(text) <= 12 else text[:11] + "…" for text in texts(found)[1]]
            assert below == cut
    assert [text.get_text() for text in figure.texts] == shown(found).splitlines()[-3:]
    figure.canvas.draw()  # a warning, as of a glyph that is missing, would be an error


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "minilens.views.patching" in sys.modules  # which needs none
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"] or ["matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("patching_figure", "heatmap", "plots"):
        monkeypatch.delitem(sys.modules, f"minilens.views.{name}", raising=False)
    with pytest.raises(ValueError, match="pip install matplotlib"):
        importlib.import_module("minilens.views.patching_figure")


# ---- The command

Capture = pytest.CaptureFixture[str]
TEXTS = "ABCABD", "ABDABD"
TOKENS = "--right", "C", "--wrong", "D"


@pytest.fixture(scope="module")
def gpt2(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 with a tokenizer, in which a capital is a token."""
    folder = tmp_path_factory.mktemp("patches") / "gpt2"
    return changed(tiny("gpt2")[1], folder, files={"tokenizer.json": tokenizer_json()})


@pytest.fixture(autouse=True)
def pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    monkeypatch.setenv("TERM", "xterm")
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def run(capsys: Capture, *args: Any) -> str:
    status = main(["patching", *map(str, args)])
    out, err = capsys.readouterr()
    files = [path for option, path in pairwise(args) if option in ("--html", "--png", "--svg", "--pdf")]
    assert (status, err) == (0, "".join(f"minilens: {path} is written\n" for path in files))
    return out


def computed(folder: Path, **options: Any) -> Patching:
    model, tokenizer = minilens.load(folder)
    assert tokenizer is not None
    clean, corrupt = map(tokenizer.encode, TEXTS)
    right, wrong = (int(tokenizer.encode(letter)[0, 0]) for letter in "CD")
    options = {"metric": logit_difference(right, wrong), **options}
    return patching(model, clean, corrupt, tokenizer=tokenizer, **options)


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ((), {}),
        (("--by", "head"), dict(by="head", sites="z")),
        (("--by", "head", "--sites", "pattern, v"), dict(by="head", sites=("pattern", "v"))),
        (("--sites", "resid_mid", "--position", "-2"), dict(sites="resid_mid", position=4)),
        (("--position", "3"), dict(position=3)),
    ],
    ids=str,
)
def test_the_command_prints_the_patching(
    gpt2: Path, capsys: Capture, given: tuple[str, ...], options: dict[str, Any]
) -> None:
    found = computed(gpt2, **options)
    command = (*TEXTS, *TOKENS, "--model", gpt2, *given)
    position = options.get("position", 5)
    title = f"{gpt2}: logit of C less that of D, at position {position}"
    assert run(capsys, *command) == shown(found, 500).replace("Sue, not Tom", title)
    record = json.loads(run(capsys, *command, "--json"))
    assert (record["schema"], record["model"], record["family"]) == (1, str(gpt2), "gpt2")
    assert (record["by"], record["position"]) == (found.by, position)
    assert (record["clean"], record["corrupt"]) == (found.clean, found.corrupt)
    assert [record[name]["label"] for name in ("right", "wrong")] == ["C", "D"]
    for name, letters in zip(("clean_tokens", "corrupt_tokens"), TEXTS, strict=True):
        assert [token["text"] for token in record[name]] == list(letters)
        assert [token["id"] for token in record[name]] == getattr(found, name).tolist()
    assert list(record["metric"]) == list(found.metric)
    for site, metric in found.metric.items():
        assert record["metric"][site] == metric.tolist()
        assert record["can_change"][site] == found.can_change[site].tolist()
        assert record["recovered"][site] == found.recovered(site).tolist()


def test_without_wrong_it_is_the_log_probability(gpt2: Path, capsys: Capture) -> None:
    out = run(capsys, *TEXTS, "--right", "C", "--model", gpt2, "--sites", "attn_out")
    _, tokenizer = minilens.load(gpt2)
    assert tokenizer is not None
    right = int(tokenizer.encode("C")[0, 0])
    found = computed(gpt2, metric=log_probability(right), sites="attn_out")
    assert out == shown(found, 500).replace("Sue, not Tom", f"{gpt2}: log-probability of C, at position 5")
    assert run(capsys, *TEXTS, "--right", f"#{right}", "--model", gpt2, "--sites", "attn_out") == out


def test_the_command_by_head_and_position_over_paths_and_with_a_metric_by_name(gpt2: Path, capsys: Capture) -> None:
    model, tokenizer = minilens.load(gpt2)
    assert tokenizer is not None
    clean, corrupt = map(tokenizer.encode, TEXTS)
    right = int(tokenizer.encode("C")[0, 0])
    found = computed(gpt2, by="head_position", sites="z", metric=minilens.named_metric("probability", right))
    command = (*TEXTS, "--right", "C", "--model", gpt2)
    out = run(capsys, *command, "--by", "head_position", "--metric", "probability")
    assert out == shown(found, 500).replace("Sue, not Tom", f"{gpt2}: probability of C, at position 5")
    rows = [line.split()[0] for line in out.splitlines() if ".z:" in line]
    assert rows == [f"{layer}.z:{head}" for layer in (2, 1, 0) for head in (4, 3, 2, 1, 0)]
    assert ">2.z:4</th>" in patching_page(found) and "a head at a position" in patching_page(found)
    record = json.loads(run(capsys, *command, "--to", "2.q:1", "--to", "1.mlp_post", "--frozen", "attn_out", "--json"))
    path = minilens.path_patching(
        model, clean, corrupt, log_probability(right), to=[(2, "q", 1), (1, "mlp_post")], frozen="attn_out"
    )
    assert record["metric"]["z"] == path.metric["z"].tolist()
    assert (record["to"], record["frozen"], record["by"]) == (["2.q:1", "1.mlp_post"], ["attn_out"], "head")
    direct = minilens.path_patching(model, clean, corrupt, log_probability(right), tokenizer=tokenizer)
    title = f"{gpt2}: log-probability of C, at position 5, straight to logits"
    assert run(capsys, *command, "--to", "logits") == shown(direct, 500).replace("Sue, not Tom", title)


def test_means_over_pairs_show_the_tokens_that_all_have() -> None:
    """And the standard error is in the data, beside what it is of."""
    found = made("position")
    more = replace(found, clean_tokens=torch.tensor([4, *CLEAN[1:]]), clean=2.5)
    several = replace(found, texts=(found, more), clean_tokens=torch.tensor([-1, *CLEAN[1:]]), clean=2.0)
    assert shown(several).splitlines()[-1] == "means of 2 pairs of texts" and "means of 2 pairs" in patching_page(
        several
    )
    record = patching_record(several)
    assert record["clean_tokens"][0] is None and record["standard_error"]["q"] == several.standard_error("q").tolist()
    assert several.standard_error("q").shape == found.metric["q"].shape and several.standard_error("q").max() > 0


def test_files(gpt2: Path, capsys: Capture, tmp_path: Path) -> None:
    command = (*TEXTS, *TOKENS, "--model", gpt2, "--sites", "z")
    page, png, svg = (tmp_path / name for name in ("a.html", "a.png", "a.svg"))
    assert run(capsys, *command, "--html", page) == ""
    title = f"{gpt2}: logit of C less that of D, at position 5"
    assert page.read_text(encoding="utf-8") == patching_page(computed(gpt2, sites="z"), title=title)
    pytest.importorskip("matplotlib", reason="matplotlib, of the extra plot, is not installed")
    assert run(capsys, *command, "--png", png, "--svg", svg) == ""
    assert png.read_bytes().startswith(b"\x89PNG") and b"<svg" in svg.read_bytes()
    before = svg.read_bytes()
    assert run(capsys, *command, "--html", page, "--svg", svg, "--overwrite") == ""
    assert svg.read_bytes() == before


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_progress_bar_is_for_a_terminal(gpt2: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    command = (*TEXTS, *TOKENS, "--model", gpt2, "--json")
    plain = run(capsys, *command)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["patching", *map(str, command)]) == 0
    assert capsys.readouterr().out == plain
    assert "patching" in terminal.getvalue() and "100%" in terminal.getvalue()


REFUSALS = [
    (
        ("ABC", "ABDE", *TOKENS),
        "patching needs two texts of as many tokens; clean has 3: A B C; corrupt has 4: A B D E",
    ),
    (("", "", *TOKENS), "both texts are empty: they must hold at least one token"),
    (("ABC", "", *TOKENS), "patching needs two texts of as many tokens; clean has 3: A B C; corrupt has 0: "),
    ((*TEXTS, "--right", "CD"), "--right takes one token, and 'CD' is 2: C D; a word within a text"),
    ((*TEXTS, "--right", "C", "--wrong", "CD"), "--wrong takes one token, and 'CD' is 2: C D; a word"),
    ((*TEXTS, "--right", "#101"), "--right: token id 101 does not exist: they go from 0 to 100"),
    ((*TEXTS, "--right", "C", "--wrong", "#101"), "--wrong: token id 101 does not exist: they go from 0 to 100"),
    ((*TEXTS, "--right", "C", "--wrong", "C"), "the metric is 0 for both texts, so that there is nothing to recover"),
    (("ABC", "ABC", *TOKENS), "the metric is "),
    (TEXTS, "the following arguments are required: --right (see minilens patching --help)"),
    ((*TEXTS, *TOKENS, "--to", "2.q:1@3"), "--to takes no positions: a receiver is a value at all of them, such as"),
    ((*TEXTS, *TOKENS, "--to", "here"), "an edit is named like 5.attn_out, 5.z:0,3 (heads)"),
    ((*TEXTS, *TOKENS, "--metric", "logit"), "logit takes the right token, and no wrong one: leave it out"),
    ((*TEXTS, *TOKENS, "--by", "layer"), 'by must be "position", "head" or "head_position"; got "layer"'),
    ((*TEXTS, *TOKENS, "--sites", ""), '"" cannot be patched by position; resid_pre, q, '),
    (
        (*TEXTS, *TOKENS, "--by", "head", "--sites", "mlp_out"),
        '"mlp_out" cannot be patched by head; q, k, v, pattern, z',
    ),
    ((*TEXTS, *TOKENS, "--position", "6"), "position 6 does not exist: the texts have 6 tokens, so positions 0 to 5"),
    ((*TEXTS, *TOKENS, "--json", "--html", "x"), "--json and --html are both given: choose one"),
    (
        (*TEXTS, *TOKENS, "--html", "x.png", "--png", "x.png"),
        "--html and --png are both to be x.png: give another name",
    ),
    ((*TEXTS, *TOKENS, "--png", "x.svg"), "the name of the file for --png must end in .png; got 'x.svg'"),
    ((*TEXTS, *TOKENS, "--html", "/no/x"), "/no/x cannot be written: there is no such folder"),
]


def refusal(capsys: Capture, *args: Any) -> str:
    """The one line in which the command refuses."""
    status = main(["patching", *map(str, args)])
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1)
    return err.removeprefix("minilens: error: ").removesuffix("\n")


@pytest.mark.parametrize(("given", "sentence"), REFUSALS, ids=lambda value: str(value)[:60])
def test_what_the_command_refuses(gpt2: Path, capsys: Capture, given: tuple[str, ...], sentence: str) -> None:
    assert refusal(capsys, *given, "--model", gpt2).startswith(sentence)


def test_what_it_cannot_read_or_write(gpt2: Path, tiny: Tiny, capsys: Capture, tmp_path: Path) -> None:
    there = tmp_path / "there.html"
    there.write_text("mine")
    line = refusal(capsys, *TEXTS, *TOKENS, "--model", gpt2, "--html", there)
    assert line == f"{there} exists: give another name, or --overwrite" and there.read_text() == "mine"
    _, folder = tiny("gpt2")
    line = refusal(capsys, *TEXTS, *TOKENS, "--model", folder)
    assert line == f"{folder} has no tokenizer that minilens reads, so it cannot read the two texts"


def test_a_metric_that_is_no_number(gpt2: Path) -> None:
    with pytest.raises(ValueError, match="the metric is nan and nan for the two texts; it must be finite"):
        computed(gpt2, metric=lambda logits: logits[:, 0] * torch.nan)


def test_hints_are_given_once(capsys: Capture) -> None:
    """CTRL's texts open with a control code."""
    texts = ("Tom gave Sue", "Sue gave Tom")
    assert main(["patching", *texts, "--right", "Sue", "--model", "tales-ctrl", "--sites", "z", "--by", "head"]) == 0
    assert capsys.readouterr().err.count("minilens: note: ") == 1

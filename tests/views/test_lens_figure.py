"""The figure draws the numbers and the texts of the table, on the scales that it promises."""

import importlib
import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import Letters
from conftest import Tiny

import minilens
from minilens.views.tokens import token_label
from minilens.vocab import TokenStats, Top

matplotlib = pytest.importorskip("matplotlib", reason="matplotlib, of the extra plot, is not installed")
from matplotlib.colors import LogNorm  # noqa: E402

from minilens.views import lens_figure as views_figure  # noqa: E402
from minilens.views.heatmap import LONGEST, LONGEST_LABEL  # noqa: E402
from minilens.views.lens_figure import lens_figure  # noqa: E402
from minilens.views.lens_page import lens_page  # noqa: E402
from minilens.views.lens_panels import ENDS, MEASURES, long_name, panel  # noqa: E402
from minilens.views.lens_terminal import _shades  # noqa: E402
from minilens.views.plots import save_figure  # noqa: E402

HOSTILE = {
    0: b"$x_{",
    1: b"$\\frac{1}{0}$",
    2: b"\x1b[31m",
    3: "日本語".encode(),
    4: b"\xe2\x82",
    5: b"\n",
    6: b"a long one, far too long",
    7: "\N{CRAB}".encode(),
    8: b" two",
    9: b"",
}
STANDINGS = [f"{who}_{part}" for who in ("final", "next", "input", "token7") for part in ("logit", "prob", "rank")]
PANELS = ["logit", "prob", "rank", "kl", *MEASURES, "top_logprob", *STANDINGS]


LETTERS = Letters(HOSTILE)


@pytest.fixture(scope="module")
def table(tiny: Tiny) -> minilens.LensTable:
    """Ten hostile tokens and ten others; the last has no next token."""
    model, _ = minilens.load(tiny("gpt2")[1])
    return minilens.logit_lens(
        model, torch.arange(20)[None], sites=("resid_mid", "resid_post"), stats="all", track=(7, 50), tokenizer=LETTERS
    )


@pytest.fixture(scope="module")
def long_table(tiny: Tiny) -> minilens.LensTable:
    model, _ = minilens.load(tiny("gpt2", n_positions=200)[1])
    text = torch.randint(0, 101, (1, 200), generator=torch.Generator().manual_seed(5))
    return minilens.logit_lens(model, text, tokenizer=LETTERS)


@pytest.fixture(scope="module")
def short_table(tiny: Tiny) -> minilens.LensTable:
    model, _ = minilens.load(tiny("gpt2")[1])
    return minilens.logit_lens(model, torch.tensor([[3]]), stats="all", tokenizer=LETTERS)


def value(table: minilens.LensTable, name: str, style: str | None = None) -> torch.Tensor:
    """What a panel should show."""
    if name in ("logit", "prob"):
        return getattr(table.final, name) if style == "2021" else getattr(table.top, name)[..., 0]
    name = {"rank": "final_rank", "kl": "kl_final"}.get(name, name)
    if name in MEASURES:
        return getattr(table, name).double()
    who, part = name.split("_")
    if who == "token7":
        return getattr(table.tracked, part)[..., 0]
    return table.top.logprob[..., 0] if who == "top" else getattr(getattr(table, who), part)


def panels(figure: Any) -> list[Any]:
    return [axes for axes in figure.axes if axes.images]


def drawn(axes: Any) -> np.ma.MaskedArray:
    return axes.images[0].get_array()


def cells(axes: Any) -> dict[tuple[int, int], str]:
    """(row, pos) -> text."""
    return {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in axes.texts}


def labels(axis: Any) -> dict[int, str]:
    return dict(zip(map(int, axis.get_ticklocs()), (label.get_text() for label in axis.get_ticklabels()), strict=True))


def rows(axes: Any) -> list[str]:
    return [label for _, label in sorted(labels(axes.yaxis).items())]


def short(token: int, longest: int) -> str:
    """A token as the figure shows it with matplotlib's own font, which has neither Japanese nor crabs."""
    text = token_label(LETTERS, token).replace("日本語", r"\u65e5\u672c\u8a9e").replace("\N{CRAB}", r"\U0001f980")
    return text if len(text) <= longest else text[: longest - 1] + "…"


@pytest.mark.parametrize("style", [None, "2020", "2021"])
@pytest.mark.parametrize("show", PANELS)
def test_every_number_and_text_is_the_tables(table: minilens.LensTable, show: str, style: str | None) -> None:
    figure = lens_figure(table, show=show, style=style)
    (axes,) = panels(figure)
    wanted = value(table, show, style).double().numpy()
    missing = np.isnan(wanted) | ((wanted == 0) if show.endswith("rank") else False)
    assert (np.ma.getmaskarray(drawn(axes)) == missing).all()
    assert (drawn(axes).compressed() == wanted[~missing]).all()
    form = (
        "{:.0f}"
        if show.endswith("rank")
        else "{:.2f}"
        if show == "js"
        else "{:.1f}"
        if show in {"kl", *MEASURES} - {"agrees"}
        else None
    )
    best = table.top.tokens[..., 0].tolist()
    assert cells(axes) == {
        (r, p): ("" if missing[r, p] else form.format(wanted[r, p])) if form else short(best[r][p], LONGEST)
        for r in range(wanted.shape[0])
        for p in range(wanted.shape[1])
    }
    assert labels(axes.yaxis) == dict(enumerate(table.labels))
    assert axes.get_ylim()[0] < axes.get_ylim()[1] and axes.images[0].origin == "lower"  # the output on top


@pytest.mark.parametrize(
    ("show", "style", "low", "high"),
    [
        ("rank", None, 1, 1000),
        ("kl", None, 0, 10),
        ("entropy", None, 0, 10),
        ("js", None, 0, math.log(2)),
        ("prob", None, 0, 1),
        ("logit", None, 5, 95),
        ("rank", "2020", 1, 100),
        ("rank", "2021", 1, 2000),
        ("input_rank", "2020", 1, 1000),
        ("input_rank", "2021", 1, 2000),
        ("kl", "2020", 0, 30),
        ("kl_input", "2020", 0, 30),
        ("kl", "2021", 0, None),
        ("entropy", "2020", 0, None),
        ("prob", "2020", 0, 1),
        ("prob", "2021", 0, 1),
        ("agrees", "2021", 0, 1),
        ("logit", "2020", 5, 95),
        ("logit", "2021", 5, 95),
    ],
)
def test_scales(table: minilens.LensTable, show: str, style: str | None, low: float, high: float | None) -> None:
    (axes,) = panels(lens_figure(table, show=show, style=style, every=2))
    image = axes.images[0]
    if show == "logit":  # percentiles of the cells drawn
        low, high = np.percentile(drawn(axes).compressed(), [low, high])
    high = drawn(axes).max() if high is None else high
    assert (image.norm.vmin, image.norm.vmax) == (low, high)
    assert isinstance(image.norm, LogNorm) == show.endswith("rank")
    bright = image.cmap(1.0 if show in ("prob", "agrees", "logit") else 0.0)
    assert sum(bright[:3]) > 1.8  # the end that is near to the output, or sure
    beyond = image.to_rgba(np.array([high, 10 * high if high > 0 else high]))
    assert (beyond[0] == beyond[1]).all()


@pytest.mark.parametrize("show", ["prob", "logit", "rank", "kl", "js", "entropy", "agrees", "next_logprob"])
def test_terminal_page_and_figure_have_the_same_shades(table: minilens.LensTable, show: str) -> None:
    """tests/views/test_lens_page.py compares the page's colours with the numbers."""
    (axes,) = panels(lens_figure(table, show=show))
    shades = np.ma.array(axes.images[0].norm(drawn(axes))).clip(0, 1)
    bright_is_low = sum(axes.images[0].cmap(0.0)[:3]) > sum(axes.images[0].cmap(1.0)[:3])
    shades = 1 - shades if bright_is_low else shades
    found = panel(table, long_name(show), str)
    terminal = _shades(found.kind, found.value).numpy()
    np.testing.assert_allclose(shades.filled(np.nan), terminal, atol=1e-6)
    assert f'"ends":{json.dumps(ENDS, separators=(",", ":"))}' in lens_page(table)


def test_the_default_is_the_terminals(table: minilens.LensTable) -> None:
    default, prob = (panels(lens_figure(table, **options)) for options in ({}, {"show": "prob"}))
    assert (drawn(default[0]) == drawn(prob[0])).all()
    assert (drawn(default[0]).data == table.top.prob[..., 0].double().numpy()).all()


def test_rows_and_columns_are_chosen(table: minilens.LensTable) -> None:
    (axes,) = panels(lens_figure(table, every=2, embed=False))
    wanted = ["0.resid_mid", "0.resid_post", "2.resid_mid", "2.resid_post"]
    assert rows(axes) == wanted
    assert (drawn(axes).data == table.top.prob[[1, 2, 5, 6], :, 0].double().numpy()).all()
    (axes,) = panels(lens_figure(table, every=5))
    assert rows(axes) == ["embed", *wanted[:2], "2.resid_post"]  # the output is always there


def test_inputs_below_and_next_tokens_above_with_stars(table: minilens.LensTable) -> None:
    (axes,) = panels(lens_figure(table))
    (above,) = axes.child_axes
    assert labels(axes.xaxis) == {p: short(token, LONGEST_LABEL) for p, token in enumerate(table.tokens.tolist())}
    right = table.next_tokens == table.final_tokens
    right[3] = True  # so that there is one
    starred = replace(table, final_tokens=torch.where(right, table.next_tokens, table.final_tokens))
    (axes,) = panels(lens_figure(starred))
    (above,) = axes.child_axes
    wanted = [
        "* " * star + short(token, LONGEST_LABEL)
        for star, token in zip(right.tolist(), table.next_tokens.tolist(), strict=True)
        if token >= 0
    ]
    assert list(labels(above.xaxis).values()) == [*wanted, ""]
    assert wanted[3] == r"* \xe2\x82"
    assert {label.get_rotation() for label in axes.get_xticklabels() + above.get_xticklabels()} == {45}


@pytest.mark.parametrize("show", ["logit", "rank"])
def test_cells_that_agree_with_the_output_are_outlined(table: minilens.LensTable, show: str) -> None:
    (axes,) = panels(lens_figure(table, show=show))
    (outlines,) = axes.collections
    boxes = [path.get_extents() for path in outlines.get_paths()]
    centres = {(round((box.y0 + box.y1) / 2), round((box.x0 + box.x1) / 2)) for box in boxes}
    agrees = table.top.tokens[..., 0] == table.final_tokens
    assert centres == set(map(tuple, agrees.nonzero().tolist()))
    assert len(boxes) == agrees.sum() < agrees.numel()
    assert all(0.8 < box.width < 1 and 0.8 < box.height < 1 for box in boxes)
    assert (outlines.get_facecolor() == 0).all() or not len(outlines.get_facecolor())


@pytest.mark.parametrize("show", ["logit", "rank", "entropy", "next_rank"])
def test_ink_can_be_read(table: minilens.LensTable, show: str) -> None:
    """A contrast of 4.5 to 1 is what WCAG 2 asks of text; black or white always gives it."""

    def luminance(colour: Any) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    (axes,) = panels(lens_figure(table, show=show))
    ground = axes.images[0].to_rgba(drawn(axes))
    for text in axes.texts:
        x, y = map(int, text.get_position())
        light, dark = sorted([luminance(ground[y, x]), luminance(matplotlib.colors.to_rgb(text.get_color()))])[::-1]
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_several_panels(table: minilens.LensTable) -> None:
    figure = lens_figure(table, show=["logit", "rank", "token50_prob"], title="a $title_{")
    found = panels(figure)
    titles = [axes.get_title("left") for axes in found]
    assert [title.splitlines()[0] for title in titles] == ["a $title_{"] * 3
    assert [title.splitlines()[1].split(";")[0] for title in titles] == [
        "logit of the row's best token",
        "rank of the output's token",
        "probability of t50",
    ]
    assert "decoder final, norm final" in titles[0]
    assert (drawn(found[2]).data == table.tracked.prob[..., 1].double().numpy()).all()
    tops = [axes.get_position().y1 for axes in found]
    assert tops == sorted(tops, reverse=True)
    figure.canvas.draw()


def test_several_tables(table: minilens.LensTable, tiny: Tiny) -> None:
    """Decoder after decoder for each name, on one scale, each with its own rows."""
    model, _ = minilens.load(tiny("gpt2")[1])
    others = [
        minilens.logit_lens(
            model, torch.arange(20)[None], decoder=decoder, stats="all", track=(7, 50), tokenizer=LETTERS
        )
        for decoder in ("mlp", "block:1")
    ]
    tables = [table, *others]
    figure = lens_figure(tables, show=["logit", "tracked_rank", "kl"])
    found = panels(figure)
    order = [(name, each) for name in ("logit", "token7_rank", "token50_rank", "kl") for each in tables]
    assert len(found) == len(order) == 12
    bottoms = [1.0]
    for axes, (name, each) in zip(found, order, strict=True):
        token = {"token7_rank": 0, "token50_rank": 1}.get(name)
        wanted = value(each, name) if token is None else each.tracked.rank[..., token]
        assert (drawn(axes).data == wanted.double().numpy()).all()
        assert rows(axes) == list(each.labels)
        assert f"decoder {each.decoder}" in axes.get_title("left")
        box = axes.get_position()
        assert box.y1 < bottoms[-1]
        bottoms.append(box.y0)
        assert box.height * figure.get_figheight() / len(each.labels) == pytest.approx(0.26)
    assert bottoms[-1] > 0
    for k in range(0, 12, 3):
        scales = {(axes.images[0].norm.vmin, axes.images[0].norm.vmax) for axes in found[k : k + 3]}
        assert len(scales) == 1
    every = np.concatenate([drawn(axes).compressed() for axes in found[:3]])
    assert (found[0].images[0].norm.vmin, found[0].images[0].norm.vmax) == tuple(np.percentile(every, [5, 95]))
    figure.canvas.draw()
    with pytest.raises(ValueError, match="one model, text and choice of positions: positions differ"):
        lens_figure([table, replace(table, positions=table.positions + 1)])


def test_tokens_are_never_markup(table: minilens.LensTable) -> None:
    """Neither TeX nor mathtext reads them, whatever the caller's settings are; and no glyph is missing."""
    with matplotlib.rc_context({"text.usetex": True, "text.parse_math": True}):
        figure = lens_figure(table, title="$x_{")
        (axes,) = panels(figure)
        texts = [
            *axes.texts,
            *axes.get_xticklabels(),
            *axes.child_axes[0].get_xticklabels(),
            axes._left_title,
            *figure.texts,
        ]
    assert len(texts) > 100
    assert not any(text.get_parse_math() or text.get_usetex() for text in texts)
    assert {r"$x_{", r"\x1b[31m", "↵", "·two", "∅"} <= set(labels(axes.xaxis).values())
    lens_figure(table, title="$x_{").canvas.draw()  # warnings are errors


def test_one_position(short_table: minilens.LensTable) -> None:
    figure = lens_figure(short_table, show=[*PANELS[:13], "next_rank", "next_prob"])
    figure.canvas.draw()
    assert all(drawn(axes).shape == (4, 1) for axes in panels(figure))
    (axes,) = panels(lens_figure(short_table, show="next_rank"))
    assert set(cells(axes).values()) == {""}  # there is no next token


def test_two_hundred_positions(long_table: minilens.LensTable) -> None:
    """No letters in cells that are too small for them, and of the labels those for which there is room."""
    figure = lens_figure(long_table, show=["prob", "rank"])
    for axes in panels(figure):
        assert drawn(axes).shape == (4, 200)
        assert not axes.texts
        below = labels(axes.xaxis)
        assert 40 <= len(below) < 200
        assert below == {p: short(long_table.tokens[p].item(), LONGEST_LABEL) for p in below}
        step = sorted(below)[1] * axes.get_position().width * figure.get_figwidth() * 72 / 200
        assert step >= 1.2 * axes.get_xticklabels()[0].get_fontsize()
    assert figure.get_figwidth() < 20
    figure.canvas.draw()


def test_columns_that_do_not_fit_stand_below(table: minilens.LensTable) -> None:
    """Of words of 16 points the page has room for ten."""
    figure = lens_figure(table, font_size=16.0)
    n = len(table.tokens)
    assert len(panels(figure)) == 2 and n == 20 and figure.get_figwidth() < 20
    for first, axes in zip((0, 10), panels(figure), strict=True):
        best = table.top.tokens[:, first : first + 10, 0].tolist()
        assert cells(axes) == {
            (r, x): short(token, LONGEST) for r, row in enumerate(best) for x, token in enumerate(row)
        }
        assert {text.get_fontsize() for text in axes.texts} == {16}
        assert axes.get_title("left").endswith(f", positions {first} to {first + 9}")


@pytest.mark.parametrize(
    ("show", "n", "has_text"),
    [("logit", 5, True), ("logit", 35, True), ("logit", 60, False), ("kl", 50, True), ("kl", 200, False)],
)
def test_letters_stay_in_their_cells(long_table: minilens.LensTable, show: str, n: int, has_text: bool) -> None:
    columns = {name: getattr(long_table, name)[:n] for name in ("positions", "tokens", "final_tokens", "next_tokens")}
    stats = {
        "top": Top(*(each[:, :n] for each in long_table.top)),
        "final": TokenStats(*(each[:, :n] for each in long_table.final)),
        "kl_final": long_table.kl_final[:, :n],
    }
    figure = lens_figure(replace(long_table, **columns, stats=stats), show=show)
    (axes,) = panels(figure)
    assert bool(axes.texts) == has_text
    figure.canvas.draw()
    cell, page = axes.get_window_extent(), figure.bbox
    for text in axes.texts:
        box = text.get_window_extent()
        assert box.width <= cell.width / n and box.height <= cell.height / 4
    for text in [*axes.get_xticklabels(), *axes.child_axes[0].get_xticklabels(), *axes.get_yticklabels()]:
        box = text.get_window_extent()
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1


@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG\r\n"), ("svg", b"<?xml"), ("pdf", b"%PDF-")])
def test_files_are_what_they_are_called_and_the_same_twice(
    table: minilens.LensTable, tmp_path: Path, suffix: str, magic: bytes
) -> None:
    files = [tmp_path / f"{name}.{suffix}" for name in ("first", "second")]
    for file in files:
        save_figure(file, lens_figure(table, show=["logit", "rank"]))
    first, second = (file.read_bytes() for file in files)
    assert first.startswith(magic)
    assert first == second
    assert b"CreationDate" not in first and b"<dc:date>" not in first


def test_a_callers_matplotlib_is_left_alone(table: minilens.LensTable, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    save_figure(tmp_path / "x.svg", lens_figure(table))
    assert dict(matplotlib.rcParams) == before
    assert not re.search(r"import.*(pyplot|pylab)", Path(views_figure.__file__).read_text())


def test_without_a_tokenizer(table: minilens.LensTable) -> None:
    (axes,) = panels(lens_figure(replace(table, tokenizer=None)))
    assert labels(axes.xaxis)[3] == "#3"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"show": "colour"}, 'no panel "colour"; there are logit, prob, rank, kl, kl_final'),
        ({"show": "top_rank"}, 'no panel "top_rank"'),
        ({"show": "token8_rank"}, '"token8_rank" is of a token that is not tracked; tracked are token7, token50'),
        ({"show": []}, "one panel or more"),
        ({"show": ["logit", "tracked_kl"]}, 'no panel "tracked_kl"'),
        ({"style": "1999"}, 'no style "1999"; there are 2020, 2021'),
        ({"every": 0}, "every must be at least 1; got 0"),
        ({"font_size": 3.0}, "font_size must be from 4 to 72 points; got 3"),
    ],
)
def test_what_does_not_exist(table: minilens.LensTable, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lens_figure(table, **options)


@pytest.mark.parametrize(("show", "missing"), [("js", "js"), ("input_rank", "input"), ("kl_input", "kl_input")])
def test_what_the_table_was_made_without(long_table: minilens.LensTable, show: str, missing: str) -> None:
    with pytest.raises(ValueError, match=f'made without "{missing}"'):
        lens_figure(long_table, show=show)
    with pytest.raises(ValueError, match="tracked tokens, and there are none"):
        lens_figure(long_table, show="tracked_rank")


def test_a_file_of_another_kind(table: minilens.LensTable, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.png, \.svg, \.pdf"):
        save_figure(tmp_path / "x.gif", lens_figure(table))


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("lens_figure", "heatmap", "plots"):
        monkeypatch.delitem(sys.modules, f"minilens.views.{name}", raising=False)
    with pytest.raises(ValueError, match="pip install matplotlib"):
        importlib.import_module("minilens.views.lens_figure")

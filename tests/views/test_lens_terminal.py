"""The terminal shows the numbers of the tables, within the width, in colour only where there is colour."""

import io
import re
from collections.abc import Sequence
from dataclasses import replace
from math import isnan, log

import pytest
import torch
from checkpoints import Letters
from conftest import Tiny
from rich.cells import cell_len
from rich.console import Console

import minilens
from minilens.views.colours import CIVIDIS
from minilens.views.lens_panels import MEASURES, NAMES, stats_for
from minilens.views.lens_terminal import _number, _shades, _style, lens_view
from minilens.views.tokens import token_label
from minilens.vocab import TokenStats

NIGHTMARES = {
    0: b"\x1b[31m",
    1: b" two",
    2: b"\n",
    3: b"\xe2\x82",
    4: "日本語".encode(),
    5: b"a long one, far too long",
}
LETTERS = Letters(NIGHTMARES)
TRACK = (7, 0)
WAYS = {
    "final": dict(decoder="final"),
    "mlp": dict(decoder="mlp", norm="plain"),
    "block:1": dict(decoder="block:1", sites=("resid_post",)),
}
NUMBERS = [name for name in NAMES if name != "prob"]
WIDTHS = [30, 80, 133]


@pytest.fixture(scope="module")
def tables(tiny: Tiny) -> list[minilens.LensTable]:
    """Three decoders of a text of six nightmares and others, whose rows are not the same."""
    model, _ = minilens.load(tiny("gpt2")[1])
    text = torch.cat([torch.arange(6), torch.randint(0, 101, (20,), generator=torch.Generator().manual_seed(2))])[None]
    usual = dict(sites=("resid_mid", "resid_post"), top_k=2, stats="all", track=TRACK, tokenizer=LETTERS)
    return [minilens.logit_lens(model, text, **{**usual, **way}) for way in WAYS.values()]


@pytest.fixture(scope="module")
def table(tables: list[minilens.LensTable]) -> minilens.LensTable:
    return tables[0]


def shown(
    tables: minilens.LensTable | Sequence[minilens.LensTable],
    show: str | Sequence[str],
    width: int = 80,
    colour: bool = False,
) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=colour, color_system="truecolor" if colour else None)
    console.print(lens_view(tables, show=show, width=width))
    return out.getvalue()


def cells(text: str, label: str) -> list[str]:
    """What stands in one row of a single table, joined across the panels."""
    return [cell for line in text.splitlines() if line.startswith(label + " ") for cell in line.split()[1:]]


def cut(line: str, start: int, stop: int) -> str:
    """The text between two places, counted in terminal cells."""
    places = [cell_len(line[:k]) for k in range(len(line) + 1)]
    return "".join(char for char, place in zip(line, places, strict=False) if start <= place < stop).strip()


def side_by_side(text: str, n: int) -> dict[str, list[list[str]]]:
    """The cells of several tables, as label -> table -> position; columns begin where the decoders' names do."""
    found: dict[str, list[list[str]]] = {}
    at = 0
    for panel in re.split(r"\n *\n", text)[:-1]:
        lines = panel.splitlines()
        (names,) = [line for line in lines if line.startswith("decoder ")]
        starts = [match.start() for match in re.finditer(r"\S+", names)][1:]
        for line in lines:
            label = line.split()[0]
            for k, (start, stop) in enumerate(zip(starts, [*starts[1:], 10**6], strict=True)):
                found.setdefault(label, [[] for _ in range(n)])[(at + k) % n].append(cut(line, start, stop))
        at += len(starts)
    return found


def value(table: minilens.LensTable, name: str) -> torch.Tensor:
    """What a panel should show, read from the table in another way."""
    name = {"logit": "top_logit", "rank": "final_rank", "kl": "kl_final"}.get(name, name)
    if name in MEASURES:
        return {"cross_entropy": -table.next.logprob, "agrees": table.final.rank == 1}.get(name, table.stats.get(name))
    who, part = name.split("_")
    if who in ("token7", "token0"):
        return getattr(table.tracked, part)[..., TRACK.index(int(who[5:]))]
    return getattr(table.top, part)[..., 0] if who == "top" else getattr(table.stats[who], part)


def written(number: float, name: str) -> str:
    if isnan(number) or (name.endswith("rank") and number == 0):
        return ""
    if name == "agrees":
        return "yes" if number else "no"
    digits = {"rank": 0, "prob": 3, "js": 3, "logit": 1}.get(name.split("_")[-1], 2)
    return re.sub(r"^-(0\.0+)$", r"\1", f"{number:.{digits}f}")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("show", NUMBERS)
def test_every_number_is_the_tables(table: minilens.LensTable, show: str, width: int) -> None:
    text = shown(table, show, width)
    names = [show.replace("tracked", f"token{token}") for token in TRACK] if show.startswith("tracked") else [show]
    for r, label in enumerate(table.labels):
        wanted = [written(number, name) for name in names for number in value(table, name)[r].tolist()]
        assert cells(text, label) == [number for number in wanted if number]
    order = [line.split()[0] for line in text.splitlines() if re.match(r"embed|\d+\.", line)][: len(table.labels)]
    assert order == list(reversed(table.labels))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("show", [*(name for name in NUMBERS if "tracked" not in name), "token7_rank", "token0_prob"])
def test_every_number_of_several_decoders(tables: list[minilens.LensTable], show: str, width: int) -> None:
    found = side_by_side(shown(tables, show, width), len(tables))
    rows = {row for table in tables for row in table.labels}
    assert rows == found.keys() - {"position", "next", "output", "decoder", "norm", "input"}
    for t, table in enumerate(tables):
        n_pos = len(table.positions)
        for row in rows:
            absent = [""] * n_pos
            r = table.labels.index(row) if row in table.labels else None
            wanted = absent if r is None else [written(number, show) for number in value(table, show)[r].tolist()]
            assert found[row][t] == wanted
        assert found["decoder"][t] == [table.decoder] * n_pos
        assert found["norm"][t] == [table.norm] * n_pos


def test_rows_of_several_decoders_are_in_order_of_depth(tables: list[minilens.LensTable]) -> None:
    found = list(side_by_side(shown(tables, "kl", 1000), 3))
    head, rows = (
        ["position", "next", "output", "decoder", "norm"],
        ["2.resid_post", "2.resid_mid", "1.resid_post", "1.resid_mid"],
    )
    assert found == [*head, *rows, "0.resid_post", "0.resid_mid", "embed", "input"]


@pytest.mark.parametrize("n", [2, 3])
def test_what_stands_once_at_each_position(tables: list[minilens.LensTable], n: int) -> None:
    """Twelve cells of a token are there, though the names of two decoders and their ranks take fewer."""
    follows = tables[0].next_tokens.clone()
    follows[[3, 9]] = tables[0].final_tokens[[3, 9]]
    tables = [replace(table, next_tokens=follows) for table in tables[:n]]
    text, first = shown(tables, "rank", 2000), tables[0]
    found, lines = side_by_side(text, n), text.splitlines()
    (decoders,) = [line for line in lines if line.startswith("decoder ")]
    assert found["position"] == [[str(position) for position in first.positions.tolist()], *[[""] * 26] * (n - 1)]
    right = (first.next_tokens == first.final_tokens).tolist()
    assert sum(right) == 2
    for label, tokens in (("next", first.next_tokens), ("output", first.final_tokens), ("input", first.tokens)):
        (line,) = [line for line in lines if line.startswith(label + " ")]
        starts = [match.start() - (label == "next") for match in re.finditer("final", decoders)]
        texts = [cut(line, start, stop) for start, stop in zip(starts, [*starts[1:], 10**6], strict=True)]
        labels = [token_label(LETTERS, token) if token >= 0 else "" for token in tokens.tolist()]
        for text, wanted, star in zip(texts, labels, right, strict=True):
            assert text.startswith("*") == (star and label == "next")
            assert text.strip("*") == wanted or (wanted.startswith(text.strip("*…")) and len(text) >= 12)


@pytest.mark.parametrize("width", WIDTHS)
def test_groups_stay_together(tables: list[minilens.LensTable], width: int) -> None:
    """Three columns take 21 cells and more: at 30, where labels take 12, each panel is a part of one group."""
    panels = [line.split()[1:] for line in shown(tables, "kl", width).splitlines() if line.startswith("decoder")]
    if width == 30:
        assert all(len(names) < 3 for names in panels)
    else:
        assert all(names == [*WAYS] * (len(names) // 3) for names in panels)
    assert [name for names in panels for name in names] == [*WAYS] * 26


def test_only_what_sets_tables_apart_is_named(table: minilens.LensTable, tables: list[minilens.LensTable]) -> None:
    alike = shown(tables, "prob")
    assert "norm  " in alike and "centred" not in alike and not alike.rstrip().endswith("decoder final")
    centred = replace(table, centre=True)
    lines = shown([table, centred], "rank").splitlines()
    (head,) = {" ".join(line.split()[:3]) for line in lines if line.startswith("centred")}
    assert head == "centred no yes"
    assert lines[-1].endswith("; decoder final")
    both = shown([replace(each, norm="plain", centre=True) for each in tables], "rank", 133).splitlines()
    assert both[-1].endswith("(bright); norm plain; centred")


def test_tables_of_two_texts_are_not_mixed(table: minilens.LensTable) -> None:
    for name in ("positions", "tokens", "next_tokens", "final_tokens"):
        other = replace(table, **{name: getattr(table, name) + 1})
        with pytest.raises(ValueError, match=f"one model, text and choice of positions: {name} differ"):
            lens_view([table, other])
    few = {name: getattr(table, name)[:3] for name in ("positions", "tokens", "final_tokens", "next_tokens")}
    with pytest.raises(ValueError, match="one model"):
        lens_view([table, replace(table, **few, stats={})])
    with pytest.raises(ValueError, match="no table"):
        lens_view([])


def test_cells_are_the_best_tokens(table: minilens.LensTable) -> None:
    text = shown(table, "prob")
    for r, label in enumerate(table.labels):
        best = [token_label(LETTERS, token) for token in table.top.tokens[r, :, 0].tolist()]
        assert [cell.rstrip("…") for cell in cells(text, label)] == [b if cell_len(b) <= 12 else b[:11] for b in best]


def test_several_tokens_of_several_decoders(tables: list[minilens.LensTable]) -> None:
    lines = shown(tables, "prob", 1000).splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("2.resid_post"))
    second = [token_label(LETTERS, token) for token in tables[0].top.tokens[-1, :, 1].tolist()]
    assert lines[at + 1].split() == [label if cell_len(label) <= 12 else label[:11] + "…" for label in second]


def test_several_panels_have_headings(table: minilens.LensTable) -> None:
    text = shown(table, ["prob", "tracked_rank", "js"], width=133)
    titles = ["the row's best token", "rank of t7", r"rank of \x1b[31m", f"{MEASURES['js']}"]
    assert [line for line in text.splitlines() if line in titles] == titles
    for show, title in zip(["prob", "token7_rank", "token0_rank", "js"], titles, strict=True):
        *grid, caption = shown(table, show, width=133).splitlines()
        assert title + "\n" + "\n".join([*grid, caption.removeprefix(f"{title}, ")]) in text


def test_input_output_next_and_stars(table: minilens.LensTable) -> None:
    text = shown(table, "rank", width=1000)
    assert cells(text, "input")[:5] == [r"\x1b[31m", "·two", "↵", r"\xe2\x82", "日本語"]
    (line,) = [line for line in text.splitlines() if line.startswith("input")]
    assert "a·long·one,…" in line
    wanted = [token_label(LETTERS, token)[:11] for token in table.tokens[1:].tolist()]
    assert [cell.strip("*…") for cell in cells(text, "next")] == wanted
    right = (table.next_tokens == table.final_tokens).tolist()
    assert [cell.startswith("*") for cell in cells(text, "next")] == right[:-1]
    assert cells(text, "output") == [token_label(LETTERS, token) for token in table.final_tokens.tolist()]


@pytest.mark.parametrize("width", [20, *WIDTHS])
@pytest.mark.parametrize("show", NAMES)
def test_no_line_is_wider_than_the_terminal(tables: list[minilens.LensTable], show: str, width: int) -> None:
    for some in (tables, tables[:1]):
        assert max(map(cell_len, shown(some, show, width).splitlines())) <= width


def test_a_terminal_too_narrow_for_one_column(table: minilens.LensTable) -> None:
    """A line is cut, not wrapped."""
    lines = shown(table, "rank", 15).split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in lines] == ["position", "next", "output", *table.labels[::-1], "input"]
    assert lines[-1].endswith("…")


def test_colour_only_where_there_is_colour(table: minilens.LensTable) -> None:
    assert "\x1b" not in shown(table, ["prob", "tracked_prob"])
    coloured = shown(table, ["rank", "tracked_rank"], colour=True)
    brightest = ";".join(map(str, CIVIDIS[-1]))
    assert f"48;2;{brightest}m" in coloured  # rank 1
    assert "\x1b[31m" not in coloured  # the token that would turn the terminal red


def test_no_number_no_colour(table: minilens.LensTable) -> None:
    """There is no row before the input row, and no next token at the end."""
    for show, row in (("change", "embed"), ("next_prob", "0.resid_mid")):
        (line,) = [line for line in shown(table, show, 1000, colour=True).splitlines() if row in line]
        cells = re.findall(r"(?:\x1b\[([\d;]*)m)?( [^\x1b]*)", line.split(row)[1].replace("\x1b[0m", ""))
        numbers = [text.strip() for _, text in cells]
        assert "" in numbers or not any(numbers)
        assert line.count("48;2;") == sum(bool(number) for number in numbers) == (0 if row == "embed" else 25)


def test_an_id_without_text_is_shown_as_an_id() -> None:
    assert token_label(LETTERS, 100) == "#100"
    assert token_label(None, 7) == "#7"


@pytest.mark.parametrize(
    ("kind", "numbers", "shades"),
    [
        ("rank", [1, 10, 1000, 5000], [1, 0.667, 0, 0]),
        ("nats", [0, 5, 10, 30], [1, 0.5, 0, 0]),
        ("js", [0, log(2) / 4, log(2), 0.7], [1, 0.75, 0, 0]),
        ("prob", [0, 0.25, 1, 1], [0, 0.25, 1, 1]),
        ("agrees", [0, 1, 1, 0], [0, 1, 1, 0]),
        ("logit", [0, 5, 10, 30], [0, 0.162, 0.352, 1]),
        ("logprob", [-30, -10, -5, 0], [0, 0.648, 0.838, 1]),
        ("logit", [3, 3, 3, 3], [0, 0, 0, 0]),
    ],
)
def test_shades(kind: str, numbers: list[float], shades: list[float]) -> None:
    """The scales that the captions promise."""
    found = _shades(kind, torch.tensor([[*numbers, torch.nan]], dtype=torch.float64))[0]
    assert [round(shade, 3) for shade in found[:-1].tolist()] == shades
    assert found[-1].isnan()


def test_percentiles_are_of_all_tables(tables: list[minilens.LensTable]) -> None:
    low = replace(
        tables[0], stats={**tables[0].stats, "final": TokenStats(tables[0].final.logit - 100, *tables[0].final[1:])}
    )
    darkest = ";".join(map(str, CIVIDIS[0]))
    alone, both = (shown(some, "final_logit", 1000, colour=True) for some in (low, [tables[0], low]))
    assert both.count(f"48;2;{darkest}m") < alone.count("48;2;") / 2
    line = next(line for line in both.splitlines() if "1.resid_mid" in line)
    assert len(set(re.findall(r"48;2;([\d;]*)m", line)[::2])) > 1


def test_ink_can_be_read() -> None:
    dark, bright = _style(0.0, bold=False), _style(1.0, bold=True)
    assert (dark.color.triplet, bright.color.triplet) == ((255, 255, 255), (0, 0, 0))
    assert _style(0.5, bold=False).color.triplet == (0, 0, 0)
    assert (dark.bold, bright.bold) == (False, True)
    assert (dark.bgcolor.triplet, bright.bgcolor.triplet) == (CIVIDIS[0], CIVIDIS[-1])


def test_zero_has_no_sign() -> None:
    assert [_number(-0.004, "nats"), _number(-0.0, "logit"), _number(-0.006, "nats")] == ["0.00", "0.0", "-0.01"]


@pytest.mark.parametrize("show", ["kl", "prob"])
def test_cells_that_agree_with_the_output_are_bold(table: minilens.LensTable, show: str) -> None:
    coloured = shown(table, show, colour=True, width=1000).splitlines()
    for r, label in enumerate(table.labels):
        (line,) = [line for line in coloured if re.sub(r"\x1b\[[\d;]*m", "", line).startswith(f"{label} ")]
        agrees = (table.top.tokens[r, :, 0] == table.final_tokens).sum()
        assert line.count("\x1b[1;") == agrees
    best = table.top.tokens[..., 0] == table.final_tokens
    assert "\n".join(coloured).count("\x1b[1;") == best.sum()  # not the second best below them


@pytest.mark.parametrize(
    ("show", "message"),
    [
        (
            "colour",
            'no panel "colour"; there are logit, prob, rank, kl, kl_final, .*agrees, top_logit, .*, tracked_rank',
        ),
        ("top_rank", 'no panel "top_rank"; there are'),
        ("token7_kl", 'no panel "token7_kl"; there are'),
        ("token8_rank", '"token8_rank" is of a token that is not tracked; tracked are token7, token0'),
        ("rank,kl", 'no panel "rank,kl"'),
        ([], "nothing to show: name one panel"),
    ],
)
def test_what_there_is_not(table: minilens.LensTable, show: str | list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lens_view(table, show=show)


def test_what_the_table_was_made_without(table: minilens.LensTable) -> None:
    few = replace(table, track=(), stats={"top": table.top})
    assert lens_view(few)
    with pytest.raises(ValueError, match='made without "js"'):
        lens_view(few, show="js")
    with pytest.raises(ValueError, match='made without "top"'):
        lens_view(replace(table, stats={"js": table.js}), show="js")
    with pytest.raises(ValueError, match='"tracked_rank" is of tracked tokens, and there are none'):
        lens_view(few, show="tracked_rank")
    with pytest.raises(ValueError, match="tracked are none"):
        lens_view(few, show="token7_rank")


@pytest.mark.parametrize("style", ["2020", "2021"])
@pytest.mark.parametrize("name", NAMES)
def test_stats_for_a_panel_are_just_enough(table: minilens.LensTable, name: str, style: str) -> None:
    wanted = stats_for([name], style)
    assert wanted <= {"top", *table.stats} - {"tracked"} and len(wanted) <= 2

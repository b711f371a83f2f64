"""The page holds the numbers of the table and nothing that runs but its own script; in a browser it shows them.

The tests in a browser need the package playwright and Debian's chromium, and are skipped where one is missing.
"""

import html
import json
import math
import re
from base64 import b64decode
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import torch
from checkpoints import Letters
from conftest import Tiny

import minilens
from minilens.course.glossary import look_up
from minilens.table import STATS
from minilens.views.colours import CIVIDIS
from minilens.views.lens_page import HIDDEN, LARGEST, STEPS, lens_page
from minilens.views.one_file import one_file
from minilens.views.tokens import printable, token_label
from minilens.vocab import TokenStats, Top

HOSTILE = "</script><img src=x onerror=alert(1)>"
SHOWN = HOSTILE.replace(" ", "·")
NIGHTMARES = {
    0: HOSTILE.encode(),
    1: b"\x1b[31m\x00",
    2: b"\n",
    3: b"\xe2\x82",  # broken UTF-8
    4: "\u2028\u202e".encode(),  # a line separator, and what turns the rest of a line round
    5: b"<!--",
    6: b"constructor",
    7: b" t8",
    8: b" t8",  # two tokens that look alike
}


LETTERS = Letters(NIGHTMARES, " t{}")
TRACKED = (0, 17, 100)


@pytest.fixture(scope="module")
def tables(tiny: Tiny) -> list[minilens.LensTable]:
    """Three decoders of one text, with all there is."""
    model, _ = minilens.load(tiny("gpt2")[1])
    text = torch.cat([torch.arange(10), torch.randint(0, 101, (15,), generator=torch.Generator().manual_seed(5))])
    sites = ("resid_pre", "resid_mid", "resid_post")
    return [
        minilens.logit_lens(
            model, text[None], decoder=decoder, sites=sites, stats="all", track=TRACKED, top_k=4, tokenizer=LETTERS
        )
        for decoder in ("final", "mlp", "block:1")
    ]


def data(page: str) -> dict[str, Any]:
    """What stands in the page's JSON, found as a browser finds it: up to the first </script."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script', page, re.DOTALL)
    record = json.loads(text)
    assert isinstance(record, dict)
    return record


def same(found: list[Any], wanted: torch.Tensor, *, decimals: int | None = None) -> None:
    """To four significant digits, and to that many decimals as well where they are given."""
    numbers = wanted.flatten().tolist()
    assert len(found) == len(numbers)
    for here, there in zip(found, numbers, strict=True):
        if here is None:
            assert not math.isfinite(there)
        else:
            bound = abs(there) * 5.1e-4
            assert abs(here - there) <= (bound if decimals is None else min(bound, 0.51 * 10**-decimals)) + 1e-12


def made_up(rows: int, columns: int, k: int = 5, d_vocab: int = 50257) -> minilens.LensTable:
    """A table of the size of GPT-2 XL's on a long text, with numbers of the usual lengths."""
    random = torch.Generator().manual_seed(2020)

    def some(*shape: int, scale: float = 10.0) -> torch.Tensor:
        return torch.rand(*shape, generator=random) * scale

    def ids(*shape: int) -> torch.Tensor:
        return torch.randint(0, d_vocab, shape, generator=random)

    def standing() -> TokenStats:
        return TokenStats(-50 - some(rows, columns, scale=50), -some(rows, columns, scale=20), 1 + ids(rows, columns))

    top = Top(
        ids(rows, columns, k),
        -50 - some(rows, columns, k, scale=50),
        -some(rows, columns, k).sort(-1).values,
    )
    names = ("entropy", "kl_final", "kl_row_final", "kl_input", "kl_row_input", "js", "change")
    return minilens.LensTable(
        labels=("embed", *(f"{layer}.resid_post" for layer in range(rows - 1))),
        layers=tuple(range(-1, rows - 1)),
        decoder="final",
        norm="final",
        centre=False,
        positions=torch.arange(columns),
        tokens=ids(columns),
        final_tokens=top.tokens[-1, :, 0],
        next_tokens=ids(columns),
        track=(),
        stats={
            "top": top,
            **{name: standing() for name in ("final", "next", "input")},
            **{name: some(rows, columns) for name in names},
        },
        tokenizer=Letters(NIGHTMARES, " t{}", d_vocab),
    )


Attention = tuple[minilens.LensTable, torch.Tensor, tuple[minilens.BlockTrace, ...]]


@pytest.fixture(scope="module")
def attention(tiny: Tiny) -> Attention:
    """GPT-Neo, two of whose layers see a window of 7 only, on a text whose tokens are hard to show; four columns."""
    model, _ = minilens.load(tiny("gpt_neo")[1])
    text = torch.cat([torch.arange(10), torch.randint(0, 101, (15,), generator=torch.Generator().manual_seed(6))])[None]
    table = minilens.logit_lens(model, text, positions=[3, 9, 17, 24], tokenizer=LETTERS)
    return table, text, minilens.trace(model, text).blocks


def attention_page(attention: Attention, title: str = "") -> str:
    table, tokens, blocks = attention
    return lens_page(table, title=title, tokens=tokens, patterns=blocks)


def weight(attention: Attention, layer: int, head: int, query: int, key: int) -> str:
    """As the page has to show it, from the trace itself."""
    block = attention[2][layer]
    if block.scores[0, head, query, key] == -torch.inf:
        return "not seen" + (", since it comes after the query" if key > query else " by this head")
    return f"{block.pattern[0, head, query, key].item():.3f}"


# ---- The file


def test_every_number_is_the_tables(tables: list[minilens.LensTable]) -> None:
    record = data(lens_page(tables))
    assert len(record["tables"]) == 3
    for table, found in zip(tables, record["tables"], strict=True):
        assert tuple(found["labels"]) == table.labels
        assert (found["decoder"], found["norm"], found["centre"]) == (table.decoder, "final", False)
        for name, ids in (("input", table.tokens), ("final", table.final_tokens), ("next", table.next_tokens)):
            assert found[f"{name}_tokens"] == ids.tolist()
        assert found["positions"] == table.positions.tolist()
        assert tuple(found["tracked_tokens"]) == TRACKED

        assert found["top"]["k"] == 4
        assert found["top"]["tokens"] == table.top.tokens.flatten().tolist()
        same(found["top"]["logit"], table.top.logit)
        same(found["top"]["logprob"], table.top.logprob, decimals=4)
        assert list(found["standings"]) == ["final", "next", "input"]
        standings = [(found["standings"][name], table.stats[name]) for name in found["standings"]]
        standings += [
            (found["tracked"][t], TokenStats(*(part[..., t] for part in table.tracked))) for t in range(len(TRACKED))
        ]
        for numbers, standing in standings:
            same(numbers["logit"], standing.logit)
            same(numbers["logprob"], standing.logprob, decimals=4)
            assert [rank or 0 for rank in numbers["rank"]] == standing.rank.flatten().tolist()
        assert {"top", "tracked", *found["standings"], *found["values"]} == {*STATS, "tracked"}
        for name, numbers in found["values"].items():
            same(numbers, table.stats[name])


def test_where_there_is_no_number_there_is_null(tables: list[minilens.LensTable]) -> None:
    found = data(lens_page(tables[0]))["tables"][0]
    n = len(tables[0].positions)
    assert found["next_tokens"][-1] == -1
    assert found["standings"]["next"]["rank"][n - 1] is None
    assert found["standings"]["next"]["logprob"][n - 1] is None
    assert found["values"]["change"][:n] == [None] * n


def test_tokens_are_ids_with_one_label_each(tables: list[minilens.LensTable]) -> None:
    record = data(lens_page(tables))
    assert record["tokens"]["7"] == record["tokens"]["8"] == "·t8"
    assert record["tokens"]["100"] == "#100"  # an id that the tokenizer does not have
    assert all(text == token_label(LETTERS, int(token)) for token, text in record["tokens"].items())
    assert data(lens_page(replace(tables[0], tokenizer=None)))["tokens"]["7"] == "#7"
    assert tuple(map(tuple, record["scale"])) == CIVIDIS


def test_hostile_text_stays_in_the_data(tables: list[minilens.LensTable]) -> None:
    title = HOSTILE + "<!--\x00\u2028\u2029\ud800&amp;PUT THE DATA HERE"
    page = lens_page(tables, title=title)
    assert data(page)["title"] == printable(title)
    assert data(page)["tokens"]["0"] == SHOWN
    assert data(page)["tokens"]["3"] == r"\xe2\x82"
    page.encode()  # and so it can be written as UTF-8
    written = page[page.index('id="data">') :].split("</script", 1)[0].removeprefix('id="data">')
    assert written.isascii()
    assert not re.search("[<>&\x00-\x1f]", written)
    assert page.count("</script") == 2  # after the data and after the page's own script


def test_an_empty_page_is_small_and_knows_no_address() -> None:
    text = one_file({"title": "PUT THE DATA HERE"})
    assert len(text.encode()) < 80_000
    assert re.findall("PUT THE [A-Z]+ HERE", text) == ["PUT THE DATA HERE"]  # what a mark brings is no mark
    assert re.findall("http.{7}", text) == ["http-equiv="]  # the policy that lets the browser load nothing
    assert not re.search(r"(src|href)\s*=|url\(|@import|//[a-z]|fetch|XMLHttp|innerHTML|outerHTML|insertAdjacent", text)
    assert not re.search(r"document\.write|\beval\b|Function\(|WebSocket|sendBeacon|localStorage|cookie", text)


def test_a_long_text_through_a_large_model_fits() -> None:
    page = lens_page(made_up(49, 500))
    assert len(page.encode()) < 15_000_000


def test_a_table_with_little_in_it(tables: list[minilens.LensTable], tiny: Tiny) -> None:
    model, _ = minilens.load(tiny("ctrl")[1])
    table = minilens.logit_lens(model, torch.arange(6)[None], stats="entropy")
    found = data(lens_page(table))["tables"][0]
    assert (found["top"], found["standings"], found["tracked"]) == (None, {}, [])
    same(found["values"]["entropy"], table.entropy)
    with pytest.raises(ValueError, match="there is no table to show"):
        lens_page([])
    with pytest.raises(ValueError, match="without any statistic"):
        lens_page(minilens.logit_lens(model, torch.arange(6)[None], stats=()))
    with pytest.raises(ValueError, match="must be of one model, text and choice of positions: tokens differ"):
        lens_page([table, minilens.logit_lens(model, torch.arange(6).flip(0)[None])])


def test_every_weight_is_the_traces(attention: Attention) -> None:
    _, tokens, blocks = attention
    record = data(attention_page(attention))
    found = record["attention"]
    assert (found["tokens"], found["layers"]) == (tokens[0].tolist(), [0, 1, 2])
    assert {str(token) for token in found["tokens"]} <= record["tokens"].keys()  # also of what has no column
    n = tokens.shape[1]
    for block, heads in zip(blocks, found["heads"], strict=True):
        for head, pattern, scores in zip(heads, block.pattern[0], block.scores[0], strict=True):
            assert 4 / 3 * n * (n + 1) <= len(head) <= 4 / 3 * n * (n + 1) + 4
            raw = iter(b64decode(head))
            for query in range(n):
                for key in range(query + 1):
                    steps = next(raw) + 256 * next(raw)
                    if scores[query, key] == -torch.inf:
                        assert steps == found["hidden"]
                    else:
                        assert abs(steps / found["steps"] - pattern[query, key].item()) <= 1 / 130_000 + 1e-9
            assert next(raw, None) is None


def test_weights_round_to_the_same_three_decimals(attention: Attention) -> None:
    """Also beside the limits at which the last decimal changes."""
    table, tokens, (block, *_) = attention
    random = torch.Generator().manual_seed(7)
    limits = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    some = torch.cat([torch.rand(500, generator=random).double(), limits - 1e-9, limits + 1e-9, limits])
    weights = torch.zeros(1, 5, 25 * 25, dtype=torch.float64)
    seen = torch.ones(25, 25).tril().flatten().bool()
    for head, part in enumerate(some.split(325)[:5]):
        weights[0, head, seen] = torch.nn.functional.pad(part, (0, 325 - len(part)))
    pattern = weights.view(1, 5, 25, 25)
    (heads,) = data(lens_page(table, tokens=tokens, patterns=[replace(block, pattern=pattern)]))["attention"]["heads"]
    for head, wanted in zip(heads, pattern[0], strict=True):
        raw = b64decode(head)
        found = [(low + 256 * high) / STEPS for low, high in zip(raw[::2], raw[1::2], strict=True)]
        assert [f"{value:.3f}" for value in found] == [f"{value:.3f}" for value in wanted.flatten()[seen].tolist()]


def test_what_is_seen_and_weighs_nothing_is_not_hidden(attention: Attention) -> None:
    table, tokens, blocks = attention
    block = replace(blocks[1], pattern=torch.zeros_like(blocks[1].pattern))  # as an edit may do, or an underflow
    (heads,) = data(lens_page(table, tokens=tokens, patterns=[block]))["attention"]["heads"]
    raw = b64decode(heads[0])
    found = [low + 256 * high for low, high in zip(raw[::2], raw[1::2], strict=True)]
    assert found == [0 if query - key < 7 else HIDDEN for query in range(25) for key in range(query + 1)]
    even = (
        torch.ones(5, 25, 25).tril() / torch.arange(1, 26)[:, None]
    )  # an edit may also give a weight to what is hidden
    (heads,) = data(lens_page(table, tokens=tokens, patterns=[replace(block, pattern=even[None])]))["attention"][
        "heads"
    ]
    raw = b64decode(heads[0])
    found = [low + 256 * high for low, high in zip(raw[::2], raw[1::2], strict=True)]
    assert found == [round(STEPS / (query + 1)) for query in range(25) for _ in range(query + 1)]


def test_patterns_that_a_page_cannot_show(attention: Attention) -> None:
    table, tokens, (block, *_) = attention
    for wrong, patterns, message in (
        (None, [block], "patterns need the tokens of the whole text"),
        (tokens[:, :24], [block], "not the text of the table"),
        (tokens.flip(1), [block], "not the text of the table"),
        (tokens.expand(2, -1), [block], "not the text of the table"),
        (torch.cat([tokens, tokens], 1), [block], r"layer 0 is not of one text of 50 tokens: .* \[1, 5, 25, 25\]"),
        (tokens, [block, block], "layer 0 is twice"),
        (tokens, [], "patterns holds no block"),
        (tokens, [replace(block, pattern=block.pattern * 2)], "weights must be between 0 and 1"),
        (tokens, [replace(block, pattern=-block.pattern)], "weights must be between 0 and 1"),
        (tokens, [replace(block, pattern=block.pattern * torch.nan)], "weights must be between 0 and 1"),
        (tokens, [replace(block, pattern=block.pattern.mT)], "0 for keys after the query"),
    ):
        with pytest.raises(ValueError, match=message):
            lens_page(table, tokens=wrong, patterns=patterns)


def test_a_page_with_patterns_stays_small(attention: Attention) -> None:
    """The refusal says how many layers there is room for, and no more blocks are asked for than show that."""
    n, table = 800, made_up(10, 800)
    block = replace(attention[2][0], pattern=torch.eye(n).expand(1, 5, n, n), scores=torch.zeros(1, 5, n, n))
    with pytest.raises(ValueError, match="larger than 15 MB: the attention patterns of one layer take 4") as error:
        lens_page(table, tokens=table.tokens[None], patterns=(replace(block, layer=layer) for layer in count()))
    (room,) = re.findall("it has room for ([0-9]+) such layers; choose fewer", str(error.value))
    layers = [replace(block, layer=layer) for layer in range(int(room))]
    assert LARGEST - 4_300_000 < len(lens_page(table, tokens=table.tokens[None], patterns=layers)) <= LARGEST


def test_the_same_table_gives_the_same_file(tables: list[minilens.LensTable]) -> None:
    table = tables[0]
    turned = minilens.LensTable(**{**vars(table), "stats": dict(reversed(table.stats.items()))})
    assert lens_page(table) == lens_page(turned)


def test_a_notebook_gets_a_frame_of_its_own(tables: list[minilens.LensTable]) -> None:
    frame = tables[0]._repr_html_()
    assert frame is not None
    opening = r'<iframe class="minilens" title="Logit lens" sandbox="allow-scripts" '
    (page,) = re.findall(opening + r'srcdoc="([^"<>]*)" style="[^"]*"', frame)
    assert html.unescape(page) == lens_page(tables[0])
    assert replace(tables[0], stats={})._repr_html_() is None  # nothing to show, so a notebook prints what it is
    assert repr(tables[0]).startswith("LensTable of 10 rows and 25 positions: decoder final, norm final; top, final")


# ---- In a browser


Opener = Callable[..., Any]


def cell(page: Any, label: str, column: int) -> Any:
    line = page.locator("#scroller tbody tr", has=page.get_by_role("rowheader", name=label, exact=True))
    return line.locator("td").nth(column)


def panel(page: Any, part: str) -> list[list[str]]:
    """A table of the panel as texts."""
    return [
        [text.strip() for text in line.locator("td").all_inner_texts()]
        for line in page.locator(f"#panel .{part} tbody tr").all()
    ]


def close(shown: str, wanted: float) -> bool:
    """Whether a number as the page shows it, to as many digits as it shows, is this one."""
    if shown == "none":
        return math.isnan(wanted)
    mantissa, _, exponent = shown.partition("e")
    decimals = len(mantissa.partition(".")[2])
    return abs(float(shown) - wanted) <= 0.52 * 10.0 ** (int(exponent or 0) - decimals) + 2e-4 * abs(wanted)


def state(page: Any) -> dict[str, list[str]]:
    page.clock.run_for(200)  # the address follows a little later
    return parse_qs(urlsplit(page.url).fragment)


def colours(page: Any) -> list[str]:
    return page.evaluate(
        "[...document.querySelectorAll('#scroller td')].map(td => getComputedStyle(td).backgroundColor)"
    )


def rgb(shade: float) -> str:
    """The page's colour: the scale in 64 steps."""
    at = round(min(1, max(0, shade)) * 63) / 63 * (len(CIVIDIS) - 1)
    low = min(int(at), len(CIVIDIS) - 2)
    mixed = (a + (b - a) * (at - low) for a, b in zip(CIVIDIS[low], CIVIDIS[low + 1], strict=True))
    return f"rgb({', '.join(str(math.floor(part + 0.5)) for part in mixed)})"


def test_the_grid_shows_the_table(opened: Opener, tables: list[minilens.LensTable]) -> None:
    table = tables[0]
    page = opened(lens_page(table, title="A title"))
    assert page.title() == page.locator("h1").inner_text() == "A title"
    assert page.locator("#tabs").is_hidden()
    assert page.locator("#scroller tbody th").all_text_contents() == list(reversed(table.labels))

    def labels(ids: torch.Tensor) -> list[str]:
        return [token_label(LETTERS, token) if token >= 0 else "" for token in ids.tolist()]

    cells = page.locator("#scroller td").all_text_contents()
    assert cells == labels(table.top.tokens[..., 0].flip(0).flatten())
    agrees = page.evaluate("[...document.querySelectorAll('#scroller td')].map(td => 'agrees' in td.dataset)")
    assert agrees == table.agrees.flip(0).flatten().tolist()
    assert page.locator("#scroller tfoot th").all_text_contents()[1:] == labels(table.tokens)
    above = page.locator("#scroller thead th[scope=col]").all_text_contents()
    right = (table.next_tokens == table.final_tokens).tolist()
    assert above == [
        f"{position}{'*' * star}{text}"
        for position, star, text in zip(table.positions.tolist(), right, labels(table.next_tokens), strict=True)
    ]
    assert page.locator("img").count() == 0


def test_hover_shows_every_number_of_a_cell(opened: Opener, tables: list[minilens.LensTable]) -> None:
    table = tables[0]
    page = opened(lens_page(table))
    for r, c in ((0, 0), (5, 7), (len(table.labels) - 1, 3)):
        cell(page, table.labels[r], c).hover()
        assert page.locator("#panel h2").inner_text() == f"{table.labels[r]}, position {c}"
        best = panel(page, "top")
        assert [line[0] for line in best] == [token_label(LETTERS, token) for token in table.top.tokens[r, c].tolist()]
        for line, prob, logit in zip(best, table.top.prob[r, c].tolist(), table.top.logit[r, c].tolist(), strict=True):
            assert close(line[1], prob) and close(line[2], logit)
        wanted = [[part[r, c] for part in (each.prob, each.logit, each.rank)] for each in (table.final, table.next)]
        wanted += [[part[r, c] for part in (table.input.prob, table.input.logit, table.input.rank)]]
        wanted += zip(table.tracked.prob[r, c], table.tracked.logit[r, c], table.tracked.rank[r, c], strict=True)
        for line, (prob, logit, rank) in zip(panel(page, "standings"), wanted, strict=True):
            assert close(line[1], prob.item()) and close(line[2], logit.item()) and line[3] == str(rank.item())
        lines = page.locator("#panel .distribution tr").all()
        shown = {line.get_attribute("data-key"): line.locator("td").nth(1).inner_text() for line in lines}
        assert shown.pop("agrees") == ("yes" if table.agrees[r, c] else "no")
        assert shown.keys() == {*STATS, "cross_entropy"} - {"top", "final", "next", "input"}
        for name, text in shown.items():
            assert close(text, getattr(table, name)[r, c].item()), name
        assert f"Settled from {table.labels[int(table.settled[c])]} on." in page.locator("#panel").inner_text()
    meaning = look_up("rank")[0].meaning  # the glossary's, for whoever points at the word
    assert page.locator("#panel .standings th", has_text="Rank").get_attribute("title") == meaning


def test_colours_switch_and_are_those_of_the_numbers(opened: Opener, tables: list[minilens.LensTable]) -> None:
    table = tables[0]
    page = opened(lens_page(table))
    offered = page.locator("#colour option").evaluate_all("options => options.map(option => option.value)")
    assert offered[:3] == ["prob", "logit", "agrees"]
    shades = {
        "prob": table.top.prob[..., 0],
        "final_rank": 1 - table.final.rank.log10() / 3,
        "input_rank": 1 - table.input.rank.log10() / 3,
        "kl_final": 1 - table.kl_final / 10,
        "entropy": 1 - table.entropy / 10,
        "cross_entropy": 1 - table.cross_entropy / 10,
        "change": 1 - table.change / 10,
        "agrees": table.agrees.double(),
        "token17_prob": table.tracked.prob[..., 1],
    }
    for key, shade in shades.items():
        page.select_option("#colour", key)
        page.clock.run_for(120)  # what is out of sight follows
        wanted = [None if math.isnan(value) else rgb(value) for value in shade.flip(0).flatten().tolist()]
        found = [
            colour for colour, there in zip(colours(page), wanted, strict=True) if there is not None
        ]  # where there is no number, a pattern
        there = [colour for colour in wanted if colour is not None]
        different = [pair for pair in zip(found, there, strict=True) if pair[0] != pair[1]]
        assert len(different) <= len(there) // 100, key  # rounding may put a number on the next step
        assert state(page)["colour"] == [key]
    page.select_option("#colour", "logit")
    assert "or less" in page.locator("#legend").inner_text()
    page.select_option("#colour", "cross_entropy")
    page.clock.run_for(120)
    assert page.locator("#scroller td.nothing").count() == len(table.labels)
    assert "none" in page.locator("#legend").inner_text()


def test_only_what_the_table_holds_is_offered(opened: Opener, tiny: Tiny) -> None:
    model, _ = minilens.load(tiny("gpt_neo")[1])
    table = minilens.logit_lens(model, torch.arange(6)[None], stats=("entropy", "next"))
    page = opened(lens_page(table))
    offered = page.locator("#colour option").evaluate_all("options => options.map(option => option.value)")
    assert sorted(offered) == ["cross_entropy", "entropy", "next_logit", "next_prob", "next_rank"]
    page.select_option("#colour", "next_rank")  # without the best tokens, cells hold numbers
    wanted = ["none" if rank == 0 else str(rank) for rank in table.next.rank.flip(0).flatten().tolist()]
    page.clock.run_for(120)
    assert page.locator("#scroller td").all_text_contents() == wanted
    assert page.locator("#subblocks").is_hidden()


def test_a_click_pins_a_token_and_charts_compare_pins(opened: Opener, tables: list[minilens.LensTable]) -> None:
    table, c = tables[0], 5
    page = opened(lens_page(table))
    last = table.labels[-1]
    assert page.locator("#pins").is_hidden()
    cell(page, last, c).click()
    assert page.locator("#pins li").count() == 1
    assert cell(page, last, c).get_attribute("aria-selected") == "true"
    dots = page.locator("figure").nth(0).locator("circle title").all_text_contents()
    probs = table.final.prob[:, c].tolist()
    assert [text.rpartition(": ")[0].rpartition(", ")[2] for text in dots] == list(table.labels)
    assert all(close(text.rpartition(": ")[2], prob) for text, prob in zip(dots, probs, strict=True))
    ranks = page.locator("figure").nth(1).locator("circle title").all_text_contents()
    assert [int(text.rpartition(": ")[2]) for text in ranks] == table.final.rank[:, c].tolist()

    # A token that is known only where it is among the best.
    followed = {table.tokens[c].item(), table.next_tokens[c].item(), table.final_tokens[c].item(), *TRACKED}
    r, token = next(
        (r, token)
        for r in range(len(table.labels))
        if (token := table.top.tokens[r, c, 0].item()) not in followed
        and not (table.top.tokens[:, c] == token).any(-1).all()
    )
    cell(page, table.labels[r], c).click()
    assert page.locator("#pins li").count() == 2
    known = (table.top.tokens[:, c] == token).any(-1)
    note = page.locator("#pins li").nth(1).locator(".note").inner_text()
    assert note.startswith("below the top 4 and so not known at ")
    assert page.locator("figure").nth(0).locator("g").nth(1).locator("circle").count() == known.sum()
    texts = page.locator("#pins .unseen tbody tr").all_text_contents()
    assert ["not known" not in text for text in texts] == known.tolist()
    assert state(page)["pins"] == [f"{table.final_tokens[c]}@{c} {token}@{c}"]

    page.locator("#pins button").first.click()
    assert page.locator("#pins li").count() == 1
    cell(page, table.labels[r], c).click()  # a second click takes a pin away
    assert page.locator("#pins").is_hidden()
    page.locator("#panel .top button").nth(2).click()
    assert state(page)["pins"] == [f"{table.top.tokens[r, c, 2]}@{c}"]


def test_decoders_are_tabs_and_sub_block_rows_can_go(opened: Opener, tables: list[minilens.LensTable]) -> None:
    page = opened(lens_page(tables))
    tabs = page.get_by_role("tab")
    assert tabs.all_text_contents() == ["decoder final", "decoder mlp", "decoder block:1"]
    for at, table in enumerate(tables):
        tabs.nth(at).click()
        assert tabs.nth(at).get_attribute("aria-selected") == "true"
        assert page.locator("#scroller tbody th").all_text_contents() == list(reversed(table.labels))
        assert page.locator("#scroller td").all_text_contents() == [
            token_label(LETTERS, token) for token in table.top.tokens[..., 0].flip(0).flatten().tolist()
        ]
        page.get_by_label("Sub-block rows").uncheck()
        shown = [head.inner_text() for head in page.locator("#scroller tbody th").all() if head.is_visible()]
        kept = [n for n in table.labels if n in ("embed", table.labels[-1]) or n.endswith("resid_post")]
        assert shown == list(reversed(kept))
        page.get_by_label("Sub-block rows").check()
    assert state(page)["tab"] == ["2"]


def test_the_keyboard_is_enough(opened: Opener, tables: list[minilens.LensTable]) -> None:
    table = tables[0]
    page = opened(lens_page(tables))

    def at() -> str:
        return page.evaluate(
            """() => {
              const cell = document.activeElement;
              return `${cell.closest('tr').cells[0].textContent} ${cell.cellIndex - 1}`;
            }"""
        )

    def press(*keys: str) -> None:
        for key in keys:
            page.keyboard.press(key)

    press("Tab", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft")
    assert state(page)["tab"] == ["2"]
    press("Home", "Tab")
    assert page.evaluate("document.activeElement.id") == "colour"
    page.keyboard.type("KL(output")
    assert state(page)["colour"] == ["kl_final"]
    press("Tab", "Space")
    assert state(page)["subblocks"] == ["off"]
    press("Space", "Tab", "ArrowRight", "Tab")
    assert page.evaluate("document.activeElement.id") == "link"
    press("Tab", "Control+Home")
    labels = table.labels[::-1]
    assert at() == f"{labels[0]} 0"
    press("ArrowDown", "ArrowDown", "ArrowRight")
    assert at() == f"{labels[2]} 1"
    assert page.locator("#panel h2").inner_text() == f"{labels[2]}, position 1"
    press("End", "ArrowRight")
    assert at() == f"{labels[2]} {len(table.tokens) - 1}"
    press("Control+End")
    assert at() == f"embed {len(table.tokens) - 1}"
    press("Control+Home", "ArrowUp", "PageDown")
    assert at() == f"{labels[min(10, len(labels) - 1)]} 0"
    press("Enter", "ArrowRight", "Space")
    assert len(state(page)["pins"][0].split()) == 2
    assert "Entropy" not in page.locator("#summary").inner_text()
    assert "KL(output ‖ row)" in page.locator("#summary").inner_text()
    assert page.locator("#scroller td[tabindex='0']").count() == 1  # the grid is one stop
    press("Tab")
    assert page.evaluate("document.activeElement.closest('#panel') !== null")
    press("Enter")
    assert page.evaluate("document.activeElement.closest('#panel') !== null")
    page.locator("#pins button").first.focus()
    press("Enter", "Enter")
    press("Shift+Tab")
    while page.locator("#pins li").count():
        page.locator("#pins button").first.focus()
        press("Enter")
    assert at()  # with the last pin gone, the grid has the focus


def test_the_focused_cell_is_never_below_a_header(opened: Opener) -> None:
    page = opened(lens_page(made_up(49, 60)))
    page.locator("#scroller td[tabindex='0']").focus()
    for key in ("Control+End", "Control+Home", "PageDown", "PageDown", "PageDown", "End", "Home", "PageUp", "PageUp"):
        page.keyboard.press(key)
        top = """() => {
          const cell = document.activeElement, box = cell.getBoundingClientRect();
          return document.elementFromPoint((box.left + box.right) / 2, (box.top + box.bottom) / 2) === cell;
        }"""
        assert page.evaluate(top), key


def test_the_view_comes_back_from_the_address(opened: Opener, tables: list[minilens.LensTable]) -> None:
    text = lens_page(tables)
    first = opened(text)
    first.get_by_role("tab").nth(1).click()
    first.select_option("#colour", "entropy")
    first.get_by_label("Sub-block rows").uncheck()
    cell(first, "1.resid_post", 4).click()
    cell(first, "0.resid_post", 9).click()
    first.clock.run_for(200)
    second = opened(text, "#" + urlsplit(first.url).fragment)
    for page in (first, second):
        assert page.get_by_role("tab").nth(1).get_attribute("aria-selected") == "true"
        assert page.locator("#colour").input_value() == "entropy"
        assert not page.get_by_label("Sub-block rows").is_checked()
        assert page.locator("#panel h2").inner_text() == "0.resid_post, position 9"
    assert colours(first) == colours(second)
    assert first.locator("#pins").inner_text() == second.locator("#pins").inner_text()
    assert state(first) == state(second)
    second.evaluate("location.hash = '#tab=0&colour=prob'")
    while second.locator("#colour").input_value() != "prob":
        second.wait_for_timeout(20)
    assert second.locator("#pins").is_hidden()


@pytest.mark.parametrize(
    "words",
    [
        "tab=9&colour=no&at=x@y&pins=a@b 1e9@1",
        "tab=-1&at=%3Cimg%3E@1",
        "pins=99999@3 0@99999",
        "%E0%A4%A",
        "tab=constructor",
    ],
)
def test_an_address_that_means_nothing_does_no_harm(
    opened: Opener, tables: list[minilens.LensTable], words: str
) -> None:
    page = opened(lens_page(tables), "#" + words)
    assert page.locator("#scroller td").count() == tables[0].agrees.numel()
    assert page.locator("#panel h2").inner_text()


def test_hostile_text_stays_text(opened: Opener, tables: list[minilens.LensTable]) -> None:
    """`opened` fails where a dialog opens, or a message is written to the console, which the policy would do."""
    page = opened(lens_page(tables, title=HOSTILE))
    assert page.title() == page.locator("h1").inner_text() == HOSTILE
    heads = page.locator("#scroller tfoot th").all_text_contents()[1:7]
    assert heads == [SHOWN, r"\x1b[31m\x00", "↵", r"\xe2\x82", r"\u2028\u202e", "<!--"]
    cell(page, "embed", 0).click()
    page.locator("#panel .standings button", has_text="onerror").first.click()
    page.get_by_text("Numbers as a table").click()
    assert SHOWN in page.locator("#pins").inner_text()
    assert SHOWN in page.locator("#numbers caption").inner_text()
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2


def test_numbers_as_a_table(opened: Opener, tables: list[minilens.LensTable]) -> None:
    table, c = tables[0], 3
    page = opened(lens_page(table))
    page.get_by_text("Numbers as a table").click()
    page.locator("#numbers select").select_option(str(c))
    heads = page.locator("#numbers thead th").all_text_contents()
    entropy, rank = (
        heads.index(f"{group}: {name}") - 1
        for group, name in (("The row\u2019s distribution", "Entropy"), ("The output\u2019s token", "Rank"))
    )
    for r, line in enumerate(reversed(page.locator("#numbers tbody tr").all())):
        texts = line.locator("td").all_text_contents()
        assert line.locator("th").inner_text() == table.labels[r]
        assert close(texts[entropy], table.entropy[r, c].item())
        assert texts[rank] == str(table.final.rank[r, c].item())
    assert page.locator("#panel h2").inner_text().endswith(f"position {c}")


def test_paper_gets_all_columns(opened: Opener, tables: list[minilens.LensTable]) -> None:
    table = tables[0]
    page = opened(lens_page(table))
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.locator("#printed td").count() == table.agrees.numel()
    assert page.locator("#scroller").is_hidden()
    assert "decoder final. Colour: Probability" in page.locator("#legend").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    page.emulate_media(media="screen")
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("#printed td").count() == 0


def test_light_dark_and_a_narrow_window(opened: Opener, tables: list[minilens.LensTable]) -> None:
    text = lens_page(tables, title="A title without any space in it: " + "x" * 100)
    background = "getComputedStyle(document.body).backgroundColor"
    assert opened(text, color_scheme="light").evaluate(background) == "rgb(255, 255, 255)"
    page = opened(text, color_scheme="dark")
    assert page.evaluate(background) == "rgb(21, 23, 26)"
    page.set_viewport_size({"width": 400, "height": 700})
    cell(page, "embed", 0).click()
    assert page.evaluate("document.documentElement.scrollWidth") == 400  # the grid alone scrolls sideways


def test_the_frame_of_a_notebook_works(opened: Opener, tables: list[minilens.LensTable]) -> None:
    """And is as dark as the notebook, whatever the system says."""
    dark = "<!doctype html><meta charset=utf-8><body data-jp-theme-light=false>"
    page = opened(dark + str(tables[0]._repr_html_()), color_scheme="null")
    frame = page.frame_locator("iframe")
    frame.locator("#scroller td").first.click()
    page.clock.run_for(200)
    assert frame.locator("#pins li").count() == 1
    scheme = (
        "() => [true, false].map((dark) => matchMedia(`(prefers-color-scheme: ${dark ? 'dark' : 'light'})`).matches)"
    )
    assert page.frames[1].evaluate(scheme) == [True, False]
    page.evaluate("document.body.dataset.jpThemeLight = 'true'")
    page.screenshot()  # the frame hears of it when it is drawn
    assert page.frames[1].evaluate(scheme) == [False, True]


def test_a_large_page_recolours_what_is_in_sight_at_once(opened: Opener) -> None:
    """And the rest some columns at a time, so that a long text delays nothing."""
    page = opened(lens_page(made_up(25, 300)))
    page.clock.run_for(5000)
    before = colours(page)
    page.select_option("#colour", "kl_final")  # the columns further on wait for the page's clock
    at_once = [a != b for a, b in zip(before, colours(page), strict=True)]
    assert 0 < sum(at_once) < len(before) / 4
    page.clock.run_for(5000)
    shades = set(page.evaluate("[...document.querySelectorAll('#scroller td')].map(td => td.className)"))
    assert shades <= {f"s{step}" for step in range(64)}
    later = [a != b for a, b in zip(before, colours(page), strict=True)]
    assert sum(later) > len(before) / 2
    page.evaluate("document.querySelector('#scroller').scrollLeft = 1e6")
    before = colours(page)
    page.select_option("#colour", "js")
    page.clock.run_for(5000)
    assert sum(a != b for a, b in zip(before, colours(page), strict=True)) > len(before) / 2  # out of sight, too


# ---- Attention in a browser


START = "#at=2.resid_post@3&attention=0.0@3.0"  # a text opens at its end, and a query with its strongest key


def below(page: Any, query: int, key: int) -> tuple[float, float]:
    """Where in the window the middle of a cell of the picture is."""
    box = page.locator("#picture canvas").bounding_box()
    room, size = page.evaluate("[ROOM, CELL]")
    return box["x"] + room + (key + 0.5) * size, box["y"] + room + (query + 0.5) * size


COPY = """(canvas) => {
  const pen = Object.assign(document.createElement('canvas'), { width: canvas.width, height: canvas.height })
    .getContext('2d', { willReadFrequently: true });
  pen.drawImage(canvas, 0, 0);
  return pen;
}"""


def choose(page: Any, layer: int, head: int) -> None:
    page.select_option("#layer", str(layer))
    page.select_option("#head", str(head))


def test_the_picture_is_the_pattern(opened: Opener, attention: Attention) -> None:
    """Its colours cell by cell, by the root of the weight; blank where nothing is seen."""
    page = opened(attention_page(attention), START)
    for layer, head in ((0, 0), (1, 3), (2, 4)):
        choose(page, layer, head)
        found = page.evaluate(
            """() => {
              const canvas = document.querySelector('#picture canvas'), pen = (COPY)(canvas);
              const sharp = canvas.width / canvas.clientWidth;
              const at = (index) => (ROOM + index * CELL + 3) * sharp; // beside the mark of the focused cell
              return Array.from({ length: textLength }, (_, query) => Array.from({ length: textLength }, (_, key) => {
                const [red, green, blue, alpha] = pen.getImageData(at(key), at(query), 1, 1).data;
                return alpha ? `rgb(${red}, ${green}, ${blue})` : null;
              }));
            }""".replace("COPY", COPY)
        )
        block = attention[2][layer]
        wrong = 0
        for query, line in enumerate(found):
            for key, colour in enumerate(line):
                if (query, key) == (3, 0):  # the focused one has its marks
                    continue
                seen = block.scores[0, head, query, key] > -torch.inf
                assert (colour is not None) == seen
                wrong += bool(seen) and colour != rgb(block.pattern[0, head, query, key].sqrt().item())
        assert wrong <= 3  # rounding may put a weight on the next step


def test_hover_and_click_tell_a_weight(opened: Opener, attention: Attention) -> None:
    _, tokens, _ = attention
    page = opened(attention_page(attention), START)
    page.locator("#picture").scroll_into_view_if_needed()
    labels = [token_label(LETTERS, token) for token in tokens[0].tolist()]
    for layer, head in ((0, 1), (1, 2)):
        choose(page, layer, head)
        for query, key in ((0, 0), (12, 3), (20, 20), (24, 0), (7, 9), (17, 14)):
            page.mouse.move(*below(page, query, key))
            wanted = weight(attention, layer, head, query, key)
            where = f"from query {query} {labels[query]} to key {key} {labels[key]}, layer {layer}, head {head}"
            assert page.locator("#weight").inner_text() == f"{wanted} {where}"
    page.mouse.move(0, 0)
    assert " from query 3 " in page.locator("#weight").inner_text()  # the focused one's again
    page.mouse.click(*below(page, 17, 14))
    page.mouse.move(0, 0)
    assert " from query 17 " in page.locator("#weight").inner_text()
    assert page.locator("#panel h2").inner_text().endswith("position 17")  # the grid's column has moved
    page.mouse.click(*below(page, 12, 14))  # above the diagonal, and in no column of the grid
    assert " from query 12 " in page.locator("#weight").inner_text()
    assert " to key 12 " in page.locator("#weight").inner_text()
    assert page.locator("#panel h2").inner_text().endswith("position 17")


def test_attention_by_keyboard(opened: Opener, attention: Attention) -> None:
    _, tokens, blocks = attention
    page = opened(attention_page(attention), START)

    def press(*keys: str) -> str:
        for key in keys:
            page.keyboard.press(key)
        return page.locator("#weight").inner_text()

    def shown(layer: int, head: int, query: int, key: int) -> None:
        text = page.locator("#weight").inner_text()
        assert text.startswith(f"{weight(attention, layer, head, query, key)} from query {query} "), text
        assert f" to key {key} " in text and text.endswith(f", layer {layer}, head {head}")
        lines = page.locator("#strongest tbody tr").all()
        found = [[cell.inner_text() for cell in line.locator("th, td").all()] for line in lines]
        weights = blocks[layer].pattern[0, head, query, : query + 1]
        weights = weights.masked_fill(blocks[layer].scores[0, head, query, : query + 1] == -torch.inf, -1)
        best = [each for each in weights.argsort(descending=True).tolist() if weights[each] >= 0][:8]
        assert [line[2] for line in found] == [f"{weights[each].item():.3f}" for each in best]
        assert int(found[0][0]) == best[0] and found[0][1] == token_label(LETTERS, tokens[0, best[0]].item())

    def focus() -> str:
        return page.evaluate("document.activeElement.id")

    page.locator("#scroller td[tabindex='0']").focus()
    shown(0, 0, 3, 0)
    assert page.locator("#weight").get_attribute("aria-live") != "polite"  # not with each move in the grid
    press("ArrowRight")
    strongest = blocks[0].pattern[0, 0, 9].argmax().item()
    assert strongest > 0
    shown(0, 0, 9, strongest)
    while focus() != "layer":
        press("Tab")
    assert page.locator("#weight").get_attribute("aria-live") == "polite"
    press("ArrowDown", "Tab")
    assert focus() == "head"
    press("ArrowDown", "ArrowDown")
    shown(1, 2, 9, strongest)
    press("Tab", "Tab", "Enter")  # the first is the scale
    shown(1, 1, 9, strongest)
    press("Tab", *["Enter"] * 4)
    shown(2, 0, 9, strongest)
    press("Tab", "ArrowRight", "ArrowUp")  # the small pictures of all heads
    shown(1, 1, 9, strongest)
    press("ArrowLeft", "ArrowDown")
    shown(2, 0, 9, strongest)
    press("Tab")
    assert focus() == "picture"
    press("Home", "ArrowRight", "ArrowRight", "ArrowDown")
    shown(2, 0, 10, 2)  # in no column of the grid
    assert page.locator("#panel h2").inner_text().endswith("position 9")
    press("End")
    shown(2, 0, 10, 10)
    press("ArrowRight", "ArrowUp")
    shown(2, 0, 9, 9)
    press("Home", "ArrowLeft", "Control+End")
    shown(2, 0, 24, 24)
    assert page.locator("#panel h2").inner_text().endswith("position 24")
    press("PageUp", "ArrowLeft", "ArrowUp")
    shown(2, 0, 13, 13)
    press("Control+Home", "ArrowUp", "PageDown")
    shown(2, 0, 10, 0)
    press("Tab")
    assert focus() != "picture"
    assert page.locator("#weight").get_attribute("aria-live") == "off"
    page.locator("#previous").focus()
    for _ in range(11):
        press("Enter")
    shown(2, 4, 10, 0)  # before the first head of all comes the last


def test_the_focused_weight_is_in_sight(opened: Opener, attention: Attention) -> None:
    table = made_up(2, 300)
    n = len(table.tokens)
    scores = torch.zeros(1, 5, n, n).masked_fill(~torch.ones(n, n).tril().bool(), -torch.inf)
    block = replace(attention[2][0], pattern=scores.softmax(-1), scores=scores)
    text = lens_page(table, tokens=table.tokens[None], patterns=[block])
    page = opened(text, "#at=embed@200&attention=0.1@200.150")

    def in_sight() -> bool:
        return page.evaluate(
            """() => {
              const picture = document.querySelector('#picture');
              const inside = (index, from, size) =>
                index * CELL >= from - 1 && (index + 1) * CELL <= from + size - ROOM + 1;
              return inside(state.query, picture.scrollTop, picture.clientHeight)
                && inside(state.key, picture.scrollLeft, picture.clientWidth);
            }"""
        )

    assert "from query 200 " in page.locator("#weight").inner_text() and in_sight()
    page.locator("#picture").focus()
    for key in ("Control+End", "PageUp", "Home", "End", "Control+Home"):
        page.keyboard.press(key)
        assert in_sight(), key
    page.locator("#picture").scroll_into_view_if_needed()
    page.evaluate("document.querySelector('#picture').scrollTo(280, 1400)")  # by hand: 20 columns and 100 rows
    page.mouse.move(*below(page, 11, 3))
    assert re.search(r"^0\.009 from query 111 .* to key 23 ", page.locator("#weight").inner_text())


def test_the_head_comes_back_from_the_address(opened: Opener, attention: Attention) -> None:
    text = attention_page(attention)
    first = opened(text, START)
    choose(first, 1, 3)
    first.locator("#picture").focus()
    for key in ("PageDown", "ArrowRight", "ArrowRight"):
        first.keyboard.press(key)
    assert state(first)["attention"] == ["1.3@13.2"]
    second = opened(text, "#" + urlsplit(first.url).fragment)
    assert first.locator("#attention").inner_text() == second.locator("#attention").inner_text()
    assert second.locator("#attention h2").inner_text() == "Attention: layer 1, head 3"
    assert (second.locator("#layer").input_value(), second.locator("#head").input_value()) == ("1", "3")
    assert state(second) == state(first)
    second.evaluate("location.hash = '#attention=2.0@24.24'")
    second.get_by_role("heading", name="Attention: layer 2, head 0").wait_for()
    assert " from query 24 " in second.locator("#weight").inner_text()


@pytest.mark.parametrize("words", ["9.9@99.99", "0.5@3.4", "x", "1.1@1", "constructor.0@0.0", "00.0@3.999999999999"])
def test_an_address_of_no_head_does_no_harm(opened: Opener, attention: Attention, words: str) -> None:
    page = opened(attention_page(attention), f"#attention={words}")
    page.locator("#next").click()
    assert re.match(r"[01]\.\d{3} from query ", page.locator("#weight").inner_text())


def test_hostile_text_stays_text_in_the_picture(opened: Opener, attention: Attention) -> None:
    page = opened(attention_page(attention, title=HOSTILE), "#attention=0.0@5.0")
    assert SHOWN in page.locator("#weight").inner_text()
    strongest = page.locator("#strongest").inner_text()
    assert SHOWN in strongest and r"\u2028\u202e" in strongest
    assert page.locator("img").count() == 0 and page.locator("script").count() == 2


def test_attention_does_not_change_with_the_tab(opened: Opener, tables: list[minilens.LensTable], tiny: Tiny) -> None:
    model, _ = minilens.load(tiny("gpt2")[1])
    tokens = tables[0].tokens[None]
    page = opened(lens_page(tables, tokens=tokens, patterns=minilens.run(model, model.embed(tokens))))
    choose(page, 2, 1)
    cell(page, "embed", 11).click()
    before = page.locator("#attention").inner_text()
    page.get_by_role("tab").nth(2).click()
    assert page.locator("#attention").inner_text() == before
    assert page.locator("#pins h2").inner_text() == "Pinned tokens, decoder block:1"


def test_no_patterns_no_section(opened: Opener, tables: list[minilens.LensTable]) -> None:
    page = opened(lens_page(tables[0]))
    assert page.locator("#attention").is_hidden()
    assert "attention" not in state(page)


def test_attention_on_paper_in_the_dark_and_in_a_narrow_window(opened: Opener, attention: Attention) -> None:
    page = opened(attention_page(attention), color_scheme="light")
    label = """() => {
      const canvas = document.querySelector('#picture canvas'), pen = (COPY)(canvas);
      const { data } = pen.getImageData(0, 0, ROOM, canvas.height); // the names of the rows
      return Math.max(...data.filter((_, at) => at % 4 === 0));
    }""".replace("COPY", COPY)
    dark_text = page.evaluate(label)
    page.emulate_media(color_scheme="dark")
    while page.evaluate(label) <= dark_text + 30:  # drawn anew, in light letters
        page.wait_for_timeout(20)
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.locator("#paper canvas").is_visible() and page.locator("#picture").is_hidden()
    assert page.locator("#attention h2").is_visible() and page.locator("#layer").is_hidden()
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    page.emulate_media(media="screen")
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("#paper canvas").count() == 0
    page.set_viewport_size({"width": 400, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    assert page.locator("#picture canvas").bounding_box()["width"] <= 400


def test_of_a_long_text_only_the_attention_in_sight_is_drawn(opened: Opener, attention: Attention) -> None:
    """By a step in the picture and by another head; a new colour of the grid draws none of it."""
    table = made_up(3, 500)
    n = len(table.tokens)
    scores = torch.zeros(1, 5, n, n).masked_fill(~torch.ones(n, n).tril().bool(), -torch.inf)
    block = replace(attention[2][0], pattern=scores.softmax(-1), scores=scores)
    page = opened(lens_page(table, tokens=table.tokens[None], patterns=[block]))
    colour, step, head = page.evaluate(
        """() => {
          let drawn = 0;
          const { prototype } = CanvasRenderingContext2D, { fillRect } = prototype;
          prototype.fillRect = function (...where) { drawn += 1; fillRect.apply(this, where); };
          const cells = (act) => { drawn = 0; act(); return drawn; };
          const select = document.querySelector('#colour');
          return [
            cells(() => { select.value = 'kl_final'; select.dispatchEvent(new Event('change')); }),
            cells(() => moveCell(state.query + 150, state.key + 100)),
            cells(() => document.querySelector('#next').click()),
          ];
        }"""
    )
    assert colour == 0
    assert 0 < step < n * n / 10 and 0 < head < n * n / 10

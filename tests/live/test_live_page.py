"""The page that computes: the same tokens and numbers as Python, and nothing runs or leaves that should not.

The tests in a browser need the package playwright and Debian's chromium, and are skipped where one is missing. More
texts are in scripts/live_parity.py, which runs all of them.
"""

import json
import re
import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
import torch
from checkpoints import Letters, changed, tokenizer_json
from conftest import Tiny

import minilens
from minilens.live import packed
from minilens.live.page import live_page
from minilens.views.tokens import token_label

pytest.importorskip("playwright.sync_api", reason="the package playwright is not there")
ROOT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "live_parity.py"))
Page, largest, edits_of = SCRIPT["Page"], SCRIPT["largest"], SCRIPT["edits_of"]
TEXTS, WAYS, BOUND = SCRIPT["TEXTS"], SCRIPT["WAYS"], SCRIPT["BOUND"]
HOSTILE = "</script><img src=x onerror=alert(1)>"

Opener = Callable[..., Any]


@pytest.mark.parametrize("name", ["tales-gpt2", "tales-gpt-neo", "tales-ctrl"])
def test_the_page_computes_as_python_does(opened: Opener, name: str) -> None:
    page = Page(name)
    page.of(opened(page.html))
    for text in TEXTS:
        found = page.page.evaluate("(text) => call('encode', { text })", text)
        assert found == page.tokenizer.encode(text)[0].tolist(), text
    assert max(largest(page, TEXTS[5][:9], way=WAYS[3], edits=[]).values()) < BOUND  # a learned lens
    text, other, edits = edits_of(page)
    assert max(largest(page, text, way={}, edits=edits, other=other).values()) < BOUND
    tokens = page.tokenizer.encode(text)
    assert page.written(text, 6) == minilens.generate(page.model, tokens, 6)[0, tokens.shape[1] :].tolist()


@pytest.fixture
def small(tiny: Tiny, tmp_path: Path) -> Callable[..., Any]:
    """small(family, **config keys): a tiny model with a hostile vocabulary, whose weights float16 holds."""

    def make(family: str, **overrides: Any) -> Any:
        def half(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {name: tensor.half().float() for name, tensor in tensors.items()}

        document = tokenizer_json().decode().replace("<|endoftext|>", json.dumps(HOSTILE)[1:-1])
        files: dict[str, bytes | None] = {"tokenizer.json": document.encode()}
        settings = {"tokenizer_config.json": b'{"bos_token": null, "eos_token": null, "unk_token": null}'}
        return Page(
            str(changed(tiny(family, **overrides)[1], tmp_path / "small", tensors=half, files=files | settings))
        )

    return make


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("gpt_neo", {"activation_function": "gelu"}),  # local layers, whose window is shorter than the text
        (
            "gpt2",
            {"activation_function": "relu", "scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": False},
        ),
    ],
)
def test_what_few_checkpoints_say(opened: Opener, small: Callable[..., Any], family: str, overrides: Any) -> None:
    page = small(family, **overrides)
    html = page.html if family == "gpt_neo" else page.html.replace("new WebAssembly", "new Nothing")  # an older browser
    page.of(opened(html))
    assert page.page.workers[0].evaluate("room !== null") == (family == "gpt_neo")
    text = "once upon a time there was a little cat"
    assert page.tokenizer.encode(text).shape[1] > 7
    for way in WAYS[:3]:
        assert max(largest(page, text, way=way, edits=[]).values()) < BOUND
    for part in ("once", "once upon a cat", "once upon a", "once upon a red cat"):  # a change computes what follows it
        assert max(largest(page, part, way=WAYS[0], edits=[]).values()) < BOUND


def answered(page: Any, act: Callable[[], Any]) -> None:
    """Do something, and wait for the grid that comes of it."""
    before = page.locator("#asks").get_attribute("data-answered")
    act()
    page.wait_for_selector(f"#asks:not([data-answered='{before}'])")


def test_the_grid_follows_what_is_typed(opened: Opener, small: Callable[..., Any]) -> None:
    made = small("gpt2")
    page = made.of(opened(made.html)).page
    text = f"a cat{HOSTILE} {HOSTILE[2:]}\x1b"
    answered(page, lambda: page.locator("#text").fill(text))
    tokens = made.tokenizer.encode(text)
    labels = [token_label(made.tokenizer, token) for token in tokens[0].tolist()]
    assert HOSTILE.replace(" ", "·") in labels
    assert page.locator("#scroller tfoot th").all_text_contents()[1:] == labels
    table = minilens.logit_lens(made.model, tokens)
    best = [token_label(made.tokenizer, token) for token in table.top.tokens[..., 0].flip(0).flatten().tolist()]
    assert page.locator("#scroller td").all_text_contents() == best
    assert page.locator("#panel h2").inner_text() == f"2.resid_post, position {len(labels) - 1}"
    assert page.locator("img").count() == 0 and page.locator("script").count() == 4  # data, model, engine, its own
    answered(page, lambda: page.locator("#text").press("Backspace"))
    assert page.locator("#said").inner_text().startswith(f"{len(labels) - 1} of 40 tokens")
    page.locator("#text").fill("cat " * 30)
    page.wait_for_selector("#said.refused")
    assert "s context holds 40: shorten it." in page.locator("#said").inner_text()
    page.evaluate("asked.text = '\\ud800'; ask()")
    page.get_by_text("a lone surrogate").wait_for()
    page.locator("#text").fill("")
    page.get_by_text("Type a text").wait_for()


def test_heads_are_silenced_and_residuals_put(opened: Opener, small: Callable[..., Any]) -> None:
    made = small("gpt_neo")
    words = {"text": "once upon a time", "other": "once there was a cat", "colour": "difference"}
    page = made.of(opened(made.html, "#" + urlencode(words, quote_via=quote))).page
    assert page.locator("#beside h2").inner_text() == "other text"
    theirs = page.locator("#beside tfoot th").all_text_contents()[1:]
    assert theirs == [token_label(made.tokenizer, token) for token in made.tokenizer.encode(words["other"])[0].tolist()]

    def shown() -> list[str]:
        return page.locator("#scroller td").all_text_contents()

    def wanted(*edits: Any) -> list[str]:
        tokens = made.tokenizer.encode(words["text"])
        table = minilens.logit_lens(made.model, tokens, edit=minilens.then(*edits) if edits else minilens.untouched)
        return [token_label(made.tokenizer, token) for token in table.top.tokens[..., 0].flip(0).flatten().tolist()]

    assert shown() == wanted()
    page.locator("#heads button[data-head='1.3']").click()
    answered(page, lambda: page.locator("#silence").click())
    silent = minilens.zero(1, "z", heads=3)
    assert shown() == wanted(silent)
    assert page.locator("#edits li").all_inner_texts()[0].startswith("head 1.3 silenced")
    page.locator("#scroller tbody tr").nth(1).locator("td").nth(2).click()  # 1.resid_post
    answered(page, lambda: page.locator("#patch").click())
    block = minilens.trace(made.model, made.tokenizer.encode(words["other"])).blocks[1]
    put = minilens.patch(block, "resid_post", positions=2)
    assert shown() == wanted(silent, put)
    page.clock.run_for(200)
    again = opened(made.html, "#" + page.url.partition("#")[2])  # the address holds all of it
    again.wait_for_selector("#asks[data-answered]")
    assert again.locator("#scroller td").all_text_contents() == shown()
    answered(page, lambda: page.locator("#edits button").first.click())
    answered(page, lambda: page.locator("#edits button").first.click())
    assert shown() == wanted()


def test_the_model_writes_on(opened: Opener, small: Callable[..., Any]) -> None:
    made = small("gpt2")
    page = made.of(opened(made.html, "#text=once%20upon")).page
    tokens = made.tokenizer.encode("once upon")
    steps = list(minilens.generate_steps(made.model, tokens, 5))
    page.locator("#writing summary").click()
    page.locator("#n").fill("5")
    answered(page, lambda: page.locator("#write").click())
    strip = [text.split("\n") for text in page.locator("#strip li").all_inner_texts()]
    label = {step.settled.item(): step.labels[min(step.settled.item(), 3)] for step in steps}
    assert strip == [[token_label(made.tokenizer, step.tokens.item()), label[step.settled.item()]] for step in steps]
    assert page.locator("#scroller tfoot th").count() == 1 + tokens.shape[1] + 5  # the grid has them, too
    page.locator("#temperature").fill("3")
    page.locator("#best").fill("1")  # what is drawn from one token is that token
    answered(page, lambda: page.locator("#write").click())
    more = list(minilens.generate_steps(made.model, tokens, 10))
    found = [text.split("\n")[0] for text in page.locator("#strip li").all_inner_texts()]
    assert found == [token_label(made.tokenizer, step.tokens.item()) for step in more]
    answered(page, lambda: page.locator("#keep").click())
    assert page.locator("#text").input_value() == made.tokenizer.decode(
        torch.cat([tokens[0], *(step.tokens for step in more)])
    )


def test_the_numbers_of_a_block_stand_beside_its_source(opened: Opener, small: Callable[..., Any]) -> None:
    made = small("gpt_neo")
    page = made.of(opened(made.html, "#text=once%20upon%20a%20time&at=1.resid_post@9&attention=0.2@9.0")).page
    page.locator("#walk summary").click()
    page.wait_for_selector("#walk table")
    lines = dict(text.split(": ", 1) for text in page.locator("#walk .numbers-of").all_inner_texts())
    block = minilens.trace(made.model, made.tokenizer.encode("once upon a time")).blocks[1]
    places = {"resid_post": (0, 9), "mlp_pre": (0, 9), "z": (0, 2, 9), "pattern": (0, 2, 9), "q": (0, 2, 9)}
    for name, place in places.items():
        numbers = [float(number) for number in lines[f"\t{name}"].removesuffix("  …").split("  ")]
        assert numbers == pytest.approx(getattr(block, name)[place][:6].tolist(), rel=1e-3, abs=1e-5)
    assert "pattern = at(" in page.locator("#walk").inner_text()


def test_a_model_that_no_page_holds_is_refused(small: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    made = small("gpt2")
    with monkeypatch.context() as patched:
        patched.setattr(packed, "MOST", 20_000)
        with pytest.raises(ValueError, match=r"take 0 MB in float16, .* at most 0 MB: take a smaller model, or"):
            live_page(made.model, made.tokenizer)
    W_pos = made.model.W_pos.clone()
    W_pos[3, 2] = 1e5
    with pytest.raises(ValueError, match=r"model.W_pos holds a number that float16 cannot hold"):
        live_page(replace(made.model, W_pos=W_pos), made.tokenizer)
    with pytest.raises(ValueError, match="runs GPT-2's tokenizer and CTRL's, and this checkpoint has another one"):
        live_page(made.model, Letters({}))
    with pytest.raises(ValueError, match="the text is not valid Unicode"):
        live_page(made.model, made.tokenizer, text="\ud800")


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "ctrl"])
def test_a_block_in_javascript_is_the_block_in_python_line_for_line(family: str) -> None:
    """The same names with the same shapes in the same order; there is no batch."""

    def lines(path: str, start: str, comment: str) -> list[list[str]]:
        body = (ROOT / "minilens" / path).read_text().partition(start)[2].partition("Everything, in the order")[0]
        found = re.findall(rf"^ +(?:const |let )?\[?([\w, ]+)\]? = .*{comment} (.+)$", body, re.MULTILINE)
        return [[names, shape.replace("batch ", "")] for names, shape in found if names != "at"]

    ours = lines(f"live/{family}.js", "  block(layer", "//")
    assert ours == lines(f"{family}.py", "    def block(self", "#")
    assert len(ours) > 15

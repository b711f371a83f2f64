"""Pictures of heads and patterns: what a notebook shows of them."""

import re
import zlib
from base64 import b64decode
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import Tiny
from torch import Tensor

import minilens
from minilens.views import pictures
from minilens.views.colours import AWAY, CIVIDIS, NEUTRAL, TOWARDS, of_share, of_sign
from minilens.views.pictures import heads_page, patterns_page


@pytest.fixture
def model(tiny: Tiny) -> minilens.Model:
    return minilens.load(tiny("gpt2")[1])[0]


def numbers(page: str) -> list[list[str]]:
    """The cells of each row of numbers."""
    rows = [re.findall("<td[^>]*>([^<]*)</td>", row) for row in page.split("</tr>")]
    return [row for row in rows if row]


def weights(page: str) -> list[Tensor]:
    """The pictures of a page, as bytes [query, key]."""
    found = []
    for text in re.findall('src="data:image/png;base64,([^"]*)"', page):
        png = b64decode(text)
        wide, tall = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
        at = png.index(b"IDAT")
        data = zlib.decompress(png[at + 4 : at + 4 + int.from_bytes(png[at - 4 : at], "big")])
        lines = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(tall, wide + 1)
        assert not lines[:, 0].any()
        found.append(lines[:, 1:])
    return found


def test_a_table_for_each_score(model: minilens.Model) -> None:
    scores = minilens.head_scores(model, length=5)
    rows = numbers(heads_page(scores))
    assert rows == [[f"{score:.2f}" for score in layer] for kind in scores for layer in kind.flip(0).tolist()]


def test_a_picture_is_the_pattern(model: minilens.Model, tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    block = minilens.trace(model, tokens[:1]).blocks[1]
    found = torch.stack(weights(patterns_page(block)))
    assert torch.equal(found, (block.pattern[0] * 255).round().to(torch.uint8))
    monkeypatch.setattr(pictures, "LARGEST", 11)
    page = patterns_page(block)
    largest = block.pattern[0].unflatten(-1, (11, 3)).unflatten(1, (11, 3)).amax((2, 4))
    assert torch.equal(torch.stack(weights(page)), (largest * 255).round().to(torch.uint8))
    assert "the largest weight of some 3.0 by 3.0" in page


def test_colours() -> None:
    assert [of_share(share) for share in (-1.0, 0.0, 0.2, 1.0, 2.0)] == [CIVIDIS[at] for at in (0, 0, 1, 5, 5)]
    assert [of_sign(value) for value in (-2.0, -1.0, 0.0, 1.0)] == [AWAY, AWAY, NEUTRAL, TOWARDS]
    assert of_share(torch.nan) == of_sign(torch.nan) == NEUTRAL


def test_notebooks_show_them(model: minilens.Model, tokens: Tensor) -> None:
    block = minilens.trace(model, tokens).blocks[0]
    for shown in (minilens.head_scores(model, length=5), minilens.attribute(model, tokens[:1]), block):
        frame = shown._repr_html_()  # type: ignore[attr-defined]
        assert re.match(r"<style>[^<>]*</style><iframe ", frame) and 'sandbox=""' in frame and "<script" not in frame
    meta = minilens.trace(model, tokens).blocks[0]
    there = type(meta)(**{name: getattr(meta, name) for name in meta.__slots__} | {"pattern": meta.pattern.to("meta")})
    assert there._repr_html_() is None  # type: ignore[attr-defined]


def test_in_a_browser(model: minilens.Model, tokens: Tensor, opened: Callable[..., Any]) -> None:
    page = opened(patterns_page(minilens.trace(model, tokens[:1]).blocks[0]))
    assert page.evaluate("[...document.images].map(image => image.naturalWidth)") == [33] * 5

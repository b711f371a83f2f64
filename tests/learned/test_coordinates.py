"""Coordinates along tokens: they are read as they were set, nothing else changes, and a learned lens has its own."""

import doctest
import re
from typing import Any

import pytest
import torch
from conftest import FAMILIES, Tiny
from torch import Tensor

import minilens
from minilens.learned import coordinates as module
from minilens.learned.affine import LearnedLens, RowMap, Subject
from minilens.lens import EMBED
from minilens.traces import ROW_SITES, Site

IDS, LENGTHS = [3, 41, 77], [33, 20]


def loaded(tiny: Tiny, family: str, dtype: torch.dtype = torch.float64) -> minilens.Model:
    return minilens.load(tiny(family)[1], dtype=dtype)[0]


def learned(model: minilens.Model) -> LearnedLens:
    """Another map for each row."""
    random = torch.Generator().manual_seed(7)
    sites = [EMBED, *(Site(layer, site) for layer in range(3) for site in ROW_SITES[1:])]
    maps = {site: RowMap.of(torch.randn(30, 30, generator=random).double(), torch.ones(30).double()) for site in sites}
    return LearnedLens("affine", maps, Subject.of(model))


@pytest.mark.parametrize("has_lens", [False, True], ids=["logit lens", "learned"])
@pytest.mark.parametrize("site", [(0, "resid_pre"), (1, "attn_out"), (1, "resid_post")], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_set_is_read(tiny: Tiny, tokens: Tensor, family: str, site: tuple[int, str], has_lens: bool) -> None:
    """At the last position of each text of a padded batch; what is orthogonal stays, and so do other positions."""
    model, (layer, name) = loaded(tiny, family), site
    lens = learned(model) if has_lens else None
    clean = minilens.trace(model, tokens).blocks[layer]
    was = minilens.coordinates(model, clean, name, IDS, lens=lens)
    A = torch.eye(30).double() if lens is None else lens.maps[EMBED if site == (0, "resid_pre") else Site(*site)].A
    U = model.ln_final.w[:, None] * model.W_U[:, IDS]
    V = A @ (U - U.mean(0))
    resid = getattr(clean, name)
    torch.testing.assert_close(was, torch.linalg.lstsq(V.expand(2, -1, -1), resid.mT).solution.mT)

    ends = [length - 1 for length in LENGTHS]
    for edit, expected in (
        (minilens.clamp(model, *site, IDS, [1.0, -2.0, 0.5], lens=lens, positions=-1, lengths=LENGTHS), [1, -2, 0.5]),
        (minilens.clamp(model, *site, IDS, 0.0, lens=lens, positions=-1, lengths=LENGTHS), [0, 0, 0]),
        (minilens.swap(model, *site, IDS[0], IDS[2], lens=lens, positions=-1, lengths=LENGTHS), None),
    ):
        block = minilens.trace(model, tokens, edit=edit).blocks[layer]
        ids = IDS if expected is not None else [IDS[0], IDS[2]]
        now = minilens.coordinates(model, block, name, ids, lens=lens)
        before = minilens.coordinates(model, clean, name, ids, lens=lens)
        change = getattr(block, name) - resid
        for text, end in enumerate(ends):
            wanted = before[text, end].flip(0) if expected is None else torch.tensor(expected).double()
            torch.testing.assert_close(now[text, end], wanted, rtol=1e-9, atol=1e-9)
            inside = change[text, end] @ torch.linalg.pinv(V.mT) @ V.mT
            torch.testing.assert_close(inside, change[text, end], rtol=1e-9, atol=1e-9)
            assert change[text, :end].abs().max() == 0 and change[text, end].abs().max() > 1e-3


def test_one_token_that_is_clamped_gains_or_loses(tiny: Tiny, tokens: Tensor) -> None:
    """In the last block's stream the logit grows with the coordinate, whether centred or not."""
    model = loaded(tiny, "gpt2")
    for centred in (False, True):
        ranks = []
        for value in (-20.0, 0.0, 20.0):
            edit = minilens.clamp(model, 2, "resid_post", 41, value, centred=centred)
            ranks.append((minilens.trace(model, tokens, edit=edit).logits[..., 41]).mean().item())
        assert ranks == sorted(ranks)
    V = model.ln_final.w * (model.W_U[:, 41] - model.W_U.mean(1))
    V = V - V.mean()
    block = minilens.trace(model, tokens).blocks[2]
    found = minilens.coordinates(model, block, "resid_post", 41, centred=True)[..., 0]
    torch.testing.assert_close(found, block.resid_post @ V / (V @ V))


def test_half_precision_keeps_its_dtype(tiny: Tiny, tokens: Tensor) -> None:
    model = loaded(tiny, "gpt2", torch.bfloat16)
    block = minilens.trace(model, tokens, edit=minilens.clamp(model, 1, "resid_post", IDS, 3.0)).blocks[1]
    assert block.resid_post.dtype == torch.bfloat16
    found = minilens.coordinates(model, block, "resid_post", IDS)
    assert found.dtype == torch.float32 and (found - 3).abs().max() < 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: minilens.swap(m, 1, "resid_post", 3, 3), "the tokens 3 and 3 have almost the same direction at 1."),
        (lambda m: minilens.clamp(m, 1, "z", 3, 0.0), '"z" has no coordinates along tokens; resid_pre, attn_out'),
        (lambda m: minilens.clamp(m, 1, "resid_post", [], 0.0), "tokens is empty: name at least one"),
        (lambda m: minilens.clamp(m, 1, "resid_post", 101, 0.0), "token is 101, which is out of range"),
        (lambda m: minilens.clamp(m, 1, "resid_post", IDS, [1.0, 2.0]), "values must be a number, or one for each of"),
        (lambda m: minilens.clamp(m, 1, "resid_post", IDS, torch.nan), "values must be a number, or one for each of"),
        (lambda m: minilens.clamp(m, 1, "resid_pre", 3, 0.0, lens=learned(m)), "the lens affine has no map for"),
    ],
)  # fmt: skip
def test_what_cannot_be(tiny: Tiny, call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        call(loaded(tiny, "gpt2"))


def test_the_example() -> None:
    result = doctest.testmod(module, extraglobs={"minilens": minilens})
    assert (result.failed, result.attempted > 0) == (0, True)

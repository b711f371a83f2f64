"""Edits: what they name changes, and nothing else, nowhere else, for nobody else."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from conftest import FAMILIES, Tiny
from jaxtyping import TypeCheckError
from rounding import near

import minilens
from minilens.traces import HEAD_SITES, RESID_SITES, SITES, BlockTrace

FIELDS = [name for name in BlockTrace.__slots__ if name != "layer"]
SUMS = 3 * 10 + 2  # in a row from the first block to the logits: norms, products and the softmax
# What a block computes from each site: where an edit of it shows, itself included.
WIDTHS = (
    {"mlp_post": 50} | dict.fromkeys(("q", "k", "v", "z"), 6) | dict.fromkeys(("attn_out", "mlp_out", *RESID_SITES), 30)
)


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tiny: Tiny) -> minilens.Model:
    return minilens.load(tiny(request.param)[1])[0]


def double(path: Path) -> minilens.Model:
    return minilens.load(path, dtype=torch.float64)[0]


def same(one: BlockTrace, other: BlockTrace) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in FIELDS)


def agree(edited: minilens.Trace, plain: minilens.Trace, layer: int, site: str) -> bool:
    """Whether an edit that puts a value in its own place changes nothing.

    Bit for bit where it is laid out in memory as it was. An edit that makes a copy of q, k or v, which the model has as
    views, lets the products after it round in another way.
    """
    new, old = (getattr(each.blocks[layer], site) for each in (edited, plain))
    if new.stride() == old.stride():
        return all(map(same, edited.blocks, plain.blocks)) and torch.equal(edited.logits, plain.logits)
    pairs = [
        (getattr(one, name), getattr(two, name))
        for one, two in zip(edited.blocks, plain.blocks, strict=True)
        for name in FIELDS
    ]
    return torch.equal(new, old) and all(
        near(*pair, n=50, sums=SUMS) for pair in [*pairs, (edited.logits, plain.logits)]
    )


# ---- Where


@pytest.mark.parametrize("start", [0, 1, 2])
def test_an_edit_that_changes_nothing(model: minilens.Model, tokens: torch.Tensor, start: int) -> None:
    plain = minilens.trace(model, tokens)
    resid = plain.blocks[start].resid_pre
    for layer in range(start, 3):
        for site in SITES:
            places: list[dict[str, Any]] = [{}, {"positions": [3, -1]}]
            places += [{"heads": [0, 4]}, {"heads": -2, "positions": 7}] if site in HEAD_SITES else []
            for where in places:
                edit = minilens.at(layer, site, lambda value: value, **where)
                blocks = (*plain.blocks[:start], *minilens.run(model, resid, start=start, edit=edit))
                logits = minilens.decode(model, resid, start=start, edit=edit)
                assert agree(minilens.Trace(plain.embed, blocks, logits), plain, layer, site)


@pytest.mark.parametrize("site", SITES)
def test_only_the_named_positions_and_heads_change(model: minilens.Model, tokens: torch.Tensor, site: str) -> None:
    plain = getattr(minilens.trace(model, tokens).blocks[1], site)
    has_heads = site in HEAD_SITES
    for positions in (None, 5, -1, [0, 5, -2], range(3)):
        for heads in (None, 2, [-1, 0]) if has_heads else (None,):
            edit = minilens.at(1, site, lambda part: part * 2 + 1, positions=positions, heads=heads)
            edited = getattr(minilens.trace(model, tokens, edit=edit).blocks[1], site)
            pos = range(33) if positions is None else [positions] if isinstance(positions, int) else list(positions)
            here = torch.zeros(33, dtype=torch.bool)
            here[[int(p) for p in pos]] = True
            mask = here[:, None].expand(33, plain.shape[-1])
            if has_heads:
                chosen = torch.zeros(5, dtype=torch.bool)
                chosen[[heads] if isinstance(heads, int) else heads if heads else slice(None)] = True
                mask = chosen[:, None, None] & mask
            assert torch.equal(edited, torch.where(mask, plain * 2 + 1, plain))


def test_the_part_comes_as_it_stands_in_the_text(model: minilens.Model, tokens: torch.Tensor) -> None:
    plain = minilens.trace(model, tokens).blocks[2]
    seen = []

    def watch(part: torch.Tensor) -> torch.Tensor:
        seen.append(part.clone())
        return part.zero_()  # a part is a copy: nobody else's value is written to

    minilens.trace(model, tokens, edit=minilens.at(2, "z", watch, positions=[7, 3], heads=[4, 1]))
    assert torch.equal(seen[0], plain.z[:, [4, 1]][:, :, [7, 3]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, "scores"), '"scores" is not a site that can be edited; those are resid_pre, q, k'),
        ((-1, "z"), "layer -1 does not exist: layers count from 0"),
        ((0, "attn_out", {"heads": 1}), '"attn_out" is not split into heads; q, k, v, pattern, z are'),
        ((0, "z", {"positions": []}), "positions is empty: choose at least one, or leave it out for all"),
        ((0, "z", {"heads": ()}), "heads is empty"),
        ((0, "z", {"positions": [7, -26]}), r"the edit at 0\.z names a position twice, of 33: \[7, -26\]"),
        ((0, "z", {"heads": [1, 1]}), r"the edit at 0\.z names a head twice, of 5"),
        ((0, "z", {"positions": [True, False]}), r"positions must be whole numbers; got \[True, False\]"),
        ((0, "z", {"positions": 33}), r"the edit at 0\.z has no position 33: there are 33"),
        ((0, "z", {"positions": [0, -34]}), r"the edit at 0\.z has no position -34: there are 33"),
        ((1, "pattern", {"heads": 5}), r"the edit at 1\.pattern has no head 5: there are 5"),
        ((3, "z"), r"the edit at 3\.z matches nothing: the blocks run are 0 to 2"),
    ],
)
def test_refusals(model: minilens.Model, tokens: torch.Tensor, arguments: Any, message: str) -> None:
    layer, site, *where = arguments
    with pytest.raises(ValueError, match=message):
        minilens.trace(model, tokens, edit=minilens.zero(layer, site, **(where[0] if where else {})))


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (
            lambda part: part[:, :1],
            r"the edit at 0\.mlp_out must keep \[2, 2, 30\] torch.float32 on cpu; it returned \[2, 1",
        ),
        (lambda part: part.double(), r"must keep .* it returned \[2, 2, 30\] torch.float64"),
        (lambda part: None, "must return a tensor; it returned None"),
    ],
)
def test_what_an_edit_gives_back_fits_its_part(
    model: minilens.Model, tokens: torch.Tensor, fn: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        minilens.trace(model, tokens, edit=minilens.at(0, "mlp_out", fn, positions=[1, 2]))


# ---- The ready-made ones


@pytest.mark.parametrize("site", SITES)
def test_zero(model: minilens.Model, tokens: torch.Tensor, site: str) -> None:
    edited = getattr(minilens.trace(model, tokens, edit=minilens.zero(1, site, positions=-1)).blocks[1], site)
    assert not edited[..., -1, :].any()
    assert edited[..., :-1, :].any()


@pytest.mark.parametrize("site", [site for site in SITES if site != "pattern"])
def test_mean(model: minilens.Model, tokens: torch.Tensor, site: str) -> None:
    """Over a reference of other texts, of another length."""
    reference = minilens.trace(model, tokens.flip(1)[:1, :20]).blocks[1]
    value = getattr(reference, site)
    heads = [3, 1] if site in HEAD_SITES else None
    edited = getattr(
        minilens.trace(model, tokens, edit=minilens.mean(reference, site, positions=[2, 9], heads=heads)).blocks[1],
        site,
    )
    for text in range(2):
        for position in (2, 9):
            for head in heads or [None]:
                here = (text, position) if head is None else (text, head, position)
                wanted = value[0].mean(0) if head is None else value[0, head].mean(0)
                assert torch.allclose(edited[here], wanted, atol=1e-6)
    assert not torch.allclose(edited[..., 3, :], edited[..., 2, :])
    with pytest.raises(ValueError, match='"pattern" has no mean over the positions'):
        minilens.mean(reference, "pattern")


@pytest.mark.parametrize("site", SITES)
def test_a_patch_from_the_run_itself_changes_nothing(model: minilens.Model, tokens: torch.Tensor, site: str) -> None:
    plain = minilens.trace(model, tokens)
    for where in ({}, {"positions": [0, -3]}):
        assert agree(minilens.trace(model, tokens, edit=minilens.patch(plain.blocks[1], site, **where)), plain, 1, site)


def test_a_patch_of_the_whole_stream_is_the_other_run(model: minilens.Model, tokens: torch.Tensor) -> None:
    one, other = minilens.trace(model, tokens[:1]), minilens.trace(model, tokens[1:])
    for site in RESID_SITES:
        edited = minilens.trace(model, tokens[:1], edit=minilens.patch(other.blocks[1], site))
        assert torch.equal(edited.logits, other.logits)
        assert same(edited.blocks[0], one.blocks[0])
    both = minilens.trace(model, tokens, edit=minilens.patch(other.blocks[1], "resid_pre"))
    assert (both.logits - other.logits).abs().max() < 1e-5  # one source for both texts


def test_a_patch_between_texts_of_different_lengths(model: minilens.Model, tokens: torch.Tensor) -> None:
    """-1 is the last of each, and another layer may be named."""
    source = minilens.trace(model, tokens[:1, :12]).blocks[0]
    edit = minilens.patch(source, "resid_post", layer=1, positions=-1)
    edited = minilens.trace(model, tokens, edit=edit).blocks[1].resid_post
    assert torch.equal(edited[:, -1], source.resid_post[:, -1].expand(2, -1))
    edit = minilens.patch(source, "z", heads=[2, 0], positions=[-1, 4])
    edited = minilens.trace(model, tokens, edit=edit).blocks[0].z
    assert torch.equal(edited[1, [2, 0]][:, [-1, 4]], source.z[0, [2, 0]][:, [-1, 4]])
    with pytest.raises(ValueError, match=r"the patch at 0\.z is of 12 positions, and goes into 33: name"):
        minilens.trace(model, tokens, edit=minilens.patch(source, "z"))
    with pytest.raises(ValueError, match=r"the edit at 0\.z has no position 12: there are 12"):
        minilens.patch(source, "z", positions=12)


@pytest.mark.parametrize("site", [site for site in SITES if site != "pattern"])
def test_add(model: minilens.Model, tokens: torch.Tensor, site: str) -> None:
    direction = torch.arange(WIDTHS[site]) / 10
    plain = getattr(minilens.trace(model, tokens).blocks[1], site)
    edited = minilens.trace(model, tokens, edit=minilens.add(1, site, direction, positions=4))
    assert torch.equal(getattr(edited.blocks[1], site)[..., 4, :], plain[..., 4, :] + direction)
    with pytest.raises(
        ValueError, match=rf"a direction to add at 1\.{site} has the shape \[{WIDTHS[site]}\]; got \[7\]"
    ):
        minilens.trace(model, tokens, edit=minilens.add(1, site, torch.ones(7)))


def test_towards_a_token(model: minilens.Model, tokens: torch.Tensor) -> None:
    plain = minilens.trace(model, tokens).blocks[1].resid_post
    embedding = model.W_U[:, 17]

    def moved(amount: float) -> torch.Tensor:
        edit = minilens.towards(model, 1, "resid_post", 17, amount, positions=[6])
        return minilens.trace(model, tokens, edit=edit).blocks[1].resid_post

    assert torch.equal(moved(0.0), plain)
    whole, half = moved(1.0)[:, 6], moved(0.5)[:, 6]
    assert torch.cosine_similarity(whole, embedding.expand(2, -1), dim=-1).tolist() == pytest.approx([1, 1])
    assert whole.norm(dim=-1).tolist() == pytest.approx(plain[:, 6].norm(dim=-1).tolist())
    assert torch.allclose(half, (whole + plain[:, 6]) / 2, atol=1e-5)
    assert torch.equal(moved(1.0)[:, 7:], plain[:, 7:])
    with pytest.raises(ValueError, match='"attn_out" is no residual; resid_pre, resid_mid, resid_post are'):
        minilens.towards(model, 1, "attn_out", 17, 0.5)
    with pytest.raises(ValueError, match="token id 101 does not exist: the model's ids go from 0 to 100"):
        minilens.towards(model, 1, "resid_post", 101, 0.5)


# ---- Texts of different lengths, side by side


LENGTHS = (33, 9)


def padded(tokens: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Two texts as `tokenizer.encode` gives them, and each by itself."""
    texts = [text[None, :n] for text, n in zip(tokens, LENGTHS, strict=True)]
    return torch.cat([torch.nn.functional.pad(text, (0, 33 - text.shape[1])) for text in texts]), texts


@pytest.mark.parametrize("site", [site for site in SITES if site != "pattern"])
def test_an_edit_of_a_padded_batch_is_that_of_each_text(model: minilens.Model, tokens: torch.Tensor, site: str) -> None:
    """Whatever the builder, and wherever a position is counted from."""
    batch, texts = padded(tokens)
    other, others = padded(tokens.flip(0, 1))
    whole, parts = (
        minilens.trace(model, other).blocks[1],
        [minilens.trace(model, text).blocks[1] for text in others],
    )
    direction = torch.linspace(-1, 1, WIDTHS[site])
    heads: dict[str, Any] = dict(heads=[3, 1]) if site in HEAD_SITES else {}
    untouched = [getattr(minilens.trace(model, text).blocks[1], site)[0] for text in texts]

    def edits(source: BlockTrace, lengths: Any, **where: Any) -> list[minilens.Edit]:
        alike = dict(lengths=lengths, **heads, **where)
        found = [
            minilens.zero(1, site, **alike),
            minilens.mean(whole, site, reference_lengths=torch.tensor(LENGTHS), **alike),
            minilens.patch(source, site, source_lengths=lengths, **alike),
            minilens.add(1, site, direction, **alike),
        ]
        if site in RESID_SITES:
            found.append(minilens.towards(model, 1, site, 17, 0.5, lengths=lengths, **where))
        return found

    for where in (dict(positions=[-1, -9, 4]), dict(positions=-2), {}):
        together = edits(whole, LENGTHS, **where)
        alone = [edits(part, None, **where) for part in parts]
        for n, edit in enumerate(together):
            edited = getattr(minilens.trace(model, batch, edit=edit).blocks[1], site)
            for text, plain, found, of_text in zip(texts, untouched, edited, alone, strict=True):
                expected = getattr(minilens.trace(model, text, edit=of_text[n]).blocks[1], site)[0]
                assert not torch.allclose(expected, plain, atol=1e-3)
                assert torch.allclose(found[..., : text.shape[1], :], expected, atol=1e-5)


def test_the_mean_leaves_the_padding_out(model: minilens.Model, tokens: torch.Tensor) -> None:
    batch, texts = padded(tokens)
    together = minilens.trace(model, batch).blocks[1]
    apart = torch.cat([minilens.trace(model, text).blocks[1].z for text in texts], 2)[0].mean(1)
    for lengths, is_right in ((LENGTHS, True), (None, False)):
        edit = minilens.mean(together, "z", reference_lengths=lengths)
        edited = minilens.trace(model, tokens, edit=edit).blocks[1].z
        assert torch.allclose(edited, apart[:, None].expand_as(edited), atol=1e-5) == is_right


def test_lengths_of_the_edited_texts_alone_are_refused(model: minilens.Model, tokens: torch.Tensor) -> None:
    """The other run's padding would be in the mean, or taken for the last token."""
    several, one = (minilens.trace(model, padded(tokens)[0][:n]).blocks[1] for n in (2, 1))
    for build, name in ((minilens.mean, "reference"), (minilens.patch, "source")):
        with pytest.raises(ValueError, match=f"the {name} has 2 texts of its own: give {name}_lengths as well"):
            build(several, "z", positions=-1, lengths=[3, 4])
        build(one, "z", positions=-1, lengths=[3, 4])


@pytest.mark.parametrize(
    ("lengths", "positions", "message"),
    [
        ([33], -1, r"the edit at 1\.z has lengths for 1 texts, and 2 are run"),
        ([33, 34], None, r"the edit at 1\.z has the length 34: the texts have 1 to 33"),
        ([33, 0], -1, r"the edit at 1\.z has the length 0: the texts have 1 to 33"),
        ([33, 9], 9, r"the edit at 1\.z has no position 9: there are 9"),
        ([33, 9], -10, r"the edit at 1\.z has no position -10: there are 9"),
        ([33, 9], [0, -9], r"the edit at 1\.z names a position twice, of 9: \[0, -9\]"),
    ],
)
def test_lengths_that_do_not_fit(
    model: minilens.Model, tokens: torch.Tensor, lengths: Any, positions: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        minilens.trace(model, tokens, edit=minilens.zero(1, "z", positions=positions, lengths=lengths))


# ---- Nowhere else, for nobody else


def test_an_exception_leaves_nothing_behind(model: minilens.Model, tokens: torch.Tensor) -> None:
    plain = minilens.trace(model, tokens)
    before = repr(vars(model).keys())

    def fails(value: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no")

    for site in SITES:
        with pytest.raises(RuntimeError, match="no"):
            minilens.trace(model, tokens, edit=minilens.at(1, site, fails))
        assert torch.equal(minilens.trace(model, tokens).logits, plain.logits)
    assert repr(vars(model).keys()) == before


def test_two_threads_do_not_see_each_other(model: minilens.Model, tokens: torch.Tensor) -> None:
    """Both are within block 1 at the same time, each with an edit of its own."""
    meet = Barrier(2, timeout=30)

    def with_edit(amount: float) -> minilens.Edit:
        def fn(value: torch.Tensor) -> torch.Tensor:
            meet.wait()
            return value + amount

        return minilens.at(1, "attn_out", fn)

    with ThreadPoolExecutor(2) as pool:
        edits = [minilens.add(1, "attn_out", torch.full((30,), amount)) for amount in (1.0, -2.0)]
        alone = [pool.submit(minilens.trace, model, tokens, edit=edit).result() for edit in edits]
        both = list(pool.map(lambda amount: minilens.trace(model, tokens, edit=with_edit(amount)), (1.0, -2.0)))
    assert all(torch.equal(one.logits, other.logits) for one, other in zip(alone, both, strict=True))
    assert not torch.equal(both[0].logits, both[1].logits)


# ---- In the lens


@pytest.mark.parametrize("decoder", ["final", "mlp", "block:1", "block:2"])
def test_the_lens_of_an_edited_model(model: minilens.Model, tokens: torch.Tensor, decoder: str) -> None:
    """Rows before the edit are the model's own where its decoder is; the last is the edited model's output."""
    text = tokens[:1]
    plain = list(minilens.lens_rows(model, text, sites=RESID_SITES, decoder=decoder))
    for layer in range(3):
        for site in SITES:
            edit = minilens.at(layer, site, lambda value: value * 1.5 + 0.1, positions=[2, -1])
            rows = list(minilens.lens_rows(model, text, sites=RESID_SITES, decoder=decoder, edit=edit))
            edited = minilens.trace(model, text, edit=edit)
            assert torch.equal(rows[-1].logits, edited.logits)
            assert not torch.equal(rows[-1].logits, plain[-1].logits)
            if decoder == "final":
                for row, before in zip(rows, plain, strict=True):
                    if row.layer < layer:
                        assert torch.equal(row.logits, before.logits)
                    elif row.label == f"{layer}.resid_post":
                        assert torch.equal(row.logits, model.unembed(edited.blocks[layer].resid_post))
            table = minilens.logit_lens(model, text, decoder=decoder, edit=edit, stats="top", top_k=1)
            assert torch.equal(table.final_tokens, edited.logits[0].argmax(-1))


def test_an_extended_decoder_is_edited_too(model: minilens.Model, tokens: torch.Tensor) -> None:
    edit = minilens.add(2, "mlp_out", torch.linspace(-1, 1, 30))
    (row,) = [row for row in minilens.lens_rows(model, tokens, decoder="block:1", edit=edit) if row.layer == 0]
    resid = minilens.trace(model, tokens).blocks[0].resid_post
    assert torch.equal(row.logits, minilens.decode(model, resid, start=2, edit=edit))


@pytest.mark.parametrize("decoder", ["final", "mlp", "block:1"])
def test_the_lens_refuses_an_edit_that_matches_nothing(
    model: minilens.Model, tokens: torch.Tensor, decoder: str
) -> None:
    with pytest.raises(ValueError, match=r"the edit at 3\.z matches nothing"):
        minilens.lens_rows(model, tokens, decoder=decoder, edit=minilens.zero(3, "z"))


# ---- Gradients


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_match_finite_differences(tiny: Tiny, tokens: torch.Tensor, family: str) -> None:
    """Of a logit with respect to the residuals of a trace, all of them in one go."""
    model = double(tiny(family)[1])
    text = tokens[:1, :12]
    start = minilens.at(0, "resid_pre", torch.Tensor.requires_grad_)
    traced = minilens.trace(model, text, edit=start)
    residuals = [(b.layer, site, getattr(b, site)) for b in traced.blocks for site in RESID_SITES]
    gradients = torch.autograd.grad(traced.logits[0, -1, 23], [value for _, _, value in residuals])
    generator = torch.Generator().manual_seed(6)
    for (layer, site, value), gradient in zip(residuals, gradients, strict=True):
        direction = torch.randn(value.shape, generator=generator, dtype=torch.float64)

        def logit(eps: float, layer: int = layer, site: str = site, direction: torch.Tensor = direction) -> float:
            edit = minilens.at(layer, site, lambda resid: resid + eps * direction)
            with torch.no_grad():
                return float(minilens.trace(model, text, edit=edit).logits[0, -1, 23])

        # GPT-Neo computes its scores in float32 always, so that a small difference would be lost in their rounding.
        eps, rel = (1e-3, 2e-3) if family == "gpt_neo" else (1e-5, 1e-5)
        slope = (logit(eps) - logit(-eps)) / (2 * eps)
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=rel, abs=1e-6)
        assert gradient.abs().max() > 0


def test_a_direction_of_another_shape(model: minilens.Model, tokens: torch.Tensor) -> None:
    """Nothing is spread over positions or heads without a word."""
    for direction in (torch.ones(33, 1), torch.ones(1, 30), torch.tensor(1.0)):
        edit = minilens.edits.at(1, "attn_out", lambda value: value)
        with pytest.raises((ValueError, TypeCheckError)):
            minilens.trace(model, tokens, edit=minilens.then(edit, minilens.add(1, "attn_out", direction)))

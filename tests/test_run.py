"""Invariants of a forward pass that need no reference, and edits."""

import weakref

import pytest
import torch
from conftest import FAMILIES, Tiny

import minilens
from minilens import ops
from minilens.traces import BlockTrace

FIELDS = [name for name in BlockTrace.__slots__ if name != "layer"]


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tiny: Tiny) -> minilens.Model:
    return minilens.load(tiny(request.param)[1])[0]


def same(one: BlockTrace, other: BlockTrace) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in FIELDS)


def test_shapes(model: minilens.Model, tokens: torch.Tensor) -> None:
    trace = minilens.trace(model, tokens)
    d_model, heads, grid, hidden = (2, 33, 30), (2, 5, 33, 6), (2, 5, 33, 33), (2, 33, 50)
    expected = dict.fromkeys(FIELDS, d_model)
    expected |= dict.fromkeys(("q", "k", "v", "z"), heads)
    expected |= dict.fromkeys(("scores", "pattern"), grid) | dict.fromkeys(("mlp_pre", "mlp_post"), hidden)
    for block in trace.blocks:
        assert {name: tuple(getattr(block, name).shape) for name in FIELDS} == expected
    assert [block.layer for block in trace.blocks] == [0, 1, 2]
    assert trace.embed.shape == d_model
    assert trace.logits.shape == (2, 33, 101)


def test_the_stream_is_a_sum_bit_for_bit(model: minilens.Model, tokens: torch.Tensor) -> None:
    trace = minilens.trace(model, tokens)
    stream = trace.embed
    for block in trace.blocks:
        assert torch.equal(block.resid_pre, stream)
        assert torch.equal(block.resid_mid, block.resid_pre + block.attn_out)
        assert torch.equal(block.resid_post, block.resid_mid + block.mlp_out)
        stream = block.resid_post
    assert torch.equal(trace.logits, model.unembed(stream))


def test_patterns_are_causal_and_sum_to_one(model: minilens.Model, tokens: torch.Tensor) -> None:
    for block in minilens.trace(model, tokens).blocks:
        assert (block.pattern.sum(-1) - 1).abs().max() < 1e-6
        assert torch.equal(block.pattern, block.pattern.tril())
        assert torch.equal(block.z, block.pattern @ block.v)
        assert (block.scores.triu(1) != 0).sum() == torch.isinf(block.scores.triu(1)).sum() > 0


def test_gpt_neo_windows(tiny: Tiny, tokens: torch.Tensor) -> None:
    """A query sees itself and window - 1 = 6 positions before it in layers 1 and 2, everything before it in layer 0."""
    model, _ = minilens.load(tiny("gpt_neo")[1])
    first, *local = minilens.trace(model, tokens).blocks
    query, key = torch.meshgrid(torch.arange(33), torch.arange(33), indexing="ij")
    assert torch.equal(first.pattern > 0, (key <= query).expand_as(first.pattern))
    for block in local:
        assert torch.equal(block.pattern > 0, ((key <= query) & (query - key <= 6)).expand_as(block.pattern))


def test_what_comes_later_changes_nothing_before(model: minilens.Model, tokens: torch.Tensor) -> None:
    whole, prefix = minilens.trace(model, tokens), minilens.trace(model, tokens[:, :20])
    assert (whole.logits[:, :20] - prefix.logits).abs().max() < 1e-5


def test_batch_of_two_is_two_batches_of_one(model: minilens.Model, tokens: torch.Tensor) -> None:
    both = minilens.trace(model, tokens)
    for text in range(2):
        alone = minilens.trace(model, tokens[text : text + 1])
        assert (both.logits[text] - alone.logits[0]).abs().max() < 1e-5
        for one, other in zip(both.blocks, alone.blocks, strict=True):
            assert (one.resid_post[text] - other.resid_post[0]).abs().max() < 1e-5


def test_right_padding_changes_nothing(model: minilens.Model, tokens: torch.Tensor) -> None:
    """A causal model needs no mask for padding on the right."""
    padded = torch.cat([tokens[:1, :12], torch.zeros(1, 9, dtype=torch.long)], dim=1)
    alone = minilens.trace(model, tokens[:1, :12])
    assert (minilens.trace(model, padded).logits[:, :12] - alone.logits).abs().max() < 1e-5


def test_resuming_equals_the_whole_run(model: minilens.Model, tokens: torch.Tensor) -> None:
    trace = minilens.trace(model, tokens)
    for start in range(model.n_layers):
        resid = trace.blocks[start].resid_pre
        assert torch.equal(minilens.decode(model, resid, start=start), trace.logits)
        assert all(map(same, minilens.run(model, resid, start=start), trace.blocks[start:]))
    assert torch.equal(minilens.decode(model, trace.blocks[-1].resid_post, start=model.n_layers), trace.logits)


def test_run_is_lazy_and_stops(model: minilens.Model, tokens: torch.Tensor) -> None:
    seen = []

    def watch(site: minilens.Site, value: torch.Tensor) -> torch.Tensor:
        seen.append(site)
        return value

    blocks = minilens.run(model, model.embed(tokens), stop=2, edit=watch)
    assert not seen
    assert next(blocks).layer == 0
    assert seen == [minilens.Site(0, name) for name in minilens.SITES]
    assert [block.layer for block in blocks] == [1]


def test_nothing_is_changed_in_place(model: minilens.Model, tokens: torch.Tensor) -> None:
    first = minilens.trace(model, tokens)
    copies = [{name: getattr(block, name).clone() for name in FIELDS} for block in first.blocks]
    second = minilens.trace(model, tokens)
    for block, again, copy in zip(first.blocks, second.blocks, copies, strict=True):
        assert same(block, again)
        assert all(torch.equal(getattr(block, name), copy[name]) for name in FIELDS)


def test_a_trace_keeps_what_its_docstring_says(model: minilens.Model, tokens: torch.Tensor) -> None:
    trace = minilens.trace(model, tokens)
    kept = [trace.embed, trace.logits, *(getattr(block, name) for block in trace.blocks for name in FIELDS)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    d_model, d_mlp, n_heads, d_vocab, pos = 30, 50, 5, 101, 33
    formula = 3 * (10 * d_model + 2 * d_mlp + 2 * n_heads * pos) + d_model + d_vocab
    assert sum(storages.values()) == 4 * tokens.numel() * formula


def test_no_edit_is_untouched(model: minilens.Model, tokens: torch.Tensor) -> None:
    plain = minilens.trace(model, tokens)
    for layer in range(model.n_layers):
        for site in minilens.SITES:
            edited = minilens.trace(model, tokens, edit=minilens.at(layer, site, lambda value: value))
            assert all(map(same, plain.blocks, edited.blocks))
            assert torch.equal(plain.logits, edited.logits)


@pytest.mark.parametrize("site", minilens.SITES)
def test_an_edit_is_used_from_its_site_on(model: minilens.Model, tokens: torch.Tensor, site: str) -> None:
    plain = minilens.trace(model, tokens)
    edited = minilens.trace(model, tokens, edit=minilens.at(1, site, lambda value: value + 0.5))
    assert same(plain.blocks[0], edited.blocks[0])
    order = [name for name in FIELDS if name not in ("q", "k", "v")]  # these three are side by side
    place = order.index(site) if site in order else order.index("scores")
    before = order[:place]
    assert all(torch.equal(getattr(plain.blocks[1], name), getattr(edited.blocks[1], name)) for name in before)
    assert torch.equal(getattr(edited.blocks[1], site), getattr(plain.blocks[1], site) + 0.5)
    assert not torch.equal(plain.blocks[1].resid_post, edited.blocks[1].resid_post)
    assert not torch.equal(plain.logits, edited.logits)


def test_zeroing_both_writes_of_a_block_removes_it(model: minilens.Model, tokens: torch.Tensor) -> None:
    edit = minilens.then(minilens.at(1, "attn_out", torch.zeros_like), minilens.at(1, "mlp_out", torch.zeros_like))
    trace = minilens.trace(model, tokens, edit=edit)
    assert torch.equal(trace.blocks[1].resid_post, trace.blocks[1].resid_pre)
    assert torch.equal(trace.blocks[2].resid_pre, trace.blocks[0].resid_post)


def test_edits_follow_one_another(model: minilens.Model, tokens: torch.Tensor) -> None:
    twice = minilens.then(
        minilens.at(0, "mlp_out", lambda value: value + 1), minilens.at(0, "mlp_out", lambda value: value * 2)
    )
    plain, edited = minilens.trace(model, tokens), minilens.trace(model, tokens, edit=twice)
    assert torch.equal(edited.blocks[0].mlp_out, (plain.blocks[0].mlp_out + 1) * 2)


def test_gradients_flow_through_a_run(model: minilens.Model, tokens: torch.Tensor) -> None:
    resid = model.embed(tokens).requires_grad_()
    logits = minilens.decode(model, resid, start=0)
    (gradient,) = torch.autograd.grad(logits[0, 10, 7], resid)
    assert gradient[0, :11].abs().max() > 0
    assert gradient[0, 11:].abs().max() == 0
    assert gradient[1].abs().max() == 0


def test_layer_norm_is_the_textbook_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    resid = torch.randn(2, 3, 8, generator=generator, dtype=torch.float64)
    norm = ops.LayerNorm(*torch.randn(2, 8, generator=generator, dtype=torch.float64))
    centred = resid - resid.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.w + norm.b
    assert (ops.layer_norm(resid, norm, 1e-5) - expected).abs().max() < 1e-12


def test_bfloat16_keeps_softmax_in_float32(tiny: Tiny, tokens: torch.Tensor) -> None:
    for family in FAMILIES:
        model, _ = minilens.load(tiny(family)[1], dtype=torch.bfloat16)
        exact, _ = minilens.load(tiny(family)[1])
        block, reference = (minilens.trace(m, tokens).blocks[0] for m in (model, exact))
        assert block.scores.dtype == torch.float32
        assert block.pattern.dtype == block.resid_post.dtype == torch.bfloat16
        # Rounding to bfloat16's 8 bits is all that separates the pattern from a softmax in float32.
        softmax = block.scores.softmax(-1)
        assert ((block.pattern - softmax).abs() <= softmax * 2**-8).all()
        assert (block.pattern - reference.pattern).abs().max() < 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_keeps_norms_in_float32(dtype: torch.dtype) -> None:
    """Of a stream as the norms meet it: a mean and a coordinate that dwarf the rest, and squares beyond float16."""
    generator = torch.Generator().manual_seed(0)
    resid = 3 * torch.randn(2, 9, 64, generator=generator) + 5
    resid[..., 7] += 3000
    norm = ops.LayerNorm(*torch.randn(2, 64, generator=generator).to(dtype))
    resid = resid.to(dtype)
    expected = ops.layer_norm(resid.double(), ops.LayerNorm(norm.w.double(), norm.b.double()), 1e-5)
    found = ops.layer_norm(resid, norm, 1e-5)
    assert found.dtype == dtype
    # Nothing but the rounding of the result, and float32's own before it.
    bound = torch.finfo(dtype).eps / 2 * expected.abs() + 1e-5
    assert ((found - expected).abs() <= bound).all()


def test_an_edit_that_writes_in_place_is_refused(model: minilens.Model, tokens: torch.Tensor) -> None:
    """resid_pre is the resid_post of the block before: writing into it would change a trace behind its back."""
    with pytest.raises(ValueError, match=r"the edit at 1\.resid_pre wrote into the tensor it was given"):
        minilens.trace(model, tokens, edit=minilens.at(1, "resid_pre", lambda value: value.zero_()))
    with torch.inference_mode():
        edit = minilens.at(1, "resid_pre", lambda value: value * 0)
        assert not minilens.trace(model, tokens, edit=edit).blocks[1].resid_pre.any()
        with pytest.raises(ValueError, match=r"the edit at 1\.resid_pre wrote into the tensor it was given"):
            minilens.trace(model, tokens, edit=minilens.at(1, "resid_pre", lambda value: value.zero_()))


@pytest.mark.parametrize("layer", [-1, 3])
def test_a_block_that_does_not_exist(model: minilens.Model, tokens: torch.Tensor, layer: int) -> None:
    with pytest.raises(ValueError, match=rf"layer {layer} does not exist: the model's layers are 0 to 2"):
        model.block(layer, model.embed(tokens))


def test_run_lets_a_block_go_before_it_computes_the_next(model: minilens.Model, tokens: torch.Tensor) -> None:
    gone = []

    def watch(site: minilens.Site, value: torch.Tensor) -> torch.Tensor:
        if site.layer == 1:
            gone.append(pattern() is None)
        return value

    blocks = minilens.run(model, model.embed(tokens), edit=watch)
    pattern = weakref.ref(next(blocks).pattern)
    next(blocks)
    assert gone == [True] * len(minilens.SITES)

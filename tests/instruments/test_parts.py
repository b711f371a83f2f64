"""Parts: each is what its label says, and they add up to the stream and to the logit."""

import doctest
import re
from typing import Any

import pytest
import torch
from conftest import FAMILIES, Tiny
from rounding import gamma
from torch import Tensor
from torch.nn.functional import cosine_similarity, layer_norm
from torch.utils._python_dispatch import TorchDispatchMode

import minilens
from minilens import Parts, parts
from minilens.instruments import directions
from minilens.instruments import parts as module
from minilens.ops import linear, merge_heads, upcast

LAYER, K = 1, 4
WAYS: dict[str, dict[str, Any]] = {
    "all": {},
    "heads": {"layer": LAYER},
    "neurons": {"layer": LAYER, "by": "neuron"},
}
EDIT = minilens.then(
    minilens.zero(0, "z", heads=2),
    minilens.at(1, "attn_out", lambda x: 2 * x),
    minilens.at(1, "resid_mid", lambda x: x + 1),
    minilens.at(1, "mlp_out", lambda x: x / 2),
    minilens.at(2, "resid_post", lambda x: x.flip(1)),
)


def loaded(tiny: Tiny, family: str, dtype: torch.dtype = torch.float64) -> Any:
    return minilens.load(tiny(family)[1], dtype=dtype)[0]


def by_hand(model: Any, text: Tensor, way: str, edit: minilens.Edit) -> dict[str, tuple[Tensor, Tensor]]:
    """Each part's write and the stream that it is added to, [pos d_model] each."""
    seen: dict[str, Tensor] = {}

    def note(site: minilens.Site, value: Tensor) -> Tensor:
        seen[f"{site.layer}.{site.name}"] = value[0]
        return value

    whole = minilens.trace(model, text, edit=minilens.then(note, edit))
    b, w = whole.blocks[LAYER], model.blocks[LAYER]
    if way == "heads":
        stream = b.resid_pre[0]
        found = {
            f"1.head.{n}": (z @ rows, stream) for n, (z, rows) in enumerate(zip(b.z[0], w.W_O.split(6), strict=True))
        }
        found["1.attn_bias"] = w.b_O.expand_as(stream), stream
        if edit is EDIT:
            found["1.attn_out_edit"] = b.attn_out[0] - linear(merge_heads(b.z), w.W_O, w.b_O)[0], stream
        return found
    if way == "neurons":
        stream = b.resid_mid[0]
        found = {f"1.neuron.{n}": (b.mlp_post[0, :, n, None] * w.W_out[n], stream) for n in range(50)}
        found["1.mlp_bias"] = w.b_out.expand_as(stream), stream
        if edit is EDIT:
            found["1.mlp_out_edit"] = b.mlp_out[0] - linear(b.mlp_post, w.W_out, w.b_out)[0], stream
        return found
    positions, embed = model.positions(text.shape[1]), whole.embed[0]
    found = {"embed": (embed - positions, embed), "positions": (positions, embed)}
    for block in whole.blocks:
        for name, stream in (
            ("attn_out", block.resid_pre),
            ("resid_mid", None),
            ("mlp_out", block.resid_mid),
            ("resid_post", None),
        ):
            label, value = f"{block.layer}.{name}", getattr(block, name)[0]
            if stream is not None:
                found[label] = value, stream[0]
            elif edit is EDIT and label in ("1.resid_mid", "2.resid_post"):
                found[f"{label}_edit"] = value - seen[label], seen[label]
    return found


@pytest.mark.parametrize("edit", [minilens.untouched, EDIT], ids=["as it is", "edited"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_part_is_what_its_label_says(
    tiny: Tiny, tokens: Tensor, monkeypatch: pytest.MonkeyPatch, family: str, way: str, edit: minilens.Edit
) -> None:
    """With few numbers in memory at a time, so that columns come in several goes."""
    monkeypatch.setattr(module, "WHOLE", 60 * 30 * 2)
    model, text, columns = loaded(tiny, family), tokens[:1], [0, 5, 32, 11, 9]
    found = parts(model, text, positions=[0, 5, -1, 11, 9], top_k=K, edit=edit, **WAYS[way])
    expected = by_hand(model, text, way, edit)
    assert found.labels == tuple(expected)
    vectors, streams = (torch.stack(each)[:, columns] for each in zip(*expected.values(), strict=True))
    assert (found.positions.tolist(), found.tokens.tolist()) == (columns, text[0, columns].tolist())
    for ours, theirs in (
        (found.norm, vectors.norm(dim=-1)),
        (found.stream, streams.norm(dim=-1)),
        (found.ratio, vectors.norm(dim=-1) / streams.norm(dim=-1)),
        (found.cosine, cosine_similarity(vectors, streams, -1)),
    ):
        torch.testing.assert_close(ours, theirs)

    alone = model.unembed(vectors).log_softmax(-1)
    logprob, best = alone.topk(K)
    torch.testing.assert_close(found.alone.logprob, logprob)
    is_clear = logprob.diff().amax(-1) < -1e-9  # a neuron says the same at each position: its tokens may tie
    assert torch.equal(found.alone.tokens[is_clear], best[is_clear])

    whole = minilens.trace(model, text, edit=edit)
    last, output = whole.blocks[-1].resid_post[0, columns], whole.logits[0, columns]
    scale = (last.var(-1, correction=0) + model.ln_final_eps).sqrt()[:, None]
    shares = (vectors - vectors.mean(-1, keepdim=True)) / scale * model.ln_final.w @ model.W_U
    assert torch.equal(found.final_tokens, output.argmax(-1))
    torch.testing.assert_close(found.share, shares[:, range(5), output.argmax(-1)])
    torch.testing.assert_close(found.mean, shares.mean(-1))
    centred = shares - shares.mean(-1, keepdim=True)
    torch.testing.assert_close(found.raised.share, centred.topk(K).values)
    torch.testing.assert_close(found.lowered.share, centred.topk(K, largest=False).values)
    for ends in (found.raised, found.lowered):
        torch.testing.assert_close(ends.share, centred.gather(-1, ends.tokens))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_parts_add_up_to_the_stream_and_to_the_logit(
    tiny: Tiny, tokens: Tensor, family: str, dtype: torch.dtype, way: str
) -> None:
    """The errors that a result shows are its own, and within the bound of sums of so many products in this dtype."""
    model, text = loaded(tiny, family, dtype), tokens[:1]
    found = parts(model, text, edit=EDIT, **WAYS[way])
    whole = minilens.trace(model, text, edit=EDIT)
    last, output = whole.blocks[-1].resid_post, whole.logits[0]
    made = upcast({"all": last, "heads": whole.blocks[1].attn_out, "neurons": whole.blocks[1].mlp_out}[way][0])
    n = len(found.labels) + 50 + 30  # terms, and products in a term
    written = found.norm.sum(0)
    assert (found.stream_error * made.norm(dim=-1) <= 2 * gamma(n, dtype) * written).all()

    u = upcast(model.W_U[:, found.final_tokens]).mT
    scale = (upcast(last[0]).var(-1, correction=0) + model.ln_final_eps).sqrt()
    weighed = upcast(model.ln_final.w) * u
    bound = 2 * gamma(n, dtype) * (weighed.norm(dim=-1) * written / scale + (model.ln_final.b * u).norm(dim=-1))
    assert (found.logit_error.abs() <= bound).all()
    if way == "all":
        biases = u @ upcast(model.ln_final.b) + (0 if model.b_U is None else upcast(model.b_U)[found.final_tokens])
        logit = upcast(output).gather(1, found.final_tokens[:, None])[:, 0]
        assert ((found.share.sum(0) + biases - logit).abs() <= 2 * bound).all()
    else:
        share = layer_norm(made, (30,), eps=0) * made.std(-1, correction=0, keepdim=True) / scale[:, None]
        assert ((found.share.sum(0) - (share * weighed).sum(-1)).abs() <= 2 * bound).all()
    said = re.fullmatch(r"Parts: .* misses what they make by (\S+) of it, and a logit by (\S+)", repr(found))
    assert said
    assert float(said[1]) == pytest.approx(found.stream_error.max().item(), rel=0.06)
    assert float(said[2]) == pytest.approx(found.logit_error.abs().max().item(), rel=0.06)


@pytest.mark.parametrize("family", FAMILIES)
def test_shares_are_those_of_attribute(tiny: Tiny, tokens: Tensor, family: str) -> None:
    model, text = loaded(tiny, family), tokens[:1]
    attribution = minilens.attribute(model, text, position=7, neurons=LAYER)
    theirs = dict(zip(attribution.labels, attribution.contributions.tolist(), strict=True))
    compared = 0
    for way in WAYS.values():
        found = parts(model, text, positions=7, **way)
        assert found.final_tokens.tolist() == [attribution.token]
        for label, (share,) in zip(found.labels, found.share.tolist(), strict=True):
            if label in theirs:
                compared += 1
                assert share == pytest.approx(theirs[label], abs=1e-10), label
    assert compared == 2 + 6 + 51


def test_the_lens_says_the_same_of_writes(tiny: Tiny, tokens: Tensor) -> None:
    model, text = loaded(tiny, "ctrl"), tokens[:1]
    table = minilens.logit_lens(model, text, sites=("attn_out", "mlp_out"), top_k=K)
    found = parts(model, text, top_k=K)
    rows, writes = table.labels[1:-1], found.labels[2:]
    assert (rows, table.labels[-1]) == (writes, "2.resid_post")
    assert torch.equal(table.top.tokens[1:-1], found.alone.tokens[2:])
    torch.testing.assert_close(table.top.logprob[1:-1], found.alone.logprob[2:])


def test_the_largest(tiny: Tiny, tokens: Tensor) -> None:
    found = parts(loaded(tiny, "gpt2"), tokens[:1], LAYER, by="neuron", positions=[3, 4])
    largest = found.largest(3)
    order = found.norm.amax(1).argsort(descending=True)[:3].tolist()
    assert largest.labels == tuple(found.labels[n] for n in order)
    assert torch.equal(largest.norm, found.norm[order]) and torch.equal(
        largest.raised.tokens, found.raised.tokens[order]
    )
    assert torch.equal(largest.stream_error, found.stream_error)


def test_a_part_that_writes_nothing(tiny: Tiny, tokens: Tensor) -> None:
    found = parts(loaded(tiny, "gpt2"), tokens[:1], LAYER, edit=minilens.zero(LAYER, "attn_out"))
    assert found.labels[-1] == "1.attn_out_edit"
    assert found.stream_error.isfinite().all() and found.logit_error.abs().max() < 1e-10


@pytest.mark.parametrize("family", FAMILIES)
def test_any_vector_in_tokens(tiny: Tiny, tokens: Tensor, family: str) -> None:
    """Those of a part at a position are what it writes, whose shares the scale divides."""
    model, text = loaded(tiny, family), tokens[:1]
    found, whole = parts(model, text, positions=[4, 6], top_k=K), minilens.trace(model, text)
    vectors = torch.stack([block.mlp_out[0, [4, 6]] for block in whole.blocks])
    scale = (whole.blocks[-1].resid_post[0, 4].var(correction=0) + model.ln_final_eps).sqrt().item()
    words = minilens.vector_tokens(model, vectors, scale=scale, top_k=K)
    of_mlp = [label.endswith("mlp_out") for label in found.labels]
    assert words.raised.tokens.shape == (3, 2, K) and words.mean.shape == (3, 2)
    torch.testing.assert_close(words.alone.logprob, found.alone.logprob[of_mlp])
    torch.testing.assert_close(words.lowered.share[:, 0], found.lowered.share[of_mlp][:, 0])
    assert torch.equal(words.raised.tokens, found.raised.tokens[of_mlp])
    one = minilens.vector_tokens(model, vectors[2, 0].float(), top_k=1)
    assert one.raised.tokens.tolist() == words.raised.tokens[2, 0, :1].tolist()
    torch.testing.assert_close(one.mean, words.mean[2, 0] * scale, rtol=1e-5, atol=1e-5)
    assert "tensor(" not in repr(one) + repr(one.raised)


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor had that an operation made."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.numbers = max(
            self.numbers,
            *(each.numel() for each in (out if isinstance(out, tuple | list) else [out]) if isinstance(each, Tensor)),
            0,
        )
        return out


def test_neurons_times_vocabulary_are_never_in_memory(tiny: Tiny) -> None:
    model = minilens.load(tiny("gpt2", vocab_size=5000, n_inner=2000)[1])[0]
    with Largest() as largest:
        found = parts(model, torch.tensor([[1, 2, 3]]), 0, by="neuron")
    assert found.raised.tokens.shape == (2001, 3, 5)
    assert largest.numbers < 2000 * 5000 / 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, text: parts(model, text, 3), "layer 3 does not exist: the model's layers are 0 to 2"),
        (lambda model, text: parts(model, text, by="neuron"), "neurons are shown of one layer: name it"),
        (lambda model, text: parts(model, text, 0, by="layer"), 'by must be "head" or "neuron"; got "layer"'),
        (lambda model, text: parts(model, text, positions=33), "position 33 does not exist: the text has 33 tokens"),
        (lambda model, text: parts(model, text, positions=[]), "positions is empty: choose at least one"),
        (lambda model, text: parts(model, text, top_k=102), "top_k must be between 1 and the size of the vocabulary"),
        (lambda model, text: parts(model, text.repeat(2, 1)), "parts reads one text, of shape [1, pos]; got 2"),
        (lambda model, text: minilens.vector_tokens(model, torch.zeros(5)), "vectors must be a tensor whose last"),
        (lambda model, text: minilens.vector_tokens(model, torch.full((30,), torch.nan)), "the logits of row vector 0"),
    ],
)  # fmt: skip
def test_bad_input(tiny: Tiny, tokens: Tensor, call: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        call(loaded(tiny, "gpt2"), tokens[:1])
    assert str(error.value).startswith(message)


def test_weights_that_are_not_finite(tiny: Tiny, tokens: Tensor) -> None:
    model = minilens.load(tiny("gpt2")[1], dtype=torch.float64, mmap=False)[0]
    minilens.head_weights(model, 2).W_O[3, 0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"^the logits of row output are not finite"):
        parts(model, tokens[:1])


def test_the_examples() -> None:
    tried = [doctest.testmod(each, extraglobs={"minilens": minilens}) for each in (module, directions)]
    assert [(result.failed, result.attempted > 0) for result in tried] == [(0, True), (0, True)]
    assert isinstance(Parts, type)

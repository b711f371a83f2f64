"""Attribution: every part is what its label says, and the parts sum to the model's own logit."""

import doctest
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAMILIES, Tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import minilens
from minilens import Attribution, attribute, attributions, ctrl, gpt2, gpt_neo
from minilens.checkpoint.hub import bundled
from minilens.checkpoint.settings import Settings
from minilens.checkpoint.tensors import Checkpoint
from minilens.instruments import ablation, attribution, gradients, heads, metrics, paths
from minilens.instruments import attributions as attributions_
from minilens.ops import linear, merge_heads

BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-4}
STREAM = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
STORY = "Once upon a time there was a little girl who lived in a small house near the wood with her mother."


class RandomWeights(Checkpoint):
    """A checkpoint that has whatever a family asks for."""

    def __init__(self, seed: int, std: float, dtype: torch.dtype) -> None:
        self.random, self.std, self.dtype = torch.Generator().manual_seed(seed), std, dtype

    def take(self, name: str, *shape: int) -> Tensor:
        return self.std * torch.randn(shape, generator=self.random, dtype=torch.float64).to(self.dtype)

    def ignore(self, *names: str) -> None:
        pass

    def unembedding(self, name: str, W_E: Tensor, is_tied: bool) -> Tensor:
        return W_E.mT


def random_model(
    family: str, *, d_vocab: int, d_head: int, n_heads: int, n_layers: int, d_mlp: int, **weights: Any
) -> minilens.Model:
    sizes = {"gpt2": "n_positions n_embd n_head n_layer n_inner", "ctrl": "n_positions n_embd n_head n_layer dff"}
    names = sizes.get(family, "max_position_embeddings hidden_size num_heads num_layers intermediate_size").split()
    config = dict(zip(names, (20, d_head * n_heads, n_heads, n_layers, d_mlp), strict=True), vocab_size=d_vocab)
    if family == "gpt_neo":
        config |= {"attention_types": [[["local"], n_layers]], "window_size": 3}
    module: Any = {"gpt2": gpt2, "gpt_neo": gpt_neo, "ctrl": ctrl}[family]
    return module.build(module.Config.read(Settings(config, Path("config.json"))), RandomWeights(**weights))


def contributions(attribution: Attribution) -> dict[str, float]:
    return dict(zip(attribution.labels, attribution.contributions.tolist(), strict=True))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    family=st.sampled_from(FAMILIES),
    dtype=st.sampled_from([*BOUNDS]),
    sizes=st.fixed_dictionaries(
        dict(
            d_vocab=st.integers(2, 60),
            d_head=st.integers(3, 9),
            n_heads=st.integers(2, 5),
            n_layers=st.integers(1, 4),
            d_mlp=st.integers(1, 60),
            std=st.sampled_from([0.02, 0.3, 1.0]),
            seed=st.integers(0, 999),
        )
    ),
    n=st.integers(1, 20),
    data=st.data(),
)
def test_the_parts_sum_to_the_logit(
    family: str, dtype: torch.dtype, sizes: dict[str, Any], n: int, data: st.DataObject
) -> None:
    """Of a token or of a difference, at any position, with and without neurons and edits in every kind of place."""
    model = random_model(family, dtype=dtype, **sizes)
    d_vocab, n_layers = sizes["d_vocab"], sizes["n_layers"]
    tokens = torch.randint(0, d_vocab, (1, n), generator=torch.Generator().manual_seed(sizes["seed"]))
    id_ = st.none() | st.integers(0, d_vocab - 1)
    token, against = data.draw(id_), data.draw(id_)
    position = data.draw(st.integers(-n, n - 1))
    neurons = data.draw(st.none() | st.integers(0, n_layers - 1))
    places = data.draw(st.lists(st.tuples(st.integers(0, n_layers - 1), st.sampled_from(minilens.SITES)), max_size=3))
    edit = minilens.then(*(minilens.at(layer, site, lambda value: value.flip(-1) / 2) for layer, site in places))

    found = attribute(model, tokens, position=position, token=token, against=against, neurons=neurons, edit=edit)
    logits = minilens.trace(model, tokens, edit=edit).logits[0, position]
    best = logits.argmax() if token is None else token
    logit = logits[best] - (0 if against is None else logits[against])
    assert found.contributions.dtype == dtype
    assert abs(found.logit - logit.item()) < BOUNDS[dtype]
    assert abs(found.error) < BOUNDS[dtype]
    # Against the truth, not only against what `error` says of itself.
    assert abs(sum(contributions(found).values()) - logit.item()) < BOUNDS[dtype]


def plainly(model: Any, trace: minilens.Trace, tokens: Tensor, position: int, u: Tensor) -> dict[str, Tensor]:
    """The parts by their definitions: each a vector, through the final norm with its scale held, onto u."""
    eps = model.config.ln_final_eps if model.family == "ctrl" else model.config.ln_eps
    final = trace.blocks[-1].resid_post[0, position]
    deviation = ((final - final.mean()).pow(2).mean() + eps).sqrt()

    def onto_u(x: Tensor) -> Tensor:
        return ((x - x.mean()) / deviation * model.ln_final.w) @ u

    embedding, place = model.W_E[tokens[0, position]], position % tokens.shape[1]
    if model.family == "ctrl":
        frequency = 10000 ** (-torch.arange(0, len(embedding), 2) / len(embedding))
        parts = {
            "embed": onto_u(embedding * len(embedding) ** 0.5),
            "positions": onto_u(torch.cat([(place * frequency).sin(), (place * frequency).cos()]).double()),
        }
    else:
        parts = {"embed": onto_u(embedding), "positions": onto_u(model.W_pos[place])}
    for block, w in zip(trace.blocks, model.blocks, strict=True):
        for head in range(block.z.shape[1]):
            only = torch.zeros_like(block.z)
            only[:, head] = block.z[:, head]
            parts[f"{block.layer}.head.{head}"] = onto_u(linear(merge_heads(only), w.W_O)[0, position])
        parts[f"{block.layer}.attn_bias"] = onto_u(w.b_O)
        parts[f"{block.layer}.mlp"] = onto_u(block.mlp_out[0, position] - w.b_out)
        parts[f"{block.layer}.mlp_bias"] = onto_u(w.b_out)
    return parts | {"final_norm_bias": model.ln_final.b @ u}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("position", [-1, 3])
def test_every_part_is_what_its_label_says(tiny: Tiny, tokens: Tensor, family: str, position: int) -> None:
    model, _ = minilens.load(tiny(family)[1], dtype=torch.float64)
    text = tokens[:1]
    trace = minilens.trace(model, text)
    for token, against in ((7, None), (7, 30)):
        u = model.W_U[:, 7] - (0 if against is None else model.W_U[:, 30])
        expected = plainly(model, trace, text, position, u)
        if model.b_U is not None:
            expected["unembed_bias"] = model.b_U[7] - (0 if against is None else model.b_U[30])
        found = contributions(attribute(model, text, position=position, token=token, against=against))
        assert [*found] == [*expected]
        assert ("unembed_bias" in found) == (family == "ctrl")
        # The float64 model's sinusoids are float32 numbers.
        bounds = dict.fromkeys(found, 1e-10) | ({"embed": 1e-6, "positions": 1e-6} if family == "ctrl" else {})
        assert all(abs(found[label] - expected[label]) < bounds[label] for label in found)


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tiny: Tiny) -> minilens.Model:
    return minilens.load(tiny(request.param)[1], dtype=torch.float64)[0]


@pytest.fixture
def text(tokens: Tensor) -> Tensor:
    return tokens[:1]


def test_views(model: minilens.Model, text: Tensor) -> None:
    whole, split = attribute(model, text), attribute(model, text, neurons=1)
    parts = contributions(whole)
    assert whole.token == minilens.trace(model, text).logits[0, -1].argmax()
    assert (whole.position, whole.against) == (32, None)
    assert whole.by_head.shape == (3, 5)
    assert whole.by_head[1, 4] == parts["1.head.4"]
    for layer in range(3):
        names = [label for label in parts if label.startswith(f"{layer}.")]
        assert len(names) == 8
        assert abs(whole.by_layer[layer] - sum(parts[name] for name in names)) < 1e-12
    assert split.by_neuron.shape == (50,)
    assert abs(split.by_neuron.sum() - parts["1.mlp"]) < 1e-12
    block = minilens.trace(model, text).blocks[1]
    zeroed = minilens.at(1, "mlp_post", lambda value: value * (torch.arange(50) != 17))
    assert block.mlp_post[0, -1, 17] != 0 != contributions(split)["1.neuron.17"]
    assert contributions(attribute(model, text, neurons=1, edit=zeroed))["1.neuron.17"] == 0
    assert "1.mlp" not in split.labels and "0.mlp" in split.labels
    assert (split.by_layer - whole.by_layer).abs().max() < 1e-12
    best = whole.largest(len(parts))
    assert dict(best) == parts
    assert [abs(value) for _, value in best] == sorted(map(abs, parts.values()), reverse=True)
    assert whole.largest(2) == best[:2]
    with pytest.raises(AttributeError, match="made without neurons: give attribute the layer"):
        _ = whole.by_neuron


def test_what_an_edit_changes_in_the_stream_is_a_part(model: minilens.Model, text: Tensor) -> None:
    """An edit within a block shows in heads and neurons; one of the stream, as the difference that it makes."""
    silenced = minilens.at(1, "attn_out", torch.zeros_like)
    parts = contributions(attribute(model, text, token=3, edit=silenced))
    attention = sum(value for label, value in parts.items() if label.startswith(("1.head", "1.attn_bias")))
    assert abs(attention) > 0.01
    assert abs(parts["1.attn_out_edit"] + attention) < 1e-10
    assert [label for label in parts if label.endswith("edit")] == ["1.attn_out_edit"]

    no_head = minilens.at(1, "z", lambda z: z * (torch.arange(5) != 2)[:, None, None])
    parts = contributions(attribute(model, text, edit=no_head))
    assert parts["1.head.2"] == 0 != parts["1.head.3"]
    assert not any(label.endswith("edit") for label in parts)

    for name in STREAM:
        edited = attribute(model, text, edit=minilens.at(2, name, torch.neg))
        assert [label for label in edited.labels if label.endswith("edit")] == [f"2.{name}_edit"]
        assert abs(edited.error) < 1e-10


def test_one_pass_that_keeps_one_position(model: minilens.Model, text: Tensor) -> None:
    """Each block is run once, and of those before it no tensor is left."""
    seen: list[minilens.Site] = []
    storages = []

    def watch(site: minilens.Site, value: Tensor) -> Tensor:
        if site.name == "q" and site.layer == 2:
            assert not any(storage() for storage in storages)
        if site.layer < 2 and site.name in ("pattern", "z", "mlp_post", "mlp_out"):
            new = value.clone()
            storages.append(weakref.ref(new))
            value = new
        seen.append(site)
        return value

    assert abs(attribute(model, text, edit=watch).error) < 1e-10
    assert len(storages) == 8
    assert seen == [(layer, name) for layer in range(3) for name in minilens.SITES]


@pytest.mark.parametrize("name", sorted(bundled()))
def test_trained_models(name: str) -> None:
    model, tokenizer = minilens.load(name)
    assert tokenizer is not None
    tokens = tokenizer.encode(STORY)
    for position in range(0, tokens.shape[1], 6):
        assert abs(attribute(model, tokens, position=position).error) < 1e-4
        assert abs(attribute(model, tokens, position=position, against=5, neurons=3).error) < 1e-4


def test_half_precision_says_how_far_it_is_off() -> None:
    model, tokenizer = minilens.load("tales-gpt2", dtype=torch.bfloat16)
    assert tokenizer is not None
    found = attribute(model, tokenizer.encode(STORY))
    assert found.contributions.dtype == torch.float32
    assert abs(found.contributions.double().sum().item() - found.logit - found.error) < 1e-4
    assert 1e-4 < abs(found.error) < 0.5


def test_repr(model: minilens.Model, text: Tensor) -> None:
    n = 26 + 1 + (model.b_U is not None)
    assert repr(attribute(model, text, token=3, position=2)).startswith(f"Attribution to {n} parts: logit ")
    assert " of token 3 less that of 5 at position 2, which the sum misses by " in repr(
        attribute(model, text, token=3, against=5, position=2)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(position=33), "position 33 does not exist: the text has 33 tokens, so positions 0 to 32"),
        (dict(position=-34), "position -34 does not exist: the text has 33 tokens, so positions 0 to 32"),
        (dict(token=101), "token is 101, which is out of range: the model's ids go from 0 to 100"),
        (dict(against=-1), "against is -1, which is out of range: the model's ids go from 0 to 100"),
        (dict(neurons=3), "layer 3 does not exist: the model's layers are 0 to 2"),
        (dict(edit=minilens.at(3, "z", torch.neg)), "the edit at 3.z matches nothing: the blocks run are 0 to 2"),
        (dict(edit=minilens.at(2, "attn_out", lambda x: x[0])), "the edit at 2.attn_out must keep [1, 33, 30]"),
        (dict(edit=minilens.at(2, "mlp_out", lambda x: x.zero_())), "the edit at 2.mlp_out wrote into the tensor"),
        (dict(edit=minilens.at(2, "mlp_out", lambda x: x / 0)), "the logit at position 32 is not finite: there is"),
    ],
)
def test_bad_input(model: minilens.Model, text: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        attribute(model, text, **options)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_several_texts(model: minilens.Model, tokens: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^attribute reads one text, of shape \[1, pos\]; got 2 of them$"):
        attribute(model, tokens)


def test_attention_and_mlp_apart_and_by_position(model: minilens.Model, text: Tensor) -> None:
    """What attention takes from each position is its weight there, and the value there through W_O and the norm."""
    edit = minilens.then(minilens.zero(1, "attn_out"), minilens.at(0, "mlp_out", lambda x: x / 2))
    found = attribute(model, text, token=3, edit=edit)
    parts = contributions(found)
    for layer in range(3):
        mine = {label.partition(".")[2]: value for label, value in parts.items() if label.startswith(f"{layer}.")}
        attention = sum(value for label, value in mine.items() if label.startswith(("head", "attn")))
        mlp = sum(value for label, value in mine.items() if label.startswith("mlp"))
        assert abs(found.attention[layer] - attention) < 1e-12 and abs(found.mlp[layer] - mlp) < 1e-12
    assert (found.attention + found.mlp - found.by_layer).abs().max() < 1e-12

    trace, found = minilens.trace(model, text), attribute(model, text, token=3, position=20)
    assert (found.by_key.sum(-1) - found.by_head).abs().max() < 1e-10
    W_O, block = minilens.head_weights(model, 2).W_O, trace.blocks[2]
    write = block.pattern[0, 3, 20, 17] * (block.v[0, 3, 17] @ W_O[3])
    stream = trace.blocks[-1].resid_post[0, 20]
    scale = (stream.var(correction=0) + model.ln_final_eps).sqrt()
    wanted = ((write - write.mean()) / scale * model.ln_final.w) @ model.W_U[:, 3]
    assert abs(found.by_key[2, 3, 17] - wanted) < 1e-10 and (found.by_key[:, :, 21:] == 0).all()
    assert torch.equal(found.by_position, found.by_key.sum(1)) and found.tokens.equal(text[0])


def test_several_texts_side_by_side(model: minilens.Model, tokens: Tensor) -> None:
    """Each by itself, without its padding; the mean and its error."""
    batch, lengths = torch.cat([tokens, tokens.flip(1)[:1]]), [33, 20, 33]
    found = attributions(model, batch, lengths=lengths, token=[3, 5, 8], against=9, neurons=range(3))
    alone = [
        attribute(model, batch[n : n + 1, :end], token=token, against=9, neurons=(0, 1, 2))
        for n, (end, token) in enumerate(zip(lengths, (3, 5, 8), strict=True))
    ]
    bound = (
        1e-6 if isinstance(model, gpt_neo.GPTNeo) else 1e-10
    )  # GPT-Neo's scores are in float32, whatever the weights' type
    for one, other in zip(found.texts, alone, strict=True):
        assert (one.labels, one.layers, one.position, one.token) == (
            other.labels, other.layers, other.position, other.token
        )  # fmt: skip
        assert torch.equal(one.tokens, other.tokens)
        for name in ("contributions", "by_key"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=bound)
    for name in ("by_head", "by_neuron", "mlp", "contributions"):
        values = torch.stack([getattr(one, name) for one in alone])
        mean, error = found.of(name)
        torch.testing.assert_close(mean, values.mean(0), rtol=0, atol=bound)
        torch.testing.assert_close(error, values.std(0) / 3**0.5, rtol=0, atol=bound)
    assert found.of("by_neuron").mean.shape == (3, 50)
    label, mean, error = found.largest(1)[0]
    assert mean == found.of("contributions").mean[found.labels.index(label)] and error > 0
    assert repr(found).startswith("Attributions of 3 texts to ")
    with pytest.raises(ValueError, match="texts of several lengths have no positions in common"):
        found.of("by_position")
    with pytest.raises(ValueError, match='there is no "tokens" of several texts; there are contributions, by_layer'):
        found.of("tokens")
    with pytest.raises(ValueError, match="token must be one for all texts, or one for each of the 3; got 2"):
        attributions(model, batch, token=[3, 5])


EXAMPLES = (ablation, attribution, attributions_, gradients, heads, metrics, paths)


def test_the_examples() -> None:
    tried = [doctest.testmod(module, extraglobs={"minilens": minilens}) for module in EXAMPLES]
    assert [(result.failed, result.attempted > 0) for result in tried] == [(0, True)] * len(EXAMPLES)

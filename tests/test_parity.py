"""Equal to the reference: every value that transformers exposes, and the logits.

Equal within rounding: both take the same products, but weights may be aligned in another way, and then a processor may
round them in another way. scripts/parity.py counts the values that are the same bit for bit on the machine it runs on.
"""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAMILIES, Tiny, make_reference

import minilens
from minilens.ops import merge_heads

# GPT-Neo takes its scores in float32 from weights in float64, too, and their rounding would hide all else. With this
# both libraries leave them in float64.
Float64Stays = runpy.run_path(str(Path(__file__).parents[1] / "scripts/parity.py"))["Float64Stays"]
N_GREEDY = 30  # tokens, longer than GPT-Neo's window
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in FAMILIES),
    ("gpt2", dict(n_inner=None)),
    ("gpt2", dict(n_head=3)),
    ("gpt2", dict(scale_attn_weights=False)),
    ("gpt2", dict(scale_attn_by_inverse_layer_idx=True)),
    ("gpt2", dict(scale_attn_by_inverse_layer_idx=True, scale_attn_weights=False)),
    ("gpt2", dict(layer_norm_epsilon=0.1)),
    *(("gpt2", dict(activation_function=name)) for name in ("gelu", "relu", "gelu_fast", "gelu_pytorch_tanh")),
    ("gpt_neo", dict(intermediate_size=None)),
    ("gpt_neo", dict(attention_types=[[["local"], 1], [["global"], 2]], window_size=1)),
    ("gpt_neo", dict(layer_norm_epsilon=0.1)),
    ("gpt_neo", dict(activation_function="gelu")),
    ("ctrl", dict(n_head=3)),
    ("ctrl", dict(layer_norm_epsilon=0.1)),
]


def values(model: minilens.Model, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """What minilens computes, under the names of what transformers exposes.

    transformers gives the stream entering each block, and after the last one only its final norm.
    """
    trace = minilens.trace(model, tokens)
    named = {"embed": trace.embed, "logits": trace.logits}
    for block in trace.blocks:
        named[f"resid_pre {block.layer}"] = block.resid_pre
        named[f"pattern {block.layer}"] = block.pattern
    return named


def reference_values(model: Any, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        out = model(tokens, use_cache=False, output_hidden_states=True, output_attentions=True)
    named = {"embed": out.hidden_states[0], "logits": out.logits}
    for layer, pattern in enumerate(out.attentions):
        named[f"resid_pre {layer}"] = out.hidden_states[layer]
        named[f"pattern {layer}"] = pattern
    return named


def largest_difference(model: minilens.Model, reference: Any, tokens: torch.Tensor) -> dict[str, float]:
    ours, theirs = values(model, tokens), reference_values(reference, tokens)
    assert ours.keys() == theirs.keys()
    return {name: (ours[name] - theirs[name]).abs().max().item() for name in ours}


@pytest.mark.parametrize(("family", "config"), VARIANTS, ids=str)
def test_every_value_equals_the_reference(
    tiny: Tiny, tokens: torch.Tensor, family: str, config: dict[str, Any]
) -> None:
    reference, folder = tiny(family, **config)
    model, _ = minilens.load(folder, dtype=torch.float64)
    # 1e-10, also for CTRL: its positions are float32 numbers here as they are there.
    with Float64Stays():
        differences = largest_difference(model, reference, tokens)
    assert max(differences.values()) < 1e-10, differences


@pytest.mark.parametrize(("family", "config"), VARIANTS, ids=str)
def test_float32_equals_the_reference(tiny: Tiny, tokens: torch.Tensor, family: str, config: dict[str, Any]) -> None:
    _, folder = tiny(family, **config)
    model, _ = minilens.load(folder)
    reference = make_reference(family, **config).float()
    differences = largest_difference(model, reference, tokens)
    assert max(differences.values()) < 1e-5, differences


def test_gpt_neos_scores_are_in_float32_of_whatever_weights(tiny: Tiny, tokens: torch.Tensor) -> None:
    reference, folder = tiny("gpt_neo")
    model, _ = minilens.load(folder, dtype=torch.float64)
    assert {block.scores.dtype for block in minilens.trace(model, tokens).blocks} == {torch.float32}
    differences = largest_difference(model, reference, tokens)
    assert max(differences.values()) < 1e-5, differences


def test_upcast_scores_equal_the_reference(tiny: Tiny, tokens: torch.Tensor) -> None:
    """In float32 only: with `reorder_and_upcast_attn` the reference refuses weights in float64."""
    config = dict(reorder_and_upcast_attn=True, scale_attn_by_inverse_layer_idx=True)
    _, folder = tiny("gpt2", **config)
    model, _ = minilens.load(folder)
    differences = largest_difference(model, make_reference("gpt2", **config).float(), tokens)
    assert max(differences.values()) < 1e-5, differences


MODULES = {
    "gpt2": dict(ln1_out="ln_1", qkv="attn.c_attn", attn_out="attn", ln2_out="ln_2")
    | dict(mlp_pre="mlp.c_fc", mlp_post="mlp.act", mlp_out="mlp"),
    "gpt_neo": dict(ln1_out="ln_1", q="attn.attention.q_proj", k="attn.attention.k_proj", v="attn.attention.v_proj")
    | dict(attn_out="attn", ln2_out="ln_2", mlp_pre="mlp.c_fc", mlp_post="mlp.act", mlp_out="mlp"),
    "ctrl": dict(ln1_out="layernorm1", q="multi_head_attention.Wq", k="multi_head_attention.Wk")
    | dict(v="multi_head_attention.Wv", attn_out="multi_head_attention", ln2_out="layernorm2")
    | dict(mlp_pre="ffn.0", mlp_post="ffn.1", mlp_out="ffn"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_intermediate_values_equal_the_reference_modules(tiny: Tiny, tokens: torch.Tensor, family: str) -> None:
    """What transformers does not return, as its own modules compute it."""
    reference = make_reference(family)
    model, _ = minilens.load(tiny(family)[1], dtype=torch.float64)
    heard: dict[tuple[int, str], torch.Tensor] = {}
    for layer, block in enumerate(reference.transformer.h):
        for field, name in MODULES[family].items():

            def listen(_: Any, __: Any, out: Any, key: tuple[int, str] = (layer, field)) -> None:
                heard[key] = out[0] if isinstance(out, tuple) else out

            block.get_submodule(name).register_forward_hook(listen)
    with torch.no_grad(), Float64Stays():
        reference(tokens, use_cache=False)
        trace = minilens.trace(model, tokens)
    assert len(heard) == len(MODULES[family]) * model.n_layers
    for (layer, field), expected in heard.items():
        block = trace.blocks[layer]
        if field in ("q", "k", "v", "qkv"):
            ours = torch.cat([merge_heads(getattr(block, name)) for name in field], -1)
        else:
            ours = getattr(block, field)
        assert (ours - expected).abs().max() < 1e-10, (layer, field)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_continuations_are_the_same(tiny: Tiny, family: str) -> None:
    reference, folder = tiny(family)
    model, _ = minilens.load(folder, dtype=torch.float64)
    tokens = torch.tensor([[5, 17, 3]])
    expected = reference.generate(tokens, max_length=N_GREEDY, do_sample=False, pad_token_id=0)
    while tokens.shape[1] < N_GREEDY:
        logits = minilens.decode(model, model.embed(tokens), start=0)
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(tokens, expected)

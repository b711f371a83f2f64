"""The repr of what holds tensors: a few lines of shapes, and no numbers."""

from collections.abc import Callable

import pytest
import torch
from conftest import FAMILIES, Tiny

import minilens
from minilens.shapes import shapes_of

SHOWN: dict[str, Callable[[minilens.Model, torch.Tensor], object]] = {
    "model": lambda model, text: model,
    "weights": lambda model, text: model.blocks[0],
    "norm": lambda model, text: model.ln_final,
    "trace": minilens.trace,
    "block": lambda model, text: minilens.trace(model, text).blocks[1],
    "row": lambda model, text: next(minilens.lens_rows(model, text)),
    "readout": lambda model, text: minilens.Lens().of(model, text),
    "table": minilens.logit_lens,
    "top": lambda model, text: minilens.logit_lens(model, text).top,
    "token": lambda model, text: minilens.logit_lens(model, text).final,
    "heads": lambda model, text: minilens.head_scores(model, length=5),
    "attribution": minilens.attribute,
    "attributions": minilens.attributions,
    "patching": lambda model, text: minilens.patching(model, text, 100 - text, minilens.log_probability(3), sites="z"),
    "ablation": lambda model, text: minilens.ablation(model, text, minilens.log_probability(3), how="zero"),
    "head weights": lambda model, text: minilens.head_weights(model),
    "circuit": lambda model, text: minilens.ov_circuit(model, 1, 2),
    "parts": minilens.parts,
    "vector in tokens": lambda model, text: minilens.vector_tokens(model, model.W_E[:3]),
    "composition": lambda model, text: minilens.composition(model),
    "step": lambda model, text: next(minilens.generate_steps(model, text, 1)),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SHOWN)
def test_a_repr_is_short(tiny: Tiny, tokens: torch.Tensor, family: str, name: str) -> None:
    model, _ = minilens.load(tiny(family)[1])
    shown = repr(SHOWN[name](model, tokens[:1]))
    assert "tensor(" not in shown
    assert len(shown) < 1500 and shown.count("\n") < 20


def test_the_shapes_are_the_tensors_own(tiny: Tiny, tokens: torch.Tensor) -> None:
    model, _ = minilens.load(tiny("gpt2")[1])
    trace = minilens.trace(model, tokens)
    assert repr(trace) == (
        "Trace\n  embed   [2, 33, 30] float32\n  blocks  3 of BlockTrace\n  logits  [2, 33, 101] float32"
    )
    assert "  pattern     [2, 5, 33, 33] float32\n" in repr(trace.blocks[0])
    assert "  ln1    w [30] float32, b [30] float32\n" in repr(model.blocks[0])
    assert shapes_of(model.ln_final._replace(w=torch.empty(3, device="meta"))).splitlines()[1] == (
        "  w  [3] float32 on meta"
    )


def test_a_report_is_counts() -> None:
    report = minilens.verify("tales-gpt2")
    assert repr(report).startswith("Report on 'tales-gpt2' (gpt2): passed\n  files 3, config ")
    assert len(repr(report)) < 200

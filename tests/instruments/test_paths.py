"""Path patching: each cell is what its definition says, worked out by hand in the stream."""

from typing import Any

import pytest
import torch
from conftest import FAMILIES, Tiny
from torch import Tensor

import minilens
from minilens import logit_difference, path_patching

METRIC = logit_difference(17, 23)


@pytest.fixture
def texts(tokens: Tensor) -> tuple[Tensor, Tensor]:
    clean = tokens[:1, :8]
    corrupt = clean.clone()
    corrupt[0, [1, 5]] = (corrupt[0, [1, 5]] + 5) % 101
    return clean, corrupt


def by_hand(model: Any, clean: Tensor, corrupt: Tensor, head: int, to: Any, mlps_pass: bool) -> float:
    """The metric where head `head` of block 0 speaks as in the clean run, and the receiver alone hears of it."""
    ours, theirs = (minilens.trace(model, text) for text in (clean, corrupt))
    write = (ours.blocks[0].z - theirs.blocks[0].z)[:, head] @ minilens.head_weights(model, 0).W_O[head]

    def mlp(layer: int, resid: Tensor) -> Tensor:
        """What the MLP of a block writes on a stream that attention has left alone."""
        return model.block(layer, resid, minilens.zero(layer, "attn_out")).mlp_out

    change, told = write, []
    for layer in range(3):
        block = theirs.blocks[layer]
        entering = block.resid_pre + (change if layer else 0)
        if to is not None and layer == to[0] and to[1] == "mlp_post":
            heard = model.block(layer, block.resid_mid + change, minilens.zero(layer, "attn_out")).mlp_post
            told = [minilens.at(layer, "mlp_post", lambda value, heard=heard: heard)]
        elif to is not None and layer == to[0]:
            heard = getattr(model.block(layer, entering), to[1])[:, to[2]]
            told.append(minilens.at(layer, to[1], lambda value, heard=heard: heard[:, None], heads=to[2]))
        if mlps_pass:
            change = change + mlp(layer, block.resid_mid + change) - block.mlp_out
    if to is None:
        return float(METRIC(model.unembed(theirs.blocks[-1].resid_post + change)[:, -1]))
    return float(METRIC(minilens.trace(model, corrupt, edit=minilens.then(*told)).logits[:, -1]))


@pytest.mark.parametrize("frozen", [("attn_out", "mlp_out"), "attn_out"])
@pytest.mark.parametrize("to", [None, (2, "q", 1), (1, "k", 3), (2, "v", 0), (1, "mlp_post")], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_receiver_alone_hears_the_sender(
    tiny: Tiny, texts: tuple[Tensor, Tensor], family: str, to: Any, frozen: Any
) -> None:
    model, _ = minilens.load(tiny(family)[1], dtype=torch.float64)
    found = path_patching(model, *texts, METRIC, to=None if to is None else [to], frozen=frozen)
    for head in (0, 4):
        wanted = by_hand(model, *texts, head, to, frozen == "attn_out")
        assert abs(found.metric["z"][0, head] - wanted) < (1e-5 if family == "gpt_neo" else 1e-9)
        assert abs(wanted - found.corrupt) > 2e-5
    last = 2 if to is None else to[0] if to[1] == "mlp_post" else to[0] - 1
    assert found.can_change["z"].any(1).tolist() == [layer <= last for layer in range(3)]
    assert (found.metric["z"][last + 1 :] == found.corrupt).all()


def test_several_receivers_hear_at_once(tiny: Tiny, texts: tuple[Tensor, Tensor]) -> None:
    """With every head of the last two blocks and both MLPs told, and the direct way, nothing is left out."""
    model, _ = minilens.load(tiny("gpt2")[1], dtype=torch.float64)
    to = [(layer, site) for layer in (1, 2) for site in ("q", "k", "v", "mlp_post")]
    told = path_patching(model, *texts, METRIC, to=[*to, (0, "mlp_post"), (2, "resid_post")], frozen=())
    plain = minilens.patching(model, *texts, METRIC, sites="z", by="head")
    assert (told.metric["z"] - plain.metric["z"])[0].abs().max() < 1e-9
    one = path_patching(model, *texts, METRIC, to=[(2, "q", 0), (2, "q", [3])])
    both = path_patching(model, *texts, METRIC, to=[(2, "q", (0, 3))])
    assert torch.equal(one.metric["z"], both.metric["z"])


def test_by_position_and_straight_to_the_logits(tiny: Tiny, texts: tuple[Tensor, Tensor]) -> None:
    """Where nothing between positions passes a change on, only the metric's own position counts."""
    model, _ = minilens.load(tiny("ctrl")[1])
    found = path_patching(model, *texts, METRIC, sites=("attn_out", "mlp_out"), by="position")
    assert found.can_change["mlp_out"].nonzero().tolist() == [[0, 7], [1, 7], [2, 7]]
    by_head = path_patching(model, *texts, METRIC, by="head_position")
    assert (by_head.metric["z"][:, :, 7] - path_patching(model, *texts, METRIC).metric["z"]).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": []}, "to is empty: name at least one receiver, or leave it out for the logits"),
        ({"to": [(3, "q", 1)]}, "layer 3 does not exist"),
        ({"to": [(2, "q", 5)]}, "head 5 does not exist: the model's heads are 0 to 4"),
        ({"to": [(2, "mlp_out", 1)]}, '"mlp_out" is not split into heads; q, k, v, pattern, z are'),
        ({"to": [(2, "scores")]}, '"scores" is not a receiver; resid_pre, q, k'),
        ({"frozen": "z"}, '"z" cannot be frozen; attn_out, mlp_out can'),
        ({"sites": "mlp_out"}, '"mlp_out" cannot be patched by head'),
    ],
)
def test_refusals(tiny: Tiny, texts: tuple[Tensor, Tensor], options: dict[str, Any], message: str) -> None:
    model, _ = minilens.load(tiny("gpt2")[1])
    with pytest.raises(ValueError, match=message):
        path_patching(model, *texts, METRIC, **options)

"""What each block writes to the stream at one position of each text, and what of it points to a logit."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..edits import then
from ..model import Model, Writes, run
from ..ops import upcast
from ..shapes import Resid, Tokens
from ..traces import ROW_SITES, Edit, Site


class Written(NamedTuple):
    """The writes of a block at one position of each text: its heads' z, its neurons, and the changes of an edit."""

    z: Float[Tensor, "batch head d_head"]
    pattern: Float[Tensor, "batch head key"]
    v: Float[Tensor, "batch head key d_head"]
    mlp_post: Float[Tensor, "batch d_mlp"]
    changes: dict[str, Float[Tensor, "batch d_model"]]  # by site: the new value less the old


def writes_at(
    model: Model, embed: Resid, places: Int[Tensor, "batch"], edit: Edit
) -> tuple[list[Written], Float[Tensor, "batch 1 d_model"]]:
    """The writes of every block at one position of each text, and the last residual there."""
    before: dict[str, Tensor] = {}

    def note(site: Site, value: Tensor) -> Tensor:
        before[site.name] = value
        return value

    writes, resid = [], embed
    for block in run(model, embed, edit=then(note, edit)):
        # At these sites an edit changes the sum itself.
        edited = [name for name in ROW_SITES if getattr(block, name) is not before[name]]
        changes = {name: at_places(places, getattr(block, name)) - at_places(places, before[name]) for name in edited}
        pattern, v = at_places(places, block.pattern), upcast(block.v.clone())
        writes.append(Written(at_places(places, block.z), pattern, v, at_places(places, block.mlp_post), changes))
        resid = block.resid_post[torch.arange(len(places), device=places.device), places][:, None]
        before.clear()
        del block
    return writes, resid


def at_places(places: Int[Tensor, "batch"], x: Float[Tensor, "batch *head pos d"]) -> Float[Tensor, "batch *head d"]:
    """One position of each text, copied: a view would keep all of x."""
    return upcast(x.movedim(-2, 1)[torch.arange(len(places), device=places.device), places].clone())


@torch.no_grad()
def first_lengths(model: Model, tokens: Tokens) -> tuple[Float[Tensor, "batch pos"], Float[Tensor, "batch pos"]]:
    """The lengths (L2 norms) of what stands in the stream before block 0, and of what that block adds to it."""
    embed = model.embed(tokens)
    write = upcast(model.block(0, embed).resid_post) - upcast(embed)
    return upcast(embed).norm(dim=-1), write.norm(dim=-1)


def directions_of(
    model: Model, resid: Float[Tensor, "batch d_model"], u: Float[Tensor, "batch d_model"]
) -> Float[Tensor, "batch d_model"]:
    """The vectors that the parts are multiplied with: u through the final norm, with the scale of these residuals."""
    w = upcast(model.ln_final.w) * u
    return (w - w.mean(-1, keepdim=True)) * (resid.var(-1, correction=0, keepdim=True) + model.ln_final_eps).rsqrt()


def by_key(
    weights: Writes, written: Written, directions: Float[Tensor, "batch d_model"]
) -> Float[Tensor, "batch head pos"]:
    """What each head of a block adds from each position: its weight there, and what the value there adds."""
    towards = (directions @ upcast(weights.W_O).mT).view_as(written.z)
    return written.pattern * torch.einsum("bhkd, bhd -> bhk", written.v, towards)


def parts_of(
    weights: Writes, written: Written, directions: Float[Tensor, "batch d_model"], *, by_neuron: bool
) -> dict[str, Float[Tensor, "batch"]]:
    """The contributions of one block's parts."""
    heads = (written.z * (directions @ upcast(weights.W_O).mT).view_as(written.z)).sum(-1)
    neurons = written.mlp_post * (directions @ upcast(weights.W_out).mT)
    return {
        **{f"head.{head}": value for head, value in enumerate(heads.mT)},
        "attn_bias": directions @ upcast(weights.b_O),
        **({f"neuron.{n}": value for n, value in enumerate(neurons.mT)} if by_neuron else {"mlp": neurons.sum(-1)}),
        "mlp_bias": directions @ upcast(weights.b_out),
        **{f"{name}_edit": (change * directions).sum(-1) for name, change in written.changes.items()},
    }

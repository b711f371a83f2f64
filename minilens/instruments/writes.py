"""What each block writes to the stream at one position, and what of it points to a logit; the length of the first."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..edits import then
from ..model import Model, Writes, run
from ..ops import upcast
from ..shapes import Resid, Tokens
from ..traces import ROW_SITES, Edit, Site


class Written(NamedTuple):
    """The writes of a block at the position: its heads' z, its neurons, and the changes of an edit."""

    z: Float[Tensor, "head d_head"]
    pattern: Float[Tensor, "head key"]
    v: Float[Tensor, "head key d_head"]
    mlp_post: Float[Tensor, "d_mlp"]
    changes: dict[str, Float[Tensor, "d_model"]]  # by site: the new value less the old


def writes_at(model: Model, embed: Resid, place: int, edit: Edit) -> tuple[list[Written], Float[Tensor, "1 1 d_model"]]:
    """The writes of every block at one position, and the last residual there."""
    before: dict[str, Tensor] = {}

    def note(site: Site, value: Tensor) -> Tensor:
        before[site.name] = value
        return value

    writes, resid = [], embed
    for block in run(model, embed, edit=then(note, edit)):
        # At these sites an edit changes the sum itself.
        edited = [name for name in ROW_SITES if getattr(block, name) is not before[name]]
        changes = {name: at_place(place, getattr(block, name)) - at_place(place, before[name]) for name in edited}
        pattern, v = at_place(place, block.pattern), upcast(block.v[0].clone())
        writes.append(Written(at_place(place, block.z), pattern, v, at_place(place, block.mlp_post), changes))
        resid = block.resid_post[:, [place]]
        before.clear()
        del block
    return writes, resid


def at_place(place: int, x: Float[Tensor, "1 *head pos d"]) -> Float[Tensor, "*head d"]:
    """One position, copied: a view would keep all of x."""
    return upcast(x[0, ..., place, :].clone())


@torch.no_grad()
def first_lengths(model: Model, tokens: Tokens) -> tuple[Float[Tensor, "batch pos"], Float[Tensor, "batch pos"]]:
    """The lengths (L2 norms) of what stands in the stream before block 0, and of what that block adds to it."""
    embed = model.embed(tokens)
    write = upcast(model.block(0, embed).resid_post) - upcast(embed)
    return upcast(embed).norm(dim=-1), write.norm(dim=-1)


def direction_of(
    model: Model, resid: Float[Tensor, "d_model"], u: Float[Tensor, "d_model"]
) -> Float[Tensor, "d_model"]:
    """The vector that each part is multiplied with: u through the final norm, with the scale of this residual."""
    w = upcast(model.ln_final.w) * u
    return (w - w.mean()) * (resid.var(correction=0) + model.ln_final_eps).rsqrt()


def by_key(weights: Writes, written: Written, direction: Tensor) -> Float[Tensor, "head pos"]:
    """What each head of a block adds from each position: its weight there, and what the value there adds."""
    towards = (upcast(weights.W_O) @ direction).view(len(written.v), -1)
    return written.pattern * torch.einsum("hkd, hd -> hk", written.v, towards)


def parts_of(weights: Writes, written: Written, direction: Tensor, *, by_neuron: bool) -> dict[str, Tensor]:
    """The contributions of one block's parts."""
    z = written.z
    heads = (z * (upcast(weights.W_O) @ direction).view_as(z)).sum(-1)
    neurons = written.mlp_post * (upcast(weights.W_out) @ direction)
    return {
        **{f"head.{head}": value for head, value in enumerate(heads)},
        "attn_bias": upcast(weights.b_O) @ direction,
        **({f"neuron.{n}": value for n, value in enumerate(neurons)} if by_neuron else {"mlp": neurons.sum()}),
        "mlp_bias": upcast(weights.b_out) @ direction,
        **{f"{name}_edit": change @ direction for name, change in written.changes.items()},
    }

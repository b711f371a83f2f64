"""What each part of a model adds to a logit: direct logit attribution.

The residual that the final norm reads is a sum of what was written to it: the token's embedding and the position's,
each head, each MLP and each bias. The norm divides that sum by a scale which depends on all of it. With the scale held
at the value that it has, the rest is linear, and every part has a contribution of its own:

    logit = sum over parts of part @ direction + ln_final.b @ u + b_U[token],  u = W_U[:, token]
    direction = (w - mean(w)) / sqrt(variance + eps),  w = ln_final.w * u

The norm subtracts each part's mean; it is the same to subtract the direction's. The decomposition is that of Elhage et
al. 2021, "A Mathematical Framework for Transformer Circuits". A contribution is what a part writes towards the logit
directly. It is not what the logit would lose without that part: later blocks read it too, and may make up for it
(McGrath et al. 2023, arXiv 2307.15771).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..arguments import check_numbers, position_in, token_id, whole_number, whole_numbers
from ..checkpoint.tokenizer import Tokenizer
from ..model import Model
from ..ops import check_layer, upcast
from ..shapes import Tokens
from ..traces import Edit, untouched
from .writes import at_places, by_key, directions_of, parts_of, writes_at

Layers = int | Iterable[int] | None
"""The layers whose MLPs are shown neuron by neuron: one of them, several, or none."""


@dataclass(frozen=True, eq=False)
class Attribution:
    """The parts of one logit, or of the difference of two, at one position: numbers on the CPU.

    Labels: "embed", "positions"; for each block "3.head.5", "3.attn_bias", "3.mlp" (or "3.neuron.17") and "3.mlp_bias";
    "final_norm_bias", and "unembed_bias" where the model has one. What an edit changed in the stream itself is a part
    of its own, such as "3.attn_out_edit": the new value less the one it took the place of.
    """

    labels: tuple[str, ...]
    layers: tuple[int, ...]  # for each part; -1 outside the blocks
    contributions: Float[Tensor, "part"]
    logit: float  # the model's own, of token, less that of against
    position: int
    token: int
    against: int | None
    by_key: Float[Tensor, "layer head pos"]  # what each head adds from each position that it attends to
    tokens: Int[Tensor, "pos"]  # the text
    tokenizer: Tokenizer | None = None  # how the views show tokens; without one, by their ids

    @property
    def error(self) -> float:
        """The sum of all parts, less the logit: what rounding has done."""
        return float(self.contributions.sum()) - self.logit

    @property
    def by_layer(self) -> Float[Tensor, "layer"]:
        """All that each block adds: heads, MLP, biases and edits."""
        return self._in_layers("")

    @property
    def attention(self) -> Float[Tensor, "layer"]:
        """All that the attention of each block adds: heads, bias, and an edit of attn_out."""
        return self._in_layers("head.", "attn_")

    @property
    def mlp(self) -> Float[Tensor, "layer"]:
        """All that the MLP of each block adds: neurons, bias, and an edit of mlp_out."""
        return self._in_layers("mlp", "neuron.")

    @property
    def by_head(self) -> Float[Tensor, "layer head"]:
        """What each head adds. The bias of its values is in it, that of the attention's output is not."""
        return self._all("head").view(1 + max(self.layers), -1)

    @property
    def by_neuron(self) -> Float[Tensor, "*layer d_mlp"]:
        """What each neuron adds, of the MLP that was asked for; of several, with a dimension for the layer."""
        layers = {layer for layer, label in zip(self.layers, self.labels, strict=True) if ".neuron." in label}
        if not layers:
            raise AttributeError("this attribution was made without neurons: give attribute the layer of an MLP")
        found = self._all("neuron")
        return found.view(len(layers), -1) if len(layers) > 1 else found

    @property
    def by_position(self) -> Float[Tensor, "layer pos"]:
        """What attention adds from each position of the text, all heads of a layer together; without its bias.

        The sum over positions is that of the layer's heads, unless an edit has changed their z.
        """
        return self.by_key.sum(1)

    def largest(self, k: int = 10) -> list[tuple[str, float]]:
        """The k parts that add or subtract the most, and what they add."""
        order = self.contributions.abs().argsort(descending=True, stable=True)
        parts = order[: whole_number("k", k)].tolist()
        return [(self.labels[part], float(self.contributions[part])) for part in parts]

    def _in_layers(self, *kinds: str) -> Float[Tensor, "layer"]:
        """The sums of the parts of each block with names that begin like this."""
        total = torch.zeros(1 + max(self.layers), dtype=self.contributions.dtype, device="cpu")
        mine = [part for part, label in enumerate(self.labels) if label.partition(".")[2].startswith(kinds)]
        mine = [part for part in mine if self.layers[part] >= 0]
        return total.index_add(0, torch.tensor(self.layers, device="cpu")[mine], self.contributions[mine])

    def _all(self, kind: str) -> Float[Tensor, "part"]:
        return self.contributions[[f".{kind}." in label for label in self.labels]]

    def __repr__(self) -> str:
        what = f"token {self.token}" if self.against is None else f"token {self.token} less that of {self.against}"
        return (
            f"Attribution to {len(self.labels)} parts: logit {self.logit:.4f} of {what} at position {self.position}, "
            f"which the sum misses by {self.error:+.1e}"
        )


@torch.no_grad()
def attribute(
    model: Model,
    tokens: Tokens,
    *,
    position: int = -1,
    token: int | None = None,
    against: int | None = None,
    neurons: Layers = None,
    edit: Edit = untouched,
    tokenizer: Tokenizer | None = None,
) -> Attribution:
    """What each part adds to a logit of the next token, in one text of shape [1, pos].

    position: where, counted from the end if negative; the model sees the whole text before it.
    token: by default the model's own best.
    against: a token to subtract. The parts are then those of the difference of two logits.
    neurons: a layer, or several, to show the MLP there neuron by neuron.
    edit: as for `run`. The parts are then those of the edited pass.

    Nothing is folded or corrected: numbers are of the model's dtype (in half precision float32), and `error` says by
    how much their sum misses the logit. In half precision that is much, since the stream is rounded at every sum.
    Raises ValueError for a position, token or layer that does not exist, and for a logit that is not finite.

    >>> model, tokenizer = minilens.load("tales-gpt2")
    >>> parts = minilens.attribute(model, tokenizer.encode("Once upon a time"), neurons=7)
    >>> parts.by_layer.shape, parts.by_head.shape, parts.by_neuron.shape
    (torch.Size([8]), torch.Size([8, 8]), torch.Size([1024]))
    >>> abs(parts.error) < 1e-4
    True
    """
    check_numbers(model)
    model.embed(tokens)  # refuses what is no text
    if len(tokens) != 1:
        raise ValueError(f"attribute reads one text, of shape [1, pos]; got {len(tokens)} of them")
    (found,) = attributed(model, tokens, [tokens.shape[1]], position, [token], [against], neurons, edit, tokenizer)
    return found


@torch.no_grad()
def attributed(
    model: Model,
    tokens: Tokens,
    lengths: Sequence[int],
    position: int,
    token: Sequence[int | None],
    against: Sequence[int | None],
    neurons: Layers,
    edit: Edit,
    tokenizer: Tokenizer | None,
) -> list[Attribution]:
    """`attribute` of texts of these lengths, which are padded with tokens that the model has, all in one pass."""
    n_texts, d_vocab = len(tokens), model.W_U.shape[1]
    places = torch.tensor([position_in("the text has", position, n) for n in lengths], device=tokens.device)
    token = [None if each is None else token_id("token", each, d_vocab) for each in token]
    against = [None if each is None else token_id("against", each, d_vocab) for each in against]
    split = _layers(neurons, model.n_layers)

    embed = model.embed(tokens)
    places = places.to(embed.device)
    writes, resid = writes_at(model, embed, places, edit)
    logits = model.unembed(resid)[:, 0]
    best = logits.argmax(-1).tolist()
    ids = [
        _Ids(its if chosen is None else chosen, other) for its, chosen, other in zip(best, token, against, strict=True)
    ]
    found = [float(each.of(row)) for each, row in zip(ids, logits, strict=True)]
    for place, logit in zip(places.tolist(), found, strict=True):
        if not isfinite(logit):
            raise ValueError(
                f"the logit at position {place} is not finite: there is a NaN or an infinity in the weights, or the "
                f"numbers are too large for {embed.dtype}; if so, load it in a wider dtype, torch.float32 or "
                "torch.float64"
            )
    u = torch.stack([each.of(model.W_U) for each in ids])
    directions = directions_of(model, upcast(resid[:, 0]), u)

    positions = upcast(model.positions(tokens.shape[1])[places])
    parts = {
        "embed": ((at_places(places, embed) - positions) * directions).sum(-1),
        "positions": (positions * directions).sum(-1),
    }
    for layer, (weights, written) in enumerate(zip(model.blocks, writes, strict=True)):
        of_block = parts_of(weights, written, directions, by_neuron=layer in split)
        parts |= {f"{layer}.{name}": value for name, value in of_block.items()}
    parts["final_norm_bias"] = u @ upcast(model.ln_final.b)
    if model.b_U is not None:
        parts["unembed_bias"] = torch.stack([each.of(model.b_U) for each in ids])
    labels = tuple(parts)
    layers = tuple(int(label.split(".")[0]) if "." in label else -1 for label in parts)
    contributions = torch.stack([*parts.values()], 1).cpu()
    keys = [by_key(weights, written, directions) for weights, written in zip(model.blocks, writes, strict=True)]
    of_keys, texts = torch.stack(keys, 1).cpu(), tokens.cpu()
    return [
        Attribution(
            labels=labels,
            layers=layers,
            contributions=contributions[n].clone(),
            logit=found[n],
            position=int(places[n]),
            token=ids[n].token,
            against=against[n],
            by_key=of_keys[n, ..., : lengths[n]].clone(),
            tokens=texts[n, : lengths[n]].clone(),
            tokenizer=tokenizer,
        )
        for n in range(n_texts)
    ]


def _layers(neurons: Layers, n_layers: int) -> list[int]:
    found = [] if neurons is None else whole_numbers("layer", neurons) if isinstance(neurons, Iterable) else [neurons]
    for layer in found:
        check_layer(layer, n_layers)
    return found


class _Ids(NamedTuple):
    """The token of the logit, and the one that is subtracted."""

    token: int
    against: int | None

    def of(self, x: Float[Tensor, "*d d_vocab"]) -> Float[Tensor, "*d"]:
        value = upcast(x[..., self.token])
        return value if self.against is None else value - upcast(x[..., self.against])

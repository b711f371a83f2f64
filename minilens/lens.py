"""The logit lens: decode the residual stream of every layer as if it were the last one's.

nostalgebraist 2020, "interpreting GPT: the logit lens"; the extended decoders and the rows between attention and MLP
are of the 2021 extension. The last row is always the model's own output, bit for bit.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import NamedTuple

import torch
from torch import Tensor

from .edits import then
from .model import Model, check_edit, run
from .ops import LayerNorm, check_layer
from .shapes import Logits, Resid, Tokens
from .traces import RESID_SITES, Edit, Site, editable, untouched

NORMS = ("final", "plain")
EMBED = Site(-1, "embed")  # the stream entering block 0


class LensRow(NamedTuple):
    """One residual, decoded."""

    label: str  # "embed", or layer and site, such as "3.resid_post"
    layer: int  # -1 for embed
    logits: Logits


def lens_rows(
    model: Model,
    tokens: Tokens,
    *,
    decoder: str = "final",
    norm: str = "final",
    centre: bool = False,
    sites: Sequence[str] = ("resid_post",),
    layers: Iterable[int] | None = None,
    transport: Edit = untouched,
    edit: Edit = untouched,
) -> Iterator[LensRow]:
    """Decode the stream entering block 0, then that at each of the sites, a row of logits at a time.

    The first row is always `embed`, and the last one the stream that enters the decoder: its logits are the model's
    own, bit for bit, whatever norm, centre and transport say of the others.

    decoder: "final", the final norm and the unembedding; "block:K", the last K blocks before them as well; "mlp", the
    last block's MLP before them. Residuals inside the decoder have no row. norm: "final", the model's own with its gain
    and bias (2021), or "plain", without them (2020). centre: subtract from each row its mean over the positions, which
    makes every position depend on all. sites: any of resid_pre, resid_mid and resid_post. layers: the blocks that get
    rows, by default all. transport: a function of (Site, residual) that gives the residual to decode in its place; the
    site of the first row is (-1, "embed"). edit: as for `run`; the lens is then that of the edited model, and in
    the blocks of the decoder, or in its MLP, every row is edited. Raises ValueError for what does not exist.
    """
    lens = lens_of(model, tokens, decoder, norm, centre, sites, layers, transport, edit)
    return (LensRow(_label(site), site.layer, reader.unembed(resid)) for site, reader, resid in lens.rows())


@dataclass(frozen=True)
class Lens:
    """Which residuals get a row, and what reads them."""

    model: Model
    embed: Resid
    sites: tuple[Site, ...]  # in order; the last is what the model's own decoder reads
    edit: Edit  # of the model
    start: int  # the decoder: the blocks from here on, with this edit
    decoding: Edit
    reader: Model  # what decodes all rows but the last: the model, perhaps with another final norm
    transport: Edit

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(map(_label, self.sites))

    def rows(self) -> Iterator[tuple[Site, Model, Resid]]:
        """Each row's site, and what `read` makes of its residual."""
        for site, resid in residuals(self.model, self.embed, self.sites, self.edit):
            yield site, *self.read(site, resid)

    def read(self, site: Site, resid: Resid) -> tuple[Model, Resid]:
        """The model that decodes this row, and the residual that its final norm gets."""
        is_last = site == self.sites[-1]
        reader = self.model if is_last else self.reader
        resid = resid if is_last else editable(self.transport, site.layer)(site.name, resid)
        for block in run(reader, resid, start=self.start, edit=self.decoding):
            resid = block.resid_post
        return reader, resid


def residuals(
    model: Model, embed: Resid, sites: Collection[Site], edit: Edit = untouched
) -> Iterator[tuple[Site, Resid]]:
    """The stream entering block 0, then the residuals at the sites, in order: one forward pass, up to the last."""
    yield EMBED, embed
    for block in run(model, embed, stop=1 + max(site.layer for site in sites), edit=edit):
        found = [(Site(block.layer, name), getattr(block, name)) for name in RESID_SITES]
        del block  # and with it all that is not needed while the rows are read
        yield from ((site, resid) for site, resid in found if site in sites)


def lens_of(
    model: Model,
    tokens: Tokens,
    decoder: str,
    norm: str,
    centre: bool,
    sites: Sequence[str],
    layers: Iterable[int] | None,
    transport: Edit = untouched,
    edit: Edit = untouched,
) -> Lens:
    """The rows and their reader; what does not exist is refused at once."""
    n_layers = model.n_layers
    last, start = _decoder(decoder, n_layers)
    check_edit(edit, 0, n_layers)
    sites = (sites,) if isinstance(sites, str) else sites
    layers = range(n_layers) if layers is None else [index(layer) for layer in layers]
    for name in sites:
        if name not in RESID_SITES:
            raise ValueError(f'the lens has no rows for "{name}"; it has them for {", ".join(RESID_SITES)}')
    for layer in layers:
        check_layer(layer, n_layers)
    if norm not in NORMS:
        raise ValueError(f'there is no norm "{norm}"; it must be "final" or "plain"')
    embed = model.embed(tokens)
    if centre and tokens.shape[1] == 1:
        raise ValueError("centre subtracts the mean over the positions, which leaves nothing of a text of one token")

    reader = model
    if norm == "plain":
        ones = embed.new_ones(embed.shape[-1])
        reader = replace(model, ln_final=LayerNorm(ones, torch.zeros_like(ones)))  # type: ignore[type-var]
    wanted = {Site(layer, name) for layer in layers for name in sites} | {last}
    order = [Site(layer, name) for layer in range(n_layers) for name in RESID_SITES]
    rows = [site for site in order[: order.index(last) + 1] if site in wanted] if last in order else []
    others = EMBED, *rows[:-1]
    for site in getattr(transport, "sites", ()):
        if site not in others:
            names = ", ".join(map(_label, others))
            raise ValueError(f"the transport of {_label(site)} matches no row that is transported; those are {names}")
    transport = then(_centred, transport) if centre else transport

    def model_edit(site: Site, value: Tensor) -> Tensor:  # the same edit, for parts of the model: checked above
        return edit(site, value)

    def mlp_edit(site: Site, value: Tensor) -> Tensor:
        """The last block from resid_mid on: its attention writes nothing, and what comes before is not edited again."""
        if site.name in ("mlp_post", "mlp_out", "resid_post"):
            return edit(site, value)
        return torch.zeros_like(value) if site.name == "attn_out" else value

    decoding = mlp_edit if decoder == "mlp" else model_edit
    return Lens(model, embed, (EMBED, *rows), model_edit, start, decoding, reader, transport)


def _centred(site: Site, resid: Resid) -> Resid:
    return resid - resid.mean(1, keepdim=True)


def _label(site: Site) -> str:
    return "embed" if site == EMBED else f"{site.layer}.{site.name}"


def _decoder(decoder: str, n_layers: int) -> tuple[Site, int]:
    """The residual that a decoder reads in the model itself, and the first block that belongs to it."""
    if decoder == "final":
        return Site(n_layers - 1, "resid_post"), n_layers
    if decoder == "mlp":
        return Site(n_layers - 1, "resid_mid"), n_layers - 1
    kind, _, count = decoder.partition(":")
    if kind != "block" or not re.fullmatch("[0-9]{1,9}", count):
        raise ValueError(
            f'there is no decoder "{decoder}": it must be "final", "block:K" for the last K blocks, or "mlp"'
        )
    if not 1 <= int(count) <= n_layers:
        raise ValueError(
            f'the decoder "{decoder}" does not fit: this model has {n_layers} blocks, so K is 1 to {n_layers}'
        )
    return Site(n_layers - int(count) - 1, "resid_post"), n_layers - int(count)

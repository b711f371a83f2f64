"""The logit lens: decode the residual stream of every layer as if it were the last one's.

nostalgebraist 2020, "interpreting GPT: the logit lens"; the extended decoders and the rows between attention and MLP
are of the 2021 extension. The last row is always the model's own output, bit for bit.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .arguments import EDIT, check_function, check_model, names, quoted, whole_numbers
from .edits import then
from .model import Model, check_edit, run
from .ops import LayerNorm, check_layer
from .shapes import Logits, Resid, Tokens, shapes_of
from .traces import ROW_SITES, Edit, Site, editable, untouched

NORMS = ("final", "plain")
EMBED = Site(-1, "embed")  # the stream entering block 0


class LensRow(NamedTuple):
    """One residual, decoded."""

    label: str  # "embed", or layer and site, such as "3.resid_post"
    layer: int  # -1 for embed
    logits: Logits

    def __repr__(self) -> str:
        return shapes_of(self)


@dataclass(frozen=True)
class Lens:
    """The options of a lens: which residuals get a row, and what decodes them.

    decoder: "final", the final norm and the unembedding; "block:K", the last K blocks before them as well; "mlp", the
    last block's MLP before them. Residuals inside the decoder have no row.
    norm: "final", the model's own with its gain and bias (2021), or "plain", without them (2020).
    centre: subtract from each row its mean over the positions. Every position then depends on all.
    sites: any of resid_pre, resid_mid and resid_post; and attn_out and mlp_out, what a part writes, which is read as if
    it were a residual of its own.
    layers: the blocks that get rows, by default all.
    transport: a function of (Site, residual) that gives the residual to decode in its place; the site of the first row
    is (-1, "embed").

    The last row is the stream that enters the decoder: norm, centre and transport leave it alone. Raises ValueError for
    an option that no model has. `of` raises it for a layer or decoder that its model does not have.
    """

    decoder: str = "final"
    norm: str = "final"
    centre: bool = False
    sites: str | Iterable[str] = ("resid_post",)  # kept as a tuple, and so are layers
    layers: int | Iterable[int] | None = None
    transport: Edit = untouched

    def __post_init__(self) -> None:
        if not isinstance(self.decoder, str) or not re.fullmatch("final|mlp|block:[0-9]{1,9}", self.decoder):
            raise ValueError(
                f"there is no decoder {quoted(self.decoder)}: "
                'it must be "final", "block:K" for the last K blocks, or "mlp"'
            )
        if not isinstance(self.norm, str) or self.norm not in NORMS:
            raise ValueError(f'there is no norm {quoted(self.norm)}; it must be "final" or "plain"')
        if not isinstance(self.centre, bool):
            raise ValueError(f"centre must be True or False; got {quoted(self.centre)}")
        check_function("transport", self.transport, EDIT)
        object.__setattr__(self, "sites", names("sites", self.sites))
        for name in self.sites:
            if name not in ROW_SITES:
                raise ValueError(f"the lens has no rows for {quoted(name)}; it has them for {', '.join(ROW_SITES)}")
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(whole_numbers("layers", self.layers)))

    def of(self, model: Model, tokens: Tokens, edit: Edit = untouched) -> "Readout":
        """This lens on a model and a text. Raises ValueError for a layer, decoder or token that is not there."""
        check_model(model)
        last, start = self._end_of_rows(model.n_layers)
        check_edit(edit, 0, model.n_layers)
        sites = (EMBED, *self._sites_up_to(last, model.n_layers))
        self._check_transport(model, sites[:-1])
        embed = model.embed(tokens)
        if self.centre and tokens.shape[1] == 1:
            raise ValueError(
                "centre subtracts the mean over the positions, which leaves nothing of a text of one token"
            )
        return Readout(
            model=model,
            embed=embed,
            sites=sites,
            edit=_anywhere(edit),
            start=start,
            decoding=_from_mlp_on(edit) if self.decoder == "mlp" else _anywhere(edit),
            reader=_with_plain_norm(model) if self.norm == "plain" else model,
            transport=then(_centred, self.transport) if self.centre else self.transport,
        )

    def _end_of_rows(self, n_layers: int) -> tuple[Site, int]:
        """The residual that the decoder reads in the model itself, and the first block that belongs to the decoder."""
        if self.decoder == "final":
            return Site(n_layers - 1, "resid_post"), n_layers
        if self.decoder == "mlp":
            return Site(n_layers - 1, "resid_mid"), n_layers - 1
        count = int(self.decoder.removeprefix("block:"))
        if not 1 <= count <= n_layers:
            raise ValueError(
                f'the decoder "{self.decoder}" does not fit: this model has {n_layers} blocks, so K is 1 to {n_layers}'
            )
        return Site(n_layers - count - 1, "resid_post"), n_layers - count

    def _sites_up_to(self, last: Site, n_layers: int) -> list[Site]:
        """The sites that get a row, in the order of the pass; none where the decoder reads the embedding itself."""
        layers = range(n_layers) if self.layers is None else whole_numbers("layers", self.layers)
        for layer in layers:
            check_layer(layer, n_layers)
        wanted = {Site(layer, name) for layer in layers for name in self.sites} | {last}
        order = [Site(layer, name) for layer in range(n_layers) for name in ROW_SITES]
        return [site for site in order[: order.index(last) + 1] if site in wanted] if last in order else []

    def _check_transport(self, model: Model, sites: tuple[Site, ...]) -> None:
        if check_fits := getattr(self.transport, "check_fits", None):  # a learned lens is for one model
            check_fits(self, model, sites)
        for site in getattr(self.transport, "sites", ()):
            if site not in sites:
                raise ValueError(
                    f"the transport of {label(site)} matches no row that is transported; "
                    f"those are {', '.join(map(label, sites))}"
                )


@dataclass(frozen=True, eq=False)
class Readout:
    """A lens on one model and text: the rows that it has, and what reads them."""

    model: Model
    embed: Resid
    sites: tuple[Site, ...]  # in order; the last is what the model's own decoder reads
    edit: Edit  # of the model
    start: int  # the decoder: the blocks from here on, with this edit
    decoding: Edit
    reader: Model  # what decodes all rows but the last: the model, perhaps with another final norm
    transport: Edit

    def __repr__(self) -> str:
        return shapes_of(self)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(map(label, self.sites))

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


def lens_rows(model: Model, tokens: Tokens, *, edit: Edit = untouched, **options: Any) -> Iterator[LensRow]:
    """Decode the stream entering block 0, then that at each of the sites, a row of logits at a time.

    The first row is always `embed`, and the last one the stream that enters the decoder: its logits are the model's
    own, bit for bit, whatever norm, centre and transport say of the others.

    options: decoder, norm, centre, sites, layers and transport, as in `Lens`.
    edit: as for `run`. The lens is then that of the edited model; in the blocks of the decoder, or in its MLP, every
    row is edited.

    Raises ValueError as `Lens` and `run` do.
    """
    readout = Lens(**options).of(model, tokens, edit)
    return (LensRow(label(site), site.layer, reader.unembed(resid)) for site, reader, resid in readout.rows())


def residuals(
    model: Model, embed: Resid, sites: Collection[Site], edit: Edit = untouched
) -> Iterator[tuple[Site, Resid]]:
    """The stream entering block 0, then the residuals at the sites, in order: one forward pass, up to the last."""
    yield EMBED, embed
    for block in run(model, embed, stop=1 + max(site.layer for site in sites), edit=edit):
        found = [(site, getattr(block, name)) for name in ROW_SITES if (site := Site(block.layer, name)) in sites]
        del block  # and with it all that is not needed while the rows are read
        yield from found


def label(site: Site) -> str:
    """What a row is called: "embed", or layer and site, such as "3.resid_post"."""
    return "embed" if site == EMBED else f"{site.layer}.{site.name}"


def _anywhere(edit: Edit) -> Edit:
    """The same edit for some of the blocks, where `run` would miss the sites of the others."""
    return lambda site, value: edit(site, value)


def _from_mlp_on(edit: Edit) -> Edit:
    """The edit of the last block from resid_mid on: its attention writes nothing, and what comes before stays."""

    def from_mlp_on(site: Site, value: Tensor) -> Tensor:
        if site.name in ("mlp_post", "mlp_out", "resid_post"):
            return edit(site, value)
        return torch.zeros_like(value) if site.name == "attn_out" else value

    return from_mlp_on


def _with_plain_norm(model: Model) -> Model:
    """The model with a final norm without gain and bias."""
    ones = torch.ones_like(model.ln_final.w)
    return replace(model, ln_final=LayerNorm(ones, torch.zeros_like(ones)))  # type: ignore[type-var]


def _centred(site: Site, resid: Resid) -> Resid:
    return resid - resid.mean(1, keepdim=True)

"""--zero, --mean, --patch and --from: the edits that the command line names."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from ..checkpoint.tokenizer import Tokenizer
from ..edits import mean, patch, then, zero
from ..model import Model, run
from ..ops import check_layer
from ..traces import Edit, untouched
from .inputs import Opening
from .options import option


class Where(NamedTuple):
    """The place that an edit on the command line names."""

    layer: int
    site: str
    heads: list[int] | None
    positions: list[int] | None


@dataclass(frozen=True, kw_only=True)
class Edits:
    """Values to replace while the model runs. Raises ValueError for what is no place, and for a text without a use."""

    zero: list[str] = option(
        action="append",
        default=[],
        metavar="PLACE",
        help="put zeros in place of a value, such as 5.attn_out or 5.z:0,3@-1 (two heads, the last position)",
    )
    mean: list[str] = option(
        action="append",
        default=[],
        metavar="PLACE",
        help="put its mean over the text of --from in place of a value",
    )
    patch: list[str] = option(
        action="append",
        default=[],
        metavar="PLACE",
        help="put the value of the text of --from in its place; @-1 is the last position of either",
    )
    source: str | None = option("--from", metavar="TEXT", help="another text, for --mean and --patch")

    def __post_init__(self) -> None:
        needy = "--mean" if self.mean else "--patch" if self.patch else ""
        if needy and self.source is None:
            raise ValueError(f"{needy} needs --from, the text that its values come from")
        if self.source is not None and not needy:
            raise ValueError("--from is the text of --patch and --mean, and there is none of them")
        for place in (*self.zero, *self.mean, *self.patch):
            named_place(place)

    @property
    def names(self) -> list[str]:
        """The edits in words, so that nobody takes what comes out for the model's own."""
        source = "" if self.source is None else f" from {self.source!r}"
        return [
            *(f"zero {place}" for place in self.zero),
            *(f"mean {place}{source}" for place in self.mean),
            *(f"patch {place}{source}" for place in self.patch),
        ]

    def edit(self, model: Model, tokenizer: Tokenizer | None, opening: Opening) -> Edit:
        """All of them as one: first zeros, then means, then patches."""
        edits = [zero(layer, site, positions=at, heads=heads) for layer, site, heads, at in map(named_place, self.zero)]
        if self.source is not None:
            if tokenizer is None:
                raise ValueError("the model has no tokenizer that minilens reads, so it cannot read the text of --from")
            named = ((mean, self.mean), (patch, self.patch))
            wanted = [(builder, named_place(text)) for builder, texts in named for text in texts]
            for _, where in wanted:
                check_layer(where.layer, model.n_layers)
            try:
                source = model.embed(tokenizer.encode(opening.of(self.source, tokenizer)))
            except ValueError as error:
                raise ValueError(f"the text of --from cannot be read: {error}") from error
            for block in run(model, source, stop=1 + max(where.layer for _, where in wanted)):
                for builder, (layer, site, heads, at) in wanted:
                    if layer == block.layer:
                        edits.append(builder(block, site, positions=at, heads=heads))
        return then(*edits) if edits else untouched


def named_place(text: str) -> Where:
    """5.attn_out, 5.z:0,3 for heads, 3.resid_post@-1 for positions, or both, heads first."""
    found = re.fullmatch(r"([0-9]{1,9})\.(\w+)(?::([-0-9,]+))?(?:@([-0-9,]+))?", text, re.ASCII)
    try:
        layer, site, *lists = found.groups() if found else ("",) * 4
        heads, positions = ([int(n) for n in numbers.split(",")] if numbers else None for numbers in lists)
        return Where(int(layer), site, heads, positions)
    except ValueError as error:
        raise ValueError(
            f"an edit is named like 5.attn_out, 5.z:0,3 (heads) or 3.resid_post@-1 (positions); got {text!r}"
        ) from error

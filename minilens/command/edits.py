"""--zero, --mean, --patch and --from: the edits that the command line names."""

import argparse
import re
from typing import NamedTuple

from ..checkpoint.tokenizer import Tokenizer
from ..edits import mean, patch, then, zero
from ..model import Model, run
from ..ops import check_layer
from ..traces import Edit, untouched


def add_edits(parser: argparse.ArgumentParser) -> None:
    """Values to replace while the model runs."""
    for option, what in (
        ("--zero", "put zeros in place of a value, such as 5.attn_out or 5.z:0,3@-1 (two heads, the last position)"),
        ("--mean", "put its mean over the text of --from in place of a value"),
        ("--patch", "put the value of the text of --from in its place; @-1 is the last position of either"),
    ):
        parser.add_argument(option, action="append", default=[], metavar="PLACE", help=what)
    parser.add_argument("--from", dest="source", metavar="TEXT", help="another text, for --mean and --patch")


class Where(NamedTuple):
    """The place that an edit on the command line names."""

    layer: int
    site: str
    heads: list[int] | None
    positions: list[int] | None


def check_edits(args: argparse.Namespace) -> None:
    """Refuse edits without a text that they need, such a text without edits, and what is no place."""
    needy = [option for option, named in (("--mean", args.mean), ("--patch", args.patch)) if named]
    if needy and args.source is None:
        raise ValueError(f"{needy[0]} needs --from, the text that its values come from")
    if args.source is not None and not needy:
        raise ValueError("--from is the text of --patch and --mean, and there is none of them")
    for place in (*args.zero, *args.mean, *args.patch):
        _where(place)


def named_edits(args: argparse.Namespace) -> list[str]:
    """The edits in words, so that nobody takes what comes out for the model's own."""
    source = "" if args.source is None else f" from {args.source!r}"
    edits = {"zero": "", "mean": source, "patch": source}
    return [f"{name} {place}{text}" for name, text in edits.items() for place in getattr(args, name)]


def given_edit(args: argparse.Namespace, model: Model, tokenizer: Tokenizer | None) -> Edit:
    """All edits of the command line as one: first zeros, then means, then patches."""
    edits = [zero(layer, site, positions=at, heads=heads) for layer, site, heads, at in map(_where, args.zero)]
    if args.source is not None:
        if tokenizer is None:
            raise ValueError(f"{args.model} has no tokenizer files, so it cannot read the text of --from")
        wanted = [(mean, _where(text)) for text in args.mean] + [(patch, _where(text)) for text in args.patch]
        for _, where in wanted:
            check_layer(where.layer, model.n_layers)
        try:
            source = model.embed(tokenizer.encode(args.source))
        except ValueError as error:
            raise ValueError(f"the text of --from cannot be read: {error}") from error
        for block in run(model, source, stop=1 + max(where.layer for _, where in wanted)):
            for builder, (layer, site, heads, at) in wanted:
                if layer == block.layer:
                    edits.append(builder(block, site, positions=at, heads=heads))
    return then(*edits) if edits else untouched


def _where(text: str) -> Where:
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

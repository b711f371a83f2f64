"""`minilens walk`: how a model computes, line by line with its source."""

import argparse

from ..loading import load
from ..model import run
from ..ops import check_layer
from .inputs import Subparsers, add_source, given_text, given_tokens


def add_to(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("walk", help="how one block computes, line by line with its source")
    parser.set_defaults(command=walk)
    add_source(parser)
    parser.add_argument("--layer", type=int, default=0, help="the block, from 0 (default: %(default)s)")
    parser.add_argument(
        "--position", type=int, default=-1, help="whose numbers to show; -1 is the last (default: %(default)s)"
    )
    parser.add_argument("--head", type=int, default=0, help="the head of attention, from 0 (default: %(default)s)")


def walk(args: argparse.Namespace) -> None:
    """Show how one block computes, a line of its source at a time."""
    from rich.console import Console

    from ..views.walk import walk_view

    text = given_text(args)
    model, tokenizer = load(args.model, revision=args.revision)
    check_layer(args.layer, model.n_layers)
    tokens = given_tokens(args, text, tokenizer)
    resid = model.embed(tokens)
    for block in run(model, resid, stop=args.layer):
        resid = block.resid_post
    block = model.block(args.layer, resid)
    console = Console(highlight=False)
    place = {"position": args.position, "head": args.head}
    console.print(walk_view(model, tokens, block, **place, tokenizer=tokenizer, width=console.width))

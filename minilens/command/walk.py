"""`minilens walk`: how a model computes, line by line with its source."""

import argparse

from ..loading import load
from .inputs import Subparsers, add_source, given_text, given_tokens


def add_to(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("walk", help="how the model computes, line by line with its source")
    parser.set_defaults(command=walk)
    add_source(parser)
    parser.add_argument(
        "--layer", type=int, default=0, help="the block to show line by line, from 0 (default: %(default)s)"
    )
    parser.add_argument(
        "--position", type=int, default=-1, help="whose numbers to show; -1 is the last (default: %(default)s)"
    )
    parser.add_argument("--head", type=int, default=0, help="the head of attention, from 0 (default: %(default)s)")


def walk(args: argparse.Namespace) -> None:
    """Show how the model computes, a line of its source at a time."""
    from rich.console import Console

    from ..views.walk import walk_view

    text = given_text(args)
    model, tokenizer = load(args.model, revision=args.revision, ignoring=args.ignore_key)
    tokens = given_tokens(args, text, tokenizer)
    console = Console(highlight=False)
    place = {"position": args.position, "head": args.head}
    console.print(walk_view(model, tokens, args.layer, **place, tokenizer=tokenizer, width=console.width))

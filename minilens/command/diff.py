"""`minilens diff`: how the forward passes of two families differ, and why."""

import argparse

from .inputs import Subparsers


def add_to(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("diff", help="how two families compute: the lines that differ, and why")
    parser.set_defaults(command=diff)
    parser.add_argument("first", metavar="FAMILY", help="gpt2, gpt_neo or ctrl")
    parser.add_argument("second", metavar="FAMILY", help="another of them")


def diff(args: argparse.Namespace) -> None:
    """Print the lines that differ, with the reasons of the docstrings."""
    from rich.console import Console

    from ..views.diff import diff_view

    Console(highlight=False).print(diff_view(args.first, args.second))

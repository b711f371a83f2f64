"""`minilens models`: the models that are bundled or in the cache of the Hub."""

import argparse

from ..checkpoint.hub import bundled
from ..loading import cached
from .inputs import Subparsers


def add_to(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("models", help="the models that are bundled or in the Hub's cache")
    parser.set_defaults(command=models)


def models(args: argparse.Namespace) -> None:
    """Print the models that are there."""
    rows = [(name, "bundled") for name in bundled()] + [(name, "cached") for name in cached()]
    width = max((len(name) for name, _ in rows), default=0)
    for name, where in rows:
        print(f"{name:{width}}  {where}")

"""`minilens verify`: whether a checkpoint is what it says."""

import argparse
import json
import sys
from functools import partial

from ..checks.verify import verify as verify_of
from .inputs import Subparsers, add_ignored


def add_to(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("verify", help="whether a checkpoint is what it says, and is computed rightly")
    parser.set_defaults(command=verify)
    parser.add_argument("model", metavar="MODEL", help="a bundled model, a folder or a Hub repository")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub repository")
    parser.add_argument(
        "--as",
        dest="known_as",
        metavar="REPOSITORY",
        help="the repository on the Hub whose published outputs the model should give",
    )
    add_ignored(parser)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def verify(args: argparse.Namespace) -> int:
    """Check a checkpoint part by part; 1 where anything is wrong."""
    from rich.console import Console
    from rich.progress import Progress

    from ..views.verify import verify_record, verify_view

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        each = partial(progress.track, description="tensors")
        report = verify_of(
            args.model, revision=args.revision, known_as=args.known_as, ignoring=args.ignore_key, each=each
        )
    if args.json:
        json.dump(verify_record(report), sys.stdout, indent=1)
        print()
    else:
        Console(highlight=False).print(verify_view(report))
    return 1 if report.faults else 0

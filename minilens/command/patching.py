"""`minilens patching`: what the values of one run bring back in another."""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

from ..instruments.patching import log_probability, logit_difference
from ..instruments.patching import patching as patching_of
from ..loading import load
from ..traces import HEAD_SITES, SITES
from .inputs import Subparsers, add_model, given_pair, named_token, words
from .outputs import FIGURES, add_figures, check_files, one_output


def add_to(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("patching", help="what the values of one run bring back in another")
    parser.set_defaults(command=patching)
    parser.add_argument("clean", help="the text whose values are taken")
    parser.add_argument("corrupt", help="the text they are put into: as many tokens, and some of them others")
    parser.add_argument(
        "--right", required=True, metavar="TOKEN", help='the token that the clean text calls for, such as " Sue"'
    )
    parser.add_argument(
        "--wrong",
        metavar="TOKEN",
        help="the one that the corrupt text calls for; the metric is the difference of their logits, and without "
        "--wrong the log-probability of --right",
    )
    parser.add_argument(
        "--sites",
        help=f"values to put in, with commas, of {', '.join(SITES)} (default: resid_pre,attn_out,mlp_out; by head z); "
        f"by head {', '.join(HEAD_SITES)}",
    )
    parser.add_argument("--by", default="position", help='"position" or "head" (default: %(default)s)')
    parser.add_argument(
        "--position", type=int, default=-1, help="where the metric is taken; -1 is the last (default: %(default)s)"
    )
    add_model(parser)
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the grids as a page")
    add_figures(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")


def patching(args: argparse.Namespace) -> None:
    """Put the values of one run into another, one at a time, and show how much of the metric each brings back."""
    figures = {kind: getattr(args, kind) for kind in FIGURES if getattr(args, kind)}
    one_output({"--json": args.json, "--html": args.html}, figures)
    check_files(args, figures)
    if figures:
        from ..views.patching_figure import patching_figure
        from ..views.plots import save_figure
    from rich.console import Console
    from rich.progress import Progress

    from ..views.tokens import text_label, token_label

    model, tokenizer = load(args.model, revision=args.revision, ignoring=args.ignore_key)
    clean, corrupt = given_pair(args, tokenizer)
    given = {option: text for option in ("right", "wrong") if (text := getattr(args, option)) is not None}
    named = {option: named_token(f"--{option}", text, tokenizer) for option, text in given.items()}
    for option, token in named.items():
        if token >= model.W_U.shape[1]:
            raise ValueError(f"--{option}: token id {token} does not exist: they go from 0 to {model.W_U.shape[1] - 1}")
    labels = [token_label(tokenizer, token) for token in named.values()]
    if "wrong" in named:
        metric, asked = logit_difference(*named.values()), "logit of {} less that of {}".format(*labels)
    else:
        metric, asked = log_probability(*named.values()), "log-probability of {}".format(*labels)
    default = "z" if args.by == "head" else "resid_pre,attn_out,mlp_out"
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        found = patching_of(
            model,
            clean,
            corrupt,
            metric,
            sites=words(default if args.sites is None else args.sites),
            by=args.by,
            position=args.position,
            tokenizer=tokenizer,
            each=partial(progress.track, description="patching"),
        )
    position = args.position % clean.shape[1]
    title = f"{text_label(args.model)}: {asked}, at position {position}"
    if args.json:
        from ..views.records import patching_record, token_record

        tokens = {option: token_record(tokenizer, token) for option, token in named.items()}
        record = {"model": args.model, "family": model.family, "position": position, **tokens, **patching_record(found)}
        json.dump(record, sys.stdout, indent=1)
        print()
    elif args.html:
        from ..views.patching import patching_page

        args.html.write_text(patching_page(found, title=title), encoding="utf-8")
    elif figures:
        figure = patching_figure(found, title=title)
        for path in figures.values():
            save_figure(path, figure)
    else:
        from ..views.patching import patching_view

        console = Console(highlight=False)
        console.print(patching_view(found, title=title, width=console.width))

"""`minilens study`: the known experiments of the logit lens, as a report."""

import argparse
import csv
import sys
from functools import partial
from pathlib import Path

from ..checkpoint.hub import bundled
from ..checkpoint.tokenizer import Tokenizer
from ..loading import load
from ..model import Model
from .inputs import DEFAULT_MODEL, Subparsers, add_ignored, read_text
from .outputs import check_new, say


def add_to(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("study", help="the known experiments of the logit lens on a model, as a report")
    parser.set_defaults(command=study)
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help=f"a bundled model, a folder or a Hub repository ({DEFAULT_MODEL})"
    )
    parser.add_argument(
        "--compare", action="store_true", help="several models in one report: those named, or else all bundled ones"
    )
    parser.add_argument("--out", type=Path, default=Path("study"), help="the folder to write to (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace a report that is there")
    parser.add_argument("--file", type=Path, help="a passage to read in place of the built-in one")
    parser.add_argument("--word", help="the rare word to follow; one token of the model's vocabulary")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub repository")
    add_ignored(parser)


def study(args: argparse.Namespace) -> None:
    """Run the known experiments on one model or several, print the verdicts, and write the report."""
    names = list(args.models or (bundled() if args.compare else [DEFAULT_MODEL]))
    if len(names) > 1 and args.revision:
        raise ValueError("--revision is for one model")
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    from ..study.experiments import PASSAGE
    from ..study.experiments import study as study_of
    from ..views.plots import save_figure
    from ..views.study_report import overview, study_lines, study_report, verdict_tables
    from ..views.tokens import text_label

    page, curves, numbers = (args.out / name for name in ("report.html", "curves.png", "numbers.csv"))
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"{args.out} is not a folder: give another name with --out")
    if not args.out.parent.is_dir():
        raise ValueError(f"{args.out} cannot be made: there is no folder {args.out.parent}")
    for path in (page, curves, numbers) if args.out.exists() else ():
        check_new(path, args.overwrite)
    passage = PASSAGE if args.file is None else read_text(args.file)

    def loaded(name: str) -> tuple[Model, Tokenizer]:
        model, tokenizer = load(name, revision=args.revision, ignoring=args.ignore_key)
        if tokenizer is None:
            raise ValueError(f"{name} has no tokenizer files, so it cannot read the texts of a study")
        return model, tokenizer

    for name in names[1:]:  # what cannot be loaded ends the command now, not after the studies of those before it
        loaded(name)
    studies = []
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        for name in names:
            model, tokenizer = loaded(name)
            each = partial(progress.track, description=escape(text_label(name)))
            studies.append(study_of(name, model, tokenizer, passage=passage, word=args.word, each=each))
        progress.add_task("drawing", total=None)
        report, figure = study_report(studies), overview(studies)
    console = Console(highlight=False)
    for table in verdict_tables(studies, width=console.width):
        console.print(table, end="\n")
    try:
        args.out.mkdir(exist_ok=True)
        page.write_text(report, encoding="utf-8")
        save_figure(curves, figure)
        with numbers.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(study_lines(studies))
    except OSError as error:
        raise ValueError(f"{error.filename or args.out} cannot be written: {error.strerror}") from error
    say(f"{page} has all figures, {curves} the first, {numbers} the numbers")

"""`minilens corpus`: the lens over files of text, alone or as one of torchrun's workers."""

import argparse
import csv
import io
import json
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ..checkpoint.settings import read_json
from ..corpus.documents import SHARD, TextFile
from ..corpus.measure import CorpusLens, Plan
from ..corpus.shared_files import replacing
from ..corpus.sweep import Sweep
from ..corpus.worker import Worker
from ..loading import load
from ..traces import RESID_SITES
from ..views.corpus_record import SCHEMA, corpus_lines, corpus_record
from ..views.corpus_terminal import corpus_summary, corpus_tables
from .inputs import Subparsers, add_ignored, words
from .outputs import check_new, say

PAUSE = 10  # seconds between two lines that say how far the work is
MOST_THREADS = 1024
ERRORS = "what follows a ± is a standard error, from the spread between documents"
WIDEST = 120  # characters; the tables need some 80


def add_to(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "corpus", help="the lens on whole files of text, with errors; as many workers as you like"
    )
    parser.set_defaults(command=corpus)
    parser.add_argument("model", metavar="MODEL", help="a bundled model, a folder or a Hub repository")
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="text, with a line of <|endoftext|> after each document, or .jsonl; compressed too (.gz)",
    )
    parser.add_argument("--lines", action="store_true", help="each line of a text file is a document")
    parser.add_argument("--key", help='where an object of .jsonl has its text (default: "text")')
    parser.add_argument(
        "--out", type=Path, default=Path("corpus"), help="the folder of the results (default: %(default)s)"
    )
    parser.add_argument(
        "--beside",
        action="append",
        default=[],
        type=Path,
        metavar="FOLDER",
        help="another sweep's folder, whose curves are drawn beside these",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a report that is another")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--csv", action="store_true", help="print its numbers as CSV")
    parser.add_argument("--decoder", default="final", help="as for lens; several with commas share the forward pass")
    parser.add_argument("--norm", default="final", help='"final" or "plain" (default: %(default)s)')
    parser.add_argument(
        "--sites", default="resid_post", help=f"residuals to decode, with commas: {', '.join(RESID_SITES)}"
    )
    parser.add_argument("--window", type=int, help="tokens that the model sees together (default: its context)")
    parser.add_argument(
        "--prefix",
        help="text to put before every window, not counted (default: the first control code, if there are any)",
    )
    parser.add_argument("--batch", type=int, default=1024, help="tokens to read at once (default: %(default)s)")
    parser.add_argument(
        "--shard",
        type=int,
        default=SHARD,
        help="characters of text that one worker takes at a time (default: %(default)s)",
    )
    parser.add_argument("--threads", type=int, default=1, help="of each worker (default: %(default)s)")
    parser.add_argument(
        "--any-machine",
        action="store_true",
        help="go on with what another kind of machine began; the numbers then agree within rounding",
    )
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU for each worker, where there is one)")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub repository")
    add_ignored(parser)


def corpus(args: argparse.Namespace) -> None:
    """Read the files, print the tables, and write the report."""
    worker = Worker.from_environment()
    if args.json and args.csv:
        raise ValueError("--json and --csv are both given: choose one")
    if not 1 <= args.threads <= MOST_THREADS:
        raise ValueError(f"--threads must be from 1 to {MOST_THREADS}; it is {args.threads}")
    beside = _beside(args) if worker.rank == 0 else []
    torch.set_num_threads(args.threads)
    device = args.device or (f"cuda:{worker.local}" if torch.cuda.is_available() else "cpu")
    files = [TextFile(path, args.lines, args.key or "text") for path in args.files]
    if args.lines and all(file.is_json for file in files):
        raise ValueError("--lines is for text files; a .jsonl file has a document on each line anyway")
    if args.key is not None and not any(file.is_json for file in files):
        raise ValueError("--key is for .jsonl files, and none is given")
    model, tokenizer = load(args.model, revision=args.revision, ignoring=args.ignore_key, device=device)
    if tokenizer is None:
        raise ValueError(f"{args.model} has no tokenizer files, so it cannot read text")
    prefix = args.prefix
    if prefix is None:
        prefix = tokenizer.codes[0] if tokenizer.codes else ""
    plan = Plan(
        tuple(words(args.decoder)), args.norm, tuple(words(args.sites)), args.window, prefix, args.batch, args.shard
    )
    sweep = Sweep(CorpusLens(model, tokenizer, plan), files, args.out, any_machine=args.any_machine)
    with worker.together(torch.device(device)):
        sweep.count(worker.rank, worker.size)
    try:
        _run(sweep, worker)
    except KeyboardInterrupt:
        say("interrupted: the same command goes on from here")
        raise
    if worker.rank == 0:
        _show(args, corpus_record(args.model, sweep.findings()), beside)


def _run(sweep: Sweep, worker: Worker) -> None:
    """Read all shards. A terminal sees a bar; otherwise a line now and then, from each worker, says how far all are."""
    counted = sweep.count()
    n_shards = int(counted.shards.sum())
    name = f"worker {worker.rank + 1} of {worker.size}: " if worker.size > 1 else ""
    columns = (TextColumn("reading"), BarColumn(), MofNCompleteColumn(), TextColumn("shards{task.fields[speed]}"))
    has_bar = worker.size == 1 and sys.stderr.isatty()
    before = sweep.n_done()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not has_bar) as progress:
        task = progress.add_task("", total=n_shards, completed=before, speed="")
        start = said = time.monotonic()
        n_read = 0
        for tokens in sweep.run():
            n_read, now = n_read + tokens, time.monotonic()
            if has_bar or now > said + PAUSE:
                done, said = sweep.n_done(), now
                left = (now - start) * (n_shards - done) / (done - before)  # whoever does them
                speed = f", {n_read / (now - start):,.0f} tokens/s, {timedelta(seconds=round(left))} left"
                progress.update(task, completed=done, speed=speed)
                if not has_bar:
                    say(f"{name}{done} of {n_shards} shards are done{speed}")
    if name:
        say(f"{name}{n_read:,} tokens in {timedelta(seconds=round(time.monotonic() - start))}")


def _show(args: argparse.Namespace, record: dict[str, Any], beside: list[dict[str, Any]]) -> None:
    """Write what is not there already, then print the tables, or the numbers."""
    numbers = io.StringIO(newline="")
    csv.writer(numbers, lineterminator="\n").writerows(corpus_lines(record))
    text = json.dumps(record, indent=1, allow_nan=False)
    files = {"report.json": text.encode(), "numbers.csv": numbers.getvalue().encode(), **_drawn([record, *beside])}
    _write({args.out / name: content for name, content in files.items()}, args.overwrite)
    if args.json:
        print(text)
    elif args.csv:
        print(numbers.getvalue(), end="")
    else:
        console = Console(highlight=False)
        console.width = max(console.width, WIDEST)  # on a terminal of less its lines are folded, and nothing is cut
        with console.capture() as shown:
            for table in corpus_tables(record):
                console.print(table, end="\n")
            console.print(corpus_summary(record), markup=False, soft_wrap=True)
        lines = [line.rstrip() for line in shown.get().splitlines()]
        print("\n".join([*lines, ERRORS] if "±" in shown.get() else lines))
    say(f"{args.out} holds {', '.join(files)}")


def _drawn(records: list[dict[str, Any]]) -> dict[str, bytes]:
    """The files of a report that need matplotlib."""
    try:
        from ..views.corpus_page import corpus_page, corpus_picture
    except ValueError as error:
        say(f"note: no report.html: {error}")
        return {}
    return {"report.html": corpus_page(records).encode(), "curves.png": corpus_picture(records)}


def _write(files: dict[Path, bytes], overwrite: bool) -> None:
    """Each file, where the same is not there; raises ValueError where another is, and may not be replaced."""
    try:
        # Each is looked at once: another worker may write the same files just now.
        there = {path: path.read_bytes() if path.is_file() else None for path in files}
        others = {path: new for path, new in files.items() if there[path] != new}
        for path in others:
            if there[path] is not None and not overwrite:
                why = "is there, with other names or other runs beside"
                raise ValueError(f"{path} {why}: --overwrite replaces it, and reads no text again")
            check_new(path, overwrite=True)
        for path, content in others.items():
            with replacing(path) as new:
                new.write_bytes(content)
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be read: {error.strerror}") from error


def _beside(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The reports of other sweeps, each tried before hours are spent."""
    records = []
    for folder in args.beside:
        if folder.resolve() == args.out.resolve():
            raise ValueError(f"--beside {folder} is the folder of this very run")
        if not (folder / "report.json").exists():
            raise ValueError(f"--beside {folder} has no report.json: it must be the folder of a finished run")
        records.append(read_json(folder / "report.json"))
        try:
            if records[-1]["schema"] != SCHEMA or not records[-1]["decoders"]:
                raise ValueError("it is another kind of report")
            for _ in corpus_lines(records[-1]):
                pass
            _drawn(records[-1:])
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"{folder / 'report.json'} is not a report of minilens corpus, or one of another version"
            ) from error
    return records

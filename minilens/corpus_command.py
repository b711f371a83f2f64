"""`minilens corpus`: the lens over files of text, alone or as one of torchrun's workers."""

import argparse
import csv
import io
import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from .arguments import check_new, say, words
from .checkpoint import read_json
from .corpus import TextFile
from .corpus_lens import CorpusLens, Plan
from .hub import load
from .sweep import Sweep
from .views.corpus import corpus_lines, corpus_record, corpus_summary, corpus_tables

PATIENCE = timedelta(hours=6)  # until all workers have counted their share of the tokens


class Worker(NamedTuple):
    """This process among those that torchrun started; alone, the first of one."""

    rank: int
    size: int
    local: int  # on its machine


def corpus(args: argparse.Namespace) -> None:
    """Read the files, print the tables, and write the report."""
    worker = Worker(*(int(os.environ.get(name, n)) for name, n in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))))
    beside = [_report(folder) for folder in args.beside]
    if args.json and args.csv:
        raise ValueError("--json and --csv are both given: choose one")
    if args.threads < 1:
        raise ValueError(f"--threads must be at least 1; it is {args.threads}")
    torch.set_num_threads(args.threads)
    device = args.device or (f"cuda:{worker.local}" if torch.cuda.is_available() else "cpu")
    files = [TextFile(path, args.lines, args.key) for path in args.files]
    model, tokenizer = load(args.model, revision=args.revision, device=device)
    if tokenizer is None:
        raise ValueError(f"{args.model} has no tokenizer files, so it cannot read text")
    prefix = args.prefix
    if prefix is None:
        prefix = tokenizer.codes[0] if tokenizer.codes else ""
    plan = Plan(
        tuple(words(args.decoder)), args.norm, tuple(words(args.sites)), args.window, prefix, args.batch, args.shard
    )
    sweep = Sweep(CorpusLens(model, tokenizer, plan), files, args.out)
    if worker.size > 1:
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=PATIENCE)
    try:
        sweep.count(worker.rank, worker.size)
    finally:
        if worker.size > 1:
            dist.destroy_process_group()
    _run(sweep, worker)
    if worker.rank == 0:
        _show(args, corpus_record(args.model, sweep.findings()), beside)


def _run(sweep: Sweep, worker: Worker) -> None:
    """Read all shards. A terminal sees a bar; of several workers, each says on a line of its own how far all are."""
    counted = sweep.count()
    n_shards, n_tokens = int(counted.shards.sum()), int(counted.tokens.sum())
    columns = (TextColumn("reading"), BarColumn(), MofNCompleteColumn(), TextColumn("shards{task.fields[speed]}"))
    hidden = worker.size > 1 or not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as progress:
        task = progress.add_task("", total=n_shards, completed=sweep.n_done(), speed="")
        start, read = time.monotonic(), 0
        for n_read in sweep.run():
            read, done = read + n_read, sweep.n_done()
            rate = read / (time.monotonic() - start)
            left = n_tokens * (1 - done / n_shards) / (rate * worker.size) if rate else 0
            speed = f", {rate:,.0f} tokens/s, {timedelta(seconds=round(left))} left"
            progress.update(task, completed=done, speed=speed)
            if worker.size > 1:
                say(f"worker {worker.rank + 1} of {worker.size}: {done} of {n_shards} shards are done{speed}")


def _show(args: argparse.Namespace, record: dict[str, Any], beside: list[dict[str, Any]]) -> None:
    """Print the tables, or the numbers; and write all that is not there already."""
    numbers = io.StringIO(newline="")
    csv.writer(numbers, lineterminator="\n").writerows(corpus_lines(record))
    text = json.dumps(record, indent=1, allow_nan=False)
    if args.json:
        print(text)
    elif args.csv:
        print(numbers.getvalue(), end="")
    else:
        console = Console(highlight=False)
        for table in corpus_tables(record):
            console.print(table, end="\n")
        console.print(corpus_summary(record), markup=False, soft_wrap=True)
    files = {"report.json": text.encode(), "numbers.csv": numbers.getvalue().encode()}
    try:
        from .views.corpus_page import corpus_page, corpus_picture
    except ValueError as error:
        say(f"note: no report.html: {error}")
    else:
        files |= {
            "report.html": corpus_page([record, *beside]).encode(),
            "curves.png": corpus_picture([record, *beside]),
        }
    for name, content in files.items():
        _write(args.out / name, content, args.overwrite)
    say(f"{args.out} holds {', '.join(files)}")


def _write(path: Path, content: bytes, overwrite: bool) -> None:
    """A file, where the same is not there; raises ValueError where another is, and may not be replaced."""
    try:
        if path.is_file() and path.read_bytes() == content:
            return
        check_new(path, overwrite)
        path.write_bytes(content)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from error


def _report(folder: Path) -> dict[str, Any]:
    """The report of another sweep, from its folder."""
    path = folder / "report.json"
    record = read_json(path)
    if not {"model", "tokens", "decoders"} <= record.keys():
        raise ValueError(f"{path} is not a report of minilens corpus")
    return record

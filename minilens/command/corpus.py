"""`minilens corpus`: the lens over files of text, alone or as one of torchrun's workers."""

import io
import os
import sys
import time
from collections.abc import Sequence
from csv import writer
from dataclasses import dataclass
from datetime import timedelta
from json import dumps
from pathlib import Path
from typing import Any

import torch

from ..checkpoint.settings import read_json
from ..checkpoint.tokenizer import Tokenizer
from ..corpus.documents import SHARD, TextFile
from ..corpus.measure import CorpusLens, Plan
from ..corpus.shared_files import locked
from ..corpus.sweep import Sweep
from ..corpus.worker import Worker
from ..files import check_new
from ..learned.affine import LearnedLens
from ..learned.named import find_lens
from ..lens import Lens
from ..traces import RESID_SITES
from ..views.corpus_record import SCHEMA, corpus_lines, corpus_record
from .inputs import Loading, words
from .options import Command, argument, option
from .outputs import progress, say, terminal, write

PAUSE = 10  # seconds between two lines that say how far the work is
MOST_THREADS = 1024
ERRORS = "what follows a ± is a standard error, from the spread between documents"
WIDEST = 120  # characters; the tables need some 80


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The texts, and how the model reads them."""

    files: list[Path] = argument(
        nargs="+",
        metavar="FILE",
        help="text, with a line of <|endoftext|> after each document, or .jsonl; compressed too (.gz)",
    )
    lines: bool = option(help="each line of a text file is a document")
    key: str | None = option(help='where an object of .jsonl has its text (default: "text")')
    window: int | None = option(help="tokens that the model sees together (default: its context)")
    prefix: str | None = option(
        help="text to put before every window, not counted (default: the first control code, if there are any)"
    )
    batch: int = option(default=1024, help="tokens to read at once (default: %(default)s)")

    def read(self, paths: Sequence[Path] | None = None) -> list[TextFile]:
        """The files to read. Raises ValueError for one that cannot be read, and for options that none is for."""
        files = [TextFile(path, self.lines, self.key or "text") for path in (self.files if paths is None else paths)]
        if self.lines and all(file.is_json for file in files):
            raise ValueError("--lines is for text files; a .jsonl file has a document on each line anyway")
        if self.key is not None and not any(file.is_json for file in files):
            raise ValueError("--key is for .jsonl files, and none is given")
        return files

    def prefix_for(self, tokenizer: Tokenizer) -> str:
        """The text before every window."""
        return self.prefix if self.prefix is not None else tokenizer.codes[0] if tokenizer.codes else ""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """How the work is done. Raises ValueError for a number of threads that no machine has."""

    threads: int = option(default=1, help="of each worker (default: %(default)s)")
    any_machine: bool = option(
        help="go on with what another kind of machine began; the numbers then agree within rounding"
    )

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= MOST_THREADS:
            raise ValueError(f"--threads must be from 1 to {MOST_THREADS}; it is {self.threads}")

    def begin(self) -> tuple[Worker, str]:
        """This process among the workers, and the device that it takes unless the user says otherwise."""
        worker = Worker.from_environment()
        torch.set_num_threads(self.threads)
        return worker, f"cuda:{worker.local}" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `minilens corpus` is asked for. Raises ValueError for options that do not go together."""

    model: str = argument(metavar="MODEL", help="a bundled model, a folder or a Hub repository")
    texts: Texts
    out: Path = option(default=Path("corpus"), metavar="FOLDER", help="of the results (default: %(default)s)")
    beside: list[Path] = option(
        action="append",
        default=[],
        metavar="FOLDER",
        help="another sweep's folder, whose curves are drawn beside these in beside.html and beside.png",
    )
    overwrite: bool = option(help="replace a report that is another")
    json: bool = option(help="print the report as JSON")
    csv: bool = option(help="print its numbers as CSV")
    decoder: str = option(default="final", help="as for lens; several with commas share the forward pass")
    norm: str = option(default="final", help='"final" or "plain" (default: %(default)s)')
    lens: list[str] = option(
        action="append",
        default=[],
        metavar="NAME",
        help="a learned lens, as for lens, which is compared with the logit lens token by token; may be repeated",
    )
    sites: str = option(default="resid_post", help=f"residuals to decode, with commas: {', '.join(RESID_SITES)}")
    shard: int = option(default=SHARD, help="characters of text that one worker takes at a time (default: %(default)s)")
    workers: Workers
    loading: Loading

    def __post_init__(self) -> None:
        if self.json and self.csv:
            raise ValueError("--json and --csv are both given: choose one")

    def plan(self, tokenizer: Tokenizer) -> Plan:
        decoders, sites, texts = tuple(words(self.decoder)), tuple(words(self.sites)), self.texts
        prefix = texts.prefix_for(tokenizer)
        return Plan(decoders, self.norm, sites, texts.window, prefix, texts.batch, self.shard)

    def others(self) -> dict[str, Lens]:
        """The learned lenses, by their names here."""
        found = {name: find_lens(name, self.model) for name in self.lens}
        if len(found) < len(self.lens):
            raise ValueError("--lens: name each lens once")
        return {name: with_maps(lens, words(self.sites)) for name, lens in found.items()}


def corpus(request: Request) -> None:
    """Read the files, print the tables, and write the report."""
    worker, device = request.workers.begin()
    reports = _beside(request) if worker.rank == 0 else []
    files, others = request.texts.read(), request.others()
    # In memory: a sweep may take days, in which the file of weights may be written to, or cut short.
    model, tokenizer = request.loading.load_reader(request.model, "text", device, mmap=False)
    lens = CorpusLens(model, tokenizer, request.plan(tokenizer), others)
    sweep = Sweep(lens, files, request.out, any_machine=request.workers.any_machine)
    with worker.together(model.W_U.device):
        sweep.count(worker.rank, worker.size)
    try:
        read_sweep(sweep, worker)
    except KeyboardInterrupt:
        say("interrupted: the same command goes on from here")
        raise
    if worker.rank == 0:
        record = corpus_record(request.model, sweep.findings())
        if sweep.n_machines > 1:
            say(
                f"the shards are from {sweep.n_machines} kinds of machines, which round in their own ways: another run "
                "agrees with these numbers within rounding, and not to the last digit"
            )
        show_report(record, request.out, request.overwrite, json=request.json, csv=request.csv, beside=reports)


def with_maps(lens: LearnedLens, sites: Sequence[str]) -> Lens:
    """The lens of these maps."""
    return Lens(lens.decoder, lens.norm, sites=sites, transport=lens)


def read_sweep(sweep: Sweep[Any], worker: Worker) -> None:
    """Read all shards. A terminal sees a bar; otherwise a line now and then, from each worker, says how far all are."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

    counted = sweep.count()
    n_shards = int(counted.shards.sum())
    name = f"worker {worker.rank + 1} of {worker.size}: " if worker.size > 1 else ""
    columns = (TextColumn("reading"), BarColumn(), MofNCompleteColumn(), TextColumn("shards{task.fields[speed]}"))
    has_bar = worker.size == 1 and sys.stderr.isatty()
    before = sweep.n_done()
    with progress(*columns, is_shown=has_bar) as bar:
        task = bar.add_task("", total=n_shards, completed=before, speed="")
        start = said = time.monotonic()
        n_read = 0
        for tokens in sweep.run():
            n_read, now = n_read + tokens, time.monotonic()
            if has_bar or now > said + PAUSE:
                done, said = sweep.n_done(), now
                left = (now - start) * (n_shards - done) / (done - before)  # whoever does them
                speed = f", {n_read / (now - start):,.0f} tokens/s, {timedelta(seconds=round(left))} left"
                bar.update(task, completed=done, speed=speed)
                if not has_bar:
                    say(f"{name}{done} of {n_shards} shards are done{speed}")
    if name:
        say(f"{name}{n_read:,} tokens in {timedelta(seconds=round(time.monotonic() - start))}")


def show_report(
    record: dict[str, Any],
    out: Path,
    overwrite: bool,
    *,
    json: bool = False,
    csv: bool = False,
    beside: Sequence[dict[str, Any]] = (),
) -> None:
    """Write what is not there already, then print the tables, or the numbers as JSON or CSV.

    beside: other reports, whose curves are drawn beside these.
    """
    numbers = io.StringIO(newline="")
    writer(numbers, lineterminator="\n").writerows(corpus_lines(record))
    text = dumps(record, indent=1, allow_nan=False)
    files = {"report.json": text.encode(), "numbers.csv": numbers.getvalue().encode()}
    files |= _drawn("report.html", "curves.png", [record])
    if beside:
        files |= _drawn("beside.html", "beside.png", [record, *beside])
    _write({out / name: content for name, content in files.items()}, overwrite)
    if json:
        print(text)
    elif csv:
        print(numbers.getvalue(), end="")
    else:
        from ..views.corpus_terminal import corpus_summary, corpus_tables

        console = terminal()
        console.width = max(console.width, WIDEST)  # on a terminal of less its lines are folded, and nothing is cut
        with console.capture() as shown:
            for table in corpus_tables(record):
                console.print(table, end="\n")
            console.print(corpus_summary(record), markup=False, soft_wrap=True)
        lines = [line.rstrip() for line in shown.get().splitlines()]
        print("\n".join([*lines, ERRORS] if "±" in shown.get() else lines))
    say(f"{out} holds {', '.join(files)}")


def _drawn(page: str, picture: str, records: list[dict[str, Any]]) -> dict[str, bytes]:
    """The files of a report that need matplotlib, by these two names."""
    try:
        from ..views.corpus_page import corpus_page, corpus_picture
    except ValueError as error:
        say(f"note: no {page}: {error}")
        return {}
    return {page: corpus_page(records).encode(), picture: corpus_picture(records)}


def _write(files: dict[Path, bytes], overwrite: bool) -> None:
    """Each file, where the same is not there; raises ValueError where another is, and may not be replaced."""
    try:
        # Each is looked at once: another worker may write the same files just now.
        there = {path: path.read_bytes() if path.is_file() else None for path in files}
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be read: {error.strerror}") from error
    others = {path: new for path, new in files.items() if there[path] != new}
    for path in others:
        if there[path] is not None and not overwrite:
            why = "is there, with other names or other runs beside"
            raise ValueError(f"{path} {why}: --overwrite replaces it, and reads no text again")
        check_new(path, overwrite=True)
    for path, content in others.items():
        with locked(path, wait=True):
            write({path: content}, overwrite=True)


def _beside(request: Request) -> list[dict[str, Any]]:
    """The reports of other sweeps, each tried before hours are spent."""
    records = []
    for folder in request.beside:
        if os.path.realpath(folder) == os.path.realpath(request.out):  # Path.resolve raises for a link to itself
            raise ValueError(f"--beside {folder} is the folder of this very run")
        if not os.path.exists(folder / "report.json"):
            raise ValueError(f"--beside {folder} has no report.json: it must be the folder of a finished run")
        records.append(read_json(folder / "report.json"))
        try:
            if records[-1]["schema"] != SCHEMA or not records[-1]["decoders"]:
                raise ValueError("it is another kind of report")
            for _ in corpus_lines(records[-1]):
                pass
            _drawn("report.html", "curves.png", records[-1:])
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"{folder / 'report.json'} is not a report of minilens corpus, or one of another version"
            ) from error
    return records


COMMAND = Command(
    "corpus", "the lens on whole files of text, with errors; as many workers as you like", Request, corpus
)

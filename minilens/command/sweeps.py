"""What `minilens corpus` and `minilens fit` have in common: texts, workers, the work as it goes on, and the report."""

import io
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from csv import writer
from dataclasses import dataclass
from datetime import timedelta
from json import dumps
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..checkpoint.tokenizer import Tokenizer
from ..corpus.documents import TextFile
from ..corpus.named import text_files
from ..corpus.shared_files import locked
from ..corpus.sweep import Sweep
from ..corpus.worker import Worker
from ..files import check_new
from ..learned.affine import LearnedLens
from ..lens import Lens
from ..views.corpus_record import corpus_lines
from .options import argument, option
from .outputs import progress, say, terminal, write

T = TypeVar("T")
PAUSE = 10  # seconds between two lines that say how far the work is
MOST_THREADS = 1024
ERRORS = "what follows a ± is a standard error, from the spread between documents"
WIDEST = 120  # characters; the tables need some 80


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The texts, and how the model reads them."""

    files: list[str] = argument(
        nargs="+",
        metavar="FILE",
        help="text, with a line of <|endoftext|> after each document, or .jsonl; compressed too (.gz, .zst); .parquet; "
        "or such files of a dataset on the Hub: hf://datasets/OWNER/NAME/PATH, with a pattern or @REVISION",
    )
    lines: bool = option(help="each line of a text file is a document")
    key: str | None = option(help='where an object of .jsonl, or a row of .parquet, has its text (default: "text")')
    window: int | None = option(help="tokens that the model sees together (default: its context)")
    prefix: str | None = option(
        help="text to put before every window, not counted (default: the first control code, if there are any)"
    )
    batch: int | None = option(help="tokens to read at once (default: 1024; on a GPU more, by its memory)")

    def read(self, folder: Path, names: Sequence[str] | None = None) -> list[TextFile]:
        """The files to read. Raises ValueError for one that cannot be read, and for options that none is for.

        folder: of the sweep.
        """
        files = text_files(self.files if names is None else names, folder, lines=self.lines, key=self.key or "text")
        if self.lines and all(file.is_json or file.is_parquet for file in files):
            raise ValueError(
                "--lines is for text files; .jsonl and .parquet have a document on each line or row anyway"
            )
        if self.key is not None and not any(file.is_json or file.is_parquet for file in files):
            raise ValueError("--key is for .jsonl and .parquet files, and none is given")
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


def summed(sweep: Sweep[T]) -> T:
    """What all shards say together, with a word on the machines where they are of several kinds."""
    findings = sweep.findings()
    if sweep.n_machines > 1:
        say(
            f"the shards are from {sweep.n_machines} kinds of machines, which round in their own ways: another run "
            "agrees with these numbers within rounding, and not to the last digit"
        )
    return findings


def show_report(
    record: dict[str, Any],
    out: Path,
    overwrite: bool,
    *,
    json: bool = False,
    csv: bool = False,
    beside: Sequence[dict[str, Any]] = (),
    more: Mapping[str, bytes] | None = None,
    detailed: Collection[str] | None = None,
) -> None:
    """Write what is not there already, then print the tables, or the numbers as JSON or CSV.

    beside: other reports, whose curves are drawn beside these. more: other files of the report.
    detailed: as in `corpus_page`.
    """
    numbers = as_csv(corpus_lines(record))
    text = dumps(record, indent=1, allow_nan=False)
    files = {"report.json": text.encode(), "numbers.csv": numbers, **(more or {})}
    files |= drawn("report.html", "curves.png", [record], detailed)
    if beside:
        files |= drawn("beside.html", "beside.png", [record, *beside])
    write_report({out / name: content for name, content in files.items()}, overwrite)
    if json:
        print(text)
    elif csv:
        print(numbers.decode(), end="")
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


def as_csv(lines: Iterable[Sequence[object]]) -> bytes:
    """A file of these lines."""
    file = io.StringIO(newline="")
    writer(file, lineterminator="\n").writerows(lines)
    return file.getvalue().encode()


def drawn(
    page: str, picture: str, records: list[dict[str, Any]], detailed: Collection[str] | None = None
) -> dict[str, bytes]:
    """The files of a report that need matplotlib, by these two names."""
    try:
        from ..views.corpus_page import corpus_page, corpus_picture
    except ValueError as error:
        say(f"note: no {page}: {error}")
        return {}
    return {page: corpus_page(records, detailed).encode(), picture: corpus_picture(records)}


def write_report(files: dict[Path, bytes], overwrite: bool) -> None:
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

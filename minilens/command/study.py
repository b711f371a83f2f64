"""`minilens study`: the known experiments of the logit lens, as a report."""

import csv
import io
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..checkpoint.hub import bundled
from ..files import check_new
from .inputs import DEFAULT_MODEL, Loading, read_text
from .options import Command, argument, option
from .outputs import progress, say, terminal, write


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `minilens study` is asked for. Raises ValueError for a folder that cannot be written to."""

    models: list[str] = argument(
        nargs="*", metavar="MODEL", help=f"a bundled model, a folder or a Hub repository (default: {DEFAULT_MODEL})"
    )
    compare: bool = option(help="several models in one report: those named, or else all bundled ones")
    out: Path = option(default=Path("study"), metavar="FOLDER", help="the folder to write to (default: %(default)s)")
    overwrite: bool = option(help="replace a report that is there")
    file: Path | None = option(help="a passage to read in place of the built-in one")
    word: str | None = option(help="the rare word to follow; one token of the model's vocabulary")
    lens: list[str] = option(
        action="append",
        default=[],
        metavar="NAME",
        help="read the texts through a learned lens, too: a folder, or one that comes with the models, such as affine; "
        "may be repeated",
    )
    loading: Loading

    def __post_init__(self) -> None:
        if len(self.names) > 1 and self.loading.reading.revision:
            raise ValueError("--revision is for one model")
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"{self.out} is not a folder: give another name with --out")
        if not self.out.parent.is_dir():
            raise ValueError(f"{self.out} cannot be made: there is no folder {self.out.parent}")
        for path in (self.page, self.curves, self.numbers) if self.out.exists() else ():
            check_new(path, self.overwrite)

    @property
    def names(self) -> list[str]:
        return list(self.models or (bundled() if self.compare else [DEFAULT_MODEL]))

    @property
    def page(self) -> Path:
        return self.out / "report.html"

    @property
    def curves(self) -> Path:
        return self.out / "curves.png"

    @property
    def numbers(self) -> Path:
        return self.out / "numbers.csv"


def study(request: Request) -> None:
    """Run the known experiments on one model or several, print the verdicts, and write the report."""
    from rich.markup import escape

    from ..learned.named import find_lens
    from ..study.experiments import PASSAGE, Reading
    from ..study.experiments import study as study_of
    from ..views.plots import drawn
    from ..views.study_report import overview, study_lines, study_report, verdict_tables
    from ..views.tokens import text_label

    passage = PASSAGE if request.file is None else read_text(request.file)
    load = partial(request.loading.load_reader, what="the texts of a study")
    for name in request.names[1:]:  # what cannot be loaded ends the command now, not after the studies before it
        load(name)
    studies = []
    with progress() as bar:
        for name in request.names:
            model, tokenizer = load(name)
            lenses = [find_lens(lens, name) for lens in request.lens]
            others = [Reading(lens.name, lens.options) for lens in lenses]
            each = partial(bar.track, description=escape(text_label(name)))
            studies.append(
                study_of(name, model, tokenizer, passage=passage, word=request.word, others=others, each=each)
            )
        bar.add_task("drawing", total=None)
        numbers = io.StringIO(newline="")
        csv.writer(numbers, lineterminator="\n").writerows(study_lines(studies))
        files = {
            request.page: study_report(studies).encode(),
            request.curves: drawn(overview(studies), ".png"),
            request.numbers: numbers.getvalue().encode(),
        }
    try:
        request.out.mkdir(exist_ok=True)
    except OSError as error:
        raise ValueError(f"{request.out} cannot be made: {error.strerror}") from error
    write(files, overwrite=request.overwrite)  # first: what is printed may go to a disk that is full
    console = terminal()
    for table in verdict_tables(studies, width=console.width):
        console.print(table, end="\n")
    say(f"{request.page} has all figures, {request.curves} the first, {request.numbers} the numbers")


COMMAND = Command("study", "the known experiments of the logit lens on a model, as a report", Request, study)

"""`minilens corpus`: the lens over files of text, alone or as one of torchrun's workers."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.settings import read_json
from ..checkpoint.tokenizer import Tokenizer
from ..corpus.documents import SHARD
from ..corpus.measure import CorpusLens, Plan
from ..corpus.sweep import Sweep
from ..learned.named import find_lens
from ..lens import Lens
from ..traces import ROW_SITES
from ..views.corpus_record import SCHEMA, corpus_lines, corpus_record
from .inputs import PRECISION, Loading, words
from .options import Command, argument, option
from .outputs import say
from .sweeps import Texts, Workers, drawn, read_sweep, show_report, summed, with_maps


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
    sites: str = option(default="resid_post", help=f"values to decode, with commas: {', '.join(ROW_SITES)}")
    shard: int = option(default=SHARD, help="characters of text that one worker takes at a time (default: %(default)s)")
    precision: str = option(**PRECISION)
    workers: Workers
    loading: Loading

    def __post_init__(self) -> None:
        if self.json and self.csv:
            raise ValueError("--json and --csv are both given: choose one")

    def plan(self, tokenizer: Tokenizer) -> Plan:
        decoders, sites, texts = tuple(words(self.decoder)), tuple(words(self.sites)), self.texts
        prefix = texts.prefix_for(tokenizer)
        return Plan(decoders, self.norm, sites, texts.window, prefix, texts.batch, self.shard, self.precision)

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
    files, others = request.texts.read(request.out), request.others()
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
        record = corpus_record(request.model, summed(sweep))
        show_report(record, request.out, request.overwrite, json=request.json, csv=request.csv, beside=reports)


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
            drawn("report.html", "curves.png", records[-1:])
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"{folder / 'report.json'} is not a report of minilens corpus, or one of another version"
            ) from error
    return records


COMMAND = Command(
    "corpus", "the lens on whole files of text, with errors; as many workers as you like", Request, corpus
)

"""`minilens fit`: a learned lens for a model, from files of text; alone or as one of torchrun's workers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from json import dumps
from pathlib import Path
from typing import Any, NamedTuple

from ..checkpoint.tokenizer import Tokenizer
from ..corpus.documents import TextFile
from ..corpus.measure import CorpusLens, Findings, Plan
from ..corpus.sweep import Sweep
from ..learned.affine import KINDS, LearnedLens
from ..learned.distributions import Estimates, measure
from ..learned.fit import SHARDS, SHORTEST, Fit, Recipe
from ..learned.jacobian import SKIP
from ..learned.jacobian_fit import fit_jacobian
from ..learned.nulls import shuffled, transfers
from ..model import Model
from ..traces import ROW_SITES
from ..views.corpus_record import corpus_record
from .inputs import Loading, words
from .options import Command, argument, option
from .outputs import say, terminal
from .sweeps import Texts, Workers, as_csv, read_sweep, show_report, summed, with_maps

DRAWN = ("documents", "cotangents")  # options of jacobian alone
REPORT = "held-out"  # the folder of the report in that of the fit


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `minilens fit` is asked for. Raises ValueError for options that do not go together."""

    model: str = argument(metavar="MODEL", help="a bundled model, a folder or a Hub repository")
    texts: Texts
    kind: str = option(default="affine", metavar="KIND", help=f"{', '.join(KINDS)} (default: %(default)s)")
    out: Path = option(default=Path("lens"), metavar="FOLDER", help="of the lens (default: %(default)s)")
    held_out: list[str] = option(
        action="append",
        default=[],
        metavar="FILE",
        help="text that the lens is then measured on, with errors, beside twins and nulls; may be repeated",
    )
    transfer: bool = option(help="measure each row's map at every other row, too, with --held-out")
    shuffle: int | None = option(
        metavar="SEED",
        help="the null: fit to the model with the numbers of each weight in random order, drawn from this seed",
    )
    overwrite: bool = option(help="replace another lens that is there")
    decoder: str = option(default="final", help="as for lens (default: %(default)s)")
    norm: str = option(default="final", help='"final" or "plain" (default: %(default)s)')
    sites: str = option(
        default="resid_post", help=f"values that get a map, with commas: {', '.join(ROW_SITES)}; embed always does"
    )
    skip: int | None = option(
        help=f"tokens at the start of each window to leave out (default: 1, and {SKIP} for jacobian)"
    )
    ridge: float | None = option(
        help="pull of A to the identity, in parts of the mean variance (default: chosen on text left out)",
    )
    steps: int | None = option(help="of tuned at most, each a pass over the text (default: 12)")
    documents: int | None = option(help="of jacobian, of how many documents more or less (default: 100)")
    cotangents: int | None = option(
        help="of jacobian, backward passes for each document; fewer than d_model, the default, are random"
    )
    shard: int | None = option(
        help="characters of text that one worker takes at a time (default: about a 24th of the text)"
    )
    workers: Workers
    loading: Loading

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"--kind {self.kind}: there is no such lens; there are {', '.join(KINDS)}")
        for name, kinds in (
            ("ridge", ("affine", "tuned")),
            ("steps", ("tuned",)),
            *((n, ("jacobian",)) for n in DRAWN),
        ):
            if getattr(self, name) is not None and self.kind not in kinds:
                raise ValueError(f"--{name} is for --kind {' and '.join(kinds)}, not {self.kind}")
        if self.transfer and not self.held_out:
            raise ValueError("--transfer is measured on other text: name it with --held-out")
        if self.kind == "jacobian" and self.norm != "final":
            raise ValueError("--kind jacobian is for --norm final")

    def given(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """The options of a fit that the user has given, or that every kind has."""
        texts, options = self.texts, {name: getattr(self, name) for name in ("skip", "ridge", "steps", "shard")}
        return {name: value for name, value in options.items() if value is not None} | {
            "decoder": self.decoder,
            "sites": tuple(words(self.sites)),
            "window": texts.window,
            "prefix": texts.prefix_for(tokenizer),
        }

    def lenses(
        self, model: Model, tokenizer: Tokenizer, files: list[TextFile], read: Callable[[Sweep[Any]], None]
    ) -> tuple[LearnedLens, dict[str, LearnedLens]]:
        """The lens that is fitted, and those to measure it by."""
        options, any_machine = self.given(tokenizer), self.workers.any_machine
        if self.kind == "jacobian":
            drawn = {"texts": self.documents, "cotangents": self.cotangents}
            options |= {name: value for name, value in drawn.items() if value is not None}
            how: Any = dict(any_machine=any_machine, overwrite=self.overwrite, read=read)
            return fit_jacobian(model, tokenizer, files, self.out, **options, **how), {}
        recipe = Recipe(kind=self.kind, norm=self.norm, batch=self.texts.batch, **options)
        return Fit(model, tokenizer, files, self.out, recipe, any_machine, self.overwrite, read).lenses()


class HeldOut(NamedTuple):
    """What a lens is on text that it was not fitted to."""

    report: Findings
    figures: dict[str, Estimates]  # of its maps; none for another decoder or norm than "final"
    transfer: Findings | None  # what each row's map gives at every row


def measured(
    request: Request,
    model: Model,
    tokenizer: Tokenizer,
    files: list[TextFile],
    lens: LearnedLens,
    others: dict[str, LearnedLens],
    read: Callable[[Sweep[Any]], None],
) -> HeldOut:
    """Read the held-out text through the lens and those to measure it by."""
    texts, folder, any_machine = request.texts, request.out / REPORT, request.workers.any_machine
    sites = tuple(words(request.sites))
    plan = Plan((lens.decoder,), lens.norm, sites, texts.window, texts.prefix_for(tokenizer), texts.batch)

    def swept(lenses: dict[str, LearnedLens], folder: Path) -> Findings:
        reader = CorpusLens(model, tokenizer, plan, {n: with_maps(each, sites) for n, each in lenses.items()})
        sweep: Sweep[Findings] = Sweep(reader, files, folder, any_machine=any_machine)
        sweep.count()
        read(sweep)
        return summed(sweep)

    report = swept({lens.kind: lens, **others}, folder)
    transfer = swept(transfers(lens), folder / "transfer") if request.transfer else None
    if (lens.decoder, lens.norm) != ("final", "final"):
        return HeldOut(report, {}, transfer)
    twins = [other for name, other in others.items() if name.startswith("twin")]
    cut = replace(plan, shard=max(SHORTEST, sum(file.longest for file in files) // SHARDS))
    how: Any = dict(skip=lens.made["skip"], any_machine=any_machine, read=read)
    figures = measure(model, tokenizer, files, folder / "figures", cut, lens, twins, **how)
    return HeldOut(report, figures, transfer)


def fit(request: Request) -> None:
    """Fit the lens, print how well its maps are determined, and measure it on other text where some is given."""
    worker, device = request.workers.begin()
    files = request.texts.read(request.out)
    held_out = request.texts.read(request.out, request.held_out) if request.held_out else []
    for file in held_out:
        if any(file.digest == other.digest for other in files):
            raise ValueError(f"--held-out {file.path} is text that the lens is fitted to: give other text")
    # In memory: a fit may take hours, in which the file of weights may be written to, or cut short.
    model, tokenizer = request.loading.load_reader(request.model, "text", device, mmap=False)
    if request.shuffle is not None:
        model = shuffled(model, request.shuffle)
    read = partial(read_sweep, worker=worker)
    try:
        lens, others = request.lenses(model, tokenizer, files, read)
        found = measured(request, model, tokenizer, held_out, lens, others, read) if held_out else None
    except KeyboardInterrupt:
        say("interrupted: the same command goes on from here")
        raise
    if worker.rank > 0:
        return
    from ..views.fit_record import fit_lines, fit_record
    from ..views.fit_terminal import fit_table

    terminal().print(fit_table(lens, found.figures if found else {}), end="\n")
    say(f"{request.out} holds the lens: minilens lens TEXT --lens {request.out}")
    if found:
        record = fit_record(lens, found.figures, found.transfer)
        more = {"maps.json": dumps(record, indent=1, allow_nan=False).encode(), "maps.csv": as_csv(fit_lines(record))}
        name = request.model if request.shuffle is None else f"{request.model}, weights shuffled by {request.shuffle}"
        shown = corpus_record(name, found.report)
        detailed = (lens.decoder, lens.kind)  # of twins and nulls the tables are enough
        show_report(shown, request.out / REPORT, request.overwrite, more=more, detailed=detailed)


COMMAND = Command("fit", "a learned lens for a model, from files of text", Request, fit)

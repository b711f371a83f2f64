"""`minilens fit`: a learned lens for a model, from files of text; alone or as one of torchrun's workers."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..checkpoint.tokenizer import Tokenizer
from ..corpus.measure import CorpusLens, Plan
from ..corpus.sweep import Sweep
from ..learned.fit import FITTED, Fit, Recipe
from ..traces import RESID_SITES
from ..views.corpus_record import corpus_record
from .corpus import Texts, Workers, read_sweep, show_report, with_maps
from .inputs import Loading, words
from .options import Command, argument, option
from .outputs import say, terminal

REPORT = "held-out"  # the folder of the report in that of the fit


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `minilens fit` is asked for. Raises ValueError for options that do not go together."""

    model: str = argument(metavar="MODEL", help="a bundled model, a folder or a Hub repository")
    texts: Texts
    kind: str = option(default="affine", metavar="KIND", help=f"{', '.join(FITTED)} (default: %(default)s)")
    out: Path = option(default=Path("lens"), metavar="FOLDER", help="of the lens (default: %(default)s)")
    held_out: list[Path] = option(
        action="append",
        default=[],
        metavar="FILE",
        help="text that the lens is then measured on, with errors, beside twins and nulls; may be repeated",
    )
    overwrite: bool = option(help="replace another lens that is there")
    decoder: str = option(default="final", help="as for lens (default: %(default)s)")
    norm: str = option(default="final", help='"final" or "plain" (default: %(default)s)')
    sites: str = option(
        default="resid_post", help=f"residuals that get a map, with commas: {', '.join(RESID_SITES)}; embed always does"
    )
    skip: int = option(default=1, help="tokens at the start of each window to leave out (default: %(default)s)")
    ridge: float | None = option(
        type=float,
        help="pull of A to the identity, in parts of the mean variance (default: chosen on text left out)",
    )
    steps: int = option(default=12, help="of tuned at most, each a pass over the text (default: %(default)s)")
    shard: int | None = option(
        help="characters of text that one worker takes at a time (default: about a 24th of the text)"
    )
    workers: Workers
    loading: Loading

    def recipe(self, tokenizer: Tokenizer) -> Recipe:
        """The options of the fit."""
        texts = self.texts
        return Recipe(
            kind=self.kind,
            decoder=self.decoder,
            norm=self.norm,
            sites=tuple(words(self.sites)),
            window=texts.window,
            prefix=texts.prefix_for(tokenizer),
            skip=self.skip,
            ridge=self.ridge,
            steps=self.steps,
            batch=texts.batch,
            shard=self.shard,
        )


def fit(request: Request) -> None:
    """Fit the lens, print how well its maps are determined, and measure it on other text where some is given."""
    worker, device = request.workers.begin()
    files = request.texts.read()
    held_out = request.texts.read(request.held_out) if request.held_out else []
    for file in held_out:
        if any(file.digest == other.digest for other in files):
            raise ValueError(f"--held-out {file.path} is text that the lens is fitted to: give other text")
    # In memory: a fit may take hours, in which the file of weights may be written to, or cut short.
    model, tokenizer = request.loading.load_reader(request.model, "text", device, mmap=False)
    recipe, any_machine = request.recipe(tokenizer), request.workers.any_machine
    read = partial(read_sweep, worker=worker)
    try:
        job = Fit(model, tokenizer, files, request.out, recipe, any_machine, request.overwrite, read)
        lens, others = job.lenses()
        if held_out:
            plan = Plan((recipe.decoder,), recipe.norm, recipe.sites, recipe.window, recipe.prefix, recipe.batch)
            lenses = {lens.kind: lens, **others}
            reader = CorpusLens(model, tokenizer, plan, {n: with_maps(each, plan.sites) for n, each in lenses.items()})
            sweep = Sweep(reader, held_out, request.out / REPORT, any_machine=any_machine)
            sweep.count()
            read(sweep)
    except KeyboardInterrupt:
        say("interrupted: the same command goes on from here")
        raise
    if worker.rank > 0:
        return
    from ..views.fit_terminal import fit_table

    terminal().print(fit_table(lens), end="\n")
    say(f"{request.out} holds the lens: minilens lens TEXT --lens {request.out}")
    if held_out:
        show_report(corpus_record(request.model, sweep.findings()), request.out / REPORT, request.overwrite)


COMMAND = Command("fit", "a learned lens for a model, from files of text", Request, fit)

"""`minilens life`: what the lens says of a model's checkpoints, from the first step of its training to the last."""

from dataclasses import dataclass
from functools import partial
from json import dumps
from pathlib import Path

from ..corpus.documents import TextFile
from ..corpus.hub_files import is_on_hub
from ..corpus.tally import VALUES
from ..traces import ROW_SITES
from .inputs import DTYPES, Loading, words
from .options import Command, argument, option
from .outputs import FIGURES, progress, say, terminal
from .sweeps import WIDEST, Texts, Workers, as_csv, write_report


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `minilens life` is asked for. Raises ValueError for options that do not go together."""

    models: list[str] = argument(
        nargs="+", metavar="MODEL", help="a checkpoint's folder, or one Hub repository with --revisions"
    )
    texts: Texts
    revisions: str | None = option(help="of the repository, with commas, such as checkpoint-100,checkpoint-200")
    out: Path = option(default=Path("life"), metavar="FOLDER", help="of the results (default: %(default)s)")
    overwrite: bool = option(help="replace results that are others, such as those of fewer checkpoints")
    stat: str = option(
        default="kl_final,input_first", help=f"to show, with commas (default: %(default)s); of {', '.join(VALUES)}"
    )
    figure: str = option(choices=FIGURES, default="png", help="kind of the picture in the folder (default: png)")
    decoder: str = option(default="final", help="as for lens (default: %(default)s)")
    norm: str = option(default="final", help='"final" or "plain" (default: %(default)s)')
    sites: str = option(default="resid_post", help=f"values to decode, with commas: {', '.join(ROW_SITES)}")
    workers: Workers
    loading: Loading

    def __post_init__(self) -> None:
        if self.loading.reading.revision is not None:
            raise ValueError("--revision is for one checkpoint: give --revisions")
        if unknown := [stat for stat in words(self.stat) if stat not in VALUES]:
            raise ValueError(f"--stat {unknown[0]}: there is no such statistic; there are {', '.join(VALUES)}")

    @property
    def checkpoints(self) -> list[str]:
        return [name for name in self.models if not self._is_text(name)]

    def files(self) -> list[TextFile]:
        """The texts. What is left of several words before the last may be files as well."""
        return self.texts.read(self.out, [*filter(self._is_text, self.models), *self.texts.files])

    @staticmethod
    def _is_text(name: str) -> bool:
        return is_on_hub(name) or Path(name).is_file()


def life(request: Request) -> None:
    """Measure what is not measured yet, print the lines over the steps, and write the results."""
    from rich.markup import escape

    from ..study.life import life as life_of
    from ..views.life import life_lines, life_record, life_view
    from ..views.tokens import text_label

    worker, device = request.workers.begin()
    loading, texts = request.loading, request.texts
    given = {"window": texts.window, "prefix": texts.prefix, "batch": texts.batch, "norm": request.norm}
    options = {name: value for name, value in given.items() if value is not None}
    try:
        with progress() as bar:
            found = life_of(
                request.checkpoints,
                request.files(),
                request.out,
                revisions=words(request.revisions) if request.revisions else (),
                device=loading.device or device,
                dtype=DTYPES[loading.dtype],
                ignoring=loading.reading.ignore_key,
                any_machine=request.workers.any_machine,
                each=partial(bar.track, description=escape(text_label(request.models[0]))),
                decoders=(request.decoder,),
                sites=tuple(words(request.sites)),
                **options,
            )
    except KeyboardInterrupt:
        say("interrupted: the same command goes on from here")
        raise
    if worker.rank > 0:
        return
    record = dumps(life_record(found), indent=1, allow_nan=False)
    files = {"life.json": record.encode(), "life.csv": as_csv(life_lines(found))}
    stats = words(request.stat)
    try:
        from ..views.life_figure import life_figure
        from ..views.plots import drawn

        files[f"life.{request.figure}"] = drawn(life_figure(found, stats=stats), f".{request.figure}")
    except ValueError as error:
        say(f"note: no life.{request.figure}: {error}")
    write_report({request.out / name: content for name, content in files.items()}, request.overwrite)
    console = terminal()
    console.width = max(console.width, WIDEST)  # on a terminal of less its lines are folded, and nothing is cut
    with console.capture() as shown:
        console.print(life_view(found, stats=stats), end="\n")
    print("\n".join(line.rstrip() for line in shown.get().splitlines()))
    say(f"{request.out} holds {', '.join(files)}")


COMMAND = Command("life", "the lens over training: a model's checkpoints, step by step", Request, life)

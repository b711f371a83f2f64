"""`minilens lens`: what each layer would say next."""

import csv
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..learned.named import find_lens
from ..model import Model, run
from ..ops import check_layer
from ..shapes import Tokens
from ..table import DEFAULT_STATS, STATS, LensTable, logit_lens
from ..traces import ROW_SITES, BlockTrace, Edit
from ..views.lens_panels import MEASURES, PARTS, SHORT, STYLES, WHOSE, stats_for
from ..views.tokens import text_label
from .edits import Edits
from .inputs import PRECISION, Source, named_token, places, words
from .options import Command, option
from .outputs import Files, chosen, print_json, say, terminal


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `minilens lens` is asked for. Raises ValueError for options that do not go together."""

    source: Source
    edits: Edits
    decoder: str | None = option(
        help='"final"; "block:K": the last K blocks decode, too; "mlp"; several with commas, side by side (default: '
        '"final", or none beside --lens)',
    )
    lens: list[str] = option(
        action="append",
        default=[],
        metavar="NAME",
        help="a learned lens: one that comes with the model, such as affine, or MODEL/NAME, the folder of a fit, "
        "tuned:MODEL, jacobian:MODEL; several, and --decoder for the logit lens, side by side",
    )
    norm: str | None = option(
        help='"final" (the default), or "plain": the final norm without gain and bias, as --style 2020 has it'
    )
    centre: bool = option(help="subtract from each row its mean over the positions")
    sites: str = option(default="resid_post", help=f"values to decode, with commas: {', '.join(ROW_SITES)}")
    positions: str | None = option(help="columns, as in Python: 0,3,-1 or 5:10 or -3:")
    layers: str | None = option(help="blocks that get rows, written like --positions")
    track: list[str] = option(action="append", default=[], metavar="TOKEN", help='follow a token, such as " girl"')
    top_k: int | None = option(help="tokens to show for each cell (default: 1, and 5 with --json, --csv and --html)")
    show: str | None = option(
        help="what cells show in the terminal and in figures, with commas: prob (the best tokens, the default), "
        f"{', '.join([name for name in SHORT if name != 'prob'] + [*MEASURES])}; or "
        f"{', '.join(WHOSE)} or tracked with _{', _'.join(PARTS)}, as in next_rank",
    )
    stats: str | None = option(help=f"statistics for --json, --csv and --html, with commas, or all: {', '.join(STATS)}")
    precision: str = option(**PRECISION)
    json: bool = option(help="print the whole table as JSON")
    csv: bool = option(help="print it as CSV, a line for each row and position")
    patterns: str | None = option(
        nargs="?",
        const=":",
        metavar="LAYERS",
        help="put attention patterns into the page: after the text alone of all layers, or of some, as --layers",
    )
    style: str | None = option(
        metavar="STYLE", help=f"figures as the posts have them: {' or '.join(STYLES)} (default: as the terminal)"
    )
    title: str | None = option(help="of the page and of figures (default: the model; of figures nothing)")
    font_size: float | None = option(
        help="of figures, from 4 to 72 points: cells have room for their words, and columns that do not fit stand below"
    )
    large: bool = option(help="the page opens with text for a projector; its slider changes that")
    files: Files

    def __post_init__(self) -> None:
        given, figures, page = self.outputs, self.files.figures, self.files.html
        prints = given[0] if given else f"--show {self.show}"
        of_tracked = [name for name in self.panels if re.match("tracked_|token[0-9]", name)]
        if self.show is not None and not self.has_cells:
            raise ValueError("--show is for the terminal and for figures: --stats chooses for the others")
        if self.has_cells and of_tracked and not self.track:
            raise ValueError(f"--show {of_tracked[0]} needs --track, which names the token")
        if self.has_cells and self.track and not of_tracked and not page:
            raise ValueError(f"--track is for cells that show its tokens: --show {self.show},tracked_rank")
        if self.stats is not None and not self.has_numbers:
            raise ValueError("--stats is for --json, --csv and --html; in the terminal --show chooses")
        if repeated := [decoder for at, decoder in enumerate(self.decoders) if decoder in self.decoders[:at]]:
            raise ValueError(f"the decoder {repeated[0]} is named twice")
        if self.style is not None and not figures:
            raise ValueError("--style is for figures: --png, --svg, --pdf")
        if self.style is not None and self.style not in STYLES:
            raise ValueError(f'there is no style "{self.style}"; there are {", ".join(STYLES)}')
        if self.title is not None and not (page or figures):
            raise ValueError("--title is for --html and for figures")
        if self.font_size is not None and (not figures or not 4 <= self.font_size <= 72):
            raise ValueError(
                f"--font-size must be from 4 to 72; got {self.font_size:g}"
                if figures
                else "--font-size is for figures: --png, --svg, --pdf"
            )
        if self.large and not page:
            raise ValueError("--large is for --html")
        if self.patterns is not None:
            if not page:
                raise ValueError("--patterns is for --html")
            places("--patterns", self.patterns, 0)  # its spelling: a text that follows the option is no list of layers
        if len(self.decoders) + len(self.lens) > 1 and (self.json or self.csv):
            what = "lens" if self.lens else "decoder"
            raise ValueError(f"{given[0]} takes one {what}; several are for the terminal, --html and figures")
        if repeated := [name for at, name in enumerate(self.lens) if name in self.lens[:at]]:
            raise ValueError(f"the lens {repeated[0]} is named twice")
        if self.lens and (self.centre or self.norm == "plain" or self.style == "2020"):
            raise ValueError("--lens reads residuals as they are: leave out --centre, --norm plain and --style 2020")
        if self.top_k is not None and not self.has_numbers and (figures or "prob" not in self.panels):
            raise ValueError(f"--top-k goes with --json or with cells that show tokens, not with {prints}")

    @property
    def outputs(self) -> list[str]:
        """The options that choose the output; none for the terminal."""
        return chosen(json=self.json, csv=self.csv, files=self.files)

    @property
    def has_cells(self) -> bool:
        """Whether the terminal or figures are asked for, whose cells show panels."""
        return bool(self.files.figures) or not self.outputs

    @property
    def has_numbers(self) -> bool:
        """Whether an output is asked for that holds statistics as they are."""
        return self.json or self.csv or self.files.html is not None

    @property
    def decoders(self) -> list[str]:
        return [] if self.lens and self.decoder is None else words("final" if self.decoder is None else self.decoder)

    def ways(self) -> list[dict[str, Any]]:
        """The options of each table: of the decoders, then of the learned lenses."""
        norm = self.norm or ("plain" if self.style == "2020" else "final")
        plain = [{"decoder": decoder, "norm": norm, "centre": self.centre} for decoder in self.decoders]
        learned = [find_lens(name, self.source.model.name) for name in self.lens]
        return plain + [{"decoder": lens.decoder, "norm": lens.norm, "transport": lens} for lens in learned]

    @property
    def panels(self) -> list[str]:
        """What cells show."""
        if self.show is not None:
            return words(self.show)
        return ["prob" if self.style is None else "logit", *(["tracked_rank"] if self.track else [])]

    @property
    def computed(self) -> list[str]:
        """The statistics that the outputs need."""
        names: list[str] = []
        if self.has_numbers:
            default = (*DEFAULT_STATS, *(["input"] if self.files.html else []))
            names += default if self.stats is None else STATS if self.stats == "all" else words(self.stats)
        if self.has_cells:
            names += sorted(stats_for(self.panels, self.style))
        return list(dict.fromkeys(names))


def lens(request: Request) -> None:
    """The lens on a text: in the terminal, as data, as a page and as figures."""
    model, tokenizer, tokens = request.source.read()
    edit = request.edits.edit(model, tokenizer, request.source.opening)
    patterns = _patterns(request, model, tokens, edit)
    track = [named_token("--track", text, tokenizer) for text in request.track]
    tables = [
        logit_lens(
            model,
            tokens,
            **options,
            sites=words(request.sites),
            layers=places("--layers", request.layers, model.n_layers),
            positions=places("--positions", request.positions, tokens.shape[1]),
            track=track,
            top_k=request.top_k if request.top_k is not None else 5 if request.has_numbers else 1,
            stats=request.computed,
            precision=request.precision,
            edit=edit,
            tokenizer=tokenizer,
        )
        for options in request.ways()
    ]
    name, edits = request.source.model.name, request.edits.names
    ignored = request.source.model.loading.reading.ignore_key
    if request.json:
        from ..views.records import as_record

        about = {"model": name, "family": model.family, "ignored_keys": ignored, "edits": edits}
        print_json({**about, **as_record(tables[0])})
    elif request.csv:
        from ..views.records import as_lines

        csv.writer(sys.stdout, lineterminator="\n").writerows(as_lines(tables[0]))
        if edits:
            say(f"note: this is the lens of an edited model: {', '.join(edits)}")
    elif request.files.given:
        _write(request, tables, tokens, patterns)
    else:
        from rich.text import Text

        from ..views.lens_terminal import lens_view

        console = terminal()
        console.print(lens_view(tables, show=request.panels, width=console.width))
        if edits:
            console.print(Text(text_label(f"edited: {', '.join(edits)}"), "dim"))


def _write(
    request: Request, tables: Sequence[LensTable], tokens: Tokens, patterns: Iterator[BlockTrace] | None
) -> None:
    """The page and the figures."""
    changes = [f"ignoring {key}" for key in request.source.model.loading.reading.ignore_key] + request.edits.names
    title = ", ".join([request.title or request.source.model.name, *changes])
    page = figure = None
    if request.files.html:
        from ..views.lens_page import lens_page

        page = lens_page(tables, title=title, tokens=tokens, patterns=patterns, large=request.large)
    if request.files.figures:
        from ..views.lens_figure import lens_figure

        above = title if changes or request.title else ""
        how: dict[str, Any] = {"style": request.style, "title": above, "font_size": request.font_size}
        figure = lens_figure(tables, show=request.panels, **how)
    request.files.write(page, figure)


def _patterns(request: Request, model: Model, tokens: Tokens, edit: Edit) -> Iterator[BlockTrace] | None:
    """The blocks whose attention patterns go into the page, each computed when it is asked for."""
    if request.patterns is None:
        return None
    layers = places("--patterns", request.patterns, model.n_layers) or []
    for layer in layers:
        check_layer(layer, model.n_layers)
    if not layers:
        raise ValueError(f"--patterns names no layer with {request.patterns!r}: the model has {model.n_layers}")
    return filter(lambda block: block.layer in layers, run(model, model.embed(tokens), edit=edit))


COMMAND = Command("lens", "what each layer would say next, as a table", Request, lens)

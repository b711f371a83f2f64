"""`minilens parts`: what each part of a model writes to the stream."""

from dataclasses import dataclass

from ..instruments.parts import parts as parts_of
from ..views.tokens import text_label
from .edits import Edits
from .inputs import Source, places, words
from .options import Command, option
from .outputs import Files, chosen, print_json, terminal

NEURONS = 20  # that are shown


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `minilens parts` is asked for. Raises ValueError for two kinds of output."""

    source: Source
    edits: Edits
    layer: int | None = option(
        help="whose heads or neurons to show (default: the embedding, and attention and MLP of every layer)"
    )
    by: str = option(default="head", help='"head" or "neuron" of the layer (default: %(default)s)')
    most: int | None = option(help=f"parts to show: those of the largest norm (default: all, of neurons {NEURONS})")
    positions: str | None = option(help="columns, as in Python: 0,3,-1 or 5:10 or -3:")
    show: str | None = option(
        help="what cells show, with commas: norm, ratio, cosine, share, raised, lowered, alone (default: ratio,raised; "
        "of one position ratio,cosine,share,raised)"
    )
    top_k: int = option(default=4, help="tokens to name, with one position and in --json (default: %(default)s)")
    json: bool = option(help="print all numbers as JSON")
    files: Files

    def __post_init__(self) -> None:
        given = chosen(json=self.json, files=self.files)
        if self.json and self.show is not None:
            raise ValueError(f"--show is for cells, and {given[0]} has all numbers")
        if self.most is not None and self.most < 1:
            raise ValueError(f"--most must be at least 1; got {self.most}")


def parts(request: Request) -> None:
    """Show what each part writes."""
    from ..views.parts import parts_page, parts_record, parts_view

    model, tokenizer, tokens = request.source.read()
    found = parts_of(
        model,
        tokens,
        request.layer,
        by=request.by,
        positions=places("--positions", request.positions, tokens.shape[1]),
        top_k=request.top_k,
        edit=request.edits.edit(model, tokenizer, request.source.opening),
        tokenizer=tokenizer,
    )
    if most := request.most or (NEURONS if request.by == "neuron" else None):
        found = found.largest(most)
    name, edits = request.source.model.name, request.edits.names
    title = ", ".join([text_label(name), *([] if request.layer is None else [f"layer {request.layer}"])])
    title += f"; edited: {text_label(', '.join(edits))}" if edits else ""
    show = None if request.show is None else words(request.show)
    if request.json:
        print_json({"model": name, "family": model.family, "edits": edits, **parts_record(found)})
    elif request.files.given:
        figure = None
        if request.files.figures:
            from ..views.parts_figure import parts_figure

            figure = parts_figure(found, show=show, title=title)
        request.files.write(parts_page(found, show=show, title=title), figure)
    else:
        console = terminal()
        console.print(parts_view(found, show=show, title=title, width=console.width))


COMMAND = Command("parts", "what each block, head or neuron writes: how large it is, and what it says", Request, parts)

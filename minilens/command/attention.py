"""`minilens attention`: where the queries of a layer look."""

from dataclasses import dataclass

from ..model import run
from ..ops import check_layer
from ..views.tokens import text_label
from .edits import Edits
from .inputs import Source, places
from .options import Command, option
from .outputs import Files, chosen, print_json, terminal


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `minilens attention` is asked for. Raises ValueError for two kinds of output."""

    source: Source
    edits: Edits
    layer: int = option(required=True, help="the block, from 0")
    head: int | None = option(help="the head, from 0 (default: the strongest key of every head)")
    positions: str | None = option(help="queries to show, as in Python: 0,3,-1 or 5:10 or -3:")
    top_k: int = option(default=5, help="keys to show of a head in the terminal (default: %(default)s)")
    json: bool = option(help="print all weights as JSON")
    files: Files

    def __post_init__(self) -> None:
        chosen(json=self.json, files=self.files)
        if self.top_k < 1:
            raise ValueError(f"--top-k must be at least 1; got {self.top_k}")


def attention(request: Request) -> None:
    """Show where each query looks."""
    from ..views.attention import attention_page, attention_record, attention_view

    model, tokenizer, tokens = request.source.read()
    layer, head = request.layer, request.head
    check_layer(layer, model.n_layers)
    edit = request.edits.edit(model, tokenizer, request.source.opening)
    for block in run(model, model.embed(tokens), edit=edit):
        if block.layer == layer:
            break
    queries = places("--positions", request.positions, tokens.shape[1])
    name, edits = request.source.model.name, request.edits.names
    title = f"{text_label(name)}, layer {layer}" + ("" if head is None else f", head {head}")
    title += f"; edited: {text_label(', '.join(edits))}" if edits else ""
    if request.json:
        record = attention_record(tokens, block, head=head, queries=queries, tokenizer=tokenizer)
        print_json({"model": name, "family": model.family, "edits": edits, **record})
    elif request.files.given:
        figure = None
        if request.files.figures:
            from ..views.attention_figure import attention_figure

            figure = attention_figure(tokens, block, head=head, queries=queries, tokenizer=tokenizer, title=title)
        page = attention_page(tokens, block, head=head, queries=queries, tokenizer=tokenizer, title=title)
        request.files.write(page, figure)
    else:
        console = terminal()
        k, width = request.top_k, console.width
        console.print(
            attention_view(
                tokens, block, head=head, queries=queries, k=k, tokenizer=tokenizer, title=title, width=width
            )
        )


COMMAND = Command("attention", "where the queries of a layer look: their strongest keys", Request, attention)

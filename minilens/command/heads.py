"""`minilens heads`: where the heads of a model look, what they copy, and which read from which."""

from dataclasses import dataclass

from ..instruments.circuits import copying_scores
from ..instruments.composition import composition
from ..instruments.heads import head_scores
from ..views.records import heads_record
from ..views.tokens import text_label
from .inputs import ModelChoice
from .options import Command, option
from .outputs import print_json, terminal


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `minilens heads` is asked for."""

    length: int = option(
        default=25, help="random tokens that are said twice, to see where heads look (default: %(default)s)"
    )
    batch: int = option(default=16, help="texts of them (default: %(default)s)")
    seed: int = option(default=0, help="decides which tokens (default: %(default)s)")
    model: ModelChoice
    json: bool = option(help="print all numbers as JSON, with the composition of every pair of heads")


def heads(request: Request) -> None:
    """Print the scores of every head."""
    model, _ = request.model.load()
    name = request.model.name
    scores = head_scores(model, length=request.length, batch=request.batch, seed=request.seed)
    found = scores, copying_scores(model), composition(model)
    if request.json:
        print_json({"model": name, "family": model.family, **heads_record(*found)})
        return
    from ..views.heads import heads_view

    console = terminal()
    title = f"{text_label(name)}: {model.n_layers} layers of {model.config.n_heads} heads"
    console.print(heads_view(*found, title=title, width=console.width))


COMMAND = Command("heads", "where heads look, what they copy, and which read from which", Request, heads)

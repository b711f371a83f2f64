"""`minilens geometry`: how the embeddings of the vocabulary lie in space."""

from dataclasses import dataclass

from ..instruments.geometry import geometry as geometry_of
from ..views.tokens import text_label, token_label
from .inputs import ModelChoice
from .options import Command, option
from .outputs import print_json


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `minilens geometry` is asked for."""

    model: ModelChoice
    json: bool = option(help="print the numbers as JSON")


def geometry(request: Request) -> None:
    """Print how a model's embeddings lie in space."""
    model, tokenizer = request.model.load()
    name, found = request.model.name, geometry_of(model)
    if request.json:
        print_json({"model": name, "family": model.family, **found._asdict()})
        return
    print(f"{model.W_U.shape[1]:,} embeddings of {model.W_U.shape[0]} dimensions, {text_label(name)}")
    print(f"mean norm                          {found.mean_norm:.3f}")
    print(f"norm of the mean                   {found.norm_of_mean:.3f}")
    print(f"mean cosine of two                 {found.mean_cosine:.4f}")
    print(f"the same, less the mean            {found.mean_cosine_centred:.4f}")
    for what, token, norm in (
        ("largest", found.largest, found.largest_norm),
        ("smallest", found.smallest, found.smallest_norm),
    ):
        print(f"{what + ' norm':34} {norm:.3f}  token {token}, {token_label(tokenizer, token)}")


COMMAND = Command("geometry", "how the embeddings of the vocabulary lie in space", Request, geometry)

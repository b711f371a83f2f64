"""`minilens generate`: text that the model writes, and how early each token was settled."""

from dataclasses import dataclass

import torch

from ..instruments.generation import generate_steps
from ..views.tokens import text_label
from .edits import Edits
from .inputs import Source
from .options import Command, option
from .outputs import print_json, terminal


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `minilens generate` is asked for. Raises ValueError for a seed that is none."""

    source: Source
    edits: Edits
    n: int = option(default=20, help="how many tokens to write (default: %(default)s)")
    temperature: float = option(
        default=0.0,
        help="logits are divided by it before a token is drawn; 0, the default, takes the best token each time",
    )
    top_k: int | None = option(help="draw from the best tokens only, so many of them")
    top_p: float | None = option(help="draw from the best tokens only, as few as have this probability together")
    seed: int = option(default=0, help="of the random numbers (default: %(default)s)")
    json: bool = option(help="print it as JSON, when all is written")

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"--seed must be from 0 to 2**63 - 1; got {self.seed}")


def generate(request: Request) -> None:
    """Write a text on, and show each token as it is written."""
    model, tokenizer, tokens = request.source.read()
    steps = generate_steps(
        model,
        tokens,
        request.n,
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        generator=torch.Generator().manual_seed(request.seed),
        edit=request.edits.edit(model, tokenizer, request.source.opening),
    )
    name, edits = request.source.model.name, request.edits.names
    if request.json:
        from ..views.generation import generation_record

        about = {
            "model": name,
            "family": model.family,
            "ignored_keys": request.source.model.loading.reading.ignore_key,
            "edits": edits,
            "temperature": request.temperature,
            "top_k": request.top_k,
            "top_p": request.top_p,
            "seed": request.seed,
        }
        print_json({**about, **generation_record(tokens, steps, tokenizer=tokenizer)})
    else:
        from rich.text import Text

        from ..views.generation import generation_view

        console = terminal()
        for line in generation_view(tokens, steps, tokenizer=tokenizer):
            console.print(line)
        if edits:
            console.print(Text(text_label(f"edited: {', '.join(edits)}"), "dim"))


COMMAND = Command("generate", "text that the model writes, and how early each token is settled", Request, generate)

"""`minilens trace`: the values of a forward pass, as a file."""

import os
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..files import check_new, replacing
from ..model import run
from ..traces import BlockTrace
from ..views.tokens import printable
from .edits import Edits
from .inputs import Source, words
from .options import Command, option
from .outputs import say

FIELDS = tuple(field.name for field in fields(BlockTrace))[1:]  # all but its layer


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `minilens trace` is asked for. Raises ValueError for what a block does not have, and for a bad file."""

    source: Source
    edits: Edits
    out: Path = option(required=True, metavar="FILE", help="the file to write")
    overwrite: bool = option(help="replace the file if it exists")
    fields: str = option(
        default="resid_mid,resid_post",
        help="what of each block, with commas, or all (default: %(default)s)",
    )

    def __post_init__(self) -> None:
        if unknown := [name for name in self.names if name not in FIELDS]:
            raise ValueError(f'a block has no "{unknown[0]}"; it has {", ".join(FIELDS)}')
        check_new(self.out, self.overwrite)
        if os.path.realpath(self.out.parent) == os.path.realpath(self.source.model.name):  # a link to itself is a name
            raise ValueError(f"{self.out} is in the model's own folder: give another name")

    @property
    def names(self) -> list[str]:
        return list(FIELDS) if self.fields == "all" else words(self.fields)


def trace(request: Request) -> None:
    """Save the values of a forward pass."""
    model, tokenizer, tokens = request.source.read()
    resid = model.embed(tokens)
    values = {"tokens": tokens, "embed": resid}
    for block in run(model, resid, edit=request.edits.edit(model, tokenizer, request.source.opening)):
        values |= {f"{block.layer}.{name}": getattr(block, name) for name in request.names}
        resid = block.resid_post
    values["logits"] = model.unembed(resid)
    # safetensors takes no views and no tensor twice, as the stream leaving one block and entering the next would be
    values = {name: value.clone(memory_format=torch.contiguous_format) for name, value in values.items()}
    about = {"model": printable(request.source.model.name), "family": model.family}
    with replacing(request.out, overwrite=request.overwrite) as new:
        try:
            save_file(values, new, metadata={**about, "edits": ", ".join(request.edits.names)})
        except SafetensorError as error:
            raise ValueError(f"{request.out} cannot be written: {error}") from error
    say(f"{request.out} is written")


COMMAND = Command("trace", "save the values of a forward pass in a safetensors file", Request, trace)

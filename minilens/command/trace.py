"""`minilens trace`: the values of a forward pass, as a file."""

import argparse
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..loading import load
from ..model import run
from ..traces import BlockTrace
from ..views.tokens import printable
from .edits import add_edits, check_edits, given_edit, named_edits
from .inputs import Subparsers, add_source, given_text, given_tokens, words
from .outputs import check_new

FIELDS = tuple(field.name for field in fields(BlockTrace))[1:]  # all but its layer


def add_to(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("trace", help="save the values of a forward pass in a safetensors file")
    parser.set_defaults(command=trace)
    add_source(parser)
    add_edits(parser)
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    parser.add_argument(
        "--fields",
        default="resid_mid,resid_post",
        help="what of each block, with commas, or all (default: %(default)s)",
    )


def trace(args: argparse.Namespace) -> None:
    """Save the values of a forward pass."""
    names = FIELDS if args.fields == "all" else words(args.fields)
    if unknown := [name for name in names if name not in FIELDS]:
        raise ValueError(f'a block has no "{unknown[0]}"; it has {", ".join(FIELDS)}')
    check_new(args.out, args.overwrite)
    check_edits(args)
    if args.out.parent.resolve() == Path(args.model).resolve():
        raise ValueError(f"{args.out} is in the model's own folder: give another name")
    text = given_text(args)
    model, tokenizer = load(args.model, revision=args.revision, ignoring=args.ignore_key)
    tokens = given_tokens(args, text, tokenizer)
    resid = model.embed(tokens)
    values = {"tokens": tokens, "embed": resid}
    for block in run(model, resid, edit=given_edit(args, model, tokenizer)):
        values |= {f"{block.layer}.{name}": getattr(block, name) for name in names}
        resid = block.resid_post
    values["logits"] = model.unembed(resid)
    # safetensors takes no views and no tensor twice, as the stream leaving one block and entering the next would be
    values = {name: value.clone(memory_format=torch.contiguous_format) for name, value in values.items()}
    try:
        save_file(
            values,
            args.out,
            metadata={"model": printable(args.model), "family": model.family, "edits": ", ".join(named_edits(args))},
        )
        args.out.chmod(0o644)  # safetensors writes for the owner only
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{args.out} cannot be written: {error}") from error

"""`minilens geometry`: how the embeddings of the vocabulary lie in space."""

import argparse
import json
import sys

from ..instruments.geometry import geometry as geometry_of
from ..loading import load
from .inputs import Subparsers, add_model


def add_to(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("geometry", help="how the embeddings of the vocabulary lie in space")
    parser.set_defaults(command=geometry)
    add_model(parser)
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")


def geometry(args: argparse.Namespace) -> None:
    """Print how a model's embeddings lie in space."""
    model, tokenizer = load(args.model, revision=args.revision, ignoring=args.ignore_key)
    found = geometry_of(model)
    if args.json:
        json.dump({"model": args.model, "family": model.family, **found._asdict()}, sys.stdout, indent=1)
        print()
        return
    from ..views.tokens import text_label, token_label

    print(f"{model.W_U.shape[1]:,} embeddings of {model.W_U.shape[0]} dimensions, {text_label(args.model)}")
    print(f"mean norm                          {found.mean_norm:.3f}")
    print(f"norm of the mean                   {found.norm_of_mean:.3f}")
    print(f"mean cosine of two                 {found.mean_cosine:.4f}")
    print(f"the same, less the mean            {found.mean_cosine_centred:.4f}")
    for name, token, norm in (
        ("largest", found.largest, found.largest_norm),
        ("smallest", found.smallest, found.smallest_norm),
    ):
        print(f"{name + ' norm':34} {norm:.3f}  token {token}, {token_label(tokenizer, token)}")

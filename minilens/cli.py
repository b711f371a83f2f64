"""The `minilens` command. What a user can cause ends in one line on stderr and exit status 2."""

import argparse
import csv
import json
import os
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

import torch
from safetensors.torch import save_file

from .checkpoint import CheckpointError
from .geometry import geometry
from .hub import bundled, cached, load
from .lens import DEFAULT_STATS, LENS_SITES, STATS, logit_lens
from .run import run
from .shapes import Tokens
from .text import Tokenizer
from .trace import BlockTrace

DEFAULT_MODEL = "tales-gpt2"
FIELDS = tuple(field.name for field in fields(BlockTrace))[1:]  # all but its layer
SHOW = ("prob", "logit", "rank", "kl", "entropy")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (by default the process's own) and return its exit status."""
    try:
        args = _parser().parse_args(argv)
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: _say(f"note: {message}")
            args.command(args)
        sys.stdout.flush()
    except UnicodeEncodeError as error:
        _say(f"error: the output cannot be written as {error.encoding}: set PYTHONIOENCODING=utf-8")
        return 2
    except (ValueError, CheckpointError) as error:
        _say(f"error: {error}")
        return 2
    except BrokenPipeError:  # the reader has seen enough, as in `minilens models | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a disk that is full
        _say(f"error: the output cannot be written: {error.strerror}")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _say(message: str) -> None:
    """One line on stderr, with nothing in it that a terminal would obey: names and paths may hold anything."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    print(f"minilens: {shown}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def _parser() -> _Parser:
    parser = _Parser(prog="minilens", description="The logit lens on GPT-2, GPT-Neo and CTRL.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    lens = commands.add_parser("lens", help="what each layer would say next, as a table")
    lens.set_defaults(command=_lens)
    _add_source(lens)
    lens.add_argument("--decoder", default="final", help='"final"; "block:K": the last K blocks decode, too; "mlp"')
    lens.add_argument("--norm", default="final", help='"final", or "plain": the final norm without gain and bias')
    lens.add_argument("--centre", action="store_true", help="subtract from each row its mean over the positions")
    lens.add_argument(
        "--sites", default="resid_post", help=f"residuals to decode, with commas: {', '.join(LENS_SITES)}"
    )
    lens.add_argument(
        "--positions", help="columns, as in Python: 0,3,-1 or 5:10; before a minus sign, --positions=-10:"
    )
    lens.add_argument("--layers", help="blocks that get rows, written like --positions")
    lens.add_argument("--track", action="append", default=[], metavar="TOKEN", help='follow a token, such as " girl"')
    lens.add_argument("--top-k", type=int, help="tokens to show for each cell (default: 1, and 5 with --json)")
    lens.add_argument("--show", choices=SHOW, help="what cells show: the best token (prob, the default) or a number")
    lens.add_argument("--stats", help=f"statistics for --json and --csv, with commas, or all: {', '.join(STATS)}")
    lens.add_argument("--json", action="store_true", help="print the whole table as JSON")
    lens.add_argument("--csv", action="store_true", help="print it as CSV, a line for each row and position")

    trace = commands.add_parser("trace", help="save the values of a forward pass in a safetensors file")
    trace.set_defaults(command=_trace)
    _add_source(trace)
    trace.add_argument("--out", type=Path, required=True, help="the file to write")
    trace.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    trace.add_argument(
        "--fields",
        default="resid_mid,resid_post",
        help="what of each block, with commas, or all (default: %(default)s)",
    )

    geometry = commands.add_parser("geometry", help="how the embeddings of the vocabulary lie in space")
    geometry.set_defaults(command=_geometry)
    _add_model(geometry)
    geometry.add_argument("--json", action="store_true", help="print the numbers as JSON")

    models = commands.add_parser("models", help="the models that are bundled or in the Hub's cache")
    models.set_defaults(command=_models)
    return parser


def _add_source(parser: argparse.ArgumentParser) -> None:
    """The text, and the model that reads it."""
    parser.add_argument("prompt", nargs="?", help="the text to read; without one it comes from --file or from stdin")
    parser.add_argument("--file", type=Path, help="read the text from a file, less the newline at its end")
    parser.add_argument("--ids", help='token ids instead of text, such as "464 3290"')
    _add_model(parser)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help="a bundled model, a folder or a Hub repository (default: %(default)s)"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a Hub repository")


def _lens(args: argparse.Namespace) -> None:
    as_data = args.json or args.csv
    if args.json and args.csv:
        raise ValueError("--json and --csv are both given: choose one")
    if as_data and args.show:
        raise ValueError("--show is for the terminal: --json and --csv print every statistic")
    if args.stats and not as_data:
        raise ValueError("--stats is for --json and --csv; in the terminal --show chooses")
    if args.top_k is not None and args.show not in (None, "prob"):
        raise ValueError(f"--top-k goes with --json or with cells that show tokens, not with --show {args.show}")
    text = _text(args)
    model, tokenizer = load(args.model, revision=args.revision)
    tokens = _tokens(args, text, tokenizer)
    table = logit_lens(
        model,
        tokens,
        decoder=args.decoder,
        norm=args.norm,
        centre=args.centre,
        sites=_words(args.sites),
        layers=_places("--layers", args.layers, model.n_layers),
        positions=_places("--positions", args.positions, tokens.shape[1]),
        track=[_tracked(text, tokenizer) for text in args.track],
        top_k=args.top_k if args.top_k is not None else 5 if as_data else 1,
        stats=DEFAULT_STATS if args.stats is None else STATS if args.stats == "all" else _words(args.stats),
    )
    if args.json:
        from .views.export import as_record

        json.dump({"model": args.model, "family": model.family, **as_record(table, tokenizer)}, sys.stdout, indent=1)
        print()
    elif args.csv:
        from .views.export import as_lines

        csv.writer(sys.stdout, lineterminator="\n").writerows(as_lines(table, tokenizer))
    else:
        from rich.console import Console

        from .views.terminal import lens_view

        console = Console(highlight=False)
        console.print(lens_view(table, tokenizer, show=args.show or "prob", width=console.width))


def _trace(args: argparse.Namespace) -> None:
    names = FIELDS if args.fields == "all" else _words(args.fields)
    if unknown := [name for name in names if name not in FIELDS]:
        raise ValueError(f'a block has no "{unknown[0]}"; it has {", ".join(FIELDS)}')
    if args.out.exists() and not args.overwrite:
        raise ValueError(f"{args.out} exists: give another --out, or --overwrite")
    if not args.out.parent.is_dir():
        raise ValueError(f"{args.out} cannot be written: there is no such folder")
    text = _text(args)
    model, tokenizer = load(args.model, revision=args.revision)
    tokens = _tokens(args, text, tokenizer)
    resid = model.embed(tokens)
    values = {"tokens": tokens, "embed": resid}
    for block in run(model, resid):
        values |= {f"{block.layer}.{name}": getattr(block, name) for name in names}
        resid = block.resid_post
    values["logits"] = model.unembed(resid)
    # safetensors takes no views and no tensor twice, as the stream leaving one block and entering the next would be
    values = {name: value.clone(memory_format=torch.contiguous_format) for name, value in values.items()}
    save_file(values, args.out, metadata={"model": args.model, "family": model.family})


def _geometry(args: argparse.Namespace) -> None:
    model, tokenizer = load(args.model, revision=args.revision)
    found = geometry(model)
    if args.json:
        json.dump({"model": args.model, "family": model.family, **found._asdict()}, sys.stdout, indent=1)
        print()
        return
    from .views.tokens import token_label

    print(f"{model.W_U.shape[1]:,} embeddings of {model.W_U.shape[0]} dimensions, {args.model}")
    print(f"mean norm                          {found.mean_norm:.3f}")
    print(f"norm of the mean                   {found.norm_of_mean:.3f}")
    print(f"mean cosine of two                 {found.mean_cosine:.4f}")
    print(f"the same, less the mean            {found.mean_cosine_centred:.4f}")
    for name, token, norm in (
        ("largest", found.largest, found.largest_norm),
        ("smallest", found.smallest, found.smallest_norm),
    ):
        print(f"{name + ' norm':34} {norm:.3f}  token {token}, {token_label(tokenizer, token)}")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _tracked(text: str, tokenizer: Tokenizer | None) -> int:
    """The token that a text is, or the id that it names."""
    if re.fullmatch("#[0-9]{1,9}", text):
        return int(text[1:])
    if tokenizer is None:
        raise ValueError(f"--track needs a token id, such as #464, for a model without a tokenizer; got {text!r}")
    tokens = tokenizer.encode(text)[0].tolist()
    if len(tokens) != 1:
        from .views.tokens import token_label

        parts = " ".join(token_label(tokenizer, token) for token in tokens)
        raise ValueError(
            f"--track takes one token, and {text!r} is {len(tokens)}: {parts}; a word within a text often begins with "
            "a space, and #464 is the token with that id"
        )
    return int(tokens[0])


def _text(args: argparse.Namespace) -> str | None:
    """The text to read, from the one place where the user put it; None where there are token ids instead."""
    sources = {"a text": args.prompt, "--file": args.file, "--ids": args.ids}
    given = [source for source, value in sources.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"{given[0]} and {given[1]} are both given: choose one")
    if args.ids is not None:
        return None
    if args.prompt is not None:
        return str(args.prompt)
    if args.file is None and (sys.stdin is None or sys.stdin.isatty()):
        raise ValueError("there is nothing to read: give a text, --file, --ids, or text on stdin")
    source = "stdin" if args.file is None else str(args.file)
    try:
        raw = sys.stdin.buffer.read() if args.file is None else args.file.read_bytes()
        return raw.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8: it has the byte 0x{raw[error.start]:02x} at {error.start}") from error
    except OSError as error:
        raise ValueError(f"{source} cannot be read: {error.strerror}") from error


def _tokens(args: argparse.Namespace, text: str | None, tokenizer: Tokenizer | None) -> Tokens:
    if text is None:
        try:
            return torch.tensor([[int(number) for number in args.ids.replace(",", " ").split()]], dtype=torch.long)
        except ValueError as error:
            raise ValueError(f'--ids must be whole numbers, such as "464 3290"; got {args.ids!r}') from error
    if tokenizer is None:
        raise ValueError(f"{args.model} has no tokenizer files, so it cannot read text: give token ids with --ids")
    if hint := tokenizer.hint(text):
        _say(f"note: {hint}")
    return tokenizer.encode(text)


def _places(option: str, text: str | None, n: int) -> list[int] | None:
    """Places such as 0,3,-1 or 5:10, among n."""
    if text is None:
        return None
    places: list[int] = []
    for part in text.split(","):
        try:
            if ":" in part:
                places += range(n)[slice(*(int(end) if end else None for end in part.split(":")))]
            else:
                places.append(int(part))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{option} must look like 0,3,-1 or 5:10; got {text!r}") from error
    return places


def _models(args: argparse.Namespace) -> None:
    rows = [(name, "bundled") for name in bundled()] + [(name, "cached") for name in cached()]
    width = max((len(name) for name, _ in rows), default=0)
    for name, where in rows:
        print(f"{name:{width}}  {where}")

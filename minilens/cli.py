"""The `minilens` command. What a user can cause ends in one line on stderr and exit status 2."""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

from .checkpoint import CheckpointError
from .hub import bundled, cached, load
from .lens import LENS_SITES, logit_lens
from .shapes import Tokens
from .text import Tokenizer

DEFAULT_MODEL = "tales-gpt2"
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
    lens.add_argument("prompt", nargs="?", help="the text to read; without one it comes from --file or from stdin")
    lens.add_argument("--file", type=Path, help="read the text from a file, less the newline at its end")
    lens.add_argument("--ids", help='token ids instead of text, such as "464 3290"')
    lens.add_argument(
        "--model", default=DEFAULT_MODEL, help="a bundled model, a folder or a Hub repository (default: %(default)s)"
    )
    lens.add_argument("--revision", help="branch, tag or commit of a Hub repository")
    lens.add_argument("--decoder", default="final", help='"final", or "block:K": the last K blocks decode, too')
    lens.add_argument(
        "--sites", default="resid_post", help=f"residuals to decode, with commas: {', '.join(LENS_SITES)}"
    )
    lens.add_argument(
        "--positions", help="columns, as in Python: 0,3,-1 or 5:10; before a minus sign, --positions=-10:"
    )
    lens.add_argument("--top-k", type=int, help="tokens to show for each cell (default: 1, and 5 with --json)")
    lens.add_argument("--show", choices=SHOW, help="what cells show: the best token (prob, the default) or a number")
    lens.add_argument("--json", action="store_true", help="print the whole table as JSON")

    models = commands.add_parser("models", help="the models that are bundled or in the Hub's cache")
    models.set_defaults(command=_models)
    return parser


def _lens(args: argparse.Namespace) -> None:
    if args.json and args.show:
        raise ValueError("--show is for the terminal: --json prints every statistic")
    if args.top_k is not None and args.show not in (None, "prob"):
        raise ValueError(f"--top-k goes with --json or with cells that show tokens, not with --show {args.show}")
    text = _text(args)
    model, tokenizer = load(args.model, revision=args.revision)
    tokens = _tokens(args, text, tokenizer)
    table = logit_lens(
        model,
        tokens,
        decoder=args.decoder,
        sites=[site.strip() for site in args.sites.split(",")],
        positions=_positions(args.positions, tokens.shape[1]),
        top_k=args.top_k if args.top_k is not None else 5 if args.json else 1,
    )
    if args.json:
        from .views.export import as_record

        json.dump({"model": args.model, "family": model.family, **as_record(table, tokenizer)}, sys.stdout, indent=1)
        print()
    else:
        from rich.console import Console

        from .views.terminal import lens_view

        console = Console(highlight=False)
        console.print(lens_view(table, tokenizer, show=args.show or "prob", width=console.width))


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


def _positions(text: str | None, n: int) -> list[int] | None:
    """Positions such as 0,3,-1 or 5:10, for a text of n tokens."""
    if text is None:
        return None
    positions: list[int] = []
    for part in text.split(","):
        try:
            if ":" in part:
                positions += range(n)[slice(*(int(end) if end else None for end in part.split(":")))]
            else:
                positions.append(int(part))
        except (TypeError, ValueError) as error:
            raise ValueError(f"--positions must look like 0,3,-1 or 5:10; got {text!r}") from error
    return positions


def _models(args: argparse.Namespace) -> None:
    rows = [(name, "bundled") for name in bundled()] + [(name, "cached") for name in cached()]
    width = max((len(name) for name, _ in rows), default=0)
    for name, where in rows:
        print(f"{name:{width}}  {where}")

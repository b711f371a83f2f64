"""The `minilens` command. What a user can cause ends in one line on stderr and exit status 2.

Exit status 1 is for a checkpoint that `verify` finds something wrong with.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from . import commands
from .arguments import say
from .checkpoint import CheckpointError
from .commands import DEFAULT_MODEL, FIGURES
from .corpus import SHARD
from .lens import STATS
from .trace import HEAD_SITES, RESID_SITES, SITES
from .views.panels import MEASURES, PARTS, SHORT, WHOSE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (by default the process's own) and return its exit status."""
    status = 0
    try:
        args = _parser().parse_args(argv)
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: say(f"note: {message}")
            status = args.command(args) or 0  # all but `verify` return None
        if sys.stdout:  # None where the caller has closed it
            sys.stdout.flush()
    except UnicodeEncodeError as error:
        say(f"error: the output cannot be written as {error.encoding}: set PYTHONIOENCODING=utf-8")
        return 2
    except (ValueError, CheckpointError) as error:
        say(f"error: {error}")
        return 2
    except BrokenPipeError:  # the reader has seen enough, as in `minilens models | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a disk that is full
        say(f"error: the output cannot be written: {error.strerror}")
        return 2
    except KeyboardInterrupt:
        return 130
    return status


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def _parser() -> _Parser:
    parser = _Parser(prog="minilens", description="The logit lens on GPT-2, GPT-Neo and CTRL.")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    lens = subparsers.add_parser("lens", help="what each layer would say next, as a table")
    lens.set_defaults(command=commands.lens)
    _add_source(lens)
    _add_edits(lens)
    lens.add_argument(
        "--decoder",
        default="final",
        help='"final"; "block:K": the last K blocks decode, too; "mlp"; several with commas, side by side',
    )
    lens.add_argument(
        "--norm", help='"final" (the default), or "plain": the final norm without gain and bias, as --style 2020 has it'
    )
    lens.add_argument("--centre", action="store_true", help="subtract from each row its mean over the positions")
    lens.add_argument(
        "--sites", default="resid_post", help=f"residuals to decode, with commas: {', '.join(RESID_SITES)}"
    )
    lens.add_argument(
        "--positions", help="columns, as in Python: 0,3,-1 or 5:10; before a minus sign, --positions=-10:"
    )
    lens.add_argument("--layers", help="blocks that get rows, written like --positions")
    lens.add_argument("--track", action="append", default=[], metavar="TOKEN", help='follow a token, such as " girl"')
    lens.add_argument("--top-k", type=int, help="tokens to show for each cell (default: 1, and 5 with --json)")
    lens.add_argument(
        "--show",
        help="what cells show in the terminal and in figures, with commas: prob (in the terminal the best tokens, the "
        f"default), {', '.join([name for name in SHORT['2021'] if name != 'prob'] + [*MEASURES])}; or "
        f"{', '.join(WHOSE)} or tracked with _{', _'.join(PARTS)}, as in next_rank",
    )
    lens.add_argument(
        "--stats", help=f"statistics for --json, --csv and --html, with commas, or all: {', '.join(STATS)}"
    )
    lens.add_argument("--json", action="store_true", help="print the whole table as JSON")
    lens.add_argument("--csv", action="store_true", help="print it as CSV, a line for each row and position")
    lens.add_argument("--html", type=Path, metavar="FILE", help="write it as a page to look around in")
    lens.add_argument(
        "--patterns",
        nargs="?",
        const=":",
        metavar="LAYERS",
        help="put attention patterns into the page: after the text alone of all layers, or of some, as --layers",
    )
    _add_figures(lens)
    lens.add_argument("--style", help='of figures: "2021" (the default) or "2020"')
    lens.add_argument("--overwrite", action="store_true", help="replace files that exist")

    trace = subparsers.add_parser("trace", help="save the values of a forward pass in a safetensors file")
    trace.set_defaults(command=commands.trace)
    _add_source(trace)
    _add_edits(trace)
    trace.add_argument("--out", type=Path, required=True, help="the file to write")
    trace.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    trace.add_argument(
        "--fields",
        default="resid_mid,resid_post",
        help="what of each block, with commas, or all (default: %(default)s)",
    )

    walk = subparsers.add_parser("walk", help="how one block computes, line by line with its source")
    walk.set_defaults(command=commands.walk)
    _add_source(walk)
    walk.add_argument("--layer", type=int, default=0, help="the block, from 0 (default: %(default)s)")
    walk.add_argument(
        "--position", type=int, default=-1, help="whose numbers to show; -1 is the last (default: %(default)s)"
    )
    walk.add_argument("--head", type=int, default=0, help="the head of attention, from 0 (default: %(default)s)")

    patching = subparsers.add_parser("patching", help="what the values of one run bring back in another")
    patching.set_defaults(command=commands.patching)
    patching.add_argument("clean", help="the text whose values are taken")
    patching.add_argument("corrupt", help="the text they are put into: as many tokens, and some of them others")
    patching.add_argument(
        "--right", required=True, metavar="TOKEN", help='the token that the clean text calls for, such as " Sue"'
    )
    patching.add_argument(
        "--wrong",
        metavar="TOKEN",
        help="the one that the corrupt text calls for; the metric is the difference of their logits, and without "
        "--wrong the log-probability of --right",
    )
    patching.add_argument(
        "--sites",
        help=f"values to put in, with commas, of {', '.join(SITES)} (default: resid_pre,attn_out,mlp_out; by head z); "
        f"by head {', '.join(HEAD_SITES)}",
    )
    patching.add_argument("--by", default="position", help='"position" or "head" (default: %(default)s)')
    patching.add_argument(
        "--position", type=int, default=-1, help="where the metric is taken; -1 is the last (default: %(default)s)"
    )
    _add_model(patching)
    patching.add_argument("--json", action="store_true", help="print all numbers as JSON")
    patching.add_argument("--html", type=Path, metavar="FILE", help="write the grids as a page")
    _add_figures(patching)
    patching.add_argument("--overwrite", action="store_true", help="replace files that exist")

    study = subparsers.add_parser("study", help="the known experiments of the logit lens on a model, as a report")
    study.set_defaults(command=commands.study)
    study.add_argument(
        "models", nargs="*", metavar="MODEL", help=f"a bundled model, a folder or a Hub repository ({DEFAULT_MODEL})"
    )
    study.add_argument(
        "--compare", action="store_true", help="several models in one report: those named, or else all bundled ones"
    )
    study.add_argument("--out", type=Path, default=Path("study"), help="the folder to write to (default: %(default)s)")
    study.add_argument("--overwrite", action="store_true", help="replace a report that is there")
    study.add_argument("--file", type=Path, help="a passage to read in place of the built-in one")
    study.add_argument("--word", help="the rare word to follow; one token of the model's vocabulary")
    study.add_argument("--revision", help="branch, tag or commit of a Hub repository")

    corpus = subparsers.add_parser(
        "corpus", help="the lens on whole files of text, with errors; as many workers as you like"
    )
    corpus.set_defaults(command=commands.corpus)
    corpus.add_argument("model", metavar="MODEL", help="a bundled model, a folder or a Hub repository")
    corpus.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="text, with a line of <|endoftext|> after each document, or .jsonl; compressed too (.gz)",
    )
    corpus.add_argument("--lines", action="store_true", help="each line of a text file is a document")
    corpus.add_argument("--key", help='where an object of .jsonl has its text (default: "text")')
    corpus.add_argument(
        "--out", type=Path, default=Path("corpus"), help="the folder of the results (default: %(default)s)"
    )
    corpus.add_argument(
        "--beside",
        action="append",
        default=[],
        type=Path,
        metavar="FOLDER",
        help="another sweep's folder, whose curves are drawn beside these",
    )
    corpus.add_argument("--overwrite", action="store_true", help="replace a report that is another")
    corpus.add_argument("--json", action="store_true", help="print the report as JSON")
    corpus.add_argument("--csv", action="store_true", help="print its numbers as CSV")
    corpus.add_argument("--decoder", default="final", help="as for lens; several with commas share the forward pass")
    corpus.add_argument("--norm", default="final", help='"final" or "plain" (default: %(default)s)')
    corpus.add_argument(
        "--sites", default="resid_post", help=f"residuals to decode, with commas: {', '.join(RESID_SITES)}"
    )
    corpus.add_argument("--window", type=int, help="tokens that the model sees together (default: its context)")
    corpus.add_argument(
        "--prefix",
        help="text to put before every window, not counted (default: the first control code, if there are any)",
    )
    corpus.add_argument("--batch", type=int, default=1024, help="tokens to read at once (default: %(default)s)")
    corpus.add_argument(
        "--shard",
        type=int,
        default=SHARD,
        help="characters of text that one worker takes at a time (default: %(default)s)",
    )
    corpus.add_argument("--threads", type=int, default=1, help="of each worker (default: %(default)s)")
    corpus.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU for each worker, where there is one)")
    corpus.add_argument("--revision", help="branch, tag or commit of a Hub repository")

    geometry = subparsers.add_parser("geometry", help="how the embeddings of the vocabulary lie in space")
    geometry.set_defaults(command=commands.geometry)
    _add_model(geometry)
    geometry.add_argument("--json", action="store_true", help="print the numbers as JSON")

    verify = subparsers.add_parser("verify", help="whether a checkpoint is what it says, and is computed rightly")
    verify.set_defaults(command=commands.verify)
    verify.add_argument("model", metavar="MODEL", help="a bundled model, a folder or a Hub repository")
    verify.add_argument("--revision", help="branch, tag or commit of a Hub repository")
    verify.add_argument(
        "--as",
        dest="known_as",
        metavar="REPOSITORY",
        help="the repository on the Hub whose published outputs the model should give",
    )
    verify.add_argument("--json", action="store_true", help="print the report as JSON")

    models = subparsers.add_parser("models", help="the models that are bundled or in the Hub's cache")
    models.set_defaults(command=commands.models)
    return parser


def _add_source(parser: argparse.ArgumentParser) -> None:
    """The text, and the model that reads it."""
    parser.add_argument("prompt", nargs="?", help="the text to read; without one it comes from --file or from stdin")
    parser.add_argument("--file", type=Path, help="read the text from a file, less the newline at its end")
    parser.add_argument("--ids", help='token ids instead of text, such as "464 3290"')
    _add_model(parser)


def _add_edits(parser: argparse.ArgumentParser) -> None:
    """Values to replace while the model runs."""
    for option, what in (
        ("--zero", "put zeros in place of a value, such as 5.attn_out or 5.z:0,3@-1 (two heads, the last position)"),
        ("--mean", "put its mean over the text of --from in place of a value"),
        ("--patch", "put the value of the text of --from in its place; @-1 is the last position of either"),
    ):
        parser.add_argument(option, action="append", default=[], metavar="PLACE", help=what)
    parser.add_argument("--from", dest="source", metavar="TEXT", help="another text, for --mean and --patch")


def _add_figures(parser: argparse.ArgumentParser) -> None:
    for kind in FIGURES:
        parser.add_argument(f"--{kind}", type=Path, metavar="FILE", help=f"draw it as {kind.upper()}; needs matplotlib")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help="a bundled model, a folder or a Hub repository (default: %(default)s)"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a Hub repository")

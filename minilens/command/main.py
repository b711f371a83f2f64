"""The `minilens` command. What a user can cause ends in one line on stderr and exit status 2.

Exit status 1 is for a checkpoint that `verify` finds something wrong with.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from ..checkpoint.settings import CheckpointError
from . import corpus, diff, geometry, lens, models, patching, study, trace, verify, walk
from .outputs import say, with_signs

COMMANDS = (lens, trace, walk, diff, patching, study, corpus, geometry, verify, models)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (by default the process's own) and return its exit status."""
    status = 0
    try:
        args = _parser().parse_args(argv)
        with_signs(sys.stdout)
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
    for command in COMMANDS:
        command.add_to(subparsers)
    return parser

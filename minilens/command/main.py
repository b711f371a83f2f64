"""The `minilens` command. What a user can cause ends in one line on stderr and exit status 2.

Exit status 1 is for a checkpoint that `verify` finds something wrong with, and for an exercise that is not right yet.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from typing import Any, NoReturn

import torch

from ..checkpoint.settings import CheckpointError
from ..version import __version__
from . import (
    attention,
    attribute,
    check,
    corpus,
    diff,
    exercise,
    fit,
    generate,
    geometry,
    glossary,
    heads,
    lens,
    life,
    live,
    models,
    parts,
    patching,
    serve,
    study,
    trace,
    verify,
    walk,
)
from .options import Command, read
from .outputs import say, with_signs

MODULES = (
    lens,
    live,
    serve,
    generate,
    trace,
    walk,
    diff,
    attention,
    parts,
    attribute,
    patching,
    study,
    corpus,
    fit,
    life,
    heads,
    geometry,
    verify,
    models,
    exercise,
    check,
    glossary,
)
COMMANDS: tuple[Command[Any], ...] = tuple(module.COMMAND for module in MODULES)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (by default the process's own) and return its exit status."""
    with ExitStack() as stack:
        nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8", errors="replace"))
        if sys.stdout is None:  # its caller has closed it
            stack.enter_context(redirect_stdout(nowhere))
        if sys.stderr is None:
            stack.enter_context(redirect_stderr(nowhere))
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    status = 0
    try:
        args = _parser().parse_args(argv)
        with_signs(sys.stdout)
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: say(f"note: {message}")
            command: Command[Any] = args.command
            status = command.run(read(command.request, args)) or 0  # most return None
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
    except (MemoryError, RuntimeError) as error:  # torch has a type of its own for a GPU's memory, and none for other
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "can't allocate memory" not in str(error):
            raise
        say("error: there is not enough memory: take a shorter text, a smaller model, or --dtype bfloat16")
        return 2
    except KeyboardInterrupt:
        return 130
    return status


class _Parser(argparse.ArgumentParser):
    """argparse, but for what is said where the user is wrong, values that begin with a minus sign, and full disks."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Take the word after an option as its value, though it begins with a minus sign, unless it is an option."""
        flags = {flag: action for action in self._actions for flag in action.option_strings}

        def options(word: str) -> list[argparse.Action]:
            """What a word may stand for, which may be cut short."""
            name = word.partition("=")[0]
            return [flags[name]] if name in flags else [flags[flag] for flag in flags if flag.startswith(name)]

        words: list[str] = []
        for word in sys.argv[1:] if args is None else args:
            before = options(words[-1]) if words and "--" not in words and "=" not in words[-1] else []
            if word[:1] == "-" and not options(word) and len(before) == 1 and before[0].nargs in (None, "?"):
                words[-1] += f"={word}"
            else:
                words.append(word)
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        if "expected one argument" in message:
            message += "; a value that begins with a minus sign stands after =, as in --positions=-3:"
        elif message.startswith("unrecognized arguments: -"):
            message += ": there is no such option, and a text that begins with a minus sign stands after --"
        elif message.startswith("unrecognized arguments: "):
            message += ": a text stands in quotes, and there is no place for another"
        raise ValueError(f"{message} (see {self.prog} --help)")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        sys.stdout.flush()  # where that fails, the help has not been written
        super().exit(status, message)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print, and let an error be one; argparse's own method is silent about a full disk."""
        (file or sys.stdout).write(message)


def _parser() -> _Parser:
    parser = _Parser(prog="minilens", description="The logit lens on GPT-2, GPT-Neo and CTRL.")
    parser.add_argument("--version", action="version", version=f"minilens {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_to(subparsers)
    return parser

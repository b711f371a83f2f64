"""The options of a command, each told once: a request is a frozen dataclass, and its fields are the options.

A field that is neither `option` nor `argument` is a group: a dataclass of the same kind, which several commands have.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar, get_args

Subparsers: TypeAlias = "argparse._SubParsersAction[Any]"
R = TypeVar("R")


@dataclass(frozen=True)
class Command(Generic[R]):
    """A command: its name, what it does in a few words, the request that it takes, and what carries it out.

    run returns the exit status, or None for 0.
    """

    name: str
    what: str
    request: type[R]
    run: Callable[[R], int | None]

    def add_to(self, subparsers: Subparsers) -> None:
        parser = subparsers.add_parser(self.name, help=self.what, description=f"{self.what[0].upper()}{self.what[1:]}.")
        parser.set_defaults(command=self)
        _add(parser, parser, self.request)


def option(*flags: str, **how: Any) -> Any:
    """A field that an option gives; without flags, `top_k` is --top-k. how: as for `add_argument`.

    The field's annotation says whether it is a flag (bool), a number (int, float) or a path.
    """
    return field(metadata={"flags": flags, "how": how})


def argument(**how: Any) -> Any:
    """A field that a word without a flag gives."""
    return field(metadata={"flags": None, "how": how})


def read(request: type[R], args: argparse.Namespace) -> R:
    """The request with what the user gave. Raises ValueError as the request itself does."""
    options: Any = fields(request)  # type: ignore[arg-type]  # R is a dataclass
    return request(**{f.name: getattr(args, f.name) if f.metadata else read(f.type, args) for f in options})


def _add(parser: argparse.ArgumentParser, group: "argparse._ActionsContainer", request: Any) -> None:
    """Options go into their group, words without a flag to the front of the help."""
    for f in fields(request):
        kind: Any = f.type
        if not f.metadata:
            title = (kind.__doc__ or "").partition(".")[0]
            _add(parser, parser.add_argument_group(title) if group is parser else group, kind)
            continue
        flags, how = f.metadata["flags"], f.metadata["how"]
        one = (get_args(kind) or (kind,))[0]  # int of int | None, Path of list[Path]
        typed: dict[str, Any] = (
            {"action": "store_true"} if one is bool else {"type": one} if one in (int, float, Path) else {}
        )
        if flags is None:
            parser.add_argument(f.name, **typed, **how)
        else:
            flags = flags or (f"--{f.name.replace('_', '-')}",)
            group.add_argument(*flags, dest=f.name, **typed, **how)

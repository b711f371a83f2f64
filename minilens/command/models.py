"""`minilens models`: the models that are bundled or in the cache of the Hub."""

from dataclasses import dataclass
from pathlib import Path

from ..checkpoint.hub import bundled
from ..checkpoint.settings import CheckpointError
from ..loading import cached, config_of
from ..views.tokens import text_label
from .options import Command

HEADS = ("model", "family", "layers", "width", "context", "size", "where")


@dataclass(frozen=True, kw_only=True)
class Request:
    """`minilens models` takes no options."""


def models(request: Request) -> None:
    """Print the models that are there, a line each."""
    from rich.cells import cell_len, set_cell_size

    rows = [_row(name, folder) for name, folder in (*bundled().items(), *cached().items())]
    widths = [max(map(cell_len, column)) for column in zip(HEADS, *rows, strict=True)]
    for row in (HEADS, *rows) if rows else ():
        print("  ".join(set_cell_size(text, width) for text, width in zip(row, widths, strict=True)).rstrip())


def _row(name: str, folder: Path) -> tuple[str, ...]:
    """A model; its sizes are - where its config.json cannot be read."""
    try:
        family, config = config_of(folder)
        sizes = (family, f"{config.n_layers}", f"{config.d_model}", f"{config.n_ctx}")
    except CheckpointError:
        sizes = ("-",) * 4
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return text_label(name), *sizes, f"{size / 1e6:,.1f} MB", text_label(str(folder))


COMMAND = Command("models", "the models that are bundled or in the Hub's cache", Request, models)

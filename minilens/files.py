"""Writing a file: whole, or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex


@contextmanager
def replacing(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """A new, empty file to write to, which takes the place of `path` at the end.

    It stands beside `path`, under a name that nobody can guess, and is flushed to the disk before it is renamed. When
    anything fails, or the process is stopped, what was at `path` is still there. Raises ValueError as `check_new` does,
    and where the file cannot be written.
    """
    new = path.with_name(f"{path.name[:40]}.{os.getpid()}.{token_hex(8)}")
    try:
        new.open("xb").close()  # x: no file is opened that is there already, and no link followed
        mode = (path if path.exists() else new).stat().st_mode
        yield new
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        new.chmod(mode & 0o777)  # a writer may have put a file of its own there, as safetensors does
        check_new(path, overwrite)  # it may have been made in the meantime
        new.replace(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)


def check_new(path: Path, overwrite: bool) -> None:
    """Raise ValueError for a file that cannot be written, or should not be. A link is not followed."""
    if path.is_symlink() or (path.exists() and not path.is_file()):  # a device, say, whose place a file would take
        raise ValueError(f"{path} is not a file that could be replaced")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists: give another name, or --overwrite")
    if not path.parent.is_dir():
        raise ValueError(f"{path} cannot be written: there is no such folder")

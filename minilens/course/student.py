"""A student's file, checked in a process of its own: with the user's rights, a limit of time, and its prints kept.

What the file does there, an endless loop or the end of the process, leaves this one as it is. It is no prison: the
file may do whatever its user may.
"""

import io
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

from ..checkpoint.reading import opened
from .lines import LineResult

LONGEST_FILE = 2**20  # bytes
LONGEST = 600.0  # seconds for the whole check, over and above the limit of one line
PRINTED = 2000  # characters of what the file prints that are kept
CHILD = "import sys; sys.path[:] = filter(None, sys.path); from minilens.course import student; student.main()"


@dataclass(frozen=True)
class Checked:
    """A file, checked: its lines, and what else there is to say."""

    source: str
    results: tuple[LineResult, ...]
    printed: str = ""  # by the file itself
    stopped: str = ""  # why the check did not come to its end

    @property
    def is_right(self) -> bool:
        """Whether everything is written, and right."""
        return not self.stopped and all(result.verdict == "right" for result in self.results)


def check_apart(path: Path, limit: float = 30.0) -> Checked:
    """Check a file, in a process of its own.

    limit: seconds that one of its lines may take. Raises ValueError for a file that cannot be read, or that is no
    exercise.
    """
    source = _read(path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # the same minilens as here
    command = [sys.executable, "-c", CHILD, str(path.absolute()), str(limit)]
    try:
        ran = subprocess.run(
            command, input=source.encode(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
            timeout=limit + LONGEST,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Checked(source, (), stopped=f"the file is not done after {limit + LONGEST:g} seconds")
    try:
        told = json.loads(ran.stdout)
    except ValueError:  # the file has ended the process, or it has run out of memory
        return Checked(source, (), stopped=f"the file has ended its process, with the status {ran.returncode}")
    if told["error"]:
        raise ValueError(told["error"])
    return Checked(source, tuple(LineResult(**each) for each in told["results"]), told["printed"], told["stopped"])


def _read(path: Path) -> str:
    try:
        with opened(path) as file:
            source = file.read(LONGEST_FILE + 1)
        if len(source) > LONGEST_FILE:
            raise ValueError(f"{path} has more than {LONGEST_FILE:,} bytes, and an exercise has some 10,000")
        return source.decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeError as error:
        raise ValueError(f"{path} is not text in UTF-8") from error


class _Kept(io.StringIO):
    """The first characters of what is printed; the rest goes nowhere."""

    def write(self, text: str) -> int:
        super().write(text[: max(0, PRINTED - self.tell())])
        return len(text)


def main() -> None:
    """What the process does: check the file, and write what is found to its stdout, as JSON."""
    report = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # so that nothing else is written there
    path, limit = sys.argv[1], float(sys.argv[2])
    source = sys.stdin.buffer.read().decode()
    found: list[LineResult] = []
    printed = _Kept()
    first = threading.Lock()

    def tell(**told: str) -> None:
        """Write the report, and end the process whatever threads the file has begun. The first one to come does it."""
        if first.acquire(blocking=False):
            record = {"error": "", "stopped": "", "printed": printed.getvalue()}
            json.dump({**record, **told, "results": [asdict(each) for each in found]}, report)
            report.flush()
            os._exit(0)

    def watch(thread: int) -> None:
        """Stop when the same line of the file has run for too long."""
        n, since = 0, time.monotonic()
        while time.monotonic() - since < limit:
            time.sleep(min(limit, 1) / 10)
            line = _line_now(thread, path)
            if line is None or len(found) != n:  # it does not run, or the check is one result further
                n, since = len(found), time.monotonic()
        told = f"line {line} is not done after {limit:g} seconds: is there a loop without an end?"
        tell(stopped=f"{told} What follows it was not tried.")

    threading.Thread(target=watch, args=(threading.get_ident(),), daemon=True).start()
    import torch

    from .check import check

    torch.set_num_threads(1)  # the texts are short: threads would only wait for one another
    sys.path.insert(0, str(Path(path).parent))  # what stands beside the file can be imported
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            check(source, path, each=found.append)
    except ValueError as error:
        tell(error=str(error))
    tell()


def _line_now(thread: int, path: str) -> int | None:
    """The line of the file that a thread is in: the one that is tried, not one that it calls."""
    line, frame = None, sys._current_frames().get(thread)
    while frame:
        line = frame.f_lineno if frame.f_code.co_filename == path else line
        frame = frame.f_back
    return line

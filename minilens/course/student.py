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
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .lines import LineResult

START = 120.0  # seconds until the process must have begun and loaded the model, over and above the limit
PRINTED = 2000  # characters of what the file prints that are kept
CHILD = "import sys; sys.path[:] = filter(None, sys.path); from minilens.course import student; student.main()"


@dataclass(frozen=True)
class Checked:
    """A file, checked: its lines, and what else there is to say."""

    results: tuple[LineResult, ...]
    printed: str = ""  # by the file itself
    stopped: str = ""  # why the check did not come to its end

    @property
    def is_right(self) -> bool:
        """Whether everything is written, and right."""
        return not self.stopped and all(result.verdict == "right" for result in self.results)


def check_apart(path: Path, limit: float = 30.0) -> Checked:
    """Check a file, in a process of its own.

    limit: seconds that its code may take. Raises ValueError for a file that cannot be read, or that is no exercise.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # the same minilens as here
    command = [sys.executable, "-c", CHILD, str(path.absolute()), str(limit)]
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    try:
        ran = subprocess.run(command, **pipes, env=environment, timeout=limit + START)
    except subprocess.TimeoutExpired:
        return Checked((), stopped=f"the file is not done after {limit:g} seconds: is there a loop without an end?")
    try:
        told = json.loads(ran.stdout)
    except ValueError:  # the file has ended the process, or it has run out of memory
        return Checked((), stopped=f"the process of the file has ended by itself, with the status {ran.returncode}")
    if told["error"]:
        raise ValueError(told["error"])
    return Checked(tuple(LineResult(**each) for each in told["results"]), told["printed"], told["stopped"])


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
    import torch  # before the clock is started

    from .check import check

    torch.set_num_threads(1)  # the texts are short: threads would only wait for one another

    found: list[LineResult] = []
    printed = _Kept()
    told_once = threading.Lock()

    def tell(told: Mapping[str, str]) -> None:
        """Write the report; who comes first writes it."""
        if told_once.acquire(blocking=False):
            record = {"error": "", "stopped": "", "results": [asdict(each) for each in found]}
            json.dump({**record, "printed": printed.getvalue(), **told}, report)
            report.flush()
            os._exit(0)  # whatever threads the file has begun

    main_thread = threading.get_ident()

    def watch() -> None:
        time.sleep(limit)
        line, frame = 0, sys._current_frames().get(main_thread)
        while frame and not line:
            line = frame.f_lineno if frame.f_code.co_filename == path else 0
            frame = frame.f_back
        where = f"line {line}" if line else "the file"
        tell({"stopped": f"{where} is not done after {limit:g} seconds: is there a loop without an end?"})

    threading.Thread(target=watch, daemon=True).start()
    sys.path.insert(0, str(Path(path).parent))  # what stands beside the file can be imported
    error = ""
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            check(_read(Path(path)), path, each=found.append)
    except ValueError as problem:
        error = str(problem)
    tell({"error": error})


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read: {error.strerror}") from error
    except UnicodeError as error:
        raise ValueError(f"{path.name} is not text in UTF-8") from error

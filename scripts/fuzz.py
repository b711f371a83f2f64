"""Broken and malicious checkpoints, thousands of them: each must load correctly or be refused in one sentence.

    python scripts/fuzz.py                                     every kind: 500 drawn cases, and those made by hand
    python scripts/fuzz.py --kind bin --cases 5000 --seed 7    more of one kind
    python scripts/fuzz.py --kind bin --seed 7 --case 137      one case again, by its number or its name

A case is a good checkpoint of a tiny random model with a file or two of it changed (fuzzing/). In a process of its
own `minilens.load` reads it, and of every three cases, but for very large ones, one is read by the command `minilens
lens` as well. A case is

- refused where CheckpointError is raised, of one line that names the folder, and the command prints that line alone;
  or where the model loads without its tokenizer, and one line says why;
- loaded where config, logits and tokens are those of a second reading, which shares no parser with minilens: Python's
  json and numpy for safetensors, Python's pickle for .bin, a BPE of a few lines for vocab.json, and for tokenizer.json
  the `tokenizers` package itself. What that reading refuses must not load: a key that is there twice, tensors that
  overlap, holes between them. Weights are not read before they are used, so those that are not finite load, and the
  lens refuses them.

Of the kinds `tuned` and `jacobian` a published lens is read in its place, and its maps are compared.

Anything else is printed and kept: another exception, a wrong number, a crash, more than 10 seconds, a rise of memory by
more than twice the files and 768 MiB, a file written outside the checkpoint or changed in it, anything that a library
prints. Exit status 1 if there is any.
"""

import argparse
import contextlib
import gc
import io
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import torch
from fuzzing import KINDS, by_hand, lenses, write
from fuzzing.second import TEXT, difference

import minilens
from minilens.command.main import main as minilens_command

SECONDS = 10
SPARE = 768 * 2**20  # bytes: the longest text that minilens reads, 16 MiB, as Python's or Rust's objects


class Case(NamedTuple):
    kind: str
    seed: int
    name: str  # of one made by hand, or the number of one that is drawn

    def __str__(self) -> str:
        return f"--kind {self.kind} --seed {self.seed} --case {self.name!r}"


class Result(NamedTuple):
    outcome: str  # "refused", "loaded", or what went wrong
    seconds: float = 0
    memory: int = 0
    sentence: str = ""


# The process that reads them.


def listing(root: Path) -> list[tuple[str, int, int]]:
    """What lies in the folder: names, sizes, times; but for what this script writes there itself."""
    found = []
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            state = os.lstat(os.path.join(folder, name))
            found.append((os.path.join(folder, name), state.st_size if name in files else 0, state.st_mtime_ns))
    return sorted(entry for entry in found if "offending" not in entry[0] and not entry[0].endswith("stderr"))


def memory(what: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what)]
    return int(line.split()[1]) * 1024


def sentence_fault(sentence: str, folder: Path) -> str | None:
    """Why this is not one sentence about a file of the folder."""
    if str(folder) not in sentence:
        return "it does not name the file"
    if not sentence.isprintable() or re.search(r"\.\s+[A-Z]|Traceback|<.* object at|\.$", sentence):
        return "it is not one sentence on one line"
    if len(sentence) > 1000:
        return f"it has {len(sentence)} characters"
    return None


def command(folder: Path, *source: str) -> tuple[int | str, list[str]]:
    """The exit status of the command `minilens lens`, or its exception; and the lines on stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status: int | str = minilens_command(["lens", *source, "--model", str(folder)])
        except BaseException as error:
            status = repr(error)
    return status, err.getvalue().splitlines()


def has_tokenizer(folder: Path, model: minilens.Model) -> bool:
    """Whether a file is there that makes or spoils a tokenizer."""
    names = ["vocab.json", "merges.txt"]
    if model.family != "ctrl":
        names += ["tokenizer.json", "aitextgen.tokenizer.json"]
    return any(os.path.lexists(folder / name) for name in names)


def attempt(case: Case, root: Path) -> Result:
    """Read one checkpoint and say what came of it."""
    folder = root / "case"
    said = (root / "stderr").stat().st_size
    gc.collect()
    before = listing(root)
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    resident, start = memory("VmRSS"), time.perf_counter()
    sentence, said_so = "", False  # that there is no tokenizer, and why
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        model: Any
        tokenizer: Any
        try:
            is_lens = case.kind in lenses.FILES
            model, tokenizer = (lenses.read(case.kind, folder), None) if is_lens else minilens.load(folder)
            outcome = "loaded"
            for note in map(str, (note.message for note in notes)):
                fault = sentence_fault(note, folder)
                said_so = said_so or note.startswith(f"{str(folder)!r} is loaded without its tokenizer: ")
                outcome = outcome if fault is None else f"{fault}: {note:.1000}"
            is_silent = not is_lens and tokenizer is None and not said_so and has_tokenizer(folder, model)
            if is_silent or (said_so and tokenizer):
                outcome = f"the tokenizer is {tokenizer}, and what is said of it: {said_so}"
        except minilens.CheckpointError as error:
            sentence = str(error)
            fault = sentence_fault(sentence, folder)
            outcome = "refused" if fault is None else f"{fault}: {sentence:.1000}"
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error!s:.300}: {traceback.format_exc().splitlines()[-3].strip()}"
        seconds, rise = time.perf_counter() - start, memory("VmHWM") - resident
        if outcome == "loaded":
            try:
                if is_lens:
                    outcome = lenses.lens_difference(case.kind, folder, model) or "loaded"
                else:
                    outcome = difference(folder, model, tokenizer) or ("refused" if said_so else "loaded")
            except Exception as error:
                outcome = f"the second reading refuses: {type(error).__name__} {error!s:.300}"
    if not is_lens and outcome in ("refused", "loaded") and seconds < 0.5 and crc32(case.name.encode()) % 3 == 0:
        text = [TEXT] if case.kind == "tokenizer" and case.name[-1] in "02468xyz" else ["--ids", "1 2 3"]
        status, lines = command(folder, *text)
        errors = [line.removeprefix("minilens: error: ") for line in lines if line.startswith("minilens: error: ")]
        if not all(line.startswith("minilens: ") for line in lines) or [status, len(errors)] not in ([0, 0], [2, 1]):
            outcome = f"the command ends in {status} and says {lines[-3:]}"
        elif outcome == "refused" and not said_so and errors[0].split("(")[0] != sentence.split("(")[0]:
            outcome = f"the command says {errors}, and load {sentence}"
        elif (
            (outcome == "loaded" or said_so)
            and status != 0
            and not re.search("finite|out of range|context holds|empty|no tokenizer|cannot read this text", errors[0])
        ):
            outcome = f"it loads, and the command says {errors}"
    if rise > 2 * size + SPARE:
        outcome = f"memory rises by {rise:,} bytes for files of {size:,}"
    if (after := listing(root)) != before:
        outcome = f"files were written: {sorted({entry[0] for entry in set(before) ^ set(after)})}"
    if (root / "stderr").stat().st_size > said:
        outcome = f"a library writes to stderr: {(root / 'stderr').read_text(errors='replace')[said:]!r:.300}"
    return Result(outcome, seconds, rise, sentence)


def serve(connection: Any, root: Path) -> None:
    """The process: read a case, answer with its result, until there are no more."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = 8 * 2**30 + int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os.dup2(os.open(root / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.chdir(root / "work")
    os.environ |= dict(
        HOME=str(root / "work"), TMPDIR=str(root / "work"), HF_HOME=str(root / "work"), HF_HUB_OFFLINE="1"
    )
    tempfile.tempdir = None
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    warnings.resetwarnings()
    while True:
        case = Case(*connection.recv())
        shutil.rmtree(root / "case", ignore_errors=True)
        write(*case, root / "case")
        connection.send("written")
        connection.send(tuple(attempt(case, root)))


class Reader:
    """A process that reads checkpoints, and is replaced where one of them kills it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("work", "canary", "offending"):
            (root / name).mkdir()
        (root / "canary" / "file").write_text("as it was")
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, self.root), daemon=True)
        self.process.start()
        theirs.close()

    def stop(self) -> None:
        self.process.kill()
        self.process.join()

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def read(self, case: Case) -> Result:
        self.connection.send(tuple(case))
        try:
            assert self.connection.recv() == "written"
            # Where others keep the machine busy, a second is not a second.
            start = self.cpu_seconds()
            if self.connection.poll(SECONDS) or (
                self.cpu_seconds() - start < SECONDS / 2 and self.connection.poll(5 * SECONDS)
            ):
                return Result(*self.connection.recv())
            result = Result(f"it takes more than {SECONDS} seconds", SECONDS)
        except EOFError:
            self.process.join()
            code = self.process.exitcode or 0
            said = (self.root / "stderr").read_text(errors="replace")[-300:]
            result = Result(f"the process dies of {signal.Signals(-code).name if code < 0 else code}: {said}")
        self.stop()
        self.start()
        return result


def cases(kind: str, n: int, seed: int) -> list[Case]:
    """Those made by hand, then n that are drawn."""
    return [Case(kind, seed, name) for name in (*by_hand(kind), *map(str, range(n)))]


def survey(chosen: list[Case], root: Path) -> list[tuple[Case, Result]]:
    """What comes of each case; those that are neither refused nor loaded are kept in the folder `offending`."""
    reader, results = Reader(root), []
    for case in chosen:
        result = reader.read(case)
        results.append((case, result))
        if result.outcome not in ("refused", "loaded"):
            kept = root / "offending" / re.sub(r"\W+", "-", f"{case.kind} {case.name} {case.seed}")
            with contextlib.suppress(OSError):  # killed before it was made, or kept before
                (root / "case").rename(kept)
            (root / "offending" / f"{kept.name}.txt").write_text(f"{result.outcome}\nfuzz.py {case}\n")
            print(f"{case}\n    {result.outcome}", flush=True)
    reader.stop()
    return results


def table(results: list[tuple[Case, Result]]) -> str:
    lines = ["kind         cases  by hand  refused  loaded  anything else  slowest     memory"]
    for kind in (*KINDS, "all"):
        rows = [(case, result) for case, result in results if kind in (case.kind, "all")]
        if rows:
            outcomes = [result.outcome for _, result in rows]
            refused, loaded = outcomes.count("refused"), outcomes.count("loaded")
            slowest, most = max(result.seconds for _, result in rows), max(result.memory for _, result in rows)
            by_name = sum(not case.name.isdigit() for case, _ in rows)
            lines.append(
                f"{kind:12} {len(rows):5}  {by_name:7}  {refused:7}  {loaded:6}  {len(rows) - refused - loaded:13}"
                f"  {slowest:5.2f} s  {most / 2**20:5.0f} MiB"
            )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kind", choices=KINDS, action="append", help="by default all")
    parser.add_argument("--cases", type=int, default=500, help="to draw of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of those drawn (default: %(default)s)")
    parser.add_argument("--case", help="one case only, by its number or its name; its folder is kept")
    parser.add_argument("--say", action="store_true", help="print each sentence")
    args = parser.parse_args(argv)
    root = Path(tempfile.mkdtemp(prefix="minilens-fuzz-"))
    chosen = [case for kind in args.kind or KINDS for case in cases(kind, args.cases, args.seed)]
    if args.case is not None:
        chosen = [Case(kind, args.seed, args.case) for kind in args.kind or KINDS]
    results = survey(chosen, root)
    if args.say or args.case is not None:
        for case, result in results:
            print(f"{case}\n    {result.outcome} {result.sentence}")
    print(table(results))
    failed = any(result.outcome not in ("refused", "loaded") for _, result in results)
    if failed or args.case is not None:
        print(f"files: {root}")
    else:
        shutil.rmtree(root)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

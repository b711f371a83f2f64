"""Commands are killed, disks fill up, folders cannot be written to: nothing old is lost, and nothing half is there.

    python scripts/torture.py                       all parts, in an hour or so
    python scripts/torture.py kill --command corpus --times 100 --seed 7
    python scripts/torture.py --quick               a little of each

kill      a command writes its files over older ones, and is killed (SIGKILL) at a random moment, half of the times
          while it writes. A sweep over a corpus has three workers, of which one or all are killed
full      the same on a disk that is full after some bytes
readonly  the same on a disk that cannot be written to
memory    2,000 calls of each public function in one process: how much more memory it then has
threads   eight threads on one model, each with texts and edits of its own: do they find the numbers of one

After each kill and each failure every file must be the old one or the new one, byte for byte, and a failure must be
said in one line. Then the same command must give what it gives undisturbed. A process that is killed may leave the file
that it was writing, under a name of its own: the column "left" counts them. full and readonly mount a small disk, which
takes root's rights on Linux. Exit status 1 if anything is amiss.
"""

import argparse
import ctypes
import gc
import inspect
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from fuzzing.good import good, text_files

import minilens
import minilens.views.plots
from minilens.checkpoint.hub import bundled
from minilens.command.main import main as minilens_command

MODEL = bundled()["tales-gpt2"]
TEXTS = ("Once upon a time there was a cat", "Once upon a time there was a dog")  # of the old files and the new ones
NAMES = ("tales-gpt2", str(MODEL))  # of one model: the report of a sweep has another name in it, and the same numbers
FILES = [word for kind in ("html", "png", "svg", "pdf") for word in (f"--{kind}", f"OUT/file.{kind}")]
COMMANDS = {
    "lens": ["lens", "TEXT", "--overwrite", "--patterns", "0", *FILES],
    "patching": ["patching", "TEXT", "Once upon a time there was a boy", "--right", " girl", "--overwrite", *FILES],
    "attribute": ["attribute", "TEXT", "--by", "head", "--overwrite", *FILES],
    "trace": ["trace", "TEXT", "--overwrite", "--out", "OUT/trace.safetensors"],
    "study": ["study", "NAME", "--overwrite", "--out", "OUT"],
    "corpus": ["corpus", "NAME", "CORPUS", "--overwrite", "--out", "OUT", "--lines", "--shard", "2000"],
    "fit": ["fit", "TINY", "CORPUS", "--overwrite", "--out", "OUT", "--lines", "--shard", "2000", "--kind", "KIND"],
}
SWEEPS = ("corpus", "fit")  # the commands that several workers share
# Bytes that all calls of a function may add. The packages keep some: safetensors 0.8 64 bytes of each tensor that it
# reads, and tokenizers 0.23 kilobytes of each tokenizer that has read a text.
MOST = 32 * 2**20
TEMPORARY = re.compile(r"\.\d+\.[0-9a-f]{16}$")  # as minilens/files.py names a file that is being written
Contents = dict[str, bytes]


class Row(NamedTuple):
    """What a part has found."""

    part: str
    what: str
    outcome: str
    amiss: list[str]
    left: int = 0  # files that killed processes were writing


def start(arguments: list[str], said: Path) -> int:
    """The id of a process that carries out a command; what it prints goes to a file. It need not import torch anew."""
    if pid := os.fork():
        return pid
    status = 70
    try:
        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1), os.dup2(out, 2)
        status = minilens_command(arguments)
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def ended(pid: int) -> int:
    """The exit status, or less than 0: the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Scene:
    """A command: the files that it makes undisturbed, and those of another text, which are there before."""

    def __init__(self, name: str, root: Path, disk: Path, seed: int) -> None:
        self.name, self.root, self.disk, self.random = name, root, disk, random.Random(f"{name} {seed}")
        self.n_workers = 3 if name in SWEEPS else 1
        self.amiss: list[str] = []
        self.left = 0
        self.old = self.made(0)
        begin = time.monotonic()
        self.new = self.made(1)
        self.seconds = time.monotonic() - begin

    def arguments(self, folder: Path, n: int) -> list[str]:
        words = {"TEXT": TEXTS[n], "NAME": NAMES[n], "KIND": ("mean", "affine")[n]}
        words |= {"CORPUS": str(self.root / "corpus.txt"), "TINY": str(self.root / "tiny")}
        return [words.get(word, word.replace("OUT", str(folder), 1)) for word in COMMANDS[self.name]]

    def made(self, n: int) -> Contents:
        with tempfile.TemporaryDirectory(dir=self.root) as folder:
            self.run(Path(folder), n)
            return self.contents(Path(folder))

    def begin(self) -> tuple[Path, Contents]:
        """A new folder with the old files in it. A sweep has made some of its shards, or has not begun."""
        folder = Path(tempfile.mkdtemp(dir=self.disk))
        there = {} if self.name in SWEEPS and self.random.random() < 0.3 else self.old
        there = {name: old for name, old in there.items() if not name.endswith(".npz") or self.random.random() < 0.5}
        for name, old in there.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(old)
        return folder, there

    def contents(self, folder: Path) -> Contents:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def run(self, folder: Path, n: int = 1) -> int:
        """To its end: 0, or 2 with one line that says why."""
        said = self.root / "said"
        status = ended(start(self.arguments(folder, n), said))
        lines = said.read_text(errors="replace").splitlines()
        if status not in (0, 2) or sum(line.startswith("minilens: error: ") for line in lines) != status // 2:
            self.amiss.append(f"it ends in {status} and says {lines[-3:]}")
        return status

    def check(self, folder: Path, there: Contents, when: str, may_leave: int = 0) -> None:
        """Each file is as it was or as it shall be, and then as it shall be, if the command runs undisturbed."""
        found = self.contents(folder)
        left = [name for name in found if TEMPORARY.search(name)]
        self.left += len(left)
        if len(left) > may_leave:
            self.amiss.append(f"{left[0]} is left {when}")
        self.amiss += [f"{name} is lost {when}" for name in there.keys() - found.keys()]
        for name in found.keys() - {*left}:
            if not name.endswith((".npz", ".lock")) and found[name] not in (there.get(name), self.new.get(name)):
                self.amiss.append(f"{name} has {len(found[name])} bytes, neither old nor new, {when}")
        if self.run(folder):
            self.amiss.append(f"the same command fails {when}")
        again = {name: content for name, content in self.contents(folder).items() if name not in left}
        if again.keys() != self.new.keys() or any(
            again[name] != new
            for name, new in self.new.items()
            if not name.endswith(".npz")  # they hold a time
        ):
            self.amiss.append(f"afterwards {sorted(again.keys() ^ self.new.keys()) or 'a file'} is amiss {when}")
        subprocess.run(["rm", "-r", folder], check=True)


def kill(scene: Scene, times: int) -> str:
    """Of three workers one or all; the others must end as if nothing had been."""
    n_killed = 0
    while n_killed < times:  # a command that was quicker does not count
        folder, there = scene.begin()
        said = [scene.root / f"said{n}" for n in range(scene.n_workers)]
        workers = [start(scene.arguments(folder, 1), path) for path in said]
        doomed = scene.random.choice([workers, workers[:1]])
        is_writing, moment = scene.random.random() < 0.5, scene.random.random()
        end = time.monotonic() + (2 if is_writing else moment) * scene.seconds
        while time.monotonic() < end and not (is_writing and any(TEMPORARY.search(name) for name in names(folder))):
            time.sleep(0.0005)
        for pid in doomed:
            os.kill(pid, signal.SIGKILL)
        statuses = [ended(pid) for pid in workers]
        n_killed += -signal.SIGKILL in statuses
        for pid, path, status in zip(workers, said, statuses, strict=True):
            if status and pid not in doomed:
                scene.amiss.append(f"another worker ends in {status} and says {path.read_text().splitlines()[-1:]}")
        scene.check(folder, there, "after a kill", may_leave=len(doomed))
    return f"{n_killed} killed"


def names(folder: Path) -> list[str]:
    return [name for _, _, files in os.walk(folder) for name in files]


def full(scene: Scene, times: int) -> str:
    """The disk has room for a random part of the largest file, which is written beside the old one."""
    n_failed = 0
    size = max(map(len, scene.new.values()))
    for _ in range(times):
        folder, there = scene.begin()
        free, filler = os.statvfs(scene.disk), scene.disk / "filler"
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - scene.random.randrange(size))
        n_failed += scene.run(folder) == 2
        filler.unlink()
        scene.check(folder, there, "after a full disk")
    return f"{n_failed} failed"


def readonly(scene: Scene, times: int) -> str:
    folder, there = scene.begin()
    subprocess.run(["mount", "-o", "remount,ro", scene.disk], check=True)
    status = scene.run(folder)
    if scene.contents(folder) != there:
        scene.amiss.append("a file has changed on a disk that cannot be written to")
    subprocess.run(["mount", "-o", "remount,rw", scene.disk], check=True)
    scene.check(folder, there, "after a disk that could not be written to")
    return "refused" if status == 2 else "not refused"


@contextmanager
def small_disk(root: Path) -> Iterator[Path | None]:
    """A disk of 64 MiB, in memory; None where none can be mounted."""
    (disk := root / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)]
    is_there = shutil.which("mount") and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield disk if is_there else None
    finally:
        if is_there:
            subprocess.run(["umount", disk], check=True)


def tiny(root: Path) -> Path:
    """A checkpoint of three layers."""
    (folder := root / "tiny").mkdir(exist_ok=True)
    for name, content in (good("gpt2") | {"tokenizer.json": text_files("gpt2")["tokenizer.json"]}).items():
        (folder / name).write_bytes(content)
    return folder


def calls(root: Path) -> dict[str, Callable[[], object]]:
    """A call of each public function, on a tiny model."""
    folder = tiny(root)
    model, tokenizer = minilens.load(folder)
    tokens = torch.tensor([[1, 2, 3, 4]])
    resid, whole, table = model.embed(tokens), minilens.trace(model, tokens), minilens.logit_lens(model, tokens)
    pair = (model, tokens, tokens + 1, minilens.log_probability(3))
    patched, attributed = minilens.patching(*pair), minilens.attribute(model, tokens)

    scores = minilens.head_scores(model, length=4, batch=1)
    written = minilens.parts(model, tokens)
    copying, pairs = minilens.copying_scores(model), minilens.composition(model)
    (root / "text").write_text("a cat\n<|endoftext|>\n" * 40)

    def fitted(fit: Callable[..., object], **options: int) -> object:
        with tempfile.TemporaryDirectory(dir=root) as out:
            return fit(model, tokenizer, root / "text", out, **options)

    def lived() -> minilens.Life:
        with tempfile.TemporaryDirectory(dir=root) as out:
            return minilens.life(folder, root / "text", out)

    whole_life = lived()

    def edited(edit: minilens.Edit) -> object:
        return minilens.trace(model, tokens, edit=edit)

    return {
        "add": lambda: edited(minilens.add(0, "resid_pre", model.W_E[3])),
        "at": lambda: edited(minilens.at(0, "resid_pre", lambda value: value * 2)),
        "ablation": lambda: minilens.ablation(model, tokens, minilens.log_probability(3), how="zero"),
        "attribute": lambda: minilens.attribute(model, tokens),
        "attribution_patching": lambda: minilens.attribution_patching(*pair),
        "attributions": lambda: minilens.attributions(model, tokens),
        "clamp": lambda: edited(minilens.clamp(model, 0, "resid_post", 3, 1.0)),
        "composition": lambda: minilens.composition(model),
        "coordinates": lambda: minilens.coordinates(model, whole.blocks[0], "resid_post", [3, 4]),
        "copying_scores": lambda: minilens.copying_scores(model),
        "decode": lambda: minilens.decode(model, resid, start=1),
        "fit": lambda: fitted(minilens.fit, skip=0, shard=40),
        "fit_jacobian": lambda: fitted(minilens.fit_jacobian, skip=0, shard=40),
        "generate": lambda: minilens.generate(model, tokens, 3),
        "generate_steps": lambda: list(minilens.generate_steps(model, tokens, 3)),
        "geometry": lambda: minilens.geometry(model),
        "gradient_trace": lambda: minilens.gradient_trace(model, tokens).logits[0, -1, 3].backward(),
        "head_weights": lambda: minilens.head_weights(model),
        "head_scores": lambda: minilens.head_scores(model, length=4, batch=1),
        "integrated_gradients": lambda: minilens.integrated_gradients(*pair, steps=2),
        "kl_from": lambda: minilens.kl_from(whole.logits[0, -1])(whole.logits[:, 0]),
        "lens_rows": lambda: list(minilens.lens_rows(model, tokens)),
        "life": lived,
        "load_lens": lambda: minilens.load_lens("tales-gpt2/affine"),
        "load": lambda: minilens.load(folder),
        "log_probability": lambda: minilens.log_probability(3)(whole.logits[:, -1]),
        "logit_difference": lambda: minilens.logit_difference(3, 4)(whole.logits[:, -1]),
        "logit_lens": lambda: minilens.logit_lens(model, tokens, stats="all", tokenizer=tokenizer),
        "logit_lenses": lambda: minilens.logit_lenses(model, tokens, [3]),
        "mean": lambda: edited(minilens.mean(whole.blocks[0], "z")),
        "named_metric": lambda: minilens.named_metric("probability", 3)(whole.logits[:, -1]),
        "ov_circuit": lambda: minilens.ov_circuit(model, 0, 1),
        "qk_circuit": lambda: minilens.qk_circuit(model, 0, 1),
        "parts": lambda: minilens.parts(model, tokens),
        "patch": lambda: edited(minilens.patch(whole.blocks[0], "z")),
        "patching": lambda: minilens.patching(*pair),
        "path_patching": lambda: minilens.path_patching(*pair),
        "run": lambda: list(minilens.run(model, resid)),
        "swap": lambda: edited(minilens.swap(model, 0, "resid_post", 3, 4)),
        "then": lambda: edited(minilens.then(minilens.zero(0, "z"), minilens.zero(1, "z"))),
        "towards": lambda: edited(minilens.towards(model, 0, "resid_post", 3, 1.0)),
        "trace": lambda: minilens.trace(model, tokens),
        "untouched": lambda: edited(minilens.untouched),
        "vector_tokens": lambda: minilens.vector_tokens(model, model.W_E[:3]),
        "verify": lambda: minilens.verify(folder),
        "zero": lambda: edited(minilens.zero(0, "z")),
        "as_lines": lambda: list(minilens.as_lines(table)),
        "as_record": lambda: minilens.as_record(table),
        "attribution_figure": lambda: minilens.attribution_figure(attributed),
        "attribution_page": lambda: minilens.attribution_page(attributed),
        "attribution_view": lambda: minilens.attribution_view(attributed),
        "attention_figure": lambda: minilens.attention_figure(tokens, whole.blocks[0], head=0),
        "attention_page": lambda: minilens.attention_page(tokens, whole.blocks[0]),
        "attention_view": lambda: minilens.attention_view(tokens, whole.blocks[0]),
        "block_view": lambda: minilens.block_view(model, tokens, whole.blocks[0]),
        "diff_view": lambda: minilens.diff_view("gpt2", "ctrl"),
        "generation_view": lambda: list(minilens.generation_view(tokens, minilens.generate_steps(model, tokens, 3))),
        "heads_view": lambda: minilens.heads_view(scores, copying, pairs),
        "lens_figure": lambda: minilens.lens_figure(table),
        "lens_page": lambda: minilens.lens_page(table),
        "life_figure": lambda: minilens.life_figure(whole_life),
        "life_lines": lambda: list(minilens.life_lines(whole_life)),
        "life_record": lambda: minilens.life_record(whole_life),
        "life_view": lambda: minilens.life_view(whole_life),
        "lens_view": lambda: minilens.lens_view(table),
        "parts_figure": lambda: minilens.parts_figure(written),
        "parts_page": lambda: minilens.parts_page(written),
        "parts_view": lambda: minilens.parts_view(written),
        "patching_figure": lambda: minilens.patching_figure(patched),
        "patching_page": lambda: minilens.patching_page(patched),
        "patching_view": lambda: minilens.patching_view(patched),
        "save_figure": lambda: minilens.save_figure(root / "figure.png", minilens.lens_figure(table)),
        "walk_view": lambda: minilens.walk_view(model, tokens),
    }


def memory(found: dict[str, Callable[[], object]], times: int) -> Iterator[Row]:
    """Each function is called some times before: what it keeps once is not counted."""
    public = {name for name in minilens.__all__ if inspect.isfunction(getattr(minilens, name))}
    for name in sorted({*public, *minilens.VIEWS} - found.keys()):
        yield Row("memory", name, "not called", ["no call of it in this script"])
    for name, call in found.items():
        for _ in range(max(3, times // 10)):
            call()
        before = resident()
        for _ in range(times):
            call()
        more = resident() - before
        yield Row("memory", name, f"{more / 2**20:+.1f} MiB", ["memory grows"] if more > MOST else [])


def resident() -> int:
    """The bytes of this process that are in memory, without what is free for its next objects."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def threads(times: int) -> Row:
    """Nothing is stored on a model: so none sees the texts and edits of another."""
    model, tokenizer = minilens.load(MODEL)
    assert tokenizer is not None
    tokens = [tokenizer.encode(f"{TEXTS[0]} and {n} dogs") for n in range(8)]

    def table(n: int) -> object:
        return minilens.as_record(minilens.logit_lens(model, tokens[n], stats="all", edit=minilens.zero(n, "attn_out")))

    wanted, amiss = [table(n) for n in range(8)], list[str]()

    def read(first: int) -> None:
        for n in range(first, first + times):
            if table(n % 8) != wanted[n % 8]:
                amiss.append(f"thread {first} finds other numbers")

    running = [threading.Thread(target=read, args=(n,)) for n in range(8)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return Row("threads", f"eight, {times} tables each", "the same" if not amiss else "others", amiss)


DISTURB: dict[str, Callable[[Scene, int], str]] = {"kill": kill, "full": full, "readonly": readonly}
PARTS = (*DISTURB, "memory", "threads")


def rows(parts: list[str], commands: list[str], root: Path, *, times: int, seed: int, quick: bool) -> Iterator[Row]:
    lines = [f"{TEXTS[n % 2]} and a {word}." for n, word in enumerate(["fox", "hen", "bee", "owl"] * 150)]
    (root / "corpus.txt").write_text("\n".join(lines))
    tiny(root)
    disturbed = [part for part in DISTURB if part in parts]
    with small_disk(root) as disk:
        if disk is None:
            yield from (Row(part, "no disk can be mounted", "not run", []) for part in disturbed if part != "kill")
            disturbed = [part for part in disturbed if part == "kill"]
        for name in commands if disturbed else ():
            scene = Scene(name, root, disk or root, seed)
            for part in disturbed:
                n = {"kill": times, "full": -(-2 * times // 3), "readonly": 1}[part]
                yield Row(part, f"{name}, {n} times", DISTURB[part](scene, n), scene.amiss, scene.left)
                scene.amiss, scene.left = [], 0
    if "memory" in parts:
        yield from memory(calls(root), 1 if quick else 2000)
    if "threads" in parts:
        yield threads(1 if quick else 50)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--command", action="append", choices=COMMANDS, help="one of them (default: all)")
    parser.add_argument("--times", type=int, default=30, help="kills of each command (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a little of each part")
    args = parser.parse_args(argv)
    if unknown := {*args.parts} - {*PARTS}:
        parser.error(f"there is no part {min(unknown)!r}")
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the disk goes
    torch.set_num_threads(1)  # a process that is forked has no others; and each product is then the same operation
    n_amiss = 0
    print("| part | what | outcome | left | amiss |\n|---|---|---|--:|--:|", flush=True)
    with tempfile.TemporaryDirectory(prefix="minilens-torture-") as root:
        times = 1 if args.quick else args.times
        commands = args.command or (["trace"] if args.quick else [*COMMANDS])
        for row in rows(args.parts or [*PARTS], commands, Path(root), times=times, seed=args.seed, quick=args.quick):
            n_amiss += len(row.amiss)
            print(f"| {row.part} | {row.what} | {row.outcome} | {row.left} | {len(row.amiss)} |", flush=True)
            for fault in dict.fromkeys(row.amiss):
                print(f"  {fault:.300}", flush=True)
    return int(n_amiss > 0)


if __name__ == "__main__":
    sys.exit(main())

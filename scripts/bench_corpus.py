"""What `minilens corpus` costs: beside logit_lens, with two processes, with more text, and in memory.

    python scripts/bench_corpus.py                      throughput, workers and length, on tales-gpt2
    python scripts/bench_corpus.py memory --large 100   peak memory for 1 MB and for 100 MB, of a tiny random model, as
                                                        text, as .jsonl.zst and as .parquet of a single row group
    python scripts/bench_corpus.py --text a.txt         text of your own, in place of one that is made up

Seconds are the least of several runs, the contenders taking turns, each process with one thread: trust the ratios.
Nothing else should run meanwhile. Linux only.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch
import zstandard
from safetensors.torch import save_file

import minilens
from minilens.corpus.batches import windows
from minilens.corpus.documents import SEPARATOR, TextFile
from minilens.corpus.measure import STATS, CorpusLens, Plan
from minilens.corpus.sweep import Sweep
from minilens.study.experiments import PASSAGE

MB = 10**6
PARTS = ("throughput", "workers", "length", "memory")


def made_up(n: int, seed: int = 0) -> Iterator[str]:
    """Documents of n characters in all: words of the study's passage, in lengths like those of short stories."""
    rng, words = random.Random(seed), PASSAGE.split()
    while n > 0:
        text = " ".join(rng.choices(words, k=rng.randint(20, 400)))
        n -= len(text)
        yield text


def write(path: Path, documents: Iterator[str]) -> TextFile:
    """A file in the form that its name asks for."""
    if path.suffix == ".parquet":
        texts = list(documents)
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=len(texts))
    elif path.suffix == ".zst":
        with zstandard.open(path, "wt") as file:
            file.writelines(json.dumps({"text": document}) + "\n" for document in documents)
    else:
        with path.open("w") as file:
            file.writelines(f"{document}\n{SEPARATOR}\n" for document in documents)
    return TextFile(path)


def sweep(lens: CorpusLens, file: TextFile, folder: Path) -> None:
    for _ in Sweep(lens, [file], folder).run():
        pass


def swept(lens: CorpusLens, file: TextFile, root: Path, n_workers: int) -> None:
    """The whole file, by processes that share a new folder; the tokens are counted before."""
    folder = root / "sweep"
    shutil.rmtree(folder, ignore_errors=True)
    Sweep(lens, [file], folder).count()
    if n_workers == 1:
        return sweep(lens, file, folder)
    context = multiprocessing.get_context("fork")  # torch has one thread, and the weights are shared
    processes = [context.Process(target=sweep, args=(lens, file, folder)) for _ in range(n_workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0


def one_by_one(lens: CorpusLens, file: TextFile) -> None:
    """logit_lens on every window, with the same statistics."""
    stats = {*STATS, "top", "final", "next", "input"}
    for window in windows([lens.encode(document) for document in file.documents()], lens.window):
        minilens.logit_lens(lens.model, window.tokens[None], stats=stats, top_k=1)


def measure(contenders: dict[str, Callable[[], None]], repeat: int) -> dict[str, float]:
    """The least seconds of each, taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeat):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: min(values) for name, values in seconds.items()}


def show(title: str, seconds: dict[str, float], tokens: dict[str, int], ratio: Callable[[str], float]) -> None:
    print(f"\n{title}")
    for name, value in seconds.items():
        print(
            f"  {name:34} {value:8.2f} s {tokens[name] / value:10,.0f} tokens/s   ratio {ratio(name):.3f}", flush=True
        )


def part_memory(root: Path, large: int) -> None:
    """The peak of a process that reads 1 MB, and of one that reads much more, of a model that is as quick as can be."""
    source, tiny = minilens.checkpoint.hub.bundled()["tales-gpt2"], root / "tiny"
    tiny.mkdir()
    shutil.copy(source / "tokenizer.json", tiny)
    d, d_vocab = 8, 4096
    shapes = {"wte.weight": (d_vocab, d), "wpe.weight": (256, d), "ln_f.weight": (d,), "ln_f.bias": (d,)}
    for name, n_in, n_out in (
        ("attn.c_attn", d, 3 * d),
        ("attn.c_proj", d, d),
        ("mlp.c_fc", d, d),
        ("mlp.c_proj", d, d),
    ):
        shapes |= {f"h.0.{name}.weight": (n_in, n_out), f"h.0.{name}.bias": (n_out,)}
    shapes |= {f"h.0.ln_{n}.{part}": (d,) for n in (1, 2) for part in ("weight", "bias")}
    save_file({name: torch.randn(shape) for name, shape in shapes.items()}, tiny / "model.safetensors")
    sizes = dict(vocab_size=d_vocab, n_positions=256, n_embd=d, n_layer=1, n_head=1, n_inner=d)
    (tiny / "config.json").write_text(json.dumps({"model_type": "gpt2", **sizes}))
    print(f"\nmemory: a model of one layer of width {d}; ratio: to the peak for 1 MB")
    for form, n in product(("txt", "jsonl.zst", "parquet"), (1, large)):
        path = root / f"{n}.{form}"
        write(path, made_up(n * MB))
        ran = subprocess.run(
            [sys.executable, __file__, "_probe", str(tiny), str(path), str(root / f"{form}{n}")],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        peak, seconds = map(float, ran.stdout.split())
        least = peak if n == 1 else least
        what = f"{n:4} MB of text as .{form}"
        print(
            f"  {what:28} {peak / 2**20:8,.1f} MiB at the peak {seconds:8.1f} s   ratio {peak / least:.3f}", flush=True
        )


def probe(model: str, path: str, out: str) -> None:
    torch.set_num_threads(1)
    lens, start = CorpusLens(*minilens.load(model), Plan()), time.perf_counter()  # type: ignore[arg-type]
    run = Sweep(lens, [TextFile(Path(path))], Path(out))
    for _ in run.run():
        pass
    run.findings()
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    print(int(line.split()[1]) * 1024, time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help=f"{', '.join(PARTS)}; by default the first three")
    parser.add_argument("--model", default="tales-gpt2")
    parser.add_argument("--text", type=Path, help="a file to read")
    parser.add_argument("--size", type=float, default=0.2, help="MB of text that is made up")
    parser.add_argument("--large", type=int, default=10, help="MB of text in the part memory")
    parser.add_argument("--repeat", type=int, default=3, help="how many turns each contender has")
    args = parser.parse_args()
    if unknown := [what for what in args.what if what not in PARTS]:
        parser.error(f'there is no part "{unknown[0]}"; there are {", ".join(PARTS)}')
    torch.set_num_threads(1)
    print(
        f"{os.cpu_count()} cores, one thread for each process; torch {torch.__version__}; load {os.getloadavg()[0]:.1f}"
    )
    with tempfile.TemporaryDirectory() as temporary:
        root, what = Path(temporary), args.what or PARTS[:3]
        if {*what} - {"memory"}:
            model, tokenizer = minilens.load(args.model)
            assert tokenizer is not None
            file = TextFile(args.text) if args.text else write(root / "a.txt", made_up(int(args.size * MB)))
            lens = CorpusLens(model, tokenizer, Plan(shard=2**15))

            def n_tokens(file: TextFile) -> int:
                return sum(len(lens.encode(document)) for document in file.documents())

            if "throughput" in what:
                contenders = {
                    "corpus": partial(swept, lens, file, root, 1),
                    "logit_lens": partial(one_by_one, lens, file),
                }
                seconds = measure(contenders, args.repeat)
                n = n_tokens(file)
                title = f"throughput: {args.model}; ratio: to logit_lens"
                show(title, seconds, dict.fromkeys(seconds, n), lambda name: seconds["logit_lens"] / seconds[name])
            if "workers" in what:
                names = {n: f"{n} process{'es' * (n > 1)}" for n in (1, 2)}
                seconds = measure({name: partial(swept, lens, file, root, n) for n, name in names.items()}, args.repeat)
                n = n_tokens(file)
                title = "workers, which share a folder; ratio: to one"
                show(title, seconds, dict.fromkeys(seconds, n), lambda name: seconds[names[1]] / seconds[name])
            if "length" in what:
                files = {
                    f"{part} of 4": write(root / f"{part}.txt", made_up(int(args.size * MB * part / 4)))
                    for part in (1, 2, 4)
                }
                seconds = measure(
                    {name: partial(swept, lens, file, root, 1) for name, file in files.items()}, args.repeat
                )
                tokens = {name: n_tokens(file) for name, file in files.items()}
                cost = {name: seconds[name] / tokens[name] for name in files}
                show(
                    "length; ratio: of the cost of a token, to the shortest",
                    seconds,
                    tokens,
                    lambda name: cost[name] / cost["1 of 4"],
                )
        if "memory" in what:
            part_memory(root, args.large)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    if sys.argv[1:2] == ["_probe"]:
        probe(*sys.argv[2:])
    else:
        main()

"""How long minilens takes, and how much memory, beside transformers and beside the bare matrix products.

    python scripts/bench.py             the parts lens, forward and memory, at GPT-2 small's size
    python scripts/bench.py ctrl xl     other parts: ctrl, CTRL's vocabulary and width; xl, GPT-2 XL's size;
                                        patching; short; generation; learned; peers; loading, GPT-2 XL, GPT-Neo
                                        2.7B and CTRL (24 GB of disk, 22 GB of memory); bfloat16, what half
                                        precision costs in accuracy; precision, the same of the lens' products;
                                        start, how long until a command begins
    python scripts/bench.py --quick     tiny sizes, whose figures mean nothing: does it run at all?

The checkpoints have random weights, since speed does not depend on the values. Seconds are the least of several runs,
the contenders taking turns in one process, so that the machine's moods hit all of them: trust the ratios. Memory is
taken in a fresh process for each figure. Nothing else should run meanwhile. Linux only.

Loading is taken with the file in the page cache, since it is safetensors and transformers that minilens is held against
and not the disk. A mapped file is read only where it is used, so each figure is there twice: as the call returns, and
with one number read of each page of every weight. The peak is the most memory that the kernel saw in use (VmHWM: the
process's own and pages of files that it has read) over what was in use before the call.
"""

import argparse
import ctypes
import gc
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports the Hub's client: all files are made here

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import minilens
from minilens import Site
from minilens.checkpoint.hub import bundled
from minilens.device import has_bfloat16
from minilens.learned.affine import LearnedLens, RowMap, Subject
from minilens.learned.moments import MomentSums, best_map, choose_ridge
from minilens.lens import EMBED
from minilens.table import DEFAULT_STATS
from minilens.vocab import vocab_stats

TOP_K = 5
STATS = frozenset({"kl_final", "entropy"})  # besides the top tokens, and how the final row's best one stands
NOT_OF_SURVEY = frozenset({"top", "final", "next", "input"})  # what it gives without being asked, or for tokens asked


class Size(NamedTuple):
    """The sizes of a model."""

    family: str
    n_layers: int
    d_model: int
    n_heads: int
    d_vocab: int
    d_mlp: int
    n_ctx: int

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self._asdict().items()) + ", float32"

    @property
    def megabytes(self) -> float:
        return 4e-6 * sum(map(math.prod, shapes(self).values()))


GPT2 = Size("gpt2", 12, 768, 12, 50257, 3072, 1024)
GPT2_XL = Size("gpt2", 48, 1600, 25, 50257, 6400, 1024)
GPT_NEO = Size("gpt_neo", 32, 2560, 20, 50257, 10240, 2048)
GPT_NEO_125M = Size("gpt_neo", 12, 768, 12, 50257, 3072, 2048)
CTRL = Size("ctrl", 48, 1280, 16, 246534, 8192, 256)
NO_BIAS = {f"attn.attention.{name}_proj" for name in "qkv"}
SHARD = 2**28  # numbers in a file: 1 GB
TINY = dict(n_layers=2, d_model=64, n_heads=4, d_vocab=1000, d_mlp=256, n_ctx=64)

Row = tuple[Tensor, Tensor, Tensor, Tensor]


def shapes(size: Size) -> dict[str, tuple[int, ...]]:
    """The tensors of a checkpoint, by their names on the Hub."""
    d, d_mlp = size.d_model, size.d_mlp
    if size.family == "gpt2":
        prefix, out, norms, last = "", 1, ("ln_1", "ln_2"), "ln_f"
        linears = {"attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d), "mlp.c_fc": (d, d_mlp), "mlp.c_proj": (d_mlp, d)}
    elif size.family == "gpt_neo":  # its weights, and those of CTRL, map x to x @ W.T
        prefix, out, norms, last = "transformer.", 0, ("ln_1", "ln_2"), "ln_f"
        linears = {f"attn.attention.{name}_proj": (d, d) for name in ("q", "k", "v", "out")}
        linears |= {"mlp.c_fc": (d_mlp, d), "mlp.c_proj": (d, d_mlp)}
    else:
        prefix, out, norms, last = "transformer.", 0, ("layernorm1", "layernorm2"), "layernorm"
        linears = {f"multi_head_attention.{name}": (d, d) for name in ("Wq", "Wk", "Wv", "dense")}
        linears |= {"ffn.0": (d_mlp, d), "ffn.2": (d, d_mlp)}
    found: dict[str, tuple[int, ...]] = {"w.weight" if size.family == "ctrl" else "wte.weight": (size.d_vocab, d)}
    if size.family != "ctrl":
        found |= {"wpe.weight": (size.n_ctx, d)}
    for h in (f"h.{layer}" for layer in range(size.n_layers)):
        found |= {f"{h}.{name}.weight": shape for name, shape in linears.items()}
        found |= {f"{h}.{name}.bias": (shape[out],) for name, shape in linears.items() if name not in NO_BIAS}
        found |= {f"{h}.{name}.{part}": (d,) for name in norms for part in ("weight", "bias")}
    found |= {f"{last}.weight": (d,), f"{last}.bias": (d,)}
    found = {f"{prefix}{name}": shape for name, shape in found.items()}
    return found | ({"lm_head.bias": (size.d_vocab,)} if size.family == "ctrl" else {})


def checkpoint(size: Size, folder: Path) -> Path:
    """A checkpoint with random weights, made file by file unless it is there already."""
    path = folder / "-".join(map(str, size))
    if not (path / "config.json").exists():  # which is written last
        path.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(2020)
        tensors: dict[str, Tensor] = {}
        files: dict[str, str] = {}

        def save() -> None:
            file = f"model-{1 + len({*files.values()}):05}.safetensors"
            save_file(tensors, path / file, metadata={"format": "pt"})
            files.update(dict.fromkeys(tensors, file))
            tensors.clear()

        for name, shape in shapes(size).items():
            if tensors and sum(tensor.numel() for tensor in tensors.values()) + math.prod(shape) > SHARD:
                save()
            tensors[name] = torch.randn(shape, generator=generator).mul_(0.02)
            if len(shape) == 1 and name.endswith("weight"):
                tensors[name].add_(1)  # the gain of a norm
        save()
        index = {"metadata": {"total_size": 4 * sum(map(math.prod, shapes(size).values()))}, "weight_map": files}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
        (path / "config.json").write_text(json.dumps(config(size)))
    return path


def config(size: Size) -> dict[str, Any]:
    ids = {"bos_token_id": None, "eos_token_id": None, "model_type": size.family, "vocab_size": size.d_vocab}
    if size.family == "gpt_neo":
        ids |= {"attention_types": [[["global", "local"], size.n_layers // 2]], "window_size": 256}
        ids |= {"num_layers": size.n_layers, "hidden_size": size.d_model, "num_heads": size.n_heads}
        return ids | {"max_position_embeddings": size.n_ctx, "intermediate_size": size.d_mlp}
    ids |= {"n_layer": size.n_layers, "n_embd": size.d_model, "n_head": size.n_heads, "n_positions": size.n_ctx}
    return ids | {"dff" if size.family == "ctrl" else "n_inner": size.d_mlp}


def random_tokens(size: Size, n: int) -> Tensor:
    return torch.randint(0, size.d_vocab, (1, n), generator=torch.Generator().manual_seed(2021))


def load(path: Path) -> minilens.Model:
    return minilens.load(path)[0]


def load_reference(path: Path, attention: str = "eager") -> Any:
    return transformers.GPT2LMHeadModel.from_pretrained(path, dtype=torch.float32, attn_implementation=attention)


def lens(model: minilens.Model, tokens: Tensor) -> minilens.LensTable:
    return minilens.logit_lens(model, tokens, stats=("top", "final", *STATS), top_k=TOP_K)


def keep_nothing(model: minilens.Model, tokens: Tensor) -> Tensor:
    """A forward pass that has every value of a block at hand in its turn."""
    for block in minilens.run(model, model.embed(tokens)):
        resid = block.resid_post
        del block  # before the next one is computed
    return model.unembed(resid)


def forward(reference: Any, tokens: Tensor, *, hidden: bool) -> Any:
    return reference(tokens, use_cache=False, output_hidden_states=hidden)


def straightforward(reference: Any, tokens: Tensor) -> list[Row]:
    """The lens as most would write it; the last hidden state is the one that has been through the final norm."""
    output = forward(reference, tokens, hidden=True)
    ln_f, lm_head = reference.transformer.ln_f, reference.lm_head
    return statistics(output.logits[0], (lm_head(ln_f(resid))[0] for resid in output.hidden_states[:-1]))


def statistics(final: Tensor, others: Iterable[Tensor]) -> list[Row]:
    """Best tokens, rank of the final row's best one, KL(final || row) and entropy, from whole rows of logits.

    Besides the final row, which comes last, one row of logits is alive at a time.
    """
    logq, best = final.log_softmax(-1), final.argmax(-1, keepdim=True)
    q = logq.exp()

    def read(logits: Tensor) -> Row:
        logp = logits.log_softmax(-1)
        rank = 1 + (logits > logits.gather(-1, best)).sum(-1)
        return logits.topk(TOP_K).indices, rank, (q * (logq - logp)).sum(-1), -(logp.exp() * logp).sum(-1)

    return [*map(read, others), read(final)]


def bare(rows: Tensor, W_U: Tensor, buffer: Tensor) -> None:
    """The products that no lens can do without, of each row with a tile of the vocabulary at a time."""
    for row in rows:
        for start in range(0, W_U.shape[1], buffer.shape[1]):
            W = W_U[:, start : start + buffer.shape[1]]
            torch.mm(row, W, out=buffer[:, : W.shape[1]])


def part(title: str) -> None:
    print(f"\n{title}\n{'ratio':>78}  target", flush=True)


def line(name: str, value: float, unit: str = "s", ratio: float | None = None, target: str = "") -> None:
    shown, ratios = f"{value:.0f}" if unit == "MB" else f"{value:.3f}", "" if ratio is None else f"{ratio:.3f}"
    print(f"  {name:<55} {shown:>8} {unit:<2} {ratios:>8}  {target}".rstrip(), flush=True)


def measure(contenders: dict[str, Callable[[], Any]], repeat: int) -> dict[str, float]:
    """Seconds of each, taking turns; the least of its runs."""
    best = dict.fromkeys(contenders, math.inf)
    for _ in range(repeat):
        for name, call in contenders.items():
            start = time.perf_counter()
            result = call()
            best[name] = min(best[name], time.perf_counter() - start)
            del result  # before the next one runs
    return best


def lens_contenders(model: minilens.Model, tokens: Tensor) -> dict[str, Callable[[], Any]]:
    residuals = [model.embed(tokens)]
    residuals += [block.resid_post for block in minilens.run(model, residuals[0])]
    rows = torch.cat([model.final_norm(resid) for resid in residuals])
    default, following = frozenset(DEFAULT_STATS) - NOT_OF_SURVEY, tokens[0].roll(-1)
    read = partial(vocab_stats, rows, model.W_U, model.b_U, k=TOP_K)
    return {
        "a bare products, in tiles of 1024 tokens": partial(bare, rows, model.W_U, torch.empty(len(tokens[0]), 1024)),
        "b vocab_stats: top 5, rank, KL, entropy": partial(read, {}, stats=STATS),
        "b with logit_lens's default statistics": partial(read, {"next": following}, stats=default),
        "c logit_lens, forward pass included": partial(lens, model, tokens),
    }


def part_lens(args: argparse.Namespace, folder: Path) -> None:
    size = args.size(GPT2)
    path, tokens = checkpoint(size, folder), random_tokens(size, min(args.tokens, size.n_ctx))
    part(f"lens: {size}; T {tokens.shape[1]}, {size.n_layers + 1} rows")
    model, reference = load(path), load_reference(path)
    contenders = lens_contenders(model, tokens)
    contenders["d straightforward lens over transformers' hidden states"] = partial(straightforward, reference, tokens)
    (a, s_a), (b, s_b), (default, s_default), (c, s_c), (d, s_d) = measure(contenders, args.repeat).items()
    line(a, s_a)
    line(b, s_b, ratio=s_b / s_a, target="of a: 1.3, goal 1.15")
    line(default, s_default, ratio=s_default / s_a, target="of a")
    line(c, s_c, ratio=s_c / s_d, target="of d: 0.52, goal 0.45")
    line(d, s_d)
    table, plain = lens(model, tokens), straightforward(reference, tokens)
    top, rank, kl, entropy = (torch.stack(values) for values in zip(*plain, strict=True))
    same = [(mine == other).float().mean() for mine, other in ((table.top.tokens, top), (table.final.rank, rank))]
    print(f"  c and d: the same top tokens at {same[0]:.3%}, the same ranks at {same[1]:.3%}; KL differs by at most")
    print(f"  {(table.kl_final - kl).abs().max():.0e} and entropy by {(table.entropy - entropy).abs().max():.0e}")


def part_ctrl(args: argparse.Namespace, folder: Path) -> None:
    size = args.size(CTRL._replace(n_layers=args.ctrl_layers))
    model, tokens = load(checkpoint(size, folder)), random_tokens(size, size.n_ctx)
    part(f"ctrl: {size}; T {size.n_ctx}, {size.n_layers + 1} rows; a is without the bias")
    (a, s_a), *others = measure(lens_contenders(model, tokens), args.repeat).items()
    line(a, s_a)
    for (name, value), target in zip(others, ("of a: 1.3, goal 1.15", "of a", "of a"), strict=True):
        line(name, value, ratio=value / s_a, target=target)


def part_forward(args: argparse.Namespace, folder: Path) -> None:
    size = args.size(GPT2)
    path = checkpoint(size, folder)
    model, eager, sdpa = load(path), load_reference(path), load_reference(path, "sdpa")
    for n in (1, size.n_ctx // 64, size.n_ctx // 8, size.n_ctx // 2, size.n_ctx):
        tokens = random_tokens(size, n)
        part(f"forward, with the unembedding: {size}; T {n}")
        contenders: dict[str, Callable[[], Any]] = {
            "minilens.trace, all kept": partial(minilens.trace, model, tokens),
            "minilens.run, nothing kept": partial(keep_nothing, model, tokens),
        }
        for name, reference in (("eager", eager), ("sdpa", sdpa)):
            contenders[f"transformers {name}"] = partial(forward, reference, tokens, hidden=False)
            contenders[f"transformers {name}, output_hidden_states"] = partial(forward, reference, tokens, hidden=True)
        trace, run, *theirs = measure(contenders, args.repeat).items()
        for name, value in (trace, run):
            quickest = min(value for _, value in theirs[:2])
            line(f"{name} / eager", value, ratio=value / quickest, target="1.1")
            quickest = min(value for _, value in theirs)
            line(f"{name} / fastest", value, ratio=value / quickest, target="1.0")
        for name, value in theirs:
            line(name, value)


PROBES: dict[str, tuple[Callable[[Path], Any], Callable[[Any, Tensor], Any]]] = {
    "logit_lens": (load, lens),
    "minilens.trace, all kept": (load, minilens.trace),
    "minilens.run, nothing kept": (load, keep_nothing),
    "transformers eager": (load_reference, partial(forward, hidden=False)),
    "transformers eager, output_hidden_states": (load_reference, partial(forward, hidden=True)),
    "straightforward lens": (load_reference, straightforward),
}


def probe(what: str, path: str, n: str, threads: str) -> None:
    """In a process of its own: load a model, run it once, and print the seconds of both and the run's peak memory.

    That is the most that the kernel saw in use (VmHWM, set back just before, so that no peak is too short to be seen),
    less what was in use with every weight touched, and less the program files that the run was the first to map.
    """
    torch.set_num_threads(int(threads))
    start = time.perf_counter()
    model = PROBES[what][0](Path(path))
    loaded = time.perf_counter() - start
    for tensor in weights(model):
        tensor.sum()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what loading left behind, which the run could use unseen
    tokens = torch.arange(int(n))[None] % 1000
    before, files = proc("self/status", "VmRSS"), proc("self/status", "RssFile")
    Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    PROBES[what][1](model, tokens)
    seconds = time.perf_counter() - start
    peak = proc("self/status", "VmHWM") - before - (proc("self/status", "RssFile") - files)
    print(json.dumps({"load": loaded, "seconds": seconds, "MB": peak}))


def weights(thing: Any) -> Iterator[Tensor]:
    if isinstance(thing, Tensor):
        yield thing
    if isinstance(thing, torch.nn.Module):
        yield from thing.parameters()
    elif isinstance(thing, tuple | dict):
        yield from (each for value in (thing.values() if isinstance(thing, dict) else thing) for each in weights(value))
    if is_dataclass(thing):
        values = vars(thing)
        if getattr(thing, "is_tied", False) or getattr(getattr(thing, "config", None), "is_tied", False):
            values = {name: value for name, value in values.items() if name != "W_U"}  # W_E once more
        yield from weights(tuple(values.values()))


def proc(file: str, key: str) -> float:
    """A figure that the kernel gives, in MB."""
    lines = Path("/proc", file).read_text().splitlines()
    return next(int(text.split()[1]) * 1.024e-3 for text in lines if text.startswith(f"{key}:"))


def probed(args: argparse.Namespace, what: str, path: Path, n: int, probe: str = "_probe") -> dict[str, float]:
    command = [sys.executable, __file__, probe, what, str(path), str(n), str(args.threads)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def part_memory(args: argparse.Namespace, folder: Path) -> None:
    size, times = args.size(GPT2), 1 if args.quick else 5  # glibc gives memory back as it likes, so peaks vary
    path, lengths = checkpoint(size, folder), [size.n_ctx // 8, size.n_ctx // 4, size.n_ctx // 2, size.n_ctx]
    part(f"memory: {size}; peak over the loaded model, median (least to most) of {times}")
    for what in PROBES:
        for n in lengths if what == "logit_lens" else [min(args.tokens, size.n_ctx)]:
            peaks = sorted(probed(args, what, path, n)["MB"] for _ in range(times))
            kept = f" (rows {4e-6 * (size.n_layers + 1) * n * size.d_model:.0f} MB)" if what == "logit_lens" else ""
            target = f"({peaks[0]:.0f} to {peaks[-1]:.0f})" + "  100, goal 80" * (what == "logit_lens" and n == 512)
            line(f"{what}, T {n}{kept}", peaks[times // 2], "MB", target=target)


def has_room(size: Size, folder: Path, copies: float) -> bool:
    """Whether disk and memory are there for a model, the memory several times over; if not, it says so."""
    need = size.megabytes / 1e3
    disk, memory = shutil.disk_usage(folder).free / 1e9, proc("meminfo", "MemAvailable") / 1e3
    if disk < 1.2 * need or memory < copies * need:
        print(f"  left out: {need:.1f} GB of weights; {disk:.1f} GB of disk and {memory:.1f} GB of memory are free")
        return False
    return True


def part_xl(args: argparse.Namespace, folder: Path) -> None:
    size = args.size(GPT2_XL)
    part(f"xl: {size}; in a fresh process")
    if not has_room(size, folder, 1.2):
        return
    n = min(128, size.n_ctx)
    found = probed(args, "logit_lens", checkpoint(size, folder), n)
    line("minilens.load", found["load"])
    line(f"logit_lens, T {n}", found["seconds"])
    line("its peak over the loaded model", found["MB"], "MB")


CLASSES = {"gpt2": "GPT2LMHeadModel", "gpt_neo": "GPTNeoForCausalLM", "ctrl": "CTRLLMHeadModel"}
LOADERS: dict[str, Callable[[Path, Any], Any]] = {
    "safetensors, load_file": lambda path, _: {name: load_file(name) for name in path.glob("*.safetensors")},
    "minilens.load": lambda path, _: load(path),
    "minilens.load, dtype=bfloat16": lambda path, _: minilens.load(path, dtype=torch.bfloat16)[0],
    "transformers, from_pretrained": lambda path, reference: reference.from_pretrained(path, dtype=torch.float32),
    "transformers, dtype=bfloat16": lambda path, reference: reference.from_pretrained(path, dtype=torch.bfloat16),
}


def probe_loading(what: str, path: str, n: str, threads: str) -> None:
    """In a process of its own: load a model, read a number of each page of it, look through the lens, let it go."""
    torch.set_num_threads(int(threads))
    reference = getattr(transformers, CLASSES[json.loads(Path(path, "config.json").read_text())["model_type"]])
    before = proc("self/status", "VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back
    found: dict[str, float] = {}

    def note(name: str, start: float) -> None:
        found[name] = time.perf_counter() - start
        found[f"{name} MB"] = proc("self/status", "VmHWM") - before

    start = time.perf_counter()
    model = LOADERS[what](Path(path), reference)
    note("load", start)
    for weight in weights(model):
        weight.as_strided([weight.numel()], [1])[:: os.sysconf("SC_PAGESIZE") // weight.itemsize].sum()
    note("read", start)
    if what.startswith("minilens"):
        start = time.perf_counter()
        lens(model, torch.arange(int(n))[None] % 1000)
        note("lens", start)
    model = weight = None
    gc.collect()
    found["left MB"] = proc("self/status", "VmRSS") - before
    found["mapped"] = Path("/proc/self/maps").read_text().count(path)
    print(json.dumps(found))


def part_loading(args: argparse.Namespace, folder: Path) -> None:
    """Each model with all contenders in turn, and then the next: one at a time is in memory and on disk."""
    n, buffer = min(32, args.tokens), bytearray(2**24)
    for size in {args.size(size): None for size in (GPT2_XL, GPT_NEO, CTRL)}:
        print(f"\nloading: {size}; {size.megabytes:.0f} MB of weights; times: of safetensors")
        if not has_room(size, folder, 1.6):  # a mapped file, and transformers' copy of it in bfloat16
            continue
        path = checkpoint(size, folder)
        file_MB = sum(file.stat().st_size for file in path.glob("*.safetensors")) / 1e6
        turns: dict[str, list[dict[str, float]]] = {what: [] for what in LOADERS}
        for turn in range(-1, args.repeat):
            for what, found in turns.items():
                for file in path.glob("*.safetensors"):
                    with file.open("rb", buffering=0) as content:
                        while content.readinto(buffer):
                            pass
                found.append(probed(args, what, path, n, "_probe_loading"))
                if turn < 0:  # whoever first maps pages that are new in the cache pays for all that follow
                    found.clear()
                    break
        least = {what: {name: min(turn[name] for turn in found) for name in found[0]} for what, found in turns.items()}
        most = {what: {name: max(turn[name] for turn in found) for name in found[0]} for what, found in turns.items()}
        base = least["safetensors, load_file"]
        print(f"{'':32}{'load':>16}{'and read':>16}{'peak':>9}{'/ file':>8}{'MB over':>9}{'after del':>11}   lens")
        for what, best in least.items():
            peak = most[what]["read MB"]
            seconds = "".join(f"{best[name]:8.3f} s{best[name] / base[name]:5.1f}x" for name in ("load", "read"))
            after = f"{most[what]['left MB']:6.0f} MB" + " mapped" * bool(most[what]["mapped"])
            print(f"  {what:<30}{seconds}{peak:6.0f} MB{peak / file_MB:8.3f}{peak - file_MB:+9.0f}{after:>11}", end="")
            if "lens" in best:
                lens_peak = most[what]["lens MB"]
                print(f"{best['lens']:7.2f} s on {n} tokens, peak {lens_peak:.0f} MB", end="")
            print(flush=True)
        if args.folder is None:
            shutil.rmtree(path)


def part_patching(args: argparse.Namespace, folder: Path) -> None:
    """The stream entering every block, patched at every position. The texts differ everywhere: no cell is free."""
    size = args.size(GPT2)
    model, n = load(checkpoint(size, folder)), min(32, size.n_ctx)
    clean, corrupt = random_tokens(size, n), (random_tokens(size, n) + 1) % size.d_vocab
    metric = minilens.logit_difference(1, 2)

    def whole() -> None:
        source = minilens.trace(model, clean).blocks
        for layer in range(size.n_layers):
            for position in range(n):
                edit = minilens.patch(source[layer], "resid_pre", positions=position)
                for block in minilens.run(model, model.embed(corrupt), edit=edit):
                    resid = block.resid_post
                metric(model.unembed(resid[:, -1:])[:, 0])

    part(f"patching: {size}; T {n}, {size.n_layers * n} cells")
    ours = partial(minilens.patching, model, clean, corrupt, metric, sites="resid_pre")
    seconds = measure({"patching": ours, "whole": whole}, args.repeat)
    line("a whole forward pass for each cell", seconds["whole"])
    line("patching", seconds["patching"], ratio=seconds["patching"] / seconds["whole"], target="0.6")


def transformer_lens(path: Path) -> Any:
    """TransformerLens's model of the checkpoint; None where the package is not installed, which is said."""
    try:
        from transformer_lens.model_bridge import TransformerBridge  # since version 3
    except ImportError as error:
        print(f"  transformer_lens cannot be imported: {error}")
        return None
    return TransformerBridge.boot_transformers(str(path))


def part_short(args: argparse.Namespace, folder: Path) -> None:
    """Many prompts of some ten tokens: one call each, and one call for all. No disk: a model that comes with minilens.

    The floor of the lens is its bare products, and that of patching what its blocks multiply: they do not shrink where
    prompts are read side by side.
    """
    model, n = load(Path(bundled()["tales-gpt2"])), 20 if args.quick else 1000
    d_vocab, generator = model.W_U.shape[1], torch.Generator().manual_seed(2022)
    tokens = torch.randint(0, d_vocab, (n, 14), generator=generator)
    ends = torch.randint(7, 15, (n,), generator=generator).tolist()  # 10 or 11 on average
    each = [tokens[text : text + 1, :end] for text, end in enumerate(ends)]
    few, metric = max(2, n // 50), minilens.logit_difference(1, 2)
    clean, corrupt = tokens[:few, :10], (tokens[:few, :10] + 1) % d_vocab
    pairs = [*zip(clean.split(1), corrupt.split(1), strict=True)]
    chunks = tokens.split(64)  # of the whole a trace would hold 2 GB
    calls: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "logit_lens": (
            lambda: [minilens.logit_lens(model, text) for text in each],
            lambda: minilens.logit_lenses(model, tokens, ends),
        ),
        "attribute": (
            lambda: [minilens.attribute(model, text) for text in each],
            lambda: minilens.attributions(model, tokens, lengths=ends),
        ),
        "trace, none kept": (
            lambda: [minilens.trace(model, text) is None for text in each],
            lambda: [minilens.trace(model, chunk) is None for chunk in chunks],
        ),
        f"patching, of {few} pairs of 10 tokens": (
            lambda: [minilens.patching(model, *pair, metric) for pair in pairs],
            lambda: minilens.patching(model, clean, corrupt, metric),
        ),
    }
    part(f"short: tales-gpt2, {n} prompts of 7 to 14 tokens; ratio: one by one / all in one call")
    for name, (one_by_one, together) in calls.items():
        seconds = measure({"one": one_by_one, "all": together}, args.repeat)
        line(f"{name}, one by one", seconds["one"])
        line(f"{name}, all in one call", seconds["all"], ratio=seconds["one"] / seconds["all"], target="at least 5")
    n_rows = model.n_layers + 1
    rows = torch.randn(n_rows, sum(ends), model.W_U.shape[0])
    floor = measure({"": partial(bare, rows, model.W_U, torch.empty(sum(ends), 1024))}, args.repeat)[""]
    line("bare products of the lens, without the forward pass", floor)
    apart = (minilens.logit_lens(model, text) for text in each)
    pairs_of_tables = zip(minilens.logit_lenses(model, tokens, ends), apart, strict=True)
    worst = max(float((one.kl_final - other.kl_final).abs().max()) for one, other in pairs_of_tables)
    print(f"  KL(output ‖ row) differs by {worst:.0e} nats at most", flush=True)


def part_generation(args: argparse.Namespace, folder: Path) -> None:
    """The best token each time, on both sides with keys and values kept; and the same with the lens on each step."""
    size = args.size(GPT2)
    path, tokens = checkpoint(size, folder), random_tokens(size, 8)
    n = min(200, size.n_ctx - 8)
    part(f"generation: {size}; {n} tokens after 8")
    model = load(path)
    contenders: dict[str, Callable[[], Any]] = {
        "minilens.generate": partial(minilens.generate, model, tokens, n),
        "minilens.generate_steps, with the lens": lambda: [*minilens.generate_steps(model, tokens, n)],
    }
    for name in ("eager", "sdpa"):
        reference = load_reference(path, name)
        contenders[f"transformers {name}"] = partial(
            reference.generate, tokens, max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=0
        )
    if bridge := transformer_lens(path):
        contenders["TransformerLens"] = partial(
            bridge.generate, tokens, max_new_tokens=n, do_sample=False, stop_at_eos=False, verbose=False
        )
    seconds = measure(contenders, args.repeat)
    ours, lens, *_ = seconds.items()
    quickest = min(seconds["transformers eager"], seconds["transformers sdpa"])
    for (name, value), target in zip((ours, lens), ("1.0", ""), strict=True):
        line(f"{name} / transformers' faster", value, ratio=value / quickest, target=target)
    for name, value in list(seconds.items())[2:]:
        line(f"{name}; ratio: ours / this", value, ratio=ours[1] / value)
    same = torch.equal(contenders["minilens.generate"](), contenders["transformers sdpa"]())
    print(f"  the same tokens: {same}")


def part_peers(args: argparse.Namespace, folder: Path) -> None:
    """The rows of other tools on the same weights, read by the statistics of the straightforward lens."""
    size = args.size(GPT2)
    path, tokens = checkpoint(size, folder), random_tokens(size, min(args.tokens, size.n_ctx))
    part(f"peers: {size}; T {tokens.shape[1]}; ratio: logit_lens / this")
    contenders: dict[str, Callable[[], Any]] = {"logit_lens": partial(lens, load(path), tokens)}
    if bridge := transformer_lens(path):

        def rows_of_bridge() -> list[Row]:
            logits, cache = bridge.run_with_cache(tokens)
            resids = cache.accumulated_resid(layer=-1, incl_mid=False, apply_ln=True)
            return statistics(logits[0], (bridge.unembed(resid)[0] for resid in resids[:-1]))

        contenders["TransformerLens"] = rows_of_bridge
    try:
        from tuned_lens.nn.lenses import LogitLens

        reference = load_reference(path)
        read = LogitLens.from_model(reference)

        def tuned_lens() -> list[Row]:
            output = forward(reference, tokens, hidden=True)
            return statistics(output.logits[0], (read(h, i)[0] for i, h in enumerate(output.hidden_states[:-1])))

        contenders["tuned_lens, LogitLens"] = tuned_lens
    except ImportError as error:
        print(f"  tuned_lens cannot be imported: {error}")
    seconds = measure(contenders, args.repeat)
    for name, value in seconds.items():
        line(name, value, ratio=seconds["logit_lens"] / value)


STORY = (
    "Stories Once upon a time there was a little girl who lived in a small house near the wood with her mother and her "
    'old grey cat. One day her mother said, "Take this basket to your grandmother, and do not stop on the way." The '
    "girl put on her red cloak, took the basket in her hand and went out into the sun. In the wood she met a fox."
)


def decoded(model: minilens.Model, tokens: Tensor) -> Iterator[Tensor]:
    """The rows of the lens as logit_lens takes them, in float32 from the vectors that the final norm gives."""
    b_U = 0 if model.b_U is None else model.b_U.float()
    residuals = [model.embed(tokens)]
    residuals += [block.resid_post for block in minilens.run(model, residuals[0])]
    return (model.final_norm(resid)[0].float() @ model.W_U.float() + b_U for resid in residuals)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) in nats at each position, in float64."""
    p, q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def part_bfloat16(args: argparse.Namespace, folder: Path) -> None:
    """What bfloat16 weights change, beside float32 ones of the same file."""
    print("\nbfloat16 beside float32: the bundled models on a story, then random weights on random tokens")
    print("logits: largest difference, and beside the largest logit; KL: nats, mean and largest; rows: of the lens")
    print(f"{'':12}{'tokens':>6}{'logits':>7}{'/ max':>7}{'same top':>10}{'KL, lens':>17}{'all rows':>17}", end="")
    print(f"{'KL, logits':>17}{'transformers':>17}")
    sizes = {f"random {size.family}": size for size in map(args.size, (GPT2, GPT_NEO_125M))}
    paths = minilens.checkpoint.hub.bundled() | {name: checkpoint(size, folder) for name, size in sizes.items()}
    for name, path in paths.items():
        (exact, tokenizer), (half, _) = minilens.load(path), minilens.load(path, dtype=torch.bfloat16)
        story = STORY if exact.family == "ctrl" else STORY.partition(" ")[2]
        tokens = random_tokens(sizes[name], args.tokens // 4) if tokenizer is None else tokenizer.encode(story)
        tokens = tokens[:, : exact.config.n_ctx]
        *_, mine = pairs = list(zip(decoded(exact, tokens), decoded(half, tokens), strict=True))
        final, other = mine
        off = (final - other).abs().max()
        reference = getattr(transformers, CLASSES[exact.family])
        theirs = reference.from_pretrained(path, dtype=torch.bfloat16, attn_implementation="eager")(tokens).logits[0]
        shown = (
            divergence(final, other),
            torch.stack([divergence(p, q) for p, q in pairs]),
            divergence(final, minilens.trace(half, tokens).logits[0]),
            divergence(final, theirs),
        )
        same = (final.argmax(-1) == other.argmax(-1)).float().mean()
        print(f"{name:14}{tokens.shape[1]:4}{off:7.2f}{off / final.abs().max():7.3f}{same:10.1%}", end="")
        print("".join(f"{kl.mean():9.1e}{kl.max():8.0e}" for kl in shown), flush=True)


STARTS = {  # and how much longer than torch's import each may take
    "import torch": (["-c", "import torch"], ""),
    "import minilens": (["-c", "import minilens"], "0.03"),
    "minilens --help": (["-m", "minilens", "--help"], "0.06"),
    "minilens lens, tales-gpt2": (["-m", "minilens", "lens", "Once upon a time"], "0.4"),
}


def part_start(args: argparse.Namespace, folder: Path) -> None:
    """The processor's seconds until a command is done. Python keeps compiled files for it if the first run may."""
    part("start: seconds of the processor, over torch's import, in fresh processes")

    def spent(words: list[str]) -> float:
        before = os.times()
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL, env=environment)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "OMP_NUM_THREADS": str(args.threads)}
    turns = [{name: spent(words) for name, (words, _) in STARTS.items()} for _ in range(1 + args.repeat)]
    least = {name: min(turn[name] for turn in turns[1:]) for name in STARTS}
    for name, (_, target) in STARTS.items():
        line(name, least[name])
        if target:
            line(f"{name}, over torch's import", least[name] - least["import torch"], target=target)


PRECISE = ("entropy", "kl_final", "kl_row_final", "kl_input", "change", "js")


def part_precision(args: argparse.Namespace, folder: Path) -> None:
    """What products of bfloat16 cost in accuracy, by statistic and row, and what they save in time."""
    size = args.size(GPT2)
    model, tokens = load(checkpoint(size, folder)), random_tokens(size, min(args.tokens, size.n_ctx))
    part(f"precision: {size}; T {tokens.shape[1]}, {size.n_layers + 1} rows")
    half = "bfloat16" if has_bfloat16(torch.device("cpu")) else "emulated"
    ways = {name: partial(minilens.logit_lens, model, tokens, precision=name) for name in ("full", half)}
    x = torch.stack([model.final_norm(resid)[0] for resid in residuals_of(model, tokens)])
    passes = {name: partial(vocab_stats, x, model.W_U, None, {}, k=TOP_K, stats=STATS, precision=name) for name in ways}
    for what, contenders in (("the lens' pass", passes), ("logit_lens", ways)):
        (full, s_full), (_, s_half) = measure(contenders, args.repeat).items()
        line(f"{what}, {full}", s_full)
        line(f"{what}, {half}", s_half, ratio=s_half / s_full, target="0.5")
    paths = minilens.checkpoint.hub.bundled()
    for name, path in paths.items():
        found, tokenizer = minilens.load(path)
        assert tokenizer is not None
        story = tokenizer.encode(STORY if found.family == "ctrl" else STORY.partition(" ")[2])
        _errors(name, found, story[:, : found.config.n_ctx])
    _errors(f"random {size.family}", model, tokens)


def _errors(name: str, model: minilens.Model, tokens: Tensor) -> None:
    full, half = (
        minilens.logit_lens(model, tokens, stats="all", precision=precision) for precision in ("full", "emulated")
    )
    print(f"\n  {name}, {tokens.shape[1]} tokens: mean and largest error in nats; places where the best token or rank")
    print(f"  is another\n  {'row':16}" + "".join(f"{of:>17}" for of in (*PRECISE, "cross_entropy")) + "   best   rank")
    for row, label in enumerate(full.labels):
        print(f"  {label:16}", end="")
        for of in (*PRECISE, "cross_entropy"):
            error = (getattr(half, of)[row] - getattr(full, of)[row]).abs()
            error = error[error.isfinite()]
            print(f"{error.mean():9.0e}{error.max():8.0e}" if len(error) else f"{'':17}", end="")
        best = (half.top.tokens[row, :, 0] != full.top.tokens[row, :, 0]).float().mean()
        rank = (half.next.rank[row] != full.next.rank[row]).float().mean()
        print(f"{best:7.1%}{rank:7.1%}", flush=True)


def residuals_of(model: minilens.Model, tokens: Tensor) -> Iterator[Tensor]:
    """The stream entering block 0, and after each block."""
    yield (resid := model.embed(tokens))
    for block in minilens.run(model, resid):
        yield block.resid_post


def part_learned(args: argparse.Namespace, folder: Path) -> None:
    """What a learned lens costs: the sums that it is fitted by, the end of the fit, and a lens in use."""
    size = args.size(GPT2)
    model, tokens = load(checkpoint(size, folder)), random_tokens(size, min(args.tokens, size.n_ctx))
    part(f"learned: {size}; T {tokens.shape[1]}, {size.n_layers} rows with a map")
    trace = minilens.trace(model, tokens)
    streams = [trace.embed[0], *(block.resid_post[0] for block in trace.blocks)]
    sums = MomentSums()
    so_far = sums.empty(size.n_layers, size.d_model)
    maps = {
        Site(row - 1, "resid_post") if row else EMBED: RowMap.of(torch.eye(size.d_model), streams[0][0])
        for row in range(size.n_layers)
    }
    learned = LearnedLens("affine", maps, Subject.of(model))
    seconds = measure(
        {
            "forward": partial(keep_nothing, model, tokens),
            "sums": lambda: sums.add(so_far, streams[:-1], streams[-1]),
            "plain": partial(minilens.logit_lens, model, tokens),
            "learned": partial(minilens.logit_lens, model, tokens, transport=learned),
        },
        args.repeat,
    )
    line("a minilens.run, nothing kept", seconds["forward"])
    line("the sums of affine", seconds["sums"], ratio=seconds["sums"] / seconds["forward"], target="of a: 0.5")
    line("b logit_lens", seconds["plain"])
    line(
        "logit_lens with a map for each row",
        seconds["learned"],
        ratio=seconds["learned"] / seconds["plain"],
        target="of b: 1.1",
    )
    line("the sums of one shard", sum(part.nbytes for part in vars(so_far).values()) / 1e6, "MB")
    wide = args.size(CTRL).d_model
    X = torch.randn(2 * wide, wide, generator=torch.Generator().manual_seed(0))
    sums.add(one := sums.empty(1, wide), [X], X.roll(1, 1))
    start = time.perf_counter()
    best_map(one, 0, choose_ridge(one, one, 0))
    line(f"a row's ridge chosen and its map found, at d_model {wide}", time.perf_counter() - start)


PARTS = dict(
    lens=part_lens,
    forward=part_forward,
    memory=part_memory,
    ctrl=part_ctrl,
    xl=part_xl,
    patching=part_patching,
    short=part_short,
    generation=part_generation,
    learned=part_learned,
    peers=part_peers,
    loading=part_loading,
    bfloat16=part_bfloat16,
    precision=part_precision,
    start=part_start,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help=f"{', '.join(PARTS)}; by default the first three")
    parser.add_argument("--tokens", type=int, default=512, help="length of the text of lens, memory and peers")
    parser.add_argument("--repeat", type=int, default=5, help="how many turns each contender has")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--ctrl-layers", type=int, default=12, help="layers of ctrl; the real one has 48")
    parser.add_argument("--folder", type=Path, help="where to keep the checkpoints; by default they are removed")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    args = parser.parse_args()
    if unknown := [what for what in args.what if what not in PARTS]:
        parser.error(f'there is no part "{unknown[0]}"; there are {", ".join(PARTS)}')
    if not 1 <= args.tokens <= GPT2.n_ctx or min(args.repeat, args.threads, args.ctrl_layers) < 1:
        parser.error(f"--tokens must be from 1 to {GPT2.n_ctx}; --repeat, --threads and --ctrl-layers at least 1")
    args.size = lambda size: size._replace(**TINY) if args.quick else size
    torch.set_num_threads(args.threads)
    cpus = [text for text in Path("/proc/cpuinfo").read_text().splitlines() if text.startswith("model name")]
    print(f"{cpus[0].partition(': ')[2] if cpus else 'CPU'}, {os.cpu_count()} cores, {args.threads} threads;", end=" ")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, minilens {minilens.__version__}")
    print(f"load average at the start {os.getloadavg()[0]:.1f}: well below 1, or other programs disturb the figures")
    print(f"seconds: the least of {args.repeat} runs, the contenders of each part taking turns in one process")
    with tempfile.TemporaryDirectory() as temporary:
        for what in dict.fromkeys(args.what or ("lens", "forward", "memory")):
            (folder := args.folder or Path(temporary)).mkdir(parents=True, exist_ok=True)
            PARTS[what](args, folder)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_grad_enabled(False)
    if sys.argv[1:2] == ["_probe"]:
        probe(*sys.argv[2:])
    elif sys.argv[1:2] == ["_probe_loading"]:
        probe_loading(*sys.argv[2:])
    else:
        main()

"""Broken and malicious checkpoints, thousands of them: each must load correctly or be refused in one sentence.

    python scripts/fuzz.py                                     every kind: 500 drawn cases, and those made by hand
    python scripts/fuzz.py --kind bin --cases 5000 --seed 7    more of one kind
    python scripts/fuzz.py --kind bin --seed 7 --case 137      one case again, by its number or its name

A case is a good checkpoint of a tiny random model with a file or two of it changed (fuzz_cases.py). In a process of its
own `minilens.load` reads it, and of every three cases, but for very large ones, one is read by the command `minilens
lens` as well. A case is

- refused where CheckpointError is raised, of one line that names the folder, and the command prints that line alone;
- loaded where config, logits and tokens are those of a second reading, which shares no parser with minilens: Python's
  json and numpy for safetensors, torch.load for .bin, a BPE of a few lines for vocab.json, and for tokenizer.json the
  `tokenizers` package itself. What that reading refuses must not load: a key that is there twice, tensors that overlap,
  holes between them. Weights are not read before they are used, so those that are not finite load, and the lens
  refuses them.

Anything else is printed and kept: another exception, a wrong number, a crash, more than 10 seconds, a rise of memory by
more than twice the files and 768 MiB, a file written outside the checkpoint or changed in it, anything that a library
prints. Exit status 1 if there is any.
"""

import argparse
import contextlib
import gc
import io
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import tokenizers
import torch
from fuzz_cases import CONFIGS, HAND, Drawn, Tensors, by_hand, letters, unzipped, write, zipped

import minilens
from minilens import cli, ctrl, gpt2, gpt_neo, hub, ops

KINDS = tuple(HAND)
SECONDS = 10
SPARE = 768 * 2**20  # bytes: the longest text that minilens reads, 16 MiB, as Python's or Rust's objects
PROBE = torch.tensor([[5, 17, 3, 99, 0, 42, 42, 8, 64, 11]])
TEXT = "Once upon a time, the cat's 42 caf\u00e9s\n \u2603"


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


# A second reading of a checkpoint, to compare with.


def second_config(c: dict[str, Any]) -> Any:
    """The sizes that a config.json stands for, without any of the checks."""
    family = c["model_type"]
    unknown = c.keys() - CONFIGS[family].keys() - hub.IGNORED - hub.ONLY.keys() - {"attention_layers", "n_inner"}
    unknown -= {"scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"}
    if unknown or any(c.get(key) not in (None, only) for key, only in hub.ONLY.items()):
        raise ValueError(f"a key that may change the numbers: {unknown}")
    if family == "gpt_neo":
        kinds = c.get("attention_layers") or [kind for kinds, n in c["attention_types"] for kind in kinds * n]
        return gpt_neo.Config(
            d_vocab=c["vocab_size"],
            n_ctx=c["max_position_embeddings"],
            d_model=c["hidden_size"],
            n_layers=c["num_layers"],
            n_heads=c["num_heads"],
            d_mlp=c.get("intermediate_size") or 4 * c["hidden_size"],
            ln_eps=float(c.get("layer_norm_epsilon", 1e-5)),
            activation=ops.ACTIVATIONS[c.get("activation_function", "gelu_new")],
            is_local=tuple(kind == "local" for kind in kinds),
            window=c.get("window_size") or 256,
        )
    sizes = dict(
        d_vocab=c["vocab_size"],
        n_ctx=c["n_positions"],
        d_model=c["n_embd"],
        n_layers=c["n_layer"],
        n_heads=c["n_head"],
    )
    if family == "ctrl":
        return ctrl.Config(**sizes, d_mlp=c["dff"], ln_final_eps=float(c.get("layer_norm_epsilon", 1e-6)))
    return gpt2.Config(
        **sizes,
        d_mlp=c.get("n_inner") or 4 * c["n_embd"],
        ln_eps=float(c.get("layer_norm_epsilon", 1e-5)),
        activation=ops.ACTIVATIONS[c.get("activation_function", "gelu_new")],
        scale_by_d_head=c.get("scale_attn_weights", True),
        scale_by_layer=c.get("scale_attn_by_inverse_layer_idx", False),
    )


class Given(Drawn):
    """In place of a Checkpoint: these weights."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}

    def take(self, name: str, *shape: int) -> torch.Tensor:
        return self.tensors[name].float()


def second_json(data: bytes) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a key is there twice")
        return dict(pairs)

    return json.loads(data.decode(), object_pairs_hook=unique)


NUMPY = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}


def second_safetensors(data: bytes) -> Tensors:
    (length,) = struct.unpack("<Q", data[:8])
    header, body = second_json(data[8 : 8 + length]), data[8 + length :]
    header.pop("__metadata__", None)
    tensors, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = entry["data_offsets"]
        if first != end:
            raise ValueError("tensors overlap, or there is a hole")
        end = last
        if entry["dtype"] not in NUMPY:
            continue  # of a mask, or the family must miss it
        flat = np.frombuffer(body[first:last], NUMPY[entry["dtype"]])
        if entry["dtype"] == "BF16":
            flat = (flat.astype("<u4") << 16).view("<f4")
        tensors[name] = torch.from_numpy(flat.astype("<f4").reshape(entry["shape"]))
    if end != len(body):
        raise ValueError("there is a hole at the end")
    return tensors


def second_weights(folder: Path) -> Tensors:
    if (path := folder / "model.safetensors").is_file():
        return second_safetensors(path.read_bytes())
    if (path := folder / "model.safetensors.index.json").is_file():
        paths = [folder / file for file in set(second_json(path.read_bytes())["weight_map"].values())]
    else:
        paths = [folder / "pytorch_model.bin"]
    tensors: Tensors = {}
    for path in paths:
        if path.suffix == ".safetensors":
            found = second_safetensors(path.read_bytes())
        else:
            try:
                found = torch.load(path, map_location="cpu", weights_only=True)
            except RuntimeError as error:
                if not re.search("PytorchStreamReader|hasRecord|inline_container", str(error)):
                    raise
                # torch minds what holds no tensors, too: the same program and storages in another archive.
                found = torch.load(io.BytesIO(zipped(*unzipped(path.read_bytes()))), weights_only=True)
        if found.keys() & tensors.keys():
            raise ValueError("a tensor is there twice")
        tensors |= found
    return tensors


def bpe(symbols: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    while pairs := [pair for pair in pairwise(symbols) if pair in ranks]:
        best = min(pairs, key=ranks.__getitem__)
        n = 0
        while n < len(symbols) - 1:
            if (symbols[n], symbols[n + 1]) == best:
                symbols[n : n + 2] = ["".join(best)]
            n += 1
    return symbols


def second_tokens(folder: Path, family: str) -> list[int]:
    """Those of TEXT."""
    if family != "ctrl" and (path := folder / "tokenizer.json").is_file():
        second_json(path.read_bytes())
        second = tokenizers.Tokenizer.from_file(str(path))
        second.no_truncation()
        second.no_padding()
        ids: list[int] = second.encode(TEXT, add_special_tokens=False).ids
        return ids
    vocab = second_json((folder / "vocab.json").read_bytes())
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    if family == "ctrl":
        ranks: Any = {tuple(line.split()): rank for rank, line in enumerate(lines[1:-1])}
        pieces = []
        for word in re.findall(r"\S+\n?", TEXT):
            symbols = bpe([*word[:-1], word[-1] + "</w>"], ranks)
            pieces += [symbol + "@@" for symbol in symbols[:-1]] + [symbols[-1].removesuffix("</w>")]
        return [vocab.get(piece, vocab["<unk>"]) for piece in pieces]
    config = folder / "tokenizer_config.json"
    spaced = config.is_file() and second_json(config.read_bytes()).get("add_prefix_space") is True
    ranks = {tuple(line.split(" ")): rank for rank, line in enumerate(lines) if not line.startswith("#version")}
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+"
    found = []
    for word in re.findall(pattern, " " * spaced + TEXT):
        known = [letters()[byte] for byte in word.encode() if letters()[byte] in vocab]
        found += [vocab[piece] for piece in bpe(known, ranks)]
    return found


def difference(folder: Path, model: Any, tokenizer: Any) -> str | None:
    """What is not as in the second reading; None where all is."""
    config = second_json((folder / "config.json").read_bytes())
    second = hub.FAMILIES[config["model_type"]].build(second_config(config), Given(second_weights(folder)))
    if repr(model.config) != repr(second.config):
        return f"the config is {model.config}, and should be {second.config}"
    probe = PROBE[:, : model.config.n_ctx] % model.config.d_vocab
    logits = minilens.trace(second, probe).logits
    if not torch.equal(minilens.trace(model, probe).logits.nan_to_num(7e7), logits.nan_to_num(7e7)):
        return "the logits differ"
    try:
        stats = minilens.logit_lens(model, probe).final
        if not logits.isfinite().all() and not (logits == -torch.inf).any():
            return "the lens shows logits that are not finite"
        if not stats.logprob.isfinite().all():
            return "the lens is not finite"
    except ValueError as error:
        rows = [row.logits for row in minilens.lens_rows(second, probe)]
        if "are not finite" not in str(error) or torch.stack(rows).isfinite().all():
            return f"the lens refuses: {error}"
    if tokenizer is not None:
        ids = second_tokens(folder, config["model_type"])
        if tokenizer.encode(TEXT)[0].tolist() != ids:
            return f"the tokens are {tokenizer.encode(TEXT)[0].tolist()}, and should be {ids}"
        tokenizer.decode(ids)
    return None


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
            status: int | str = cli.main(["lens", *source, "--model", str(folder)])
        except BaseException as error:
            status = repr(error)
    return status, err.getvalue().splitlines()


def attempt(case: Case, root: Path) -> Result:
    """Read one checkpoint and say what came of it."""
    folder = root / "case"
    said = (root / "stderr").stat().st_size
    gc.collect()
    before = listing(root)
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    resident, start = memory("VmRSS"), time.perf_counter()
    sentence = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model, tokenizer = minilens.load(folder)
            outcome = "loaded"
        except minilens.CheckpointError as error:
            sentence = str(error)
            fault = sentence_fault(sentence, folder)
            outcome = "refused" if fault is None else f"{fault}: {sentence:.1000}"
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error!s:.300}: {traceback.format_exc().splitlines()[-3].strip()}"
        seconds, rise = time.perf_counter() - start, memory("VmHWM") - resident
        if outcome == "loaded":
            try:
                outcome = difference(folder, model, tokenizer) or "loaded"
            except Exception as error:
                outcome = f"the second reading refuses: {type(error).__name__} {error!s:.300}"
    if outcome in ("refused", "loaded") and seconds < 0.5 and crc32(case.name.encode()) % 3 == 0:
        text = [TEXT] if case.kind == "tokenizer" and case.name[-1] in "02468xyz" else ["--ids", "1 2 3"]
        status, lines = command(folder, *text)
        errors = [line.removeprefix("minilens: error: ") for line in lines if line.startswith("minilens: error: ")]
        if not all(line.startswith("minilens: ") for line in lines) or [status, len(errors)] not in ([0, 0], [2, 1]):
            outcome = f"the command ends in {status} and says {lines[-3:]}"
        elif outcome == "refused" and errors[0].split("(")[0] != sentence.split("(")[0]:
            outcome = f"the command says {errors}, and load {sentence}"
        elif (
            outcome == "loaded"
            and status != 0
            and not re.search("finite|out of range|context holds|empty|no tokenizer", errors[0])
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

    def read(self, case: Case) -> Result:
        self.connection.send(tuple(case))
        try:
            assert self.connection.recv() == "written"
            if self.connection.poll(SECONDS):
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

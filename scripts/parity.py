"""minilens beside transformers: every value of a forward pass, layer by layer, on any checkpoint of the three families.

    python scripts/parity.py tales-gpt2              a line for each kind of value, then the summary
    python scripts/parity.py tales-gpt2 gpt2         several models: the summary, and what differs
    python scripts/parity.py gpt2 --all              a line for each value of each layer
    python scripts/parity.py --published [MODEL]     what others have published about models on the Hub

MODEL is whatever minilens.load takes. transformers reads the same files, with eager attention: the other kinds give no
pattern, and until 2026 they left out two of GPT-2's settings (its pull request 44397). Its values are heard by hooks on
its modules.

OK       the largest difference is within the tolerance
DIFF     it is not, or a number is not finite
SHAPE    the shapes differ
MISSING  no module gives such a value: the scores are made and used within one function of transformers

The tolerance is relative to the largest number of the value, or absolute where that is below 1: a residual stream may
hold numbers in the thousands, and there float32 has steps of 2e-4. For the pattern it is relative to half of the
largest score: where scores are off by d, a share of attention is off by d / 2 at most.

float32  1e-5, a hundred roundings: room for a sum in another order, not for another formula
float64  1e-10: CTRL needs no more, since both libraries have its positions as float32 numbers. The scores of GPT-Neo
         are float32 numbers in either dtype, which would hide all else: here both libraries leave them in float64

Beneath stands what was seen on this machine and may be otherwise on the next: "equal" counts the values in which no
number differs, and "largest" is the largest difference. Both libraries take the same products, but their operands may
be laid out or aligned in another way, and each processor rounds those in its own.

By default the tokens are two texts of random ones, longer than GPT-Neo's window where the context is. The exit status
is 1 where anything is DIFF or SHAPE, 2 for what the user can mend, else 0.
"""

import argparse
import json
import math
import os
import platform
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import minilens
from minilens.checkpoint.hub import bundled
from minilens.checkpoint.tokenizer import Tokenizer
from minilens.checks.published import PUBLISHED, check
from minilens.ops import merge_heads

TOLERANCES = {"float32": 1e-5, "float64": 1e-10}
SEED = 2021
N_TOKENS = 128  # by default, besides GPT-Neo's window
CHOOSING = ("MKL_", "ONEDNN_", "OPENBLAS_", "ATEN_CPU_")  # variables with which a user has libraries take another path
BAD = ("DIFF", "SHAPE")
STATUSES = ("OK", "MISSING", *BAD)  # the worst last
FIELDS = tuple(field.name for field in fields(minilens.BlockTrace))[1:]  # all but its layer

# Where transformers has each value: a module, and what to take of its arguments and its output.

Take = Callable[[tuple[Any, ...], Any], Any]


def read(args: tuple[Any, ...], out: Any) -> Any:
    return args[0]


def given(args: tuple[Any, ...], out: Any) -> Any:
    return out[0] if isinstance(out, tuple) else out


def beside(args: tuple[Any, ...], out: Any) -> Any:
    return out[1] if isinstance(out, tuple) else None


def third(n: int) -> Take:
    return lambda args, out: out.chunk(3, -1)[n]


Places = dict[str, tuple[str, Take]]

GPT2: Places = {
    "resid_pre": ("ln_1", read),
    "ln1_out": ("ln_1", given),
    "q": ("attn.c_attn", third(0)),
    "k": ("attn.c_attn", third(1)),
    "v": ("attn.c_attn", third(2)),
    "pattern": ("attn", beside),
    "z": ("attn.c_proj", read),
    "attn_out": ("attn", given),
    "resid_mid": ("ln_2", read),
    "ln2_out": ("ln_2", given),
    "mlp_pre": ("mlp.c_fc", given),
    "mlp_post": ("mlp.act", given),
    "mlp_out": ("mlp", given),
    "resid_post": ("", given),
}
GPT_NEO: Places = GPT2 | {
    "q": ("attn.attention.q_proj", given),
    "k": ("attn.attention.k_proj", given),
    "v": ("attn.attention.v_proj", given),
    "z": ("attn.attention.out_proj", read),
}
CTRL: Places = {
    "resid_pre": ("layernorm1", read),
    "ln1_out": ("layernorm1", given),
    "q": ("multi_head_attention.Wq", given),
    "k": ("multi_head_attention.Wk", given),
    "v": ("multi_head_attention.Wv", given),
    "pattern": ("multi_head_attention", beside),
    "z": ("multi_head_attention.dense", read),
    "attn_out": ("multi_head_attention", given),
    "resid_mid": ("layernorm2", read),
    "ln2_out": ("layernorm2", given),
    "mlp_pre": ("ffn.0", given),
    "mlp_post": ("ffn.1", given),
    "mlp_out": ("ffn", given),
    "resid_post": ("", given),
}
IN_BLOCKS = {"gpt2": GPT2, "gpt_neo": GPT_NEO, "ctrl": CTRL}
AROUND: Places = {
    "embed": ("transformer.drop", given),
    "final_norm": ("transformer.ln_f", given),
    "logits": ("lm_head", given),
}
AROUND_BLOCKS = {
    "gpt2": AROUND,
    "gpt_neo": AROUND,
    "ctrl": AROUND | {"embed": ("transformer.dropout", given), "final_norm": ("transformer.layernorm", given)},
}

Key = tuple[str, int | None]
"""A value's name and its layer, None before and after the blocks."""


class Row(NamedTuple):
    """One value, compared."""

    name: str
    layer: int | None
    status: str
    largest: float = math.nan  # absolute difference of two numbers; not a number where nothing was compared
    mean: float = math.nan
    note: str = ""

    @property
    def equal(self) -> bool:
        return self.largest == 0


class Report(NamedTuple):
    """One model in one dtype."""

    model: str
    dtype: str
    tokens: tuple[int, ...]  # texts, and tokens of each
    rows: list[Row]

    def count(self, status: str) -> int:
        return sum(row.status == status for row in self.rows)


def load_reference(name: str, revision: str | None, dtype: torch.dtype) -> Any:
    """transformers' model from the files that minilens.load would read."""
    try:
        from transformers import AutoConfig, AutoModelForCausalLM, logging
    except ImportError as error:
        raise ValueError("transformers is not installed here; scripts/test installs it into .venv") from error
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = bundled().get(name) or Path(os.path.expanduser(name))
    source, options = str(folder) if os.path.isdir(folder) else name, {"revision": revision or "main"}
    try:
        config = AutoConfig.from_pretrained(source, **options)
        if dtype == torch.float64 and getattr(config, "reorder_and_upcast_attn", False):
            config.reorder_and_upcast_attn = False  # with which it refuses float64, where it would change nothing
        return AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=dtype, attn_implementation="eager", **options
        ).eval()
    except Exception as error:  # transformers lets those of the libraries below it through
        raise ValueError(f"transformers cannot load {name}: {error}") from error


class Float64Stays(TorchFunctionMode):
    """What is in float64 is not taken to float32, whatever the code between says."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        narrows = func is Tensor.float or (func is Tensor.to and args[1:] == (torch.float32,))
        return args[0] if narrows and args[0].dtype == torch.float64 else func(*args, **(kwargs or {}))


@torch.no_grad()
def reference_values(reference: Any, family: str, tokens: Tensor) -> dict[Key, Tensor]:
    """All that the hooks hear in one forward pass; a module that is not there, or not run, gives nothing."""
    heard: dict[Key, Tensor] = {}

    def listen(parent: Any, places: Places, layer: int | None) -> None:
        modules = dict(parent.named_modules())
        for name, (place, take) in places.items():
            if place in modules:

                def hook(_: Any, args: Any, out: Any, key: Key = (name, layer), take: Take = take) -> None:
                    value = take(args, out)
                    if isinstance(value, Tensor):
                        heard[key] = value

                modules[place].register_forward_hook(hook)

    listen(reference, AROUND_BLOCKS[family], None)
    for layer, block in enumerate(reference.transformer.h):
        listen(block, IN_BLOCKS[family], layer)
    reference(tokens, use_cache=False)  # a cache would lay out the keys in another way
    return heard


def own_values(model: minilens.Model, tokens: Tensor) -> Iterator[tuple[Key, Tensor]]:
    """All that minilens gives, one block at a time; heads side by side, as transformers' modules have them."""
    resid = model.embed(tokens)
    yield ("embed", None), resid
    for block in minilens.run(model, resid):
        for name in FIELDS:
            value = getattr(block, name)
            yield (name, block.layer), merge_heads(value) if name in ("q", "k", "v", "z") else value
        resid = block.resid_post
    yield ("final_norm", None), model.final_norm(resid)
    yield ("logits", None), model.unembed(resid)


def compare(key: Key, ours: Tensor, theirs: Tensor | None, tolerance: float) -> Row:
    if theirs is None:
        return Row(*key, "MISSING")
    if ours.shape != theirs.shape:
        return Row(*key, "SHAPE", note=f"{list(ours.shape)} here, {list(theirs.shape)} in transformers")
    difference = (ours.double() - theirs.double()).abs().nan_to_num(math.inf, math.inf)
    largest, size = difference.max().item(), theirs.abs().max().item()
    is_close = math.isfinite(largest) and largest <= tolerance * max(1, size)
    return Row(*key, "OK" if is_close else "DIFF", largest, difference.mean().item())


def report(name: str, dtype: str, args: argparse.Namespace) -> Report:
    """Run both libraries on the same tokens."""
    model, tokenizer = minilens.load(name, revision=args.revision, dtype=getattr(torch, dtype))
    tokens = prompt(name, model, tokenizer, args)
    model.embed(tokens)  # refuses what it cannot read, before transformers does in its own way
    reference = load_reference(name, args.revision, getattr(torch, dtype))
    with Float64Stays():
        theirs = reference_values(reference, model.family, tokens)
        rows, largest_score = [], 0.0
        for key, ours in own_values(model, tokens):
            if key[0] == "scores":
                largest_score = ours[ours.isfinite()].abs().max().item()  # what is masked is not
            size = largest_score / 2 if key[0] == "pattern" else 1
            rows.append(compare(key, ours, theirs.pop(key, None), TOLERANCES[dtype] * max(1, size)))
    return Report(name, dtype, tuple(tokens.shape), rows)


def prompt(name: str, model: Any, tokenizer: Tokenizer | None, args: argparse.Namespace) -> Tensor:
    if args.prompt is not None:
        return encode(args.prompt, name, tokenizer)
    n = min(model.config.n_ctx, getattr(model.config, "window", 0) + N_TOKENS) if args.tokens is None else args.tokens
    return torch.randint(model.config.d_vocab, (2, n), generator=torch.Generator().manual_seed(SEED))


def encode(text: str, name: str, tokenizer: Tokenizer | None) -> Tensor:
    if tokenizer is None:
        raise ValueError(f"{name} has no tokenizer files, so it cannot read {text!r}")
    return tokenizer.encode(text)


# How it is shown.


def table(lines: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())


def values_table(found: Report, every_value: bool, only_bad: bool) -> None:
    """A line for each value, or for each kind of value with what it is in its worst layer."""
    groups: dict[str, list[Row]] = {}
    for row in found.rows:
        label = row.name if row.layer is None or not every_value else f"{row.layer}.{row.name}"
        groups.setdefault(label, []).append(row)
    lines = []
    for label, rows in groups.items():
        worst = max(rows, key=lambda row: (STATUSES.index(row.status), not math.isnan(row.largest), row.largest))
        if only_bad and worst.status not in BAD:
            continue
        where = "" if worst.layer is None or worst.equal or worst.status == "MISSING" else f"layer {worst.layer}"
        equal = f"{sum(row.equal for row in rows)} of {len(rows)}"
        lines.append(
            [label, worst.status, equal, digits(worst.largest), digits(worst.mean), f"{where} {worst.note}".strip()]
        )
    if lines:
        print(f"{found.model}, {found.dtype}, {' x '.join(map(str, found.tokens))} tokens")
        table([["value", "status", "equal", "largest", "mean", "worst"], *lines])
        print()


def digits(number: float) -> str:
    return "" if math.isnan(number) else f"{number:.1e}" if number else "0"


def summary_table(found: list[Report]) -> None:
    """What holds on any machine: the counts of each model and dtype. Then what was seen on this one."""
    lines, seen = [], []
    for each in found:
        counts = map(str, (len(each.rows), *(each.count(status) for status in ("OK", *BAD))))
        missing = ", ".join(dict.fromkeys(row.name for row in each.rows if row.status == "MISSING"))
        tolerance = f"{TOLERANCES[each.dtype]:.0e}"
        lines.append([each.model, each.dtype, *counts, tolerance, f"{each.count('MISSING')} {missing}"])
        largest = max((row.largest for row in each.rows if not math.isnan(row.largest)), default=math.nan)
        equal = sum(row.equal for row in each.rows)
        seen.append([each.model, each.dtype, str(equal), digits(largest)])
    table([["model", "dtype", "values", "OK", *BAD, "within", "MISSING"], *lines])
    print(f"\nseen on {machine()}; {torch.get_num_threads()} threads")
    table([["model", "dtype", "equal", "largest"], *seen])


def machine() -> str:
    """What decides how products and sums are rounded: the processor, and the libraries that compute."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            named = [line.partition(":")[2].strip() for line in file if line.startswith(("model name", "CPU part"))]
    except OSError:
        named = []
    processor = named[0] if named else platform.processor() or platform.machine()
    built = torch.__config__.show()
    blas = re.findall(r"Math Kernel Library Version \S+|BLAS_INFO=\w+", built)
    capability = torch.backends.cpu.get_cpu_capability()
    chosen = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(CHOOSING)]
    return "; ".join([f"{processor}, {capability}", f"torch {torch.__version__}, {', '.join(blas)}", *chosen])


def as_record(found: Report) -> dict[str, Any]:
    """For JSON, which has null where there is no number."""

    def finite(number: float) -> float | None:
        return number if math.isfinite(number) else None

    rows = [row._asdict() | {"equal": row.equal} for row in found.rows]
    for row in rows:
        row.update(largest=finite(row["largest"]), mean=finite(row["mean"]))
    return found._asdict() | {"tolerance": TOLERANCES[found.dtype], "rows": rows}


def parity(args: argparse.Namespace) -> int:
    if not args.models:
        raise ValueError("name a MODEL: a bundled model, a folder or a Hub repository")
    if args.tokens is not None and args.prompt is not None:
        raise ValueError("--tokens and --prompt are both given: choose one")
    if args.tokens is not None and args.tokens < 1:
        raise ValueError(f"--tokens must be at least 1; got {args.tokens}")
    if args.all and args.json:
        raise ValueError("--json gives every value already: leave out --all")
    found = []
    for name in args.models:
        for dtype in [args.dtype] if args.dtype else TOLERANCES:
            found.append(report(name, dtype, args))
            if not args.json:
                values_table(found[-1], args.all, only_bad=not args.all and len(args.models) > 1)
    if args.json:
        print(json.dumps([as_record(each) for each in found], indent=1))
    else:
        summary_table(found)
    return int(any(each.count(status) for each in found for status in BAD))


# What others have published


def published(args: argparse.Namespace) -> int:
    given = [name for name in ("revision", "dtype", "tokens", "prompt") if getattr(args, name) is not None]
    if given or args.all:
        raise ValueError(f"--published fixes what is compared: leave out --{[*given, 'all'][0]}")
    repos = list(dict.fromkeys(each.repo for each in PUBLISHED))
    if unknown := [name for name in args.models if name not in repos]:
        raise ValueError(f"nothing is listed here as published about {unknown[0]!r}, only about {', '.join(repos)}")
    records = []
    for repo in args.models or repos:
        model, tokenizer = minilens.load(repo)
        for each in PUBLISHED:
            if each.repo == repo:
                record = check(each, model, tokenizer)
                records.append(record)
                if not args.json:
                    print(f"{record['status']:4}  {repo}  {record['measure']} {each.prompt!r}", flush=True)
                    if record["status"] == "DIFF":
                        print(f"      published {each.expected!r}\n      found     {record['found']!r}", flush=True)
    if args.json:
        print(json.dumps(records, indent=1))
    return int(any(record["status"] == "DIFF" for record in records))


def say(message: str) -> None:
    """One line on stderr, with nothing in it that a terminal would obey."""
    print("parity: " + "".join(c if c.isprintable() else " " for c in message), file=sys.stderr)


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help="a bundled model, a folder or a Hub repository")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub repository")
    parser.add_argument("--dtype", choices=TOLERANCES, help="one dtype only (default: one after the other)")
    parser.add_argument("--tokens", type=int, help="the length of the two random texts")
    parser.add_argument("--prompt", help="one text to read instead of random tokens")
    parser.add_argument("--all", action="store_true", help="a line for each value of each layer")
    parser.add_argument("--json", action="store_true", help="print all that was found as JSON")
    parser.add_argument("--published", action="store_true", help="compare with what others have published")
    try:
        args = parser.parse_args(argv)
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: say(f"note: {message}")
            return published(args) if args.published else parity(args)
    except (ValueError, minilens.CheckpointError) as error:
        say(f"error: {error}")
        return 2
    except BrokenPipeError:  # the reader has seen enough, as in `--all | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())

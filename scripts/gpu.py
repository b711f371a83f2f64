"""minilens on a GPU: is it right, how much memory does it take, and how fast is it? One table, within five minutes.

    python scripts/gpu.py                  the first GPU
    python scripts/gpu.py --device cuda:1  another one
    python scripts/gpu.py --device cpu     small sizes on the CPU, whose figures mean nothing: does it run at all?

Right means near to the CPU in float64. The lens alone is held to the bound of minilens/vocab.py, on the same vectors. A
whole model is held to NEAR, since its float32 adds up over the blocks. The card's rates are measured by one large
product.
Without a GPU it says so and ends with 2; where something is wrong, with 1.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import minilens
from minilens.corpus.measure import CorpusLens, Plan
from minilens.device import at_once, check_precision
from minilens.gpt2 import GPT2, Block, Config
from minilens.ops import LayerNorm, gelu_new
from minilens.vocab import vocab_stats

NEAR = 1e-4  # of 1 + the number itself, of a model in float32 beside float64
STATS = frozenset({"entropy", "kl_final"})
STORY = "Once upon a time there was a little girl who lived in a small house near the wood with her mother. "
LARGE = dict(n_layers=12, d_model=768, n_heads=12, d_vocab=50257, n_ctx=1024)  # GPT-2 small's size
SMALL = dict(n_layers=2, d_model=64, n_heads=4, d_vocab=1000, n_ctx=64)


def random_gpt2(device: torch.device, *, n_layers: int, d_model: int, n_heads: int, d_vocab: int, n_ctx: int) -> GPT2:
    """A GPT-2 with random weights, made on the CPU, so that every device has the same."""
    random = torch.Generator().manual_seed(2020)
    draw = lambda *shape: (0.02 * torch.randn(shape, generator=random)).to(device)  # noqa: E731
    norm = LayerNorm(torch.ones(d_model, device=device), torch.zeros(d_model, device=device))
    scale = ((d_model // n_heads) ** -0.5,) * n_layers
    config = Config(d_vocab, n_ctx, d_model, n_layers, n_heads, 4 * d_model, 1e-5, gelu_new, scale, True)
    blocks = tuple(
        Block(
            norm, draw(d_model, 3 * d_model), draw(3 * d_model), draw(d_model, d_model), draw(d_model),
            norm, draw(d_model, 4 * d_model), draw(4 * d_model), draw(4 * d_model, d_model), draw(d_model),
        )
        for _ in range(n_layers)
    )  # fmt: skip
    W_E = draw(d_vocab, d_model)
    return GPT2(config, W_E, draw(n_ctx, d_model), blocks, norm, W_E.mT)


class Launches(TorchDispatchMode):
    """Counts torch's operations, each of which a GPU launches."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += 1
        return func(*args, **(kwargs or {}))


def launches(call: Callable[[], Any]) -> int:
    with Launches() as counted:
        call()
    return counted.n


@contextmanager
def rounded(precision: str) -> Iterator[None]:
    """With torch's setting for products of float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Table:
    """What is printed, line by line as it is found."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.wrong = device, 0

    def line(self, what: str, value: float, unit: str, target: str = "", *, right: bool | None = None) -> None:
        word = "" if right is None else "right" if right else "WRONG"
        self.wrong += right is False
        shown = f"{value:.1e}" if unit == "nats" else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        print(f"  {what:<62} {shown:>10} {unit:<9} {word or target}".rstrip(), flush=True)

    def seconds(self, call: Callable[[], Any], repeat: int = 3) -> float:
        """The least of some runs, after one that warms up."""
        found = []
        for _ in range(repeat + 1):
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            found.append(time.perf_counter() - start)
        return min(found[1:])

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def megabytes(self, call: Callable[[], Any]) -> float:
        """The most that a call took, over what was there before; not a number on the CPU."""
        if self.device.type != "cuda":
            return math.nan
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        call()
        return (torch.cuda.max_memory_allocated(self.device) - before) / 1e6


def far(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference over 1 + the number itself; where both are infinite or no numbers, there is none."""
    ours, theirs = ours.cpu().double(), theirs.double()
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    return ((ours - theirs).abs() / (1 + theirs.abs())).masked_fill(same, 0).max().item()


def parity(table: Table, is_small: bool) -> None:
    print("\nparity, beside float64 on the CPU")
    for name in ["tales-gpt2"] if is_small else minilens.checkpoint.hub.bundled():
        (ours, tokenizer), (theirs, _) = (
            minilens.load(name, device=table.device),
            minilens.load(name, dtype=torch.double),
        )
        assert tokenizer is not None
        tokens = tokenizer.encode(f"{tokenizer.codes[0] if tokenizer.codes else ''} {STORY * 3}".strip())[:, :64]
        mine, other = (minilens.trace(model, tokens) for model in (ours, theirs))
        most = max(far(getattr(a, of), getattr(b, of)) for a, b in zip(mine.blocks, other.blocks, strict=True)
                   for of in ("pattern", "mlp_post", "resid_post"))  # fmt: skip
        most = max(most, far(mine.logits, other.logits))
        table.line(f"{name}: every block and the logits, / (1 + value)", most, "nats", right=most < NEAR)
        lens, exact = (minilens.logit_lens(model, tokens, stats="all") for model in (ours, theirs))
        most = max(
            far(getattr(lens, of), getattr(exact, of)) for of in ("entropy", "kl_final", "kl_input", "change", "js")
        )
        table.line(f"{name}: the lens, all statistics, / (1 + value)", most, "nats", right=most < NEAR)
        same = (lens.final.rank == exact.final.rank).float().mean().item()
        table.line(f"{name}: ranks that are the same", 100 * same, "%", right=same > 0.98)


def the_pass(table: Table, model: GPT2, x: Tensor) -> None:
    """The vocabulary's statistics beside their definitions, on the same vectors."""
    found = vocab_stats(x, model.W_U, None, {}, k=5, stats=STATS | {"js"})
    logits = x.cpu().double() @ model.W_U.cpu().double()
    logp = logits.log_softmax(-1)
    mean = torch.logaddexp(logp, logp[-1:]) - math.log(2)
    gap = lambda p, q: (p.exp() * (p - q)).sum(-1)  # noqa: E731
    expected = {
        "entropy": -(logp.exp() * logp).sum(-1),
        "kl_final": gap(logp[-1:], logp),
        "js": (gap(logp, mean) + gap(logp[-1:], mean)) / 2,
    }
    for name, exact in expected.items():
        error = (found.stats[name].cpu() - exact).abs()
        is_near = bool((error <= 2e-6 * (1 + logits.abs().max()) + 1e-5 * exact).all())
        table.line(f"the lens' pass: {name}, largest error", error.max().item(), "nats", right=is_near)


def speed(table: Table, model: GPT2, sizes: dict[str, int], is_small: bool) -> None:
    device, size = table.device, 512 if is_small else 8192
    n = min(512, sizes["n_ctx"])
    tokens = torch.randint(0, sizes["d_vocab"], (1, n), generator=torch.Generator().manual_seed(0))
    many = tokens.repeat(2 if is_small else 16, 1)
    streams = [model.embed(tokens), *(block.resid_post for block in minilens.run(model, model.embed(tokens)))]
    x = torch.stack([model.final_norm(resid)[0] for resid in streams])
    print(f"\nthe lens' pass of {n} tokens, {len(x)} rows; its products beside one of {size} x {size} x {size}")
    the_pass(table, model, x[:, :16])
    flops = 2 * x.numel() * sizes["d_vocab"]
    square = torch.randn(size, size, device=device)
    for name, setting, precision in (
        ("float32", "highest", "full"),
        ("TF32", "high", "full"),
        ("bfloat16", "high", "bfloat16"),
    ):
        with rounded(setting):
            factor = square.bfloat16() if name == "bfloat16" else square
            rate = 2 * size**3 / table.seconds(partial(torch.mm, factor, factor))
            table.line(f"{name}: the card's rate", rate / 1e12, "TFLOP/s")
            call = partial(vocab_stats, x, model.W_U, None, {}, k=5, stats=STATS, precision=precision)
            try:
                check_precision(precision, device)
                table.line(f"{name}: the pass, share of it", 100 * flops / table.seconds(call) / rate, "%", "60")
            except ValueError as error:
                print(f"  {name}: {error}")
    print("\nthe model")
    table.line("launches of a forward pass", launches(lambda: model(tokens)), "")
    table.line("launches of a lens", launches(lambda: minilens.logit_lens(model, tokens)), "", "forward pass + 200")
    table.line("forward pass of one text", n / table.seconds(lambda: model(tokens)), "tokens/s")
    table.line(f"forward pass of {len(many)} texts", many.numel() / table.seconds(lambda: model(many)), "tokens/s")
    table.line("logit_lens of one text", n / table.seconds(lambda: minilens.logit_lens(model, tokens)), "tokens/s")
    steps = 4 if is_small else 100
    table.line("generate", steps / table.seconds(lambda: minilens.generate(model, tokens[:, :8], steps), 1), "tokens/s")
    table.line("memory of a forward pass", table.megabytes(lambda: model(tokens)), "MB")
    table.line(
        "memory of a lens", table.megabytes(lambda: minilens.logit_lens(model, tokens)), "MB", "an eighth of the card"
    )


def corpus(table: Table, is_small: bool) -> None:
    print("\nthe lens over a corpus, tales-gpt2")
    model, tokenizer = minilens.load("tales-gpt2", device=table.device)
    assert tokenizer is not None
    for precision in ("full", "bfloat16"):
        try:
            lens = CorpusLens(model, tokenizer, Plan(precision=precision, batch=32 if is_small else None))
        except ValueError as error:
            print(f"  {precision}: {error}")
            continue
        document = tokenizer.encode(STORY * 40)[0][: min(lens.window, lens.batch)]
        documents = [document] * max(1, (1 if is_small else 4) * lens.batch // len(document))
        counts = torch.ones(model.W_U.shape[1], dtype=torch.long)
        took = table.seconds(partial(lens.tallies, documents, counts), 1)
        n = sum(map(len, documents))
        table.line(f"{precision}, batches of {lens.batch:,} tokens", n / took, "tokens/s", "200,000 on a large card")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    device = torch.device(parser.parse_args().device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(
            "scripts/gpu.py: there is no GPU that torch can use; --device cpu tries the script itself", file=sys.stderr
        )
        return 2
    is_small = device.type == "cpu"
    name = "the CPU, at sizes whose figures mean nothing" if is_small else torch.cuda.get_device_name(device)
    print(f"{name}; torch {torch.__version__}, minilens {minilens.__version__}; {at_once(device)}")
    torch.set_grad_enabled(False)
    torch.set_float32_matmul_precision("highest")
    start, table, sizes = time.monotonic(), Table(device), SMALL if is_small else LARGE
    parity(table, is_small)
    speed(table, random_gpt2(device, **sizes), sizes, is_small)
    corpus(table, is_small)
    print(f"\n{table.wrong or 'nothing'} wrong; {time.monotonic() - start:.0f} seconds")
    return 1 if table.wrong else 0


if __name__ == "__main__":
    sys.exit(main())

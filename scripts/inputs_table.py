"""Tables in Markdown, a CSV and a picture of what scripts/inputs.py and scripts/inputs_grid.py measured.

    python scripts/inputs_table.py curves.json GRIDFOLDER --csv docs/inputs.csv --figure docs/images/inputs.png

Of models after ± stands a standard error over documents, of recipes one over seeds. The curve is
first = 1 / (1 + (ratio / half) ** slope), fitted by least squares.
"""

import argparse
import csv
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from inputs import DIRECTIONS, crossing, estimate
from torch import Tensor

from minilens.files import replacing
from minilens.views.plots import INK, LEGEND, LINES, Figure, save_figure

DEALS = 200  # times that ratios are dealt out anew
COLOURS = ("#0072b2", "#009e73", "#c04f00", "#7b3fa0", "#5c646d")
Record = dict[str, Any]


class Fit(NamedTuple):
    """The curve through some points."""

    half: float
    slope: float

    def __call__(self, ratios: Tensor) -> Tensor:
        return 1 / (1 + (ratios / self.half) ** self.slope)


def fit(ratios: Tensor, firsts: Tensor) -> Fit:
    """The best of halves that lie 2 % apart and slopes that lie 3 % apart."""
    halves, slopes = torch.logspace(-2, 3, 580).double(), torch.logspace(-1, 1.5, 195).double()
    curves = 1 / (1 + (ratios / halves[:, None, None]) ** slopes[:, None])  # half slope point
    best = int((firsts - curves).square().sum(-1).argmin())
    return Fit(halves[best // len(slopes)].item(), slopes[best % len(slopes)].item())


def rms(errors: Tensor) -> float:
    return errors.square().mean().sqrt().item()


def means(points: Sequence[Record], name: str) -> Tensor:
    return torch.tensor([point[name]["mean"] for point in points], dtype=torch.float64)


def shown(value: Record | Sequence[float], digits: int = 2) -> str:
    mean, error = value.values() if isinstance(value, dict) else value
    if math.isnan(mean):
        return "none"
    return f"{mean:.{digits}f}" + ("" if math.isnan(error) else f" ± {error:.{digits}f}")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---", *["--:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


# Models as they are


def of_models(models: dict[str, Record]) -> Iterator[str]:
    digits = {
        "token": 2,
        "position": 2,
        "write": 1,
        "ratio": 1,
        "cosine": 3,
        "kept": 3,
        "before": 3,
        "first": 3,
        "null": 3,
    }
    rows = [[name, *(shown(m["measured"][what], n) for what, n in digits.items())] for name, m in models.items()]
    yield table(["model", *digits], rows)
    curves = [*(f"write, {direction}" for direction in reversed(DIRECTIONS)), "embedding"]
    rows = [[name, f"{m['chance']:.2f}", *(shown(m["half"][each]) for each in curves)] for name, m in models.items()]
    yield table(["ratio where half are first", "chance", *curves], rows)


def one_curve(models: dict[str, Record]) -> tuple[Fit, Iterator[str]]:
    """The curve through the five models' own writes, and how far each lies from it."""
    points = {name: m["curves"]["write, own"] for name, m in models.items()}
    ratios, firsts = ({name: means(each, what) for name, each in points.items()} for what in ("ratio", "first"))
    found = fit(torch.cat([*ratios.values()]), torch.cat([*firsts.values()]))
    gaps = {name: firsts[name] - found(ratios[name]) for name in models}

    def tables() -> Iterator[str]:
        rows = []
        for name, model in models.items():
            own, half = fit(ratios[name], firsts[name]), model["half"]["write, own"]
            away = shown([value / found.half for value in half.values()])
            rows.append([name, f"{own.half:.2f}", f"{own.slope:.2f}", away, f"{rms(gaps[name]):.3f}"])
        together = f"{rms(torch.cat([*gaps.values()])):.3f}"
        rows.append(["all", f"{found.half:.2f}", f"{found.slope:.2f}", "", together])
        yield table(["model", "half", "slope", "half where measured, of that of all", "rms distance in share"], rows)

    return found, tables()


# The grid


def halves(run: Record, which: str) -> float:
    points = run["curves"][which]
    return crossing(means(points, "ratio"), means(points, "first"))


def last(run: Record, name: str) -> float:
    return run["history"][-1][name]["mean"]


WHAT = {"token": 2, "write": 2, "ratio": 1, "cosine": 2, "kept": 2, "before": 3, "first": 3, "null": 3}  # digits
COLUMNS: dict[str, tuple[Callable[[Record], float], int]] = {  # of a run, and digits
    "loss, nats": (lambda run: run["held_out"]["mean"], 2),
    "token": (lambda run: last(run, "token"), 2),
    "write": (lambda run: last(run, "write"), 1),
    "ratio": (lambda run: last(run, "ratio"), 1),
    "cosine": (lambda run: last(run, "cosine"), 2),
    "kept": (lambda run: last(run, "kept"), 2),
    "first": (lambda run: last(run, "first"), 3),
    "half": (lambda run: halves(run, "own"), 2),
    "half, random": (lambda run: halves(run, "random"), 2),
}


def of_grid(runs: dict[str, list[Record]]) -> Iterator[str]:
    base = estimate([math.log2(last(run, "ratio")) for run in runs["base"]]).mean
    rows = []
    for name, each in runs.items():
        cells = [shown(estimate([of(run) for run in each]), digits) for of, digits in COLUMNS.values()]
        away = estimate([math.log2(last(run, "ratio")) - base for run in each])
        rows.append([name, str(len(each)), *cells, shown(away)])
    yield table(["recipe", "seeds", *COLUMNS, "log2 of ratio to base"], rows)
    history = runs["base"][0]["history"]
    rows = [[str(point["step"]), *(shown(point[what], n) for what, n in WHAT.items())] for point in history]
    yield table(["step of base, seed 0", *WHAT], rows)


def spearman(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack([each.argsort().argsort().double() for each in (a, b)]))[0, 1].item()


def tangent(run: Record) -> float:
    """How far the stream after block 0 has turned from the token: what stands across over what lies along; from a right
    angle on, without end."""
    return math.tan(math.acos(kept)) if (kept := last(run, "kept")) > 0 else math.inf


def predicted(runs: dict[str, list[Record]], five: Fit) -> Iterator[str]:
    """Whether the ratio predicts the share over trained models, all tied: fits, residuals, and what chance gives."""
    every = [run for each in runs.values() for run in each if run["plan"]["is_tied"]]
    first, ratio, turn, half = (
        torch.tensor([of(run) for run in every], dtype=torch.float64)
        for of in (lambda run: last(run, "first"), lambda run: last(run, "ratio"), tangent, lambda r: halves(r, "own"))
    )
    has_half = half.isfinite()
    scaled, some = (ratio / half)[has_half], first[has_half]
    draw = torch.Generator().manual_seed(0)
    shuffled = [ratio[torch.randperm(len(ratio), generator=draw)] for _ in range(DEALS)]
    null = torch.tensor([rms(first - fit(each, first)(each)) for each in shuffled])
    rows = [["the mean share, whatever the ratio", "", f"{rms(first - first.mean()):.3f}"]]
    as_good = int((null <= rms(first - fit(ratio, first)(ratio))).sum())
    rows += [[f"ratios dealt out anew, median of {DEALS}; {as_good} as good as the ratio", "", f"{null.median():.3f}"]]
    rows += [["ratio, by the curve of the five models", f"{five.half:.2f}", f"{rms(first - five(ratio)):.3f}"]]
    for name, x, y in (
        ("ratio", ratio, first),
        ("tangent of the angle of stream and token", turn, first),
        (f"ratio over the model's own half ({len(some)} have one)", scaled, some),
    ):
        found = fit(x, y)
        rows.append([name, f"{found.half:.2f}", f"{rms(y - found(x)):.3f}"])
    chances = torch.tensor([spearman(each, first) for each in shuffled])
    yield f"Spearman's rho with the share, over {len(every)} tied models: ratio {spearman(ratio, first):.2f}, tangent "
    yield f"{spearman(turn, first):.2f}; ratios dealt out anew {chances.min():.2f} to {chances.max():.2f}\n"
    yield table(["share predicted from", "half", "rms residual"], rows)


# Files


def lines(models: dict[str, Record], runs: dict[str, list[Record]]) -> Iterator[list[Any]]:
    names = ("ratio", "first", "null")
    yield ["model", "seed", "what", "factor", "step", *(f"{name}{end}" for name in names for end in ("", " error"))]

    def line(model: str, seed: Any, what: str, point: Record) -> list[Any]:
        numbers = [f"{point[name][part]:.4g}" for name in names for part in ("mean", "error")]
        return [model, seed, what, f"{point.get('factor', 1):.4g}", point.get("step", ""), *numbers]

    for model, record in models.items():
        yield from (line(model, "", what, point) for what, points in record["curves"].items() for point in points)
    for run in (run for each in runs.values() for run in each):
        curves = {"training": run["history"], **{f"write, {which}": points for which, points in run["curves"].items()}}
        yield from (line(run["recipe"], run["seed"], what, p) for what, points in curves.items() for p in points)


def picture(models: dict[str, Record], runs: dict[str, list[Record]], five: Fit) -> Figure:
    figure = Figure(figsize=(9.5, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes in (left, right):
        axes.set(xscale="log", xlabel="length of block 0's write over that of the token's embedding")
        axes.grid(color=LINES, linewidth=0.6)
        axes.tick_params(colors=INK, labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylabel("input token first after block 0")
    left.set(xlim=(0.1, 400), title="Five models, the write made longer and shorter")
    right.set(xlim=(0.1, 100), title="Small models that differ in one thing, trained")
    for (name, model), colour in zip(models.items(), COLOURS, strict=False):
        for which, style in (("own", {"lw": 1.4, "label": name}), ("random", {"lw": 0.9, "alpha": 0.45})):
            points = model["curves"][f"write, {which}"]
            left.plot(means(points, "ratio"), means(points, "first"), color=colour, **style)
        left.plot(*(model["measured"][what]["mean"] for what in ("ratio", "first")), "o", color=colour, ms=6)
    left.legend(**LEGEND)
    for k, (name, each) in enumerate(runs.items()):
        style = {"color": f"C{k % 10}", "marker": "osD^"[k // 10], "linestyle": "none", "ms": 5}
        right.plot([last(run, "ratio") for run in each], [last(run, "first") for run in each], label=name, **style)
    path = runs["base"][0]["history"]
    right.plot(means(path, "ratio"), means(path, "first"), color=INK, lw=0.8, alpha=0.6, label="base, while it trains")
    span = torch.logspace(-1, 2, 100, dtype=torch.float64)
    right.plot(span, five(span), "--", color=INK, lw=0.9, label="the curve of the five models")
    right.legend(**LEGEND | {"fontsize": 6})
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curves", type=Path)
    parser.add_argument("grid", type=Path)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    record = json.loads(args.curves.read_text())
    runs: dict[str, list[Record]] = {}
    for run in (json.loads(path.read_text()) for path in sorted(args.grid.glob("*.json"))):
        runs.setdefault(run["recipe"], []).append(run)
    runs = {"base": runs.pop("base"), **runs}
    five, distances = one_curve(record["models"])
    print(record["machine"])
    for part in (of_models(record["models"]), distances, of_grid(runs), predicted(runs, five)):
        print("\n".join(part))
    every = [run for each in runs.values() for run in each]
    minutes, drift = sum(r["seconds"] for r in every) / 60, max(r["largest_logit_difference"] for r in every)
    print(f"{len(every)} models in {minutes:.0f} minutes; logits differ by at most {drift:.0e}")
    if args.csv:
        with replacing(args.csv) as file, file.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, lineterminator="\n").writerows(lines(record["models"], runs))
    if args.figure:
        save_figure(args.figure, picture(record["models"], runs, five))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

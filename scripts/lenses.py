"""All lenses of a model on text that neither it nor they have read, row by row, with standard errors and nulls.

    python scripts/lenses.py MODEL --fit TEXT ... --held-out TEXT ... --out FOLDER

Every lens is fitted to the first texts, but for a Jacobian lens that comes with the model. All then read the others in
one sweep. A fit or a sweep that is killed is gone on with. Prints three tables in Markdown: KL(output ‖ row), the
cross-entropy of the next token, and the last block: KL(output ‖ row) where the decoder is the final norm and W_U, and
where the last block stands before them ("block:1"), each plain and through an affine lens of its own. After ± stands a
standard error, from the spread between documents.

--steps: of tuned at most (default: 4). --documents: of a Jacobian that is fitted here (default: 30).
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from parity import machine

import minilens
from minilens.corpus.documents import TextFile
from minilens.corpus.measure import CorpusLens, Findings, Plan
from minilens.corpus.sweep import Sweep
from minilens.learned.affine import LearnedLens
from minilens.learned.fit import Fit, Recipe, read_all
from minilens.learned.jacobian_fit import fit_jacobian
from minilens.learned.named import bundled_lenses, load_lens
from minilens.lens import Lens

COLUMNS = ("mean", "affine", "tuned", "jacobian", "wrong row", "constant")
LAST = "block:1"  # the decoder with the last block in it


def lenses(args: argparse.Namespace, model: Any, tokenizer: Any, files: list[TextFile]) -> dict[str, LearnedLens]:
    """By name; "last" is the affine lens of the decoder with the last block."""
    prefix = tokenizer.codes[0] if tokenizer.codes else ""
    sites, rest = (model, tokenizer, files), (True, False, read_all)
    tuned, others = Fit(*sites, args.out / "tuned", Recipe("tuned", prefix=prefix, steps=args.steps), *rest).lenses()
    last, _ = Fit(*sites, args.out / "last", Recipe("affine", decoder=LAST, prefix=prefix), *rest).lenses()
    if "jacobian" in bundled_lenses(args.model):
        jacobian = load_lens(f"{args.model}/jacobian")
    else:
        out = args.out / "jacobian"
        jacobian = fit_jacobian(*sites, out, texts=args.documents, prefix=prefix, any_machine=True)
    return {**others, "tuned": tuned, "jacobian": jacobian, "last": last}


def measured(
    model: Any, tokenizer: Any, plan: Plan, found: dict[str, LearnedLens], files: list[TextFile], folder: Path
) -> Findings:
    """What all lenses say of held-out text, from one sweep."""
    reader = CorpusLens(model, tokenizer, plan, {name: Lens(**lens.options) for name, lens in found.items()})
    sweep: Sweep[Findings] = Sweep(reader, files, folder, any_machine=True)
    sweep.count()
    read_all(sweep)
    return sweep.findings()


def cell(found: Findings, name: str, statistic: str, row: int) -> str:
    decoder = found.decoders[name]
    mean, error = decoder.tally.mean(statistic)[0, row], decoder.tally.standard_error(statistic)[0, row]
    return f"{mean:.2f} ± {error:.2f}" if math.isfinite(mean) else "-"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---", *["--:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--fit", type=Path, nargs="+", required=True)
    parser.add_argument("--held-out", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--documents", type=int, default=30)
    parser.add_argument("--ignore-key", action="append", default=[])
    args = parser.parse_args()
    model, tokenizer = minilens.load(args.model, ignoring=args.ignore_key)
    if tokenizer is None:
        parser.error(f"{args.model} has no tokenizer")
    args.out.mkdir(parents=True, exist_ok=True)
    made = lenses(args, model, tokenizer, list(map(TextFile, args.fit)))
    plan = Plan(("final", LAST), prefix=tokenizer.codes[0] if tokenizer.codes else "")
    held_out = list(map(TextFile, args.held_out))
    found = measured(model, tokenizer, plan, made, held_out, args.out / "held-out")
    plain = found.decoders["final"]
    rows, tally = range(len(plain.labels)), plain.tally
    print(f"{args.model}, {machine()}")
    print(
        f"fitted to {made['tuned'].made['tokens']:,} tokens; {int(tally.tokens[0, 0]):,} tokens held out, of ", end=""
    )
    print(
        f"{int(tally.documents[0, 0])} documents; tuned: the best of {len(made['tuned'].made['steps']['kl'])} steps\n"
    )
    for title, statistic in (("KL(output ‖ row), nats", "kl_final"), ("cross-entropy, nats", "cross_entropy")):
        lines = []
        for row in rows:
            cells = [cell(found, name, statistic, row) for name in ("final", *COLUMNS) if name in found.decoders]
            one, two = (float(found.decoders[f"twin {n}"].tally.mean(statistic)[0, row]) for n in (1, 2))
            lines.append([plain.labels[row], *cells, f"{abs(one - two):.3f}"])
        heads = [name for name in COLUMNS if name in found.decoders]
        print(f"{title}\n\n{table(['row', 'plain', *heads, 'twins differ by'], lines)}\n")
    names = {"final": "plain", "affine": "affine", LAST: f"plain, {LAST}", "last": f"affine, {LAST}"}
    lines = []
    for label in found.decoders[LAST].labels[:-1]:
        at = {name: found.decoders[name].labels.index(label) for name in names}
        lines.append([label, *(cell(found, name, "kl_final", row) for name, row in at.items())])
    print(f"the last block, KL(output ‖ row), nats\n\n{table(['row', *names.values()], lines)}")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    main()

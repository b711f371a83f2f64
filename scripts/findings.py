"""Which of the published findings a model shows, with errors: as a table in Markdown.

    python scripts/findings.py TEXTFILE MODEL ...

The study's own passage is one text. Here each of the first documents of a file is a passage: a number is the mean over
them, and after ± stands its standard error. "12 of 20" says in how many the finding is shown; the verdict is of the
means. Numbers of rare words come from the study's texts, and their error from leaving out one word after another.
Premises that do not hold make a finding "not measurable". Give held-out text.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from inputs import estimate, texts_of

import minilens
from minilens.study.claims import ON_PASSAGE, ON_WORDS, Check, Claim
from minilens.study.experiments import READINGS, Study, read, study

USED = [reading for reading in READINGS if reading.name in ("final", "mlp", "block:1")]  # by findings on a passage


class Column(NamedTuple):
    """A finding in one model: the claim with means in it, their errors, and in how many passages it is shown."""

    claim: Claim
    errors: list[float]  # by check; not a number where there is one word
    shown: str


def with_values(claim: Claim, values: Sequence[float]) -> Claim:
    checks = [check._replace(value=value) for check, value in zip(claim.asked, values, strict=True)]
    return claim._replace(premise=checks.pop(0) if claim.premise else None, checks=tuple(checks))


def on_passages(base: Study, model: Any, tokenizer: Any, texts: Sequence[str]) -> Iterator[Column]:
    """The findings on a passage, over many."""
    found = []
    for text in texts:
        opened = f"{tokenizer.codes[0]} {text}" if tokenizer.codes else text
        fits = tokenizer.decode(tokenizer.encode(opened)[0, : model.config.n_ctx])
        tables = {("passage", each.name): read(model, tokenizer, fits, base.word, each) for each in USED}
        here = replace(base, tables={**base.tables, **tables})
        found.append([finding(here) for finding in ON_PASSAGE])
    for claims in zip(*found, strict=True):
        checks = zip(*(claim.asked for claim in claims), strict=True)
        means, errors = zip(*(estimate([check.value for check in each]) for each in checks), strict=True)
        n_shown = sum(claim.verdict == "shown" for claim in claims)
        yield Column(with_values(claims[0], means), list(errors), f" ({n_shown} of {len(claims)})")


def on_words(base: Study) -> Iterator[Column]:
    """The findings on rare words; errors by leaving out each of them."""
    for finding in ON_WORDS:
        claim, n = finding(base), 1 + len(base.others)
        without = [finding(each).asked for each in without_one(base)]
        errors = []
        for k in range(len(claim.asked)):
            values = torch.tensor([asked[k].value for asked in without], dtype=torch.float64)
            errors.append(((values - values.mean()).square().sum() * (n - 1) / n).sqrt().item() if n > 1 else math.nan)
        yield Column(claim, errors, "")


def without_one(base: Study) -> Iterator[Study]:
    """The study without one of its words, each in turn; another is the first where that one is left out."""
    for token in base.others:
        yield replace(base, others={other: tables for other, tables in base.others.items() if other != token})
    if base.others:
        (token, tables), *rest = base.others.items()
        first = {(prompt, "final"): table for prompt, table in tables.items()}
        yield replace(base, word=token, tables={**base.tables, **first}, others=dict(rest))


def cell(check: Check, error: float) -> str:
    if math.isnan(check.value):
        return "none"
    return f"{check.value:.2g}" + ("" if math.isnan(error) else f" ± {error:.1g}") + ("" if check.holds else ", no")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--documents", type=int, default=20)
    parser.add_argument("--ignore-key", action="append", default=[])
    args = parser.parse_args()
    columns = []
    for name in args.models:
        model, tokenizer = minilens.load(name, ignoring=args.ignore_key)
        assert tokenizer is not None, f"{name} has no tokenizer"
        base = study(name, model, tokenizer)
        columns.append([*on_passages(base, model, tokenizer, texts_of(args.text, args.documents)), *on_words(base)])
    heads = ["", *(Path(name).name for name in args.models)]
    print(f"| {' | '.join(heads)} |\n|---|{'--:|' * len(args.models)}")
    for found in zip(*columns, strict=True):
        verdicts = [f"**{column.claim.verdict}**{column.shown}" for column in found]
        print(f"| **{found[0].claim.statement}** | {' | '.join(verdicts)} |")
        for k, check in enumerate(found[0].claim.asked):
            cells = [cell(column.claim.asked[k], column.errors[k]) for column in found]
            print(f"| {check.what}: {check.relation} {check.threshold:.3g} | {' | '.join(cells)} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    main()

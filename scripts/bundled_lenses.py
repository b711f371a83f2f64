"""The learned lenses that come with a bundled model: fitted, measured, and written beside its weights with their cards.

    python scripts/bundled_lenses.py weights/tales-gpt2 --corpus ../shared/corpus

A kill costs a shard: the same command goes on from the work folder. What lay in `affine` and `jacobian` is replaced,
which --overwrite allows.
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lenses import cell, measured

import minilens
from minilens.corpus.documents import TextFile
from minilens.corpus.measure import Findings, Plan
from minilens.learned.affine import LearnedLens
from minilens.learned.fit import Fit, Recipe, read_all
from minilens.learned.jacobian_fit import fit_jacobian

FIT = {"stories": 450_000, "storybooks": 150_000, "books": 300_000}  # characters from the beginning of each part
HELD_OUT = {"stories": 60_000, "storybooks": 12_000, "books": 18_000}
LONGEST = 8_000  # characters of a held-out text, so that one chapter is not half of a part
N_JACOBIAN = 24  # texts that a Jacobian is taken of
LENSES = ("mean", "affine", "wrong row", "jacobian")  # those that are measured
OPENING = "Once upon a time there was a little"


def beginning(part: TextFile, size: int, longest: int | None = None) -> Iterator[str]:
    """Its first documents, of `size` characters in all at most."""
    for document in part.documents():
        document = document.strip("\n")[:longest]
        if (size := size - len(document)) < 0:
            return
        yield document


def cut(corpus: Path, half: str, sizes: dict[str, int], longest: int | None, folder: Path) -> list[TextFile]:
    """The beginnings of the corpus's parts, each a file of the folder."""
    files = []
    for part, size in sizes.items():
        file = folder / f"{part}-{half}.txt"
        documents = beginning(TextFile(corpus / f"{part}-{half}.txt.gz"), size, longest)
        file.write_text("".join(f"{document}\n<|endoftext|>\n" for document in documents), encoding="utf-8")
        files.append(TextFile(file))
    return files


Column = tuple[str, str, str]  # what stands over it, the lens, the statistic


def table(found: Findings, columns: list[Column], more: dict[str, list[str]]) -> str:
    """A line for each row that has a map: of `columns` the means with their errors, and then `more`."""
    heads = [*(head for head, _, _ in columns), *more]
    lines = [f"| row | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}"]
    for row, label in enumerate(found.decoders["final"].labels[:-1]):
        cells = [cell(found, lens, statistic, row) for _, lens, statistic in columns]
        lines.append(f"| {' | '.join([label, *cells, *(column[row] for column in more.values())])} |")
    return "\n".join(lines)


def affine_text(made: Mapping[str, Any], found: Findings) -> str:
    columns = [("plain" if lens == "final" else lens, lens, "kl_final") for lens in ("final", *LENSES[:3])]
    more = {"R²": [f"{value:.2f}" for value in made["left_out"]["r_squared"]]}
    more["twins"] = [f"{of_maps:.2f}" for of_maps, _ in made["twins"]]
    return f"""For each row there is a map z = h A + b, found by least squares of the last block's output on the row's
residual, with a ridge towards A = I. It was fitted to {made["tokens"]:,} tokens in windows of {made["window"]}.
The first of each is left out.

The figures are KL(output ‖ row) in nats. Mean is the lens of two means, and wrong row has each row's map moved to the
next. R² is of the output's stream, on text that was left out of the fit. Twins is the cosine of A - I in two fits, each
to half of the text.

{table(found, columns, more)}"""


def jacobian_text(made: Mapping[str, Any], found: Findings) -> str:
    columns = [("KL: plain", "final", "kl_final"), ("jacobian", "jacobian", "kl_final")]
    columns += [("cross-entropy: plain", "final", "cross_entropy"), ("jacobian", "jacobian", "cross_entropy")]
    more = {"‖J - I‖": [f"{value:.3g}" for value in made["departure"]]}
    more["error"] = [f"{value:.2g}" for value in made["standard_errors"].values()]
    more["twins"] = [f"{value:.3f}" for value in made["twins"]]
    output = cell(found, "final", "cross_entropy", -1)
    return f"""For each row there is a map z = h A. A is the transposed mean derivative of the last block's output by
the row's residual. The mean is over {made["texts"]} texts, the first {made["window"]} tokens of each,
without the first {made["skip"]} positions and the last. Of each text the Jacobian is exact, from a backward pass for
each number of the residual, on a CPU.

The figures are KL(output ‖ row), and the cross-entropy of the next token, in nats. ‖J - I‖ is the Frobenius norm, and
error its standard error over the texts. Twins is the cosine of J - I from two halves of the texts.

{table(found, columns, more)}

The output itself has a cross-entropy of {output}. A Jacobian lens is not fitted to the output, and need
not be nearer to it than the logit lens: it says what a change of the residual does to the output."""


TEXT = {"affine": affine_text, "jacobian": jacobian_text}


def card(name: str, lens: LearnedLens, found: Findings) -> str:
    tally, made, prefix = found.decoders["final"].tally, lens.made, lens.made["prefix"]
    tokens, documents = int(tally.tokens[0, 0]), int(tally.documents[0, 0])
    behind = f"\nEach window stands behind the control code `{prefix}`." if prefix else ""
    return f"""# The {"Jacobian" if lens.kind == "jacobian" else lens.kind} lens of {name}

```
minilens lens "{f"{prefix} " if prefix else ""}{OPENING}" --model {name} --decoder final --lens {lens.kind}
```

{TEXT[lens.kind](made, found)}

Measured on {tokens:,} tokens of {documents} documents that neither the model nor the lens has read. After ± stands a
standard error, from the spread between documents. Plain is the logit lens.

## How it was made

From the beginning of the stories, the storybooks and the books that the model was trained on.{behind}
`lens.safetensors` holds it in float16. See docs/learned-lenses.md.

```
python scripts/bundled_lenses.py weights/{name}
```
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="its folder")
    parser.add_argument("--corpus", type=Path, default=Path("../shared/corpus"))
    parser.add_argument("--work", type=Path, help="where to resume from (.train/<name of the model>-lenses)")
    parser.add_argument("--overwrite", action="store_true", help="replace the lenses that the model has")
    args = parser.parse_args()
    name, work = args.model.name, args.work or Path(".train") / f"{args.model.name}-lenses"
    if not args.overwrite and any(args.model.glob("*/lens.json")):
        parser.error(f"{args.model} has lenses; give --overwrite to replace them.")
    model, tokenizer = minilens.load(str(args.model))
    if tokenizer is None:
        parser.error(f"{args.model} has no tokenizer.")
    work.mkdir(parents=True, exist_ok=True)
    prefix = tokenizer.codes[0] if tokenizer.codes else ""
    files = cut(args.corpus, "train", FIT, None, work)
    held_out = cut(args.corpus, "valid", HELD_OUT, LONGEST, work)

    recipe = Recipe("affine", prefix=prefix)
    affine, others = Fit(model, tokenizer, files, work / "affine", recipe, True, True, read_all).lenses()
    options = {"texts": N_JACOBIAN, "prefix": prefix, "any_machine": True, "overwrite": True}
    jacobian = fit_jacobian(model, tokenizer, files, work / "jacobian", **options)
    lenses = {**others, "affine": affine, "jacobian": jacobian}
    found = measured(
        model, tokenizer, Plan(prefix=prefix), {of: lenses[of] for of in LENSES}, held_out, work / "held-out"
    )
    for lens in (affine, jacobian):
        folder = args.model / lens.kind
        lens.save(folder, dtype=torch.float16, overwrite=True)
        (folder / "README.md").write_text(card(name, lens, found), encoding="utf-8")
        print(f"{folder} is written.")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

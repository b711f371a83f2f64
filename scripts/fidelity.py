"""Does a lens's direction do in the model what the lens says? Swaps of words, and ablations, as tables in Markdown.

    python scripts/fidelity.py MODEL TEXTFILE ... --lens jacobian --lens affine

The first tokens of the first documents are read: give texts that neither model nor lens has read. Pairs of words, those
below that are one token each, are swapped at three rows. Their log-odds, of the second word against the first, change
by so many nats: as the lens says ("said"), in the model ("done"), and in the model where each change of a residual is
turned by a random rotation ("turned"). rho is Spearman's correlation of said and done over the pairs. All is done once
more with the mean of the vocabulary taken out of both words' vectors ("centred"). Then the directions along which a
lens's logits move most are ablated to their means: the mean change in nats of KL, and rho. What follows ± is a standard
error over the texts.
"""

import argparse
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from parity import machine

import minilens
from minilens import Site
from minilens.corpus.documents import TextFile
from minilens.learned.fidelity import Fidelity, fidelity
from minilens.learned.named import find_lens
from minilens.learned.pushes import ablations, mean_residual, principal_directions, swaps

PAIRS = (
    "he she,him her,king queen,boy girl,cat dog,red blue,sun moon,day night,big little,old new,good bad,happy sad,"
    "mother father,brother sister,sea land,summer winter,eat drink,run walk,one two,first last,black white,hot cold"
)
N_DIRECTIONS = 16


def pairs_of(tokenizer: Any) -> list[tuple[int, int]]:
    """The pairs whose words are one token each, with a space before them where the vocabulary has it."""
    found = []
    for pair in PAIRS.split(","):
        ids = [tokenizer.encode(f"the {word}")[0].tolist() for word in pair.split()]
        if all(len(each) == 2 for each in ids):
            found.append((ids[0][1], ids[1][1]))
    return found


def texts_of(tokenizer: Any, files: list[Path], n: int, length: int) -> list[torch.Tensor]:
    opening = f"{tokenizer.codes[0]} " if tokenizer.codes else ""
    documents = (text for file in files for text in TextFile(file).documents())
    long_enough = (
        tokens[:, :length] for text in documents if (tokens := tokenizer.encode(opening + text)).shape[1] >= length
    )
    return list(islice(long_enough, n))


def swapped(found: Fidelity) -> list[str]:
    said, done, turned = (part.mean() for part in (found.pushed.lens, found.pushed.model, found.turned.model))
    effect, rho = found.pushed.effect, found.pushed.spearman
    return [f"{said:.2f}", f"{done:.2f} ± {effect.error:.2f}", f"{turned:.2f}", f"{rho.value:.2f} ± {rho.error:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--lens", action="append", default=[])
    parser.add_argument("--texts", type=int, default=10)
    parser.add_argument("--length", type=int, default=64, help="tokens of each")
    args = parser.parse_args()
    model, tokenizer = minilens.load(args.model)
    texts, pairs = texts_of(tokenizer, args.files, args.texts, args.length), pairs_of(tokenizer)
    lenses = {"plain": None} | {name: find_lens(name, args.model) for name in args.lens}
    layers = [model.n_layers * part // 8 for part in (1, 3, 5)]
    print(f"{args.model}, {machine()}\n{len(texts)} texts of {args.length} tokens, {len(pairs)} pairs of words\n")
    heads = [f"{how}: {what}" for how in ("raw", "centred") for what in ("said", "done", "turned", "rho")]
    print(f"| row | lens | {' | '.join(heads)} |\n|---|---|{'--:|' * len(heads)}")
    for site in (Site(layer, "resid_post") for layer in layers):
        for name, lens in lenses.items():
            ways = (swaps(model, lens, site, pairs, centred=centred) for centred in (False, True))
            cells = [cell for pushes in ways for cell in swapped(fidelity(model, texts, site, pushes, lens))]
            print(f"| {site.layer}.resid_post | {name} | {' | '.join(cells)} |", flush=True)
    print(f"\n| row | lens | said | done | turned | rho | rho, turned |\n|---|---|{'--:|' * 5}")
    for site in (Site(layer, "resid_post") for layer in layers):
        mean = mean_residual(model, texts, site)
        for name, lens in lenses.items():
            found = fidelity(
                model, texts, site, ablations(principal_directions(model, lens, site, N_DIRECTIONS), mean), lens
            )
            sizes = [part.mean() for part in (found.pushed.lens, found.pushed.model, found.turned.model)]
            rhos = [f"{each.spearman.value:.2f} ± {each.spearman.error:.2f}" for each in (found.pushed, found.turned)]
            cells = [*(f"{size:.4f}" for size in sizes), *rhos]
            print(f"| {site.layer}.resid_post | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    main()

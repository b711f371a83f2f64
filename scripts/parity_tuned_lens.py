"""minilens beside the package tuned-lens: the same file of a lens, on the same weights, row by row.

    pip install tuned-lens                           for this script alone; it was last run with version 0.2.0
    python scripts/parity_tuned_lens.py              the bundled models of GPT-2 and GPT-Neo
    python scripts/parity_tuned_lens.py FOLDER ...   models in folders

For each model the package makes a lens, its numbers are drawn at random, and it is written as the package writes it.
Both libraries read it, and decode the same text in float64. A line a model: the largest difference of a logit, relative
to the largest logit, which must be below 1e-10, and whether both agree on the hash of W_U. The exit status is 1 where
one of them does not hold.
"""

import sys
import tempfile
import warnings
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging
from tuned_lens.nn import TunedLens

import minilens
from minilens.checkpoint.hub import bundled
from minilens.learned.affine import unembed_hash
from minilens.learned.published import load_published

BOUND = 1e-10


def difference(folder: Path) -> tuple[float, bool]:
    """The largest difference, and whether the hashes agree."""
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    model, _ = minilens.load(folder, dtype=torch.float64)
    theirs = TunedLens.from_model(reference)
    generator = torch.Generator().manual_seed(2023)
    for parameter in theirs.layer_translators.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 10)
    tokens = torch.randint(0, model.W_U.shape[1], (1, 50), generator=generator)
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
        theirs.save(temporary)
        again = TunedLens.from_model_and_pretrained(reference, lens_resource_id=temporary).double()
        hidden = reference(tokens, output_hidden_states=True).hidden_states
        expected = [again(resid, row) for row, resid in enumerate(hidden[:-1])]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is a pickle file")
            lens = load_published(f"tuned:{temporary}")
        *found, _ = minilens.lens_rows(model, tokens, transport=lens)
    pairs = [(row.logits, logits) for row, logits in zip(found, expected, strict=True)]
    worst = max(float((ours - theirs).abs().max() / theirs.abs().max()) for ours, theirs in pairs)
    return worst, unembed_hash(model) == theirs.unembed.unembedding_hash()


def main(folders: list[str]) -> int:
    chosen = list(map(Path, folders)) or [path for name, path in bundled().items() if name != "tales-ctrl"]
    logging.disable_progress_bar()
    failed = False
    for folder in chosen:
        worst, same = difference(folder)
        failed |= worst > BOUND or not same
        print(f"{folder.name:16} largest difference {worst:.1e}, hashes {'agree' if same else 'DIFFER'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

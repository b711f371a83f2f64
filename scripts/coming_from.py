"""The figures of docs/coming-from.md: other libraries beside minilens, on a bundled model.

    python scripts/coming_from.py

Needs transformer-lens, tuned-lens, nnterp with nnsight, and transformer-utils beside minilens and transformers, in an
environment of its own: they ask for versions of their own. What is not installed is left out. Measured last with
transformer-lens 4.3.0, tuned-lens 0.2.0, nnterp 1.3.0 on nnsight 0.7.0, transformer-utils 0.1.1, transformers 5.23.
"""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports the Hub's client

import torch
import transformers

import minilens

warnings.simplefilter("ignore")
FOLDER = str(Path(__file__).parents[1] / "weights" / "tales-gpt2")
PARK = "Tom and Sue went to the park. Tom gave the ball to"
TEXTS = ["Once upon a time", PARK]

model, tokenizer = minilens.load("tales-gpt2")
reference = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32, attn_implementation="eager")
tokens = tokenizer.encode(PARK)
trace = minilens.trace(model, tokens)
table = minilens.logit_lens(model, tokens, stats="all")


def largest(one: torch.Tensor, other: torch.Tensor) -> str:
    return f"{float((one - other).abs().max()):.2g}"


@torch.no_grad()
def hidden_states() -> None:
    last = reference(tokens, output_hidden_states=True).hidden_states[-1]
    twice = reference.lm_head(reference.transformer.ln_f(last))
    print("logits of the last hidden state with one more final norm, off by", largest(twice, trace.logits))


@torch.no_grad()
def transformer_lens() -> None:
    from transformer_lens.model_bridge import TransformerBridge

    sue, tom = (int(tokenizer.encode(name)[0, 0]) for name in (" Sue", " Tom"))
    ours = minilens.attribute(model, tokens, token=sue, against=tom).by_head.flatten()
    for what, options in (
        ("as it is loaded", {"no_processing": True}),
        ("processed", {}),
        ("processed, value biases not folded", {"fold_value_biases": False}),
    ):
        bridge = TransformerBridge.boot_transformers(FOLDER, dtype=torch.float32, device="cpu")
        if what == "as it is loaded":
            opened = bridge(PARK)[0, -1].softmax(-1)
            print(
                "a text given as a string has",
                bridge.to_tokens(PARK).shape[1],
                "tokens, not",
                tokens.shape[1],
                end="; ",
            )
            print("probabilities differ by", largest(opened, trace.logits[0, -1].softmax(-1)))
        bridge.enable_compatibility_mode(**options)
        _, cache = bridge.run_with_cache(tokens)
        heads, _ = cache.stack_head_results(layer=-1, pos_slice=-1, return_labels=True)
        theirs = cache.logit_attrs(heads, tokens=sue, incorrect_tokens=tom, pos_slice=-1).flatten()
        print(f"attribution by head, {what}: off by", largest(theirs, ours))


@torch.no_grad()
def tuned_lens() -> None:
    from tuned_lens.plotting import PredictionTrajectory

    rows = torch.stack([row.logits[0].double().log_softmax(-1) for row in minilens.lens_rows(model, tokens)]).numpy()
    ours, output = (PredictionTrajectory(log_probs=each, input_ids=tokens[0].numpy()) for each in (rows, rows[-1:]))
    theirs = torch.from_numpy(ours.js_divergence(output).stats)
    print(f"Jensen-Shannon of the rows, largest: theirs {float(theirs.max()):.1f}, ours {float(table.js.max()):.3f}")


@torch.no_grad()
def nnterp() -> None:
    from nnterp import StandardizedTransformer
    from nnterp.interventions import logit_lens

    theirs = StandardizedTransformer(FOLDER, device_map="cpu", dtype=torch.float32, check_renaming=False, dispatch=True)
    for what, texts in (("together", TEXTS), ("alone", TEXTS[:1])):
        output = minilens.trace(model, tokenizer.encode(TEXTS[0])).logits[0, -1].softmax(-1)
        print(f"probabilities of {TEXTS[0]!r}, {what}: off by", largest(logit_lens(theirs, texts)[0, -1], output))


@torch.no_grad()
def transformer_utils() -> None:
    transformers.modeling_utils.Conv1D = transformers.pytorch_utils.Conv1D  # where it was when that was written
    from transformer_utils.logit_lens.plotting import kl_div

    probs = torch.stack([row.logits[0].softmax(-1) for row in minilens.lens_rows(model, tokens)]).double().numpy()
    theirs = torch.from_numpy(kl_div(probs[-1:], probs, clip=1 / (10 * probs.shape[-1])))
    at = int((theirs - table.kl_final).abs().argmax())
    print(f"KL with probabilities clipped: {theirs.flatten()[at]:.1f}, without: {table.kl_final.flatten()[at]:.1f}")


def main() -> None:
    parts: tuple[Callable[[], None], ...] = (hidden_states, transformer_lens, tuned_lens, nnterp, transformer_utils)
    for part in parts:
        print(f"{part.__name__}:")
        try:
            part()
        except ImportError as error:
            print(f"left out: {error}")


if __name__ == "__main__":
    main()

"""The bundled models: in the Hub's own layout, read alike by transformers and by minilens, and able to tell a story."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import minilens
from minilens.hub import bundled

STORY = (
    "Once upon a time there was a little girl who lived in a small house near the wood with her mother and her old "
    'grey cat. One day her mother said, "Take this basket to your grandmother, and do not stop on the way." The girl '
    "put on her red cloak, took the basket in her hand and went out into the sun.\n\nIn the wood she met a fox. "
)


@pytest.fixture(params=sorted(bundled()))
def folder(request: pytest.FixtureRequest) -> Path:
    return bundled()[request.param]


def test_there_is_a_default_model() -> None:
    assert "tales-gpt2" in bundled()


def test_transformers_reads_the_same_tokens_and_logits(folder: Path) -> None:
    model, tokenizer = minilens.load(folder.name)
    assert tokenizer is not None
    tokens = tokenizer.encode(STORY)
    assert torch.equal(tokens, AutoTokenizer.from_pretrained(folder)(STORY, return_tensors="pt").input_ids)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        expected = reference(tokens).logits
    logits = minilens.trace(model, tokens).logits
    assert (logits - expected).abs().max() < 1e-4
    assert torch.equal(logits.argmax(-1), expected.argmax(-1))


def test_the_model_has_learned_english(folder: Path) -> None:
    """A uniform guess among 4,096 tokens has a cross-entropy of 8.3 nats."""
    model, tokenizer = minilens.load(folder.name)
    assert tokenizer is not None
    table = minilens.logit_lens(model, tokenizer.encode(STORY))
    assert -table.next.logprob[-1, :-1].mean() < 4


def test_each_folder_is_small_and_has_a_card(folder: Path) -> None:
    assert sum(file.stat().st_size for file in folder.iterdir()) < 20_000_000
    card = (folder / "README.md").read_text()
    for word in ("CDLA", "cdla.dev/sharing-1-0", "CC BY", "storybooks-attribution.tsv", "bits per", "scripts/train.py"):
        assert word.lower() in card.lower(), word
    assert (folder / "storybooks-attribution.tsv").is_file()

"""The bundled models: in the Hub's own layout, read alike by transformers and by minilens, and able to tell a story."""

import gzip
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import minilens
from minilens.checkpoint.hub import bundled
from minilens.checkpoint.tokenizer import Tokenizer

STORY = (
    "Once upon a time there was a little girl who lived in a small house near the wood with her mother and her old "
    'grey cat. One day her mother said, "Take this basket to your grandmother, and do not stop on the way." The girl '
    "put on her red cloak, took the basket in her hand and went out into the sun.\n\nIn the wood she met a fox. "
)
PARTS = ("stories", "storybooks", "books")
WINDOW = 64  # of the local layers of tales-gpt-neo


@pytest.fixture(scope="module", params=sorted(bundled()))
def folder(request: pytest.FixtureRequest) -> Path:
    return bundled()[request.param]


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[minilens.Model, Tokenizer]:
    model, tokenizer = minilens.load(folder.name)
    assert tokenizer is not None
    return model, tokenizer


@pytest.fixture(scope="module")
def reference(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def passages(shared: Path, part: str, n: int) -> list[str]:
    """Texts of a validation file, evenly spread over it."""
    text = gzip.decompress((shared / "corpus" / f"{part}-valid.txt.gz").read_bytes()).decode()
    docs = [doc.strip() for doc in text.split("\n<|endoftext|>\n") if doc.strip()]
    return docs[:: len(docs) // n][:n]


def opened(family: str, part: str, text: str) -> str:
    """A text as the training data had it: what opens a document, and the document."""
    return f"{part.title()} {text}" if family == "ctrl" else f"<|endoftext|>{text}"


def cross_entropy(model: minilens.Model, tokens: torch.Tensor) -> torch.Tensor:
    """Of each token of a text but the first, in nats."""
    logprob = minilens.trace(model, tokens).logits.log_softmax(-1)
    return -logprob[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1).squeeze(0)


def test_each_family_has_a_model() -> None:
    assert {minilens.load(name)[0].family for name in bundled()} == {"gpt2", "gpt_neo", "ctrl"}
    assert "tales-gpt2" in bundled()  # the default


def test_transformers_reads_the_same_tokens(folder: Path, loaded: tuple[minilens.Model, Tokenizer]) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)(STORY, return_tensors="pt").input_ids
    assert torch.equal(loaded[1].encode(STORY), theirs)


def test_transformers_gives_the_same_logits(
    loaded: tuple[minilens.Model, Tokenizer], reference: PreTrainedModel, shared: Path
) -> None:
    """Nine held-out passages, most of them longer than GPT-Neo's window."""
    model, tokenizer = loaded
    texts = [opened(model.family, part, text) for part in PARTS for text in passages(shared, part, 3)]
    lengths = []
    for text in texts:
        tokens = tokenizer.encode(text)[:, :256]
        with torch.no_grad():
            expected = reference(tokens).logits
        logits = minilens.trace(model, tokens).logits
        assert (logits - expected).abs().max() < 1e-4
        lengths.append(tokens.shape[1])
    assert len(lengths) == 9
    assert sum(length > WINDOW for length in lengths) >= 7


def test_the_story_has_the_same_logits(loaded: tuple[minilens.Model, Tokenizer], reference: PreTrainedModel) -> None:
    model, tokenizer = loaded
    tokens = tokenizer.encode(STORY)
    with torch.no_grad():
        expected = reference(tokens).logits
    assert (minilens.trace(model, tokens).logits - expected).abs().max() < 1e-4


def test_the_model_has_learned_english(loaded: tuple[minilens.Model, Tokenizer]) -> None:
    """A uniform guess has a cross-entropy of 8.3 nats among 4,096 tokens, and of 9 among 8,000."""
    model, tokenizer = loaded
    tokens = tokenizer.encode(opened(model.family, "stories", STORY))
    assert cross_entropy(model, tokens).mean() < 4


def test_the_right_control_code_helps(shared: Path) -> None:
    """On each validation file the code it was trained with beats both others; scripts/train.py --evaluate has all."""
    model, tokenizer = minilens.load("tales-ctrl")
    assert tokenizer is not None
    for part in PARTS:
        loss = torch.zeros(len(PARTS))
        for text in passages(shared, part, 10):
            tokens = torch.cat([tokenizer.encode(opened("ctrl", code, text))[:, :128] for code in PARTS])
            loss += cross_entropy(model, tokens).sum(1)
        assert PARTS[int(loss.argmin())] == part, loss


def test_some_heads_look_at_the_previous_token(loaded: tuple[minilens.Model, Tokenizer]) -> None:
    """On random tokens, where nothing but the place can be the reason; without one it would be 0.03 on average."""
    assert minilens.head_scores(loaded[0]).previous.max() > 0.2


def test_a_rare_name_is_read_from_the_text(loaded: tuple[minilens.Model, Tokenizer]) -> None:
    """The second time a made-up name is predicted better than the first, by several nats."""
    model, tokenizer = loaded
    gains = []
    for name in ("Zorvax", "Marigold", "Pippin", "Hubert", "Tamsin"):
        before = opened(model.family, "stories", "One day")
        between = (
            " went to the wood to look for a stone. The stone was big and red, and it was hard to find. In the "
            "evening, when the sun was low,"
        )
        ends = [tokenizer.encode(text).shape[1] for text in (before, f"{before} {name}", f"{before} {name}{between}")]
        loss = cross_entropy(model, tokenizer.encode(f"{before} {name}{between} {name}"))
        first, second = loss[ends[0] - 1 : ends[1] - 1].sum(), loss[ends[2] - 1 :].sum()
        gains.append((first - second).item())
    assert min(gains) > 0
    assert sum(gains) / len(gains) > 3


def test_each_folder_is_small_and_has_a_card(folder: Path) -> None:
    assert sum(file.stat().st_size for file in folder.iterdir()) < 20_000_000
    card = (folder / "README.md").read_text()
    for word in ("CDLA", "cdla.dev/sharing-1-0", "CC BY", "storybooks-attribution.tsv", "bits per", "scripts/train.py"):
        assert word.lower() in card.lower(), word
    assert (folder / "storybooks-attribution.tsv").is_file()

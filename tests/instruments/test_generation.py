"""Generation: equal to the model that keeps nothing, and to transformers; the lens reads each step."""

import doctest
import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Letters
from conftest import FAMILIES, Tiny
from rounding import near
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

import minilens
from minilens import GenerationStep, Lens, generate, generate_steps
from minilens.command.main import main
from minilens.instruments import generation
from minilens.views.generation import generation_record, generation_view

N = 30  # tokens, longer than GPT-Neo's window
SUMS = 20  # sums in a row, six in each of three blocks, and the unembedding
Float64Stays = runpy.run_path(str(Path(__file__).parents[2] / "scripts/parity.py"))["Float64Stays"]


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tiny: Tiny) -> minilens.Model:
    return minilens.load(tiny(request.param)[1], dtype=torch.float64)[0]


@pytest.fixture
def prompts(tokens: Tensor) -> Tensor:
    """Two texts; a window of GPT-Neo's ends within them, or further on."""
    return tokens[:, :4]


# ---- What is written


@pytest.mark.parametrize("n_prompt", [1, 7, 10])
def test_every_step_equals_a_run_of_the_whole_text(model: minilens.Model, tokens: Tensor, n_prompt: int) -> None:
    text = tokens[:, :n_prompt]
    with Float64Stays():  # GPT-Neo's scores are in float32, whose rounding would hide all else
        for step in generate_steps(model, text, N - n_prompt):
            assert near(step.logits, model(text)[:, -1], n=50, sums=SUMS)
            text = torch.cat([text, step.tokens[:, None]], 1)
    assert text.shape == (2, N)


@pytest.mark.parametrize("window", [1, 2])
def test_a_window_that_is_shorter_than_any_prompt(tiny: Tiny, tokens: Tensor, window: int) -> None:
    config = dict(window_size=window, attention_types=[[["local", "global", "local"], 1]])
    model, _ = minilens.load(tiny("gpt_neo", **config)[1], dtype=torch.float64)
    with Float64Stays():
        written = generate(model, tokens[:, :5], 9)
        for n, step in enumerate(generate_steps(model, tokens[:, :5], 9), 5):
            assert near(step.logits, model(written[:, :n])[:, -1], n=50, sums=SUMS)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_continuations_are_those_of_transformers(tiny: Tiny, tokens: Tensor, family: str) -> None:
    reference, folder = tiny(family)
    model, _ = minilens.load(folder, dtype=torch.float64)
    prompts = tokens[:, :3]
    expected = reference.generate(prompts, max_length=N, do_sample=False, pad_token_id=0)
    assert torch.equal(generate(model, prompts, N - 3), expected)


def test_only_the_new_position_is_computed(model: minilens.Model, prompts: Tensor, monkeypatch: Any) -> None:
    """And of the window of a local layer no more keys are kept than it holds."""
    seen = []
    block = type(model).block

    def watched(self: Any, layer: int, resid: Tensor, edit: Any = minilens.untouched) -> Any:
        found = block(self, layer, resid, edit)
        seen.append((resid.shape[1], found.k.shape[2]))
        return found

    monkeypatch.setattr(type(model), "block", watched)
    generate(model, prompts, 7)
    reach = 7 if model.family == "gpt_neo" else 40
    assert seen[:3] == [(4, 4)] * 3
    assert seen[3::3] == [(1, n) for n in range(5, 11)]
    assert seen[4::3] == [(1, min(n, reach)) for n in range(5, 11)]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(0.7, None, None), (1.0, 5, None), (1.0, None, 0.6), (2.0, 20, 0.8), (1.0, None, 1.0)],
)
def test_what_is_drawn_from_equals_transformers(
    model: minilens.Model, prompts: Tensor, monkeypatch: Any, temperature: float, top_k: Any, top_p: Any
) -> None:
    probs = []
    multinomial = torch.multinomial

    def watched(p: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        probs.append(p)
        return multinomial(p, *args, **kwargs)

    monkeypatch.setattr(torch, "multinomial", watched)
    options: dict[str, Any] = dict(temperature=temperature, top_k=top_k, top_p=top_p)
    for step in generate_steps(model, prompts, 5, **options):
        warpers = [TemperatureLogitsWarper(temperature)]
        warpers += [TopKLogitsWarper(top_k)] if top_k else []
        warpers += [TopPLogitsWarper(top_p)] if top_p else []
        logits = step.logits
        for warper in warpers:
            logits = warper(prompts, logits)
        found = probs[-1] / probs[-1].sum(-1, keepdim=True)
        assert (found - logits.softmax(-1)).abs().max() < 1e-12
        assert (found[[0, 1], step.tokens] > 0).all()
    assert len(probs) == 5


def test_the_generator_decides(model: minilens.Model, prompts: Tensor) -> None:
    def drawn(seed: int, temperature: float = 5.0) -> Tensor:
        return generate(model, prompts, 9, temperature=temperature, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(drawn(0), drawn(0)) and not torch.equal(drawn(0), drawn(1))
    best = generate(model, prompts, 9)
    assert not torch.equal(drawn(0), best)
    for small in (1e-3, 5e-324):
        assert torch.equal(drawn(0, small), best)
    assert torch.equal(generate(model, prompts, 9, temperature=1.0, top_k=1), best)


def test_the_prompt_stays_and_so_does_what_torch_counts(model: minilens.Model, prompts: Tensor) -> None:
    before = prompts.clone()
    short = prompts.int()
    written = generate(model, short, 3)
    assert written.dtype == torch.int32 and torch.equal(written[:, :4], short) and torch.equal(prompts, before)
    for step in generate_steps(model, prompts, 2):
        assert torch.is_grad_enabled() and not step.logits.requires_grad


# ---- Edits


def test_an_edit_applies_at_each_step(model: minilens.Model, prompts: Tensor) -> None:
    """As in a run of the text so far: -1 is its last position alone."""
    direction = torch.randn(30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    edits = {
        "everywhere": minilens.add(1, "resid_post", 9 * direction),
        "last": minilens.add(0, "attn_out", 9 * direction, positions=-1),
        "third": minilens.zero(1, "z", positions=2, heads=3),
    }
    plain = generate(model, prompts, 6)
    for name, edit in edits.items():
        text = prompts
        for step in generate_steps(model, prompts, 6, edit=edit):
            logits = minilens.trace(model, text, edit=edit).logits[:, -1]
            assert near(step.logits, logits, n=50, sums=SUMS), name
            text = torch.cat([text, logits.argmax(-1, keepdim=True)], 1)
        assert torch.equal(generate(model, prompts, 6, edit=edit), text)
        assert name == "third" or not torch.equal(text, plain)


def test_earlier_keys_and_values_are_for_one_position(model: minilens.Model, prompts: Tensor) -> None:
    """No edit of a caller may do as Earlier does."""
    block = minilens.trace(model, prompts).blocks[0]
    earlier = minilens.traces.Earlier(block.k, block.v)
    with pytest.raises(ValueError, match=r"the edit at 0\.k must keep"):
        model.block(0, block.resid_pre[:, -1:], lambda site, value: earlier(site, value))
    assert repr(earlier) == "Earlier\n  k  [2, 5, 4, 6] float64\n  v  [2, 5, 4, 6] float64"


# ---- The lens


@pytest.mark.parametrize(
    "options",
    [{}, {"norm": "plain"}, {"sites": ("resid_mid", "resid_post"), "layers": (0, 2)}, {"transport": lambda s, x: -x}],
    ids=["all", "plain", "sites", "transport"],
)
def test_the_lens_reads_each_step(model: minilens.Model, prompts: Tensor, options: dict[str, Any]) -> None:
    edits = (minilens.untouched, minilens.zero(0, "mlp_out"))
    for edit in edits:
        text = prompts[:1]
        for step in generate_steps(model, prompts[:1], 8, edit=edit, lens=Lens(**options)):
            table = minilens.logit_lens(model, text, positions=-1, edit=edit, **options)
            assert step.labels == table.labels
            assert torch.equal(step.best, table.top.tokens[..., 0])
            assert torch.equal(step.settled, table.settled)
            assert abs(step.prob - table.final.prob[-1, 0]) < 1e-6  # GPT-Neo's scores are in float32
            text = torch.cat([text, step.tokens[:, None]], 1)


def test_without_a_lens_the_output_alone(model: minilens.Model, prompts: Tensor) -> None:
    (step,) = generate_steps(model, prompts, 1, lens=None)
    assert step.labels == ("2.resid_post",) and torch.equal(step.best, step.logits.argmax(-1)[None])


def written(rows: list[list[int]], token: int) -> GenerationStep:
    """A step that wrote a token where the rows had these best tokens."""
    labels = ("embed", *(f"{layer}.resid_post" for layer in range(len(rows) - 1)))
    logits = torch.zeros(1, 101).index_fill(1, torch.tensor(rows[-1]), 50.0)
    return GenerationStep(torch.tensor([token]), logits, labels, torch.tensor(rows))


STEPS = [written([[1], [3], [2], [3], [3]], 3), written([[4], [4], [4], [4], [4]], 4), written([[5], [6], [7]], 6)]


def test_what_is_settled() -> None:
    assert [int(step.settled) for step in STEPS] == [3, 0, 3]
    assert [round(float(step.prob), 3) for step in STEPS] == [1, 1, 0]


def test_the_strip() -> None:
    tokenizer = Letters({3: b"\x1b[31m\n", 6: "猫".encode() * 20})
    lines = [line.plain for line in generation_view(torch.tensor([[2]]), STEPS, tokenizer=tokenizer)]
    assert lines[:4] == [
        "token         prob  rows   settled at",
        "\\x1b[31m↵     1.00  .o.##  2.resid_post",
        "t4            1.00  #####  embed",
        "猫猫猫猫猫 …  0.00  .o.  never",
    ]
    assert lines[-1] == "\nt2\\x1b[31m↵t4" + "猫" * 20
    assert list(generation_view(torch.tensor([[2]]), STEPS))[-1].plain == "\n#2 #3 #4 #6"
    record = generation_record(torch.tensor([[2]]), STEPS, tokenizer=tokenizer)
    assert [each["settled"] for each in record["written"]] == ["2.resid_post", "embed", None]
    assert record["written"][1]["best"] == [{"id": 4, "label": "t4", "text": "t4"}] * 5


# ---- Bad input


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(n=0), "n must be at least 1; it is 0"),
        (
            dict(n=37),
            "the prompt has 4 tokens and 37 are to be written, but the model's context holds 40: write at most 36, or "
            "shorten the prompt",
        ),
        (dict(temperature=-0.1), "temperature must be a number, 0 for the best token each time, or more; got -0.1"),
        (dict(temperature=torch.inf), "temperature must be a number, 0 for the best"),
        (dict(temperature=torch.nan), "temperature must be a number, 0 for the best"),
        (dict(temperature=1.0, top_p=0.0), "top_p is 0, and no token would be left: it must be above 0"),
        (dict(temperature=1.0, top_p=1.1), "top_p must be a number, a probability, above 0 and up to 1; got 1.1"),
        (dict(temperature=1.0, top_k=0), "top_k must be between 1 and the size of the vocabulary, 101; it is 0"),
        (dict(temperature=1.0, top_k=102), "top_k must be between 1 and the size of the vocabulary, 101; it is 102"),
        (dict(top_k=5), "top_k limits what is drawn, and at temperature 0 nothing is drawn: give a temperature, such"),
        (dict(top_p=0.5), "top_p limits what is drawn, and at temperature 0 nothing is drawn"),
        (dict(edit=minilens.zero(3, "z")), "the edit at 3.z matches nothing: the blocks run are 0 to 2"),
        (dict(lens=Lens(decoder="block:1")), 'the decoder "block:1" needs all positions, and a step has one: take the'),
        (dict(lens=Lens(centre=True)), "centre needs all positions, and a step has one"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_bad_input(model: minilens.Model, prompts: Tensor, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        generate_steps(model, prompts, **{"n": 1, **options})  # before anything is asked for
    assert str(error.value).startswith(sentence)


def test_a_prompt_that_fills_the_context_or_is_none(model: minilens.Model, tokens: Tensor) -> None:
    full = tokens[:, :1].repeat(1, 40)
    assert generate(model, full[:, 1:], 1).shape == (2, 40)
    with pytest.raises(
        ValueError, match=r"the prompt has 40 tokens and 1 are .* context holds 40: shorten the prompt$"
    ):
        generate(model, full, 1)
    with pytest.raises(ValueError, match="the prompt is empty"):
        generate(model, tokens[:, :0], 1)


def test_weights_that_are_not_finite(tiny: Tiny, prompts: Tensor) -> None:
    model, _ = minilens.load(tiny("gpt2")[1], mmap=False)
    model.blocks[1].W_QKV[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"^the logits of the next token are not finite: there is a NaN"):
        generate(model, prompts, 1)


def test_the_examples() -> None:
    result = doctest.testmod(generation, extraglobs={"minilens": minilens})
    assert (result.failed, result.attempted > 0) == (0, True)


# ---- The command


def test_the_command(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    """A model without a tokenizer; the strip and the JSON say the same, and so does Python."""
    folder = tiny("gpt_neo")[1]
    words = ["generate", "--ids", "5 17 3", "--n", "6", "--model", str(folder)]
    drawing = ["--temperature", "3", "--top-k", "50", "--top-p", "0.9", "--seed", "7", "--zero", "0.z"]
    model, _ = minilens.load(folder)
    random = torch.Generator().manual_seed(7)
    drawn = dict(temperature=3.0, top_k=50, top_p=0.9, generator=random, edit=minilens.zero(0, "z"))
    for options, how in (([], {}), (drawing, drawn)):
        expected = generate(model, torch.tensor([[5, 17, 3]]), 6, **how)[0, 3:].tolist()  # type: ignore[arg-type]
        assert main([*words, *options]) == 0
        shown, said = capsys.readouterr()
        assert said == ""
        lines = shown.splitlines()
        assert [int(re.match("#([0-9]+) ", line)[1]) for line in lines[1:7]] == expected  # type: ignore[index]
        assert f"#5 #17 #3 {' '.join(f'#{token}' for token in expected)}" in lines
        assert ("edited: zero 0.z" in lines) == bool(options)
        assert main([*words, *options, "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        assert [each["id"] for each in record["written"]] == expected
        assert [each["id"] for each in record["tokens"]] == [5, 17, 3]
        assert [line.split()[-1] for line in lines[1:7]] == [each["settled"] or "never" for each in record["written"]]
    assert (record["temperature"], record["top_k"], record["top_p"], record["seed"]) == (3, 50, 0.9, 7)
    assert record["edits"] == ["zero 0.z"] and record["full_text"] is None
    for seed in ("-1", str(2**63)):
        assert main([*words, "--seed", seed]) == 2
        assert capsys.readouterr().err == f"minilens: error: --seed must be from 0 to 2**63 - 1; got {seed}\n"

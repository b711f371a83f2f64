"""What a caller gives: one number where several may be, and one sentence for what does not fit."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import Tiny

import minilens
from minilens.arguments import LONGEST, quoted, whole_number, whole_numbers

NUMBERS = "must be whole numbers; got"
FUNCTION = "must be a function of a site and the value there, as minilens.at makes one; got"
DECODERS = 'it must be "final", "block:K" for the last K blocks, or "mlp"'
MODEL = "model must be a model, the first of the two things that minilens.load gives; got"
PLAIN = "tokens must be a plain tensor, as tokenizer.encode gives it; got one that is"
BLOCK = "must be one block of a trace, such as trace.blocks[3]; got"
CALLS = {
    "logit_lens(model, tokens, decoder=None)": f"there is no decoder None: {DECODERS}",
    "logit_lens(model, tokens, decoder=5)": f"there is no decoder 5: {DECODERS}",
    "logit_lens(model, tokens, decoder=['final', 'mlp'])": f"there is no decoder ['final', 'mlp']: {DECODERS}",
    "lens_rows(model, tokens, norm=None)": 'there is no norm None; it must be "final" or "plain"',
    "lens_rows(model, tokens, centre='no')": 'centre must be True or False; got "no"',
    "lens_rows(model, tokens, sites=None)": "sites must be a name, or several; got None",
    "lens_rows(model, tokens, sites=[1])": "sites must be a name, or several; got [1]",
    "lens_rows(model, tokens, layers='0')": f'layers {NUMBERS} "0"',
    "lens_rows(model, tokens, layers=[0.0])": f"layers {NUMBERS} [0.0]",
    "lens_rows(model, tokens, layers={0: 1})": f"layers {NUMBERS} a dict",
    "lens_rows(model, tokens, transport=None)": f"transport {FUNCTION} None",
    "lens_rows(model, tokens, edit=None)": f"edit {FUNCTION} None",
    "lens_rows((model, None), tokens)": f"{MODEL} a tuple",
    "logit_lens(model, tokens, edit={})": f"edit {FUNCTION} a dict",
    "logit_lens(model, tokens, track=' Sue')": f'track {NUMBERS} " Sue"',
    "logit_lens(model, tokens, track=None)": f"track {NUMBERS} None",
    "logit_lens(model, tokens, track=[2.5])": f"track {NUMBERS} [2.5]",
    "logit_lens(model, tokens, positions='last')": f'positions {NUMBERS} "last"',
    "logit_lens(model, tokens, top_k=2.0)": "top_k must be a whole number; got 2.0",
    "logit_lens(model, tokens, top_k=True)": "top_k must be a whole number; got True",
    "logit_lens(model, tokens, top_k=None)": "top_k must be a whole number; got None",
    "logit_lens(model, tokens, stats=None)": "stats must be a name, or several; got None",
    "logit_lens(model, tokens, stats='entropie')": 'there is no statistic "entropie"; there are top, final, next, '
    "input, entropy, kl_final, kl_row_final, kl_input, kl_row_input, change, js",
    "logit_lens(model, tokens.to('meta'))": f"{PLAIN} without numbers, on the device meta",
    "logit_lens(model, tokens.to_sparse())": f"{PLAIN} sparse",
    "trace(model, torch.nested.nested_tensor([tokens[0]]))": f"{PLAIN} nested",
    "logit_lenses(model, tokens, [7])": "lengths must be from 1 to 6, the tokens of the longest text; got 7",
    "logit_lenses(model, tokens, [-1])": "lengths must be from 1 to 6, the tokens of the longest text; got -1",
    "logit_lenses(model, tokens, [2.7])": f"lengths {NUMBERS} [2.7]",
    "logit_lenses(model, None, [1])": "tokens must be a tensor, as tokenizer.encode gives it; got a NoneType",
    "logit_lenses(model, tokens, tokens.to('meta'))": f"lengths {NUMBERS} a Tensor",
    "logit_lens(model, tokens, track=tokens.to_sparse())": f"track {NUMBERS} a Tensor",
    "logit_lens(model, tokens, stats=torch.tensor(3))": "stats must be a name, or several; got a Tensor",
    "logit_lens(model, tokens, top_k=next(lens_rows(model, tokens)))": "top_k must be a whole number; got a LensRow",
    "tokenizer.id(5)": "text must be one text; got 5",
    "tokenizer.tokens(['a'])": "text must be one text; got ['a']",
    "trace(minilens.load(folder), tokens)": f"{MODEL} a tuple",
    "trace(model, tokens, edit=None)": f"edit {FUNCTION} None",
    "model.block(0, model.embed(tokens), edit={})": f"edit {FUNCTION} a dict",
    "model.block(0.0, model.embed(tokens))": "layer must be a whole number; got 0.0",
    "run(model, model.embed(tokens), start=None)": "start must be a whole number; got None",
    "run(model, model.embed(tokens).double())": "the stream must be of width 30, torch.float32 on cpu, as the model "
    "is; got [1, 6, 30] torch.float64 on cpu",
    "decode(model, model.embed(tokens)[..., :7], start=1)": "the stream must be of width 30, torch.float32 on cpu, as "
    "the model is; got [1, 6, 7] torch.float32 on cpu",
    "run(model, torch.nested.nested_tensor([torch.zeros(2, 3)]))": "the stream must have the shape [batch, pos, "
    "d_model]; got a nested tensor",
    "run(model, [1])": "the stream must have the shape [batch, pos, d_model]; got a list",
    "attribute(model, tokens, token=' Sue')": 'token must be a whole number; got " Sue"',
    "attribute(model, tokens, against=1.5)": "against must be a whole number; got 1.5",
    "attribute(model, tokens, position=None)": "position must be a whole number; got None",
    "attribute(model, tokens, neurons='1')": f'layer {NUMBERS} "1"',
    "attribute(model, tokens, neurons=1.5)": "layer must be a whole number; got 1.5",
    "attribute(model, tokens).largest(' Sue')": 'k must be a whole number; got " Sue"',
    "head_scores(model, length=2.5)": "length must be a whole number; got 2.5",
    "generate(model, tokens, '5')": 'n must be a whole number; got "5"',
    "generate((model, None), tokens, 5)": f"{MODEL} a tuple",
    "generate(model, None, 5)": "tokens must be a tensor, as tokenizer.encode gives it; got a NoneType",
    "generate(model, tokens, 5, temperature='hot')": "temperature must be a number, 0 for the best token each time, or "
    'more; got "hot"',
    "generate(model, tokens, 5, temperature=1, top_k=2.0)": "top_k must be a whole number; got 2.0",
    "generate(model, tokens, 5, temperature=1, top_p=True)": "top_p must be a number, a probability, above 0 and up to "
    "1; got True",
    "generate(model, tokens, 5, generator=7)": "generator must be a torch.Generator; got 7",
    "generate(model, tokens, 5, edit=None)": f"edit {FUNCTION} None",
    "geometry(None)": f"{MODEL} None",
    "head_weights(None)": f"{MODEL} None",
    "copying_scores(None)": f"{MODEL} None",
    "composition((model, None))": f"{MODEL} a tuple",
    "ov_circuit(model, 0, '1')": 'head must be a whole number; got "1"',
    "qk_circuit(model, None, 1)": "layer must be a whole number; got None",
    "qk_circuit(model, 0, 1).row(' Sue')": 'token must be a whole number; got " Sue"',
    "qk_circuit(model, 0, 1).highest(3, 2.5)": "k must be a whole number; got 2.5",
    "parts(model, tokens, by=None)": 'by must be "head" or "neuron"; got None',
    "parts(model, tokens, 1.0)": "layer must be a whole number; got 1.0",
    "parts(None, tokens)": f"{MODEL} None",
    "parts(model, tokens, positions=' Sue')": f'positions {NUMBERS} " Sue"',
    "parts(model, tokens).largest(2.5)": "k must be a whole number; got 2.5",
    "vector_tokens(model, [1.0])": "vectors must be a tensor whose last axis is d_model, 30; got [1.0]",
    "vector_tokens(model, model.W_E, top_k='5')": 'top_k must be a whole number; got "5"',
    "patching(model, tokens, tokens, 5)": "metric must be a function of logits, such as logit_difference makes; got 5",
    "patching(model, tokens, tokens, len, sites=None)": "sites must be a name, or several; got None",
    "patching(model, tokens, tokens, len, by=None)": 'by must be "position", "head" or "head_position"; got None',
    "patching(model, tokens, tokens, [len, 5])": "metric must be one for all texts, or one for each of the 1; got 2",
    "path_patching(model, tokens, tokens + 1, log_probability(3), to=[(2,)])": "to must be receivers, such as "
    '[(6, "q", 1)]; got (2,)',
    "path_patching(model, tokens, tokens + 1, log_probability(3), to='q')": 'to must be receivers, such as [(6, "q", '
    '1)]; got "q"',
    "path_patching(model, tokens, tokens + 1, log_probability(3), to=[('2', 'q')])": "layer must be a whole "
    'number; got "2"',
    "ablation(model, tokens, 5)": "metric must be a function of logits, such as logit_difference makes; got 5",
    "ablation(model, tokens, len, how=None)": "there is no ablation None; there are zero, mean, mean_by_position, "
    "resample",
    "attributions(model, tokens, lengths='6')": f'lengths {NUMBERS} "6"',
    "attributions(model, tokens).of(None)": "there is no None of several texts; there are contributions, by_layer, "
    "attention, mlp, by_head, by_neuron, by_position",
    "integrated_gradients(model, tokens, tokens + 1, log_probability(3), steps=1.5)": "steps must be a whole "
    "number; got 1.5",
    "kl_from(torch.zeros(2, 3))": "reference must be the logits at one position, [d_vocab]; got [2, 3]",
    "kl_from(None)": "reference must be the logits at one position, [d_vocab]; got None",
    "named_metric(None, 3)": "there is no metric None; there are logit_difference, log_probability, probability, logit",
    "patching(model, tokens, None, len)": "tokens must be a tensor, as tokenizer.encode gives it; got a NoneType",
    "patching(model, tokens, tokens + 1, log_probability(3), each=None)": "each must be a function that gives what it "
    "goes through; got None",
    "patching(model, tokens, tokens + 1, log_probability(3)).recovered('z')": '"z" was not patched; those that were '
    "are resid_pre, attn_out, mlp_out",
    **{f"{which}.encode(None)": "encode takes a text, or a list of texts; got None" for which in ("words", "pieces")},
    "words.encode(['a', 5])": "encode takes a text, or a list of texts; got ['a', 5]",
    "pieces.encode(b'x')": "encode takes a text, or a list of texts; got a bytes",
    **{f"{which}.decode('1 2')": f'tokens {NUMBERS} "1 2"' for which in ("words", "pieces")},
    "pieces.decode(torch.zeros(2))": f"tokens {NUMBERS} a Tensor",
    **{f"{which}.piece(0.0)": "token must be a whole number; got 0.0" for which in ("words", "pieces")},
    "load(None)": "name must be the name of a model, or the path of a folder; got None",
    "load(b'gpt2')": "name must be the name of a model, or the path of a folder; got a bytes",
    "load(folder, revision=3)": "revision must be a branch, a tag or a commit; got 3",
    "load('a/b', revision='../../../x')": 'revision must be a branch, a tag or a commit; got "../../../x"',
    "load('a/b', revision='/x')": 'revision must be a branch, a tag or a commit; got "/x"',
    "load('a/b', revision='')": 'revision must be a branch, a tag or a commit; got ""',
    "load(folder, ignoring=None)": "ignoring must be a name, or several; got None",
    "load(folder, mmap=None)": "mmap must be True or False; got None",
    "life(5, folder, 'x')": "name must be the name of a model, or the path of a folder; got 5",
    "life(folder, folder, 'x', revisions=5)": "revisions must be a name, or several; got 5",
    "verify(5)": "name must be the name of a model, or the path of a folder; got 5",
    "verify(folder, known_as=5)": "known_as must be the name of a repository; got 5",
    "verify(folder, ignoring=5)": "ignoring must be a name, or several; got 5",
    "verify(folder, each=5)": "each must be a function that gives what it goes through; got 5",
    "log_probability(' Sue')": 'token must be a whole number; got " Sue"',
    "patch(trace(model, tokens), 'z')": f"source {BLOCK} a Trace",
    "mean(trace(model, tokens), 'z')": f"reference {BLOCK} a Trace",
    "at('0', 'z', torch.zeros_like)": 'layer must be a whole number; got "0"',
    "at(0, None, torch.zeros_like)": "None is not a site that can be edited; those are resid_pre, q, k, v, pattern, z, "
    "attn_out, resid_mid, mlp_post, mlp_out, resid_post",
    "at(0, 'z', 0)": "fn must be a function of the value that gives a new one; got 0",
    "add(0, 'attn_out', [1.0])": "direction must be a tensor, as wide as the site; got [1.0]",
    "then(zero(0, 'z'), None)": f"each edit {FUNCTION} None",
    "coordinates(model, trace(model, tokens), 'resid_post', 3)": f"block {BLOCK} a Trace",
    "coordinates(model, trace(model, tokens).blocks[0], 'resid_post', ' Sue')": f'tokens {NUMBERS} " Sue"',
    "clamp(None, 0, 'resid_post', 3, 1)": f"{MODEL} None",
    "clamp(model, 0, 'resid_post', 3, '1')": 'values must be a number, or one for each of 1 tokens; got "1"',
    "clamp(model, 0, 'resid_post', 3, None)": "values must be a number, or one for each of 1 tokens; got None",
    "clamp(model, None, 'resid_post', 3, 1)": "layer must be a whole number; got None",
    "swap(model, 0, 'resid_post', 3, '4')": f"tokens {NUMBERS} (3, '4')",
    "swap(model, 0, 'resid_post', 3, 4, lens='affine')": "lens must be a learned lens, as minilens.load_lens gives it; "
    'got "affine"',
    "towards(model, 0, 'resid_pre', ' Sue', 1.0)": 'token must be a whole number; got " Sue"',
    "towards(model, 0, 'resid_pre', 5, None)": "amount must be a number, such as 0.5; got None",
}
SCRIPT = """
import json, sys
import torch
import minilens
from minilens import *

folder = sys.argv[1]
model, _ = minilens.load(folder)
words, pieces = (minilens.load(name)[1] for name in ("tales-ctrl", "tales-gpt2"))
tokenizer = pieces
tokens = torch.arange(6)[None]
ends = {}
for call in json.load(sys.stdin):
    try:
        ends[call] = f"nothing raised: {eval(call)!r}"
    except Exception as error:
        ends[call] = f"{type(error).__name__}: {error}"
one = minilens.logit_lens(model, tokens, layers=1, positions=-1, track=7, stats="top")
ends["one"] = [one.labels, one.positions.tolist(), one.track]
print(json.dumps(ends))
"""


@pytest.fixture(scope="module")
def ends(tiny: Tiny) -> dict[str, object]:
    """How each call ends: in a process of its own, where nothing checks types before the library does."""
    folder: Path = tiny("gpt2")[1]  # type: ignore[operator]
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, folder],
        input=json.dumps([*CALLS]),
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.parametrize("call", CALLS)
def test_misuse_is_one_sentence(ends: dict[str, object], call: str) -> None:
    assert ends[call] == f"ValueError: {CALLS[call]}"


def test_one_is_taken_for_a_list_of_one(ends: dict[str, object]) -> None:
    assert ends["one"] == [["embed", "1.resid_post", "2.resid_post"], [5], [7]]


def test_what_counts_as_a_whole_number() -> None:
    import numpy

    for one in (3, numpy.int32(3), torch.tensor(3)):
        assert whole_number("n", one) == 3
    for several in ([3, 4], (3, 4), iter([3, 4]), range(3, 5), numpy.array([3, 4]), torch.tensor([3, 4])):
        assert whole_numbers("n", several) == [3, 4]
    for wrong in (True, 3.0, "3", None, torch.tensor(3.0), numpy.float64(3), [3]):
        with pytest.raises(ValueError, match=r"^n must be a whole number; got "):
            whole_number("n", wrong)


def test_a_value_in_an_error_is_short_and_shows_what_is_hidden() -> None:
    assert quoted("\x1b[31m") == '"\\u001b[31m"'
    assert quoted("☃") == '"☃"'
    assert quoted([0] * 1000) == "a list"
    assert quoted([torch.zeros(2, 2)]) == "a list"  # of several lines
    assert quoted(torch.zeros(3)) == "a Tensor"
    assert len(quoted("x" * 1000)) == LONGEST + 2


def test_an_option_that_the_lens_does_not_have() -> None:
    with pytest.raises(TypeError, match="decodr"):
        minilens.Lens(decodr="mlp")  # type: ignore[call-arg]

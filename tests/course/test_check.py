"""The check of an exercise: mistakes planted in the solution, as students make them, and what else a file may hold."""

import re

import pytest
import torch
from planted import CANNOT_STAND, LOOP, SPLIT, measured, place_of

from minilens.course.check import check
from minilens.course.exercise import exercise, model_class, solution
from minilens.course.lines import LineResult
from minilens.course.mistakes import MISTAKES
from minilens.course.reference import as_class, reference_of
from minilens.loading import FAMILIES
from minilens.model import run


def wrong_in(source: str) -> list[LineResult]:
    return [result for result in check(source, "mine.py") if result.verdict != "right"]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_planted_mistake_is_found_at_its_line_and_most_are_named(family: str) -> None:
    """Each wrong line always, and no other; the mistake in four of five at least, and never another mistake."""
    found = measured(family)
    assert found.not_found == [] and found.wrong == []
    assert not any(each.named for each in found.not_named)
    assert found.planted >= 20 and len(found.not_named) <= 0.2 * found.planted, found.not_named


def test_each_known_mistake_has_its_place() -> None:
    """A change of gpt2.py, gpt_neo.py, ctrl.py or ops.py must not leave a mistake without its line."""
    texts = [solution(family) for family in FAMILIES]
    assert [mistake for mistake in MISTAKES if not any(mistake.right in text for text in texts)] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_the_solution_is_the_family_and_is_right(family: str) -> None:
    """Its values are those of the family's own file, bit for bit; the check finds nothing."""
    reference = reference_of(family)
    model = as_class(model_class(FAMILIES[family]), reference.model)
    with torch.no_grad():
        for block, trace in zip(reference.blocks, run(model, model.embed(reference.tokens)), strict=True):
            assert all(torch.equal(block.before[-1][name], getattr(trace, name)) for name in trace.__slots__[1:])
    results = check(solution(family), "mine.py")
    assert {result.verdict for result in results} == {"right"} and results[-1].name == "all together"


def test_what_is_not_written_is_taken_from_the_model_also_where_it_is_given_twice() -> None:
    source = solution("gpt2").replace("z = pattern @ v  #", "z = ...\n        z = merge_heads(z)  #")
    blank, wrong, *_ = (each for each in check(source, "mine.py") if each.verdict != "right")
    assert (blank.name, blank.verdict, wrong.name) == ("z", "not written", "z") and "head 8" in wrong.told, wrong


def test_what_is_not_written_is_taken_from_the_model() -> None:
    """Of an empty exercise nothing is wrong, and a line in its midst is tried before those above it are there."""
    empty = exercise("gpt2")
    assert {result.verdict for result in wrong_in(empty)} == {"not written"}
    named = re.sub(r"z = \.\.\.", "z = pattern @ k", empty)
    (result,) = [each for each in wrong_in(named) if each.verdict == "wrong"]
    assert (result.name, result.mistake) == ("z", "The keys are averaged; it must be the values.")
    right = re.sub(r"z = \.\.\.", "z = pattern @ v", empty)
    assert [each.name for each in check(right, "mine.py") if each.verdict == "right"] == ["resid_pre", "z"]


@pytest.mark.parametrize(
    "family, changes",
    [("gpt_neo", "q, k, v|scores|visible"), ("ctrl", "sinusoids|embed|positions|q, k, v|scores|mlp_post")],
)
def test_from_gpt2_the_departures_are_what_is_left_to_do(family: str, changes: str) -> None:
    assert "|".join(result.name for result in wrong_in(exercise(family, start="gpt2"))) == changes


IN_OTHER_WORDS = """
import math
import torch
import torch.nn.functional as F
from types import SimpleNamespace
from minilens.gpt2 import GPT2

def layer_norm(x, norm, eps):
    centred = (x - x.mean(dim=-1, keepdim=True)).float()
    return norm.w * (centred / torch.sqrt((centred**2).mean(dim=-1, keepdim=True) + eps)).to(x.dtype) + norm.b

def linear(x, W, b=None):
    return torch.einsum("bpi,io->bpo", x, W) + (0 if b is None else b)

def split_heads(x, n_heads):
    B, T, C = x.size()
    return torch.stack([x[:, :, h * C // n_heads : (h + 1) * C // n_heads] for h in range(n_heads)], dim=1)

def merge_heads(z):
    return torch.cat([z[:, h] for h in range(z.size(1))], dim=-1)

def causal_mask(resid):
    return torch.tril(torch.ones(resid.size(1), resid.size(1))) == 1

def attention_scores(q, k):
    return torch.einsum("bhqd,bhkd->bhqk", q, k)

def softmax(scores, dtype=None):
    e = torch.exp(scores.float() - scores.float().amax(dim=-1, keepdim=True))
    return e / e.sum(dim=-1, keepdim=True)

def gelu_new(x):
    return F.gelu(x, approximate="tanh")

class Mine(GPT2):
    def embed(self, tokens):
        return F.embedding(tokens, self.W_E) + self.positions(len(tokens[0]))

    def positions(self, n):
        return F.embedding(torch.arange(n), self.W_pos)

    def block(self, layer, resid):
        w = self.blocks[layer]
        qkv = linear(layer_norm(resid, w.ln1, 1e-5), w.W_QKV, w.b_QKV)
        q, k, v = (split_heads(part, 8) for part in qkv.split(256, dim=2))
        scores = q @ k.transpose(-2, -1)
        scores = scores / torch.sqrt(torch.tensor(k.size(-1)))
        visible = causal_mask(resid)[None, None]
        scores = scores.masked_fill(visible == 0, -1e9)
        pattern = torch.zeros_like(scores)
        for head in range(8):
            pattern[:, head] = softmax(scores[:, head])
        attn_out = merge_heads(pattern @ v) @ w.W_O
        attn_out = attn_out + w.b_O
        resid_mid = attn_out
        resid_mid = resid_mid + resid
        resid_post = linear(gelu_new(linear(layer_norm(resid_mid, w.ln2, 1e-5), w.W_in, w.b_in)), w.W_out, w.b_out)
        resid_post = resid_post + resid_mid
        return SimpleNamespace(resid_post=resid_post)

    def final_norm(self, resid):
        return layer_norm(resid, self.ln_final, 1e-5)

    def unembed(self, resid):
        return self.final_norm(resid) @ self.W_E.T

    def lens(self, tokens):
        rows = [self.embed(tokens)]
        for layer in range(self.n_layers):
            rows.append(self.block(layer, rows[-1]).resid_post)
        return torch.stack([self.unembed(row) for row in rows])
"""


def test_other_words_and_other_steps_are_right_too() -> None:
    """Lines in one or in several, -1e9 for -inf, single precision on the way, shapes by number: the same model."""
    assert wrong_in(IN_OTHER_WORDS) == []


def test_a_mistake_is_named_where_several_lines_stand_in_one() -> None:
    wrong = IN_OTHER_WORDS.replace("@ w.W_O\n", "@ w.W_O.T\n").replace("gelu_new(linear(", "F.gelu(linear(")
    (one, other) = wrong_in(wrong)
    assert (one.name, one.mistake) == ("attn_out", "W_O is transposed.")
    assert (other.name, other.mistake[:26]) == ("resid_post", "This is the exact GELU; GP")


@pytest.mark.parametrize(
    "right, wrong, name, told",
    [
        ("z = pattern @ v  #", "z = pattern @ v.mT  #", "z", "do not fit: .* v is [2, 8, 12, 32]"),
        ("linear(ln2_out, w.W_in, w.b_in)", "linear(ln2_out, w.W_in, w.b_in).log()", "mlp_pre", "is NaN at"),
        (f"return {SPLIT}", SPLIT, "split_heads", "is None, .*is a `return` missing"),
        ("z.transpose(1, 2).flatten(-2)", "z.tolist()", "merge_heads", "is a list, and should be a tensor"),
        ("pattern = softmax(scores, v.dtype)", "pattern = scores[:, 0]", "pattern", "shape [2, 12, 12], and"),
        ("def softmax", "def soft_max", "softmax", "there is no function softmax"),
        ("def final_norm", "def norm_final", "final_norm", "there is no function final_norm"),
        ("        attn_out = ", "        written = ", "attn_out", "no line of block gives attn_out"),
        ("resid_mid = resid_pre + attn_out", "resid_mid = resid_pre.add_(attn_out)", "resid_mid", "into resid_pre"),
        ("F.gelu(x, ", "F.gelu(x.abs_(), ", "gelu_new", "writes into a tensor that it was given"),
        ("return self.W_pos[:n]", "return self.W_pos.mul_(1)[:n]", "positions", "writes into the weights"),
        ("z = pattern @ v  #", "z = exit()  #", "z", "ends the process"),
        ("resid_mid + mlp_out", "resid_mid + 2 * mlp_out - mlp_out.new_zeros(1)", "resid_post", "differs at"),
        ("resid_mid + mlp_out", "2 * (resid_mid + mlp_out)", "resid_post", "each number is 2 times the model's"),
        ("softmax(scores, v.dtype)", "scores.softmax(-1).tril(-1)", "pattern", "by up to 1: at batch 0, head 0"),
        ("causal_mask(resid)  #", "causal_mask(resid).long()  #", "visible", "int64, and should hold True and False"),
        ("linear(merge_heads(z), w.W_O", "linear(z, w.W_O", "attn_out", "not fit: .*in line .*, which this line calls"),
        ("self.final_norm(resid), self.W_U", "self.final_norm(resid), self.W_E", "unembed", "(in line .*, which this"),
        ("cfg.score_scale[layer]", "cfg.d_head**-0.5", "scores", "Config has no d_head: it is d_model // n_heads"),
        ("pattern = softmax(scores, v.dtype)", "pattern = scores.exp() / scores.exp().sum(-1)", "pattern", "keepdim"),
        ("w.W_QKV", "w.W_qkv", "q, k, v", "Block has no W_qkv: did you mean W_QKV?"),
        ("return BlockTrace(", "BlockTrace(", "what block returns", "it is None: is a `return` missing?"),
        ("ln1_out, q, k, v, scores", "ln1_out, k, q, v, scores", "what block returns", "its q differs at"),
        ("rows = [self.unembed(resid)]", "rows = [self.unembed(resid)[:, -1]]", "lens", "holds tensors of the shapes"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_told_at_its_line(right: str, wrong: str, name: str, told: str) -> None:
    source = solution("gpt2").replace(right, wrong, 1)
    result = next(each for each in wrong_in(source) if each.verdict != "not written")
    assert result.name == name and re.search(re.escape(told).replace(r"\.\*", ".*"), result.told), result
    assert result.line == 0 or place_of(source, result.line) == place_of(
        source, source[: source.index(wrong)].count("\n") + 1
    )


def test_a_line_that_cannot_stand_so_is_told_with_what_it_should_be() -> None:
    """The line itself; in a loop the one inside. In each file as many as there are different places."""
    left = list(CANNOT_STAND)
    while left:
        source = base = solution(left[0][0]).replace("z = pattern @ v  # batch head pos d_head\n", LOOP)
        now = {}
        for each in left:
            family, right, wrong, *_ = each
            if family == left[0][0]:
                place = LOOP if right in LOOP else place_of(base, base[: base.index(right)].count("\n") + 1)
                if place not in now:
                    now[place] = each
                    source = source.replace(right, wrong, 1)
        results = [result for result in wrong_in(source) if result.line]
        for *_, planted, told, mistake in now.values():
            (result,) = [each for each in results if planted in source.splitlines()[each.line - 1]]
            assert told in result.told and result.mistake == mistake, result
        left = [each for each in left if each not in now.values()]


def test_what_is_coarse_or_cannot_run_in_bfloat16_is_noted_and_is_right() -> None:
    source = solution("gpt2")
    for right, wrong, told in (
        ("", "", ""),
        (
            ", dtype=torch.promote_types(dtype, torch.float32)).to(dtype)",
            ")",
            "gives float32, and should give bfloat16",
        ),
        ("F.linear(x, W.mT, b)", "F.linear(x, W.mT.to(torch.get_default_dtype()), b)", "in linear (line "),
    ):
        *_, last = check(source.replace(right, wrong), "mine.py")
        assert last.name == "all together" and last.verdict == "right" and bool(last.told) == bool(told)
        assert told in last.told


def test_a_value_that_lives_on_between_calls_is_found_when_all_is_run_together() -> None:
    source = solution("gpt2").replace("class My", "CALLS = []\n\n\nclass My")
    source = source.replace("self.W_E[tokens] + ", "self.W_E[tokens] * len(CALLS.append(0) or CALLS) + ")
    (result,) = wrong_in(source)
    assert result.name == "all together" and "does one keep a value" in result.told


@pytest.mark.parametrize(
    "source, told",
    [
        ("x = (1,\ny = 2", "mine.py, line 1: it is not Python: '(' was never closed"),
        ("import torch\n\n1 / 0", "mine.py, line 3: it raises ZeroDivisionError: division by zero"),
        ("raise ValueError('no')", "mine.py, line 1: it raises ValueError: no"),
        ("class Mine:\n    pass", "mine.py has no class for a model"),
        ("x\0 = 1", "mine.py, line 1: it is not Python"),
    ],
)
def test_what_is_no_exercise_is_refused(source: str, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        check(source, "mine.py")

"""Head scores: known heads have the scores that they must have."""

import dataclasses
import math

import pytest
import torch
from conftest import FAMILIES, Tiny
from torch import Tensor

import minilens
from minilens import HeadScores, gpt_neo, head_scores
from minilens.ops import LayerNorm, gelu_new
from minilens.traces import Site

STEPS_BACK = {"induction": lambda n: n - 1, "previous": lambda n: 1, "duplicate": lambda n: n}
N = 12  # of the model made by hand: tokens in its vocabulary, and in half of a text


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tiny: Tiny) -> minilens.Model:
    return minilens.load(tiny(request.param)[1])[0]


@pytest.mark.parametrize("kind", STEPS_BACK)
def test_a_perfect_pattern_scores_one(model: minilens.Model, kind: str) -> None:
    n = 15
    first = torch.zeros(2 * n, 2 * n)
    first[:, 0] = 1
    perfect = first.clone()
    for query in range(n, 2 * n):
        perfect[query] = torch.zeros(2 * n)
        perfect[query, query - STEPS_BACK[kind](n)] = 1
    patterns = torch.stack([first, first, perfect, first, first])
    edit = minilens.at(1, "pattern", lambda pattern: patterns.repeat(len(pattern), 1, 1, 1))

    scores = head_scores(model, length=n, batch=3, edit=edit)
    assert {name: getattr(scores, name)[1, 2].item() for name in scores._fields} == {
        name: float(name == kind) for name in scores._fields
    }
    # The first key is the right one only for "duplicate", and only where the second half begins.
    assert scores.induction[1, 0] == scores.previous[1, 0] == 0
    assert abs(scores.duplicate[1, 0] - 1 / n) < 1e-6
    assert scores.best(kind, 1) == [(1, 2, 1.0)]


def test_scores_are_averages_of_the_patterns(model: minilens.Model) -> None:
    """By loops over texts and queries."""
    patterns = {}

    def watch(site: Site, value: Tensor) -> Tensor:
        if site.name == "pattern":
            patterns[site.layer] = value
        return value

    n, batch = 11, 2
    scores = head_scores(model, length=n, batch=batch, edit=watch)
    for name, steps_back in STEPS_BACK.items():
        assert getattr(scores, name).shape == (3, 5)
        for layer in range(3):
            for head in range(5):
                weights = [
                    patterns[layer][text, head, query, query - steps_back(n)].item()
                    for text in range(batch)
                    for query in range(n, 2 * n)
                ]
                assert abs(getattr(scores, name)[layer, head] - sum(weights) / len(weights)) < 1e-6


def test_the_texts(model: minilens.Model) -> None:
    texts = []
    embed = type(model).embed

    class Watched(type(model)):  # type: ignore[misc]
        def embed(self, tokens: Tensor) -> Tensor:
            texts.append(tokens)
            return embed(self, tokens)

    watched = Watched(**{field.name: getattr(model, field.name) for field in dataclasses.fields(model)})
    scores = [head_scores(watched, length=20, batch=4, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(texts[0], texts[1]) and not torch.equal(texts[0], texts[2])
    assert torch.equal(scores[0].previous, scores[1].previous) and not torch.equal(scores[0][0], scores[2][0])
    for text in texts[0]:
        assert torch.equal(text[:20], text[20:])
        assert len(set(text.tolist())) == 20
    assert len({tuple(text.tolist()) for text in texts[0]}) == 4
    assert {token for seed in range(30) for token in _tokens(watched, texts, seed)} == set(range(101))


def _tokens(watched: minilens.Model, texts: list[Tensor], seed: int) -> list[int]:
    head_scores(watched, length=20, seed=seed)
    tokens: list[int] = texts[-1].flatten().tolist()
    return tokens


def by_hand() -> gpt_neo.GPTNeo:
    """Four heads whose purpose is known: the one before, the same; what followed, and none.

    The stream has a place for each token, for each position, and for the token before. A head scores a key by whether
    one such part of it is the same as one of the query's.
    """
    token, position, before = slice(0, N), slice(N, 3 * N), slice(3 * N, 4 * N)
    d_model, d_head = 4 * N, 2 * N
    one = torch.eye(2 * N)
    W_Q, W_K, W_V, W_O = torch.zeros(4, 2, d_model, d_model)
    # 0.0: a query at a position reads the one before, and copies its token
    W_Q[0, position, :d_head] = 3 * one.roll(-1, 1)
    W_Q[0, position.start, :d_head] = 0
    W_K[0, position, :d_head] = one
    W_V[0, token, :N] = one[:N, :N]
    W_O[0, :N, before] = one[:N, :N]
    # 0.1: the same token
    W_Q[0, token, d_head : d_head + N] = 3 * one[:N, :N]
    W_K[0, token, d_head : d_head + N] = one[:N, :N]
    # 1.0: the token before the key is the query's
    W_Q[1, token, :N] = 3 * one[:N, :N]
    W_K[1, before, :N] = one[:N, :N]
    zeros, norm = torch.zeros(d_model), LayerNorm(torch.ones(d_model), torch.zeros(d_model))
    blocks = [
        gpt_neo.Block(
            ln1=norm,
            W_Q=W_Q[layer],
            W_K=W_K[layer],
            W_V=W_V[layer],
            W_O=W_O[layer],
            b_O=zeros,
            ln2=norm,
            W_in=torch.zeros(d_model, 1),
            b_in=torch.zeros(1),
            W_out=torch.zeros(1, d_model),
            b_out=zeros,
        )
        for layer in range(2)
    ]
    config = gpt_neo.Config(
        d_vocab=N,
        n_ctx=2 * N,
        d_model=d_model,
        n_layers=2,
        n_heads=2,
        d_mlp=1,
        ln_eps=1e-5,
        activation=gelu_new,
        is_local=(False, False),
        window=1,
        is_tied=True,
    )
    W_E, W_pos = torch.zeros(N, d_model), torch.zeros(2 * N, d_model)
    W_E[:, token], W_pos[:, position] = one[:N, :N], one
    return gpt_neo.GPTNeo(config=config, W_E=W_E, W_pos=W_pos, blocks=tuple(blocks), ln_final=norm, W_U=W_E.mT)


def test_heads_made_by_hand() -> None:
    scores = head_scores(by_hand(), length=N, batch=5)
    by_chance = sum(1 / (query + 1) for query in range(N, 2 * N)) / N
    assert abs(by_chance - math.log(2) / N) < 0.002  # the 0.7 / n of the docstring
    expected = {
        # No position comes before the first, which takes itself for it: one query in N finds two keys that fit.
        "induction": [[0, 0], [1 - 0.5 / N, by_chance]],
        "previous": [[1, 0], [0, by_chance]],
        "duplicate": [[0, 0.5], [0.5 / N, by_chance]],  # a token is the same as itself, too
    }
    for name, values in expected.items():
        assert (getattr(scores, name) - torch.tensor(values)).abs().max() < 1e-5, name
    assert [head[:2] for head in scores.best("induction")] == [(1, 0), (1, 1), (0, 0), (0, 1)]
    assert len(scores.best("previous", 2)) == 2


def test_bad_input(model: minilens.Model) -> None:
    for options, message in (
        (dict(length=2), "length must be between 3 and the size of the vocabulary, 101; it is 2"),
        (dict(length=102), "length must be between 3 and the size of the vocabulary, 101; it is 102"),
        (dict(length=21), "the prompt has 42 tokens, but the model's context holds 40: shorten it"),
        (dict(batch=0), "batch must be at least 1; it is 0"),
        (dict(length=9, edit=minilens.at(3, "z", torch.neg)), "the edit at 3.z matches nothing: the blocks run are 0 "),
    ):
        with pytest.raises(ValueError) as error:
            head_scores(model, **options)  # type: ignore[arg-type]
        assert str(error.value).startswith(message)
    scores = HeadScores(*torch.zeros(3, 1, 1))
    with pytest.raises(ValueError, match=r'^there is no score "copying"; there are induction, previous, duplicate$'):
        scores.best("copying")


def test_weights_that_are_not_finite(tiny: Tiny) -> None:
    model, _ = minilens.load(tiny("gpt2")[1], mmap=False)
    model.blocks[1].W_QKV[0, 0] = torch.nan
    with pytest.raises(ValueError, match="the patterns of block 1 are not finite: there is a NaN or an infinity in"):
        minilens.head_scores(model, length=5, batch=1)

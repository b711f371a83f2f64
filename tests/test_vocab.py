"""The pass over the vocabulary gives what the definitions give, in float64, on the same vectors."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minilens import vocab
from minilens.device import CPU, PRECISIONS, at_once, check_precision
from minilens.vocab import KL, OF_ALL_LOGITS, TokenStats, VocabStats, first_alike, vocab_stats

EVERY = frozenset(OF_ALL_LOGITS)


def plainly(logits: Tensor) -> dict[str, Tensor]:
    """The statistics by their definitions, from whole float64 logits [row, pos, d_vocab]."""
    logp = logits.log_softmax(-1)

    def kl(p: Tensor, q: Tensor) -> Tensor:
        return (p.exp() * (p - q)).sum(-1)

    final, first = logp[-1:], logp[:1]
    mean = torch.logaddexp(logp, final) - math.log(2)
    return {
        "entropy": -(logp.exp() * logp).sum(-1),
        "kl_final": kl(final, logp),
        "kl_row_final": kl(logp, final),
        "kl_input": kl(first, logp),
        "kl_row_input": kl(logp, first),
        "change": torch.cat([torch.full_like(logp[:1, :, 0], torch.nan), kl(logp[1:], logp[:-1])]),
        "js": (kl(logp, mean) + kl(final, mean)) / 2,
    }


def ranks(logits: Tensor, tokens: Tensor) -> Tensor:
    """1 + the number of strictly higher logits, for one token per position in every row."""
    own = logits.gather(-1, tokens[None, :, None].expand(len(logits), -1, 1))
    return 1 + (logits > own).sum(-1)


def vectors(
    n_rows: int, n_pos: int, d_model: int, d_vocab: int, scale: float, seed: int, dtype: torch.dtype
) -> list[Tensor]:
    """Rows that come ever closer to the last one, an unembedding and its bias."""
    random = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=random, dtype=torch.float64)  # noqa: E731
    nearness = torch.logspace(0, -3, n_rows, dtype=torch.float64)[:, None, None]
    x = draw(1, n_pos, d_model) + nearness * draw(n_rows, n_pos, d_model)
    return [value.to(dtype) for value in (x, scale * draw(d_model, d_vocab), draw(d_vocab))]


@settings(max_examples=60, deadline=None)
@given(
    n_rows=st.integers(1, 7),
    n_pos=st.integers(1, 9),
    d_vocab=st.integers(1, 1300),
    scale=st.sampled_from([0.01, 0.3, 3.0]),
    bias=st.booleans(),
    width=st.sampled_from([576, None]),  # None: one tile, as a GPU takes it
    tile=st.sampled_from([1, 2**12, 2**20]),
    whole=st.sampled_from([1, 2**23]),
    seed=st.integers(0, 99),
)
def test_every_statistic_in_float64(
    n_rows: int, n_pos: int, d_vocab: int, scale: float, bias: bool, width: int | None, tile: int, whole: int, seed: int
) -> None:
    """Whatever the shapes, and however positions and vocabulary are cut."""
    x, W_U, b_U = vectors(n_rows, n_pos, 16, d_vocab, scale, seed, torch.float64)
    logits = x @ W_U + (b_U if bias else 0)
    asked = torch.randint(0, d_vocab, (2, n_pos), generator=torch.Generator().manual_seed(seed))
    k, device_sizes = min(4, d_vocab), CPU._replace(width=width, logits=tile, whole=whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocab, "at_once", lambda device: device_sizes)
        found = vocab_stats(x, W_U, b_U if bias else None, dict(enumerate(asked)), k=k, stats=EVERY)
    for name, expected in plainly(logits).items():
        assert torch.allclose(found.stats[name], expected.clamp(min=0), rtol=1e-9, atol=1e-11, equal_nan=True), name
    assert torch.allclose(found.top.logit, logits.topk(k).values, rtol=0, atol=1e-11)
    assert torch.allclose(found.top.logit, logits.gather(-1, found.top.tokens), rtol=0, atol=1e-11)
    logp = logits.log_softmax(-1)
    assert torch.allclose(found.top.logprob, logp.gather(-1, found.top.tokens), rtol=0, atol=1e-11)
    assert [*found.tokens] == ["final", 0, 1]
    for tokens, (logit, logprob, rank) in zip((found.top.tokens[-1, :, 0], *asked), found.tokens.values(), strict=True):
        index = tokens[None, :, None].expand(n_rows, -1, 1)
        assert torch.allclose(logit, logits.gather(-1, index)[..., 0], rtol=0, atol=1e-11)
        assert torch.allclose(logprob, logp.gather(-1, index)[..., 0], rtol=0, atol=1e-11)
        assert torch.equal(rank, ranks(logits, tokens))


@settings(max_examples=40, deadline=None)
@given(n_rows=st.integers(1, 5), d_vocab=st.integers(2, 700), highest=st.integers(1, 3), seed=st.integers(0, 99))
def test_ties_share_the_better_rank(n_rows: int, d_vocab: int, highest: int, seed: int) -> None:
    """Whole numbers are exact in any order of summation, and few of them tie all the time."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randint(-highest, highest + 1, (n_rows, 6, 4), generator=random).float()
    W_U = torch.randint(-1, 2, (4, d_vocab), generator=random).float()
    asked = torch.randint(0, d_vocab, (3, 6), generator=random)
    found = vocab_stats(x, W_U, None, dict(enumerate(asked)), k=2, stats=frozenset())
    logits = x @ W_U
    assert torch.equal(found.top.logit, logits.topk(2).values)
    assert torch.equal(logits.gather(-1, found.top.tokens), found.top.logit)
    assert (found.tokens["final"].rank[-1] == 1).all()
    for tokens, of_token in zip((found.top.tokens[-1, :, 0], *asked), found.tokens.values(), strict=True):
        assert torch.equal(of_token.rank, ranks(logits, tokens))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("d_model", [64, 256, 768])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_equal_embeddings_tie_whatever_the_rounding(d_model: int, dtype: torch.dtype, bias: bool) -> None:
    """Each token has a twin elsewhere in the vocabulary, in another tile and in another group."""
    x, half, half_bias = vectors(6, 50, d_model, 1500, 0.3, 0, dtype)
    x, W_U, b_U = x.to(torch.promote_types(dtype, torch.float32)), torch.cat([half, half], 1), half_bias.repeat(2)
    asked = torch.randint(0, 3000, (2, 50), generator=torch.Generator().manual_seed(0))

    def read(tokens: Tensor) -> VocabStats:
        return vocab_stats(x, W_U, b_U if bias else None, dict(enumerate(tokens)), k=4, stats=frozenset())

    def together(tokens: Tensor) -> TokenStats:
        """[token, row, pos]: the last row's best token first."""
        return TokenStats(*map(torch.stack, zip(*read(tokens % 3000).tokens.values(), strict=True)))

    best = read(asked).top.tokens[-1, :, :1].mT
    found, again, twins = (together(torch.cat([best, asked]) + shift) for shift in (0, 3000, 1500))
    for one, other, twin in zip(found, again, twins, strict=True):
        assert torch.equal(one[0], one[1])  # asked for once more
        assert torch.equal(one, other) and torch.equal(one, twin)
    assert (found.rank % 2 == 1).all()  # the tokens above come in pairs
    assert (found.rank[0, -1] == 1).all()


@pytest.mark.parametrize("bias", [False, True])
def test_tokens_alike_are_found_and_no_others(bias: bool) -> None:
    """Among many whose first numbers are the same; -0.0 is equal to 0.0, and NaN to nothing."""
    W_U = torch.randint(-1, 1, (12, 300), generator=torch.Generator().manual_seed(0)).float()
    W_U[:9] = 1
    W_U[11] *= -0.0
    W_U[10, 7] = torch.nan
    b_U = torch.arange(300) // 2 % 3 if bias else torch.zeros(300)
    first = first_alike(W_U, b_U.float() if bias else None).tolist()
    for token in range(300):
        alike = W_U.eq(W_U[:, token, None]).all(0) & b_U.eq(b_U[token])
        assert first[token] == (token if token == 7 else int(alike.nonzero()[0]))


def check_float32(x: Tensor, W_U: Tensor, b_U: Tensor, precision: str = "full") -> None:
    """The bounds that vocab.py states, against float64 on the same vectors and weights."""
    operands = (x, W_U) if precision == "full" else (x.bfloat16(), W_U.bfloat16())
    logits = operands[0].double() @ operands[1].double() + b_U.double()
    found = vocab_stats(x, W_U, b_U, {}, k=5, stats=EVERY, precision=precision)
    for name, expected in plainly(logits).items():
        error = (found.stats[name] - expected)[1:].abs()
        assert (error <= 2e-6 * (1 + logits.abs().max()) + 1e-5 * expected[1:]).all(), name
    logprob = logits.log_softmax(-1).gather(-1, found.top.tokens)
    assert (found.top.logprob - logprob).abs().max() < 2e-6 * (1 + logits.abs().max())


@pytest.mark.parametrize("scale", [0.01, 0.3, 3.0])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_float32_is_as_near_as_promised(scale: float, precision: str) -> None:
    """Where logits reach 90 and divergences run from 1e-6 to 100 nats. bfloat16 rounds the operands alone."""
    try:
        check_precision(precision, torch.device("cpu"))
    except ValueError as error:
        pytest.skip(str(error))
    check_float32(*vectors(8, 40, 64, 3000, scale, 0, torch.float32), precision)
    assert torch.get_float32_matmul_precision() == "highest"


def test_large_and_small_divergences() -> None:
    """Where each row is sure of another token, and where it hardly differs."""
    W_U = torch.eye(4)
    sure, other, nearly = torch.tensor([50.0, 0, 0, 0]), torch.tensor([0.0, 50, 0, 0]), torch.tensor([50.0, 1e-3, 0, 0])
    found = vocab_stats(torch.stack([other, nearly, sure])[:, None], W_U, None, {}, k=1, stats=EVERY)
    assert found.stats["kl_final"][:, 0].tolist() == pytest.approx([50, 0, 0], abs=1e-6)
    assert found.stats["kl_input"][:, 0].tolist() == pytest.approx([0, 49.999, 50], abs=1e-5)
    assert found.stats["js"][:, 0].tolist() == pytest.approx([math.log(2), 0, 0], abs=1e-6)
    level = vocab_stats(torch.zeros(2, 1, 4), W_U, None, {}, k=1, stats=EVERY)
    assert level.stats["entropy"][:, 0].tolist() == pytest.approx([math.log(4)] * 2, rel=1e-6)
    assert level.stats["kl_final"].tolist() == [[0], [0]]


def test_a_divergence_is_never_negative_and_none_from_itself() -> None:
    x, W_U, _ = vectors(3, 200, 16, 500, 1.0, 0, torch.float32)
    nearby = torch.cat([x[-1:] * (1 + 1e-7 * torch.randn(x[-1:].shape)), x[-1:], x[-1:]])
    found = vocab_stats(nearby, W_U, None, {}, k=1, stats=EVERY)
    for name in ("kl_final", "kl_row_final", "js"):
        assert (found.stats[name] >= 0).all()
    for name in ("kl_final", "kl_row_final"):
        assert (found.stats[name][-1] == 0).all()


def test_weights_in_half_precision_are_read_in_float32() -> None:
    x, W_U, b_U = vectors(3, 5, 16, 700, 0.3, 0, torch.float32)
    check_float32(x, W_U.bfloat16(), b_U.bfloat16())


def test_no_row_of_logits_is_whole() -> None:
    """But for the last row's at a few positions: no tensor made on the way is as large as one row at all positions."""
    x, W_U, _ = vectors(4, 300, 8, 5000, 1.0, 0, torch.float32)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    with pytest.MonkeyPatch.context() as patch, Watch():
        patch.setattr(vocab, "at_once", lambda device: CPU._replace(logits=2**16, whole=2**17))
        vocab_stats(x, W_U, None, {}, k=5, stats=frozenset({"entropy", *KL}))
    assert largest <= 2**19 < 300 * 5000


def test_a_gpu_takes_the_vocabulary_in_one_tile_by_the_size_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for gigabytes, logits, tokens in ((8, 2**25, 2**11), (80, 10 * 2**25, 2**14)):
        card = SimpleNamespace(total_memory=gigabytes * 2**30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, card=card: card)
        assert at_once(torch.device("cuda:1")) == (None, logits, logits, tokens)

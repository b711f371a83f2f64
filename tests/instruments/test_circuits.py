"""Head weights, circuits and composition: the formulas of their docstrings, written out, and the model's own values."""

import doctest
from typing import Any

import pytest
import torch
from conftest import FAMILIES, Tiny
from rounding import near
from torch import Tensor

import minilens
from minilens import ctrl
from minilens.instruments import circuits, composition

LAYER, HEAD = 2, 3
PLACES = [(0, 1), (LAYER, HEAD)]


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tiny: Tiny) -> Any:
    return minilens.load(tiny(request.param)[1], dtype=torch.float64, mmap=False)[0]


@pytest.fixture(autouse=True)
def in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The vocabulary of 101 tokens in three tiles, the last one short."""
    monkeypatch.setattr(circuits, "TILE", 40)
    monkeypatch.setattr(circuits, "WHOLE", 40 * 101)


# ---- Weights


def test_weights_give_the_values_of_a_trace(model: Any, tokens: Tensor) -> None:
    every = minilens.head_weights(model)
    for block in minilens.trace(model, tokens).blocks:
        w = minilens.head_weights(model, block.layer)
        x = block.ln1_out[:, None]
        for value, W, b in ((block.q, w.W_Q, w.b_Q), (block.k, w.W_K, w.b_K), (block.v, w.W_V, w.b_V)):
            assert near(x @ W + b[:, None], value, n=30, sums=1)
        assert near((block.z @ w.W_O).sum(1) + w.b_O, block.attn_out, n=30, sums=1)
        assert all(torch.equal(getattr(every, name)[block.layer], part) for name, part in vars(w).items())
    assert (every.W_Q.shape, every.W_O.shape, every.b_V.shape) == ((3, 5, 30, 6), (3, 5, 6, 30), (3, 5, 6))
    assert every.b_O.shape == (3, 30)


def test_the_weights_of_a_layer_are_views(model: Any) -> None:
    stored = {each.untyped_storage().data_ptr() for each in vars(model.blocks[1]).values() if isinstance(each, Tensor)}
    for name, part in vars(minilens.head_weights(model, 1)).items():
        is_made = model.family == "gpt_neo" and name in ("b_Q", "b_K", "b_V")  # zeros, which no checkpoint has
        assert (part.untyped_storage().data_ptr() in stored) is not is_made, name


# ---- Circuits


def alone(model: Any, layer: int) -> Tensor:
    """The stream of every token alone, as a block reads it: [d_vocab, d_model]."""
    x = model.W_E * (30**0.5 if isinstance(model, ctrl.CTRL) else 1)
    if layer == 0:
        return x
    w = model.blocks[0]
    activation = torch.relu if isinstance(model, ctrl.CTRL) else model.config.activation
    return x + activation(norm(model, x, w.ln2) @ w.W_in + w.b_in) @ w.W_out + w.b_out


def norm(model: Any, x: Tensor, ln: Any) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + model.config.ln_eps).sqrt() * ln.w + ln.b


def close(one: Tensor, other: Tensor, bound: float = 1e-10) -> bool:
    return bool((one - other).abs().max() < bound * other.abs().max())


@pytest.mark.parametrize(("layer", "head"), PLACES)
def test_qk_is_the_score_that_the_model_takes(model: Any, layer: int, head: int) -> None:
    """Of a text of these tokens, whose stream is that of each token alone."""
    circuit = minilens.qk_circuit(model, layer, head)
    text = [5, 7, 7, 100, 41]
    scores = model.block(layer, alone(model, layer)[text][None]).scores[0, head]
    factor, bound = (1, 1e-6) if model.family == "gpt_neo" else (6**-0.5, 1e-10)  # GPT-Neo's scores are in float32
    seen = torch.ones(5, 5, dtype=torch.bool).tril()
    assert close(torch.stack([circuit.row(token)[text] for token in text])[seen] * factor, scores[seen], bound)


@pytest.mark.parametrize(("layer", "head"), PLACES)
def test_ov_by_its_formula(model: Any, layer: int, head: int) -> None:
    circuit = minilens.ov_circuit(model, layer, head)
    w = minilens.head_weights(model, layer)
    written = (norm(model, alone(model, layer), model.blocks[layer].ln1) @ w.W_V[head] + w.b_V[head]) @ w.W_O[head]
    U = model.ln_final.w[:, None] * model.W_U
    OV = (written - written.mean(-1, keepdim=True)) @ U
    OV = OV - OV.mean(1, keepdim=True)  # what softmax does not see
    OV = OV - OV.mean(0)  # what the head adds whatever the token
    assert close(circuit.left @ circuit.right, OV)
    assert close(circuit.row(41), OV[41])

    best = circuit.highest(41, 3)
    order = OV[41].argsort(descending=True).tolist()
    assert [token for token, _ in best] == order[:3]
    assert [token for token, _ in circuit.lowest(41, 3)] == order[:-4:-1]
    assert best[0][1] == pytest.approx(OV[41].max().item())
    assert len(circuit.highest(41, 1000)) == 101
    assert circuit.own_rank().tolist() == [1 + int((row > row[token]).sum()) for token, row in enumerate(OV)]

    every = torch.linalg.eigvals(OV)
    score = every.real.sum() / every.abs().sum()
    assert circuit.eigenvalue_score == pytest.approx(score.item(), abs=1e-8)
    assert minilens.copying_scores(model)[layer, head].item() == pytest.approx(score.item(), abs=1e-6)
    found = circuit.eigenvalues
    assert sorted(found.abs().tolist()) == pytest.approx(sorted(every.abs().tolist())[-6:], rel=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_head_that_copies_scores_one(tiny: Tiny, sign: int) -> None:
    """With gains of 1, embeddings of one norm and W_O = ± W_V.T, the matrix is ± one without a negative eigenvalue."""
    model = minilens.load(tiny("ctrl")[1], dtype=torch.float64, mmap=False)[0]
    for ln in (model.ln_final, model.blocks[0].ln1):  # type: ignore[attr-defined]
        ln.w.fill_(1)
    model.W_E.div_((model.W_E - model.W_E.mean(1, keepdim=True)).norm(dim=1, keepdim=True))
    w = minilens.head_weights(model, 0)
    w.W_O[HEAD] = sign * w.W_V[HEAD].mT
    assert minilens.copying_scores(model)[0, HEAD].item() == pytest.approx(sign, abs=1e-3)
    w.W_O[HEAD] = 0
    assert minilens.copying_scores(model)[0, HEAD] == 0
    found = minilens.composition(model)
    assert (found.query[0, HEAD, 1:] == 0).all() and (found.query[0, 0, 1:] > 0).all()


# ---- Composition


def whole(model: Any, layer: int, head: int) -> dict[str, Tensor]:
    """A, and B of each kind, [d_model, d_model], less what every norm subtracts."""
    w, gain = minilens.head_weights(model, layer), model.blocks[layer].ln1.w.diag()
    C = torch.eye(30, dtype=torch.float64) - 1 / 30
    Q, K, V = (C @ gain @ W[head] for W in (w.W_Q, w.W_K, w.W_V))
    OV = V @ w.W_O[head] @ C
    return {"writes": OV, "query": Q @ K.T, "key": K @ Q.T, "value": OV}


def test_composition_by_its_formula(model: Any) -> None:
    found = minilens.composition(model)
    heads = {(layer, head): whole(model, layer, head) for layer in range(3) for head in range(5)}
    for kind in ("query", "key", "value"):
        scores = getattr(found, kind)
        for first, one in heads.items():
            for second, other in heads.items():
                A, B = one["writes"], other[kind]
                if first[0] < second[0]:
                    expected = (A @ B).norm() / (A.norm() * B.norm())
                    assert scores[first][second].item() == pytest.approx(expected.item(), rel=1e-5)
                else:
                    assert scores[first][second].isnan()


def test_the_baseline_is_what_a_random_turn_leaves(model: Any) -> None:
    """Of what is written, in the directions that a norm does not subtract."""
    random = torch.Generator().manual_seed(0)
    A, B = whole(model, 0, 1)["writes"], whole(model, LAYER, HEAD)["key"]
    ones = torch.ones(30, 1, dtype=torch.float64)
    basis = torch.linalg.qr(torch.cat([ones, torch.eye(30, dtype=torch.float64)[:, 1:]], 1)).Q[:, 1:]
    squares = []
    for _ in range(500):
        Q, R = torch.linalg.qr(torch.randn(29, 29, dtype=torch.float64, generator=random))
        turn = basis @ (Q * R.diagonal().sign()) @ basis.T
        squares.append(((A @ turn @ B).norm() / (A.norm() * B.norm())).square())
    assert torch.stack(squares).mean().sqrt().item() == pytest.approx(minilens.composition(model).random, rel=0.05)


# ---- What cannot be


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: minilens.head_weights(model, 3), "layer 3 does not exist: the model's layers are 0 to 2"),
        (lambda model: minilens.qk_circuit(model, 0, 5), "head 5 does not exist: the model's heads are 0 to 4"),
        (lambda model: minilens.ov_circuit(model, -1, 0), "layer -1 does not exist: the model's layers are 0 to 2"),
        (lambda model: minilens.ov_circuit(model, 0, 0).row(101), "token is 101, which is out of range: the model's"),
    ],
)
def test_bad_input(model: Any, call: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        call(model)
    assert str(error.value).startswith(message)


def test_weights_that_are_not_finite(model: Any) -> None:
    minilens.head_weights(model, 1).W_O[HEAD, 0, 0] = torch.nan
    for call, what in (
        (minilens.copying_scores, "the OV circuits of block 1"),
        (minilens.composition, "the weights of the heads of block 1"),
        (lambda model: minilens.ov_circuit(model, 1, HEAD), f"the values of head 1.{HEAD}"),
    ):
        with pytest.raises(ValueError, match=f"^{what} are not finite: there is a NaN or an infinity in the weights"):
            call(model)
    minilens.head_weights(model, 1).W_Q[HEAD, 0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"^the queries and keys of head 1\.3 are not finite"):
        minilens.qk_circuit(model, 1, HEAD)


def test_half_precision() -> None:
    """Weights in bfloat16 give circuits in float32, close to those of the model in float32."""
    half, single = (minilens.load("tales-gpt2", dtype=dtype)[0] for dtype in (torch.bfloat16, torch.float32))
    assert (minilens.copying_scores(half) - minilens.copying_scores(single)).abs().max() < 0.05
    ours, theirs = (minilens.composition(model).value.nan_to_num() for model in (half, single))
    assert ours.dtype == torch.float32 and (ours - theirs).abs().max() < 0.01


def test_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # tiles as they are
    tried = [doctest.testmod(module, extraglobs={"minilens": minilens}) for module in (circuits, composition)]
    assert [(result.failed, result.attempted > 0) for result in tried] == [(0, True), (0, True)]

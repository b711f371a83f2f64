"""The lens: each row is the model's own decoder on one residual, and each number is what its name says."""

import math

import pytest
import torch
from conftest import FAMILIES, Tiny

import minilens
from minilens import vocab
from minilens.lens import LENS_SITES


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tiny: Tiny) -> minilens.Model:
    return minilens.load(tiny(request.param)[1])[0]


@pytest.fixture
def text(tokens: torch.Tensor) -> torch.Tensor:
    return tokens[:1]


def test_rows_are_the_residuals_in_order(model: minilens.Model, tokens: torch.Tensor) -> None:
    trace = minilens.trace(model, tokens)
    rows = list(minilens.lens_rows(model, tokens))
    assert [row.label for row in rows] == ["embed", "0.resid_post", "1.resid_post", "2.resid_post"]
    assert [row.layer for row in rows] == [-1, 0, 1, 2]
    residuals = [trace.embed, *(block.resid_post for block in trace.blocks)]
    for row, resid in zip(rows, residuals, strict=True):
        assert torch.equal(row.logits, model.unembed(resid))


def test_sub_block_rows(model: minilens.Model, tokens: torch.Tensor) -> None:
    trace = minilens.trace(model, tokens)
    rows = {row.label: row.logits for row in minilens.lens_rows(model, tokens, sites=LENS_SITES)}
    assert list(rows) == ["embed", *(f"{layer}.{site}" for layer in range(3) for site in LENS_SITES)]
    for block in trace.blocks:
        for site in LENS_SITES:
            assert torch.equal(rows[f"{block.layer}.{site}"], model.unembed(getattr(block, site)))


@pytest.mark.parametrize("sites", [("resid_post",), ("resid_mid",), ("resid_pre", "resid_mid")])
@pytest.mark.parametrize("decoder", ["final", "block:1", "block:2", "block:3"])
@pytest.mark.parametrize("layers", [None, [0], []])
def test_the_last_row_is_the_model(
    model: minilens.Model, tokens: torch.Tensor, sites: tuple[str, ...], decoder: str, layers: list[int] | None
) -> None:
    *_, last = minilens.lens_rows(model, tokens, sites=sites, decoder=decoder, layers=layers)
    assert torch.equal(last.logits, minilens.trace(model, tokens).logits)


def test_the_extended_decoder_runs_the_last_blocks_by_hand(model: minilens.Model, tokens: torch.Tensor) -> None:
    trace = minilens.trace(model, tokens)
    rows = list(minilens.lens_rows(model, tokens, decoder="block:1", sites=("resid_mid", "resid_post")))
    assert [row.label for row in rows] == ["embed", "0.resid_mid", "0.resid_post", "1.resid_mid", "1.resid_post"]
    for row in rows:
        resid = trace.embed if row.layer < 0 else getattr(trace.blocks[row.layer], row.label.split(".")[1])
        assert torch.equal(row.logits, model.unembed(model.block(2, resid).resid_post))


def test_layers_choose_rows_and_change_no_number(model: minilens.Model, tokens: torch.Tensor) -> None:
    every = {row.label: row.logits for row in minilens.lens_rows(model, tokens)}
    some = list(minilens.lens_rows(model, tokens, layers=[1]))
    assert [row.label for row in some] == ["embed", "1.resid_post", "2.resid_post"]
    assert all(torch.equal(row.logits, every[row.label]) for row in some)


def test_a_row_is_decoded_when_it_is_asked_for(model: minilens.Model, tokens: torch.Tensor) -> None:
    decoded = []
    unembed = type(model).unembed

    class Watched(type(model)):  # type: ignore[misc]
        def unembed(self, resid: torch.Tensor) -> torch.Tensor:
            decoded.append(resid)
            return unembed(self, resid)

    watched = Watched(**{name: getattr(model, name) for name in model.__dataclass_fields__ if name != "family"})
    rows = minilens.lens_rows(watched, tokens)
    assert not decoded
    next(rows)
    assert len(decoded) == 1


@pytest.mark.parametrize("decoder", ["final", "block:1"])
def test_every_number_of_the_table_is_right(model: minilens.Model, text: torch.Tensor, decoder: str) -> None:
    """Against float64 and the definitions: probabilities by exp and sum, ranks by sorting."""
    table = minilens.logit_lens(model, text, decoder=decoder, top_k=7, sites=("resid_mid", "resid_post"))
    rows = list(minilens.lens_rows(model, text, decoder=decoder, sites=("resid_mid", "resid_post")))
    assert table.labels == tuple(row.label for row in rows)
    assert table.layers == tuple(row.layer for row in rows)
    assert torch.equal(table.tokens, text[0])
    final = rows[-1].logits[0].double()
    p_final = final.exp() / final.exp().sum(-1, keepdim=True)
    assert torch.equal(table.final_tokens, final.argmax(-1))
    assert torch.equal(table.next_tokens[:-1], text[0, 1:])
    assert table.next_tokens[-1] == -1
    for r, row in enumerate(rows):
        logits = row.logits[0].double()
        p = logits.exp() / logits.exp().sum(-1, keepdim=True)
        order = logits.argsort(-1, descending=True)
        assert torch.equal(table.top.tokens[r], order[:, :7])
        assert torch.allclose(table.top.prob[r].double(), p.gather(-1, order[:, :7]), rtol=1e-5, atol=0)
        assert torch.equal(table.top.logit[r].double(), logits.gather(-1, order[:, :7]))
        for standing, tokens in ((table.final, table.final_tokens), (table.next, table.next_tokens)):
            for pos, token in enumerate(tokens.tolist()):
                if token < 0:
                    assert standing.rank[r, pos] == 0
                    assert standing.logit[r, pos].isnan()
                    assert standing.prob[r, pos].isnan()
                    continue
                assert order[pos, standing.rank[r, pos] - 1] == token
                assert standing.logit[r, pos] == row.logits[0, pos, token]
                assert math.isclose(standing.prob[r, pos].item(), p[pos, token].item(), rel_tol=1e-5)
        assert torch.allclose(table.entropy[r].double(), -(p * p.log()).sum(-1), rtol=1e-5, atol=1e-6)
        assert torch.allclose(table.kl_final[r].double(), (p_final * (p_final / p).log()).sum(-1), rtol=1e-4, atol=1e-6)
    assert (table.kl_final[-1] == 0).all()
    assert (table.final.rank[-1] == 1).all()


def test_positions_choose_columns_and_change_no_number(model: minilens.Model, text: torch.Tensor) -> None:
    whole = minilens.logit_lens(model, text)
    some = minilens.logit_lens(model, text, positions=[3, -1, 0])
    columns = [3, 32, 0]
    assert some.positions.tolist() == columns
    for name in ("tokens", "final_tokens", "next_tokens"):
        assert torch.equal(getattr(some, name), getattr(whole, name)[columns])
    assert torch.equal(some.kl_final, whole.kl_final[:, columns])
    assert torch.equal(some.top.tokens, whole.top.tokens[:, columns])
    assert torch.equal(some.next.rank, whole.next.rank[:, columns])


def test_a_prefix_has_the_same_rows(model: minilens.Model, text: torch.Tensor) -> None:
    whole, prefix = minilens.logit_lens(model, text), minilens.logit_lens(model, text[:, :20])
    assert (whole.kl_final[:, :20] - prefix.kl_final).abs().max() < 1e-5
    assert torch.equal(whole.top.tokens[:, :20, 0], prefix.top.tokens[:, :, 0])


def test_a_rank_counts_the_strictly_better() -> None:
    logits = torch.tensor([[3.0, 5.0, 5.0, 1.0, 3.0, 3.0]])
    ranks = [vocab.standing(logits, torch.tensor([token])).rank.item() for token in range(6)]
    assert ranks == [3, 1, 1, 6, 3, 3]


def test_large_and_small_divergences() -> None:
    sure = torch.tensor([[50.0, 0.0, 0.0, 0.0]])
    other = torch.tensor([[0.0, 50.0, 0.0, 0.0]])
    assert vocab.kl(sure, other).item() == pytest.approx(50, rel=1e-6)
    assert vocab.kl(sure, sure).item() == 0
    assert vocab.entropy(torch.zeros(1, 4)).item() == pytest.approx(math.log(4), rel=1e-6)
    assert vocab.entropy(sure).item() == pytest.approx(3 * 50 * math.exp(-50), rel=1e-1)


def test_the_table_is_in_float32_whatever_the_weights(tiny: Tiny, text: torch.Tensor) -> None:
    model, _ = minilens.load(tiny("gpt2")[1], dtype=torch.bfloat16)
    table = minilens.logit_lens(model, text)
    assert table.kl_final.dtype == table.entropy.dtype == table.final.logprob.dtype == torch.float32


def test_several_texts_are_refused(model: minilens.Model, tokens: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"one text, of shape \[1, pos\]; got 2"):
        minilens.logit_lens(model, tokens)


def test_what_does_not_exist_is_refused_before_the_first_row(model: minilens.Model, tokens: torch.Tensor) -> None:
    for wrong in (dict(decoder="block:4"), dict(sites=("q",)), dict(layers=[3])):
        with pytest.raises(ValueError):
            minilens.lens_rows(model, tokens, **wrong)


def test_one_site_and_a_range_of_positions_are_taken(model: minilens.Model, text: torch.Tensor) -> None:
    one = minilens.logit_lens(model, text, sites="resid_mid", positions=range(1, 3), layers=iter([1]))
    assert one.labels == ("embed", "1.resid_mid", "2.resid_post")
    assert one.positions.tolist() == [1, 2]


@pytest.mark.parametrize("family", FAMILIES)
def test_ties_do_not_divide_the_table(tiny: Tiny, family: str) -> None:
    """In bfloat16 logits often tie; what the top row says is best is also what the table follows."""
    model, _ = minilens.load(tiny(family)[1], dtype=torch.bfloat16)
    tokens = torch.randint(0, 101, (20, 40), generator=torch.Generator().manual_seed(0))
    ties = 0
    for text in tokens.split(1):
        table = minilens.logit_lens(model, text)
        assert torch.equal(table.top.tokens[-1, :, 0], table.final_tokens)
        assert (table.final.rank[-1] == 1).all()
        ties += int((table.top.logit[-1, :, 0] == table.top.logit[-1, :, 1]).sum())
    assert ties > 0


def test_divergence_is_never_negative() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2000, 50, generator=generator)
    nearby = logits + 1e-7 * torch.randn(2000, 50, generator=generator)
    assert (vocab.kl(logits, nearby) >= 0).all()

"""The lens: each row is the model's own decoder on one residual, and each number is what its name says."""

import dataclasses
import math

import pytest
import torch
from conftest import FAMILIES, Tiny

import minilens
from minilens.table import DEFAULT_STATS
from minilens.traces import ROW_SITES
from minilens.vocab import TokenStats


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
    rows = {row.label: row.logits for row in minilens.lens_rows(model, tokens, sites=ROW_SITES)}
    assert list(rows) == ["embed", *(f"{layer}.{site}" for layer in range(3) for site in ROW_SITES)]
    for block in trace.blocks:
        for site in ROW_SITES:
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

    watched = Watched(**{field.name: getattr(model, field.name) for field in dataclasses.fields(model)})
    rows = minilens.lens_rows(watched, tokens)
    assert not decoded
    next(rows)
    assert len(decoded) == 1


def plainly(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The statistics of rows of logits [pos, d_vocab], by exp and sum in float64."""
    p = torch.stack([row.double().exp() / row.double().exp().sum(-1, keepdim=True) for row in rows])
    mean = (p + p[-1:]) / 2

    def kl(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a * (a / b).log()).sum(-1)

    return {
        "entropy": -(p * p.log()).sum(-1),
        "kl_final": kl(p[-1:], p),
        "kl_row_final": kl(p, p[-1:]),
        "kl_input": kl(p[:1], p),
        "kl_row_input": kl(p, p[:1]),
        "change": torch.cat([torch.full_like(p[:1, :, 0], torch.nan), kl(p[1:], p[:-1])]),
        "js": (kl(p, mean) + kl(p[-1:], mean)) / 2,
    }


OPTIONS = [
    {},
    {"decoder": "block:1", "sites": ("resid_mid", "resid_post")},
    {"decoder": "mlp", "sites": ROW_SITES},
    {"norm": "plain", "centre": True},
    {"norm": "plain", "decoder": "block:2", "layers": [0]},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_number_of_the_table_is_right(
    model: minilens.Model, text: torch.Tensor, options: dict[str, object]
) -> None:
    """Against float64 and the definitions: probabilities by exp and sum, ranks by sorting."""
    table = minilens.logit_lens(model, text, **options, top_k=7, stats="all", track=[5, 99])
    rows = list(minilens.lens_rows(model, text, **options))
    assert table.labels == tuple(row.label for row in rows)
    assert table.layers == tuple(row.layer for row in rows)
    assert torch.equal(table.tokens, text[0])
    final = rows[-1].logits[0].double()
    assert torch.equal(table.final_tokens, final.argmax(-1))
    assert torch.equal(table.next_tokens[:-1], text[0, 1:])
    assert table.next_tokens[-1] == -1
    standings = [(table.final, table.final_tokens), (table.next, table.next_tokens), (table.input, table.tokens)]
    for n, token in enumerate(table.track):
        standings.append((TokenStats(*(part[..., n] for part in table.tracked)), torch.full_like(table.tokens, token)))
    for r, row in enumerate(rows):
        logits = row.logits[0].double()
        p = logits.exp() / logits.exp().sum(-1, keepdim=True)
        order = logits.argsort(-1, descending=True)
        assert torch.equal(table.top.tokens[r], order[:, :7])
        assert torch.allclose(table.top.prob[r].double(), p.gather(-1, order[:, :7]), rtol=1e-5, atol=0)
        assert torch.allclose(table.top.logit[r].double(), logits.gather(-1, order[:, :7]), rtol=0, atol=1e-5)
        for standing, tokens in standings:
            for pos, token in enumerate(tokens.tolist()):
                if token < 0:
                    assert standing.rank[r, pos] == 0
                    assert standing.logit[r, pos].isnan()
                    assert standing.prob[r, pos].isnan()
                    continue
                assert order[pos, standing.rank[r, pos] - 1] == token
                assert math.isclose(standing.logit[r, pos], logits[pos, token], abs_tol=1e-5)
                assert math.isclose(standing.prob[r, pos].item(), p[pos, token].item(), rel_tol=1e-5)
    for name, expected in plainly([row.logits[0] for row in rows]).items():
        numbers = getattr(table, name).double()
        assert torch.allclose(numbers, expected, rtol=1e-5, atol=3e-6, equal_nan=True), name
    assert (table.kl_final[-1] == 0).all()
    assert (table.final.rank[-1] == 1).all()
    assert torch.equal(table.cross_entropy[:, :-1], -table.next.logprob[:, :-1])
    assert table.cross_entropy[:, -1].isnan().all()
    agrees = torch.stack([row.logits[0].argmax(-1) == table.final_tokens for row in rows])
    assert torch.equal(table.agrees, agrees)
    for pos, settled in enumerate(table.settled.tolist()):
        assert agrees[settled:, pos].all()
        assert settled == 0 or not agrees[settled - 1, pos]


def test_a_statistic_that_was_not_asked_for_says_so(model: minilens.Model, text: torch.Tensor) -> None:
    table = minilens.logit_lens(model, text, stats=("top", "kl_final"))
    assert set(table.stats) == {"top", "kl_final"}
    with pytest.raises(AttributeError, match='made without "tracked": give logit_lens tokens to track'):
        _ = table.tracked
    for name in ("js", "final", "entropy"):
        with pytest.raises(AttributeError, match=f'made without "{name}": name it in the stats'):
            getattr(table, name)
    with pytest.raises(AttributeError, match='made without "next"'):
        _ = table.cross_entropy
    with pytest.raises(ValueError, match='there is no statistic "kl_finale"; there are top, final'):
        minilens.logit_lens(model, text, stats=("kl_finale",))
    assert set(minilens.logit_lens(model, text).stats) == {*DEFAULT_STATS}
    assert set(minilens.logit_lens(model, text, stats="js").stats) == {"js"}


def test_the_mlp_decoder_runs_the_last_mlp_by_hand(model: minilens.Model, tokens: torch.Tensor) -> None:
    trace = minilens.trace(model, tokens)
    rows = list(minilens.lens_rows(model, tokens, decoder="mlp", sites=("resid_pre", "resid_post")))
    labels = ["embed", *(f"{layer}.{site}" for layer in range(2) for site in ("resid_pre", "resid_post"))]
    assert [row.label for row in rows] == [*labels, "2.resid_pre", "2.resid_mid"]
    assert torch.equal(rows[-1].logits, trace.logits)
    for row in rows[1:-1]:
        resid = getattr(trace.blocks[row.layer], row.label.split(".")[1])
        silent = minilens.at(2, "attn_out", torch.zeros_like)
        assert torch.equal(row.logits, minilens.decode(model, resid, start=2, edit=silent))


def test_the_plain_norm_has_neither_gain_nor_bias(model: minilens.Model, tokens: torch.Tensor) -> None:
    trace = minilens.trace(model, tokens)
    *rows, last = minilens.lens_rows(model, tokens, norm="plain")
    for row, resid in zip(rows, [trace.embed, *(block.resid_post for block in trace.blocks)], strict=False):
        x = resid.double()
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
        expected = x @ model.W_U.double() + (0 if model.b_U is None else model.b_U)
        assert torch.allclose(row.logits.double(), expected, atol=1e-3)
    assert torch.equal(last.logits, trace.logits)


def test_centre_and_transport_change_the_residual_that_is_decoded(model: minilens.Model, text: torch.Tensor) -> None:
    trace = minilens.trace(model, text)
    seen = []

    def double(site: minilens.Site, resid: torch.Tensor) -> torch.Tensor:
        seen.append(site)
        return 2 * resid

    centred = list(minilens.lens_rows(model, text, centre=True, transport=double))
    assert seen == [(-1, "embed"), (0, "resid_post"), (1, "resid_post")]
    resid = trace.blocks[1].resid_post
    assert torch.equal(centred[2].logits, model.unembed(2 * (resid - resid.mean(1, keepdim=True))))
    assert torch.equal(centred[3].logits, trace.logits)
    with pytest.raises(ValueError, match=r"the edit at -1\.embed must keep \[1, 33, 30\]"):
        list(minilens.lens_rows(model, text, transport=lambda site, resid: resid[:, :2]))
    for at in ((1, "resid_mid"), (2, "resid_post"), (9, "resid_post")):  # no row, the last row, and no block
        with pytest.raises(
            ValueError, match=rf"{at[0]}\.{at[1]} matches no row that is transported; those are embed, 0"
        ):
            minilens.logit_lens(model, text, transport=minilens.at(*at, lambda x: x))
    moved = list(minilens.lens_rows(model, text, transport=minilens.at(1, "resid_post", lambda x: 2 * x)))
    assert torch.equal(moved[2].logits, model.unembed(2 * resid))
    with pytest.raises(ValueError, match="leaves nothing of a text of one token"):
        minilens.logit_lens(model, text[:, :1], centre=True)


def test_several_texts_give_a_table_each(model: minilens.Model, tokens: torch.Tensor) -> None:
    """Side by side or, with an edit, each by itself; what stands in the place of the padding is never read."""
    padded = torch.cat([tokens, tokens.flip(1)])
    padded[1, 20:] = padded[2, 5:] = 10**6
    ends = [33, 20, 5, 20]
    last = minilens.zero(1, "attn_out", positions=-1)  # of each text's own
    for how in (
        dict(track=[7], stats="all"),
        dict(positions=[-1, 0], sites=("resid_mid", "mlp_out")),
        dict(centre=True, norm="plain"),
        dict(transport=minilens.at(0, "resid_post", lambda x: x - x.mean(1, keepdim=True))),
        dict(edit=last, decoder="block:1"),
    ):
        tables = minilens.logit_lenses(model, padded, ends, **how)
        for table, text, end in zip(tables, padded, ends, strict=True):
            alone = minilens.logit_lens(model, text[None, :end], **how)
            for name in ("labels", "layers", "track"):
                assert getattr(table, name) == getattr(alone, name)
            for name in ("positions", "tokens", "next_tokens", "final_tokens"):
                assert torch.equal(getattr(table, name), getattr(alone, name))
            assert table.stats.keys() == alone.stats.keys()
            for ours, theirs in zip(table.stats.values(), alone.stats.values(), strict=True):
                pairs = [(ours, theirs)] if isinstance(ours, torch.Tensor) else zip(ours, theirs, strict=True)
                for one, other in pairs:
                    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5, equal_nan=True)
    twice = minilens.logit_lenses(model, padded, ends, track=iter([7, 7, 8]), layers=iter([0]))
    assert [table.track for table in twice] == [(7, 8)] * 4
    assert [table.labels for table in twice] == [("embed", "0.resid_post", "2.resid_post")] * 4
    with pytest.raises(ValueError, match="there are 4 texts and 1 lengths"):
        minilens.logit_lenses(model, padded, [33])


def test_positions_choose_columns_and_change_no_number(model: minilens.Model, text: torch.Tensor) -> None:
    whole = minilens.logit_lens(model, text)
    some = minilens.logit_lens(model, text, positions=[3, -1, 0])
    columns = [3, 32, 0]
    assert some.positions.tolist() == columns
    for name in ("tokens", "final_tokens", "next_tokens"):
        assert torch.equal(getattr(some, name), getattr(whole, name)[columns])
    assert torch.allclose(some.kl_final, whole.kl_final[:, columns], rtol=0, atol=1e-5)
    assert torch.equal(some.top.tokens, whole.top.tokens[:, columns])
    assert torch.equal(some.next.rank, whole.next.rank[:, columns])


def test_a_prefix_has_the_same_rows(model: minilens.Model, text: torch.Tensor) -> None:
    whole, prefix = minilens.logit_lens(model, text), minilens.logit_lens(model, text[:, :20])
    assert (whole.kl_final[:, :20] - prefix.kl_final).abs().max() < 1e-5
    assert torch.equal(whole.top.tokens[:, :20, 0], prefix.top.tokens[:, :, 0])


def test_the_table_is_in_float32_whatever_the_weights(tiny: Tiny, text: torch.Tensor) -> None:
    model, _ = minilens.load(tiny("gpt2")[1], dtype=torch.bfloat16)
    table = minilens.logit_lens(model, text)
    assert table.kl_final.dtype == table.entropy.dtype == table.final.logprob.dtype == torch.float32


@pytest.mark.parametrize("family", FAMILIES)
def test_of_half_precision_the_lens_is_exact_from_the_final_norm_on(
    tiny: Tiny, text: torch.Tensor, family: str
) -> None:
    """Products, softmax and divergences of rounded vectors and weights are those of float64."""
    model, _ = minilens.load(tiny(family)[1], dtype=torch.bfloat16)
    trace = minilens.trace(model, text)
    x = torch.cat([model.final_norm(resid) for resid in (trace.embed, *(block.resid_post for block in trace.blocks))])
    assert x.dtype == torch.bfloat16
    logits = x.double() @ model.W_U.double() + (0 if model.b_U is None else model.b_U.double())
    logp = logits.log_softmax(-1)
    table = minilens.logit_lens(model, text, stats="all")
    assert (table.kl_final - (logp[-1].exp() * (logp[-1] - logp)).sum(-1)).abs().max() < 1e-4
    assert (table.entropy + (logp.exp() * logp).sum(-1)).abs().max() < 1e-4
    assert (table.top.logit - logits.topk(5).values).abs().max() < 1e-4


def test_several_texts_are_refused(model: minilens.Model, tokens: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"one text, of shape \[1, pos\]; got 2"):
        minilens.logit_lens(model, tokens)


def test_what_does_not_exist_is_refused_before_the_first_row(model: minilens.Model, tokens: torch.Tensor) -> None:
    for wrong in (dict(decoder="block:4"), dict(sites=("q",)), dict(layers=[3]), dict(norm="none")):
        with pytest.raises(ValueError):
            minilens.lens_rows(model, tokens, **wrong)


def test_one_site_and_a_range_of_positions_are_taken(model: minilens.Model, text: torch.Tensor) -> None:
    one = minilens.logit_lens(model, text, sites="resid_mid", positions=range(1, 3), layers=iter([1]))
    assert one.labels == ("embed", "1.resid_mid", "2.resid_post")
    assert one.positions.tolist() == [1, 2]


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_does_not_divide_the_table(tiny: Tiny, family: str) -> None:
    """What the top row says is best is also what the table follows; logits are float32, where few tie."""
    model, _ = minilens.load(tiny(family)[1], dtype=torch.bfloat16)
    for text in torch.randint(0, 101, (20, 40), generator=torch.Generator().manual_seed(0)).split(1):
        table = minilens.logit_lens(model, text)
        assert torch.equal(table.top.tokens[-1, :, 0], table.final_tokens)
        assert (table.final.rank[-1] == 1).all()
        logits = minilens.trace(model, text).logits[0].float()
        best = logits.gather(-1, table.final_tokens[:, None])[:, 0]
        assert (logits.amax(-1) - best <= logits.amax(-1).abs() / 64).all()  # bfloat16 has eight bits


def test_the_precision_of_products_is_a_choice(
    model: minilens.Model, text: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, rounded = minilens.logit_lens(model, text), minilens.logit_lens(model, text, precision="emulated")
    assert (full.way, rounded.way) == ("decoder final", "decoder final, emulated")
    far = (full.kl_final - rounded.kl_final).abs().max()
    assert 0 < far < 0.1
    (again,) = minilens.logit_lenses(model, text, [33], precision="emulated")
    assert torch.equal(again.kl_final, rounded.kl_final)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)  # as if the library did not know of it
    with pytest.raises(
        ValueError, match=r'gains nothing on this cpu, .*: leave it out, or take "emulated" for the same'
    ):
        minilens.logit_lens(model, text, precision="bfloat16")
    with pytest.raises(ValueError, match="there is no precision 'half'; there are full, bfloat16, emulated"):
        minilens.logit_lens(model, text, precision="half")

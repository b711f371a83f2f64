"""A learned lens as a value: what it does to a row, what it refuses, and how it is kept."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAMILIES, Tiny
from safetensors.torch import load_file, save_file

import minilens
from minilens.learned.affine import LearnedLens, RowMap, Subject, read_lens
from minilens.learned.named import load_lens
from minilens.lens import EMBED

POST = [minilens.Site(layer, "resid_post") for layer in range(3)]


@pytest.fixture(params=FAMILIES)
def model(tiny: Tiny, request: pytest.FixtureRequest) -> minilens.Model:
    return minilens.load(tiny(request.param)[1], dtype=torch.float64)[0]


@pytest.fixture
def text() -> torch.Tensor:
    return torch.randint(0, 101, (1, 33), generator=torch.Generator().manual_seed(2022))


def drawn(model: minilens.Model, sites: list[minilens.Site] | None = None, **how: Any) -> LearnedLens:
    """Maps near the identity, each another one."""
    generator = torch.Generator().manual_seed(2023)
    d = model.W_U.shape[0]
    maps = {
        site: RowMap(torch.randn(d, d, generator=generator) / 10, torch.randn(d, generator=generator))
        for site in sites or [EMBED, *POST[:2]]
    }
    return LearnedLens(**{"kind": "affine", "maps": maps, "model": Subject.of(model), **how})


def test_each_row_is_decoded_from_h_A_plus_b(model: minilens.Model, text: torch.Tensor) -> None:
    lens, trace = drawn(model), minilens.trace(model, text)
    rows = list(minilens.lens_rows(model, text, transport=lens))
    streams = (trace.embed, *(block.resid_post for block in trace.blocks[:-1]))
    for row, (site, of_row), h in zip(rows[:-1], lens.maps.items(), streams, strict=True):
        A = torch.eye(30).double() + of_row.weight.T
        assert torch.allclose(of_row.A.double(), A)
        assert torch.allclose(row.logits, model.unembed(h @ A + of_row.bias), atol=1e-9), site
        again = RowMap.of(A, of_row.bias.double())
        assert torch.allclose(again.weight, of_row.weight.double(), atol=1e-6)
    assert torch.equal(rows[-1].logits, trace.logits)
    assert len(rows) == 4


def test_the_identity_is_the_plain_lens_and_the_table_takes_it(model: minilens.Model, text: torch.Tensor) -> None:
    nothing = {site: RowMap(torch.zeros(30, 30), torch.zeros(30)) for site in (EMBED, *POST[:2])}
    table = minilens.logit_lens(model, text, transport=drawn(model, maps=nothing))
    plain = minilens.logit_lens(model, text)
    assert torch.equal(table.kl_final, plain.kl_final)
    moved = minilens.logit_lens(model, text, transport=drawn(model))
    assert (moved.kl_final[:-1] != plain.kl_final[:-1]).all()
    assert torch.equal(moved.kl_final[-1], plain.kl_final[-1])


def test_half_precision_is_mapped_in_float32(tiny: Tiny, text: torch.Tensor) -> None:
    model, _ = minilens.load(tiny("gpt2")[1], dtype=torch.bfloat16)
    lens = drawn(model)
    h = minilens.trace(model, text).embed
    of_row = lens.maps[EMBED]
    assert torch.equal(lens(EMBED, h), (h.float() + (h.float() @ of_row.weight.T + of_row.bias)).bfloat16())
    assert len(list(minilens.lens_rows(model, text, transport=lens))) == 4
    assert lens.model.digest is None  # the weights were rounded, so they cannot tell which model it is


def test_fewer_rows_need_fewer_maps(model: minilens.Model, text: torch.Tensor) -> None:
    lens = drawn(model)
    assert [row.label for row in minilens.lens_rows(model, text, transport=lens, layers=[1])] == [
        "embed", "1.resid_post", "2.resid_post",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(sites="resid_mid"), "has no map for the row 0.resid_mid; it has them for embed, 0.resid_post, 1.resid_"),
        (dict(decoder="mlp"), 'the lens affine is for the decoder "final"; got "mlp"'),
        (dict(norm="plain"), 'the lens affine is for the norm "final"; got "plain"'),
        (dict(centre=True), "maps residuals as they are: centre must be False"),
    ],
)
def test_other_options_are_refused(tiny: Tiny, text: torch.Tensor, options: dict[str, Any], message: str) -> None:
    model, _ = minilens.load(tiny("gpt2")[1])
    for call in (minilens.logit_lens, lambda *args, **how: list(minilens.lens_rows(*args, **how))):
        with pytest.raises(ValueError, match=message):
            call(model, text, transport=drawn(model), **options)


def test_another_model_is_refused(tiny: Tiny, text: torch.Tensor) -> None:
    model, _ = minilens.load(tiny("gpt2")[1])
    lens = drawn(model)
    with pytest.raises(ValueError, match="for another model: family gpt2 and not gpt_neo, other weights"):
        minilens.logit_lens(minilens.load(tiny("gpt_neo")[1])[0], text, transport=lens)
    with pytest.raises(ValueError, match="for another model: d_model 30 and not 10"):
        minilens.logit_lens(minilens.load(tiny("gpt2", n_embd=10)[1])[0], text, transport=lens)
    with pytest.raises(ValueError, match="for another model: other weights"):
        minilens.logit_lens(replace(model, W_E=model.W_E + 1), text, transport=lens)
    minilens.logit_lens(minilens.load(tiny("gpt2")[1], dtype=torch.float64)[0], text, transport=lens)
    with pytest.raises(ValueError, match="is for residuals of width 30; got 29"):
        lens(EMBED, torch.zeros(1, 2, 29))
    with pytest.raises(ValueError, match=r"no map for the row 2\.resid_post"):
        lens(POST[2], torch.zeros(1, 2, 30))


@pytest.mark.parametrize(
    "how, message",
    [
        (dict(kind="linear"), 'no learned lens of the kind "linear"; there are mean, affine, tuned, jacobian'),
        (dict(maps={}), "needs a map for at least one row"),
        (dict(norm="none"), 'no norm "none"'),
        (dict(maps={minilens.Site(0, "z"): RowMap(torch.zeros(30, 30), torch.zeros(30))}), "the lens has no row 0.z"),
        (dict(maps={EMBED: RowMap(torch.zeros(30, 29), torch.zeros(30))}), r"shape \[30, 30\]; it has \[30, 29\]"),
        (dict(maps={EMBED: RowMap(torch.zeros(30, 30), torch.tensor([torch.nan] * 30))}), "bias .* holds a NaN"),
    ],
)
def test_what_is_no_lens_is_refused(tiny: Tiny, how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        drawn(minilens.load(tiny("gpt2")[1])[0], **how)


def test_its_repr_is_short(tiny: Tiny) -> None:
    lens = drawn(minilens.load(tiny("gpt2")[1])[0])
    assert repr(lens) == (
        "LearnedLens affine: affine, for gpt2 of d_model 30; 3 rows: embed, 0.resid_post, 1.resid_post"
    )
    assert repr(lens.maps[EMBED]).count("\n") == 2


@pytest.fixture
def kept(tiny: Tiny, tmp_path: Path) -> Path:
    drawn(minilens.load(tiny("gpt2")[1])[0], made={"tokens": 9}).save(tmp_path / "new" / "mine")
    return tmp_path / "new" / "mine"


def test_a_lens_is_kept_in_a_folder(tiny: Tiny, kept: Path) -> None:
    model, _ = minilens.load(tiny("gpt2")[1])
    lens, again = drawn(model), load_lens(kept)
    assert again.maps.keys() == lens.maps.keys()
    for site, of_row in lens.maps.items():
        assert all(torch.equal(one, other) for one, other in zip(of_row, again.maps[site], strict=True))
    assert (again.kind, again.decoder, again.norm, again.model) == (lens.kind, "final", "final", lens.model)
    assert (again.made, again.name) == ({"tokens": 9}, "mine")
    tensors = load_file(kept / "lens.safetensors")
    assert {*tensors} == {
        f"{row}.{part}" for row in ("embed", "0.resid_post", "1.resid_post") for part in RowMap._fields
    }
    lens.save(kept.with_name("half"), dtype=torch.float16)
    half = read_lens(kept.with_name("half")).maps[EMBED].weight
    assert half.dtype == torch.float32 and torch.equal(half, lens.maps[EMBED].weight.half().float())


def test_nothing_is_overwritten_unless_asked(tiny: Tiny, kept: Path) -> None:
    model, _ = minilens.load(tiny("gpt2")[1])
    before = {path: path.read_bytes() for path in kept.iterdir()}
    drawn(model, made={"tokens": 9}).save(kept)  # the same again
    other = drawn(model, [EMBED])
    with pytest.raises(ValueError, match=r"lens\.safetensors exists: give another name, or --overwrite"):
        other.save(kept)
    assert {path: path.read_bytes() for path in kept.iterdir()} == before
    other.save(kept, overwrite=True)
    assert [*read_lens(kept).maps] == [EMBED]
    (kept.parent / "file").touch()
    with pytest.raises(ValueError, match="cannot be made"):
        other.save(kept.parent / "file" / "lens")


def edited(kept: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    record = json.loads((kept / "lens.json").read_text())
    change(record)
    (kept / "lens.json").write_text(json.dumps(record))


def resaved(kept: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    from hashlib import sha256

    tensors = load_file(kept / "lens.safetensors")
    change(tensors)
    save_file(tensors, kept / "lens.safetensors")
    edited(kept, lambda r: r.update(weights=sha256((kept / "lens.safetensors").read_bytes()).hexdigest()))


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no record": (lambda kept: (kept / "lens.json").unlink(), "has no lens.json, so it is not a lens"),
    "no weights": (lambda kept: (kept / "lens.safetensors").unlink(), "has no lens.safetensors"),
    "not JSON": (lambda kept: (kept / "lens.json").write_text("{"), "not readable as JSON"),
    "cut short": (
        lambda kept: (kept / "lens.safetensors").write_bytes((kept / "lens.safetensors").read_bytes()[:-4]),
        "cannot be read as weights",
    ),
    "another file": (
        lambda kept: save_file({"embed.bias": torch.zeros(30)}, kept / "lens.safetensors"),
        "is not the file that .* is about",
    ),
    "schema": (lambda kept: edited(kept, lambda r: r.update(schema=2)), '"schema" is 2; minilens supports 1 only'),
    "kind": (lambda kept: edited(kept, lambda r: r.update(kind="x")), '"kind" is "x"; minilens supports "mean" or'),
    "decoder": (lambda kept: edited(kept, lambda r: r.update(decoder="x")), 'holds no lens: there is no decoder "x"'),
    "no decoder": (lambda kept: edited(kept, lambda r: r.pop("decoder")), 'there is no decoder ""'),
    "sites": (lambda kept: edited(kept, lambda r: r.update(sites=["embed", "embed"])), "a list of names, each once"),
    "a site": (lambda kept: edited(kept, lambda r: r.update(sites=["0.z"])), '"sites" is "0.z"'),
    "model": (lambda kept: edited(kept, lambda r: r.update(model=[])), '"model" is .*; minilens supports an object'),
    "digest": (lambda kept: edited(kept, lambda r: r["model"].update(digest=7)), '"digest" is 7; .* a text'),
    "d_model": (lambda kept: edited(kept, lambda r: r["model"].update(d_model=29)), r"must have the shape \[29, 29\]"),
    "made": (lambda kept: edited(kept, lambda r: r.update(made=3)), '"made" is 3'),
    "one too few": (lambda kept: resaved(kept, lambda t: t.pop("embed.bias")), 'lacks the tensor "embed.bias"'),
    "one too many": (
        lambda kept: resaved(kept, lambda t: t.update(other=torch.zeros(1))),
        'has no place for the tensor "other"',
    ),
    "NaN": (lambda kept: resaved(kept, lambda t: t["embed.bias"].fill_(torch.nan)), "holds a NaN or an infinity"),
    "whole numbers": (
        lambda kept: resaved(kept, lambda t: t.update({"embed.bias": torch.zeros(30, dtype=torch.long)})),
        "embed.bias. holds torch.int64",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_folder_is_refused_in_one_sentence(kept: Path, what: str) -> None:
    break_it, message = BROKEN[what]
    break_it(kept)
    with pytest.raises(minilens.CheckpointError, match=message) as raised:
        load_lens(kept)
    assert "\n" not in str(raised.value)


def test_a_name_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no lens 'tales-gpt2/none': it is not a folder, and not bundled"):
        load_lens("tales-gpt2/none")
    with pytest.raises(minilens.CheckpointError, match="so it is not a lens that minilens wrote"):
        load_lens(tmp_path)

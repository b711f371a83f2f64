"""`verify` passes what is right, and names everything that is planted, each in its own row."""

import dataclasses
import hashlib
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Tensors, changed, tokenizer_json
from conftest import FAMILIES, Tiny
from rich.console import Console
from safetensors.torch import load_file

import minilens
from minilens import Report, gpt2, gpt_neo, ops
from minilens.checkpoint.hub import Files, bundled
from minilens.checkpoint.settings import CheckpointError, Settings
from minilens.checks import published
from minilens.checks.config import Key, fields_set
from minilens.checks.identities import Identity, identities
from minilens.checks.tensors import MOST, Weight, _pieces
from minilens.checks.verify import _published
from minilens.command.main import main
from minilens.loading import FAMILIES as MODULES
from minilens.views.verify import verify_record, verify_view

VERIFY = sys.modules["minilens.checks.verify"]
EMBEDDING = {"gpt2": "transformer.wte.weight", "gpt_neo": "transformer.wte.weight", "ctrl": "transformer.w.weight"}
WEIGHTS = "model.safetensors"
Capture = pytest.CaptureFixture[str]


def as_json(capsys: Capture, *args: str | Path, status: int = 0) -> dict[str, Any]:
    """What `minilens verify ... --json` prints: JSON and nothing else."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    assert main(["verify", *map(str, args), "--json"]) == status
    out, err = capsys.readouterr()
    assert err == ""
    record: dict[str, Any] = json.loads(out, parse_constant=refuse)
    return record


def keys(report: Report) -> dict[str, Key]:
    return {key.key: key for key in report.config}


def tensors(report: Report) -> dict[str, Weight]:
    return {weight.name: weight for weight in report.tensors}


def amiss(found: tuple[Identity, ...] | None) -> list[str]:
    assert found is not None
    return [identity.what for identity in found if not identity.holds]


def stored(path: Path) -> dict[str, tuple[dict[str, Any], bytes]]:
    """The header and the bytes of each tensor in a safetensors file, by the format's own description."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    header.pop("__metadata__", None)
    return {
        name: (entry, raw[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]])
        for name, entry in header.items()
    }


# ---- What is right


@pytest.mark.parametrize("name", sorted(bundled()))
def test_bundled_models_pass(name: str, capsys: Capture) -> None:
    record = as_json(capsys, name)
    assert record["passed"] and record["loads"] and record["faults"] == []
    assert (record["schema"], record["model"], record["family"]) == (1, name, minilens.load(name)[0].family)
    folder = bundled()[name]
    assert {"config.json", WEIGHTS} < {file["name"] for file in record["files"]}
    for file in record["files"]:
        raw = (folder / file["name"]).read_bytes()
        assert (file["size"], file["sha256"]) == (len(raw), hashlib.sha256(raw).hexdigest())
    assert [key["key"] for key in record["config"]] == list(json.loads((folder / "config.json").read_text()))
    assert len(record["tensors"]) == len(stored(folder / WEIGHTS))
    assert {weight["use"] for weight in record["tensors"]} == {"read"}
    assert len(record["identities"]) == 13 and all(identity["holds"] for identity in record["identities"])
    assert record["published"] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_models_pass(tiny: Tiny, family: str) -> None:
    report = minilens.verify(tiny(family)[1])
    assert report.faults == () and report.loads
    assert report.family == family
    assert report.identities is not None and len(report.identities) == 11  # there is no tokenizer


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_tensors_have_the_hash_of_their_bytes(tiny: Tiny, tmp_path: Path, dtype: torch.dtype) -> None:
    folder = changed(
        tiny("gpt2")[1],
        tmp_path / "model",
        tensors=lambda stored: {name: tensor.to(dtype) for name, tensor in stored.items()},
    )
    expected = stored(folder / WEIGHTS)
    found = tensors(minilens.verify(folder))
    assert found.keys() == expected.keys()
    for name, (entry, raw) in expected.items():
        weight = found[name]
        assert weight.sha256 == hashlib.sha256(raw).hexdigest()
        assert (weight.file, list(weight.shape), weight.dtype) == (WEIGHTS, entry["shape"], str(dtype)[6:])
        assert (weight.not_finite, weight.use, weight.fault) == (0, "read", None)


def test_what_is_no_weight_is_hashed_all_the_same(tiny: Tiny, tmp_path: Path) -> None:
    others = [torch.uint8, torch.bool, torch.int64, torch.complex64, torch.float8_e4m3fn]
    more = {str(dtype): torch.tensor([[1.0], [0.0]]).to(dtype) for dtype in others}
    more |= {
        "none": torch.zeros(0, 3),
        "large": torch.full((2,), 1e300, dtype=torch.float64),
        "one": torch.tensor(torch.nan),
        "nan8": torch.tensor([torch.nan]).to(others[-1]),
    }
    folder = changed(tiny("gpt2")[1], tmp_path / "model", tensors=lambda tensors: tensors | more)
    found, expected = tensors(minilens.verify(folder)), stored(folder / WEIGHTS)
    for name in more:
        assert found[name].sha256 == hashlib.sha256(expected[name][1]).hexdigest()
        assert (found[name].use, found[name].not_finite) == ("no place", int(name in ("one", "nan8")))


def test_numbers_of_half_a_byte(tiny: Tiny, tmp_path: Path) -> None:
    """Two of them are one element to torch, which computes nothing of them; older ones do not know them."""
    folder = changed(tiny("gpt2")[1], tmp_path / "model")
    raw = (folder / WEIGHTS).read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    end = len(raw) - start
    header["packed"] = {"dtype": "F4", "shape": [2, 4], "data_offsets": [end, end + 4]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + raw[start:] + b"\x01\x23\x45\x67")
    report = minilens.verify(folder)
    if hasattr(torch, "float4_e2m1fn_x2"):
        packed = tensors(report)["packed"]
        assert packed.sha256 == hashlib.sha256(b"\x01\x23\x45\x67").hexdigest()
        assert (packed.dtype, packed.not_finite, packed.use) == ("float4_e2m1fn_x2", 0, "no place")
    assert len(report.faults) == 1


def test_shards(tiny: Tiny, tmp_path: Path) -> None:
    reference, original = tiny("gpt_neo")
    reference.save_pretrained(tmp_path, max_shard_size="50KB")
    report, whole = minilens.verify(tmp_path), tensors(minilens.verify(original))
    assert report.faults == ()
    shards = {path.name for path in tmp_path.glob("model-*.safetensors")}
    assert len(shards) > 2
    assert {file.name for file in report.files} == {*shards, "config.json", f"{WEIGHTS}.index.json"}
    for name, weight in tensors(report).items():
        assert name in stored(tmp_path / weight.file)
        assert weight._replace(file=WEIGHTS) == whole[name]
    assert len(report.tensors) == len(whole)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_pickle_files(tiny: Tiny, tmp_path: Path, is_zip: bool) -> None:
    """One tensor lies across in its storage: its numbers are hashed row by row all the same. All are parameters."""
    _, original = tiny("gpt2")
    weights = load_file(original / WEIGHTS)
    name = "transformer.h.0.mlp.c_fc.weight"
    weights[name] = weights[name].T.contiguous().T
    assert not weights[name].is_contiguous()
    folder = changed(original, tmp_path / "bin", files={WEIGHTS: None})
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in weights.items()}
    torch.save(parameters, folder / "pytorch_model.bin", _use_new_zipfile_serialization=is_zip)
    with pytest.warns(UserWarning, match="is a pickle file") as notes:
        report = minilens.verify(folder)
    assert len(notes) == 1
    assert report.faults == ()
    expected = tensors(minilens.verify(original))
    assert {name: weight._replace(file=WEIGHTS) for name, weight in tensors(report).items()} == expected


def test_pieces_are_a_tensor_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minilens.checks.tensors.PIECE", 5)
    x = torch.arange(24.0).view(2, 3, 4)
    for tensor in (
        x,
        x.transpose(0, 1),
        x.permute(2, 1, 0),
        x[:, 1],
        x[0, :, 1],
        x[1, 1, 1],
        x[:0],
        x.mT.expand(2, 4, 3),
    ):
        pieces = list(_pieces(tensor))
        assert torch.equal(torch.cat(pieces), tensor.flatten())
        assert all(piece.is_contiguous() and len(piece) <= 5 for piece in pieces)
    assert all(piece.untyped_storage().data_ptr() == x.data_ptr() for piece in _pieces(x))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo"])
def test_masks_are_ignored_and_heads_tied(tiny: Tiny, tmp_path: Path, family: str) -> None:
    """A mask may hold what it likes: nothing reads it."""
    mask = "attn.bias" if family == "gpt2" else "attn.attention.bias"

    def more(tensors: Tensors) -> Tensors:
        head = {"lm_head.weight": tensors[EMBEDDING[family]].clone()}
        return tensors | head | {f"transformer.h.1.{mask}": torch.full((1, 1, 4, 4), -torch.inf)}

    report = minilens.verify(changed(tiny(family)[1], tmp_path / "model", tensors=more))
    assert report.faults == ()
    assert tensors(report)["lm_head.weight"].use == "tied"
    ignored = tensors(report)[f"transformer.h.1.{mask}"]
    assert (ignored.use, ignored.not_finite) == ("ignored", 16)


# ---- config.json


@pytest.mark.parametrize("family", FAMILIES)
def test_each_key_sets_the_field_that_it_says(tiny: Tiny, family: str) -> None:
    """Another value of the key changes that field, and it alone."""
    values = json.loads((tiny(family)[1] / "config.json").read_text())
    others: dict[str, Any] = dict(activation_function="relu", window_size=9)
    others |= dict(attention_types=[[["local"], 3]], attention_layers=["local"] * 3)
    others |= {key: True for key in ("reorder_and_upcast_attn", "scale_attn_by_inverse_layer_idx")}
    others |= dict(
        tie_word_embeddings=False,
        scale_attn_weights=False,
        layer_norm_epsilon=0.5,
        n_embd=60,
        hidden_size=60,
        n_head=3,
        num_heads=3,
    )
    others |= dict(n_layer=2, num_layers=2)
    read = MODULES[family].Config.read
    before = dataclasses.asdict(read(Settings(values, Path("x"))))
    fields = fields_set(MODULES[family].Config)
    assert len(fields) >= 7
    for key, field in fields.items():
        new = values | {key: others.get(key, 77)}
        if key == "num_layers":
            new |= dict(attention_types=[[["local"], 2]], attention_layers=["local"] * 2)
        if key.startswith("attention_"):
            new.pop(({"attention_types", "attention_layers"} - {key}).pop())
        after = dataclasses.asdict(read(Settings(new, Path("x"))))
        different = {name for name in before if before[name] != after[name]}
        derived = {"is_local", "score_scale", "is_tied"}  # of several keys, or a flag
        assert different - derived == {field} - {*derived, ""} or different == {field}, key


def test_every_kind_of_key(tiny: Tiny, tmp_path: Path) -> None:
    folder = changed(tiny("gpt2")[1], tmp_path / "model", config={"top_k": 50, "pruned_heads": {}}, drop=["n_inner"])
    found = keys(minilens.verify(folder))
    assert found["n_embd"] == Key("n_embd", "30", "read", "d_model", None)
    assert found["model_type"] == Key("model_type", '"gpt2"', "read", "family", None)
    assert found["top_k"] == Key("top_k", "50", "ignored", "generation", None)
    assert found["pruned_heads"] == Key("pruned_heads", "{}", "only", "{}", None)
    assert found["n_inner"] == Key("n_inner", "120", "default", "d_mlp", None)
    by_types = changed(tiny("gpt_neo")[1], tmp_path / "types", drop=["attention_layers"])
    assert "attention_layers" not in keys(minilens.verify(by_types))
    no_type = changed(tiny("gpt2")[1], tmp_path / "old", drop=["model_type"])
    report = minilens.verify(no_type)
    assert report.faults == ()
    assert keys(report)["model_type"] == Key("model_type", '"gpt2"', "default", "family", None)


# ---- What is wrong with the files

FC = "transformer.h.1.mlp.c_fc.weight"
FAULTS: dict[str, tuple[dict[str, Any], str, Callable[[Report], str]]] = {
    "an unknown key": (
        dict(config={"layer_norm_eps": 1e-6}),
        'unknown key "layer_norm_eps", of value 1e-06',
        lambda report: keys(report)["layer_norm_eps"].status + "=unknown",
    ),
    "a value that is not supported": (
        dict(config={"add_cross_attention": True}),
        '"add_cross_attention" is true; minilens supports false only',
        lambda report: keys(report)["add_cross_attention"].status + "=only",
    ),
    "a value that is none": (
        dict(config={"layer_norm_epsilon": "small"}),
        '"layer_norm_epsilon" is "small"; minilens supports a positive number',
        lambda report: keys(report)["layer_norm_epsilon"].status + "=read",
    ),
    "a size that is none": (
        dict(config={"n_embd": -30}),
        '"n_embd" is -30; minilens supports a whole number',
        lambda report: keys(report)["n_embd"].status + "=read",
    ),
    "values that do not go together": (
        dict(config={"n_head": 7}),
        '"n_head" is 7; minilens supports a divisor of n_embd, 30',
        lambda report: keys(report)["n_head"].status + "=read",
    ),
    "a missing key": (
        dict(drop=["n_layer"]),
        '"n_layer" is missing or null',
        lambda report: keys(report)["n_layer"].status + "=missing",
    ),
    "another family": (
        dict(config={"model_type": "llama"}),
        '"model_type" is "llama"; minilens supports "gpt2" or "gpt_neo" or "ctrl"',
        lambda report: keys(report)["model_type"].status + "=read",
    ),
    "a missing tensor": (
        dict(tensors=lambda tensors: {name: tensor for name, tensor in tensors.items() if name != FC}),
        'the tensor "h.1.mlp.c_fc.weight", of shape [30, 50], is missing',
        lambda report: tensors(report)[FC.removeprefix("transformer.")].use + "=missing",
    ),
    "one of another shape": (
        dict(tensors=lambda tensors: tensors | {FC: tensors[FC].mT.contiguous()}),
        'the tensor "h.1.mlp.c_fc.weight" has shape [50, 30], but the config implies [30, 50]',
        lambda report: tensors(report)[FC].use + "=misfit",
    ),
    "one of whole numbers": (
        dict(tensors=lambda tensors: tensors | {FC: tensors[FC].int()}),
        'the tensor "h.1.mlp.c_fc.weight" holds torch.int32',
        lambda report: tensors(report)[FC].use + "=misfit",
    ),
    "an extra tensor": (
        dict(tensors=lambda tensors: tensors | {"transformer.h.1.adapter": torch.ones(2)}),
        'this model has no place for the tensor "h.1.adapter"',
        lambda report: tensors(report)["transformer.h.1.adapter"].use + "=no place",
    ),
    "a head of its own": (
        dict(tensors=lambda tensors: tensors | {"lm_head.weight": 2 * tensors["transformer.wte.weight"]}),
        '"lm_head.weight" differs from the embedding, to which it should be tied',
        lambda report: tensors(report)["lm_head.weight"].use + "=untied",
    ),
    "a tensor twice": (
        dict(tensors=lambda tensors: tensors | {FC.removeprefix("transformer."): tensors[FC].clone()}),
        "h.1.mlp.c_fc.weight",
        lambda report: f"{report.tensors[0].use}=not read",
    ),
    "weights cut short": (
        dict(files={WEIGHTS: b"\x00" * 20}),
        "cannot be read as weights",
        lambda report: f"{len(report.tensors)}=0",
    ),
    "no weights": (dict(files={WEIGHTS: None}), "has no weights", lambda report: f"{len(report.tensors)}=0"),
    "a config that is no JSON": (dict(files={"config.json": b"{"}), "is not readable as JSON", lambda report: "="),
    "no config": (dict(files={"config.json": None}), "has no config.json", lambda report: f"{len(report.config)}=0"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_in_its_row_and_load_says_the_same(tiny: Tiny, tmp_path: Path, capsys: Capture, kind: str) -> None:
    """And the rest goes on: the tensors are there whatever the config is like, and the other way round."""
    change, sentence, row = FAULTS[kind]
    _, original = tiny("gpt2")
    folder = changed(original, tmp_path / "model", **change)
    report = minilens.verify(folder)
    with pytest.raises(CheckpointError) as refused:
        minilens.load(folder)
    assert report.faults == (str(refused.value),)
    assert sentence in report.faults[0]
    assert not report.loads
    found, expected = row(report).split("=")
    assert found == expected
    if WEIGHTS not in change.get("files", {}):
        assert len(report.tensors) >= len(load_file(original / WEIGHTS)) and all(w.sha256 for w in report.tensors[:9])
    if "config.json" not in change.get("files", {}):
        assert len(report.config) > 20
    record = as_json(capsys, folder, status=1)
    assert (record["passed"], record["loads"], record["faults"]) == (False, False, [*report.faults])
    assert main(["verify", str(folder)]) == 1
    shown = capsys.readouterr().out
    assert "1 fault; minilens.load refuses this checkpoint" in shown


def test_a_tokenizer_that_is_none_is_a_fault_and_no_reason_to_refuse(
    tiny: Tiny, tmp_path: Path, capsys: Capture
) -> None:
    folder = changed(tiny("gpt2")[1], tmp_path / "model", files={"tokenizer.json": b"[]"})
    report = minilens.verify(folder)
    assert report.faults == (f"{folder / 'tokenizer.json'} must hold a JSON object; it holds a list",)
    assert report.loads and report.identities
    with pytest.warns(UserWarning, match=f"is loaded without its tokenizer: {report.faults[0]}$"):
        assert minilens.load(folder)[1] is None
    assert main(["verify", str(folder)]) == 1
    assert "1 fault; minilens.load takes this checkpoint" in capsys.readouterr().out


def test_what_is_left_out_and_taken_off_is_said(tiny: Tiny, tmp_path: Path, capsys: Capture) -> None:
    """A key ignored as asked, a head on top, a prefix, and where each special token is from."""

    def wrapped(tensors: Tensors) -> Tensors:
        more = {"lm_head.weight": tensors["transformer.wte.weight"].clone(), "v_head.summary.bias": torch.zeros(1)}
        return {f"module.{name}": tensor for name, tensor in (tensors | more).items()}

    files: dict[str, bytes | None] = {"tokenizer.json": tokenizer_json()}
    files["special_tokens_map.json"] = b'{"pad_token": "B"}'
    folder = changed(tiny("gpt2")[1], tmp_path / "model", config=dict(shared_module=True), tensors=wrapped, files=files)
    assert "unknown key" in minilens.verify(folder).faults[0]
    record = as_json(capsys, folder, "--ignore-key", "shared_module", status=1)
    assert record["loads"] and "a text that its tokens do not give back" in record["faults"].pop()  # of 101 tokens
    assert not record["faults"]
    (key,) = [key for key in record["config"] if key["key"] == "shared_module"]
    assert (key["status"], key["meaning"], key["fault"]) == ("ignored", "as asked", None)
    (head,) = [tensor for tensor in record["tensors"] if "v_head" in tensor["name"]]
    assert (head["use"], head["fault"]) == ("left out: a value head, as TRL trains it", None)
    (tied,) = [tensor for tensor in record["tensors"] if "lm_head" in tensor["name"]]
    assert (tied["name"], tied["use"]) == ("module.lm_head.weight", "tied")
    assert record["prefix"] == "module."
    assert record["special_tokens"] == {"<|endoftext|>": "tokenizer.json", "B": "special_tokens_map.json"}
    assert main(["verify", str(folder), "--ignore-key", "shared_module"]) == 1
    shown = capsys.readouterr().out
    for part in ("ignored: as asked", "left out: a value head", "begin with module.,", "special_tokens_map.json"):
        assert part in shown


def test_an_unembedding_of_its_own_is_read(tiny: Tiny, tmp_path: Path) -> None:
    config, head = dict(tie_word_embeddings=False), {"lm_head.weight": torch.ones(101, 30)}
    report = minilens.verify(changed(tiny("gpt2")[1], tmp_path / "own", config=config, tensors=lambda t: t | head))
    assert report.faults == () and tensors(report)["lm_head.weight"].use == "read"
    report = minilens.verify(changed(tiny("gpt2")[1], tmp_path / "none", config=config))
    assert 'the tensor "lm_head.weight" is missing' in report.faults[0] and not report.loads


def test_identities_are_measured_in_spite_of_a_key(tiny: Tiny, tmp_path: Path) -> None:
    """An unknown key, an extra tensor and a head of its own leave a model; a missing tensor does not."""
    for name in ("an unknown key", "an extra tensor", "a head of its own", "a missing tensor", "a missing key"):
        report = minilens.verify(changed(tiny("gpt2")[1], tmp_path / name, **FAULTS[name][0]))
        assert (report.identities is None) == name.startswith("a missing")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_number_that_is_none(tiny: Tiny, tmp_path: Path, capsys: Capture, value: float) -> None:
    """`load` takes it; the tensor's row says where, and the identities what comes of it."""

    def planted(tensors: Tensors) -> Tensors:
        tensors[FC][3, 4] = value
        return tensors

    folder = changed(tiny("gpt2")[1], tmp_path / "model", tensors=planted)
    report = minilens.verify(folder)
    assert report.loads
    assert [(weight.name, weight.not_finite) for weight in report.tensors if weight.fault] == [(FC, 1)]
    assert report.faults[0] == f'{folder / WEIGHTS}: 1 of the 1500 numbers of "{FC}" are NaN or infinite'
    assert "numbers that are NaN or infinite" in amiss(report.identities)
    assert report.identities is not None and report.identities[0].value > 12 * (101 + 50)  # not in the logits alone
    assert "statistics of the lens less log_softmax in float64" in amiss(report.identities)
    record = as_json(capsys, folder, status=1)
    assert None in [identity["value"] for identity in record["identities"]]


def test_everything_that_is_wrong(tiny: Tiny, tmp_path: Path, capsys: Capture) -> None:
    def planted(tensors: Tensors) -> Tensors:
        tensors["transformer.ln_f.bias"][0] = torch.nan
        del tensors["transformer.ln_f.weight"], tensors["transformer.h.2.ln_1.bias"]
        return tensors | {"a": torch.ones(1), "b": torch.ones(1), FC: torch.ones(3)}

    bad = {
        "n_head": 7,
        "n_embd": -30,
        "activation_function": "swish",
        "what": 1,
        "rope_theta": 2,
        "pruned_heads": {"0": [1]},
    }
    folder = changed(tiny("gpt2")[1], tmp_path / "model", config=bad, tensors=planted)
    report = minilens.verify(folder)
    assert {key.key for key in report.config if key.fault} == bad.keys() - {"n_head"}  # of -30 there is no divisor
    (tmp_path / "model" / "config.json").write_bytes((tiny("gpt2")[1] / "config.json").read_bytes())
    report = minilens.verify(folder)
    wrong = {weight.name: weight.use for weight in report.tensors if weight.fault}
    missing = {"ln_f.weight": "missing", "h.2.ln_1.bias": "missing"}
    assert wrong == missing | {"a": "no place", "b": "no place", FC: "misfit", "transformer.ln_f.bias": "read"}
    assert len(report.faults) == 6
    assert main(["verify", str(folder)]) == 1
    assert "6 faults; minilens.load refuses this checkpoint" in capsys.readouterr().out


def test_shards_that_are_missing(tiny: Tiny, tmp_path: Path) -> None:
    """Each is named, and the tensors of the others are there."""
    tiny("gpt2")[0].save_pretrained(tmp_path, max_shard_size="50KB")
    first, second, *others = sorted(tmp_path.glob("model-*.safetensors"))
    first.unlink()
    second.write_bytes(b"")
    report = minilens.verify(tmp_path)
    assert len(report.broken) == 2
    assert f"{first.name!r}, which is missing" in report.broken[0]
    assert f"{second} cannot be read as weights: it is empty" in report.broken[1]
    assert {weight.file for weight in report.tensors} == {path.name for path in others}
    assert {weight.use for weight in report.tensors} == {"not read"}


def test_a_config_that_promises_ten_thousand_layers(tiny: Tiny, tmp_path: Path) -> None:
    report = minilens.verify(changed(tiny("gpt2")[1], tmp_path / "model", config={"n_layer": 10**4}))
    missing = [weight for weight in report.tensors if weight.use == "missing"]
    assert len(missing) == len(report.faults) == MOST + 1
    assert len({weight.name for weight in missing}) == len(missing)
    wide = minilens.verify(changed(tiny("gpt2")[1], tmp_path / "wide", config={"vocab_size": 2**31 - 1}))
    assert [weight.name for weight in wide.tensors if weight.fault] == ["transformer.wte.weight"]


# ---- What is wrong with a model


def seen_by_all(resid: torch.Tensor) -> torch.Tensor:
    return torch.ones(resid.shape[1], resid.shape[1], dtype=torch.bool)


def next_seen(resid: torch.Tensor) -> torch.Tensor:
    return torch.ones(resid.shape[1], resid.shape[1], dtype=torch.bool).tril(1)


@pytest.mark.parametrize("mask", [seen_by_all, next_seen])
def test_attention_that_sees_the_future(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: Capture, mask: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    monkeypatch.setattr(gpt2, "causal_mask", mask)
    folder = tiny("gpt2")[1]
    report = minilens.verify(folder)
    assert report.loads
    assert amiss(report.identities) == [
        "places seen that a query must not see, or hidden ones",
        "what the logits hear of tokens that come later",
    ]
    record = as_json(capsys, folder, status=1)
    assert [identity["what"] for identity in record["identities"] if not identity["holds"]] == amiss(report.identities)


def weakened(self: Any, resid: torch.Tensor) -> torch.Tensor:
    return ops.layer_norm(resid, self.ln_final, 0.1)


def other_logits(self: Any, resid: torch.Tensor) -> torch.Tensor:
    return ops.linear(self.final_norm(resid), self.W_U) * 1.0001


def leaking(self: Any, layer: int, resid: torch.Tensor, edit: minilens.Edit = minilens.untouched) -> Any:
    """Something else comes into the stream."""
    block = GPT2_BLOCK(self, layer, resid, edit)
    mid = block.resid_mid + 1e-6
    return dataclasses.replace(block, resid_mid=mid, resid_post=mid + block.mlp_out)


GPT2_BLOCK = gpt2.GPT2.block
calls = iter(range(10**6))


def drifting(self: Any, resid: torch.Tensor) -> torch.Tensor:
    """Not the same numbers twice."""
    return ops.linear(self.final_norm(resid), self.W_U) * (1 + 1e-6 * next(calls))


@pytest.mark.parametrize(
    ("where", "name", "new", "expected"),
    [
        (
            gpt2,
            "softmax",
            lambda scores, dtype: ops.softmax(scores, dtype) * 1.00001,
            "sums of the rows of attention, less 1",
        ),
        (gpt2.GPT2, "final_norm", weakened, "the final norm, less its formula in float64"),
        (gpt2.GPT2, "unembed", other_logits, "logits less final norm @ W_U + b_U in float64"),
        (gpt2.GPT2, "unembed", drifting, "logits less the last row of the lens"),
        (gpt2.GPT2, "unembed", drifting, "logits less those of a run that resumes half-way"),
        (gpt2.GPT2, "block", leaking, "the stream is the sum of what is written to it"),
        (gpt2.GPT2, "unembed", drifting, "the stream is the sum of what is written to it"),
        (
            gpt2,
            "linear",
            lambda x, W, b=None: ops.linear(x, W, None if W.shape == (50, 30) else b),
            "what blocks write, less its parts in float64",
        ),
        (gpt2, "linear", lambda *args: ops.linear(*args) * 1.0001, "what blocks write, less its parts in float64"),
    ],
)
def test_a_mistake_in_the_model(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, new: Callable[..., Any], expected: str
) -> None:
    """A norm of another epsilon, a bias left out, and the like: the row of what is planted says so."""
    monkeypatch.setattr(where, name, new)
    assert expected in amiss(minilens.verify(tiny("gpt2")[1]).identities)


@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize("window", [7, 30])
def test_a_window_off_by_one(tiny: Tiny, window: int, change: int) -> None:
    """Also one that is longer than the probe of the other identities."""
    model, _ = minilens.load(tiny("gpt_neo", window_size=window)[1])
    assert isinstance(model, gpt_neo.GPTNeo)
    assert amiss(identities(model, model.config, None)) == []
    other = dataclasses.replace(model.config, window=window + change)
    assert amiss(identities(model, other, None)) == ["places seen that a query must not see, or hidden ones"]


def test_the_statistics_of_the_lens(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def off(*args: Any, **options: Any) -> minilens.LensTable:
        table = minilens.logit_lens(*args, **options)
        return dataclasses.replace(table, stats=table.stats | {"kl_final": table.kl_final + 1e-3})

    model, _ = minilens.load(tiny("ctrl")[1])
    monkeypatch.setattr("minilens.checks.identities.logit_lens", off)
    assert amiss(identities(model, model.config, None)) == ["statistics of the lens less log_softmax in float64"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "sizes", [dict(n_positions=1), dict(n_layer=1), dict(vocab_size=1), dict(n_positions=3)], ids=str
)
def test_models_of_the_smallest_sizes(tiny: Tiny, sizes: dict[str, int]) -> None:
    assert minilens.verify(tiny("gpt2", **sizes)[1]).faults == ()


def test_identities_leave_the_model_as_it_is(tiny: Tiny) -> None:
    model, _ = minilens.load(tiny("gpt2")[1])
    assert isinstance(model, gpt2.GPT2)
    before = model.W_E.clone()
    assert identities(model, model.config, None) == identities(model, model.config, None)
    assert torch.equal(model.W_E, before)


# ---- The tokenizer


def test_a_tokenizer_that_loses_characters(tiny: Tiny, tmp_path: Path) -> None:
    """The tests' own has no token for most bytes, and drops them."""
    folder = changed(tiny("gpt2")[1], tmp_path / "model", files={"tokenizer.json": tokenizer_json()})
    report = minilens.verify(folder)
    assert amiss(report.identities) == ["a text that its tokens do not give back"]
    assert report.loads


def test_a_tokenizer_of_another_model(tiny: Tiny, tmp_path: Path) -> None:
    theirs = (bundled()["tales-gpt2"] / "tokenizer.json").read_bytes()
    report = minilens.verify(changed(tiny("gpt2")[1], tmp_path / "model", files={"tokenizer.json": theirs}))
    assert amiss(report.identities) == ["ids of the tokenizer that the model does not have"]
    assert report.faults == ("ids of the tokenizer that the model does not have: 4e+03, where at most 0 is right",)


# ---- What was published


def one(measure: Callable[..., Any], expected: Any, prompt: Any = (5, 6), tolerance: float = 0.0) -> Any:
    return published.Published("some/model", measure, list(prompt), expected, length=4, tolerance=tolerance)


def test_published_outputs(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    folder = tiny("gpt2")[1]
    model, _ = minilens.load(folder)
    right = published.greedy(model, torch.tensor([[5, 6]]), 4)
    records = [
        one(published.greedy, right),
        one(published.loss, 1e9, tolerance=0.5),
        one(published.shape, [1, 1, 1], [200]),
    ]
    monkeypatch.setattr(VERIFY, "PUBLISHED", records)
    assert minilens.verify(folder).published == ()
    record = as_json(capsys, folder, "--as", "some/model", status=1)
    assert [each["status"] for each in record["published"]] == ["OK", "DIFF", "DIFF"]
    assert len(record["faults"]) == 2 and record["loads"]
    assert "token id 200 is out of range" in record["faults"][1]
    monkeypatch.setattr(VERIFY, "PUBLISHED", records[:1])
    assert main(["verify", str(folder), "--as", "some/model"]) == 0
    assert "1 published outputs" in capsys.readouterr().out


def test_whose_outputs_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def repos(name: str, known_as: str | None = None) -> set[str]:
        return {each.repo for each in _published(name, known_as)}

    monkeypatch.chdir(tmp_path)
    assert repos("gpt2") == repos("openai-community/gpt2") == {"openai-community/gpt2"}
    assert repos("ctrl") == {"Salesforce/ctrl"}
    assert repos("EleutherAI/gpt-neo-125M") == {"EleutherAI/gpt-neo-125m"}
    assert repos("tales-gpt2") == repos("somebody/gpt2") == set()
    (tmp_path / "gpt2").mkdir()
    assert repos("gpt2") == repos("./gpt2") == set()
    assert repos("gpt2", "Salesforce/ctrl") == {"Salesforce/ctrl"}


# ---- The command


def test_errors_end_in_status_2(capsys: Capture) -> None:
    for args, sentence in (
        (["no/such/model"], "there is no model 'no/such/model'"),
        (["tales-gpt2", "--as", "nobody/knows"], "no outputs of 'nobody/knows' are known; there are some of "),
        (["tales-gpt2", "--revision", "main"], "tales-gpt2 is a folder"),
        ([], "the following arguments are required: MODEL"),
    ):
        assert main(["verify", *args]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith(f"minilens: error: {sentence}")


def test_a_space_that_a_checkpoint_asks_for_is_no_fault(tmp_path: Path) -> None:
    folder = shutil.copytree(bundled()["tales-gpt2"], tmp_path / "spaced")
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["pre_tokenizer"]["add_prefix_space"] = True
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    assert minilens.verify(folder).faults == ()


def test_nothing_in_the_report_is_for_the_terminal_to_obey(tiny: Tiny, tmp_path: Path, capsys: Capture) -> None:
    evil = "[red]\x1b[31m\u202egnp\n"
    folder = changed(
        tiny("gpt2")[1],
        tmp_path / "[bold]\x1b[1mmodel",
        config={evil: evil},
        tensors=lambda tensors: tensors | {evil: torch.ones(1)},
    )
    assert main(["verify", str(folder)]) == 1
    out = capsys.readouterr().out
    assert all(char.isprintable() or char == "\n" for char in out)
    parts = "".join(out.split()).split("faults;")  # the tables, and the sentences, wherever a line ends
    assert len(parts) == 2
    for part in parts:
        assert "[red]" in part and "[bold]" in part and "\\x1b" in part.replace("\\u00", "\\x")
    record = as_json(capsys, folder, status=1)
    assert evil in [key["key"] for key in record["config"]]
    assert evil in [weight["name"] for weight in record["tensors"]]
    report = minilens.verify(folder)
    surrogate = dataclasses.replace(report, model="\ud800", config=(report.config[0]._replace(key="\ud800"),))
    console = Console(file=io.StringIO(), width=80)
    console.print(verify_view(surrogate))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().encode().startswith(b"\\x5cud800: gpt2")


@pytest.mark.parametrize("name", ["tales-gpt2", "tales-gpt-neo"])
def test_the_report_fits_a_terminal(name: str) -> None:
    report = minilens.verify(name)
    console = Console(file=io.StringIO(), width=80, force_terminal=True, legacy_windows=False)
    plain = Console(file=io.StringIO(), width=80)
    for each in (console, plain):
        each.print(verify_view(report))
    assert isinstance(plain.file, io.StringIO) and isinstance(console.file, io.StringIO)
    lines = plain.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80 and "\x1b" in console.file.getvalue()
    for weight in report.tensors:
        assert any(line.split() == _cells(weight) for line in lines), weight
    for identity in report.identities or ():
        assert any(line.startswith(identity.what) for line in lines)
    assert "no published outputs are known for this model" in lines


def _cells(weight: Weight) -> list[str]:
    return [weight.name, weight.dtype, "x".join(map(str, weight.shape)), weight.sha256[:8], weight.use]


def test_the_record_has_every_field(tiny: Tiny) -> None:
    report = minilens.verify(tiny("gpt2")[1])
    record = json.loads(json.dumps(verify_record(report), allow_nan=False))
    parts = "files config tensors prefix special_tokens identities published"
    assert list(record) == f"schema model family passed loads faults {parts}".split()
    assert record["files"][0].keys() == {"name", "size", "sha256"}
    assert record["config"][0].keys() == {"key", "value", "status", "meaning", "fault"}
    assert record["tensors"][0].keys() == set(Weight._fields)
    assert record["identities"][0].keys() == {"what", "value", "bound", "why", "holds"}


def test_each_file_is_asked_for_once(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the Hub every question is a request."""
    folder, asked = tiny("ctrl")[1], []

    def find(file: str) -> Path | None:
        asked.append(file)
        return folder / file if (folder / file).is_file() else None

    monkeypatch.setattr(VERIFY, "locate", lambda name, revision: Files(find))
    report = minilens.verify("somebody/ctrl", revision="v1")
    assert report.faults == () and report.model == "somebody/ctrl"
    there = [file for file in asked if (folder / file).is_file()]
    assert sorted(there) == sorted(set(there)) == [file.name for file in report.files]


def test_each_sees_every_tensor(tiny: Tiny) -> None:
    seen: list[str] = []
    report = minilens.verify(tiny("gpt2")[1], each=lambda names: (seen.extend(names), names)[1])
    assert seen == [weight.name for weight in report.tensors]

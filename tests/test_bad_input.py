"""What can be wrong with a checkpoint, a prompt or an option: one sentence that names it, never a traceback."""

import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Tensors, changed, tokenizer_json
from conftest import Tiny

import minilens
from minilens import CheckpointError, Site
from minilens.command.main import main

Capture = pytest.CaptureFixture[str]


def refusal(capsys: Capture, *args: str) -> str:
    """The one line that the command prints, on stderr, before it exits with status 2."""
    status = main(args)
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("minilens: error: ")
    return line.removeprefix("minilens: error: ")


def check_folder(capsys: Capture, folder: Path, sentence: str) -> None:
    """The library raises this sentence about the checkpoint, and the command prints it."""
    with pytest.raises(CheckpointError) as info:
        minilens.load(folder)
    assert str(info.value).replace(str(folder), "HERE") == sentence
    assert refusal(capsys, "lens", "--ids", "1 2", "--model", str(folder)) == str(info.value)


SIZE = "a whole number from 1 to 2147483647"
ACTIVATIONS = '"gelu_new" or "gelu_pytorch_tanh" or "gelu_fast" or "gelu" or "relu"'
KINDS = '"global" or "local" for each of the 3 layers'
CONFIGS: list[tuple[str, dict[str, Any], str]] = [
    (
        "gpt2",
        {"use_magic": [1, 2]},
        'unknown key "use_magic", of value [1, 2]: minilens does not know whether it changes the numbers, '
        "so it does not load the model",
    ),
    (
        "gpt2",
        {"two\nlines\x1b[31m": 1},
        r'unknown key "two\nlines\u001b[31m", of value 1: minilens does not know whether it changes the numbers, '
        "so it does not load the model",
    ),
    ("gpt2", {"model_type": "llama"}, '"model_type" is "llama"; minilens supports "gpt2" or "gpt_neo" or "ctrl"'),
    ("gpt2", {"model_type": []}, '"model_type" is []; minilens supports "gpt2" or "gpt_neo" or "ctrl"'),
    (
        "gpt_neo",
        {"model_type": None},
        '"model_type" is missing or null; minilens supports "gpt2" or "gpt_neo" or "ctrl"',
    ),
    *(
        (family, {"tie_word_embeddings": 0}, '"tie_word_embeddings" is 0; minilens supports true or false')
        for family in ("gpt2", "gpt_neo", "ctrl")
    ),
    ("gpt2", {"hidden_size": 31}, '"hidden_size" is 31; minilens supports what "n_embd" says, 30'),
    ("ctrl", {"num_hidden_layers": 4}, '"num_hidden_layers" is 4; minilens supports what "n_layer" says, 3'),
    ("gpt_neo", {"num_attention_heads": 3}, '"num_attention_heads" is 3; minilens supports what "num_heads" says, 5'),
    ("gpt2", {"pruned_heads": {"0": [1]}}, '"pruned_heads" is {"0": [1]}; minilens supports {} only'),
    ("gpt2", {"add_cross_attention": True}, '"add_cross_attention" is true; minilens supports false only'),
    ("gpt2", {"is_encoder_decoder": True}, '"is_encoder_decoder" is true; minilens supports false only'),
    ("gpt2", {"quantization_config": {"bits": 4}}, '"quantization_config" is {"bits": 4}; minilens supports null only'),
    ("gpt2", {"activation_function": "swish"}, f'"activation_function" is "swish"; minilens supports {ACTIVATIONS}'),
    ("gpt_neo", {"activation_function": ["a"]}, f'"activation_function" is ["a"]; minilens supports {ACTIVATIONS}'),
    ("gpt2", {"n_head": 7}, '"n_head" is 7; minilens supports a divisor of n_embd, 30'),
    ("ctrl", {"n_head": 7}, '"n_head" is 7; minilens supports a divisor of n_embd, 30'),
    ("gpt_neo", {"num_heads": 7}, '"num_heads" is 7; minilens supports a divisor of hidden_size, 30'),
    ("gpt2", {"n_embd": None}, f'"n_embd" is missing or null; minilens supports {SIZE}'),
    ("gpt2", {"vocab_size": None}, f'"vocab_size" is missing or null; minilens supports {SIZE}'),
    ("gpt2", {"n_positions": 2**31}, f'"n_positions" is 2147483648; minilens supports {SIZE}'),
    (
        "gpt_neo",
        {"num_layers": 10**9, "attention_types": [[["global"], 10**9]]},
        '"num_layers" is 1000000000; minilens supports a whole number from 1 to 10000',
    ),
    ("gpt_neo", {"hidden_size": None}, f'"hidden_size" is missing or null; minilens supports {SIZE}'),
    ("ctrl", {"dff": None}, f'"dff" is missing or null; minilens supports {SIZE}'),
    ("gpt2", {"n_embd": "30"}, f'"n_embd" is "30"; minilens supports {SIZE}'),
    ("gpt2", {"n_embd": 30.0}, f'"n_embd" is 30.0; minilens supports {SIZE}'),
    ("gpt2", {"n_head": True}, f'"n_head" is true; minilens supports {SIZE}'),
    ("gpt2", {"n_head": 0}, f'"n_head" is 0; minilens supports {SIZE}'),
    ("gpt2", {"n_layer": -1}, '"n_layer" is -1; minilens supports a whole number from 1 to 10000'),
    ("gpt2", {"scale_attn_weights": 1}, '"scale_attn_weights" is 1; minilens supports true or false'),
    ("gpt2", {"layer_norm_epsilon": "1"}, '"layer_norm_epsilon" is "1"; minilens supports a positive number'),
    ("gpt2", {"layer_norm_epsilon": 0}, '"layer_norm_epsilon" is 0; minilens supports a positive number'),
    ("gpt2", {"layer_norm_epsilon": float("nan")}, '"layer_norm_epsilon" is NaN; minilens supports a positive number'),
    (
        "gpt2",
        {"layer_norm_epsilon": 10**400},
        f'"layer_norm_epsilon" is 1{"0" * 79}; minilens supports a positive number',
    ),
    *(
        (
            "gpt_neo",
            {"attention_types": types, "attention_layers": None},
            f'"attention_types" is {json.dumps(types)}; minilens supports {KINDS}',
        )
        for types in (
            [[["global", "local"], 1]],
            [[["global"], 4]],
            [[["global", "sideways"], 1], [["local"], 1]],
            [[["global"], 10**12]],
            [[[], 10**12]],
            [[["global"], "3"]],
            [[["global"], -3]],
            [["global", 3]],
            [5],
            [],
            "global",
            {"global": 3},
        )
    ),
    (
        "gpt_neo",
        {"attention_types": None, "attention_layers": None},
        '"attention_types" is missing or null; minilens supports ',
    ),
    (
        "gpt_neo",
        {"attention_layers": ["global"] * 3},
        '"attention_layers" is ["global", "global", "global"]; minilens supports the expansion of attention_types, ',
    ),
]


@pytest.mark.parametrize(("family", "config", "sentence"), CONFIGS, ids=str)
def test_config(
    tiny: Tiny, tmp_path: Path, capsys: Capture, family: str, config: dict[str, Any], sentence: str
) -> None:
    folder = changed(tiny(family)[1], tmp_path / "model", config=config)
    with pytest.raises(CheckpointError) as info:
        minilens.load(folder)
    assert str(info.value).startswith(f"{folder / 'config.json'}: {sentence}")
    assert refusal(capsys, "lens", "--ids", "1 2", "--model", str(folder)) == str(info.value)


def test_a_config_without_model_type(tiny: Tiny, tmp_path: Path, capsys: Capture) -> None:
    """GPT-2's and CTRL's may be older than the key; GPT-Neo's cannot be."""
    folder = changed(tiny("gpt_neo")[1], tmp_path / "model", drop=["model_type"])
    check_folder(
        capsys,
        folder,
        'HERE/config.json: "model_type" is missing or null; minilens supports "gpt2" or "gpt_neo" or "ctrl"',
    )


def with_one(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: change(tensors[name]).contiguous().clone()}


def without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def and_more(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, **{name: torch.zeros(3) for name in names}}


TENSORS: list[tuple[Callable[[Tensors], Tensors], str]] = [
    (without("transformer.wpe.weight"), 'the tensor "wpe.weight", of shape [40, 30], is missing'),
    (
        without("transformer.h.2.attn.c_attn.bias"),
        'the tensor "h.2.attn.c_attn.bias", of shape [90], is missing',
    ),
    (and_more("transformer.h.3.ln_1.weight"), 'this model has no place for the tensor "h.3.ln_1.weight"'),
    (and_more("e", "d", "c", "b\n"), r'this model has no place for the tensor "b\n", "c", "d" and 1 more'),
    (and_more("wpe.weight"), 'the tensor "wpe.weight" is there twice'),
    (
        with_one("transformer.wpe.weight", lambda tensor: tensor[:7]),
        'the tensor "wpe.weight" has shape [7, 30], but the config implies [40, 30]',
    ),
    (
        with_one("transformer.h.0.mlp.c_fc.weight", lambda tensor: tensor.mT),
        'the tensor "h.0.mlp.c_fc.weight" has shape [50, 30], but the config implies [30, 50]',
    ),
    (
        with_one("transformer.ln_f.weight", lambda tensor: tensor.long()),
        'the tensor "ln_f.weight" holds torch.int64; minilens reads weights in float16, bfloat16, float32 or float64',
    ),
    (
        with_one("transformer.ln_f.weight", lambda tensor: tensor > 0),
        'the tensor "ln_f.weight" holds torch.bool; minilens reads weights in float16, bfloat16, float32 or float64',
    ),
]


@pytest.mark.parametrize(("tensors", "sentence"), TENSORS, ids=range(len(TENSORS)))
def test_tensors(
    tiny: Tiny, tmp_path: Path, capsys: Capture, tensors: Callable[[Tensors], Tensors], sentence: str
) -> None:
    folder = changed(tiny("gpt2")[1], tmp_path / "model", tensors=tensors)
    check_folder(capsys, folder, f"HERE/model.safetensors: {sentence}")


@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("name", ["transformer.h.1.mlp.c_fc.weight", "transformer.ln_f.bias"])
def test_weights_that_are_not_finite(tiny: Tiny, tmp_path: Path, capsys: Capture, name: str, value: float) -> None:
    folder = changed(tiny("gpt2")[1], tmp_path / "model", tensors=with_one(name, lambda tensor: tensor * 0 + value))
    assert re.fullmatch(
        r"the logits of row \S+ are not finite: there is a NaN or an infinity in the weights, .*",
        refusal(capsys, "lens", "--ids", "1 2", "--model", str(folder)),
    )


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:248dfc39\nsize 548105171\n"
PAGE = b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>"
IS_LFS = "it is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`"
IS_PAGE = "it is a web page; download the file itself"
NO_JSON = "HERE/config.json is not readable as JSON: "
NO_WEIGHTS = "HERE/model.safetensors cannot be read as weights: "
NO_TENSORS = "HERE/model.safetensors has no weights"
CUT = r"it is cut short or broken \(.+\)"
NO_CODE = "it is cut short or broken, or it holds more than tensors, and minilens runs no code from a file"
FILES: list[tuple[str, bytes | None, str]] = [
    ("config.json", None, "'HERE' has no config.json, so it is not a model that minilens can read"),
    ("config.json", b"", NO_JSON + "it is empty"),
    ("config.json", b'{"model_type": ', NO_JSON + CUT),
    ("config.json", b'{"model_type": "gpt\xe9"}', NO_JSON + CUT),
    ("config.json", '{"model_type": "gpt2"}'.encode("utf-16"), NO_JSON + "it is UTF-16; save it as UTF-8"),
    (
        "config.json",
        '{"model_type": "gpt2"}'.encode("utf-8-sig"),
        NO_JSON + "it begins with a byte order mark; save it as UTF-8 without one",
    ),
    ("config.json", b"[" * 100_000, NO_JSON + "its values are nested more than 100 deep"),
    ("config.json", b'{"n_layer": ' + b"9" * 5000 + b"}", NO_JSON + CUT),
    ("config.json", b'{"n_embd": 30, "n_embd": 30}', NO_JSON + 'the key "n_embd" is there twice'),
    ("config.json", b'{"x": "\\udc00"}', NO_JSON + "it holds a lone surrogate, which is not valid Unicode"),
    ("config.json", b" " * 2**24 + b"{}", NO_JSON + "it has 16,777,218 bytes, and no such file of a model has more .+"),
    ("config.json", b"[]", "HERE/config.json must hold a JSON object; it holds a list"),
    ("config.json", b"null", "HERE/config.json must hold a JSON object; it holds a NoneType"),
    ("config.json", LFS, NO_JSON + IS_LFS),
    ("config.json", PAGE, NO_JSON + IS_PAGE),
    (
        "model.safetensors",
        None,
        "HERE has no weights: neither model.safetensors nor pytorch_model.bin, in one file or with an index",
    ),
    ("model.safetensors", b"", NO_WEIGHTS + "it is empty"),
    ("model.safetensors", b"rubbish" * 99, NO_WEIGHTS + CUT),
    ("model.safetensors", LFS, NO_WEIGHTS + IS_LFS),
    ("model.safetensors", PAGE, NO_WEIGHTS + IS_PAGE),
]


def check_files(capsys: Capture, folder: Path, sentence: str) -> None:
    with pytest.raises(CheckpointError) as info:
        minilens.load(folder)
    assert re.fullmatch(sentence, str(info.value).replace(str(folder), "HERE"))
    assert refusal(capsys, "lens", "--ids", "1 2", "--model", str(folder)) == str(info.value)


@pytest.mark.parametrize(("name", "content", "sentence"), FILES, ids=lambda value: str(value)[:40])
def test_files(tiny: Tiny, tmp_path: Path, capsys: Capture, name: str, content: bytes | None, sentence: str) -> None:
    check_files(capsys, changed(tiny("gpt2")[1], tmp_path / "model", files={name: content}), sentence)


@pytest.mark.parametrize("kept", [0.999, 0.5, 0.05, 0.001])
def test_a_file_of_weights_that_is_cut_short(tiny: Tiny, tmp_path: Path, capsys: Capture, kept: float) -> None:
    _, original = tiny("gpt2")
    whole = (original / "model.safetensors").read_bytes()
    files: dict[str, bytes | None] = {"model.safetensors": whole[: int(kept * len(whole))]}
    check_files(capsys, changed(original, tmp_path / "model", files=files), NO_WEIGHTS + CUT)


@pytest.mark.filterwarnings("ignore:.*is a pickle file")
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kept", [0.999, 0.5, 0.05, 0.001, 0])
def test_a_pickle_file_that_is_cut_short(tiny: Tiny, tmp_path: Path, kept: float, is_zip: bool) -> None:
    _, original = tiny("gpt2")
    folder = changed(original, tmp_path / "model", files={"model.safetensors": None})
    file = folder / "pytorch_model.bin"
    torch.save({"wte.weight": torch.zeros(40, 50)}, file, _use_new_zipfile_serialization=is_zip)
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    with pytest.raises(CheckpointError) as info:
        minilens.load(folder)
    assert re.fullmatch(rf"{file} cannot be read as weights: ({CUT}|{NO_CODE}|it is empty)", str(info.value))


@pytest.mark.filterwarnings("ignore:.*is a pickle file")
@pytest.mark.parametrize(
    "value", [[1], {"a": 1}, {"state": {"a": torch.zeros(1)}}, {1: torch.zeros(1)}, torch.zeros(1)], ids=str
)
def test_a_pickle_file_of_something_else(tiny: Tiny, tmp_path: Path, value: Any) -> None:
    folder = changed(tiny("gpt2")[1], tmp_path / "model", files={"model.safetensors": None})
    torch.save(value, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"cannot be read as weights: it does not map names to tensors$"):
        minilens.load(folder)


ONE = torch.arange(3.0)
STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpu"
NO_FIT = r"it is cut short or broken \(a tensor is larger than its storage\)"


@pytest.mark.filterwarnings("ignore:.*is a pickle file", "ignore:Sparse")
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("tensor", "sentence"),
    [
        (ONE.to_sparse(), "it asks for 'torch._utils _rebuild_sparse_tensor', and minilens runs no code from a file"),
        (ONE.to("meta"), "it asks for 'torch._utils _rebuild_meta_tensor_no_storage', and minilens runs no code .*"),
        (ONE.to(torch.complex64), "it asks for 'torch ComplexFloatStorage', and minilens runs no code from a file"),
        (ONE[0].expand(999, 999), r"it is cut short or broken \(its tensors are larger than the file\)"),
        (bytearray(9), "it asks for '__builtin__ bytearray', and minilens runs no code from a file"),
    ],
    ids=str,
)
def test_tensors_that_are_not_plain(tiny: Tiny, tmp_path: Path, tensor: Any, sentence: str, is_zip: bool) -> None:
    folder = changed(tiny("gpt2")[1], tmp_path / "model", files={"model.safetensors": None})
    torch.save({"a": tensor}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(CheckpointError, match=f"cannot be read as weights: {sentence}$"):
        minilens.load(folder)


@pytest.mark.filterwarnings("ignore:.*is a pickle file")
@pytest.mark.parametrize(
    ("right", "wrong", "sentence"),
    [
        (b"QK\x00K\x03\x85", b"QK\x01K\x03\x85", NO_FIT),  # offset
        (b"QK\x00K\x03\x85", b"QK\x00K\x04\x85", NO_FIT),  # shape
        (b"K\x01\x85", b"K\x02\x85", NO_FIT),  # stride
        (b"K\x03t", b"K\x04t", r"it is cut short or broken \(a storage is not of the size that it claims\)"),
        (b"FloatStorage", b"LongStorage", r"it is cut short or broken \(a storage is not of the size that it claims\)"),
        (b"K\x03\x85", b"J\xff\xff\xff\xff\x85", "a tensor in it has an impossible shape"),
        (b"s.", b"sX\x01\x00\x00\x00aNs.", "a name is there twice in it"),
        (b"s.", b"sK\x01\x85Ns.", "it does not map names to tensors"),
        (b"s.", b"s}X\5\0\0\0itemsNsb.", "it does not map names to tensors"),
        (b"s.", b"sX\1\0\0\0b" + STORAGE + b"K\2tQs.", "a storage is there twice in it"),
        (b"s.", b"s" + b"]" * 2**20 + b".", "it holds far more than the names of tensors"),
        (b"\x80\2}", b"\x80\3}", "it has the instruction PROTO, and minilens runs no code from a file"),
        (b"s.", b"s\x8c\x00.", "it has the instruction SHORT_BINUNICODE, and minilens runs no code from a file"),
    ],
)
def test_a_pickle_that_lies(tiny: Tiny, tmp_path: Path, right: bytes, wrong: bytes, sentence: str) -> None:
    """The checksums are right: a program is put in the place of the one that torch wrote."""
    buffer = io.BytesIO()
    torch.save({"a": ONE}, buffer)
    folder = changed(tiny("gpt2")[1], tmp_path / "model", files={"model.safetensors": None})
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(folder / "pytorch_model.bin", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "archive/data.pkl":
                content = re.sub(b"q.", b"", content, flags=re.DOTALL)  # what is remembered, and never used
                assert content.count(right) == 1
            new.writestr(name, content.replace(right, wrong))
    with pytest.raises(CheckpointError, match=f"cannot be read as weights: {sentence}$"):
        minilens.load(folder)


def spoiled_zip(archive: bytes, entry: str, at: int, new: bytes) -> bytes:
    """With other bytes at a place of an entry in the directory of an archive."""
    where = archive.rindex(entry.encode()) - 46 + at
    return archive[:where] + new + archive[where + len(new) :]


def extended(archive: bytes, *entries: str) -> bytes:
    buffer = io.BytesIO(archive)
    with zipfile.ZipFile(buffer, "a") as changed:
        for entry in entries:
            changed.writestr(entry, b"x")
    return buffer.getvalue()


def beyond(archive: bytes) -> bytes:
    """With a storage that begins 2**16 bytes later."""
    length = archive.index(b"archive/data/0") - 2
    return archive[:length] + b"\xff\xff" + archive[length + 2 :]


UNLIKE_TORCH = "entries of this zip archive are compressed, folders, or there twice"
WRONG_SIZE = r" \(a storage is not of the size that it claims\)"
OVERLAPS = "it is cut short or broken" + (
    WRONG_SIZE if sys.version_info < (3, 11, 8) else f"({WRONG_SIZE}|, or .*)"  # newer Pythons may see it themselves
)
NOT_AT_END = r"it is cut short or broken \(the directory of a zip archive is not at its end\)"


@pytest.mark.filterwarnings("ignore:.*is a pickle file")
@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda archive: spoiled_zip(archive, "archive/data.pkl", 38, b"\x10"), UNLIKE_TORCH),
        (lambda archive: spoiled_zip(archive, "archive/data/0", 20, bytes(4)), UNLIKE_TORCH),
        (lambda archive: extended(archive, "archive/DATA.PKL"), UNLIKE_TORCH),
        (
            lambda archive: extended(archive, "archive/constants.pkl"),
            "it is a zip archive of something else than tensors",
        ),
        (lambda archive: extended(archive, *map(str, range(25_000))), "it holds far more than the names of tensors"),
        (beyond, OVERLAPS),
        (lambda archive: archive + b"x", NOT_AT_END),
        (lambda archive: archive[:-34] + bytes(8) + archive[-26:], NOT_AT_END),
    ],
    ids=["folder", "no size", "capitals", "TorchScript", "many", "beyond", "more at the end", "another directory"],
)
def test_a_zip_archive_that_readers_see_differently(
    tiny: Tiny, tmp_path: Path, spoil: Callable[[bytes], bytes], sentence: str
) -> None:
    buffer = io.BytesIO()
    torch.save({"a": ONE}, buffer)
    archive = buffer.getvalue()
    files = {"model.safetensors": None, "pytorch_model.bin": spoil(archive)}
    with pytest.raises(CheckpointError, match=f"cannot be read as weights: {sentence}$"):
        minilens.load(changed(tiny("gpt2")[1], tmp_path / "model", files=files))


@pytest.mark.filterwarnings("ignore:.*is a pickle file")
def test_an_older_pickle_file_that_torch_reads_in_another_way(tiny: Tiny, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": ONE}, buffer, _use_new_zipfile_serialization=False)
    older = buffer.getvalue()
    # A header of tar takes 512 bytes, here the start of the programs and a text in the one about the system.
    tar = bytearray(older[:21] + b"\x80\2X" + (484).to_bytes(4, "little") + bytes(484))
    tar[148:156] = b" " * 8
    tar[148:155] = b"%06o\0" % sum(tar)
    keys = older[older.rindex(b"\x80\2]") : -len(ONE) * 4 - 8]
    for content, sentence in (
        (bytes(tar) + older[23:], "it is not a file that torch.save wrote"),
        (older.replace(keys, b"\x80\2]."), r"it is cut short or broken \(storages are missing\)"),
        (older[:-1], r"it is cut short or broken \(a storage is not of the size that it claims\)"),
    ):
        files = {"model.safetensors": None, "pytorch_model.bin": content}
        folder = changed(tiny("gpt2")[1], tmp_path / str(len(content)), files=files)
        with pytest.raises(CheckpointError, match=f"cannot be read as weights: {sentence}$"):
            minilens.load(folder)


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        ({}, 'must map tensors to files in "weight_map"'),
        ({"weight_map": {}}, 'must map tensors to files in "weight_map"'),
        ({"weight_map": ["model.safetensors"]}, 'must map tensors to files in "weight_map"'),
        ({"weight_map": {"wte.weight": 1}}, 'must map tensors to files in "weight_map"'),
        ({"weight_map": {"wte.weight": "gone.safetensors"}}, "names 'gone.safetensors', which is missing"),
        ({"weight_map": {"wte.weight": "x" * 999}}, f"names '{'x' * 79}, which is missing"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_index_of_shards(tiny: Tiny, tmp_path: Path, capsys: Capture, index: dict[str, Any], sentence: str) -> None:
    files = {"model.safetensors": None, "model.safetensors.index.json": json.dumps(index).encode()}
    folder = changed(tiny("gpt2")[1], tmp_path / "model", files=files)
    check_folder(capsys, folder, f"HERE/model.safetensors.index.json {sentence}")


@pytest.fixture
def gpt2(tiny: Tiny, tmp_path: Path) -> Path:
    return changed(tiny("gpt2")[1], tmp_path / "gpt2", files={"tokenizer.json": tokenizer_json()})


READ = ["--ids", "1 2 3"]
TEXT = "a text, --file, --ids, or text on stdin"
BLOCKS = "this model has 3 blocks, so K is 1 to 3"
DECODERS = 'it must be "final", "block:K" for the last K blocks, or "mlp"'
SITES = "resid_pre, attn_out, resid_mid, mlp_out, resid_post"
IDS = 'must be whole numbers, such as "464 3290"'
OPTIONS: list[tuple[list[str], str]] = [
    ([""], "the prompt is empty: it must hold at least one token"),
    (["--ids", ""], "the prompt is empty: it must hold at least one token"),
    (["B" * 41], "the prompt has 41 tokens, but the model's context holds 40: shorten it"),
    (["--ids", "1 " * 41], "the prompt has 41 tokens, but the model's context holds 40: shorten it"),
    (["--ids", "1 101"], "token id 101 is out of range: the model's ids go from 0 to 100"),
    (["--ids=-1 5"], "token id -1 is out of range: the model's ids go from 0 to 100"),
    (["--ids", "1 two"], f"--ids {IDS}; got '1 two'"),
    (["--ids", "1.5"], f"--ids {IDS}; got '1.5'"),
    (["--ids", "9" * 30], f"--ids {IDS}; got '{'9' * 30}'"),
    (["hello\udcff"], "the text is not valid Unicode: character 5 is a lone surrogate, U+DCFF; "),
    ([*READ, "--decoder", "block:0"], f'the decoder "block:0" does not fit: {BLOCKS}'),
    ([*READ, "--decoder", "block:4"], f'the decoder "block:4" does not fit: {BLOCKS}'),
    ([*READ, "--decoder", "block:-1"], f'there is no decoder "block:-1": {DECODERS}'),
    ([*READ, "--decoder", "block:"], f'there is no decoder "block:": {DECODERS}'),
    ([*READ, "--decoder", "block:²"], f'there is no decoder "block:²": {DECODERS}'),
    ([*READ, "--decoder", "first\n"], 'there is no decoder "first": ' + DECODERS),
    ([*READ, "--decoder", "final, final"], "the decoder final is named twice"),
    ([*READ, "--sites", "mlp_post"], f'the lens has no rows for "mlp_post"; it has them for {SITES}'),
    ([*READ, "--sites", "resid_pre,"], f'the lens has no rows for ""; it has them for {SITES}'),
    ([*READ, "--positions", "3"], "position 3 does not exist: the text has 3 tokens, so positions 0 to 2"),
    ([*READ, "--positions=-4"], "position -4 does not exist: the text has 3 tokens, so positions 0 to 2"),
    ([*READ, "--positions", "3:"], "positions is empty: choose at least one, or leave it out to see all"),
    *(
        ([*READ, f"--positions={form}"], f"--positions must look like 0,3,-1 or 5:10; got {form!r}")
        for form in ("", "a", "1,", "1.0", "::0", "1:2:3:4")
    ),
    ([*READ, "--top-k", "0"], "top_k must be between 1 and the size of the vocabulary, 101; it is 0"),
    ([*READ, "--top-k", "102"], "top_k must be between 1 and the size of the vocabulary, 101; it is 102"),
    ([*READ, "--top-k", "x"], "argument --top-k: invalid int value: 'x' (see minilens lens --help)"),
    ([*READ, "--show", "x"], 'there is no panel "x"; there are logit, prob, rank, kl, kl_final, '),
    ([*READ, "--show", "prob,"], 'there is no panel ""; there are logit, prob, '),
    ([*READ, "--show", ""], 'there is no panel ""; there are logit, prob, '),
    ([*READ, "--show", "kl", "--json"], "--show is for the terminal and for figures: --stats chooses for the others"),
    ([*READ, "--patterns"], "--patterns is for --html"),
    ([*READ, "--large"], "--large is for --html"),
    ([*READ, "--font-size", "9"], "--font-size is for figures: --png, --svg, --pdf"),
    ([*READ, "--png", "a.png", "--font-size", "3"], "--font-size must be from 4 to 72; got 3"),
    ([*READ, "--html", "no.html", "--patterns", "3"], "layer 3 does not exist: the model's layers are 0 to 2"),
    ([*READ, "--html", "no.html", "--patterns", "3:"], "--patterns names no layer with '3:': the model has 3"),
    *[
        ([*READ, "--html", "no.html", "--patterns", text], f"--patterns must look like 0,3,-1 or 5:10; got {text!r}")
        for text in ("a text", "")
    ],
    ([*READ, "--html", "/no/such/page"], "/no/such/page cannot be written: there is no such folder"),
    ([*READ, "--html", "/", "--overwrite"], "/ is not a file that could be replaced"),
    ([*READ, "--html", os.devnull, "--overwrite"], f"{os.devnull} is not a file that could be replaced"),
    ([*READ, "--png", "x.svg"], "the name of the file for --png must end in .png; got 'x.svg'"),
    ([*READ, "--png", "/no/x.png"], "/no/x.png cannot be written: there is no such folder"),
    ([*READ, "--png", "x.png", "--html", "x.png"], "--html and --png are both to be x.png: give another name"),
    ([*READ, "--png", "x.png", "--show", "y"], 'there is no panel "y"; there are logit, prob, rank, kl, '),
    ([*READ, "--png", "x.png", "--style", "2019"], 'there is no style "2019"; there are 2020, 2021'),
    ([*READ, "--csv", "--decoder", "final,mlp"], "--csv takes one decoder; several are for the terminal, --html and "),
    ([*READ, "--style", "2020"], "--style is for figures: --png, --svg, --pdf"),
    ([*READ, "--json", "--csv"], "--json and --csv are both given: choose one"),
    ([*READ, "--stats", "js"], "--stats is for --json, --csv and --html; in the terminal --show chooses"),
    ([*READ, "--csv", "--stats", "kl"], 'there is no statistic "kl"; there are top, final, next, input, entropy, '),
    ([*READ, "--norm", "none"], 'there is no norm "none"; it must be "final" or "plain"'),
    ([*READ, "--layers", "3"], "layer 3 does not exist: the model's layers are 0 to 2"),
    ([*READ, "--layers", "a"], "--layers must look like 0,3,-1 or 5:10; got 'a'"),
    (
        ["--ids", "1", "--centre"],
        "centre subtracts the mean over the positions, which leaves nothing of a text of one ",
    ),
    (
        [*READ, "--track", "#5", "--show", "kl"],
        "--track is for cells that show its tokens: --show kl,tracked_rank",
    ),
    ([*READ, "--show", "kl,tracked_prob"], "--show tracked_prob needs --track, which names the token"),
    ([*READ, "--show", "token5_prob", "--png", "x.png"], "--show token5_prob needs --track, which names the token"),
    (
        [*READ, "--track", "#5", "--show", "token6_prob"],
        '"token6_prob" is of a token that is not tracked; tracked are token5',
    ),
    ([*READ, "--json", "--track", "#101"], "token id 101 cannot be tracked: the model's ids go from 0 to 100"),
    (
        [*READ, "--json", "--track", "BB"],
        "--track takes one token, and 'BB' is 2: B B; a word within a text",
    ),
    ([*READ, "--json", "--track", ""], "--track takes one token, and '' is 0: ; a word within a text"),
    (
        [*READ, "--show", "kl", "--top-k", "2"],
        "--top-k goes with --json or with cells that show tokens, not with --show kl",
    ),
    ([*READ, "--colour"], "unrecognized arguments: --colour: there is no such option, and a text that begins with"),
    (["a text", "another"], "unrecognized arguments: another: a text stands in quotes, and there is no place"),
    ([*READ, "--revision", "v1"], "HERE is a folder, and only a repository on the Hub has a revision; leave out 'v1'"),
    (["hello", *READ], "a text and --ids are both given: choose one"),
    (["hello", "--file", "x"], "a text and --file are both given: choose one"),
    (["--file", "x", *READ], "--file and --ids are both given: choose one"),
    (["--file", "/no/such"], "/no/such cannot be read: No such file or directory"),
    (["--file", "/"], "/ cannot be read: Is a directory"),
    (["--file", "x" * 999], f"{'x' * 999} cannot be read: File name too long"),
]


@pytest.mark.parametrize(("options", "sentence"), OPTIONS, ids=lambda value: str(value)[:60])
def test_options(gpt2: Path, capsys: Capture, options: list[str], sentence: str) -> None:
    line = refusal(capsys, "lens", *options, "--model", str(gpt2)).replace(str(gpt2), "HERE")
    assert line.startswith(sentence)


def test_trace(gpt2: Path, capsys: Capture, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("mine")
    command = ("trace", *READ, "--model", str(gpt2))
    assert refusal(capsys, *command, "--out", str(there)) == f"{there} exists: give another name, or --overwrite"
    assert there.read_text() == "mine"
    assert refusal(capsys, *command) == "the following arguments are required: --out (see minilens trace --help)"
    new = ("--out", str(tmp_path / "new"))
    assert refusal(capsys, *command, *new, "--fields", "q,logit").startswith('a block has no "logit"; it has resid_pre')
    nowhere = tmp_path / "no" / "folder"
    assert refusal(capsys, *command, "--out", str(nowhere)) == f"{nowhere} cannot be written: there is no such folder"
    assert list(tmp_path.glob("n*")) == []
    own = gpt2 / "model.safetensors"
    assert refusal(capsys, *command, "--out", str(own), "--overwrite").startswith(f"{own} is in the model's own folder")
    link = tmp_path / "link"
    link.symlink_to(there)
    assert refusal(capsys, *command, "--out", str(link), "--overwrite").startswith(f"{link} is not a file")
    (tmp_path / "itself").symlink_to("itself")
    assert refusal(capsys, "trace", *READ, "--model", str(tmp_path / "itself"), *new).startswith("there is no model '")
    assert refusal(capsys, *command, "--out", str(tmp_path / "itself" / "x")).endswith("there is no such folder")
    if Path("/proc").is_dir():
        assert refusal(capsys, *command, "--out", "/proc/x").startswith("/proc/x cannot be written: ")


def test_a_model_without_a_tokenizer_tracks_ids(tiny: Tiny, capsys: Capture) -> None:
    _, folder = tiny("gpt2")
    line = refusal(capsys, "lens", *READ, "--model", str(folder), "--json", "--track", "cat")
    assert line == "--track needs a token id, such as #464, for a model without a tokenizer; got 'cat'"


def test_commands(capsys: Capture) -> None:
    assert refusal(capsys) == "the following arguments are required: COMMAND (see minilens --help)"
    assert refusal(capsys, "lense").startswith("argument COMMAND: invalid choice: 'lense' (choose from ")


def test_text_without_a_tokenizer(tiny: Tiny, capsys: Capture) -> None:
    _, folder = tiny("gpt2")
    assert refusal(capsys, "lens", "hello", "--model", str(folder)) == (
        f"{folder} has no tokenizer that minilens reads, so it cannot read text: give token ids with --ids"
    )


@pytest.mark.parametrize("name", ["/no/such/folder", "a b", "~nobody/x", "", "Once upon a time " * 40, "x\x1b[31m\ny"])
def test_model_names(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert repr(name) in refusal(capsys, "lens", "--ids", "1", "--model", name)


def test_a_model_name_that_the_machine_cannot_look_up(capsys: Capture, tmp_path: Path) -> None:
    """conftest.py has set the Hub's client to work offline."""
    assert refusal(capsys, "lens", "--ids", "1", "--model", "no/such-model").startswith(
        "there is no folder 'no/such-model', config.json of that repository is not in the cache, and the Hub cannot be "
    )


def test_text_that_is_not_utf8(gpt2: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9")))
    assert refusal(capsys, "lens", "--model", str(gpt2)) == "stdin is not UTF-8: it has the byte 0xe9 at 3"
    file = tmp_path / "text"
    file.write_bytes("café".encode("utf-16"))
    assert refusal(capsys, "lens", "--model", str(gpt2), "--file", str(file)) == (f"{file} is UTF-16: save it as UTF-8")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stdin", [Terminal(), None], ids=["terminal", "closed"])
def test_nothing_to_read(
    gpt2: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, stdin: io.StringIO | None
) -> None:
    monkeypatch.setattr(sys, "stdin", stdin)
    assert refusal(capsys, "lens", "--model", str(gpt2)) == f"there is nothing to read: give {TEXT}"


def test_nothing_on_stdin(gpt2: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert refusal(capsys, "lens", "--model", str(gpt2)) == "the prompt is empty: it must hold at least one token"


TOKENS = torch.tensor([[5, 17, 3]])
FLOAT = "torch.float32 on cpu"


def double(value: torch.Tensor) -> torch.Tensor:
    return 2 * value


def test_edits_that_cannot_be_built() -> None:
    with pytest.raises(ValueError, match=r'^"resid" is not a site that can be edited; those are resid_pre, q, '):
        minilens.at(0, "resid", double)
    with pytest.raises(ValueError, match=r"^layer -1 does not exist: layers count from 0$"):
        minilens.at(-1, "z", double)


def only_at_z(site: Site, value: torch.Tensor, new: Any) -> Any:
    return new if site == Site(1, "z") else value


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (minilens.at(3, "z", double), "the edit at 3.z matches nothing: the blocks run are 0 to 2"),
        (
            minilens.then(minilens.at(0, "z", double), minilens.at(9, "q", double)),
            "the edit at 9.q matches nothing: the blocks run are 0 to 2",
        ),
        (
            minilens.at(1, "z", lambda z: z[:, :, 1:]),
            f"the edit at 1.z must keep [1, 5, 3, 6] {FLOAT}; it returned [1, 5, 2, 6] {FLOAT}",
        ),
        (
            minilens.at(1, "z", torch.Tensor.double),
            f"the edit at 1.z must keep [1, 5, 3, 6] {FLOAT}; it returned [1, 5, 3, 6] torch.float64 on cpu",
        ),
        (lambda site, value: only_at_z(site, value, None), "the edit at 1.z must return a tensor; it returned None"),
        (lambda site, value: only_at_z(site, value, 0.0), "the edit at 1.z must return a tensor; it returned 0.0"),
    ],
    ids=["layer", "layer of one of two", "shape", "dtype", "nothing", "number"],
)
def test_edits_that_do_not_fit(tiny: Tiny, edit: minilens.Edit, sentence: str) -> None:
    model, _ = minilens.load(tiny("gpt2")[1])
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        minilens.trace(model, TOKENS, edit=edit)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(layers=[3]), "layer 3 does not exist: the model's layers are 0 to 2"),
        (dict(layers=[-1]), "layer -1 does not exist: the model's layers are 0 to 2"),
        (dict(sites=["scores"]), f'the lens has no rows for "scores"; it has them for {SITES}'),
        (dict(positions=[]), "positions is empty: choose at least one, or leave it out to see all"),
    ],
    ids=str,
)
def test_rows_and_columns_that_do_not_exist(tiny: Tiny, options: dict[str, Any], sentence: str) -> None:
    model, _ = minilens.load(tiny("gpt2")[1])
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        minilens.logit_lens(model, TOKENS, **options)


def test_the_lens_reads_one_text(tiny: Tiny) -> None:
    model, _ = minilens.load(tiny("gpt2")[1])
    with pytest.raises(ValueError, match=r"^logit_lens reads one text, of shape \[1, pos\]; got 2 of them: "):
        minilens.logit_lens(model, TOKENS.expand(2, 3))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ("trace(model, [[1, 2]])", "tokens must be a tensor, as tokenizer.encode gives it; got a list"),
        ("logit_lens(model, 'text')", "tokens must be a tensor, as tokenizer.encode gives it; got a str"),
        ("decode(model, model.W_E[:3], start=1)", "the stream must have the shape [batch, pos, d_model]; got [3, 30]"),
    ],
)
def test_what_the_type_checker_of_the_tests_would_catch(tiny: Tiny, call: str, sentence: str) -> None:
    """In a process of its own, where nothing checks types before the library does."""
    script = f"import minilens; model, _ = minilens.load({str(tiny('gpt2')[1])!r}); minilens.{call}"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.stderr.splitlines()[-1] == f"ValueError: {sentence}"

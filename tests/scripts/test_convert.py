"""scripts/convert.py: models in the layouts of nanoGPT, minGPT and llm.c give their own logits when they are loaded."""

import pickle
import runpy
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoTokenizer

import minilens
from minilens.course.nanogpt import from_nanogpt

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "convert.py"))
D, HEADS, LAYERS, CONTEXT = 24, 3, 2, 16
TOKENS = torch.tensor([[1, 6, 3, 0, 5, 5, 2]])


class Attention(nn.Module):
    """As in these repositories: linear layers, and heads beside one another."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.c_attn = nn.Linear(D, 3 * D, bias=bias)
        self.c_proj = nn.Linear(D, D, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.c_attn(x).split(D, -1))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(z.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Layer(nn.Module):
    def __init__(self, bias: bool, gelu: str) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(D, bias=bias), nn.LayerNorm(D, bias=bias)
        self.attn = Attention(bias)
        self.mlp = nn.ModuleDict(dict(c_fc=nn.Linear(D, 4 * D, bias=bias), c_proj=nn.Linear(4 * D, D, bias=bias)))
        self.gelu = gelu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        hidden = F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate=self.gelu)
        return x + self.mlp["c_proj"](hidden)  # type: ignore[no-any-return]


class GPT(nn.Module):
    """The model that the three share; weights large enough that no mistake hides."""

    def __init__(self, d_vocab: int = 7, *, bias: bool = True, gelu: str = "none", tied: bool = True) -> None:
        super().__init__()
        torch.manual_seed(7)
        layers = nn.ModuleList(Layer(bias, gelu) for _ in range(LAYERS))
        parts = dict(
            wte=nn.Embedding(d_vocab, D), wpe=nn.Embedding(CONTEXT, D), h=layers, ln_f=nn.LayerNorm(D, bias=bias)
        )
        self.transformer = nn.ModuleDict(parts)
        self.lm_head = nn.Linear(D, d_vocab, bias=False)
        if tied:
            self.transformer["wte"].weight = self.lm_head.weight
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(0, 0.3)

    @torch.no_grad()
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.transformer["wte"](tokens) + self.transformer["wpe"].weight[: tokens.shape[1]]
        for layer in self.transformer["h"]:
            x = layer(x)
        return self.lm_head(self.transformer["ln_f"](x))  # type: ignore[no-any-return]


def convert(*args: str | Path, folder: Path) -> tuple[minilens.Model, Any]:
    kind, checkpoint, *options = map(str, args)
    assert SCRIPT["main"]([kind, checkpoint, str(folder), *options]) == 0
    return minilens.load(folder)


def check(model: minilens.Model, reference: GPT) -> None:
    torch.testing.assert_close(model(TOKENS), reference(TOKENS), atol=2e-5, rtol=2e-5)


def nanogpt(model: GPT, path: Path, prefix: str = "", **args: Any) -> Path:
    """A checkpoint as nanoGPT's train.py writes it, optimiser and all."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    F.cross_entropy(model.lm_head(model.transformer["wte"](TOKENS[0])), TOKENS[0]).backward()
    optimizer.step()
    sizes = dict(n_layer=LAYERS, n_head=HEADS, n_embd=D, block_size=CONTEXT, bias=True, vocab_size=7, dropout=0.0)
    torch.save(
        {
            "model": {prefix + name: tensor for name, tensor in model.state_dict().items()},
            "optimizer": optimizer.state_dict(),
            "model_args": sizes | args,
            "iter_num": 250,
            "best_val_loss": torch.tensor(1.4697),
            "config": {"out_dir": "out", "learning_rate": 1e-3, "compile": True, "wandb_run_name": None},
        },
        path,
    )
    return path


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("bias", [True, False])
def test_nanogpt(tmp_path: Path, bias: bool, prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    reference = GPT(bias=bias)
    path = nanogpt(reference, tmp_path / "ckpt.pt", prefix, bias=bias)
    model, tokenizer = convert("nanogpt", path, folder=tmp_path / "folder")
    check(model, reference)
    check(from_nanogpt(torch.load(path, weights_only=True)), reference)
    assert tokenizer is None and "copy tokenizer.json of openai-community/gpt2" in capsys.readouterr().out
    assert minilens.verify(tmp_path / "folder").faults == ()


def test_an_older_nanogpt(tmp_path: Path) -> None:
    """With the tanh approximation, and with its masks stored."""
    reference = GPT(gelu="tanh")
    for layer in reference.transformer["h"]:
        layer.attn.register_buffer("bias", torch.ones(1, 1, CONTEXT, CONTEXT).tril())
    path = nanogpt(reference, tmp_path / "ckpt.pt")
    check(convert("nanogpt", path, "--activation", "gelu_new", folder=tmp_path / "folder")[0], reference)
    exact = convert("nanogpt", path, folder=tmp_path / "exact")[0]
    assert not torch.allclose(exact(TOKENS), reference(TOKENS), atol=2e-5)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_letters(tmp_path: Path, protocol: int) -> None:
    """A model of letters reads and writes them, and refuses one that it does not know."""
    alphabet = "\n abé!猫"
    meta = dict(vocab_size=7, itos=dict(enumerate(alphabet)), stoi={letter: n for n, letter in enumerate(alphabet)})
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta, protocol))
    path = nanogpt(GPT(), tmp_path / "ckpt.pt")
    _, tokenizer = convert("nanogpt", path, "--meta", tmp_path / "meta.pkl", folder=tmp_path / "folder")
    text = "ba \n\n猫é  !b"
    ids = tokenizer.encode(text)
    assert ids.tolist() == [[alphabet.index(letter) for letter in text]]
    assert tokenizer.decode(ids[0]) == text
    assert [tokenizer.piece(n) for n in ids[0].tolist()] == [letter.encode() for letter in text]
    with pytest.raises(ValueError, match=r"^the tokenizer cannot read this text: "):
        tokenizer.encode("abc")
    assert AutoTokenizer.from_pretrained(tmp_path / "folder").encode(text) == ids[0].tolist()
    assert minilens.verify(tmp_path / "folder").faults == ()


@pytest.mark.parametrize("tied", [True, False])
def test_mingpt(tmp_path: Path, tied: bool) -> None:
    reference = GPT(gelu="tanh", tied=tied)
    state = reference.state_dict()
    state |= {f"transformer.h.{n}.attn.bias": torch.ones(1, 1, CONTEXT, CONTEXT).tril() for n in range(LAYERS)}
    torch.save(state, tmp_path / "model.pt")
    model, _ = convert("mingpt", tmp_path / "model.pt", "--heads", str(HEADS), folder=tmp_path / "folder")
    check(model, reference)
    assert model.config.is_tied == tied  # type: ignore[attr-defined]


def test_mingpt_before_2022(tmp_path: Path) -> None:
    """Three matrices for queries, keys and values, in an order of their own, and other names."""
    reference = GPT(tied=False)
    state = {name.removeprefix("transformer."): tensor for name, tensor in reference.state_dict().items()}
    old = {"pos_emb": state.pop("wpe.weight")[None], "tok_emb.weight": state.pop("wte.weight")}
    old["head.weight"] = state.pop("lm_head.weight")
    for name, tensor in state.items():
        name = name.replace("h.", "blocks.", 1).replace(".ln_", ".ln") if name.startswith("h.") else name
        name = name.replace("mlp.c_fc", "mlp.0").replace("mlp.c_proj", "mlp.2").replace("attn.c_proj", "attn.proj")
        if "c_attn" in name:
            for part, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                old[name.replace("c_attn", part)] = third
        else:
            old[name] = tensor
    old |= {f"blocks.{n}.attn.mask": torch.ones(1, 1, CONTEXT, CONTEXT).tril() for n in range(LAYERS)}
    torch.save(old, tmp_path / "model.pt")
    check(convert("mingpt", tmp_path / "model.pt", "--heads", str(HEADS), folder=tmp_path / "folder")[0], reference)


def llmc(model: GPT, path: Path, version: int, padded: int) -> Path:
    """A file as llm.c's train_gpt2.py writes it."""
    state = {name.removeprefix("transformer."): tensor for name, tensor in model.state_dict().items()}
    wte = state["wte.weight"]
    state["wte.weight"] = torch.cat([wte, torch.full((max(padded, len(wte)) - len(wte), D), 9.0)])
    layers = [f"{name}.{kind}" for name in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
              for kind in ("weight", "bias")]  # fmt: skip
    names = ["wte.weight", "wpe.weight", *(f"h.{n}.{name}" for name in layers for n in range(LAYERS))]
    header = [20240326, version, CONTEXT, len(wte), LAYERS, HEADS, D, padded]
    with path.open("wb") as file:
        file.write(struct.pack("<256i", *header, *[0] * (256 - len(header))))
        for name in (*names, "ln_f.weight", "ln_f.bias"):
            tensor = state[name].to(torch.bfloat16).view(torch.int16) if version == 5 else state[name]
            file.write(tensor.contiguous().numpy().tobytes())
    return path


@pytest.mark.parametrize(("version", "padded"), [(1, 0), (3, 12), (5, 12)])
def test_llmc(tmp_path: Path, version: int, padded: int) -> None:
    reference = GPT(gelu="tanh")
    path = llmc(reference, tmp_path / "model.bin", version, padded)
    model, _ = convert("llmc", path, folder=tmp_path / "folder")
    assert model.config.d_vocab == 7  # type: ignore[attr-defined]
    if version == 5:
        reference = reference.to(torch.bfloat16).float()
    check(model, reference)


class Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one sentence, with nothing written; and no code runs, whatever the file."""
    good = nanogpt(GPT(), tmp_path / "ckpt.pt")
    torch.save({"model": GPT().state_dict(), "config": Code(tmp_path / "ran")}, tmp_path / "evil.pt")
    torch.save(GPT().state_dict(), tmp_path / "state.pt")
    torch.save({**GPT().state_dict(), "x": torch.zeros(1)}, tmp_path / "more.pt")
    torch.save({"a": [1, 2.5]}, tmp_path / "other.pt")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"stoi": Code(tmp_path / "ran")}))
    (tmp_path / "words.pkl").write_bytes(pickle.dumps({"stoi": {"ab": 0}}))
    (tmp_path / "many.pkl").write_bytes(pickle.dumps({"stoi": {chr(97 + n): n for n in range(8)}}))
    bin = llmc(GPT(), tmp_path / "model.bin", 3, 12)
    (tmp_path / "cut.bin").write_bytes(bin.read_bytes()[:-4])
    descendant = nanogpt(GPT(), tmp_path / "rope.pt", use_rotary=True)
    for args, sentence in (
        (["nanogpt", tmp_path / "evil.pt"], "it asks for 'pathlib Path.touch'|runs no code"),
        (["nanogpt", tmp_path / "other.pt"], "holds no state dict"),
        (["nanogpt", tmp_path / "more.pt", "--heads", "3"], "GPT-2 has no place for the tensor 'x'"),
        (["nanogpt", descendant], "nanoGPT's model has no use_rotary, here true"),
        (["nanogpt", bin], "or no file that torch.save wrote|not a file that torch.save wrote"),
        (["nanogpt", good, "--meta", tmp_path / "evil.pkl"], "cannot be read: "),
        (["nanogpt", good, "--meta", tmp_path / "words.pkl"], "its stoi does not give each letter a number"),
        (["nanogpt", good, "--meta", tmp_path / "many.pkl"], "has 8 letters, the model 7"),
        (["mingpt", tmp_path / "state.pt"], "give heads= (in the command --heads); got 0"),
        (
            ["mingpt", tmp_path / "state.pt", "--heads", "5"],
            "must divide d_model, 24: give heads= (in the command --heads); got 5",
        ),
        (["llmc", good], "is no model of llm.c"),
        (["llmc", tmp_path / "cut.bin"], "is cut short or broken"),
        (["llmc", llmc(GPT(), tmp_path / "old.bin", 2, 0)], "has the version 2 of llm.c's format: write it again"),
        (["llmc", tmp_path / "none"], "No such file"),
    ):
        kind, *rest = map(str, args)
        assert SCRIPT["main"]([kind, rest[0], str(tmp_path / "folder"), *rest[1:]]) == 2, args
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1
        assert any(part in err for part in sentence.split("|")), err
        assert not (tmp_path / "folder").exists()
    assert not (tmp_path / "ran").exists()
    assert SCRIPT["main"](["nanogpt", str(good), str(tmp_path)]) == 2
    assert f"{tmp_path} is there: give another name" in capsys.readouterr().err

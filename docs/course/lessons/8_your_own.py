# %% text
# # 8. Your own nanoGPT through the lens
#
# An hour and a half. You train a small GPT of letters, laid out as in
# [nanoGPT](https://github.com/karpathy/nanoGPT), and keep it as it was before, on the way and at the end. Then you
# bring it to minilens, and read what its rows say as it learns.
#
# **Before you begin, write down:** which row will be nearest to the output, and at which step?
# %% code
import random

random.seed(0)


def tale() -> str:
    one, other = random.sample(["Tom", "Sue", "Ben", "Mia"], 2)
    thing, left = random.sample(["ball", "kite", "drum", "cake"], 2)
    return f"{one} has a {thing}. {other} has a {left}. {one} gives the {thing} to {other}. "


text, unseen = ("".join(tale() for _ in range(n)) for n in (2000, 30))
letters = sorted(set(text))
data, held_out = (torch.tensor([letters.index(letter) for letter in each]) for each in (text, unseen))
print(unseen[:110])
# %% text
# The model, with the names that it has in nanoGPT's `model.py`. Like nanoGPT's own runs it has no biases.
# %% code
from torch import nn
from torch.nn import functional as F

SIZES = dict(n_layer=3, n_head=4, n_embd=48, block_size=48, vocab_size=len(letters), bias=False, dropout=0.0)
D = SIZES["n_embd"]


def linear(n_in: int, n_out: int) -> nn.Linear:
    return nn.Linear(n_in, n_out, bias=False)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(D, bias=False), nn.LayerNorm(D, bias=False)
        self.attn = nn.ModuleDict(dict(c_attn=linear(D, 3 * D), c_proj=linear(D, D)))
        self.mlp = nn.ModuleDict(dict(c_fc=linear(D, 4 * D), c_proj=linear(4 * D, D)))

    def forward(self, x):
        q, k, v = (
            part.unflatten(-1, (SIZES["n_head"], -1)).transpose(1, 2)
            for part in self.attn["c_attn"](self.ln_1(x)).split(D, -1)
        )
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn["c_proj"](z.transpose(1, 2).flatten(-2))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer = nn.ModuleDict(
            dict(
                wte=nn.Embedding(SIZES["vocab_size"], D),
                wpe=nn.Embedding(SIZES["block_size"], D),
                h=nn.ModuleList(Block() for _ in range(SIZES["n_layer"])),
                ln_f=nn.LayerNorm(D, bias=False),
            )
        )
        self.lm_head = linear(D, SIZES["vocab_size"])
        self.lm_head.weight = self.transformer["wte"].weight  # one matrix for both
        for weight in self.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02)

    def forward(self, tokens):
        x = self.transformer["wte"](tokens) + self.transformer["wpe"].weight[: tokens.shape[1]]
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


# %% text
# 120 steps take seconds. Three checkpoints are kept, each the dict that nanoGPT writes as `ckpt.pt`, without the
# optimizer.
#
# **A nanoGPT of your own?** In the place of the next cell put `kept = {step: torch.load(path, weights_only=True)}`,
# with its untrained model as step 0, and take `letters` and the texts from its data. nanoGPT writes `ckpt.pt` over the
# last one each time: copy it on the way.
# %% code
KEPT = (0, 15, 120)

torch.manual_seed(0)
gpt = GPT()
optimizer = torch.optim.AdamW(gpt.parameters(), lr=8e-3, betas=(0.9, 0.99))
kept = {}
for step in range(KEPT[-1] + 1):
    if step in KEPT:
        state = {name: tensor.detach().clone() for name, tensor in gpt.state_dict().items()}
        kept[step] = {"model": state, "model_args": SIZES, "iter_num": step}
    start = torch.randint(len(data) - 48, (8,))
    batch = data[start[:, None] + torch.arange(49)]
    loss = F.cross_entropy(gpt(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

rows = held_out[: len(held_out) // 49 * 49].view(-1, 49)
tokens, following = rows[:, :-1], rows[:, 1:]  # of each text 48 letters, and the true next ones
{name: list(tensor.shape) for name, tensor in kept[120]["model"].items() if ".0." in name or ".h." not in name}
# %% exercise 8.1, 35 minutes
# Bring the last checkpoint to minilens by hand: make the tensors of a GPT-2 of it, write them into `folder` and load
# that. The answer is the loaded model's logits for `tokens`. `config.json` stands there already.
# hint: The names are GPT-2's, but for `transformer.` before them, which may stay. `save_file(dict_of_tensors, folder /
# "model.safetensors")` writes them, each with memory of its own: `tensor.clone()`. `minilens.load(folder)` says what is
# missing.
# hint: GPT-2 has a bias beside each weight of a linear layer and of a norm: `h.0.ln_1.bias` beside `h.0.ln_1.weight`.
# One that was trained without has zeros there, as many as the layer gives out.
# hint: `nn.Linear` holds a matrix as [out, in] and computes x @ W.T. GPT-2's files hold it as [in, out]. Transpose the
# four of each block, `c_attn`, `c_fc` and both `c_proj`; the embeddings stay.
# null: `attn.c_proj` is square, so it loads without a word when it is not transposed. Would you see it in the logits of
# the model at step 0? Try it: an untrained model hides mistakes.
# with: kept[120], tokens
import json
import tempfile
from pathlib import Path

from safetensors.torch import save_file

folder = Path(tempfile.mkdtemp())
config = dict(model_type="gpt2", n_layer=3, n_head=4, n_embd=48, n_positions=48, vocab_size=len(letters))
(folder / "config.json").write_text(json.dumps(config | dict(activation_function="gelu")))  # nanoGPT's is the exact one
# solution
tensors = {}
for name, tensor in kept[120]["model"].items():
    is_matrix = ".h." in name and tensor.ndim == 2
    tensors[name] = (tensor.T if is_matrix else tensor).clone(memory_format=torch.contiguous_format)
    if ".h." in name or ".ln_f." in name:
        tensors[name.replace("weight", "bias")] = torch.zeros(tensor.shape[0])
save_file(tensors, folder / "model.safetensors")
model, _ = minilens.load(folder)
answer_8_1 = model(tokens)
# %% text
# That is what `from_nanogpt` does, with checks. It takes any checkpoint of nanoGPT: with biases or without, with the
# `_orig_mod.` that `torch.compile` puts before all names, a state dict alone (then `heads=` too).
# %% code
from minilens.course.nanogpt import from_nanogpt

models = {step: from_nanogpt(checkpoint) for step, checkpoint in kept.items()}
for step, model in models.items():
    print(f"step {step:3}  reads   {unseen[:48]!r}")
    for row in minilens.lens_rows(model, tokens[:1]):
        print(f"{row.label:>16} {''.join(letters[token] for token in row.logits[0].argmax(-1))!r}")
# %% exercise 8.2, 25 minutes
# How much does each row know? The mean cross-entropy, in nats, of the true next letter: a tensor [step, row], three
# steps by four rows.
# hint: `minilens.lens_rows(model, tokens)` gives the rows, each with `row.logits` [text, position, letter].
# hint: The cross-entropy is -ln p of the true next letter; `F.cross_entropy(row.logits.flatten(0, 1),
# following.flatten())` is its mean.
# null: one who knows nothing gives each letter the same: ln 24 = 3.18 nats. The untrained model is such a one. What of
# a row that is above?
# with: kept, tokens, following
# solution
answer_8_2 = torch.tensor(
    [
        [
            F.cross_entropy(row.logits.flatten(0, 1), following.flatten()).item()
            for row in minilens.lens_rows(model, tokens)
        ]
        for model in models.values()
    ]
)
# %% exercise 8.3, 25 minutes
# How far is each row from the output? The mean KL(output ‖ row), again [step, row]. At which step do the rows agree
# with the output best?
# hint: KL is the sum over the letters of p * (ln p - ln q), where p is the output's probability and q the row's.
# hint: `row.logits.log_softmax(-1)` is ln q; the last row is the output.
# null: the model at step 0. Nobody taught its rows anything, so what they show is what would be there anyway.
# with: kept, tokens
# solution
answer_8_3 = torch.empty(3, 4)
for at, model in enumerate(models.values()):
    logprobs = [row.logits.log_softmax(-1) for row in minilens.lens_rows(model, tokens)]
    for n, row in enumerate(logprobs):
        answer_8_3[at, n] = (logprobs[-1].exp() * (logprobs[-1] - row)).sum(-1).mean()
# %% text
# So hold every KL against that of the untrained model, and look at what a row knows beside how near it is. Was your
# guess right?
#
# In the shell it is `python scripts/convert.py nanogpt out/ckpt.pt FOLDER --meta meta.pkl`, from minilens' repository,
# which keeps the letters too. Then `minilens lens TEXT --model FOLDER --html page.html` shows the rows, and `minilens
# serve FOLDER` opens a page in which your model computes.

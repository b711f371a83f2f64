"""Mistakes as students make them, planted in the solution of a family; how many of them `check` finds and names."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from minilens.course.check import check
from minilens.course.exercise import solution

ALL = "gpt2 gpt_neo ctrl"
GPT2, NEO, CTRL = ALL.split()
LN = "F.layer_norm(resid, norm.w.shape, norm.w, norm.b, eps)"
GELU = 'F.gelu(x, approximate="tanh")'
SPLIT = "x.view(*x.shape[:-1], n_heads, -1).transpose(1, 2)"
SINES = "torch.cat([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=-1)"


class Planted(NamedTuple):
    """A mistake in the words of a student, in the solution of some families."""

    families: str
    right: str
    wrong: str
    named: str  # part of the diagnosis; nothing where no known mistake gives these numbers


# fmt: off
PLANTED = [
    # In the functions
    Planted(ALL, LN, "(resid - resid.mean(-1, keepdim=True)) / torch.sqrt(torch.var(resid, -1, keepdim=True) + eps) * norm.w + norm.b", "unbiased"),
    Planted(GPT2, LN, "(resid - resid.mean(-1, keepdim=True)) / (torch.std(resid, -1, keepdim=True) + eps) * norm.w + norm.b", "unbiased"),
    Planted(NEO, LN, "F.layer_norm(resid, resid.shape[-1:], weight=norm.w, bias=norm.b, eps=0.0)", "epsilon is missing"),
    Planted(CTRL, LN, "F.layer_norm(resid, resid.shape[-1:], norm.w, norm.b)", "1e-5"),
    Planted(NEO, LN, "F.layer_norm(resid, resid.shape[-1:], eps=eps)", "Gain and bias of the norm are forgotten"),
    Planted(CTRL, LN, "F.layer_norm(resid, resid.shape[-1:], norm.w, eps=eps)", "bias of the norm is forgotten"),
    Planted(GPT2, LN, "resid * torch.rsqrt((resid * resid).mean(-1, keepdim=True) + eps) * norm.w + norm.b", "RMSNorm"),
    Planted(CTRL, LN, "(resid - resid.mean()) / (resid.var(unbiased=False) + eps) ** 0.5 * norm.w + norm.b", "over everything"),
    Planted(ALL, "F.linear(x, W.mT, b)", "torch.einsum('bpi,io->bpo', x, W)", "bias is forgotten"),
    Planted(ALL, SPLIT, "x.reshape(x.size(0), x.size(1), n_heads, x.size(2) // n_heads)", "after the positions"),
    Planted(ALL, SPLIT, "x.reshape(x.size(0), n_heads, x.size(1), -1)", "mixes positions and heads"),
    Planted(ALL, SPLIT, "x.unflatten(-1, (-1, n_heads)).permute(0, 3, 1, 2)", "cut the other way"),
    Planted(ALL, "z.transpose(1, 2).flatten(-2)", "z.reshape(z.size(0), z.size(2), -1)", "mixes positions and heads"),
    Planted(ALL, "torch.ones(n, n, dtype=torch.bool, device=resid.device).tril()", "torch.arange(n)[None] <= torch.arange(n)[:, None] + 1", "off by one"),
    Planted(ALL, "torch.ones(n, n, dtype=torch.bool, device=resid.device).tril()", "torch.arange(n)[None] < torch.arange(n)[:, None]", "does not see itself"),
    Planted(ALL, "torch.ones(n, n, dtype=torch.bool, device=resid.device).tril()", "torch.triu(torch.ones(n, n), 1).bool()", "True for what is hidden"),
    Planted(ALL, "upcast(q) @ upcast(k).mT", "torch.einsum('bhkd,bhqd->bhkq', k, q)", "exchanged"),
    Planted(ALL, "scores.softmax(-1, dtype=torch.promote_types(dtype, torch.float32)).to(dtype)", "F.softmax(scores, dim=2)", "over the queries"),
    Planted(CTRL, "scores.softmax(-1, dtype=torch.promote_types(dtype, torch.float32)).to(dtype)", "F.softmax(scores, dim=1)", "over the heads"),
    Planted(ALL, "scores.softmax(-1, dtype=torch.promote_types(dtype, torch.float32)).to(dtype)", "torch.exp(scores)", "division by the sum"),
    Planted(NEO, GELU, "torch.nn.GELU()(x)", "exact GELU"),
    Planted(GPT2, GELU, "0.5 * x * (1 + torch.erf(x / math.sqrt(2)))", "exact GELU"),
    Planted(GPT2, GELU, "x * torch.sigmoid(1.702 * x)", "sigmoid approximation"),
    Planted(NEO, GELU, "torch.clamp(x, min=0)", "ReLU"),
    Planted(GPT2, GELU, "torch.clamp(x, 0, 6)", "ReLU6"),
    Planted(f"{GPT2} {NEO}", GELU, "0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.0444715 * x**3)))", ""),
    Planted(GPT2, GELU, "F.dropout(F.gelu(x, approximate='tanh'), 0.1)", "random numbers"),
    Planted(CTRL, SINES, "torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], -1).reshape(n, d_model)", "take turns"),
    Planted(CTRL, SINES, "torch.cat([angles[:, 0::2].cos(), angles[:, 1::2].sin()], -1)", "cosines stand before"),
    Planted(CTRL, "for size in (d_model, n))", "for size in (d_model, n)); position = position + 1", "from 0"),
    Planted(CTRL, "torch.pow(10000,", "torch.pow(1000,", "not 1000"),
    # Around the blocks
    Planted(f"{GPT2} {NEO}", "self.W_E[tokens] + self.positions(tokens.shape[1])", "F.embedding(tokens, self.W_E)", "not added"),
    Planted(GPT2, "self.W_E[tokens] + self.positions(tokens.shape[1])", "self.W_E[tokens] + self.W_pos[1 : 1 + tokens.shape[1]]", "off by one"),
    Planted(NEO, "self.W_E[tokens] + self.positions(tokens.shape[1])", "self.W_E[tokens] * self.W_E.shape[1] ** 0.5 + self.positions(tokens.shape[1])", "CTRL's"),
    Planted(f"{GPT2} {NEO}", "self.W_pos[:n]", "self.W_pos[torch.arange(1, n + 1)]", "off by one"),
    Planted(CTRL, "self.W_E[tokens] * math.sqrt(self.config.d_model)", "self.W_E[tokens]", "not scaled"),
    Planted(CTRL, "self.W_E[tokens] * math.sqrt(self.config.d_model) + self.positions(tokens.shape[1])", "(self.W_E[tokens] + self.positions(tokens.shape[1])) * 16", "positions are scaled too"),
    Planted(CTRL, "self.W_E[tokens] * math.sqrt(self.config.d_model)", "self.W_E[tokens] * self.config.n_heads", ""),
    Planted(ALL, "layer_norm(resid, self.ln_final, self.ln_final_eps)", "resid", "does nothing"),
    Planted(ALL, "linear(self.final_norm(resid), self.W_U, self.b_U)", "linear(resid, self.W_U, self.b_U)", "final norm is missing"),
    Planted(ALL, "linear(self.final_norm(resid), self.W_U, self.b_U)", "linear(self.final_norm(self.final_norm(resid)), self.W_U, self.b_U)", "twice"),
    Planted(CTRL, "linear(self.final_norm(resid), self.W_U, self.b_U)", "self.final_norm(resid) @ self.W_U", "b_U is forgotten"),
    Planted(NEO, "linear(self.final_norm(resid), self.W_U, self.b_U)", "linear(self.final_norm(resid), self.W_U, self.b_U).softmax(dim=-1)", "probabilities"),
    Planted(CTRL, "layer_norm(resid, self.ln_final, self.ln_final_eps)", "layer_norm(resid, self.ln_final, self.config.ln_eps)", "epsilon is that of the blocks"),
    Planted(ALL, "rows = [self.unembed(resid)]", "rows = []", "first row is missing"),
    Planted(GPT2, "rows.append(self.unembed(resid))", "rows.append(self.unembed(resid).log_softmax(dim=-1))", "After the blocks these are log-probabilities"),
    Planted(NEO, "return rows", "return [F.softmax(row, dim=-1) for row in rows]", "These are probabilities"),
    # In the block
    Planted(CTRL, "layer_norm(resid_pre, w.ln1, cfg.ln_eps)", "layer_norm(resid_pre, w.ln1, self.ln_final_eps)", "that of the final norm"),
    Planted(ALL, "layer_norm(resid_pre, w.ln1, cfg.ln_eps)", "resid_pre", "The norm does nothing"),
    Planted(ALL, "layer_norm(resid_pre, w.ln1, cfg.ln_eps)", "layer_norm(resid_pre, w.ln2, cfg.ln_eps)", "w.ln2"),
    Planted(ALL, "layer_norm(resid_pre, w.ln1, cfg.ln_eps)", "layer_norm(layer_norm(resid_pre, w.ln1, cfg.ln_eps), w.ln1, cfg.ln_eps)", ""),
    Planted(GPT2, "q, k, v = linear(ln1_out, w.W_QKV, w.b_QKV).chunk(3, -1)", "q, v, k = torch.split(linear(ln1_out, w.W_QKV, w.b_QKV), cfg.d_model, -1)", "Keys and values are exchanged"),
    Planted(GPT2, "q, k, v = linear(ln1_out, w.W_QKV, w.b_QKV).chunk(3, -1)", "k, q, v = linear(ln1_out, w.W_QKV, w.b_QKV).chunk(3, dim=-1)", "Queries and keys are exchanged"),
    Planted(GPT2, "linear(ln1_out, w.W_QKV, w.b_QKV).chunk(3, -1)", "(ln1_out @ w.W_QKV).chunk(3, -1)", "bias is forgotten"),
    Planted(GPT2, "linear(ln1_out, w.W_QKV, w.b_QKV).chunk(3, -1)", "linear(resid, w.W_QKV, w.b_QKV).chunk(3, -1)", "reads the stream itself"),
    Planted(NEO, "linear(ln1_out, w.W_Q), linear(ln1_out, w.W_K), linear(ln1_out, w.W_V)", "(resid_pre @ w.W_Q, resid_pre @ w.W_K, resid_pre @ w.W_V)", "All three read the stream"),
    Planted(NEO, "linear(ln1_out, w.W_Q), linear(ln1_out, w.W_K), linear(ln1_out, w.W_V)", "ln1_out @ w.W_Q, ln1_out @ w.W_K.T, ln1_out @ w.W_V", "W_K is transposed"),
    Planted(NEO, "q, k, v = linear(ln1_out, w.W_Q), linear(ln1_out, w.W_K)", "q, k, v = linear(ln1_out, w.W_K), linear(ln1_out, w.W_Q)", "exchanged"),
    Planted(NEO, "linear(ln1_out, w.W_K)", "linear(ln1_out, w.W_Q)", "must be W_K"),
    Planted(CTRL, "linear(ln1_out, w.W_K, w.b_K)", "linear(ln1_out, w.W_Q, w.b_Q)", "must be W_K and b_K"),
    Planted(CTRL, "linear(ln1_out, w.W_K, w.b_K)", "linear(ln1_out, w.W_K)", "b_K is forgotten"),
    Planted(CTRL, "linear(ln1_out, w.W_K, w.b_K)", "linear(ln1_out, w.W_K, w.b_Q)", "must be b_K"),
    Planted(CTRL, "linear(ln1_out, w.W_Q, w.b_Q), linear(ln1_out, w.W_K, w.b_K), linear(ln1_out, w.W_V, w.b_V)", "[linear(ln1_out, W, w.b_Q) for W in (w.W_Q, w.W_K, w.W_V)]", "All three have the bias b_Q"),
    Planted(CTRL, "linear(ln1_out, w.W_Q, w.b_Q), linear(ln1_out, w.W_K, w.b_K), linear(ln1_out, w.W_V, w.b_V)", "[ln1_out @ W for W in (w.W_Q, w.W_K, w.W_V)]", "biases b_Q, b_K and b_V"),
    Planted(ALL, "k = split_heads(k, cfg.n_heads)", "k = split_heads(v, cfg.n_heads)", "numbers of v"),
    Planted(f"{GPT2}", "attention_scores(q * cfg.score_scale[layer], k)", "q @ k.transpose(-2, -1)", "not scaled"),
    Planted(f"{CTRL}", "attention_scores(q * q.shape[-1] ** -0.5, k)", "q @ k.transpose(-2, -1)", "not scaled"),
    Planted(GPT2, "attention_scores(q * cfg.score_scale[layer], k)", "cfg.score_scale[0] * attention_scores(q, k)", "scale of layer 0"),
    Planted(GPT2, "attention_scores(q * cfg.score_scale[layer], k)", "attention_scores(q, k) / math.sqrt(cfg.d_model)", "sqrt(d_model)"),
    Planted(CTRL, "attention_scores(q * q.shape[-1] ** -0.5, k)", "attention_scores(q, k) / (cfg.d_model // cfg.n_heads)", "its square root"),
    Planted(NEO, "attention_scores(q.float(), k.float())", "attention_scores(q, k) / math.sqrt(q.shape[-1])", "GPT-Neo's are not"),
    Planted(NEO, "visible.triu(1 - cfg.window)", "visible & (torch.ones_like(visible).triu(-cfg.window))", "one too long"),
    Planted(NEO, "visible.triu(1 - cfg.window)", "visible.triu(-(cfg.window - 2))", "one too short"),
    Planted(NEO, "if cfg.is_local[layer]:", "if layer % 2 == 0:", "Local and global layers are exchanged"),
    Planted(NEO, "if cfg.is_local[layer]:", "if False:", "window is not used"),
    Planted(ALL, "scores.where(visible, -torch.inf)", "torch.where(visible, -math.inf, scores)", "What is visible is hidden"),
    Planted(NEO, "scores.where(visible, -torch.inf)", "scores - 1e9 * visible", "What is visible is hidden"),
    Planted(CTRL, "attention_scores(q * q.shape[-1] ** -0.5, k)", "attention_scores(q, k) / math.sqrt(cfg.d_mlp)", "as much as d_head"),
    Planted(ALL, "scores.where(visible, -torch.inf)", "torch.where(visible, scores, 0.0)", "exp(0) is 1"),
    Planted(ALL, "pattern @ v  #", "torch.einsum('bhqk,bhqd->bhkd', pattern, v)  #", "transposed"),
    Planted(ALL, "pattern @ v  #", "pattern @ k  #", "keys are averaged"),
    Planted(ALL, "linear(merge_heads(z), w.W_O, w.b_O)", "merge_heads(z) @ w.W_O", "b_O is forgotten"),
    Planted(ALL, "linear(merge_heads(z), w.W_O, w.b_O)", "F.linear(merge_heads(z), w.W_O, w.b_O)", "transposed"),
    Planted(ALL, "resid_mid = resid_pre + attn_out", "resid_mid = attn_out", "numbers of attn_out"),
    Planted(ALL, "resid_mid = resid_pre + attn_out", "resid_mid = layer_norm(resid_pre + attn_out, w.ln1, cfg.ln_eps)", "after the sum"),
    Planted(ALL, "layer_norm(resid_mid, w.ln2, cfg.ln_eps)", "layer_norm(resid, w.ln2, cfg.ln_eps)", "attention's part"),
    Planted(ALL, "linear(ln2_out, w.W_in, w.b_in)", "ln2_out @ w.W_in", "b_in is forgotten"),
    Planted(ALL, "linear(ln2_out, w.W_in, w.b_in)", "linear(resid_mid, w.W_in, w.b_in)", "reads the stream itself"),
    Planted(CTRL, "mlp_pre.relu()", "F.gelu(mlp_pre)", "CTRL has a ReLU"),
    Planted(CTRL, "mlp_pre.relu()", "F.hardtanh(mlp_pre, 0, 6)", "ReLU6"),
    Planted(CTRL, "mlp_pre.relu()", "F.elu(mlp_pre)", ""),
    Planted(ALL, "linear(mlp_post, w.W_out, w.b_out)", "linear(mlp_pre, w.W_out, w.b_out)", "before the activation"),
    Planted(ALL, "linear(mlp_post, w.W_out, w.b_out)", "linear(mlp_post, w.W_out, w.b_O)", "must be b_out"),
    Planted(ALL, "resid_post = resid_mid + mlp_out", "resid_post = resid_pre + mlp_out", "before attention"),
    Planted(ALL, "resid_post = resid_mid + mlp_out", "resid_post = mlp_out", "numbers of mlp_out"),
    Planted(ALL, "resid_post = resid_mid + mlp_out", "resid_post = resid_mid + 0.5 * mlp_out", ""),
    Planted(ALL, "resid_post = resid_mid + mlp_out", "resid_post = resid_mid + mlp_out + w.b_out", ""),
]

LOOP = """z = torch.zeros_like(v)
        for head in range(cfg.n_heads):
            weights = pattern[:, head]
            z[:, head] = weights @ v[:, head]
"""


# Lines that cannot stand so: family, what is right and wrong, the line to name, what is told of it, and its mistake.
# With LOOP in the place of `z = pattern @ v`.
CANNOT_STAND = [
    # At the wrong level: in a loop or an `if`, or not
    ("gpt2", "        return rows", "            return rows", "return rows", "has the shape", "It stands in the loop; it belongs after it."),
    ("gpt2", "    rows.append(", "rows.append(", "rows.append(", "has the shape", "It stands after the loop; it belongs in it."),
    ("gpt2", LOOP, LOOP.replace("    z[", "z["), "z[:, head]", "only at head 0 to 6", "It stands after the loop; it belongs in it."),
    ("gpt2", LOOP, "for head in range(cfg.n_heads):\n            z = torch.zeros_like(v)\n            z[:, head] = pattern[:, head] @ v[:, head]\n", "z = torch.zeros", "only at head", "It is made anew in each round of the loop; it belongs before it."),
    ("gpt_neo", "        scores = scores.where", "            scores = scores.where", "scores = scores.where", "the model's is -inf", "It stands in the `if`; it belongs after it."),
    ("ctrl", "resid_mid + mlp_out", "resid_mid + F.dropout(mlp_out)", "dropout", "resid_post differs at", "It draws random numbers: is there a dropout?"),
    # A name that is spelled wrong, or is another's
    ("ctrl", "split_heads(q, cfg.n_heads)", "split_heads(q, n_heads)", "split_heads(q", "there is no name n_heads here: did you mean cfg.n_heads?", ""),
    ("gpt2", "pattern = softmax", "patern = softmax", "patern", "no line of block gives pattern, and others read it; this one gives patern: is it a typo?", ""),
    ("gpt2", "weights @ v", "weigths @ v", "weigths", "there is no name weigths here: did you mean weights?", ""),
    ("gpt2", "w.W_in", "w.W_inn", "w.W_inn", "Block has no W_inn: did you mean W_in?", ""),
    ("gpt2", "def final_norm", "def finalnorm", "def finalnorm", "there is no function final_norm, but finalnorm is here", ""),
    ("gpt2", "resid_pre = resid ", "resid_pre == resid ", "resid_pre == resid", "this one compares (==) and gives nothing", ""),
    # What is given back, or held
    ("gpt2", "self.blocks[layer], self.config", "self.blocks[0], self.config", "self.blocks[0]", "in layer 1 w has the weights of block 0", ""),
    ("gpt2", "flatten(-2)", "flatten(-2),", "flatten(-2),", "is a tuple of one, and should be a tensor [batch 2, pos 12, d_model 256]: is there a comma", ""),
    ("gpt2", "z.transpose(1, 2).flatten(-2)", "merge_heads(z)", "merge_heads(z)", "it calls itself without an end", ""),
    # Shapes that do not fit
    ("gpt2", "upcast(k).mT", "upcast(k)", "upcast(k)", "the first has 32 numbers, and the second has 12 rows (here q is [2, 8, 12, 32], k is [2, 8, 12, 32]); it should give [batch 2, head 8, query 12, key 12]", ""),
    ("gpt2", "resid_pre + attn_out", "resid_pre + z", "resid_pre + z", "along axis 3 one has 256 places, the other 32 (here resid_pre is [2, 12, 256], z is [2, 8, 12, 32]); resid_mid should be", ""),
    ("gpt2", "resid = self.block(layer, resid).resid_post", "resid = self.block(layer, resid)", "self.unembed(resid))", "it takes a whole BlockTrace for a tensor", ""),
    ("gpt2", ".chunk(3, -1)", "", "linear(ln1_out", "there are 3 names on the left, and 2 values on the right", ""),
    ("gpt2", "w.W_in, w.b_in", "w.W_in, w.b_out", "w.W_in", "a tensor of 256 numbers stands where 1024 are needed", ""),
    ("gpt2", "flatten(-2)", "view(z.shape[0], z.shape[2], -1)", ".view(", "view cannot join axes that have been exchanged", ""),
]
# fmt: on


class Measured(NamedTuple):
    """What became of the mistakes planted in one family."""

    planted: int
    not_found: list[Any]  # mistakes whose line is right to `check`, and lines that it calls wrong without one
    not_named: list[Planted]
    wrong: list[tuple[Planted, str]]  # and what they were said to be


def measured(family: str) -> Measured:
    """Plant all mistakes of a family, and check."""
    total = Measured(sum(family in each.families.split() for each in PLANTED), [], [], [])
    for source, mistakes in files(family):
        results = [result for result in check(source, "mine.py") if result.verdict != "right"]
        found = {place_of(source, result.line): result for result in results}
        total.not_found.extend(each for place, each in mistakes.items() if place not in found)
        total.not_found.extend(result for place, result in found.items() if place not in mistakes)
        for place in mistakes.keys() & found.keys():
            each, told = mistakes[place], found[place].mistake
            if not told:
                total.not_named.append(each)
            elif not each.named or each.named not in told:
                total.wrong.append((each, told))
    return total


def files(family: str) -> Iterator[tuple[str, dict[str, Planted]]]:
    """The solution of a family with mistakes, in each file as many as there are different places, by these places."""
    right, left = solution(family), [each for each in PLANTED if family in each.families.split()]
    while left:
        source, now = right, {}
        for each in left:
            assert right.count(each.right) == 1, each.right
            place = place_of(right, right[: right.index(each.right)].count("\n") + 1)
            if place not in now:
                now[place] = each
                source = source.replace(each.right, each.wrong)
        yield source, now
        left = [each for each in left if each not in now.values()]


def place_of(source: str, line: int) -> str:
    """The function that holds this line; in `block` the statement, by its first line."""
    lines = source.splitlines()[:line]
    (*_, name) = re.findall(r"def (\w+)", "\n".join(lines))
    first = max((at for at, text in enumerate(lines, 1) if re.match(r" {8}\S", text)), default=0)
    return name if name != "block" else f"{first}"

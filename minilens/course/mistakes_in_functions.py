"""Mistakes in the operations and in the methods around `block`: by function and by a part of its source, what stands
there instead, and the sentence for the student.
"""

IN_FUNCTIONS: dict[tuple[str, str], dict[str, str]] = {
    ("layer_norm", "F.layer_norm(resid, norm.w.shape, norm.w, norm.b, eps)"): {
        "F.layer_norm(resid, norm.w.shape, norm.w, norm.b, 0)": "The epsilon is missing.",
        "F.layer_norm(resid, norm.w.shape, norm.w, norm.b, 1e-5)": "The epsilon is 1e-5, and not the one given.",
        "F.layer_norm(resid, norm.w.shape, norm.w, norm.b, 1e-6)": "The epsilon is 1e-6, and not the one given.",
        "F.layer_norm(resid, norm.w.shape, norm.w, norm.b, 1e-8)": "The epsilon is 1e-8, and not the one given.",
        "F.layer_norm(resid, norm.w.shape, norm.w, None, eps)": "The bias of the norm is forgotten.",
        "F.layer_norm(resid, norm.w.shape, None, norm.b, eps)": "The gain of the norm is forgotten.",
        "F.layer_norm(resid, norm.w.shape, None, None, eps)": "Gain and bias of the norm are forgotten.",
        "F.layer_norm(resid, norm.w.shape, norm.b, norm.w, eps)": "Gain and bias of the norm are exchanged.",
        "F.layer_norm(resid, norm.w.shape, None, norm.b / norm.w, eps) * norm.w**2": "The gain is taken twice.",
        "(F.layer_norm(resid, norm.w.shape, None, norm.b, eps)) * norm.w": "The bias is added before the gain is "
        "multiplied; it comes after.",
        "(resid - resid.mean(-1, True)) / (resid.var(-1, keepdim=True) + eps).sqrt() * norm.w + norm.b": "The variance "
        "is the unbiased one, divided by n - 1 (torch's default); it must be divided by n: correction=0.",
        "(resid - resid.mean(-1, True)) / (resid.std(-1, keepdim=True) + eps) * norm.w + norm.b": "The standard "
        "deviation is the unbiased one (torch's default), and epsilon is added to it; epsilon goes to the biased "
        "variance, before the root.",
        "(resid - resid.mean(-1, True)) / resid.std(-1, keepdim=True) * norm.w + norm.b": "The standard deviation is "
        "the unbiased one (torch's default), and the epsilon is missing.",
        "(resid - resid.mean(-1, True)) / (resid.std(-1, correction=0, keepdim=True) + eps) * norm.w + norm.b": "The "
        "epsilon is added to the standard deviation; it goes to the variance, before the root.",
        "(resid - resid.mean(-1, True)) / (resid.var(-1, correction=0, keepdim=True) + eps) * norm.w + norm.b": "It is "
        "divided by the variance; the square root is missing.",
        "(resid - resid.mean(-1, True)) / resid.norm(dim=-1, keepdim=True) * norm.w + norm.b": "It is divided by the "
        "length of the vector, not by the standard deviation.",
        "(resid - resid.mean(-1, True)) * norm.w + norm.b": "The division by the standard deviation is missing.",
        "resid / (resid.var(-1, correction=0, keepdim=True) + eps).sqrt() * norm.w + norm.b": "The mean is not "
        "subtracted.",
        "resid / (resid.pow(2).mean(-1, keepdim=True) + eps).sqrt() * norm.w + norm.b": "This is an RMSNorm: the mean "
        "is not subtracted.",
        "resid / (resid.pow(2).mean(-1, keepdim=True) + eps).sqrt() * norm.w": "This is an RMSNorm: no mean is "
        "subtracted, no bias added.",
        "(resid - resid.mean(1, True)) / (resid.var(1, correction=0, keepdim=True) + eps).sqrt() * norm.w + norm.b": ""
        "Mean and variance are taken over the positions; they are taken over the last axis.",
        "(resid - resid.mean()) / (resid.var(correction=0) + eps).sqrt() * norm.w + norm.b": "Mean and variance are "
        "taken over everything; each position has its own.",
        "F.layer_norm(resid, resid.shape[1:], None, None, eps) * norm.w + norm.b": "Mean and variance are taken over a "
        "whole text; each position has its own.",
        "resid": "The norm does nothing: what goes in comes out.",
    },
    ("linear", "F.linear(x, W.mT, b)"): {
        "F.linear(x, W.mT)": "The bias is forgotten.",
        "F.linear(x, W.mT) - (0 if b is None else b)": "The bias is subtracted.",
        "F.linear(x, W.mT, b) + (0 if b is None else b)": "The bias is added twice.",
        "F.linear(x, W, b)": "The matrix is transposed: it is x @ W here, and not torch's x @ W.T.",
        "W + (0 if b is None else b)": "x is not used.",
    },
    ("split_heads", "x.view(*x.shape[:-1], n_heads, -1).transpose(1, 2)"): {
        "x.view(*x.shape[:-1], n_heads, -1)": "The heads stand after the positions; they must be moved before them.",
        "x.view(*x.shape[:-1], -1, n_heads).movedim(-1, 1)": "The heads are cut the other way: head h must get the "
        "d_head numbers that stand side by side from h * d_head on.",
        "x.view(*x.shape[:-1], -1, n_heads).transpose(1, 2)": "The sizes of the heads and their number are exchanged.",
        "x.reshape(x.shape[0], n_heads, x.shape[1], -1)": "A reshape alone mixes positions and heads: cut the last "
        "axis first, then exchange the axes.",
        "x.reshape(x.shape[0], n_heads, -1, x.shape[1]).mT": "A reshape mixes positions and heads: cut the last axis "
        "first, then exchange the axes.",
    },
    ("merge_heads", "z.transpose(1, 2).flatten(-2)"): {
        "z.reshape(z.shape[0], z.shape[2], -1)": "A reshape alone mixes positions and heads: exchange the axes first.",
        "z.permute(0, 2, 3, 1).flatten(-2)": "Your heads take turns, number by number; the d_head numbers of one head "
        "must stand side by side.",
        "z.flatten(1, 2)": "Heads and positions are put together; heads and d_head belong together.",
        "z.mean(1)": "The heads are averaged; they stand side by side.",
        "z.sum(1)": "The heads are added up; they stand side by side.",
    },
    ("causal_mask", ".tril()"): {
        ".tril(-1)": "In your mask a position does not see itself; it must.",
        ".tril(1)": "The mask is off by one: each position sees the next one.",
        ".triu()": "The mask is the wrong way round: positions see what comes after them.",
        ".triu(1)": "The mask says True for what is hidden; it must be True for what is visible.",
        "": "Every position sees every other: nothing is hidden.",
        ".tril().mT.flip(0)": "The mask is mirrored.",
    },
    ("attention_scores", "upcast(q) @ upcast(k).mT"): {
        "upcast(q) @ upcast(k).mT * q.shape[-1] ** -0.5": "The scores are scaled here; a scale is the business of "
        "`block`.",
        "upcast(k) @ upcast(q).mT": "Queries and keys are exchanged: rows must be queries, columns keys.",
        "upcast(q) @ upcast(q).mT": "The queries are multiplied with themselves; the keys are not used.",
        "upcast(k) @ upcast(k).mT": "The keys are multiplied with themselves; the queries are not used.",
        "(upcast(q).mT @ upcast(k))": "The sum is over the positions; it must be over d_head.",
        "-(upcast(q)[..., None, :] - upcast(k)[..., None, :, :]).norm(dim=-1)": "This is a distance; it must be a dot "
        "product.",
    },
    ("softmax", "scores.softmax(-1, dtype=torch.promote_types(dtype, torch.float32))"): {
        "scores.softmax(-2)": "The softmax is taken over the queries; it must be taken over the keys, the last axis.",
        "scores.softmax(1)": "The softmax is taken over the heads; it must be taken over the keys, the last axis.",
        "scores.softmax(0)": "The softmax is taken over the texts; it must be taken over the keys, the last axis.",
        "scores.log_softmax(-1)": "This is the logarithm of softmax.",
        "scores.exp()": "The division by the sum is missing.",
        "scores.sigmoid()": "This is a sigmoid; the weights over the keys must sum to 1.",
        "(-scores).softmax(-1)": "The scores have the wrong sign.",
        "(scores.exp() / scores.exp().sum())": "It is divided by the sum of everything; it must be each row's sum.",
        "(scores / scores.sum(-1, keepdim=True))": "The exponential is missing.",
    },
    ("gelu_new", 'F.gelu(x, approximate="tanh")'): {
        "F.gelu(x)": "This is the exact GELU; GPT-2 has the tanh approximation.",
        "x * torch.sigmoid(1.702 * x)": "This is the sigmoid approximation of GELU; GPT-2 has the tanh approximation.",
        "F.relu(x)": "This is a ReLU.",
        "F.relu6(x)": "This is ReLU6.",
        "F.silu(x)": "This is SiLU, x * sigmoid(x).",
        "torch.tanh(x)": "This is tanh alone.",
        "x": "There is no activation function.",
        "x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))": "The factor 0.5 is missing.",
        "0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))": "The factor x is missing.",
        "0.5 * x * torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))": "The 1 + before tanh is missing.",
        "0.5 * x * (1 + torch.tanh(x + 0.044715 * x**3))": "The factor sqrt(2 / pi) is missing.",
        "0.5 * x * (1 + torch.tanh(2 / math.pi * (x + 0.044715 * x**3)))": "The root of 2 / pi is missing.",
        "0.5 * x * (1 + torch.tanh(math.sqrt(2 * math.pi) * (x + 0.044715 * x**3)))": "It is sqrt(2 / pi), not "
        "sqrt(2 * pi).",
        "0.5 * x * (1 + torch.tanh(math.sqrt(2) / math.pi * (x + 0.044715 * x**3)))": "pi belongs under the root.",
        "0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * x))": "The term with x**3 is missing.",
        "0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**2)))": "It is x**3, not x**2.",
        "0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.44715 * x**3)))": "It is 0.044715, not 0.44715.",
        "0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * x + 0.044715 * x**3))": "sqrt(2 / pi) multiplies both "
        "terms: a bracket is missing.",
    },
    ("sinusoids", "torch.cat([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=-1)"): {
        "torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=-1).flatten(1)": "Your sines and cosines "
        "take turns; the sines must fill the first half, the cosines the second.",
        "torch.cat([angles[:, 1::2].cos(), angles[:, 0::2].sin()], dim=-1)": "The cosines stand before the sines.",
        "torch.cat([angles[:, 0::2].sin(), angles[:, 1::2].sin()], dim=-1)": "There are sines only.",
        "torch.cat([angles[:, 0::2].cos(), angles[:, 1::2].cos()], dim=-1)": "There are cosines only.",
        "torch.cat([(angles + angles / position[:, None].clamp(min=1))[:, 0::2].sin(), angles[:, 1::2].cos()], -1)": ""
        "The sines are those of the position after.",
    },
    ("sinusoids", "position[:, None]"): {
        "(position[:, None] + 1)": "Positions count from 0, not from 1.",
    },
    ("sinusoids", "2 * (i // 2) / d_model"): {
        "i / d_model": "A sine and its cosine have the same angle: the exponent counts pairs, 2 * (i // 2) / d_model.",
        "(i // 2) / d_model": "The exponent lacks the factor 2.",
        "4 * (i // 2) / d_model": "The exponent has the factor 2 once too often.",
        "-2 * (i // 2) / d_model": "The exponent has the wrong sign.",
    },
    ("sinusoids", "10000,"): {"1000,": "The base is 10000, not 1000.", "100000,": "The base is 10000, not 100000."},
    ("embed", "self.positions(tokens.shape[1])"): {
        "0": "The positions are not added.",
        "self.positions(tokens.shape[1] + 1)[1:]": "The positions are off by one: the first token has position 0.",
        "self.positions(tokens.shape[1]).flip(0)": "The positions are in reverse order.",
        "self.positions(1)": "Every token has the vector of position 0.",
        "self.positions(tokens.shape[1])[-1]": "Every token has the vector of the last position.",
        "self.positions(tokens.shape[0])[:, None]": "The vectors of the positions go along the texts, not along the "
        "places.",
    },
    ("embed", "self.W_E[tokens] + "): {
        "self.W_E[tokens] * math.sqrt(self.config.d_model) + ": "The embedding is multiplied by sqrt(d_model): that is "
        "CTRL's, and this family does not.",
        "": "The embedding of the tokens is missing.",
        "self.W_E[tokens] * ": "The positions are multiplied; they must be added.",
    },
    ("embed", "self.W_E[tokens] * math.sqrt(self.config.d_model) + self.positions(tokens.shape[1])"): {
        "self.W_E[tokens] + self.positions(tokens.shape[1])": "The embedding is not scaled: it must be multiplied by "
        "sqrt(d_model).",
        "self.W_E[tokens] * self.config.d_model + self.positions(tokens.shape[1])": "The embedding is multiplied by "
        "d_model; the square root is missing.",
        "self.W_E[tokens] / math.sqrt(self.config.d_model) + self.positions(tokens.shape[1])": "The embedding is "
        "divided by sqrt(d_model); it must be multiplied.",
        "(self.W_E[tokens] + self.positions(tokens.shape[1])) * math.sqrt(self.config.d_model)": "The positions are "
        "scaled too; only the embedding is.",
        "self.W_E[tokens] + math.sqrt(self.config.d_model) * self.positions(tokens.shape[1])": "The positions are "
        "scaled; the embedding must be.",
        "self.W_E[tokens] * math.sqrt(self.config.d_model)": "The positions are not added.",
        "self.positions(tokens.shape[1])": "The embedding of the tokens is missing.",
    },
    ("positions", "self.W_pos[:n]"): {
        "self.W_pos[1 : n + 1]": "The positions are off by one: they count from 0.",
        "self.W_pos": "These are all the positions of the context; only the first n are wanted.",
        "self.W_pos[-n:]": "These are the last n positions of the context; the first n are wanted.",
        "self.W_pos[n]": "This is position n alone; the positions 0 to n - 1 are wanted.",
        "self.W_pos[: n - 1]": "The last of the n positions is missing.",
        "self.W_pos[: n + 1]": "There is one position too many.",
        "self.W_pos[:n].flip(0)": "The positions are in reverse order.",
        "self.W_pos[:1].expand(n, -1)": "Every place has the vector of position 0.",
    },
    ("positions", "[:n].to(self.W_E)"): {
        "[1 : n + 1].to(self.W_E)": "The positions are off by one: they count from 0.",
        "[:n].to(self.W_E) * self.config.d_model**0.5": "The positions are scaled; only the embedding is.",
        "[:n].to(self.W_E).flip(0)": "The positions are in reverse order.",
        ".to(self.W_E)": "There are more than n positions.",
    },
    ("final_norm", "layer_norm(resid, self.ln_final, self.ln_final_eps)"): {
        "resid": "The norm does nothing: what goes in comes out.",
        "layer_norm(layer_norm(resid, self.ln_final, self.ln_final_eps), self.ln_final, self.ln_final_eps)": "The "
        "final norm is taken twice.",
        "layer_norm(resid, self.ln_final, self.config.ln_eps)": "The epsilon is that of the blocks; it must be "
        "self.ln_final_eps.",
        "layer_norm(resid, self.blocks[-1].ln2, self.ln_final_eps)": "The weights are those of ln2 of the last block.",
        "layer_norm(resid, self.blocks[-1].ln1, self.ln_final_eps)": "The weights are those of ln1 of the last block.",
        "layer_norm(resid, self.blocks[0].ln1, self.ln_final_eps)": "The weights are those of ln1 of block 0.",
    },
    ("unembed", "linear(self.final_norm(resid), self.W_U, self.b_U)"): {
        "linear(resid, self.W_U, self.b_U)": "The final norm is missing.",
        "linear(self.final_norm(self.final_norm(resid)), self.W_U, self.b_U)": "The final norm is taken twice.",
        "linear(self.final_norm(resid), self.W_U)": "The bias b_U is forgotten.",
        "linear(self.final_norm(resid), self.W_U, self.b_U).softmax(-1)": "These are probabilities; logits are wanted, "
        "before softmax.",
        "linear(self.final_norm(resid), self.W_U, self.b_U).log_softmax(-1)": "These are log-probabilities; logits are "
        "wanted, before softmax.",
        "linear(self.final_norm(resid), self.W_U, self.b_U) * self.config.d_model**0.5": "The logits are scaled by "
        "sqrt(d_model); only CTRL's embedding is.",
        "linear(self.final_norm(resid), self.W_U, self.b_U) / self.config.d_model**0.5": "The logits are divided by "
        "sqrt(d_model).",
        "linear(self.final_norm(resid), self.W_U, self.b_U)[:, -1:]": "These are the logits at the last position; they "
        "are wanted at all.",
        "linear(self.final_norm(resid), self.W_U, self.b_U)[:, -1]": "These are the logits at the last position; they "
        "are wanted at all.",
    },
    ("lens", "rows.append(self.unembed(resid))"): {
        "rows.append(linear(resid, self.W_U, self.b_U))": "After the blocks the final norm is missing.",
        "rows.insert(0, self.unembed(resid))": "The rows are in the reverse order.",
        "rows.append(self.unembed(resid).softmax(-1))": "After the blocks these are probabilities; logits are wanted, "
        "before softmax.",
        "rows.append(self.unembed(resid).log_softmax(-1))": "After the blocks these are log-probabilities; logits are "
        "wanted, before softmax.",
    },
    ("lens", "rows = [self.unembed(resid)]"): {
        "rows = []": "The first row is missing: the stream entering block 0.",
        "rows = [self.unembed(resid).softmax(-1)]": "The first row holds probabilities; logits are wanted, before "
        "softmax.",
        "rows = [self.unembed(resid).log_softmax(-1)]": "The first row holds log-probabilities; logits are wanted, "
        "before softmax.",
    },
    ("lens", "self.block(layer, resid).resid_post"): {
        "self.block(layer, resid).resid_mid": "The stream is carried on from between attention and MLP.",
        "self.block(layer, resid).mlp_out": "It is mlp_out that is carried on; it must be the stream, resid_post.",
        "self.block(0, resid).resid_post": "It is block 0 each time.",
        "self.block(layer, self.embed(tokens)).resid_post": "Each block reads the stream entering block 0; it must "
        "read what the block before leaves.",
        "self.block(self.n_layers - 1 - layer, resid).resid_post": "The blocks are run in the reverse order.",
    },
    ("lens", "self.embed(tokens)"): {
        "self.W_E[tokens]": "The stream begins with self.embed(tokens), which is more than the rows of W_E.",
    },
    ("lens", "return rows"): {
        "return rows[:-1]": "The last row is missing: the model's own output.",
        "return rows[-1]": "This is the last row only.",
        "return [row[:, -1] for row in rows]": "These are the logits at the last position; they are wanted at all.",
        "return [row.softmax(-1) for row in rows]": "These are probabilities; logits are wanted, before softmax.",
        "return [row.log_softmax(-1) for row in rows]": "These are log-probabilities; logits are wanted, before "
        "softmax.",
        "return [row.argmax(-1) for row in rows]": "These are the best tokens; logits are wanted.",
    },
}  # fmt: skip

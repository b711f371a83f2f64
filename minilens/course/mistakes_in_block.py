"""Mistakes in the lines of `block`: by the value that a line gives and by a part of its source, what stands there
instead, and the sentence for the student.
"""

IN_BLOCK: dict[tuple[str, str], dict[str, str]] = {
    ("ln1_out", "layer_norm(resid_pre, w.ln1, cfg.ln_eps)"): {
        "layer_norm(resid_pre, w.ln2, cfg.ln_eps)": "The norm has the weights of the second, w.ln2, in place of w.ln1.",
        "layer_norm(resid_pre, self.ln_final, cfg.ln_eps)": "The norm has the weights of the final one, in place of "
        "w.ln1.",
        "layer_norm(resid_pre, self.blocks[0].ln1, cfg.ln_eps)": "These are the weights of block 0 in another block.",
        "layer_norm(resid_pre, w.ln1, self.ln_final_eps)": "The epsilon is that of the final norm; it must be "
        "cfg.ln_eps.",
    },
    ("q", "linear(ln1_out, w.W_QKV, w.b_QKV).chunk(3, -1)"): {
        "linear(resid_pre, w.W_QKV, w.b_QKV).chunk(3, -1)": "It reads the stream itself; it must read ln1_out, after "
        "the norm.",
        "linear(ln1_out, w.W_QKV, w.b_QKV).unflatten(-1, (cfg.n_heads, 3, -1)).movedim(-2, 0).flatten(-2)": "Your "
        "queries, keys and values are cut head by head; it must be all queries first, then all keys, then all values.",
        "linear(ln1_out, w.W_QKV, w.b_QKV).unflatten(-1, (-1, 3)).unbind(-1)": "Your queries, keys and values take "
        "turns; it must be all queries first, then all keys, then all values.",
    },
    ("q", "q, k, v ="): {
        "k, q, v =": "Queries and keys are exchanged: the order is q, k, v.",
        "q, v, k =": "Keys and values are exchanged: the order is q, k, v.",
        "v, k, q =": "Queries and values are exchanged: the order is q, k, v.",
        "k, v, q =": "The order is q, k, v; here it is k, v, q.",
        "v, q, k =": "The order is q, k, v; here it is v, q, k.",
    },
    **{
        (name.lower(), f"linear(ln1_out, w.W_{name}{bias})"): {
            f"linear(resid_pre, w.W_{name}{bias})": "It reads the stream itself; it must read ln1_out, after the norm.",
            f"linear(ln1_out, w.W_{name}.mT{bias})": f"W_{name} is transposed.",
            **({f"linear(ln1_out, w.W_{name})": f"The bias b_{name} is forgotten."} if bias else {}),
            **{
                f"linear(ln1_out, w.W_{other}{bias})": f"The matrix is W_{other}; it must be W_{name}."
                for other in "QKV"
                if other != name
            },
            **{
                f"linear(ln1_out, w.W_{other}, w.b_{other})": f"Matrix and bias are W_{other} and b_{other}; they must "
                f"be W_{name} and b_{name}."
                for other in "QKV"
                if bias and other != name
            },
            **{
                f"linear(ln1_out, w.W_{name}, w.b_{other})": f"The bias is b_{other}; it must be b_{name}."
                for other in "QKV"
                if bias and other != name
            },
        }
        for name in "QKV"
        for bias in ("", f", w.b_{name}")
    },
    ("q", "linear(ln1_out, w.W_Q), linear(ln1_out, w.W_K), linear(ln1_out, w.W_V)"): {
        "(linear(resid_pre, W) for W in (w.W_Q, w.W_K, w.W_V))": "All three read the stream itself; they must read "
        "ln1_out, after the norm.",
        "(linear(ln1_out, W.mT) for W in (w.W_Q, w.W_K, w.W_V))": "All three matrices are transposed.",
    },
    ("q", "linear(ln1_out, w.W_Q, w.b_Q), linear(ln1_out, w.W_K, w.b_K), linear(ln1_out, w.W_V, w.b_V)"): {
        "(linear(resid_pre, W, b) for W, b in ((w.W_Q, w.b_Q), (w.W_K, w.b_K), (w.W_V, w.b_V)))": "All three read the "
        "stream itself; they must read ln1_out, after the norm.",
        "(linear(ln1_out, W) for W in (w.W_Q, w.W_K, w.W_V))": "The biases b_Q, b_K and b_V are forgotten.",
        "(linear(ln1_out, W, w.b_Q) for W in (w.W_Q, w.W_K, w.W_V))": "All three have the bias b_Q; each has its own.",
        "(linear(ln1_out, W.mT, b) for W, b in ((w.W_Q, w.b_Q), (w.W_K, w.b_K), (w.W_V, w.b_V)))": "All three matrices "
        "are transposed.",
    },
    ("scores", " * cfg.score_scale[layer]"): {
        " * cfg.score_scale[0]": "This is the scale of layer 0 in each layer; each has its own, score_scale[layer].",
        "": "The scores are not scaled: they must be multiplied by 1 / sqrt(d_head).",
        " / q.shape[-1]": "The scores are divided by as much as d_head; it must be its square root.",
        " * q.shape[-1] ** 0.5": "The scores are multiplied by sqrt(d_head); they must be divided.",
        " / cfg.d_model**0.5": "The scores are divided by sqrt(d_model); it is d_head that counts.",
        " / cfg.n_heads**0.5": "The scores are divided by sqrt(n_heads); it is d_head that counts.",
        " / q.shape[2] ** 0.5": "The scores are divided by the root of the number of positions; it is d_head that "
        "counts.",
        " * cfg.score_scale[layer] ** 2 / q.shape[-1] ** 0.5": "The scores are scaled three times.",
    },
    ("scores", " * q.shape[-1] ** -0.5"): {
        "": "The scores are not scaled: they must be divided by sqrt(d_head).",
        " / q.shape[-1]": "The scores are divided by as much as d_head; it must be its square root.",
        " * q.shape[-1] ** 0.5": "The scores are multiplied by sqrt(d_head); they must be divided.",
        " / cfg.d_model**0.5": "The scores are divided by sqrt(d_model); it is d_head that counts.",
        " / cfg.n_heads**0.5": "The scores are divided by sqrt(n_heads); it is d_head that counts.",
        " / q.shape[2] ** 0.5": "The scores are divided by the root of the number of positions; it is d_head that "
        "counts.",
    },
    ("scores", "attention_scores(q.float(), k.float())"): {
        "attention_scores(q, k) * q.shape[-1] ** -0.5": "The scores are scaled by 1 / sqrt(d_head); GPT-Neo's are not.",
        "attention_scores(q, k) / q.shape[-1]": "The scores are divided by d_head; GPT-Neo's are not.",
    },
    ("scores", "scores.where(visible, -torch.inf)"): {
        "scores.masked_fill(visible, -torch.inf)": "What is visible is hidden, and what is hidden visible: ~visible.",
        "scores.masked_fill(~visible, 0)": "Hidden scores are 0; they must be -inf, for exp(0) is 1.",
        "scores.masked_fill(~visible, torch.inf)": "Hidden scores are +inf; they must be -inf.",
        "scores.masked_fill(~visible.mT, -torch.inf)": "The mask is transposed: positions see what comes after them.",
        "scores - 1e9 * visible": "What is visible is hidden, and what is hidden visible.",
        "scores + visible": "The mask is added as 0 and 1; hidden scores must be -inf.",
        "scores": "Nothing is hidden: the mask is not used.",
    },
    ("visible", "visible.triu(1 - cfg.window)"): {
        "visible.triu(-cfg.window)": "The window is one too long: a query sees itself and window - 1 positions before.",
        "visible.triu(2 - cfg.window)": "The window is one too short: a query sees itself and window - 1 positions "
        "before.",
        "visible": "The window is not used.",
        "visible.triu()": "A query sees itself alone.",
        "visible.tril(1 - cfg.window)": "A query sees what is further back than the window; it must see what is not.",
        "visible.tril(-cfg.window)": "A query sees what is further back than the window; it must see what is not.",
        "visible & (torch.arange(len(visible)) < cfg.window)": "Keys are counted from the start of the text; the "
        "window is counted back from the query.",
    },
    ("visible", "if cfg.is_local[layer]"): {
        "if not cfg.is_local[layer]": "Local and global layers are exchanged.",
        "if True": "The window is used in a global layer, too.",
    },
    ("z", "pattern @ v"): {
        "pattern @ k": "The keys are averaged; it must be the values.",
        "pattern @ q": "The queries are averaged; it must be the values.",
        "pattern.mT @ v": "The pattern is transposed.",
        "scores.masked_fill(~visible, 0) @ v": "The scores are taken for the pattern.",
        "v": "The pattern is not used.",
        "v.cumsum(2) / torch.arange(1, v.shape[2] + 1)[:, None]": "All visible values count alike; the pattern is not "
        "used.",
    },
    ("attn_out", "linear(merge_heads(z), w.W_O, w.b_O)"): {
        "linear(merge_heads(z), w.W_O)": "The bias b_O is forgotten.",
        "linear(merge_heads(z), w.W_O.mT, w.b_O)": "W_O is transposed.",
        "merge_heads(z)": "W_O and b_O are not used.",
        "merge_heads(z) + w.b_O": "W_O is not used.",
        "resid_pre + linear(merge_heads(z), w.W_O, w.b_O)": "Do not add resid_pre here: the next line does.",
        "linear(merge_heads(z), w.W_O, w.b_out)": "The bias is b_out; it must be b_O.",
        "linear(merge_heads(v), w.W_O, w.b_O)": "The pattern has no part in it: v is written in place of z.",
    },
    ("resid_mid", "resid_pre + attn_out"): {
        "ln1_out + attn_out": "What is added to is ln1_out, after the norm; it must be the stream, resid_pre.",
        "resid_pre - attn_out": "It is subtracted; it must be added.",
        "resid_pre + 2 * attn_out": "It is added twice.",
        "layer_norm(resid_pre + attn_out, w.ln1, cfg.ln_eps)": "The norm stands after the sum; in this family it "
        "stands before attention only.",
        "layer_norm(resid_pre + attn_out, w.ln2, cfg.ln_eps)": "The norm stands after the sum; in this family it "
        "stands inside the branch, in ln2_out.",
        "resid_pre + layer_norm(attn_out, w.ln1, cfg.ln_eps)": "The norm is taken of what attention writes; it must be "
        "of what attention reads.",
        "resid_pre * attn_out": "It is multiplied; it must be added.",
    },
    ("ln2_out", "layer_norm(resid_mid, w.ln2, cfg.ln_eps)"): {
        "layer_norm(resid_mid, w.ln1, cfg.ln_eps)": "The norm has the weights of the first, w.ln1, in place of w.ln2.",
        "layer_norm(resid_mid, self.ln_final, cfg.ln_eps)": "The norm has the weights of the final one, in place of "
        "w.ln2.",
        "layer_norm(resid_mid, w.ln2, self.ln_final_eps)": "The epsilon is that of the final norm; it must be "
        "cfg.ln_eps.",
        "layer_norm(resid_pre, w.ln2, cfg.ln_eps)": "It is the norm of resid_pre; attention's part is left out.",
        "layer_norm(attn_out, w.ln2, cfg.ln_eps)": "It is the norm of attn_out; it must be of the stream, resid_mid.",
        "layer_norm(ln1_out, w.ln2, cfg.ln_eps)": "It is the norm of ln1_out; it must be of the stream, resid_mid.",
    },
    ("mlp_pre", "linear(ln2_out, w.W_in, w.b_in)"): {
        "linear(ln2_out, w.W_in)": "The bias b_in is forgotten.",
        "linear(resid_mid, w.W_in, w.b_in)": "It reads the stream itself; it must read ln2_out, after the norm.",
        "linear(ln1_out, w.W_in, w.b_in)": "It reads ln1_out; it must read ln2_out.",
        "linear(attn_out, w.W_in, w.b_in)": "It reads attn_out; it must read ln2_out.",
        "linear(ln2_out, w.W_out.mT, w.b_in)": "The matrix is W_out, transposed; it must be W_in.",
    },
    ("mlp_post", "mlp_pre.relu()"): {
        "F.gelu(mlp_pre, approximate='tanh')": "This is a GELU (tanh); CTRL has a ReLU.",
        "F.gelu(mlp_pre)": "This is a GELU; CTRL has a ReLU.",
        "F.silu(mlp_pre)": "This is SiLU; CTRL has a ReLU.",
        "F.relu6(mlp_pre)": "This is ReLU6, which ends at 6; CTRL has a ReLU.",
        "F.leaky_relu(mlp_pre)": "This is a leaky ReLU; CTRL has a ReLU.",
        "mlp_pre.abs()": "This is the absolute value; CTRL has a ReLU.",
        "mlp_pre.clamp(max=0)": "The ReLU keeps the wrong half.",
    },
    ("mlp_out", "linear(mlp_post, w.W_out, w.b_out)"): {
        "linear(mlp_post, w.W_out)": "The bias b_out is forgotten.",
        "linear(mlp_pre, w.W_out, w.b_out)": "It reads mlp_pre, before the activation; it must read mlp_post.",
        "linear(mlp_post, w.W_out, w.b_O)": "The bias is b_O; it must be b_out.",
        "linear(mlp_post, w.W_in.mT, w.b_out)": "The matrix is W_in, transposed; it must be W_out.",
        "resid_mid + linear(mlp_post, w.W_out, w.b_out)": "Do not add resid_mid here: the next line does.",
    },
    ("resid_post", "resid_mid + mlp_out"): {
        "resid_pre + mlp_out": "The stream from before attention, resid_pre, is added to; it must be resid_mid.",
        "ln2_out + mlp_out": "What is added to is ln2_out, after the norm; it must be the stream, resid_mid.",
        "attn_out + mlp_out": "The stream is not carried on: it is resid_mid + mlp_out.",
        "resid_mid - mlp_out": "It is subtracted; it must be added.",
        "resid_pre + attn_out + resid_mid + mlp_out": "The stream is added twice.",
        "resid_pre + resid_mid + mlp_out": "resid_pre is added once more; it is part of resid_mid.",
        "resid_mid + attn_out + mlp_out": "attn_out is added once more; it is part of resid_mid.",
        "layer_norm(resid_mid + mlp_out, w.ln2, cfg.ln_eps)": "The norm stands after the sum; in this family it "
        "stands inside the branch.",
        "layer_norm(resid_mid + mlp_out, w.ln1, cfg.ln_eps)": "The norm stands after the sum; in this family it "
        "stands inside the branch.",
        "layer_norm(resid_mid + mlp_out, self.ln_final, self.ln_final_eps)": "The final norm is taken here; it comes "
        "after the last block only.",
        "resid_mid + layer_norm(mlp_out, w.ln2, cfg.ln_eps)": "The norm is taken of what the MLP writes; it must be of "
        "what the MLP reads.",
    },
}  # fmt: skip

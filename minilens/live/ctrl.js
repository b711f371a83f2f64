// CTRL, from the first line to the last: minilens/ctrl.py in JavaScript. The names and their order are the same, and
// what differs from GPT-2 is told there.

class CTRL {
  constructor(config, weights) {
    Object.assign(this, { config }, weights);
  }

  get n_layers() { return this.config.n_layers; }
  get ln_final_eps() { return this.config.ln_final_eps; }

  // The stream entering block 0.
  embed(tokens) {
    const [W_E, pos] = [this.W_E, this.positions(tokens.length)];
    const d_model = W_E.shape[1];
    const scale = Math.sqrt(d_model);
    return each(pos, (value, at) => W_E.data[tokens[Math.floor(at / d_model)] * d_model + (at % d_model)] * scale + value);
  }

  // What `embed` adds to the first n tokens' embeddings.
  positions(n) {
    return sinusoids(n, this.config.d_model);
  }

  // Everything that block `layer` computes from the stream entering it.
  block(layer, resid, edit = untouched) {
    const [w, cfg] = [this.blocks[layer], this.config];
    const at = editable(edit, layer); // at("z", z) is z, unless the caller's edit replaces it

    // Attention reads the residual stream...
    const resid_pre = at("resid_pre", resid); // pos d_model
    const ln1_out = layer_norm(resid_pre, w.ln1, cfg.ln_eps); // pos d_model
    let [q, k, v] = [linear(ln1_out, w.W_Q, w.b_Q), linear(ln1_out, w.W_K, w.b_K), linear(ln1_out, w.W_V, w.b_V)];
    q = at("q", split_heads(q, cfg.n_heads)); // head pos d_head
    k = at("k", split_heads(k, cfg.n_heads)); // head pos d_head
    v = at("v", split_heads(v, cfg.n_heads)); // head pos d_head
    let scores = attention_scores(times(q, q.shape.at(-1) ** -0.5), k); // head query key
    const visible = causal_mask(resid, k); // query key
    scores = where(visible, scores);
    const pattern = at("pattern", softmax(scores)); // head query key
    const z = at("z", weighted(pattern, v)); // head pos d_head
    const attn_out = at("attn_out", linear(merge_heads(z), w.W_O, w.b_O)); // pos d_model
    // ...and adds to it; the MLP reads the sum...
    const resid_mid = at("resid_mid", plus(resid_pre, attn_out)); // pos d_model
    const ln2_out = layer_norm(resid_mid, w.ln2, cfg.ln_eps); // pos d_model
    const mlp_pre = linear(ln2_out, w.W_in, w.b_in); // pos d_mlp
    const mlp_post = at("mlp_post", each(mlp_pre, relu)); // pos d_mlp
    const mlp_out = at("mlp_out", linear(mlp_post, w.W_out, w.b_out)); // pos d_model
    // ...and adds to it in turn.
    const resid_post = at("resid_post", plus(resid_mid, mlp_out)); // pos d_model

    // Everything, in the order in which it was computed.
    return {
      layer, resid_pre, ln1_out, q, k, v, scores, pattern, z, attn_out,
      resid_mid, ln2_out, mlp_pre, mlp_post, mlp_out, resid_post,
    };
  }

  // The norm after the last block: what the unembedding reads.
  final_norm(resid) {
    return layer_norm(resid, this.ln_final, this.ln_final_eps);
  }

  // The final norm and the unembedding: logits of the next token.
  unembed(resid) {
    return linear(this.final_norm(resid), this.W_U, this.b_U);
  }
}

// The vectors of positions 0 to n - 1: sines, then cosines, of position / 10000**(2i / d_model). The angles are rounded
// to float32 at each step, as torch has them.
function sinusoids(n, d_model) {
  const half = d_model / 2;
  return each(tensor([n, d_model]), (_, at) => {
    const [position, place] = [Math.floor(at / d_model), at % d_model];
    const i = place < half ? 2 * place : 2 * (place - half) + 1;
    const exponent = Math.fround((2 * Math.floor(i / 2)) / d_model);
    const angle = Math.fround(position * Math.fround(1 / Math.fround(10000 ** exponent)));
    return place < half ? Math.sin(angle) : Math.cos(angle);
  });
}

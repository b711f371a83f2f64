// GPT-Neo, from the first line to the last: minilens/gpt_neo.py in JavaScript. The names and their order are the same,
// and what differs from GPT-2 is told there.

class GPTNeo {
  constructor(config, weights) {
    Object.assign(this, { b_U: null, config }, weights); // the unembedding has no bias; CTRL's has one
  }

  get n_layers() { return this.config.n_layers; }
  get ln_final_eps() { return this.config.ln_eps; }

  // The stream entering block 0.
  embed(tokens) {
    const [W_E, pos] = [this.W_E, this.positions(tokens.length)];
    const d_model = W_E.shape[1];
    return each(pos, (value, at) => W_E.data[tokens[Math.floor(at / d_model)] * d_model + (at % d_model)] + value);
  }

  // What `embed` adds to the first n tokens' embeddings.
  positions(n) {
    return slice(this.W_pos, 0, n);
  }

  // Everything that block `layer` computes from the stream entering it.
  block(layer, resid, edit = untouched) {
    const [w, cfg] = [this.blocks[layer], this.config];
    const at = editable(edit, layer); // at("z", z) is z, unless the caller's edit replaces it

    // Attention reads the residual stream...
    const resid_pre = at("resid_pre", resid); // pos d_model
    const ln1_out = layer_norm(resid_pre, w.ln1, cfg.ln_eps); // pos d_model
    let [q, k, v] = [linear(ln1_out, w.W_Q), linear(ln1_out, w.W_K), linear(ln1_out, w.W_V)]; // each pos d_model
    q = at("q", split_heads(q, cfg.n_heads)); // head pos d_head
    k = at("k", split_heads(k, cfg.n_heads)); // head pos d_head
    v = at("v", split_heads(v, cfg.n_heads)); // head pos d_head
    let scores = attention_scores(q, k); // head query key
    let visible = causal_mask(resid, k); // query key
    if (cfg.is_local[layer]) {
      visible = within_window(visible, resid, k, cfg.window); // nothing further back than the window
    }
    scores = where(visible, scores);
    const pattern = at("pattern", softmax(scores)); // head query key
    const z = at("z", weighted(pattern, v)); // head pos d_head
    const attn_out = at("attn_out", linear(merge_heads(z), w.W_O, w.b_O)); // pos d_model
    // ...and adds to it; the MLP reads the sum...
    const resid_mid = at("resid_mid", plus(resid_pre, attn_out)); // pos d_model
    const ln2_out = layer_norm(resid_mid, w.ln2, cfg.ln_eps); // pos d_model
    const mlp_pre = linear(ln2_out, w.W_in, w.b_in); // pos d_mlp
    const mlp_post = at("mlp_post", each(mlp_pre, ACTIVATIONS[cfg.activation])); // pos d_mlp
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

// The blocks of a model on one text, with what they gave kept. A causal model never changes its mind about an earlier
// position: as a text grows, or changes from some position on, only what stands there is computed.

class Stream {
  // Blocks `start` to `stop` - 1. edit: (site, value, first) -> value, where the value's positions begin at `first`.
  constructor(model, { start = 0, stop = model.n_layers, edit = untouched } = {}) {
    Object.assign(this, { model, start, stop, edit });
    this.kept = Array.from({ length: stop }, () => ({ n: 0, k: null, v: null, resid_mid: null, resid_post: null, patterns: [] }));
  }

  // Nothing is known any more of this layer, and of those after it, from this position on.
  forget(position, layer = this.start) {
    this.kept.forEach((kept, at) => {
      if (at < layer || kept.n <= position) return;
      kept.n = position;
      for (const name of ["k", "v", "resid_mid", "resid_post"]) kept[name] = position ? slice(kept[name], 0, position) : null;
      kept.patterns.length = position;
    });
  }

  // The stream leaving the last block, at the positions from `first` to `end` - 1. resid: the one entering the first
  // block, from position `first` on; what is kept reaches as far at least.
  run(resid, end, first = 0) {
    let begins = first;
    for (let layer = this.start; layer < this.stop; layer += 1) {
      const kept = this.kept[layer];
      if (kept.n < end) this.add(kept, this.block(layer, slice(resid, kept.n - begins, end - begins), kept));
      [resid, begins] = [kept.resid_post, 0];
    }
    return slice(resid, first - begins, end - begins);
  }

  // The block on the positions after those that are kept, whose keys and values go before theirs.
  block(layer, resid, { n, k, v }) {
    const earlier = { k, v };
    return this.model.block(layer, resid, (site, value) => {
      const edited = this.edit(site, value, n);
      return site.name in earlier ? concat(earlier[site.name], edited) : edited;
    });
  }

  add(kept, { k, v, scores, pattern, resid_mid, resid_post }) {
    const [n_heads, n, n_keys] = pattern.shape;
    for (let query = 0; query < n; query += 1) {
      kept.patterns.push(Array.from({ length: n_heads }, (_, head) => {
        const from = (head * n + query) * n_keys;
        return Uint16Array.from({ length: kept.n + query + 1 }, (_, key) => codeOf(pattern.data[from + key], scores.data[from + key]));
      }));
    }
    Object.assign(kept, { k, v, resid_mid: concat(kept.resid_mid, resid_mid), resid_post: concat(kept.resid_post, resid_post) });
    kept.n += n;
  }

  // The residual at a site, of the positions that are known there. embed: the stream entering block 0.
  at({ layer, name }, embed) {
    if (name === "embed") return embed;
    if (name !== "resid_pre") return this.kept[layer][name];
    return layer ? this.kept[layer - 1].resid_post : embed;
  }

  // The patterns of a layer as views/lens_page.py writes them: of each head the weights of one query after another.
  patterns(layer) {
    const rows = this.kept[layer].patterns;
    return rows[0].map((_, head) => {
      const all = new Uint16Array((rows.length * (rows.length + 1)) / 2);
      rows.forEach((row, query) => all.set(row[head], (query * (query + 1)) / 2));
      return all;
    });
  }
}

// A weight in the file's steps; another code where a key is not seen.
const STEPS_OF_WEIGHT = 65000;
const HIDDEN = 65535;
const codeOf = (weight, score) => (score === -Infinity && weight === 0 ? HIDDEN : Math.round(weight * STEPS_OF_WEIGHT));

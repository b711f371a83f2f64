// The logit lens: decode the residual stream of every layer as if it were the last one's. minilens/lens.py and table.py
// in JavaScript, for a text that changes: a column of the table is made anew only where something before it has changed.

const EMBED = { layer: -1, name: "embed" }; // the stream entering block 0
const RESID_SITES = ["resid_pre", "resid_mid", "resid_post"];
const TOP_K = 5;
const AT_A_TIME = 8; // positions that are computed in one go; between two of them a newer question may come

const label = ({ layer, name }) => (name === "embed" ? name : `${layer}.${name}`);
const samePlace = (a, b) => a.layer === b.layer && a.name === b.name;

// A lens on a model. options: decoder, norm and sites as in `Lens` of lens.py; lens: the maps of a learned lens, or null.
class Readout {
  constructor(model, { decoder, norm, sites, lens }) {
    Object.assign(this, { model, norm, lens });
    const n_layers = model.n_layers;
    const count = decoder.startsWith("block:") ? Number(decoder.slice("block:".length)) : 0;
    this.isMlp = decoder === "mlp";
    this.start = this.isMlp ? n_layers - 1 : n_layers - count; // the first block that belongs to the decoder
    const last = this.isMlp ? { layer: this.start, name: "resid_mid" } : { layer: this.start - 1, name: "resid_post" };
    const order = model.blocks.flatMap((_, layer) => RESID_SITES.map((name) => ({ layer, name })));
    const upTo = order.slice(0, order.findIndex((site) => samePlace(site, last)) + 1);
    this.sites = [EMBED, ...upTo.filter((site) => sites.includes(site.name) || samePlace(site, last))];
    this.decoders = this.sites.map(() => new Stream(model, { start: this.start }));
  }

  // The decoder has this edit, and has read nothing from position `known` on.
  change(edit, known) {
    this.edit = edit;
    this.decoders.forEach((decoder) => {
      decoder.edit = edit;
      decoder.forget(known);
    });
  }

  // What the unembedding gets for a row, at the positions from `first` to `end` - 1. resid: the stream at its site there.
  read(row, resid, first, end) {
    const isLast = row === this.sites.length - 1;
    const map = isLast ? undefined : this.lens?.[label(this.sites[row])];
    if (map) resid = plus(resid, linear(resid, map.weight, map.bias)); // h + h @ weight.T + bias
    if (this.isMlp) resid = this.model.block(this.start, resid, this.fromMlpOn(first)).resid_post;
    else resid = this.decoders[row].run(resid, end, first);
    return this.norm === "plain" && !isLast ? plain_norm(resid, this.model.ln_final_eps) : this.model.final_norm(resid);
  }

  // The edit of the last block from resid_mid on: its attention writes nothing, and what comes before stays.
  fromMlpOn(first) {
    return (site, value) => {
      if (["mlp_post", "mlp_out", "resid_post"].includes(site.name)) return this.edit(site, value, first);
      return site.name === "attn_out" ? times(value, 0) : value;
    };
  }
}

// A final norm without gain and bias.
function plain_norm(resid, eps) {
  const d_model = resid.shape[1];
  return layer_norm(resid, { w: each(tensor([d_model]), () => 1), b: tensor([d_model]) }, eps);
}

// The lens on one text after another, each a change of the one before.
class LensTable {
  constructor(model) {
    Object.assign(this, { model, stream: new Stream(model), tokens: [], columns: [], edits: [], key: null });
  }

  // What has changed is forgotten. options: as for Readout, and a key that is theirs alone. edits: each
  // {layer, name, position, apply}; those that were there already are the same objects. `position` is the first that an
  // edit changes.
  ask(tokens, options, edits) {
    const changed = [...edits, ...this.edits].filter((one) => !(edits.includes(one) && this.edits.includes(one)));
    const edit = (site, value, first) => edits.reduce((now, one) => (samePlace(one, site) ? one.apply(now, first) : now), value);
    let known = 0;
    while (known < tokens.length && tokens[known] === this.tokens[known]) known += 1;
    this.stream.edit = edit;
    this.stream.forget(known);
    changed.forEach(({ position, layer }) => this.stream.forget(position, layer));
    known = Math.min(this.columns.length, known, ...changed.map(({ position }) => position));
    if (options.key !== this.key) {
      this.readout = new Readout(this.model, options);
      known = 0;
    }
    this.readout.change(edit, known);
    const hasNext = this.tokens[known] === tokens[known]; // as the last column that is kept has it
    Object.assign(this, { tokens, edits, key: options.key, embed: this.model.embed(tokens) });
    this.columns.length = known;
    if (known && !hasNext) this.columns.push(this.followed(this.columns.pop(), tokens[known] ?? null));
  }

  // The columns that are not known yet, some at a time.
  *compute() {
    while (this.columns.length < this.tokens.length) {
      const first = this.columns.length;
      const end = Math.min(this.tokens.length, first + AT_A_TIME);
      this.stream.run(this.embed, end);
      const x = this.readout.sites.map((site, row) =>
        this.readout.read(row, slice(this.stream.at(site, this.embed), first, end), first, end));
      for (let pos = first; pos < end; pos += 1) this.columns.push(this.column(x.map((row) => slice(row, pos - first, pos - first + 1)), pos));
      yield;
    }
  }

  // A column of the table. x: what the unembedding gets, of each row.
  column(x, pos) {
    const asked = { next: this.tokens[pos + 1] ?? null, input: this.tokens[pos] };
    return { x, ...vocab_stats(this.unembed(x), asked, TOP_K) };
  }

  // The same column where another token comes next.
  followed({ standings, ...column }, next) {
    const theirs = this.unembed(column.x).map((row, r) => standing(row, column.lse[r], next));
    return { ...column, standings: { ...standings, next: theirs } };
  }

  // The logits of each row.
  unembed(x) {
    const { shape, data } = linear(x.reduce(concat), this.model.W_U, this.model.b_U);
    return x.map((_, row) => data.subarray(row * shape[1], (row + 1) * shape[1]));
  }

  // The model's own logits after the text.
  get logits() {
    return this.unembed(this.columns.at(-1).x.slice(-1))[0];
  }

  // KL(the other text's row || this one's) at a position, for each row.
  *differences(other) {
    for (const [pos, column] of this.columns.entries()) {
      const theirs = other.columns[pos];
      if (!theirs || column.differsFrom === theirs) continue;
      const [p, q] = [theirs, column].map(({ x }) => this.unembed(x).map(read));
      Object.assign(column, { differsFrom: theirs, differences: q.map((row, r) => kl(p[r], row)) });
      yield;
    }
  }

  // The table as views/lens_page.py writes it.
  record(options, other) {
    const { columns, tokens } = this;
    const flat = (of) => this.readout.sites.flatMap((_, r) => columns.map((column) => of(column, r)));
    const parts = (j) => columns.length && flat((column, r) => column.top[r].map((best) => best[j])).flat();
    const standings = ["final", "next", "input"].map((name) => [name, Object.fromEntries(["logit", "logprob", "rank"].map((part) =>
      [part, flat((column, r) => column.standings[name][r][part])]))]);
    const values = Object.fromEntries(OF_ALL_LOGITS.map((name) => [name, flat((column, r) => column.stats[r][name])]));
    if (other) values.difference = flat((column, r) => (other.columns.includes(column.differsFrom) ? column.differences[r] : null));
    return {
      lens: options.lensName ?? "", decoder: options.decoder, norm: options.norm, centre: false,
      labels: this.readout.sites.map(label), positions: [...tokens.keys()],
      input_tokens: tokens, final_tokens: columns.map(({ top }) => top.at(-1)[0][0]), next_tokens: [...tokens.slice(1), -1],
      tracked_tokens: [], tracked: [],
      top: { k: TOP_K, tokens: parts(0), logit: parts(1), logprob: parts(2) },
      standings: Object.fromEntries(standings), values,
    };
  }
}

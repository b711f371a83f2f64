// What the page may ask of the model, and the answers. A question that costs time is a generator: it gives way now and
// then, and what it has found by then is kept, so that a newer question can take its place.

const MODELS = { gpt2: GPT2, gpt_neo: GPTNeo, ctrl: CTRL };
const TOKENIZERS = { bytes: ByteBPE, words: WordBPE };

class Refusal extends Error {}

class Engine {
  // about: the record that minilens/live/packed.py makes; bytes: the numbers, float16.
  constructor(about, bytes) {
    const parts = unpack(about.parts, bytes);
    this.model = new MODELS[about.family](about.config, parts.model);
    this.lenses = new Map(about.lenses.map(({ name }, at) => [name, mapsOf(parts.lenses[at])]));
    this.tokenizer = new TOKENIZERS[about.tokenizer.kind](about.tokenizer);
    this.longest = Math.max(...about.tokenizer.entries.map((entry) => entry?.length ?? 0));
    this.table = new LensTable(this.model);
    this.other = new LensTable(this.model);
    this.edits = new Map();
  }

  // The tokens of a text. Refuses what the model cannot read.
  tokens(text, written = []) {
    const { n_ctx } = this.model.config;
    if (SURROGATE.test(text)) throw new Refusal("The text is not valid Unicode: it holds half of a character, a lone surrogate.");
    if (text.length > n_ctx * this.longest) throw new Refusal(`The text is too long: the model\u2019s context holds ${n_ctx} tokens.`);
    const tokens = [...this.tokenizer.encode(text), ...written];
    if (tokens.length > n_ctx) throw new Refusal(`The text has ${tokens.length} tokens, but the model\u2019s context holds ${n_ctx}: shorten it.`);
    return tokens;
  }

  // question: {text, written, other, decoder, norm, sites, lens, edits}. written: tokens after the text. other: a text to
  // compare with, or null. edits: {kind: "zero", layer, head} or {kind: "patch", layer, site, position}, from the other.
  *answer(question) {
    const { table, other } = this;
    const options = this.options(question);
    const tokens = this.tokens(question.text, question.written);
    const theirs = question.other === null ? [] : this.tokens(question.other);
    if (tokens.length === 0) return { tokens, hint: null };
    other.ask(theirs, options, []);
    yield* other.compute();
    const edits = question.edits.map((edit) => this.edit(edit, theirs)).filter(Boolean);
    table.ask(tokens, options, edits);
    yield* table.compute();
    if (theirs.length) yield* table.differences(other);
    return {
      tokens,
      hint: this.tokenizer.hint(question.text),
      tables: [table.record(options, theirs.length ? other : null), ...(theirs.length ? [other.record(options)] : [])],
      attention: {
        tokens, steps: STEPS_OF_WEIGHT, hidden: HIDDEN,
        layers: [...table.stream.kept.keys()],
        heads: table.stream.kept.map((_, layer) => table.stream.patterns(layer)),
      },
    };
  }

  options({ decoder, norm, sites, lens }) {
    const options = { decoder, norm, sites, lens: lens === null ? null : this.lenses.get(lens), lensName: lens };
    return { ...options, key: JSON.stringify([decoder, norm, sites, lens]) };
  }

  // An edit that was there already is the same object as before. null where the text has no such place.
  edit(wanted, theirs) {
    const { kind, layer, head, site, position } = wanted;
    if (kind === "patch" && position >= theirs.length) return null;
    const key = JSON.stringify([wanted, kind === "patch" && theirs.slice(0, position + 1)]);
    if (!this.edits.has(key)) {
      this.edits.set(key, kind === "zero"
        ? { layer, name: "z", position: 0, apply: (z) => without(z, head) }
        : { layer, name: site, position, apply: putting(slice(this.other.stream.at({ layer, name: site }, this.other.embed), position, position + 1), position) });
    }
    return this.edits.get(key);
  }

  // The next tokens, one at a time: {token, prob, settled}, where `settled` is the first row from which on the best
  // token is the one that is written, as in minilens/instruments/generation.py.
  *write(question, { n, temperature, top_k }) {
    const written = [...question.written];
    for (let step = 0; step < n; step += 1) {
      yield* this.answer({ ...question, written, other: question.edits.some(({ kind }) => kind === "patch") ? question.other : null });
      const { logits } = this.table;
      const token = choose(logits, temperature, top_k);
      const best = this.table.columns.at(-1).top.map(([[first]]) => first);
      let settled = best.length;
      while (settled > 0 && best[settled - 1] === token) settled -= 1;
      written.push(token);
      yield { token, prob: read(logits).prob[token], settled, label: this.table.readout.sites.map(label)[settled] ?? null };
    }
  }

  // The numbers of one block at one position, as `minilens walk` shows them: the first few of each value.
  walk(layer, position, head, few) {
    const { stream, embed } = this.table;
    const resid = slice(stream.at({ layer, name: "resid_pre" }, embed), position, position + 1);
    const cut = (x) => (position ? slice(x, 0, position) : null);
    const block = stream.block(layer, resid, { n: position, k: cut(stream.kept[layer].k), v: cut(stream.kept[layer].v) });
    return Object.fromEntries(Object.entries(block).filter(([name]) => name !== "layer").map(([name, x]) => {
      const [n, width] = x.shape.slice(-2);
      const row = x.shape.length === 3 ? (head * n + n - 1) * width : (n - 1) * width;
      return [name, { shape: x.shape, numbers: Array.from(x.data.slice(row, row + Math.min(width, ["scores", "pattern"].includes(name) ? width : few))) }];
    }));
  }}

// The best token, or one drawn from exp(logit / temperature) of the k best, and of those that tie with the last of them.
function choose(logits, temperature, top_k) {
  const [best] = top(logits, 1);
  if (temperature === 0) return best;
  const least = top_k === null ? -Infinity : logits[top(logits, top_k).at(-1)];
  const weights = Array.from(logits, (logit) => (logit < least ? 0 : Math.exp((logit - logits[best]) / temperature)));
  let left = Math.random() * weights.reduce((a, b) => a + b);
  const drawn = weights.findIndex((weight) => (left -= weight) < 0);
  return drawn < 0 ? best : drawn;
}

// z without what one head writes.
function without(z, head) {
  const size = z.data.length / z.shape[0];
  return each(z, (value, at) => (Math.floor(at / size) === head ? 0 : value));
}

// The residual with another one at a position.
function putting(other, position) {
  return (resid, first) => {
    const out = each(resid, (value) => value);
    if (position >= first && position < first + resid.shape[0]) out.data.set(other.data, (position - first) * resid.shape[1]);
    return out;
  };
}

// The tensors of a file of float16: names such as "model.blocks.0.W_O", each with its shape. What maps x to x @ W is
// written column by column.
function unpack(parts, bytes) {
  const halves = new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 2);
  const float = Float32Array.from({ length: 65536 }, (_, half) => {
    const [sign, exponent, fraction] = [half & 0x8000 ? -1 : 1, (half >> 10) & 31, half & 1023];
    return exponent ? sign * 2 ** (exponent - 15) * (1 + fraction / 1024) : sign * 2 ** -24 * fraction;
  });
  const numbers = roomFor(parts.map(({ shape }) => shape));
  for (let at = 0; at < numbers.length; at += 1) numbers[at] = float[halves[at]];
  const whole = {};
  let from = 0;
  for (const { name, shape, columns } of parts) {
    const data = numbers.subarray(from, (from += shape.reduce((a, b) => a * b, 1)));
    const path = name.split(".");
    const last = path.pop();
    const place = path.reduce((here, key) => (here[key] ??= {}), whole);
    place[last] = columns ? { shape, columns: data } : { shape, data };
  }
  const { model } = whole;
  model.blocks = Object.values(model.blocks);
  model.W_U ??= { shape: [...model.W_E.shape].reverse(), columns: model.W_E.data }; // the embedding transposed
  return whole;
}

// The maps of a learned lens by the labels of its rows, such as "3.resid_post".
function mapsOf(maps) {
  return Object.fromEntries(Object.entries(maps).flatMap(([layer, sites]) =>
    layer === "embed" ? [[layer, sites]] : Object.entries(sites).map(([name, map]) => [`${layer}.${name}`, map])));
}

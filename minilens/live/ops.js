// The few operations that GPT-2, GPT-Neo and CTRL share to the letter: minilens/ops.py in JavaScript.
//
// A tensor is its numbers and its shape: [pos, d_model], or [head, pos, d_head]. There is no batch, since the page reads
// one text. Numbers are kept in float32; sums are taken in float64, which is all that JavaScript has, but those of
// products with the model's matrices in float32: matrix.js.

function tensor(shape, data = null) {
  if (data) return { shape, data };
  let size = 1;
  for (const n of shape) size *= n;
  return { shape, data: new Float32Array(size) };
}

// The same of every number, or of every pair of numbers.
function each(x, fn) {
  const out = tensor(x.shape);
  for (let at = 0; at < out.data.length; at += 1) out.data[at] = fn(x.data[at], at);
  return out;
}
const plus = (x, y) => each(x, (value, at) => value + y.data[at]);
const times = (x, factor) => each(x, (value) => value * factor);

// (x - mean) / sqrt(variance + eps) * w + b over the last axis; the variance is the biased one.
function layer_norm(resid, { w, b }, eps) {
  const [n, d_model] = resid.shape;
  const out = tensor(resid.shape);
  for (let pos = 0; pos < n; pos += 1) {
    const x = resid.data.subarray(pos * d_model, (pos + 1) * d_model);
    let [mean, variance] = [0, 0];
    for (const value of x) mean += value / d_model;
    for (const value of x) variance += (value - mean) ** 2 / d_model;
    const scale = 1 / Math.sqrt(variance + eps);
    for (let i = 0; i < d_model; i += 1) out.data[pos * d_model + i] = (x[i] - mean) * scale * w.data[i] + b.data[i];
  }
  return out;
}

// x @ W + b. W holds its columns one after the other: the numbers that make one output stand together.
function linear(x, W, b = null) {
  const [d_in, d_out] = W.shape;
  const out = tensor([...x.shape.slice(0, -1), d_out]);
  if (isInRoom(W)) multiplied(x.data, W, out.data); // the same, quicker: matrix.js
  else {
    for (let at = 0; at < out.data.length; at += 1) {
      const [row, column] = [d_in * Math.floor(at / d_out), d_in * (at % d_out)];
      let sum = 0;
      for (let i = 0; i < d_in; i += 1) sum += x.data[row + i] * W.columns[column + i];
      out.data[at] = sum;
    }
  }
  return b ? each(out, (sum, at) => sum + b.data[at % d_out]) : out;
}

// Cut the last axis into parts of one width, in order.
function chunk(x, parts) {
  const [n, width] = [x.shape[0], x.shape[1] / parts];
  return Array.from({ length: parts }, (_, part) => {
    const out = tensor([n, width]);
    for (let pos = 0; pos < n; pos += 1) {
      const from = pos * width * parts + part * width;
      out.data.set(x.data.subarray(from, from + width), pos * width);
    }
    return out;
  });
}

// Cut the last axis into heads, in order, and put the heads before the positions.
function split_heads(x, n_heads) {
  const parts = chunk(x, n_heads);
  const out = tensor([n_heads, ...parts[0].shape]);
  parts.forEach(({ data }, head) => out.data.set(data, head * data.length));
  return out;
}

// The inverse of split_heads.
function merge_heads(z) {
  const [n_heads, n, d_head] = z.shape;
  const out = tensor([n, n_heads * d_head]);
  for (let head = 0; head < n_heads; head += 1) {
    for (let pos = 0; pos < n; pos += 1) {
      const from = (head * n + pos) * d_head;
      out.data.set(z.data.subarray(from, from + d_head), pos * n_heads * d_head + head * d_head);
    }
  }
  return out;
}

// Where a query may see a key: at its own position and before. The queries are the last of the positions that have keys.
function causal_mask(resid, k) {
  const first = k.shape[1] - resid.shape[0];
  return (query, key) => key <= first + query;
}

// The same, and nothing further back than the window.
function within_window(visible, resid, k, window) {
  const first = k.shape[1] - resid.shape[0];
  return (query, key) => visible(query, key) && key > first + query - window;
}

// q @ k.mT: how much each query asks for each key.
function attention_scores(q, k) {
  const [[n_heads, n, d_head], n_keys] = [q.shape, k.shape[1]];
  const out = tensor([n_heads, n, n_keys]);
  for (let head = 0; head < n_heads; head += 1) {
    for (let query = 0; query < n; query += 1) {
      const from = (head * n + query) * d_head;
      for (let key = 0; key < n_keys; key += 1) {
        const to = (head * n_keys + key) * d_head;
        let sum = 0;
        for (let i = 0; i < d_head; i += 1) sum += q.data[from + i] * k.data[to + i];
        out.data[(head * n + query) * n_keys + key] = sum;
      }
    }
  }
  return out;
}

// -inf where a query does not see a key.
function where(visible, scores) {
  const [, n, n_keys] = scores.shape;
  return each(scores, (score, at) => (visible(Math.floor(at / n_keys) % n, at % n_keys) ? score : -Infinity));
}

// exp(score) / sum of exp over the keys.
function softmax(scores) {
  const n_keys = scores.shape.at(-1);
  const out = tensor(scores.shape);
  for (let from = 0; from < scores.data.length; from += n_keys) {
    const row = scores.data.subarray(from, from + n_keys);
    const highest = row.reduce((a, b) => Math.max(a, b));
    let sum = 0;
    for (const score of row) sum += Math.exp(score - highest);
    for (let key = 0; key < n_keys; key += 1) out.data[from + key] = Math.exp(row[key] - highest) / sum;
  }
  return out;
}

// pattern @ v: the values of the keys, each by its weight.
function weighted(pattern, v) {
  const [[n_heads, n, n_keys], d_head] = [pattern.shape, v.shape[2]];
  const out = tensor([n_heads, n, d_head]);
  const sums = new Float64Array(d_head);
  for (let row = 0; row < n_heads * n; row += 1) {
    const head = Math.floor(row / n);
    sums.fill(0);
    for (let key = 0; key < n_keys; key += 1) {
      const weight = pattern.data[row * n_keys + key];
      if (weight === 0) continue;
      for (let i = 0; i < d_head; i += 1) sums[i] += weight * v.data[(head * n_keys + key) * d_head + i];
    }
    out.data.set(sums, row * d_head);
  }
  return out;
}

// The tanh approximation of GELU (Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2). tanh by way of exp, which is
// quicker.
const ROOT = Math.sqrt(2 / Math.PI);
const gelu_new = (x) => 0.5 * x * (2 - 2 / (1 + Math.exp(2 * ROOT * (x + 0.044715 * x * x * x))));

// The exact one, x times the normal distribution's cdf, by formula 7.1.26 of Abramowitz and Stegun: within 2e-7.
function gelu(x) {
  const z = Math.abs(x) / Math.SQRT2;
  const t = 1 / (1 + 0.3275911 * z);
  const series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
  const erf = Math.sign(x) * (1 - series * Math.exp(-z * z));
  return 0.5 * x * (1 + erf);
}

const relu = (x) => Math.max(0, x);

const ACTIVATIONS = { gelu_new, gelu, relu };

// ---- Positions: the axis before the last

// Both one after the other.
function concat(x, y) {
  if (!x) return y;
  const [heads, width] = [x.shape.length === 3 ? x.shape[0] : 1, x.shape.at(-1)];
  const [n, m] = [x.shape.at(-2), y.shape.at(-2)];
  const out = tensor([...x.shape.slice(0, -2), n + m, width]);
  for (let head = 0; head < heads; head += 1) {
    const at = head * (n + m) * width;
    out.data.set(x.data.subarray(head * n * width, (head + 1) * n * width), at);
    out.data.set(y.data.subarray(head * m * width, (head + 1) * m * width), at + n * width);
  }
  return out;
}

// Those from `first` to `end` - 1.
function slice(x, first, end = x.shape.at(-2)) {
  const [heads, n, width] = [x.shape.length === 3 ? x.shape[0] : 1, x.shape.at(-2), x.shape.at(-1)];
  const out = tensor([...x.shape.slice(0, -2), end - first, width]);
  for (let head = 0; head < heads; head += 1) {
    const from = head * n * width;
    out.data.set(x.data.subarray(from + first * width, from + end * width), head * (end - first) * width);
  }
  return out;
}

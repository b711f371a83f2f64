// Statistics over the vocabulary: minilens/vocab.py in JavaScript, of whole rows of logits instead of tiles. Information
// is in nats, and sums are in float64.

const OF_ALL_LOGITS = ["entropy", "kl_final", "kl_row_final", "kl_input", "kl_row_input", "js", "change"];

// All that the rows say at one position. logits: of each row, the input row first and the final one last. asked: the
// tokens to measure, by name; null for none. k: how many of the best tokens.
function vocab_stats(logits, asked, k) {
  const [rows, final] = [logits.map(read), logits.length - 1];
  if (rows.some(({ entropy }) => Number.isNaN(entropy))) throw new Refusal("The logits are not finite: the numbers are too large.");
  const best = top(logits[final], k);
  const tokens = { final: best[0], ...asked };
  return {
    top: logits.map((row, r) => (r === final ? best : top(row, k)).map((token) => [token, row[token], rows[r].logprob[token]])),
    standings: Object.fromEntries(Object.entries(tokens).map(([name, token]) => [name, rows.map((row, r) => standing(logits[r], row.lse, token))])),
    lse: rows.map(({ lse }) => lse),
    stats: rows.map((row, r) => ({
      entropy: row.entropy,
      kl_final: kl(rows[final], row),
      kl_row_final: kl(row, rows[final]),
      kl_input: kl(rows[0], row),
      kl_row_input: kl(row, rows[0]),
      js: r === final ? 0 : jensen_shannon(row, rows[final]),
      change: r ? kl(row, rows[r - 1]) : null,
    })),
  };
}

// A row of logits as log-probabilities and probabilities.
function read(logits) {
  const n = logits.length;
  const [logprob, prob] = [new Float64Array(n), new Float64Array(n)];
  let [highest, sum, entropy] = [-Infinity, 0, 0];
  for (let token = 0; token < n; token += 1) highest = Math.max(highest, logits[token]);
  for (let token = 0; token < n; token += 1) sum += prob[token] = Math.exp(logits[token] - highest);
  const lse = highest + Math.log(sum);
  for (let token = 0; token < n; token += 1) {
    logprob[token] = Math.min(0, logits[token] - lse);
    prob[token] /= sum;
    entropy -= prob[token] * logprob[token];
  }
  return { logprob, prob, lse, entropy: Math.max(0, entropy) };
}

// KL(p || q) = sum p (log p - log q)
function kl({ prob, logprob }, q) {
  const other = q.logprob;
  let sum = 0;
  for (let token = 0; token < prob.length; token += 1) sum += prob[token] * (logprob[token] - other[token]);
  return Math.max(0, sum);
}

// (KL(p || m) + KL(q || m)) / 2, where m is the mean of p and q
function jensen_shannon(p, q) {
  let sum = 0;
  for (let token = 0; token < p.prob.length; token += 1) {
    const a = p.prob[token], b = q.prob[token];
    if (a + b === 0) continue;
    const log_m = Math.log((a + b) / 2);
    sum += a * (p.logprob[token] - log_m) + b * (q.logprob[token] - log_m);
  }
  return Math.max(0, sum / 2);
}

// The k best tokens, best first; of equal logits the first.
function top(logits, k) {
  const best = [];
  for (let token = 0; token < logits.length; token += 1) {
    if (best.length === k && logits[token] <= logits[best[k - 1]]) continue;
    let at = Math.min(best.length, k - 1);
    while (at > 0 && logits[best[at - 1]] < logits[token]) at -= 1;
    best.splice(at, 0, token);
    best.length = Math.min(best.length, k);
  }
  return best;
}

// How a token stands in a row, whose logits' logsumexp is `lse`. Rank 1 is the best, and so is what ties with it.
function standing(logits, lse, token) {
  if (token === null) return { logit: null, logprob: null, rank: null };
  const own = logits[token];
  let better = 0;
  for (let other = 0; other < logits.length; other += 1) if (logits[other] > own) better += 1;
  return { logit: own, logprob: Math.min(0, own - lse), rank: 1 + better };
}

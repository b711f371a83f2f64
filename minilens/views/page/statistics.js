// ---- Statistics: how each is named, where its numbers are, and which shade they get, from 0 (dark) to 1 (bright)

// file.ends says what is darkest and what is brightest, as in the terminal and in figures.
function between([dark, bright], scale = Number) {
  return (value) => (scale(value) - scale(dark)) / (scale(bright) - scale(dark));
}
const KINDS = {
  probability: { shade: between(file.ends.prob), ends: ["0", "1"], show: probability },
  rank: { shade: between(file.ends.rank, Math.log10), ends: [`${file.ends.rank[0]} or worse`, "1"], show: whole },
  nats: { shade: between(file.ends.nats), ends: [`${file.ends.nats[0]} nats or more`, "0"], show: decimal },
  bounded: { shade: between(file.ends.js), ends: ["log 2 nats", "0"], show: decimal },
  agreement: { shade: between(file.ends.agrees), ends: ["another token", "the output"], show: yesOrNo },
};

// From the 5th to the 95th percentile of the numbers themselves.
function spread(count, value) {
  const known = Float64Array.from({ length: count }, (_, i) => value(i) ?? NaN).filter((each) => !isNaN(each)).sort();
  const at = (share) => known[Math.round(share * (known.length - 1))] ?? 0;
  const [low, high] = [at(0.05), at(0.95)];
  const shade = (each) => (each - low) / Math.max(high - low, 1e-9);
  return { shade, ends: [`${decimal(low)} or less`, `${decimal(high)} or more`], show: decimal };
}

const DISTRIBUTION = {
  entropy: ["Entropy", "nats"],
  kl_final: ["KL(output \u2016 row)", "nats"],
  kl_row_final: ["KL(row \u2016 output)", "nats"],
  kl_input: ["KL(input row \u2016 row)", "nats"],
  kl_row_input: ["KL(row \u2016 input row)", "nats"],
  js: ["Jensen-Shannon, row and output", "bounded"],
  change: ["KL(row \u2016 row before)", "nats"],
  difference: ["KL(the other text\u2019s row \u2016 this one\u2019s)", "nats"],
};
const PAIRED = /^(prob|logit|.+_(rank|prob|logit))$/; // the panel has them in its tables of tokens
const OF_THE_ROW = "The row\u2019s distribution";
const OF_THE_BEST = "The row\u2019s best token";
const STANDINGS = { final: "The output\u2019s token", next: "The true next token", input: "The input token" };

// A cell of a table with a name in it. It says what the glossary says of the longest word that the name begins with.
function named(kind, name, properties = {}) {
  const plain = name.replace("\u2019", "'").replace(/^The /, "").toLowerCase();
  const [word] = Object.keys(file.words).filter((each) => plain.startsWith(each)).sort((a, b) => b.length - a.length);
  return element(kind, { ...properties, text: name, ...(word && { title: file.words[word] }) });
}

const exp = (logprob) => (logprob === null ? null : Math.exp(logprob));
const minus = (logprob) => (logprob === null ? null : Math.max(0, -logprob)); // not -0

function statisticsOf({ top, standings, tracked, tracked_tokens, values, labels, positions }) {
  const count = labels.length * positions.length;
  const found = [];
  const add = (key, group, name, value, kind = spread(count, value)) => found.push({ key, group, name, value, alone: !PAIRED.test(key), ...kind });
  const addStanding = (key, group, { logit, logprob, rank }) => {
    add(`${key}_rank`, group, "Rank", (i) => rank[i], KINDS.rank);
    add(`${key}_prob`, group, "Probability", (i) => exp(logprob[i]), KINDS.probability);
    add(`${key}_logit`, group, "Logit", (i) => logit[i]);
  };

  if (top) {
    add("prob", OF_THE_BEST, "Probability", (i) => exp(top.logprob[i * top.k]), KINDS.probability);
    add("logit", OF_THE_BEST, "Logit", (i) => top.logit[i * top.k]);
  }
  if (top || standings.final) add("agrees", OF_THE_ROW, "Agrees with the output", agreesAt, KINDS.agreement);
  for (const [key, standing] of Object.entries(standings)) {
    const group = STANDINGS[key] ?? key;
    addStanding(key, group, standing);
    if (key === "next") add("cross_entropy", group, "Cross-entropy", (i) => minus(standing.logprob[i]), KINDS.nats);
  }
  for (const [key, list] of Object.entries(values)) {
    const [name, kind] = DISTRIBUTION[key] ?? [key];
    add(key, OF_THE_ROW, name, (i) => list[i], KINDS[kind]);
  }
  tracked.forEach((standing, t) => addStanding(`token${tracked_tokens[t]}`, `Tracked ${label(tracked_tokens[t])}`, standing));
  return found;
}

// Whether the row's best token is the output's, or ties with it.
function agreesAt(i) {
  const { standings, top, final_tokens, positions } = table;
  if (standings.final) return standings.final.rank[i] === 1;
  return top ? top.tokens[i * top.k] === final_tokens[i % positions.length] : false;
}

const statistic = () => statistics.find(({ key }) => key === state.colour) ?? statistics[0];


// ---- Colours

const SHADES = 64; // steps of the colour scale

// The anchors are evenly spaced; between them colours are mixed.
function scaleColour(shade) {
  const place = shade * (file.scale.length - 1);
  const low = Math.min(Math.floor(place), file.scale.length - 2);
  return file.scale[low].map((from, i) => Math.round(from + (file.scale[low + 1][i] - from) * (place - low)));
}

// At a luma of 117 black and white stand out alike.
const inkOn = ([red, green, blue]) => (0.299 * red + 0.587 * green + 0.114 * blue > 117 ? "#000" : "#fff");

const STEPS = Array.from({ length: SHADES }, (_, step) => scaleColour(step / (SHADES - 1)));

function writeShades() {
  const rules = STEPS.map((colour, step) => `.s${step} { background-color: rgb(${colour}); color: ${inkOn(colour)}; }`);
  document.head.append(element("style", { text: rules.join("\n") }));
}

const CLASSES = STEPS.map((_, step) => `s${step}`);
const stepOf = (shade) => Math.round(Math.min(1, Math.max(0, shade)) * (SHADES - 1));
const classOf = (shade) => CLASSES[stepOf(shade)];

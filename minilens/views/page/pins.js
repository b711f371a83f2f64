// ---- Pins: a token at a position, followed through the rows

const isPinned = (position, token) => state.pins.some((pin) => pin.position === position && pin.token === token);

function pinCell(r, c) {
  if (table.top) togglePin(table.positions[c], bestAt(r, c));
  else togglePin(table.positions[c], table.final_tokens[c]);
}

function togglePin(position, token) {
  const others = state.pins.filter((pin) => pin.position !== position || pin.token !== token);
  const free = [...Array(others.length + 1).keys()].find((style) => others.every((pin) => pin.style !== style));
  state.pins = others.length < state.pins.length ? others : [...others, { position, token, style: free }];
  markPins(grid);
  showPins();
  showPanel(focused().r, focused().c);
  keepState();
}

// What the table knows of any token in one cell: the tokens it follows everywhere, and the best ones.
function standingOf(token, r, c) {
  const i = place(r, c);
  const { standings, tracked, tracked_tokens, top } = table;
  const key = Object.keys(standings).find((each) => table[`${each}_tokens`]?.[c] === token);
  const known = standings[key] ?? tracked[tracked_tokens.indexOf(token)];
  if (known) return { probability: exp(known.logprob[i]), rank: known.rank[i] };
  const j = top ? top.tokens.slice(i * top.k, (i + 1) * top.k).indexOf(token) : -1;
  return j < 0 ? null : { probability: exp(top.logprob[i * top.k + j]), rank: j + 1 };
}

function followed(pin) {
  const c = table.positions.indexOf(pin.position);
  return { ...pin, missing: c < 0, points: shownRows().map((r) => (c < 0 ? null : standingOf(pin.token, r, c))) };
}

// "embed to 2.resid_post, 4.resid_post": the rows in which a pin is not known
function unknownRows({ points }) {
  const names = shownRows().map((r) => table.labels[r]);
  const runs = [];
  points.forEach((point, x) => {
    if (point) return;
    if (x > 0 && !points[x - 1]) runs.at(-1)[1] = names[x];
    else runs.push([names[x], names[x]]);
  });
  return runs.map(([from, to]) => (from === to ? from : `${from} to ${to}`)).join(", ");
}

function noteOn(pin) {
  if (pin.missing) return "this tab does not show that position";
  const unknown = unknownRows(pin);
  return unknown && `below the top ${table.top?.k ?? 0} and so not known at ${unknown}`;
}

const pinName = ({ position, token }) => `${label(token)} at position ${position}`;
const pinColour = ({ style }) => `color: var(--pin${style % 6})`;
const DASHES = ["none", "6 3", "2 3", "9 3 2 3"];
const pinDash = ({ style }) => DASHES[Math.floor(style / 6 + style) % DASHES.length];

function pinItem(pin) {
  const sample = drawn("svg", { style: pinColour(pin), viewBox: "0 0 36 12", "aria-hidden": "true" });
  sample.append(drawn("path", { class: "series", d: "M0 6H36", "stroke-dasharray": pinDash(pin) }));
  const remove = element("button", { type: "button", text: "remove", "aria-label": `remove ${pinName(pin)}` });
  remove.addEventListener("click", () => {
    togglePin(pin.position, pin.token);
    (find("#pins button") ?? grid.stop).focus({ preventScroll: true });
  });
  const after = label(table.input_tokens[table.positions.indexOf(pin.position)] ?? -1);
  return element("li", {}, sample,
    element("strong", { class: "token", text: label(pin.token) }),
    element("span", {}, `position ${pin.position}`, after && ", after ", element("bdi", { class: "token", text: after })),
    remove, element("span", { class: "note", text: noteOn(pin) }));
}

function showPins() {
  const section = find("#pins");
  section.hidden = state.pins.length === 0;
  if (section.hidden) return section.replaceChildren();
  const pins = state.pins.map(followed);
  const charts = element("div", { class: "charts" });
  section.replaceChildren(element("h2", { text: `Pinned tokens${data.tables.length > 1 ? `, ${tabName(table)}` : ""}` }), element("ul", {}, ...pins.map(pinItem)), charts, pinTable(pins));
  const names = shownRows().map((r) => table.labels[r]);
  const worst = Math.max(10, ...pins.flatMap(({ points }) => points.map((point) => point?.rank ?? 1)));
  const decades = Math.ceil(Math.log10(worst));
  const ranks = Array.from({ length: decades + 1 }, (_, d) => 10 ** d);
  charts.append(
    chart("Probability by row", pins, names, { of: (point) => point.probability, up: (p) => p, ticks: [0, 0.25, 0.5, 0.75, 1], show: probability }),
    chart("Rank by row, 1 on top", pins, names, { of: (point) => point.rank, up: (rank) => 1 - Math.log10(rank) / decades, ticks: ranks, show: whole }));
}

// The same numbers for those who do not see the charts.
function pinTable(pins) {
  const heads = ["Row", ...pins.flatMap((pin) => [`${pinName(pin)}: probability`, `${pinName(pin)}: rank`])];
  const lines = shownRows().map((r, x) => [table.labels[r], ...pins.flatMap(({ points }) =>
    points[x] ? [probability(points[x].probability), whole(points[x].rank)] : ["not known", "not known"])]);
  return element("div", { class: "unseen" }, textTable("Pinned tokens by row", heads, lines));
}


// ---- Charts: rows from left to right, a line for each pin

function chart(title, pins, names, axis) {
  const [wide, high, left, right, top, bottom] = [chartWidth(), 220, 48, 14, 10, 30];
  const x = (at) => left + (names.length < 2 ? 0.5 : at / (names.length - 1)) * (wide - left - right);
  const y = (value) => top + (1 - axis.up(value)) * (high - top - bottom);
  const picture = drawn("svg", { class: "chart", viewBox: `0 0 ${wide} ${high}`, height: high, role: "img", "aria-label": title });
  for (const tick of axis.ticks) {
    picture.append(drawn("line", { x1: left, x2: wide - right, y1: y(tick), y2: y(tick) }));
    picture.append(drawn("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, String(tick)));
  }
  const short = names.map((name) => name.replace(".resid_post", "").replace(".resid_", " "));
  const room = Math.max(...short.map(width)) * 7 + 8;
  const step = Math.ceil(names.length / Math.max(1, Math.floor((wide - left - right) / room)));
  short.forEach((name, at) => {
    if (at % step === 0) picture.append(drawn("text", { x: x(at), y: high - 10, "text-anchor": "middle" }, name));
  });
  for (const pin of pins) picture.append(line(pin, names, x, y, axis));
  return element("figure", {}, element("figcaption", { text: title }), picture);
}

function chartWidth() {
  const room = find("#pins").clientWidth || 640;
  const beside = Math.max(1, Math.floor((room + 24) / (416 + 24)));
  return Math.round((room - 24 * (Math.min(beside, 2) - 1)) / Math.min(beside, 2));
}

// Where a pin is not known its line has a gap.
function line(pin, names, x, y, axis) {
  const made = drawn("g", { style: pinColour(pin) });
  let path = "";
  pin.points.forEach((point, at) => {
    const value = point ? axis.of(point) : null;
    if (value === null) return;
    const before = at > 0 && pin.points[at - 1];
    path += `${before ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
    const dot = drawn("circle", { class: "point", cx: x(at), cy: y(value), r: names.length > 60 ? 1.5 : 2.75 });
    dot.append(drawn("title", {}, `${pinName(pin)}, ${names[at]}: ${axis.show(value)}`));
    made.append(dot);
  });
  made.prepend(drawn("path", { class: "series", d: path || "M0 0", "stroke-dasharray": pinDash(pin) }));
  return made;
}

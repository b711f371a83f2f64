// ---- Attention: one head, with a row for each query and a column for each key

let attention; // of the record; null where it has none
const [SMALLEST, LARGEST] = [14, 40]; // pixels of a cell: as many as there is room for
let CELL = SMALLEST;
const SCALES = {
  root: { text: "by its root", of: Math.sqrt, ends: ["0", "1; half way 0.25"] },
  row: { text: "beside the query\u2019s strongest", of: (weight, strongest) => weight / strongest, ends: ["0", "the strongest of the row"] },
  weight: { text: "as it is", of: (weight) => weight, ends: ["0", "1"] },
};
let [FONT, LETTER] = [11, 6.7]; // pixels: how high and wide a letter of a label is
const LONGEST = 12; // letters of a label
const STRONGEST = 8; // keys in the table
let codes; // the head's weights as the file has them, a query after another
let textLength;
const gapOf = (cell) => (cell > 4 ? 1 : 0);
const headsOf = (layer) => attention.heads[attention.layers.indexOf(layer)];
const within = (low, value, high) => Math.max(low, Math.min(value, high));

// What a query does not see has no weight, which is another thing than a weight of 0.
function weightAt(query, key) {
  const code = key > query ? attention.hidden : codes[(query * (query + 1)) / 2 + key];
  return code === attention.hidden ? null : code / attention.steps;
}

function cut(text) {
  if (width(text) <= LONGEST) return text;
  let kept = "";
  for (const char of text) {
    if (width(kept + char) >= LONGEST) break;
    kept += char;
  }
  return `${kept}\u2026`;
}

// In pixels: the numbers of positions; what stands beside and above the cells; the whole picture.
let [DIGITS, ROOM, SIZE] = [0, 0, 0];

function measureAttention() {
  const { tokens, layers, heads } = attention;
  FONT = parseFloat(getComputedStyle(find("#picture canvas")).fontSize);
  LETTER = 0.61 * FONT;
  textLength = tokens.length;
  DIGITS = String(textLength - 1).length * LETTER;
  const letters = Math.max(0, ...tokens.map((token) => width(cut(label(token)))));
  ROOM = Math.ceil(DIGITS + LETTER + letters * LETTER) + 8;
  const { clientWidth } = find("#attention");
  const others = heads[0].length * 57 + 30;
  const beside = clientWidth > 900 ? others + 310 : 0; // the other heads, and the panel
  find("#heads").style.minWidth = `min(${others}px, 45vw)`;
  const room = Math.min(clientWidth - beside, 0.78 * window.innerHeight) - ROOM - 2;
  CELL = within(Math.max(SMALLEST, FONT + 3), Math.floor(room / textLength), LARGEST);
  SIZE = ROOM + textLength * CELL + 2;
  const choose = (select, values) => {
    if (select.length !== values.length) select.replaceChildren(...values.map((value) => element("option", { value, text: value })));
  };
  Object.assign(find("#picture").firstElementChild.style, { width: `${SIZE}px`, height: `${SIZE}px` });
  choose(find("#layer"), layers);
  choose(find("#head"), [...heads[0].keys()]);
}

// A view is what is to be seen from `left` and `top` on, in pixels of the cells, with these rows' and columns' labels.
function drawHead(canvas, view) {
  const { wide, high, left = 0, top = 0, cell = CELL } = view;
  const sharp = Math.max(2, window.devicePixelRatio);
  Object.assign(canvas, { width: wide * sharp, height: high * sharp });
  Object.assign(canvas.style, { width: `${wide}px`, height: `${high}px` });
  const pen = canvas.getContext("2d");
  pen.font = getComputedStyle(canvas).font;
  pen.textBaseline = "middle";
  pen.scale(sharp, sharp);
  const inSight = (from, size) => [Math.floor(from / cell), Math.min(textLength, Math.ceil((from + size - ROOM) / cell))];
  const [rows, columns] = [inSight(top, high), inSight(left, wide)];
  const clipped = (x, y, draw) => {
    pen.save();
    pen.beginPath();
    pen.rect(x, y, x ? wide : ROOM, y ? high : ROOM);
    pen.clip();
    pen.translate(x ? ROOM - left : ROOM, y ? ROOM - top : ROOM); // the first cell, or the end of its label
    draw();
    pen.restore();
  };
  const names = [[rows, 0, [state.query, state.position]], [columns, -Math.PI / 2, [state.key]]];
  clipped(ROOM - 2, ROOM - 2, () => drawCells(pen, rows, columns, { cell, ...view }));
  clipped(0, ROOM - 2, () => drawNames(pen, ...names[0], { cell, ...view }));
  clipped(ROOM - 2, 0, () => drawNames(pen, ...names[1], { cell, ...view }));
}

function drawCells(pen, [firstRow, endRow], [firstColumn, endColumn], { cell, mark }) {
  const side = cell - gapOf(cell);
  const shade = SCALES[find("#scale").value].of;
  for (let query = firstRow; query < endRow; query += 1) {
    const strongest = weightAt(query, strongestKey(query)) || 1;
    for (let key = firstColumn; key < Math.min(endColumn, query + 1); key += 1) {
      const weight = weightAt(query, key);
      if (weight === null) continue;
      pen.fillStyle = `rgb(${STEPS[stepOf(shade(weight, strongest))]})`;
      pen.fillRect(key * cell, query * cell, side, side);
    }
  }
  if (!mark) return;
  const outline = (colour, width, query, key, keys, out) => {
    Object.assign(pen, { strokeStyle: colour, lineWidth: width });
    pen.strokeRect(key * cell - out, query * cell - out, keys * cell - 1 + 2 * out, side + 2 * out);
  };
  outline(mark, 2, state.position, 0, state.position + 1, 1);
  outline("#000", 2, state.query, state.key, 1, -0.5);
  outline("#fff", 1.5, state.query, state.key, 1, -2);
}

// Where cells are small, only some rows and columns are named.
function drawNames(pen, [first, end], turn, chosen, { cell, ink, quiet, mark }) {
  const every = Math.ceil(FONT / cell);
  const { font } = pen;
  for (let at = Math.ceil(first / every) * every; at < end; at += every) {
    const isChosen = mark && chosen.includes(at);
    const middle = at * cell + (cell - gapOf(cell)) / 2;
    pen.save();
    pen.translate(turn ? middle : -ROOM, turn ? 0 : middle);
    pen.rotate(turn);
    Object.assign(pen, { font: isChosen ? `bold ${font}` : font, fillStyle: isChosen ? ink : quiet });
    pen.fillText(String(at).padStart(String(textLength - 1).length), 0, 0);
    pen.fillText(cut(label(attention.tokens[at])), DIGITS + LETTER, 0, ROOM - DIGITS - LETTER - 3);
    pen.restore();
  }
}

// Only what is in sight is drawn: the canvas stays where it is, and what it stands in scrolls.
function drawPicture() {
  if (!attention) return;
  const picture = find("#picture");
  const { clientWidth, clientHeight, scrollLeft, scrollTop } = picture;
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`);
  drawHead(picture.querySelector("canvas"), {
    wide: Math.min(SIZE, clientWidth), high: Math.min(SIZE, clientHeight), left: scrollLeft, top: scrollTop,
    ink: colour("text"), quiet: colour("quiet"), mark: colour("pin1"),
  });
}

function bringIntoSight() {
  const picture = find("#picture");
  const scrolled = (now, index, size) => within((index + 1) * CELL + 2 - (size - ROOM), now, index * CELL);
  picture.scrollTop = scrolled(picture.scrollTop, state.query, picture.clientHeight);
  picture.scrollLeft = scrolled(picture.scrollLeft, state.key, picture.clientWidth);
}

function showWeight(query, key) {
  const weight = weightAt(query, key);
  const token = (index) => element("bdi", { class: "token", text: label(attention.tokens[index]) });
  const hidden = key > query ? "not seen, since it comes after the query" : "not seen by this head";
  find("#weight").replaceChildren(
    element("strong", { text: weight === null ? hidden : weight.toFixed(3) }),
    ` from query ${query} `, token(query), ` to key ${key} `, token(key), `, layer ${state.layer}, head ${state.head}`);
}

function strongestKey(query) {
  let best = 0;
  for (let key = 1; key <= query; key += 1) if (weightAt(query, key) > weightAt(query, best)) best = key;
  return best;
}

function showStrongest() {
  const seen = Array.from({ length: state.query + 1 }, (_, key) => ({ key, weight: weightAt(state.query, key) }))
    .filter(({ weight }) => weight !== null).sort((a, b) => b.weight - a.weight).slice(0, STRONGEST);
  const caption = `Strongest keys of query ${state.query}, ${label(attention.tokens[state.query])}`;
  const lines = seen.map(({ key, weight }) => [key, label(attention.tokens[key]), weight.toFixed(3)]);
  find("#strongest").replaceChildren(textTable(caption, ["Key", "Token", "Weight"], lines));
  const panel = find(".attention .panel");
  panel.tabIndex = panel.scrollWidth > panel.clientWidth ? 0 : -1; // what scrolls is reached by the keyboard
}

// Where a choice in the grid has moved the query, the key is the strongest one.
function showCell() {
  if (state.query === null) [state.query, state.key] = [state.position, strongestKey(state.position)];
  state.key = Math.min(state.key, state.query);
  bringIntoSight();
  drawPicture();
  showWeight(state.query, state.key);
  showStrongest();
}

// The grid's column moves with the query, where it has one for it.
function moveCell(query, key) {
  [state.query, state.key] = [query, key];
  const c = table.positions.indexOf(query);
  if (c >= 0) return setFocus({ r: focused().r, c }, { move: false, query });
  showCell();
  keepState();
}

function moveInPicture(event) {
  const { query, key } = state;
  const all = event.ctrlKey || event.metaKey;
  const last = textLength - 1;
  const moves = {
    ArrowUp: [query - 1, key], ArrowDown: [query + 1, key], ArrowLeft: [query, key - 1], ArrowRight: [query, key + 1],
    PageUp: [query - 10, key], PageDown: [query + 10, key],
    Home: [all ? 0 : query, 0], End: all ? [last, last] : [query, query],
  };
  if (!(event.key in moves) || event.altKey) return;
  event.preventDefault();
  const to = within(0, moves[event.key][0], last);
  moveCell(to, within(0, moves[event.key][1], to));
}

// The cell below the pointer, whether it is seen or not.
function cellBelow({ clientX, clientY }) {
  const picture = find("#picture");
  const { left, top } = picture.querySelector("canvas").getBoundingClientRect();
  if (clientX < left + ROOM || clientY < top + ROOM) return null;
  const query = Math.floor((clientY - top - ROOM + picture.scrollTop) / CELL);
  const key = Math.floor((clientX - left - ROOM + picture.scrollLeft) / CELL);
  return query < textLength && key < textLength ? { query, key } : null;
}

// A file holds them in base64; a model that computes gives them as they are.
function codesOf(head) {
  if (typeof head !== "string") return head;
  const bytes = atob(head);
  return Uint16Array.from({ length: bytes.length / 2 }, (_, i) => bytes.charCodeAt(2 * i) + 256 * bytes.charCodeAt(2 * i + 1));
}

function showHead() {
  codes = codesOf(headsOf(state.layer)[state.head]);
  const title = `Attention: layer ${state.layer}, head ${state.head}`;
  find("#attention h2").textContent = title;
  find("#picture").setAttribute("aria-label", `${title}, queries by keys`);
  find("#layer").value = state.layer;
  find("#head").value = state.head;
}

function chooseHead(layer, head) {
  Object.assign(state, { layer, head });
  showHead();
  showCell();
  markHead();
  source.changed();
  keepState();
}

function layOutAttention() {
  if (!attention) return;
  measureAttention();
  showHead();
  showCell();
}

function listenToAttention() {
  const picture = find("#picture");
  find("#layer").addEventListener("change", ({ target }) => chooseHead(Number(target.value), state.head));
  find("#head").addEventListener("change", ({ target }) => chooseHead(state.layer, Number(target.value)));
  find("#heads").addEventListener("keydown", moveInHeads);
  find("#previous").addEventListener("click", () => stepHead(-1));
  find("#next").addEventListener("click", () => stepHead(1));
  picture.addEventListener("keydown", moveInPicture);
  picture.addEventListener("scroll", drawPicture);
  picture.addEventListener("mousemove", (event) => {
    const { query, key } = cellBelow(event) ?? state;
    showWeight(query, key);
  });
  picture.addEventListener("mouseleave", () => showWeight(state.query, state.key));
  picture.addEventListener("click", (event) => {
    const below = cellBelow(event);
    if (below) moveCell(below.query, Math.min(below.key, below.query));
  });
  // A screen reader speaks of weights while somebody is here, and not with every move in the grid.
  find("#attention").addEventListener("focusin", () => find("#weight").setAttribute("aria-live", "polite"));
  find("#attention").addEventListener("focusout", () => find("#weight").setAttribute("aria-live", "off"));
  window.addEventListener("resize", layOutAttention);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawPicture);
  find("#scale").append(...Object.entries(SCALES).map(([value, { text }]) => element("option", { value, text })));
  find("#scale").addEventListener("change", () => { showScale(); drawPicture(); });
  showScale();
}

function showScale() {
  const [low, high] = SCALES[find("#scale").value].ends;
  find("#attention .legend").replaceChildren(low, scaleBar(), high, element("span", { text: "blank: not seen" }));
}

// All of the head on one page.
function attentionOnPaper() {
  const canvas = element("canvas");
  find("#paper").replaceChildren(canvas);
  const cell = within(2, Math.floor(560 / textLength), CELL); // pixels, so that a short text is as large as on the screen
  const size = ROOM + textLength * cell;
  drawHead(canvas, { wide: size, high: size, cell, ink: "#000", quiet: "#444" });
}

// ---- The grid

const AT_A_TIME = 40; // columns that are coloured in one go where nobody sees them

const place = (r, c) => r * table.positions.length + c;
const bestAt = (r, c) => (table.top ? table.top.tokens[place(r, c) * table.top.k] : null);
const isRight = (c) => table.next_tokens[c] >= 0 && table.next_tokens[c] === table.final_tokens[c];
const lastRow = () => table.labels.length - 1;

// resid_pre and resid_mid stand inside a block; where no row ends a block there is nothing to hide them from.
function isInside(r) {
  const endsBlock = (text) => text.endsWith("resid_post");
  return r > 0 && r < lastRow() && !endsBlock(table.labels[r]) && table.labels.some(endsBlock);
}
const isShown = (r) => state.subblocks || !isInside(r);
const shownRows = () => [...table.labels.keys()].filter(isShown); // from the input up

function columnWidth(c) {
  const texts = [label(table.input_tokens[c]), `${label(table.next_tokens[c])} *`, String(table.positions[c])];
  if (table.top) for (const r of table.labels.keys()) texts.push(label(bestAt(r, c)));
  return Math.min(12, Math.max(6, ...texts.map(width)));
}

// Cells and headers without their texts: a line for each row, the header above and the one below.
function makeLines() {
  const made = element("table", { class: "grid", role: "grid", "aria-label": "Logit lens: residuals by positions" });
  const labelWidth = Math.max(...table.labels.map(width), "true next token".length - 1);
  const widths = element("colgroup", {}, element("col", { style: `width: calc(${labelWidth}ch + 6px)` }));
  const line = (text, corner = {}) => element("tr", {}, element("th", { scope: "row", text, ...corner }));
  const lines = table.labels.map((text) => line(text));
  const [above, below] = ["true next token", "input token"].map((text) => line(text, { class: "corner" }));
  const body = element("tbody", {}, ...[...lines].reverse());
  made.append(widths, element("thead", {}, above), body, element("tfoot", {}, below));
  return { made, widths, above, below, lines, cells: table.labels.map(() => []), columns: [], rows: table.labels.join() };
}

// The cells of these columns of the table. What a grid of the same rows shows already stays as it is: a text that grows
// costs a column or two.
function makeGrid(columns, kept = null) {
  const made = kept?.rows === table.labels.join() ? kept : makeLines();
  columns.forEach((c, x) => {
    if (x === made.columns.length) addColumn(made);
    made.columns[x] = c;
    const ahead = (isRight(c) ? "*" : "") + label(table.next_tokens[c]);
    const [col, above, below] = [made.widths, made.above, made.below].map(({ children }) => children[x + 1]);
    putText(above.firstChild.firstChild, String(table.positions[c]));
    putText(above.lastChild, ahead);
    putText(below.firstChild, label(table.input_tokens[c]));
    if (above.title !== ahead) above.title = ahead;
    if (below.title !== below.textContent) below.title = below.textContent;
    const wide = `width: calc(${columnWidth(c)}ch + 11px)`;
    if (col.getAttribute("style") !== wide) col.setAttribute("style", wide);
    made.cells.forEach((line, r) => {
      if (table.top) putText(line[x].firstChild, label(bestAt(r, c)));
      line[x].toggleAttribute("data-agrees", agreesAt(place(r, c)));
    });
  });
  while (made.columns.length > columns.length) dropColumn(made);
  return made;
}

const putText = (node, text) => { if (node.data !== text) node.data = text; };

function addColumn({ widths, above, below, lines, cells }) {
  widths.append(element("col"));
  above.append(element("th", { scope: "col" }, element("small", { text: "0" }), new Text()));
  below.append(element("th", {}, new Text()));
  lines.forEach((line, r) => {
    const cell = element("td", { tabindex: -1 }, new Text());
    cells[r].push(cell);
    line.append(cell);
  });
}

function dropColumn({ widths, above, below, lines, cells, columns }) {
  [widths, above, below, ...lines].forEach((line) => line.lastChild.remove());
  cells.forEach((line) => line.pop());
  columns.pop();
}

// One pass that only writes: the browser lays out and paints once, afterwards.
function paint({ cells, columns }, from = 0, to = columns.length) {
  const { value, shade, show } = statistic();
  for (const [r, line] of cells.entries()) {
    for (let x = from; x < to; x += 1) {
      const number = value(place(r, columns[x]));
      const wanted = number === null ? "nothing" : classOf(shade(number));
      if (line[x].className !== wanted) line[x].className = wanted;
      if (!table.top) putText(line[x].firstChild, show(number));
    }
  }
}

// The columns in sight, and as many again on both sides of them.
function columnsInSight() {
  const { scrollLeft, clientWidth } = find("#scroller");
  const near = grid.cells[lastRow()].map((cell) => cell.offsetLeft - scrollLeft)
    .map((left) => left > -clientWidth && left < 2 * clientWidth);
  return [near.indexOf(true), near.lastIndexOf(true) + 1];
}

// What is in sight changes at once. The rest follows some columns at a time, so that a long prompt delays nothing.
function repaint() {
  const [from, to] = columnsInSight();
  paint(grid, from, to);
  const [shown, count] = [grid, grid.columns.length];
  const wait = [];
  for (let x = 0; x < count; x += AT_A_TIME) if (x < from || x + AT_A_TIME > to) wait.push(x);
  clearTimeout(repaint.timer);
  const next = () => {
    if (grid !== shown || wait.length === 0) return;
    const x = wait.shift();
    paint(grid, x, Math.min(x + AT_A_TIME, count));
    repaint.timer = setTimeout(next, 16);
  };
  repaint.timer = setTimeout(next, 50);
}

function showRows({ lines }) {
  lines.forEach((line, r) => { line.hidden = !isShown(r); });
}

// A pin shows wherever its token is the best one of its column.
function markPins({ cells, columns }) {
  columns.forEach((c, x) => {
    const pinned = new Set(state.pins.filter((pin) => pin.position === table.positions[c]).map((pin) => pin.token));
    cells.forEach((line, r) => {
      const marked = pinned.has(bestAt(r, c));
      if (marked) line[x].setAttribute("aria-selected", "true");
      else if (line[x].hasAttribute("aria-selected")) line[x].removeAttribute("aria-selected");
    });
  });
}

function whereIs(cell) {
  const line = cell?.closest("tr");
  const r = line ? grid.lines.indexOf(line) : -1;
  return r < 0 ? null : { r, c: cell.cellIndex - 1 };
}

function focused() {
  const r = table.labels.indexOf(state.label);
  const c = table.positions.indexOf(state.position);
  return { r: r >= 0 && isShown(r) ? r : lastRow(), c: c < 0 ? table.positions.length - 1 : c }; // what comes after the text
}

// The grid is one stop of the tab key: only the focused cell can be reached.
function setFocus({ r, c }, { move = true, query = c === focused().c ? state.query : null } = {}) {
  grid.stop?.setAttribute("tabindex", "-1");
  grid.stop?.removeAttribute("aria-describedby");
  grid.stop = grid.cells[r][c];
  grid.stop.tabIndex = 0;
  grid.stop.setAttribute("aria-describedby", "summary");
  state.query = query; // the picture of attention follows
  state.label = table.labels[r];
  state.position = table.positions[c];
  find("#summary").textContent = summary(r, c);
  showPanel(r, c);
  showNumbers();
  if (attention) showCell();
  source.changed();
  if (move) grid.stop.focus();
  keepState();
}

function summary(r, c) {
  const { name, group, value, show } = statistic();
  const agrees = agreesAt(place(r, c)) ? "agrees with the output" : `output ${label(table.final_tokens[c])}`;
  return `after ${label(table.input_tokens[c])}; ${group}, ${name}: ${show(value(place(r, c)))}; ${agrees}`;
}

function moveInGrid(event) {
  const { r, c } = focused();
  const rows = shownRows();
  const y = rows.indexOf(r);
  const [right, top] = [table.positions.length - 1, rows.length - 1];
  const all = event.ctrlKey || event.metaKey;
  const moves = {
    ArrowUp: [y + 1, c], ArrowDown: [y - 1, c], ArrowLeft: [y, c - 1], ArrowRight: [y, c + 1],
    PageUp: [y + 10, c], PageDown: [y - 10, c],
    Home: [all ? top : y, 0], End: [all ? 0 : y, right],
  };
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    pinCell(r, c);
  } else if (event.key in moves && !event.altKey) {
    event.preventDefault();
    const [toRow, toColumn] = moves[event.key];
    setFocus({ r: rows[Math.min(top, Math.max(0, toRow))], c: Math.min(right, Math.max(0, toColumn)) });
  }
}

function listenToGrid(made) {
  made.addEventListener("keydown", moveInGrid);
  made.addEventListener("click", ({ target }) => {
    const at = whereIs(target.closest("td"));
    if (!at) return;
    setFocus(at);
    pinCell(at.r, at.c);
  });
  made.addEventListener("mouseover", ({ target }) => {
    const at = whereIs(target.closest("td"));
    if (at) showPanel(at.r, at.c);
  });
  made.addEventListener("mouseleave", () => showPanel(focused().r, focused().c));
  made.addEventListener("focusin", ({ target }) => {
    const at = whereIs(target.closest("td"));
    if (at) showPanel(at.r, at.c);
  });
}

// The page that computes: what is typed goes to the model in the worker, and what comes back is drawn.

const { live } = file; // what the page may ask for
const asked = { text: live.text, written: [], other: null, decoder: "final", norm: "final", rows: "blocks", lens: null, edits: [] };
const ROWS = {
  blocks: ["after each block", ["resid_post"]],
  halves: ["after attention and after MLP", ["resid_mid", "resid_post"]],
};
let began = 0; // when the question was asked that waits for its answer


// ---- Questions and answers

const question = () => ({ ...asked, other: asked.other || null, sites: ROWS[asked.rows][1] });

async function ask() {
  began = performance.now();
  showEdits();
  keepState();
  try {
    const answer = await call("ask", { question: question() });
    if (answer) receive(answer);
  } catch (error) {
    say(error.message, true);
  }
}

function receive({ tokens, hint, tables, attention: patterns }) {
  find("#text").removeAttribute("aria-invalid");
  if (tokens.length === 0) return say("Type a text: the model reads it as you type.");
  const wasLast = !table || state.position === table.positions.at(-1);
  const { scrollLeft, scrollWidth, clientWidth } = find("#scroller");
  const wasAtEnd = scrollLeft + clientWidth > scrollWidth - 20;
  if (wasLast || !tokens[state.position]) Object.assign(state, { position: tokens.length - 1, query: null });
  tables[0].text = tables[1] && "this text";
  if (tables[1]) tables[1].text = "other text";
  find("#both").hidden = false;
  draw({ tables, attention: patterns });
  drawBeside();
  if (wasAtEnd) find("#scroller").scrollLeft = 1e6;
  showWalk();
  find("#asks").dataset.answered = Number(find("#asks").dataset.answered ?? 0) + 1;
  const took = Math.round(performance.now() - began);
  say(`${tokens.length} of ${live.n_ctx} tokens, ${took} ms.${hint ? ` ${hint}` : ""}`);
}

function say(text, isRefused = false) {
  find("#said").textContent = text;
  find("#said").classList.toggle("refused", isRefused);
  if (isRefused) find("#text").setAttribute("aria-invalid", "true");
}

// The table that is not in the open tab, below it.
function drawBeside() {
  const beside = find("#beside");
  const other = data.tables[1 - state.tab];
  beside.replaceChildren();
  if (!other) return;
  const mine = [table, statistics];
  [table, statistics] = [other, statisticsOf(other)];
  const made = makeGrid([...other.positions.keys()]);
  paint(made);
  showRows(made);
  const scroller = element("div", { class: "scroller" }, made.made);
  beside.append(element("h2", { text: other.text }), scroller);
  [table, statistics] = mine;
}


// ---- Edits: silenced heads, and residuals of the other text

const nameOf = (edit) => (edit.kind === "zero"
  ? `head ${edit.layer}.${edit.head} silenced`
  : `${edit.layer}.${edit.site} at ${edit.position} from the other text`);
const sameEdit = (a, b) => JSON.stringify(a) === JSON.stringify(b);
const hasEdit = (edit) => asked.edits.some((one) => sameEdit(one, edit));

function toggleEdit(edit) {
  asked.edits = hasEdit(edit) ? asked.edits.filter((one) => !sameEdit(one, edit)) : [...asked.edits, edit];
  ask();
}

function showEdits() {
  const list = find("#edits");
  list.hidden = asked.edits.length === 0;
  list.replaceChildren(...asked.edits.map((edit) => element("li", {}, nameOf(edit),
    element("button", { type: "button", text: "remove", "aria-label": `remove: ${nameOf(edit)}`, onclick: () => toggleEdit(edit) }))));
  if (!attention) return;
  const isSilent = hasEdit({ kind: "zero", layer: state.layer, head: state.head });
  find("#silence").setAttribute("aria-pressed", isSilent);
  find("#silence").textContent = isSilent ? "Let this head speak" : "Silence this head";
  document.querySelectorAll("#heads button").forEach((button) => {
    const [layer, head] = button.dataset.head.split(".").map(Number);
    button.classList.toggle("silent", hasEdit({ kind: "zero", layer, head }));
  });
}

function patchButton(r, c) {
  if (!asked.other || state.tab > 0) return [];
  const [layer, site] = table.labels[r] === "embed" ? [0, "resid_pre"] : table.labels[r].split(".");
  const edit = { kind: "patch", layer: Number(layer), site, position: table.positions[c] };
  if (!(edit.position < (data.tables[1]?.positions.length ?? 0))) return [];
  const text = hasEdit(edit) ? "Give this residual back" : "Put the other text\u2019s residual here";
  return [element("button", { type: "button", id: "patch", "aria-pressed": hasEdit(edit), text, onclick: () => toggleEdit(edit) })];
}


// ---- The block that wrote a row, line by line with its source

const FEW = 6; // numbers of a vector

async function showWalk() {
  if (!find("#walk").open || !table) return;
  const { r, c } = focused();
  const layer = r === 0 ? 0 : Number(table.labels[r].split(".")[0]);
  const found = await call("walk", { question: question(), layer, position: table.positions[c], head: state.head, few: FEW });
  const few = ({ numbers }) => (numbers.length > FEW ? [...numbers.slice(0, FEW).map(decimal), "\u2026"] : numbers.map(decimal)).join("  ");
  const lines = live.source.flatMap(({ number, source, gives }) => [
    element("tr", {}, element("td", { text: number }), element("td", { text: source })),
    ...gives.map((name) => element("tr", { class: "numbers-of" }, element("td"), element("td", { text: `${name}: ${few(found[name])}` }))),
  ]);
  const where = `${live.file}, layer ${layer}, position ${table.positions[c]}, after ${label(table.input_tokens[c])}; head ${state.head} where a value has several. The first ${FEW} numbers of each value.`;
  find("#walk > div").replaceChildren(element("p", { text: where }), element("table", {}, element("tbody", {}, ...lines)));
}


// ---- Controls

function choices(id, values, chosen) {
  const select = find(id);
  select.append(...values.map(([value, text]) => element("option", { value, text })));
  select.value = asked[chosen] ?? "";
  select.addEventListener("change", () => {
    asked[chosen] = select.value || null;
    const lens = live.lenses.find(({ name }) => name === asked.lens);
    if (lens && (chosen === "lens" || lens.decoder !== asked.decoder || lens.norm !== asked.norm)) {
      if (chosen === "lens") Object.assign(asked, { decoder: lens.decoder, norm: lens.norm, rows: "blocks" });
      else asked.lens = null; // its maps are for one decoder and norm
    }
    if (lens && asked.rows !== "blocks") asked.lens = null; // and for the rows that it was fitted to
    showChoices();
    ask();
  });
}

function showChoices() {
  for (const name of ["decoder", "norm", "rows", "lens"]) find(`#${name}`).value = asked[name] ?? "";
  if (find("#text").value !== asked.text) find("#text").value = asked.text;
  if (find("#other").value !== (asked.other ?? "")) find("#other").value = asked.other ?? "";
  if (asked.other) find("#comparing").open = true;
}

function readAsked() {
  const words = new URLSearchParams(location.hash.slice(1));
  const one = (name, known, otherwise) => (known.includes(words.get(name)) ? words.get(name) : otherwise);
  asked.text = words.get("text") ?? live.text;
  asked.other = words.get("other");
  asked.decoder = one("decoder", live.decoders, "final");
  asked.norm = one("norm", ["plain"], "final");
  asked.rows = one("rows", Object.keys(ROWS), "blocks");
  asked.lens = one("lens", live.lenses.map(({ name }) => name), null);
  asked.edits = (words.get("edits") ?? "").split(" ").flatMap((word) => {
    const [, layer, head, site, position] = /^(\d{1,4})\.(?:h(\d{1,4})|(resid_pre|resid_mid|resid_post)@(\d{1,5}))$/.exec(word) ?? [];
    if (layer === undefined || Number(layer) >= live.n_layers || Number(head) >= live.n_heads) return [];
    return [head === undefined ? { kind: "patch", layer: Number(layer), site, position: Number(position) } : { kind: "zero", layer: Number(layer), head: Number(head) }];
  });
}

function askedWords() {
  const words = { text: asked.text, decoder: asked.decoder, norm: asked.norm, rows: asked.rows };
  if (asked.other) words.other = asked.other;
  if (asked.lens) words.lens = asked.lens;
  if (asked.edits.length) words.edits = asked.edits.map((edit) => `${edit.layer}.${edit.kind === "zero" ? `h${edit.head}` : `${edit.site}@${edit.position}`}`).join(" ");
  return words;
}

function listenToAsker() {
  const blocks = Array.from({ length: live.n_layers }, (_, at) => `block:${at + 1}`);
  live.decoders = ["final", "mlp", ...blocks];
  choices("#decoder", live.decoders.map((name) => [name, name]), "decoder");
  choices("#norm", [], "norm");
  choices("#rows", Object.entries(ROWS).map(([name, [text]]) => [name, text]), "rows");
  choices("#lens", [["", "logit lens"], ...live.lenses.map(({ name }) => [name, name])], "lens");
  find("#lenses").hidden = live.lenses.length === 0;
  find("#text").addEventListener("input", ({ target }) => {
    asked.text = target.value;
    forgetWritten();
    ask();
  });
  find("#other").addEventListener("input", ({ target }) => {
    asked.other = target.value || null;
    ask();
  });
  find("#write").addEventListener("click", write);
  find("#stop").addEventListener("click", () => call("stop"));
  find("#drop").addEventListener("click", () => { forgetWritten(); ask(); });
  find("#keep").addEventListener("click", async () => {
    asked.text = await call("continued", { text: asked.text, tokens: asked.written });
    forgetWritten();
    showChoices();
    ask();
  });
  find("#printed").after(element("div", { id: "beside" }));
  find("#numbers").before(element("details", { id: "walk" }, element("summary", { text: "The block that wrote this row, line by line with its source" }), element("div", { tabindex: "0", role: "region", "aria-label": "The lines of the block" })));
  find("#attention .controls").append(element("button", { type: "button", id: "silence" }));
  find("#silence").addEventListener("click", () => toggleEdit({ kind: "zero", layer: state.layer, head: state.head }));
  find("#walk").addEventListener("toggle", showWalk);
  MORE.push(patchButton);
  source.changed = () => { showEdits(); showWalk(); };
}

source.words = askedWords;
source.start = async () => {
  find("#both").hidden = true;
  listenToAsker();
  readAsked();
  showChoices();
  window.addEventListener("hashchange", () => { readAsked(); showChoices(); ask(); });
  await load();
  ask();
};
start();

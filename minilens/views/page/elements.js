// What the file holds. The page draws a record of it, or one record after another from a source that computes: start.js.
const file = JSON.parse(document.getElementById("data").textContent);
const find = (selector) => document.querySelector(selector);

// What is looked at, all of it in the address's hash. Rows are named by label and columns by position in the text, so
// that a view means the same in every tab.
const state = { tab: 0, colour: "", subblocks: true, label: "", position: 0, pins: [], size: 0, layer: 0, head: 0, query: null, key: 0 };
let data = file; // the record that is drawn
let table; // the one of the open tab
let statistics; // what it holds
let grid; // its cells on the screen


// ---- Elements. Text from the data only ever becomes textContent.

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class") made.className = value;
    else if (key === "text") made.textContent = value;
    else if (key === "onclick") made.addEventListener("click", value);
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function drawn(name, attributes = {}, text = "") {
  const made = document.createElementNS(find("#drawing").namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

const label = (token) => (token === null || token < 0 ? "" : data.tokens[token] ?? `#${token}`);

// One character may take two places: East Asian wide ones.
const width = (text) => [...text].reduce((sum, char) => sum + (char.codePointAt(0) > 0x2e80 ? 2 : 1), 0);


// ---- Numbers as people read them

function probability(value) {
  if (value === null) return "none";
  return value >= 0.001 ? value.toPrecision(3) : value === 0 ? "below 1e-323" : value.toExponential(2);
}
function decimal(value) {
  if (value === null) return "none";
  const size = Math.abs(value);
  if (size === 0 || size >= 10000) return String(Math.round(value));
  return size >= 0.0001 ? value.toPrecision(4) : value.toExponential(2);
}
const whole = (value) => (value === null ? "none" : String(value));
const yesOrNo = (value) => (value ? "yes" : "no");

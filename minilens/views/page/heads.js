// ---- All heads, each as a small picture

const SMALL = 48; // pixels

function showHeads() {
  const lines = attention.layers.map((layer) => element("div", {}, element("span", { text: layer }), ...headsOf(layer).map((_, head) => {
    const name = `layer ${layer}, head ${head}`;
    const button = element("button", { type: "button", "data-head": `${layer}.${head}`, "aria-label": name, title: name, onclick: () => chooseHead(layer, head) });
    button.append(element("canvas", { width: SMALL, height: SMALL }));
    return button;
  })));
  if (find("#heads").childElementCount !== lines.length) find("#heads").replaceChildren(...lines);
  clearTimeout(showHeads.timer);
  showHeads.timer = setTimeout(drawHeads, 60); // the grid first
  markHead();
}

// They are one stop of the tab key.
function markHead() {
  find("#heads").querySelectorAll("button").forEach((button) => {
    const isChosen = button.dataset.head === `${state.layer}.${state.head}`;
    button.setAttribute("aria-pressed", isChosen);
    button.tabIndex = isChosen ? 0 : -1;
  });
}

function moveInHeads(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: headsOf(state.layer).length, ArrowUp: -headsOf(state.layer).length }[event.key];
  if (!step) return;
  event.preventDefault();
  stepHead(step);
  find("#heads [aria-pressed=true]").focus();
}

// A pixel shows the strongest of the weights that fall on it.
function drawHeads() {
  const colours = STEPS.map(([red, green, blue]) => (255 << 24) | (blue << 16) | (green << 8) | red); // low byte first
  const n = Math.min(SMALL, textLength);
  const pixel = Int32Array.from({ length: textLength }, (_, at) => Math.floor((at * n) / textLength));
  find("#heads").querySelectorAll("button").forEach((button) => {
    const [layer, head] = button.dataset.head.split(".").map(Number);
    const weights = codesOf(headsOf(layer)[head]);
    const strongest = new Uint16Array(n * n);
    for (let query = 0, at = 0; query < textLength; query += 1) {
      for (let key = 0; key <= query; key += 1, at += 1) {
        const to = pixel[query] * n + pixel[key];
        if (weights[at] > strongest[to] && weights[at] !== attention.hidden) strongest[to] = weights[at];
      }
    }
    const image = new ImageData(n, n);
    const pixels = new Int32Array(image.data.buffer);
    for (let y = 0; y < n; y += 1) {
      for (let x = 0; x <= y; x += 1) pixels[y * n + x] = colours[stepOf(Math.sqrt(strongest[y * n + x] / attention.steps))];
    }
    const canvas = button.firstElementChild;
    if (canvas.width !== n) Object.assign(canvas, { width: n, height: n });
    canvas.getContext("2d", { willReadFrequently: true }).putImageData(image, 0, 0);
  });
}

// After the last head of a layer comes the first of the next layer, and after the last of all the first of all.
function stepHead(step) {
  const [{ layers }, heads] = [attention, headsOf(state.layer).length];
  const to = layers.indexOf(state.layer) * heads + state.head + step + layers.length * heads;
  chooseHead(layers[Math.floor(to / heads) % layers.length], to % heads);
}

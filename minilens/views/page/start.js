// ---- The state in the address

function stateWords() {
  const words = new URLSearchParams({ tab: state.tab, colour: table ? statistic().key : state.colour, at: `${state.label}@${state.position}` });
  if (!state.subblocks) words.set("subblocks", "off");
  if (state.size) words.set("size", state.size);
  if (state.pins.length) words.set("pins", state.pins.map(({ token, position }) => `${token}@${position}`).join(" "));
  if (attention) words.set("attention", `${state.layer}.${state.head}@${state.query}.${state.key}`);
  for (const [name, word] of Object.entries(source.words())) words.set(name, word);
  return words;
}

// A little later, since browsers refuse to change the address many times a second.
function keepState() {
  clearTimeout(keepState.timer);
  keepState.timer = setTimeout(() => {
    try {
      history.replaceState(null, "", `#${stateWords()}`);
    } catch {
      // A frame in a notebook has no address of its own: the view is not kept there.
    }
  }, 100);
}

function readState() {
  const words = new URLSearchParams(location.hash.slice(1));
  state.tab = Number(words.get("tab"));
  state.colour = words.get("colour") ?? "";
  state.subblocks = words.get("subblocks") !== "off";
  const size = Number(words.get("size") ?? file.size);
  state.size = size >= 9 && size <= 32 ? size : 0;
  const [name, position] = (words.get("at") ?? "").split("@");
  state.label = name;
  state.position = position === undefined ? null : Number(position);
  const pins = (words.get("pins") ?? "").split(" ").filter((text) => /^\d+@\d+$/.test(text));
  state.pins = [...new Set(pins)].map((text, style) => {
    const [token, at] = text.split("@").map(Number);
    return { token, position: at, style };
  });
  const [layer, head, query, key] = /^(\d+)\.(\d+)@(\d+)\.(\d+)$/.exec(words.get("attention") ?? "")?.slice(1).map(Number) ?? [];
  Object.assign(state, { layer, head, query: query ?? null, key: key ?? 0 });
}

// What a record does not have is not looked at.
function keepWithin() {
  state.tab = data.tables[state.tab] ? state.tab : 0;
  if (!attention) return;
  state.layer = attention.layers.includes(state.layer) ? state.layer : attention.layers[0];
  state.head = headsOf(state.layer)[state.head] ? state.head : 0;
  state.query = state.query < textLength ? state.query : null;
}


// ---- Records. A source gives them to `draw`, keeps words of its own in the address, and hears what is looked at. Here
// it is the file itself; another script puts its own functions in their place.

const source = { start: () => draw(file), words: () => ({}), changed: () => {} };

function draw(record) {
  data = { ...file, ...record };
  attention = data.attention;
  find("#attention").hidden = !attention;
  if (attention) measureAttention();
  makeTabs();
  keepWithin();
  show();
}

function start() {
  find("h1").textContent = file.title || "Logit lens";
  document.title = file.title || "Logit lens";
  writeShades();
  readState();
  listen();
  source.start();
}

// ---- Controls

function showIntro() {
  const cell = table.top ? "a cell shows the token that the model would say next" : "a cell shows what the model would say next, as a number";
  const agrees = table.top || table.standings.final ? " Outlined cells agree with it." : "";
  find("#intro").textContent = `Each row is a residual, read as if it were the last: ${cell}. The output is on top.${agrees}`
    + " A * marks the true next tokens that the output gets right.";
}

function tabName({ text, lens, decoder, norm, centre }) {
  return `${text ? `${text}, ` : ""}${lens ? `lens ${lens}` : `decoder ${decoder}`}${norm === "final" ? "" : `, ${norm} norm`}${centre ? ", centred" : ""}`;
}

function makeTabs() {
  const tabs = find("#tabs");
  tabs.hidden = data.tables.length < 2;
  tabs.replaceChildren(...data.tables.map((each, at) => element("button", {
    role: "tab", type: "button", text: tabName(each), "aria-controls": "both", onclick: () => openTab(at),
  })));
}

function moveInTabs(event) {
  const count = data.tables.length;
  const to = { ArrowRight: state.tab + 1, ArrowLeft: state.tab - 1 + count, Home: 0, End: count - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  openTab(to % count);
  find("#tabs").children[state.tab].focus();
}

function openTab(at) {
  state.tab = at;
  show();
  keepState();
}

function showTabs() {
  [...find("#tabs").children].forEach((tab, at) => {
    tab.setAttribute("aria-selected", at === state.tab);
    tab.tabIndex = at === state.tab ? 0 : -1;
  });
}

function showColours() {
  const select = find("#colour");
  const texts = statistics.map(statisticName).join();
  if (select.dataset.texts !== texts) fillColours(select);
  select.dataset.texts = texts;
  select.value = statistic().key;
}

function fillColours(select) {
  const groups = new Map();
  for (const { key, group, name } of statistics) {
    if (!groups.has(group)) groups.set(group, element("optgroup", { label: group }));
    groups.get(group).append(element("option", { value: key, text: statisticName({ group, name }) }));
  }
  select.replaceChildren(...groups.values());
}

// A closed select shows no group, so the option itself says whose probability, rank or logit it is.
function statisticName({ group, name }) {
  if (group.startsWith("Tracked ")) return `${name} of ${group.slice("Tracked ".length)}`;
  return group === OF_THE_BEST || Object.values(STANDINGS).includes(group) ? `${name} of ${group.toLowerCase()}` : name;
}

function scaleBar() {
  const stops = Array.from({ length: 11 }, (_, at) => `rgb(${scaleColour(at / 10)})`);
  return element("span", { class: "bar", style: `background: linear-gradient(to right, ${stops.join(", ")})` });
}

function showLegend() {
  const { ends, key, value } = statistic();
  const count = table.labels.length * table.positions.length;
  const patch = (shade) => element("span", { class: `patch ${classOf(shade)}` });
  const parts = key === "agrees"
    ? [patch(KINDS.agreement.shade(false)), ends[0], patch(KINDS.agreement.shade(true)), ends[1]]
    : [ends[0], scaleBar(), ends[1]];
  let holes = 0;
  while (holes < count && value(holes) !== null) holes += 1;
  if (holes < count) parts.push(element("span", { class: "patch nothing" }), "none");
  const what = `${tabName(table)}. Colour: ${statisticName(statistic())}`;
  find("#legend").replaceChildren(element("span", { class: "printed", text: what }), ...parts);
}

function showSize() {
  const { style } = document.documentElement;
  if (state.size) style.setProperty("--size", `${state.size}px`);
  else style.removeProperty("--size");
  find("#size").value = state.size || 12;
}

// The address holds what is looked at: whoever opens it sees the same.
async function copyLink() {
  try {
    history.replaceState(null, "", `#${stateWords()}`);
    await navigator.clipboard.writeText(location.href);
    find("#copied").textContent = "copied";
  } catch {
    find("#copied").textContent = "the browser does not let a page copy: the address bar has it";
  }
}

function recolour() {
  repaint();
  showLegend();
}

const FEW_ROWS = 20; // a grid that leaves room for the panel below it

// Everything anew: another tab, or a state from the address.
function show() {
  table = data.tables[state.tab];
  statistics = statisticsOf(table);
  showTabs();
  showIntro();
  showColours();
  const [isFirst, before] = [!grid && state.position === null, grid];
  const inside = table.labels.some((_, r) => isInside(r));
  find("#subblocks").hidden = !inside;
  find("#subblocks input").checked = state.subblocks;
  showSize();
  const { scrollLeft, scrollTop } = find("#scroller");
  grid = makeGrid([...table.positions.keys()], before);
  paint(grid);
  showLegend();
  showRows(grid);
  find("#both").classList.toggle("low", shownRows().length <= FEW_ROWS);
  markPins(grid);
  if (grid !== before) {
    listenToGrid(grid.made);
    find("#scroller").replaceChildren(grid.made);
    find("#scroller").scrollTo(isFirst ? 1e6 : scrollLeft, scrollTop); // the text's end
  }
  showPins();
  if (attention) {
    showHead();
    showHeads();
  }
  setFocus(focused(), { move: false });
}

function listen() {
  find("#tabs").addEventListener("keydown", moveInTabs);
  find("#colour").addEventListener("change", ({ target }) => {
    state.colour = target.value;
    recolour();
    find("#summary").textContent = summary(focused().r, focused().c);
    keepState();
  });
  find("#subblocks input").addEventListener("change", ({ target }) => {
    state.subblocks = target.checked;
    showRows(grid);
    showPins();
    setFocus(focused(), { move: false });
  });
  find("#size").addEventListener("input", ({ target }) => {
    state.size = Number(target.value);
    showSize();
    layOutAttention();
    keepState();
  });
  find("#link").addEventListener("click", copyLink);
  const isSmall = window.matchMedia("(max-width: 50rem), (max-height: 34rem)"); // or zoomed in
  const fold = () => document.querySelectorAll(".fold").forEach((each) => { each.open = !isSmall.matches; });
  isSmall.addEventListener("change", fold);
  fold();
  find("#numbers").addEventListener("toggle", showNumbers);
  find("#numbers select").addEventListener("change", ({ target }) => {
    setFocus({ r: focused().r, c: target.selectedIndex }, { move: false });
  });
  window.addEventListener("hashchange", () => { readState(); keepWithin(); show(); });
  window.addEventListener("resize", showPins);
  window.addEventListener("beforeprint", layOutForPaper);
  window.addEventListener("afterprint", () => document.querySelectorAll("#printed, #paper").forEach((made) => made.replaceChildren()));
  listenToAttention();
}

const PRINTED = 14; // columns side by side on paper

// Paper does not scroll: the columns stand below one another, some at a time.
function layOutForPaper() {
  const columns = [...table.positions.keys()];
  const chunks = columns.filter((c) => c % PRINTED === 0).map((c) => makeGrid(columns.slice(c, c + PRINTED)));
  chunks.forEach((chunk) => { paint(chunk); showRows(chunk); markPins(chunk); });
  find("#printed").replaceChildren(...chunks.map(({ made }) => made));
  if (attention) attentionOnPaper();
}

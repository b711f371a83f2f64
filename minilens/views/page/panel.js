// ---- The panel: everything about one cell

const MORE = []; // what other scripts add: functions of row and column that give elements

function pinButton(c, token) {
  const position = table.positions[c];
  const button = element("button", {
    class: "token", type: "button", text: label(token), "aria-pressed": isPinned(position, token),
    title: "pin or unpin", "data-token": token,
  });
  button.addEventListener("click", () => {
    togglePin(position, token);
    find(`#panel button[data-token="${token}"]`)?.focus();
  });
  return button;
}

function topTable(r, c) {
  const { k, tokens, logit, logprob } = table.top;
  const lines = Array.from({ length: k }, (_, j) => {
    const i = place(r, c) * k + j;
    return element("tr", {},
      element("td", {}, pinButton(c, tokens[i])),
      element("td", { text: probability(exp(logprob[i])) }),
      element("td", { text: decimal(logit[i]) }));
  });
  const heads = [`Best ${k} tokens`, "Probability", "Logit"].map((name) => named("th", name, { scope: "col" }));
  return element("table", { class: "top" }, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...lines));
}

// The tokens that the table follows through every row, whatever their rank.
function standingsTable(r, c) {
  const i = place(r, c);
  const heads = ["Followed", "Probability", "Logit", "Rank"].map((name) => named("th", name, { scope: "col" }));
  const line = (name, key, token, { logprob, logit, rank }) => element("tr", { "data-key": key },
    element("td", {}, named("small", name), token < 0 ? "none" : pinButton(c, token)),
    ...[probability(exp(logprob[i])), decimal(logit[i]), whole(rank[i])].map((text) => element("td", { text })));
  const lines = Object.entries(table.standings).map(([key, standing]) =>
    line(STANDINGS[key] ?? key, key, table[`${key}_tokens`]?.[c] ?? -1, standing));
  table.tracked.forEach((standing, t) => lines.push(line("Tracked", "tracked", table.tracked_tokens[t], standing)));
  return element("table", { class: "standings" }, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...lines));
}

// What stands in neither of the other two tables.
function distributionTable(r, c) {
  const lines = statistics.filter(({ alone }) => alone).map(({ key, name, value, show }) => element("tr", { "data-key": key },
    named("td", name),
    element("td", { text: show(value(place(r, c))) })));
  return element("table", { class: "distribution" }, element("tbody", {}, ...lines));
}

// The first row from which on the output's token stays on top.
function settledAt(c) {
  let r = lastRow();
  while (r > 0 && agreesAt(place(r - 1, c))) r -= 1;
  return table.labels[r];
}

function showPanel(r, c) {
  const head = element("h2", { text: `${table.labels[r]}, position ${table.positions[c]}` });
  const after = element("p", {}, "after ", element("span", { class: "token", text: label(table.input_tokens[c]) }));
  const parts = [head, after];
  if (table.top) parts.push(topTable(r, c));
  if (Object.keys(table.standings).length + table.tracked.length) parts.push(standingsTable(r, c));
  parts.push(distributionTable(r, c));
  if (table.top || table.standings.final) parts.push(element("p", { text: `Settled from ${settledAt(c)} on.` }));
  if (table.top) parts.push(element("p", { text: "Click a cell, or press Enter in it, to pin its token; or click a token here." }));
  for (const more of MORE) parts.push(...more(r, c));
  find("#panel").replaceChildren(...parts);
}

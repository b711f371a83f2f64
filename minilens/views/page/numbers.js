// ---- Numbers as a table: every row at one position

function textTable(caption, heads, lines) {
  const head = element("tr", {}, ...heads.map((text) => element("th", { scope: "col", text })));
  const body = lines.map(([first, ...rest]) =>
    element("tr", {}, element("th", { scope: "row", text: first }), ...rest.map((text) => element("td", { text }))));
  return element("table", {}, element("caption", { text: caption }), element("thead", {}, head), element("tbody", {}, ...body));
}

function showNumbers() {
  if (!find("#numbers").open) return;
  const { c } = focused();
  const select = find("#numbers select");
  select.replaceChildren(...table.positions.map((position, i) =>
    element("option", { value: position, text: `${position}: ${label(table.input_tokens[i])}` })));
  select.value = table.positions[c];
  const heads = ["Row", ...(table.top ? [`Best ${table.top.k} tokens`] : []), ...statistics.map(({ group, name }) => `${group}: ${name}`)];
  const lines = shownRows().reverse().map((r) => [
    table.labels[r], ...(table.top ? [bestText(r, c)] : []), ...statistics.map(({ value, show }) => show(value(place(r, c)))),
  ]);
  const caption = `Position ${table.positions[c]}, input token ${label(table.input_tokens[c])}, `
    + `true next token ${label(table.next_tokens[c]) || "none"}, output ${label(table.final_tokens[c])}`;
  find("#numbers > div").replaceChildren(textTable(caption, heads, lines));
}

function bestText(r, c) {
  const { k, tokens, logprob } = table.top;
  const best = Array.from({ length: k }, (_, j) => place(r, c) * k + j);
  return best.map((i) => `${label(tokens[i])} ${probability(exp(logprob[i]))}`).join(", ");
}

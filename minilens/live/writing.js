// Writing on: the tokens of the model, one after the other, each with the row from which on it was the best one.

let steps = []; // of what the model wrote

async function write() {
  const number = (id) => (find(id).value === "" ? null : Number(find(id).value));
  const how = { n: Math.min(number("#n") ?? 20, live.n_ctx), temperature: number("#temperature") ?? 0, top_k: number("#best") };
  find("#stop").disabled = false;
  const step = (found) => {
    steps.push(found);
    showStrip();
  };
  try {
    await call("write", { question: { ...question(), written: steps.map(({ token }) => token) }, how }, { step });
  } catch (error) {
    say(error.message, true);
  }
  find("#stop").disabled = true;
  asked.written = steps.map(({ token }) => token);
  if (find("#said").className !== "refused") ask();
}

function showStrip() {
  const rows = data.tables[0].labels;
  find("#after").hidden = steps.length === 0;
  find("#strip").replaceChildren(...steps.map(({ token, prob, settled, label: row }) => element("li", {
    class: classOf(row === null ? 0 : 1 - settled / rows.length), title: `probability ${probability(prob)}`,
  }, label(token), element("small", { text: row ?? "drawn" }))));
}

function forgetWritten() {
  asked.written = [];
  steps = [];
  showStrip();
}

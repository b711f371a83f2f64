// The model in Python: what is asked goes to the server that gave the page.

let asking = new AbortController(); // of the question that changes the grid

// The answer; undefined where a newer question has come. step: is told what comes before it. search: names the model.
async function call(name, given = {}, { step = () => {}, search = location.search } = {}) {
  const changes = ["ask", "write", "stop"].includes(name);
  if (changes) {
    asking.abort();
    asking = new AbortController();
  }
  if (name === "stop") return null;
  try {
    const response = await fetch(name + search, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(given),
      signal: changes ? asking.signal : null,
    });
    if (!response.ok) throw new Error(`The server refuses: ${response.status} ${response.statusText}`);
    let answer;
    for await (const line of linesOf(response.body)) {
      const found = JSON.parse(line);
      if (found.refused) throw new Error(found.refused);
      if (found.step) step(found.step);
      else answer = found.answer;
    }
    return answer;
  } catch (error) {
    if (error.name === "AbortError") return undefined;
    throw error.name === "TypeError" ? new Error("The server does not answer: it may have ended.") : error;
  }
}

async function* linesOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    const parts = (left + value).split("\n");
    left = parts.pop();
    yield* parts;
  }
}

async function load() {
  const [{ model, models }, select] = [live, find("#model-name")];
  find("#models").hidden = models.length < 2;
  select.append(...models.map((name) => element("option", { value: name, text: name })));
  select.value = model;
  select.addEventListener("change", () => openModel(select.value));
}

// The page of another model, once it is loaded. The address keeps what is asked: text, decoder, norm, rows.
async function openModel(name) {
  const search = `?${new URLSearchParams({ model: name })}`;
  const tell = ({ seconds }) => say(`${name} is being loaded, for ${seconds} s.`);
  try {
    await call("load", {}, { step: tell, search });
    location.assign(search + location.hash);
  } catch (error) {
    say(error.message, true);
    find("#model-name").value = live.model;
  }
}

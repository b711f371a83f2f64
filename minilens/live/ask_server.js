// The model in Python: what is asked goes to the server that gave the page.

let asking = new AbortController(); // of the question that changes the grid

// The answer; undefined where a newer question has come. step: is told what comes before it.
async function call(name, given = {}, { step = () => {} } = {}) {
  const changes = ["ask", "write", "stop"].includes(name);
  if (changes) {
    asking.abort();
    asking = new AbortController();
  }
  if (name === "stop") return null;
  try {
    const response = await fetch(name, {
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

async function load() {}

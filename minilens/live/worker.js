// The worker: one computation at a time, of which the newest wins.

let engine;
let newest = 0;

// Lets messages in that have come meanwhile.
const pause = () => new Promise((resolve) => {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = () => { port1.close(); resolve(); };
  port2.postMessage(null);
});

// Carries a question out until it is done or a newer one has come. Steps that hold a value are told as they come.
async function carryOut(id, steps) {
  for (;;) {
    const { done, value } = steps.next();
    if (done) return postMessage({ id, answer: value ?? null }, patternsOf(value)); // which are handed over, not copied
    if (value) postMessage({ id, step: value });
    await pause();
    if (id !== newest) return postMessage({ id, abandoned: true });
  }
}

const patternsOf = (answer) => answer?.attention?.heads.flat().map(({ buffer }) => buffer) ?? [];

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at += 1) bytes[at] = text.charCodeAt(at);
  return bytes;
}

const CALLS = {
  *load({ about, base64 }) { engine = new Engine(about, bytesOf(base64)); return true; },
  *ask({ question }) { return yield* engine.answer(question); },
  *write({ question, how }) { return yield* engine.write(question, how); },
  *walk({ layer, position, head, few }) { return engine.walk(layer, position, head, few); },
  *logits() { return Array.from(engine.table.logits); },
  *encode({ text }) { return engine.tokens(text); },
  *continued({ text, tokens }) { return engine.tokenizer.continued(text, tokens); },
};

onmessage = async ({ data: { id, call, given } }) => {
  if (call === "ask" || call === "write" || call === "stop") newest = id;
  if (call === "stop") return postMessage({ id, answer: null });
  try {
    await carryOut(id, CALLS[call](given));
  } catch (error) {
    postMessage({ id, refused: error instanceof Refusal ? error.message : `The page cannot compute this: ${error.message}` });
  }
};

// The model in the page: what is asked goes to a worker.

const worker = new Worker(URL.createObjectURL(new Blob([find("#engine").textContent], { type: "text/javascript" })));
const waiting = new Map();
let newest = 0;

// The answer; undefined where a newer question has come. step: is told what comes before it.
function call(name, given, { step = () => {} } = {}) {
  newest += 1;
  const id = newest;
  worker.postMessage({ id, call: name, given });
  return new Promise((done, failed) => waiting.set(id, { done, failed, step }));
}

worker.onmessage = ({ data: { id, answer, step, refused } }) => {
  const { done, failed, step: tell } = waiting.get(id);
  if (step) return tell(step);
  waiting.delete(id);
  if (refused) failed(new Error(refused));
  else done(answer);
};
worker.onerror = ({ message }) => say(`The page cannot compute this: ${message}`, true);

async function load() {
  await call("load", { about: JSON.parse(find("#model").textContent), base64: find("#weights").textContent });
  find("#weights").remove();
}

// The page: loads the model of this folder and shows a greedy continuation.
//
// The address may say ?ort=FOLDER&provider=wasm|webgpu. Where to get the files of ./ort/: the
// folder `dist` of the npm package onnxruntime-web.

import { openModel } from "./model.js";
import { loadTokenizer } from "./tokenizer.js";

const byId = (id) => document.getElementById(id);
const openForm = byId("open");
const askForm = byId("ask");
const address = new URLSearchParams(location.search);
const DRAWN_EVERY_MS = 60;
let model, tokenizer, isStopped;

for (const name of ["ort", "provider"]) {
  if (address.has(name)) openForm.elements[name].value = address.get(name);
}

const say = (text) => (byId("status").textContent = text);
const megabytes = (count) => `${(count / 1e6).toFixed(1)} MB`;

function showProgress(done, total) {
  const bar = byId("progress");
  bar.hidden = false;
  if (total) bar.value = done / total;
  else bar.removeAttribute("value");
  say(`Loading: ${megabytes(done)}${total ? ` of ${megabytes(total)}` : ""}`);
}

/** Runs a handler with the page's buttons off, and shows what it throws. */
function guarded(handler) {
  return async (event) => {
    event.preventDefault();
    const buttons = document.querySelectorAll("form button:not(#stop)");
    buttons.forEach((button) => (button.disabled = true));
    try {
      await handler();
    } catch (error) {
      console.error(error);
      say(`Failed: ${error.message ?? error}`);
    } finally {
      buttons.forEach((button) => (button.disabled = false));
    }
  };
}

async function load() {
  const started = performance.now();
  const { ort, provider } = Object.fromEntries(new FormData(openForm));
  model = await openModel({ base: document.baseURI, ort, provider, onProgress: showProgress });
  let lacking = "";
  tokenizer = await loadTokenizer(document.baseURI).catch((error) => {
    lacking = ` Prompts are token ids: ${error.message}`;
  });
  byId("title").textContent = model.config.name;
  askForm.elements.prompt.placeholder = tokenizer
    ? "A text to go on with"
    : "Token ids, as in: 1 15043 29892";
  byId("chat").hidden = !(tokenizer && model.config.chat);
  byId("progress").hidden = true;
  openForm.hidden = true;
  askForm.hidden = false;
  const seconds = (performance.now() - started) / 1000;
  say(
    `Loaded in ${seconds.toFixed(1)} s, on ${model.provider}, ${model.threads} thread(s).` +
      lacking,
  );
}

function promptIds(text, isChat) {
  if (!tokenizer) return (text.match(/\d+/g) ?? []).map(Number);
  if (!isChat) return [...model.config.prefix_ids, ...tokenizer.encode(text)];
  const { before, after } = model.config.chat;
  return tokenizer.encode(before + text + after);
}

const shown = (ids, isPartial) =>
  tokenizer ? tokenizer.decode(ids, true, isPartial) : ids.join(" ");

async function generate() {
  const fields = askForm.elements;
  const ids = promptIds(fields.prompt.value, fields.chat.checked);
  const output = byId("output");
  const made = [];
  isStopped = false;
  byId("stop").disabled = false;
  output.textContent = "";
  let first;
  const started = performance.now();
  let drawn = started;
  for await (const id of model.generate(ids, Number(fields.count.value))) {
    const now = performance.now();
    first ??= now;
    made.push(id);
    const rate = made.length > 1 ? ((made.length - 1) * 1000) / (now - first) : 0;
    say(
      `${ids.length} prompt tokens in ${((first - started) / 1000).toFixed(2)} s, ` +
        `then ${rate.toFixed(1)} tokens/s`,
    );
    if (isStopped) break;
    // The page is drawn, and Stop seen, only when this gives way, which costs 4 ms.
    if (now - drawn < DRAWN_EVERY_MS) continue;
    output.textContent = shown(made, true);
    await new Promise((done) => setTimeout(done));
    drawn = now;
  }
  byId("stop").disabled = true;
  output.textContent = shown(made, false);
  output.dataset.ids = made.join(" ");
}

openForm.addEventListener("submit", guarded(load));
askForm.addEventListener("submit", guarded(generate));
byId("stop").addEventListener("click", () => (isStopped = true));

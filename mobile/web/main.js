// The chat page. The address may say ?model=URL&context=N.

import { Model } from "./bcq.js";

const byId = (id) => document.getElementById(id);
const openForm = byId("open");
const askForm = byId("ask");
const messages = [];
let model = null;
let generation = null;

const say = (text) => (byId("status").textContent = text);
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

const address = new URLSearchParams(location.search);
if (address.has("model")) openForm.elements.url.value = address.get("model");
if (address.has("context")) openForm.elements.context.value = address.get("context");

/** Runs a handler with the forms' buttons off, and shows what it throws. */
function guarded(handler) {
  return async (event) => {
    event.preventDefault();
    const buttons = document.querySelectorAll("form button:not(#cancel)");
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

function showProgress(loaded, total) {
  const bar = byId("progress");
  bar.hidden = false;
  if (total) bar.value = loaded / total;
  say(`Loading: ${megabytes(loaded)}${total ? ` of ${megabytes(total)}` : ""}`);
}

async function load() {
  const started = performance.now();
  const { url, context } = openForm.elements;
  try {
    model = await Model.open(url.value, {
      onProgress: showProgress,
      context: context.value ? Number(context.value) : undefined,
    });
  } finally {
    byId("progress").hidden = true;
  }
  const { info } = model;
  byId("title").textContent = info.origin?.source?.name ?? "bcquant chat";
  askForm.elements.chat.checked = info.hasChat;
  byId("chat").hidden = !info.hasChat;
  askForm.elements.text.placeholder = info.hasTokenizer ? "Say something" : "Ids: 1 15043 29892";
  for (const [field, stored] of [["temperature", "temperature"], ["topP", "top_p"]]) { // prettier-ignore
    if (stored in info.defaults) askForm.elements[field].value = info.defaults[stored];
  }
  openForm.hidden = true;
  askForm.hidden = false;
  const seconds = ((performance.now() - started) / 1000).toFixed(2);
  say(
    `Loaded in ${seconds} s: ${info.tier} (${info.module}), ${megabytes(info.memoryBytes)} of ` +
      `memory, ${megabytes(info.plan.kvBytes)} of it for ${info.context} tokens.`,
  );
}

function paragraph(role, text) {
  const shown = document.createElement("p");
  shown.className = role;
  shown.textContent = text;
  byId("talk").append(shown);
  return shown;
}

/** What the model is asked: the talk so far, a text to go on with, or ids. */
function promptOf(text, isChat) {
  if (isChat) return [...messages, { role: "user", content: text }];
  return model.info.hasTokenizer ? text : (text.match(/\d+/g) ?? []).map(Number);
}

async function ask() {
  const fields = askForm.elements;
  const text = fields.text.value;
  const isChat = fields.chat.checked && model.info.hasChat;
  paragraph("user", text);
  const answer = paragraph("assistant", "");
  const ids = [];
  byId("cancel").disabled = false;
  const started = performance.now();
  let first;
  try {
    generation = model.generate(promptOf(text, isChat), {
      maxTokens: Number(fields.maxTokens.value),
      temperature: Number(fields.temperature.value),
      topP: Number(fields.topP.value),
      stop: fields.stop.value ? [fields.stop.value] : [],
    });
    for await (const token of generation) {
      first ??= performance.now();
      if (token.id >= 0) ids.push(token.id);
      answer.append(model.info.hasTokenizer ? token.text : `${token.id} `);
      const rate = ((ids.length - 1) * 1000) / (performance.now() - first || 1);
      say(`${ids.length} tokens, ${rate.toFixed(1)} tokens/s`);
    }
    const told = await generation.summary;
    if (isChat) {
      messages.push({ role: "user", content: text });
      messages.push({ role: "assistant", content: answer.textContent });
    }
    fields.text.value = "";
    const rate = told.tokens > 1 ? told.tokens / told.seconds : 0;
    say(
      `Done (${told.reason}): ${told.promptTokens} prompt tokens (${told.reusedTokens} held) in ` +
        `${told.promptSeconds.toFixed(2)} s, ${told.tokens} tokens, ${rate.toFixed(1)} tokens/s, ` +
        `${((performance.now() - started) / 1000).toFixed(1)} s in all, ` +
        `${megabytes(told.memoryBytes)} of memory.`,
    );
    answer.dataset.ids = ids.join(" ");
    answer.dataset.summary = JSON.stringify(told);
  } finally {
    byId("cancel").disabled = true;
  }
}

openForm.addEventListener("submit", guarded(load));
askForm.addEventListener("submit", guarded(ask));
byId("cancel").addEventListener("click", () => generation?.cancel());
byId("clear").addEventListener("click", () => {
  messages.length = 0;
  byId("talk").replaceChildren();
});

// The Worker behind bcq.js: one Runtime, one generation at a time.
//
// In: {call, method, args}; {cancel: call}. Out: {call, value} or {call, error: {message, status}};
// {call, token} and {call, progress: [loaded, total]} before them.

import { hasRelaxedSimd } from "./module.js";
import { Runtime } from "./runtime.js";

let runtime = null;
let running = null; // the call of the generation at work
const cancelled = new Set();

// A turn of the event loop, so that a cancel is heard; setTimeout would cost 4 ms.
const channel = new MessageChannel();
const waiting = [];
channel.port1.onmessage = () => waiting.shift()();
const pause = () =>
  new Promise((resume) => {
    waiting.push(resume);
    channel.port2.postMessage(null);
  });

async function fetchModule(address) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${address}: the server answered ${response.status}`);
  return response.arrayBuffer();
}

const methods = {
  async open(call, source, options) {
    const name = options.relaxed !== false && hasRelaxedSimd() ? "bcq-relaxed" : "bcq";
    const wasm = await fetchModule(new URL(`./${name}.wasm`, import.meta.url).href);
    const onProgress = (...progress) => postMessage({ call, progress });
    runtime = await Runtime.open(wasm, source, { ...options, onProgress });
    return { ...runtime.info, module: name, memoryBytes: runtime.memoryBytes() };
  },

  encode: (call, text, flags) => runtime.encode(text, flags),

  chatPrompt: (call, messages) => runtime.chatPrompt(messages),

  async generate(call, prompt, options) {
    if (running !== null) throw new Error("a generation is running; end or cancel it first");
    running = call;
    try {
      const isCancelled = () => cancelled.has(call);
      const tokens = runtime.generate(prompt, options, { pause, isCancelled });
      for (;;) {
        const { done, value } = await tokens.next();
        if (done) return value;
        postMessage({ call, token: value });
      }
    } finally {
      running = null;
      cancelled.delete(call);
    }
  },
};

self.onmessage = async ({ data: { call, method, args, cancel } }) => {
  if (cancel !== undefined) {
    if (cancel === running) cancelled.add(cancel);
    return;
  }
  try {
    postMessage({ call, value: await methods[method](call, ...args) });
  } catch (error) {
    postMessage({ call, error: { message: error.message ?? String(error), status: error.status } });
  }
};

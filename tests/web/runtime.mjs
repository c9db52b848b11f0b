// Runs mobile/web/runtime.js in Node, without a Worker, and prints what it answers.
//
//   node runtime.mjs <request.json
//
// stdin: {"web": folder of build.sh, "shards": [paths], "open": options, "encode": [texts],
// "above": bytes of memory to leave free below the package, "chat": messages or null,
// "runs": [{"prompt", "options", "cancelAfter"}]}.
// stdout: {"info", "memoryBytes", "encoded", "chat", "runs": [{"ids", "text", "summary"} or
// {"error"}]} or {"error", "status"}.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const request = JSON.parse(readFileSync(0, "utf8"));

const load = (name) => import(pathToFileURL(join(request.web, name)));
const { Runtime } = await load("runtime.js");

/** Opens a package that lies beyond `above` bytes of memory, which nobody touches. */
async function openAbove(above, wasm, shards) {
  const { Module } = await load("module.js");
  const { loadShards } = await load("download.js");
  const module = new Module((await WebAssembly.instantiate(wasm, {})).instance);
  module.grow(above);
  const place = ({ size }) => module.grow(size);
  return new Runtime(module, await loadShards(shards, module.memory, { place }), {});
}

async function run(runtime, { prompt, options, cancelAfter }) {
  const [ids, texts] = [[], []];
  let pauses = 0;
  const control = {
    pause: () => new Promise((resume) => setImmediate(resume)),
    isCancelled: () => cancelAfter !== undefined && pauses++ >= cancelAfter,
  };
  try {
    const tokens = runtime.generate(prompt, options, control);
    for (;;) {
      const { done, value } = await tokens.next();
      if (done) return { ids, text: texts.join(""), summary: value };
      if (value.id >= 0) ids.push(value.id);
      texts.push(value.text);
    }
  } catch (error) {
    return { error: error.message };
  }
}

try {
  const wasm = readFileSync(join(request.web, "bcq.wasm"));
  const shards = request.shards.map((path) => readFileSync(path));
  const runtime = request.above
    ? await openAbove(request.above, wasm, shards)
    : await Runtime.open(wasm, shards, request.open);
  const answer = {
    info: runtime.info,
    encoded: (request.encode ?? []).map((text) => runtime.encode(text)),
    chat: request.chat ? runtime.chatPrompt(request.chat) : null,
    runs: [],
  };
  for (const one of request.runs ?? []) answer.runs.push(await run(runtime, one));
  console.log(JSON.stringify({ ...answer, memoryBytes: runtime.memoryBytes() }));
} catch (error) {
  console.log(JSON.stringify({ error: error.message, status: error.status }));
}

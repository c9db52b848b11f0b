// The runtime's module in the thread that calls it: a package, one session, text in and out.
// bcq.js drives this in a Worker; Node can use it as it is. No DOM here.

import { loadShards } from "./download.js";
import { Module } from "./module.js";

const SECTIONS = { tokenizer: 64, frames: 66, defaults: 67, certificate: 68, origin: 69 };
const KV_TYPES = { f32: 0, f16: 1, int8: 2 };
const ACTIVATIONS = { package: -1, exact: 0, int8: 1, "int8-token": 2 };
const ROLES = { system: 0, user: 1, assistant: 2 };
const AROUND = 1; // flags of bcq_tokenizer_encode
const SPELLED = 2;
const PREFILL_TOKENS = 64; // between two looks at whether the caller gave up
const DEFAULT_TOKENS = 256;
const DEFAULT_CONTEXT = 2048;

const choice = (choices, value, what) => {
  if (!Object.hasOwn(choices, value)) {
    throw new Error(`${what} is ${value}; there are ${Object.keys(choices).join(", ")}`);
  }
  return choices[value];
};

/** One generation's settings, with the package's defaults for what is not given. */
function samplingOf(options, defaults) {
  const setting = (name, stored, neutral) => options[name] ?? defaults[stored] ?? neutral;
  return [
    setting("temperature", "temperature", 0),
    setting("topK", "top_k", 0),
    setting("topP", "top_p", 1),
    setting("minP", "min_p", 0),
    setting("repetitionPenalty", "repetition_penalty", 1),
    options.presencePenalty ?? 0,
  ];
}

const randomSeed = () => crypto.getRandomValues(new BigUint64Array(1))[0];

/** An open package with a session. The memory lives as long as the instance: there is no close. */
export class Runtime {
  /** Compiles the module, loads the package, plans and makes the session.
   *
   * @param wasm bytes of bcq.wasm, or a WebAssembly.Module
   * @param source address of the package, or its shards as buffers
   */
  static async open(wasm, source, options = {}) {
    const compiled = wasm instanceof WebAssembly.Module ? wasm : await WebAssembly.compile(wasm);
    const module = new Module(await WebAssembly.instantiate(compiled, {}));
    const shards = await loadShards(source, module.memory, {
      place: (header) => module.grow(header.size),
      onProgress: options.onProgress,
      signal: options.signal,
    });
    return new Runtime(module, shards, options);
  }

  constructor(module, shards, options) {
    this.module = module;
    this.held = []; // ids in the session
    this.openPackage(shards, choice({ structure: 0, all: 1 }, options.check ?? "all", "check"));
    const context = options.context ?? Math.min(this.info.maxPositions, DEFAULT_CONTEXT);
    if (!Number.isSafeInteger(context)) throw new Error(`context is ${context}; give a number`);
    this.info.context = context;
    this.makeModel(options, BigInt(context));
    this.sampler = module.allocate(this.info.vocabSize * 4); // a copy that is written over
    this.scratch = module.allocate(this.info.vocabSize * 8);
  }

  openPackage(shards, check) {
    const { module } = this;
    this.package = module.within([4 * shards.length, 4 * shards.length], (at, sizes) => {
      const view = module.view();
      shards.forEach((shard, index) => {
        view.setUint32(at + 4 * index, shard.address, true);
        view.setUint32(sizes + 4 * index, shard.bytes, true);
      });
      return module.create("bcq_package_open_memory", at, sizes, shards.length, check);
    });
    this.info = this.readInfo();
    const json = (kind) => JSON.parse(this.section(kind)?.text ?? "null");
    this.info.defaults = json(SECTIONS.defaults) ?? {};
    this.info.origin = json(SECTIONS.origin);
    this.info.certificate = json(SECTIONS.certificate);
    const tokenizer = this.section(SECTIONS.tokenizer);
    this.frames = this.section(SECTIONS.frames);
    this.info.hasTokenizer = tokenizer !== null;
    this.info.hasChat = tokenizer !== null && this.frames !== null;
    this.tokenizer =
      tokenizer && module.create("bcq_tokenizer_create", tokenizer.address, tokenizer.bytes);
  }

  readInfo() {
    const { module } = this;
    return module.within([128], (at) => {
      module.call("bcq_package_info", this.package, at);
      const view = module.view();
      const long = (index) => Number(view.getBigInt64(at + 8 * index, true));
      const eos = [...Array(view.getInt32(at + 88, true)).keys()];
      return {
        vocabSize: long(0),
        hiddenSize: long(1),
        numLayers: long(3),
        maxPositions: long(7),
        bos: view.getInt32(at + 80, true),
        eos: eos.map((index) => view.getInt32(at + 92 + 4 * index, true)),
      };
    });
  }

  /** A section in the package, or null; its text is read when it is asked for. */
  section(kind) {
    const { module } = this;
    return module.within([4, 4], (data, size) => {
      module.call("bcq_package_section", this.package, kind, data, size);
      const view = module.view();
      const [address, bytes] = [view.getUint32(data, true), view.getUint32(size, true)];
      if (address === 0) return null;
      return { address, bytes, get text() { return module.text(address, bytes); } }; // prettier-ignore
    });
  }

  makeModel(options, context) {
    const { module } = this;
    module.within([32, 40], (chosen, plan) => {
      const view = module.view();
      view.setInt32(chosen, 1, true);
      view.setInt32(
        chosen + 4,
        choice(ACTIVATIONS, options.activations ?? "package", "activations"),
        true,
      );
      view.setInt32(chosen + 8, choice(KV_TYPES, options.kv ?? "f16", "kv"), true);
      view.setInt32(chosen + 12, PREFILL_TOKENS, true);
      view.setBigUint64(chosen + 16, BigInt(options.budgetBytes ?? 0), true);
      view.setUint32(chosen + 24, 0, true); // the best tier
      module.call("bcq_plan_model", this.package, chosen, context, plan);
      const planned = (index) => Number(module.view().getBigUint64(plan + 8 * index, true));
      this.info.plan = {
        weightBytes: planned(0),
        tableBytes: planned(1),
        scratchBytes: planned(2),
        kvBytes: planned(3),
        totalBytes: planned(4),
      };
      this.model = module.create("bcq_model_create", this.package, chosen);
    });
    this.session = module.create("bcq_session_create", this.model, context);
    const tier = module.calls.bcq_model_tier(this.model) >>> 0;
    const name = new Uint8Array(module.memory.buffer, tier);
    this.info.tier = module.text(tier, name.indexOf(0));
  }

  /** Bytes of the module's whole memory, the package among them. */
  memoryBytes() {
    return this.module.memory.buffer.byteLength;
  }

  /** Ids of a text. flags: 1 begin and end tokens around it, 2 special tokens that it spells. */
  encode(text, flags = AROUND | SPELLED) {
    if (!this.tokenizer) throw new Error("the package holds no tokenizer; prompts are ids");
    const bytes = new TextEncoder().encode(text);
    return this.encodeBytes(bytes, flags);
  }

  encodeBytes(bytes, flags) {
    const { module } = this;
    return module.within([bytes.length, 4], (text, num) => {
      module.bytes(text, bytes.length).set(bytes);
      const ask = (ids, capacity) => {
        const call = [this.tokenizer, text, bytes.length, flags, ids, capacity, num];
        module.call("bcq_tokenizer_encode", ...call);
        return module.view().getUint32(num, true);
      };
      const count = ask(0, 0);
      return module.within([4 * count], (ids) => {
        ask(ids, count);
        return [...new Int32Array(module.memory.buffer, ids, count)];
      });
    });
  }

  /** The prompt of messages [{role, content}] where the assistant is to answer. */
  chatPrompt(messages) {
    return this.renderChat(messages, (bytes) => this.module.utf8.decode(bytes));
  }

  renderChat(messages, use) {
    if (!this.frames) throw new Error("the package has no chat frames; give a prompt");
    const { module } = this;
    const contents = messages.map(({ content }) => new TextEncoder().encode(content));
    const sizes = [12 * messages.length, 4, ...contents.map((bytes) => bytes.length)];
    return module.within(sizes, (array, needed, ...places) => {
      const view = module.view();
      messages.forEach(({ role }, index) => {
        module.bytes(places[index], contents[index].length).set(contents[index]);
        const row = array + 12 * index;
        view.setInt32(row, choice(ROLES, role, "role"), true);
        view.setUint32(row + 4, places[index], true);
        view.setUint32(row + 8, contents[index].length, true);
      });
      const { address, bytes } = this.frames;
      const ask = (out, capacity) => {
        const call = [address, bytes, array, messages.length, out, capacity, needed];
        module.call("bcq_chat_render", ...call);
        return module.view().getUint32(needed, true);
      };
      const length = ask(0, 0);
      return module.within([length], (out) => {
        ask(out, length);
        return use(module.bytes(out, length).slice());
      });
    });
  }

  /** Ids of a prompt (text or ids) or of messages. */
  promptIds(prompt) {
    if (typeof prompt === "string") return this.encode(prompt);
    if (!Array.isArray(prompt)) throw new Error("a prompt is a text, messages or ids");
    if (prompt.length === 0 || typeof prompt[0] === "number") return prompt;
    return this.renderChat(prompt, (bytes) => this.encodeBytes(bytes, SPELLED));
  }

  /** Appends ids to the session; address of the logits of the last. */
  append(ids) {
    const { module } = this;
    return module.within([4 * ids.length, 4], (at, logits) => {
      new Int32Array(module.memory.buffer, at, ids.length).set(ids);
      module.call("bcq_session_append", this.session, at, BigInt(ids.length), logits);
      this.held.push(...ids);
      return module.view().getUint32(logits, true);
    });
  }

  /** Keeps what the session holds of `ids` already, all but the last; how many those are. */
  reuse(ids) {
    let same = 0;
    while (same < this.held.length && same < ids.length - 1 && this.held[same] === ids[same]) {
      same += 1;
    }
    this.module.call("bcq_session_truncate", this.session, BigInt(same));
    this.held.length = same;
    return same;
  }

  /** Draws an id; `state` holds the settings' and the seed's addresses. */
  draw(logits, state, previous) {
    const { module } = this;
    const { vocabSize } = this.info;
    module.bytes(this.sampler, 4 * vocabSize).set(module.bytes(logits, 4 * vocabSize));
    return module.within([4 * previous.length, 4], (ids, id) => {
      new Int32Array(module.memory.buffer, ids, previous.length).set(previous);
      const drawn = [this.sampler, BigInt(vocabSize), state.sampling, ids, BigInt(previous.length)];
      module.call("bcq_sample", ...drawn, state.seed, this.scratch, 8 * vocabSize, id);
      return module.view().getInt32(id, true);
    });
  }

  /** What a generation allocates; `end` gives it back. */
  begin(options, isChat) {
    const { module } = this;
    const state = { sampling: module.allocate(24), seed: module.allocate(8), stream: 0, stop: 0 };
    try {
      const view = module.view();
      samplingOf(options, this.info.defaults).forEach((value, index) =>
        index === 1
          ? view.setInt32(state.sampling + 4, value, true)
          : view.setFloat32(state.sampling + 4 * index, value, true),
      );
      view.setBigUint64(state.seed, BigInt(options.seed ?? randomSeed()), true);
      if (this.tokenizer) {
        state.stream = module.create("bcq_stream_create", this.tokenizer, isChat ? 0 : 1);
        state.stop = this.makeStop(options.stop ?? []);
      }
      return state;
    } catch (error) {
      this.end(state);
      throw error;
    }
  }

  makeStop(strings) {
    const { module } = this;
    const texts = strings.map((string) => new TextEncoder().encode(string));
    const sizes = [4 * texts.length, 4 * texts.length, ...texts.map((text) => text.length)];
    return module.within(sizes, (pointers, lengths, ...places) => {
      const view = module.view();
      texts.forEach((text, index) => {
        module.bytes(places[index], text.length).set(text);
        view.setUint32(pointers + 4 * index, places[index], true);
        view.setUint32(lengths + 4 * index, text.length, true);
      });
      return module.create("bcq_stop_create", pointers, lengths, texts.length);
    });
  }

  end(state) {
    const { calls } = this.module;
    calls.bcq_stop_destroy(state.stop);
    calls.bcq_stream_destroy(state.stream);
    calls.free(state.seed);
    calls.free(state.sampling);
  }

  /** Passes text through the stop strings: what can be shown, and whether it ends there. */
  filter(state, text) {
    const { module } = this;
    const bytes = new TextEncoder().encode(text);
    return module.within([bytes.length, 4, 4, 4], (piece, data, size, found) => {
      module.bytes(piece, bytes.length).set(bytes);
      module.call("bcq_stop_push", state.stop, piece, bytes.length, data, size, found);
      const view = module.view();
      return {
        text: module.text(view.getUint32(data, true), view.getUint32(size, true)),
        isFound: view.getInt32(found, true) !== 0,
      };
    });
  }

  /** The text that an id completes. */
  push(state, id) {
    if (!this.tokenizer) return { text: "", isFound: false };
    return this.filter(state, this.module.textOf("bcq_stream_push", state.stream, id));
  }

  /** What was held back when a text ends; a stop string may still come to light. */
  rest(state) {
    if (!this.tokenizer) return { text: "", isFound: false };
    const last = this.filter(state, this.module.textOf("bcq_stream_end", state.stream));
    if (!last.isFound) last.text += this.module.textOf("bcq_stop_end", state.stop);
    return last;
  }

  /** Generates, one {id, text} a token, then returns {reason, ...figures}.
   *
   * It gives way to `pause()` after each token and 64 tokens of a prompt; `isCancelled()` is asked
   * after that. The last text may come with id -1: what was held back for a stop string.
   */
  async *generate(prompt, options = {}, { pause = async () => {}, isCancelled = () => false } = {}) {
    const isChat = Array.isArray(prompt) && typeof prompt[0] === "object";
    const ids = this.promptIds(prompt);
    if (ids.length === 0) throw new Error("the prompt has no tokens");
    const wanted = options.maxTokens ?? DEFAULT_TOKENS;
    if (!Number.isSafeInteger(wanted) || wanted < 1) {
      throw new Error(`maxTokens is ${wanted}; at least 1 is needed`);
    }
    const limit = Math.min(wanted, this.info.context - ids.length + 1);
    if (limit < 1) {
      throw new Error(`${ids.length} prompt tokens; the context has ${this.info.context}`);
    }
    const state = this.begin(options, isChat);
    const figures = { promptTokens: ids.length, reusedTokens: 0, tokens: 0 };
    const started = performance.now();
    let prefilled = started;
    const finish = (reason) => ({
      reason,
      ...figures,
      promptSeconds: (prefilled - started) / 1000,
      seconds: (performance.now() - prefilled) / 1000,
      memoryBytes: this.memoryBytes(),
    });
    try {
      figures.reusedTokens = this.reuse(ids);
      let logits = 0;
      for (let at = figures.reusedTokens; at < ids.length; at += PREFILL_TOKENS) {
        await pause();
        if (isCancelled()) return finish("cancelled");
        logits = this.append(ids.slice(at, at + PREFILL_TOKENS));
      }
      prefilled = performance.now();
      const seen = [...ids];
      for (;;) {
        const id = this.draw(logits, state, seen);
        if (this.info.eos.includes(id)) break;
        seen.push(id);
        figures.tokens += 1;
        const { text, isFound } = this.push(state, id);
        yield { id, text };
        if (isFound) return finish("stop");
        if (figures.tokens === limit) break;
        await pause();
        if (isCancelled()) return finish("cancelled");
        logits = this.append([id]);
      }
      const { text, isFound } = this.rest(state);
      if (text) yield { id: -1, text };
      if (isFound) return finish("stop");
      return finish(figures.tokens === limit ? "length" : "end");
    } finally {
      this.end(state);
    }
  }
}

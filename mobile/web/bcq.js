// A packaged model in a Worker: bcq.d.ts tells what there is. No framework, no build step.

/** A failure in the Worker; `status` is the runtime's bcq_status where it was the runtime's. */
export class ModelError extends Error {
  constructor({ message, status }) {
    super(message);
    this.name = "ModelError";
    this.status = status;
  }
}

/** Tokens as they come; `summary` resolves when the last one has. */
class Generation {
  #queue = [];
  #wake = () => {};
  #isOver = false;
  #failure = null;
  #cancel;

  constructor(start) {
    const { result, cancel } = start((token) => {
      this.#queue.push(token);
      this.#wake();
    });
    this.#cancel = cancel;
    this.summary = result;
    result
      .catch((error) => (this.#failure = error))
      .finally(() => {
        this.#isOver = true;
        this.#wake();
      });
  }

  /** Ends after the token, or the 64 tokens of the prompt, that are being computed. */
  cancel() {
    this.#cancel();
  }

  async *[Symbol.asyncIterator]() {
    try {
      for (;;) {
        while (this.#queue.length > 0) yield this.#queue.shift();
        if (this.#failure) throw this.#failure;
        if (this.#isOver) return;
        await new Promise((resolve) => (this.#wake = resolve));
      }
    } finally {
      this.cancel(); // of no effect when it is over
    }
  }
}

export class Model {
  #worker;
  #calls = new Map();
  #last = 0;

  static async open(source, { onProgress, signal, ...options } = {}) {
    const model = new Model();
    const stop = () => model.#fail(new Error("opening was aborted"));
    try {
      if (signal?.aborted) throw new Error("opening was aborted");
      signal?.addEventListener("abort", stop);
      const { where, owned } = located(source);
      const tell = ({ progress }) => onProgress?.(...progress);
      model.info = await model.#call("open", [where, options], tell, owned).result;
      return model;
    } catch (error) {
      model.close();
      throw error;
    } finally {
      signal?.removeEventListener("abort", stop);
    }
  }

  constructor() {
    this.#worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    this.#worker.onmessage = ({ data }) => this.#hear(data);
    this.#worker.onerror = (event) =>
      this.#fail(new Error(`the Worker failed: ${event.message ?? "its script did not load"}`));
  }

  #hear({ call, value, error, ...told }) {
    const waiting = this.#calls.get(call);
    if (!waiting) return;
    if ("token" in told || "progress" in told) return waiting.tell(told);
    this.#calls.delete(call);
    if (error) waiting.reject(new ModelError(error));
    else waiting.resolve(value);
  }

  #fail(error) {
    this.#worker?.terminate();
    this.#worker = null;
    for (const { reject } of this.#calls.values()) reject(error);
    this.#calls.clear();
  }

  #call(method, args, tell = () => {}, owned = []) {
    const call = ++this.#last;
    const result = new Promise((resolve, reject) => {
      if (!this.#worker) throw new Error("the model is closed");
      this.#worker.postMessage({ call, method, args }, owned);
      this.#calls.set(call, { resolve, reject, tell });
    });
    return { result, cancel: () => this.#worker?.postMessage({ cancel: call }) };
  }

  encode(text, flags) {
    return this.#call("encode", [text, flags]).result;
  }

  chatPrompt(messages) {
    return this.#call("chatPrompt", [messages]).result;
  }

  generate(prompt, options = {}) {
    return new Generation((onToken) =>
      this.#call("generate", [prompt, options], ({ token }) => onToken(token)),
    );
  }

  /** Ends the Worker and with it all memory; what is still running fails. */
  close() {
    this.#fail(new Error("the model is closed"));
  }
}

/** What a Worker can be told of a source, and the buffers that go over to it. */
function located(source) {
  if (typeof source === "string" || source instanceof URL) {
    return { where: new URL(source, globalThis.document?.baseURI).href, owned: [] };
  }
  const shards = Array.isArray(source) ? source : [source];
  const buffers = shards.map((shard) => (ArrayBuffer.isView(shard) ? shard.buffer : shard));
  if (!buffers.every((buffer) => buffer instanceof ArrayBuffer)) {
    throw new Error("a model is opened from an address, an ArrayBuffer or a list of them");
  }
  return { where: shards, owned: [...new Set(buffers)] };
}

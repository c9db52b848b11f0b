// The exported model in a browser: files with progress, one session, greedy decoding.
// No DOM here; main.js is the page.

// WebAssembly addresses 4 GB, and expanded weights are there twice while the session is made.
const MOST_EXPANDED_BYTES = 1.6e9;
const DATA_TYPES = { float32: Float32Array, float16: globalThis.Float16Array ?? Uint16Array };

/** One file as bytes. `onBytes(n)` is told of every piece that arrives.
 *
 * A known size is allocated once, so that a large file is not held twice.
 */
export async function fetchBytes(url, size, onBytes) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: the server answered ${response.status}`);
  let bytes = new Uint8Array(size ?? 1 << 20);
  let used = 0;
  const reader = response.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    if (used + value.length > bytes.length) {
      const larger = new Uint8Array(Math.max(2 * bytes.length, used + value.length));
      larger.set(bytes.subarray(0, used));
      bytes = larger;
    }
    bytes.set(value, used);
    used += value.length;
    onBytes(value.length);
  }
  if (size !== undefined && used !== size) {
    throw new Error(`${url}: ${used} bytes arrived, ${size} are needed; load it again`);
  }
  return bytes.subarray(0, used);
}

/** Sizes of files; undefined where the server does not say. */
async function sizesOf(urls) {
  return Promise.all(
    urls.map(async (url) => {
      const { ok, headers } = await fetch(url, { method: "HEAD" });
      // Content-Length counts compressed bytes where the server compresses.
      const size = ok && !headers.get("Content-Encoding") ? headers.get("Content-Length") : null;
      return size === null ? undefined : Number(size);
    }),
  );
}

/** A GPU that computes in the types of the model: many phones' have no float16. */
async function hasWebGpu(config) {
  const adapter = navigator.gpu && (await navigator.gpu.requestAdapter());
  return Boolean(adapter) && (!config.has_float16 || adapter.features.has("shader-f16"));
}

/** onnxruntime-web from a folder; the build with WebGPU, twice as big, only where it is used. */
async function importRuntime(folder, provider) {
  const name = provider === "webgpu" ? "ort.webgpu.min.mjs" : "ort.wasm.min.mjs";
  const ort = await import(new URL(name, folder).href);
  ort.env.wasm.wasmPaths = folder.href;
  // Threads need SharedArrayBuffer, which a page has only with COOP and COEP headers.
  ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? navigator.hardwareConcurrency : 1;
  return ort;
}

/** Options of the session.
 *
 * On the CPU a 4-bit matrix is expanded anew at every step, which takes most of the time. Without
 * the pass that fuses DequantizeLinear into it, it is expanded once, at load; the memory for that
 * is there for small models only.
 */
function sessionOptions(config, provider) {
  if (provider === "webgpu")
    return { preferredOutputLocation: cacheLocations(config, "gpu-buffer") };
  const isExpanded = config.variant === "std" && config.float_bytes <= MOST_EXPANDED_BYTES;
  return isExpanded ? { extra: { session: { disable_quant_qdq: "1" } } } : {};
}

/** Fetches and opens a model.
 *
 * base: folder with web_config.json. ort: folder with onnxruntime-web's files.
 * provider: "wasm", "webgpu", or "auto" (WebGPU where there is a GPU).
 * onProgress(bytes so far, all bytes or undefined).
 */
export async function openModel({
  base,
  ort: ortFolder,
  provider = "auto",
  onProgress = () => {},
}) {
  const config = await (await fetch(new URL("web_config.json", base))).json();
  const chosen = provider === "auto" ? ((await hasWebGpu(config)) ? "webgpu" : "wasm") : provider;
  const ort = await importRuntime(new URL(ortFolder, base), chosen);
  const urls = config.data_files.map((name) => new URL(name, base));
  const sizes = await sizesOf(urls);
  const total = sizes.includes(undefined) ? undefined : sizes.reduce((sum, n) => sum + n, 0);
  let soFar = 0;
  const onBytes = (count) => onProgress((soFar += count), total);
  const externalData = [];
  for (const [index, path] of config.data_files.entries()) {
    externalData.push({ path, data: await fetchBytes(urls[index], sizes[index], onBytes) });
  }
  const graph = await fetchBytes(new URL("model.onnx", base), undefined, () => {});
  const session = await ort.InferenceSession.create(graph, {
    executionProviders: [chosen],
    externalData,
    ...sessionOptions(config, chosen),
  });
  return new Model(ort, session, config, chosen);
}

function cacheNames(config, prefix) {
  return Array.from({ length: config.num_layers }, (_, i) => [
    `${prefix}.${i}.key`,
    `${prefix}.${i}.value`,
  ]).flat();
}

function cacheLocations(config, place) {
  return Object.fromEntries(cacheNames(config, "present").map((name) => [name, place]));
}

/** Index of the largest logit of the last position; the first of equals. */
export function argmaxLast(data, vocabSize, isHalfBits) {
  // Half floats as integers: flipping those below zero makes them sort as their values do.
  const key = isHalfBits ? (v) => (v & 0x8000 ? ~v & 0xffff : v | 0x8000) : (v) => v;
  const first = data.length - vocabSize;
  let best = 0;
  for (let i = 1; i < vocabSize; i++) if (key(data[first + i]) > key(data[first + best])) best = i;
  return best;
}

class Model {
  constructor(ort, session, config, provider) {
    Object.assign(this, { ort, session, config, provider });
  }

  /** Threads of the CPU backend. */
  get threads() {
    return this.ort.env.wasm.numThreads;
  }

  #emptyCache() {
    const { num_kv_heads: heads, head_dim: width, cache_dtype: type } = this.config;
    const entry = () => new this.ort.Tensor(type, new DATA_TYPES[type](0), [1, heads, 0, width]);
    return Object.fromEntries(cacheNames(this.config, "past_key_values").map((n) => [n, entry()]));
  }

  /** Yields the ids of a greedy continuation, up to and with an end id.
   *
   * ids: of the prompt, at least one. A step computes the new token only; the cache has the rest.
   */
  async *generate(ids, maxNewTokens) {
    const { vocab_size: vocabSize, max_positions: limit, eos_ids: ends } = this.config;
    if (!ids.length) throw new Error("the prompt has no tokens");
    if (ids.length + maxNewTokens > limit) {
      throw new Error(`${ids.length} + ${maxNewTokens} tokens; the model holds ${limit}`);
    }
    const integers = (values) =>
      new this.ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
    let cache = this.#emptyCache();
    let step = ids;
    let total = ids.length;
    try {
      for (let made = 0; made < maxNewTokens; made++) {
        const mask = integers(new Array(total).fill(1));
        const outputs = await this.session.run({
          input_ids: integers(step),
          attention_mask: mask,
          ...cache,
        });
        const { logits } = outputs;
        const id = argmaxLast(logits.data, vocabSize, logits.data instanceof Uint16Array);
        logits.dispose();
        Object.values(cache).forEach((tensor) => tensor.dispose());
        cache = Object.fromEntries(
          cacheNames(this.config, "present").map((name) => [
            name.replace("present", "past_key_values"),
            outputs[name],
          ]),
        );
        yield id;
        if (ends.includes(id)) return;
        step = [id];
        total += 1;
      }
    } finally {
      Object.values(cache).forEach((tensor) => tensor.dispose());
    }
  }
}

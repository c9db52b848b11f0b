/** A model packaged by `bcquant export mobile`, running in a Worker of the page. */

/** Address of NAME.bcq or NAME-00001-of-0000n.bcq (the others are found beside it), or the shards' bytes in order.
 *
 * Buffers go over to the Worker: they are empty afterwards. */
export type Source = string | URL | ArrayBuffer | Uint8Array | (ArrayBuffer | Uint8Array)[];

export interface OpenOptions {
  /** Bytes so far, and of the shards that are known by then (undefined before the first). */
  onProgress?: (loaded: number, total?: number) => void;
  /** Ends the opening: it then rejects. */
  signal?: AbortSignal;
  /** Tokens of prompt and answers; default: 2048, or the model's positions if they are fewer. */
  context?: number;
  /** Type of the caches; default "f16". */
  kv?: "f32" | "f16" | "int8";
  /** How inputs of quantized layers are rounded; default "package": as the package says. */
  activations?: "package" | "exact" | "int8" | "int8-token";
  /** Refuse a plan beyond this. */
  budgetBytes?: number;
  /** "all" (default): also the SHA-256 of every section; "structure": header, index and sizes. */
  check?: "all" | "structure";
  /** false: not the module with relaxed SIMD, whose sums may differ in the last bit by machine. */
  relaxed?: boolean;
}

/** Bytes known before the model is made; weights are the package itself. */
export interface Plan {
  weightBytes: number;
  tableBytes: number;
  scratchBytes: number;
  kvBytes: number;
  totalBytes: number;
}

export interface ModelInfo {
  vocabSize: number;
  hiddenSize: number;
  numLayers: number;
  maxPositions: number;
  /** Tokens that the session holds at most. */
  context: number;
  /** -1: none. */
  bos: number;
  eos: number[];
  hasTokenizer: boolean;
  /** Whether messages can be given. */
  hasChat: boolean;
  /** Sampling settings of the package, by the names of generation_config.json. */
  defaults: Record<string, number>;
  /** Who made the package from what; null: not told. */
  origin: unknown;
  /** What `bcquant verify` wrote; null: none. */
  certificate: unknown;
  plan: Plan;
  /** The kernels that compute. */
  tier: string;
  module: "bcq" | "bcq-relaxed";
  /** Of the module's whole memory when the model was open: package, tables, caches, scratch. */
  memoryBytes: number;
}

export interface Message {
  role: "system" | "user" | "assistant";
  content: string;
}

/** What is not given is as the package's defaults say, else the value named here. */
export interface GenerateOptions {
  /** Default 256; never beyond the context. */
  maxTokens?: number;
  /** 0 (default): the most likely token. */
  temperature?: number;
  /** 0 (default): all. */
  topK?: number;
  /** 1 (default): all. */
  topP?: number;
  /** 0 (default): all. */
  minP?: number;
  /** 1 (default): none. */
  repetitionPenalty?: number;
  /** 0 (default): none. */
  presencePenalty?: number;
  /** The same seed gives the same draws; default: a random one. */
  seed?: number | bigint;
  /** The text ends before the first of these; no part of one is shown. */
  stop?: string[];
}

export interface Token {
  /** -1: no token, only text that was held back for a stop string. */
  id: number;
  /** Whole characters that the token completes; maybe none. */
  text: string;
}

export interface Summary {
  /** end: an end token; length: maxTokens or the context. */
  reason: "end" | "stop" | "length" | "cancelled";
  promptTokens: number;
  /** Of them, held from the generation before. */
  reusedTokens: number;
  tokens: number;
  promptSeconds: number;
  /** From the end of the prompt to that of the answer. */
  seconds: number;
  memoryBytes: number;
}

export interface Generation extends AsyncIterable<Token> {
  /** Rejects with what went wrong, as the iteration does. */
  readonly summary: Promise<Summary>;
  cancel(): void;
}

export class ModelError extends Error {
  /** bcq_status of the runtime, where it was the runtime that refused. */
  readonly status?: number;
}

export class Model {
  /** Fetches into WebAssembly memory (one copy; 4 GB hold package, caches and scratch) and opens.
   *
   * A broken connection is taken up where it broke, with a range request. */
  static open(source: Source, options?: OpenOptions): Promise<Model>;
  readonly info: ModelInfo;
  /** flags: 1 begin and end tokens as the model wants, 2 special tokens spelled in the text;
   * default 3. */
  encode(text: string, flags?: number): Promise<number[]>;
  /** The text that messages become. A special token that a message spells becomes one. */
  chatPrompt(messages: Message[]): Promise<string>;
  /** One at a time. Leaving the loop over its tokens cancels it. */
  generate(prompt: string | number[] | Message[], options?: GenerateOptions): Generation;
  /** Gives back all memory. */
  close(): void;
}

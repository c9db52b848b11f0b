// Text to token ids and back, from a tokenizer.json with a BPE model (byte-level or SentencePiece).
// What it does not know it refuses: a wrong id would be worse than none.

const SPACE = "\\p{White_Space}"; // JavaScript's \s has U+FEFF in it and U+0085 not
const SPACE_MARK = "\u2581";

/** Reads tokenizer.json beside the page; undefined where the export has none. */
export async function loadTokenizer(base) {
  const response = await fetch(new URL("tokenizer.json", base));
  if (response.status === 404) return undefined;
  if (!response.ok) throw new Error(`tokenizer.json: the server answered ${response.status}`);
  return new Tokenizer(await response.json());
}

export class Tokenizer {
  constructor(json) {
    this.model = new Bpe(json.model);
    this.normalize = normalizerOf(json.normalizer);
    this.pretokenize = pretokenizerOf(json.pre_tokenizer);
    this.added = new Map(json.added_tokens.map((token) => [token.id, token]));
    const [asNormalized, asWritten] = [true, false].map((isNormalized) =>
      json.added_tokens.filter((token) => Boolean(token.normalized) === isNormalized),
    );
    this.cutWritten = cutter(asWritten, (text) => text);
    this.cutNormalized = cutter(asNormalized, this.normalize);
    this.toBytes = bytesOf(json);
    this.stripsSpace = stepsOf(json.decoder, "decoders").some(
      (step) =>
        step.type === "Strip" || (step.type === "Metaspace" && step.prepend_scheme !== "never"),
    );
  }

  /** Id of a token that is spelled so, of the vocabulary or added. */
  find(piece) {
    return (
      [...this.added.values()].find((token) => token.content === piece)?.id ??
      this.model.vocab.get(piece)
    );
  }

  /** Ids of a text, of special tokens spelled out in it too; nothing is put around it. */
  encode(text) {
    const ids = [];
    for (const [written, writtenId, start] of this.cutWritten(text.toWellFormed())) {
      if (writtenId !== undefined) {
        ids.push(writtenId);
        continue;
      }
      let isStart = start === 0;
      for (const [part, id] of this.cutNormalized(this.normalize(written))) {
        if (id !== undefined) ids.push(id);
        else for (const word of this.pretokenize([part], isStart)) this.model.encode(word, ids);
        isStart = false;
      }
    }
    return ids;
  }

  /** Text of ids without special tokens.
   *
   * isContinuation: they go on after a prompt, so a leading space is real.
   * isPartial: more is to come, so the first bytes of a character are held back.
   */
  decode(ids, isContinuation = false, isPartial = false) {
    const bytes = [];
    for (const id of ids) if (!this.added.get(id)?.special) bytes.push(...this.#bytesOf(id));
    const text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes), {
      stream: isPartial,
    });
    return this.stripsSpace && !isContinuation && text.startsWith(" ") ? text.slice(1) : text;
  }

  #bytesOf(id) {
    const added = this.added.get(id);
    if (added) return new TextEncoder().encode(added.content);
    return this.model.pieces[id] === undefined ? [] : this.toBytes(this.model.pieces[id]);
  }
}

function stepsOf(part, key) {
  if (!part) return [];
  return part.type === "Sequence" ? part[key].flatMap((step) => stepsOf(step, key)) : [part];
}

function refuse(what, part) {
  throw new Error(`tokenizer.json: this page does not know the ${what} ${JSON.stringify(part)}`);
}

// --- added tokens -----------------------------------------------------------------------------

const escaped = (text) => text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");

/** Cuts added tokens out of a text, the longest at each place: [part, id or undefined, start]. */
function cutter(tokens, normalize) {
  const odd = tokens.find((token) => token.single_word);
  if (odd) refuse("added token", odd);
  const ids = new Map(tokens.map((token) => [normalize(token.content), token]));
  const spelled = [...ids.keys()].filter(Boolean).sort((a, b) => b.length - a.length);
  if (!spelled.length) return (text) => (text ? [[text, undefined, 0]] : []);
  const pattern = new RegExp(
    spelled
      .map((text) => {
        const { lstrip, rstrip } = ids.get(text);
        return `${lstrip ? `${SPACE}*` : ""}(?:${escaped(text)})${rstrip ? `${SPACE}*` : ""}`;
      })
      .join("|"),
    "gu",
  );
  const trimmed = (found) => ids.get(found) ?? ids.get(found.trim());
  return (text) => {
    const parts = [];
    let end = 0;
    for (const match of text.matchAll(pattern)) {
      if (match.index > end) parts.push([text.slice(end, match.index), undefined, end]);
      parts.push([match[0], trimmed(match[0]).id, match.index]);
      end = match.index + match[0].length;
    }
    if (end < text.length) parts.push([text.slice(end), undefined, end]);
    return parts;
  };
}

// --- normalizers and pre-tokenizers -----------------------------------------------------------

function normalizerOf(part) {
  const steps = stepsOf(part, "normalizers").map((step) => {
    switch (step.type) {
      case "NFC":
      case "NFD":
      case "NFKC":
      case "NFKD":
        return (text) => text.normalize(step.type);
      case "Prepend":
        return (text) => (text ? step.prepend + text : text);
      case "Replace": {
        const pattern = patternOf(step.pattern);
        return (text) => text.replace(pattern, () => step.content);
      }
      default:
        return refuse("normalizer", step);
    }
  });
  return (text) => steps.reduce((value, step) => step(value), text);
}

const GPT2_PATTERN = String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`;

/** (words, whether the first starts the text) -> finer words. */
function pretokenizerOf(part) {
  const steps = stepsOf(part, "pretokenizers").map((step) => {
    switch (step.type) {
      case "ByteLevel": {
        const split = step.use_regex === false ? (word) => [word] : splitter(regexOf(GPT2_PATTERN));
        const spaced = (word) =>
          step.add_prefix_space && !word.startsWith(" ") ? ` ${word}` : word;
        return (words) => words.flatMap((word) => split(spaced(word))).map(asByteChars);
      }
      case "Digits":
        return each(splitter(step.individual_digits ? /\p{N}/gu : /\p{N}+/gu));
      case "Split":
        if (step.behavior !== "Isolated" || step.invert) refuse("pre-tokenizer", step);
        return each(splitter(patternOf(step.pattern)));
      case "Metaspace":
        return metaspace(step);
      default:
        return refuse("pre-tokenizer", step);
    }
  });
  return (words, isStart) => steps.reduce((value, step) => step(value, isStart), words);
}

const each = (split) => (words) => words.flatMap(split);

function metaspace(step) {
  const scheme = step.prepend_scheme ?? (step.add_prefix_space === false ? "never" : "always");
  if (step.split !== false) refuse("pre-tokenizer", step);
  return (words, isStart) =>
    words.map((word, index) => {
      const marked = word.replaceAll(" ", step.replacement);
      const wanted = scheme === "always" || (scheme === "first" && isStart && index === 0);
      return wanted && !marked.startsWith(step.replacement) ? step.replacement + marked : marked;
    });
}

/** Matches and what is between them, in order. */
function splitter(pattern) {
  return (word) => {
    const parts = [];
    let end = 0;
    for (const match of word.matchAll(pattern)) {
      if (match.index > end) parts.push(word.slice(end, match.index));
      if (match[0]) parts.push(match[0]);
      end = match.index + match[0].length;
    }
    if (end < word.length) parts.push(word.slice(end));
    return parts;
  };
}

const patternOf = (pattern) =>
  "String" in pattern ? new RegExp(escaped(pattern.String), "gu") : regexOf(pattern.Regex);

/** A regular expression of the `tokenizers` library in JavaScript's spelling. */
export function regexOf(source) {
  let spelled = "";
  let inClass = false;
  for (let i = 0; i < source.length; i++) {
    const [char, next] = [source[i], source[i + 1]];
    if (char !== "\\") {
      if (char === "[") inClass = true;
      else if (char === "]") inClass = false;
      spelled += char;
      continue;
    }
    i += 1;
    if (next === "s") spelled += SPACE;
    else if (next === "S") spelled += SPACE.replace("p", "P");
    else if (next === "A") spelled += "^";
    else if (next === "z") spelled += "$";
    else if (/[^\w^$\\.*+?()[\]{}|/]/.test(next) && !(inClass && next === "-")) spelled += next;
    else spelled += `\\${next}`;
  }
  try {
    return new RegExp(spelled, "gu");
  } catch {
    // (?i:...) is younger than the browsers that this page is for.
    return new RegExp(
      spelled.replace(/\(\?i:([^()[\]\\]*)\)/g, (_, group) => `(?:${anyCase(group)})`),
      "gu",
    );
  }
}

const OTHER_CASES = { s: "\u017f", k: "\u212a" };
const anyCase = (text) =>
  text.replace(
    /[a-z]/gi,
    (c) => `[${c.toLowerCase()}${c.toUpperCase()}${OTHER_CASES[c.toLowerCase()] ?? ""}]`,
  );

// --- bytes ------------------------------------------------------------------------------------

/** Byte-level BPE shows each byte as a printable character: itself, or one from U+0100 on. */
const BYTE_CHARS = (() => {
  const isPrintable = (b) => (b > 32 && b < 127) || (b > 160 && b !== 173);
  let moved = 256;
  return Array.from({ length: 256 }, (_, b) => String.fromCharCode(isPrintable(b) ? b : moved++));
})();
const BYTE_VALUES = new Map(BYTE_CHARS.map((char, byte) => [char, byte]));

const asByteChars = (word) =>
  Array.from(new TextEncoder().encode(word), (byte) => BYTE_CHARS[byte]).join("");

/** How a piece becomes bytes. */
function bytesOf(json) {
  const kinds = stepsOf(json.decoder, "decoders").map((step) => step.type);
  if (kinds.includes("ByteLevel")) {
    return (piece) => Array.from(piece, (char) => BYTE_VALUES.get(char) ?? 0x3f);
  }
  const known = ["Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"];
  if (!kinds.every((kind) => known.includes(kind))) refuse("decoder", json.decoder);
  return (piece) => {
    const byte = /^<0x([0-9A-F]{2})>$/.exec(piece);
    return byte
      ? [parseInt(byte[1], 16)]
      : new TextEncoder().encode(piece.replaceAll(SPACE_MARK, " "));
  };
}

// --- merges -----------------------------------------------------------------------------------

class Bpe {
  constructor(json) {
    if (
      json.type !== "BPE" ||
      json.dropout ||
      json.continuing_subword_prefix ||
      json.end_of_word_suffix
    ) {
      const { vocab, merges, ...rest } = json;
      refuse("model", rest);
    }
    this.vocab = new Map(Object.entries(json.vocab));
    this.pieces = [];
    for (const [piece, id] of this.vocab) this.pieces[id] = piece;
    this.options = json;
    this.unknown = json.unk_token == null ? undefined : this.vocab.get(json.unk_token);
    this.merges = new Map();
    json.merges.forEach((merge, rank) => {
      const [left, right] = typeof merge === "string" ? merge.split(" ") : merge;
      const [a, b, whole] = [left, right, left + right].map((piece) => this.vocab.get(piece));
      if (a !== undefined && b !== undefined) this.merges.set(this.#key(a, b), { rank, id: whole });
    });
  }

  #key(a, b) {
    return a * this.pieces.length + b;
  }

  /** Appends the ids of one word. */
  encode(word, out) {
    const whole = this.options.ignore_merges ? this.vocab.get(word) : undefined;
    if (whole !== undefined) out.push(whole);
    else for (const id of this.#merged(this.#characters(word))) out.push(id);
  }

  #characters(word) {
    const ids = [];
    let wasUnknown = false;
    for (const char of word) {
      const id = this.vocab.get(char);
      const bytes =
        id === undefined && this.options.byte_fallback ? this.#byteIds(char) : undefined;
      const isUnknown = id === undefined && bytes === undefined;
      if (!isUnknown) ids.push(...(bytes ?? [id]));
      else if (this.unknown !== undefined && !(this.options.fuse_unk && wasUnknown))
        ids.push(this.unknown);
      wasUnknown = isUnknown;
    }
    return ids;
  }

  #byteIds(char) {
    const ids = Array.from(new TextEncoder().encode(char), (byte) =>
      this.vocab.get(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`),
    );
    return ids.includes(undefined) ? undefined : ids;
  }

  /** Merges the pair of the lowest rank, the leftmost of equals, until none is left.
   *
   * A heap of candidates over a linked list, as a SentencePiece text is one word.
   */
  #merged(ids) {
    const next = ids.map((_, i) => i + 1);
    const before = ids.map((_, i) => i - 1);
    const heap = new Heap();
    const offer = (left) => {
      const right = left < 0 ? ids.length : next[left];
      if (right >= ids.length) return;
      const merge = this.merges.get(this.#key(ids[left], ids[right]));
      if (merge) heap.push({ ...merge, left, a: ids[left], b: ids[right], right });
    };
    for (let i = 0; i + 1 < ids.length; i++) offer(i);
    for (let found = heap.pop(); found; found = heap.pop()) {
      const { left, right, a, b, id } = found;
      if (ids[left] !== a || next[left] !== right || ids[right] !== b) continue; // merged meanwhile
      ids[left] = id;
      ids[right] = -1;
      next[left] = next[right];
      if (next[left] < ids.length) before[next[left]] = left;
      offer(before[left]);
      offer(left);
    }
    return ids.filter((id) => id >= 0);
  }
}

/** Smallest (rank, left) first. */
class Heap {
  #items = [];

  #order(a, b) {
    return a.rank - b.rank || a.left - b.left;
  }

  push(item) {
    const items = this.#items;
    let at = items.push(item) - 1;
    for (let up; at > 0 && this.#order(item, items[(up = (at - 1) >> 1)]) < 0; at = up)
      items[at] = items[up];
    items[at] = item;
  }

  pop() {
    const items = this.#items;
    const top = items[0];
    const last = items.pop();
    if (!items.length) return top;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= items.length) break;
      if (child + 1 < items.length && this.#order(items[child + 1], items[child]) < 0) child += 1;
      if (this.#order(last, items[child]) <= 0) break;
      items[at] = items[child];
      at = child;
    }
    items[at] = last;
    return top;
  }
}

// A package's bytes, from an address or from buffers, straight into the memory that they stay in.
// No DOM here.

const HEADER_BYTES = 128;
const MAGIC = [0x89, 0x42, 0x43, 0x51, 0x0d, 0x0a, 0x1a, 0x0a];
const MOST_SHARDS = 999;
const ATTEMPTS = 4;
const FIRST_PAUSE_MS = 500;

/** What a shard's header says of its size and their number; the runtime checks all else. */
export function readHeader(bytes, name) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < HEADER_BYTES || MAGIC.some((byte, at) => bytes[at] !== byte)) {
    throw new Error(`${name}: no bcq package begins here`);
  }
  const [shards, size] = [view.getUint32(16, true), view.getBigUint64(40, true)];
  if (shards < 1 || shards > MOST_SHARDS) throw new Error(`${name}: ${shards} shards are named`);
  if (size < HEADER_BYTES) throw new Error(`${name}: its header gives ${size} bytes`);
  return { shards, size: Number(size) };
}

/** Address of shard `index` (from 0), given that of the first: NAME-00001-of-0000n.bcq. */
function shardAddress(first, index, shards) {
  const number = (value) => String(value).padStart(5, "0");
  const ending = (shard) => `-${number(shard)}-of-${number(shards)}.bcq`;
  const address = new URL(first);
  if (!address.pathname.endsWith(ending(1))) {
    throw new Error(`${first}: the first of ${shards} shards is to be named NAME${ending(1)}`);
  }
  address.pathname = address.pathname.slice(0, -ending(1).length) + ending(index + 1);
  return address.href;
}

class Refused extends Error {}

/** A stream of the file from byte `from` on; a server that knows no ranges sends all of it. */
async function openAt(address, from, signal) {
  const response = await fetch(address, { headers: { Range: `bytes=${from}-` }, signal });
  if (response.status !== 200 && response.status !== 206) {
    await response.body?.cancel();
    throw new Refused(`${address}: the server answered ${response.status}`);
  }
  let unwanted = 0;
  if (response.status === 206) {
    const range = /^bytes (\d+)-/.exec(response.headers.get("Content-Range") ?? "");
    if (range && Number(range[1]) !== from) {
      throw new Refused(`${address}: the server sent another range than byte ${from} on`);
    }
  } else {
    unwanted = from;
  }
  return { reader: response.body.getReader(), unwanted };
}

/** Pieces of a file in order. A broken connection is taken up again where it broke. */
async function* pieces(address, signal) {
  let position = 0;
  for (let attempt = 1; ; attempt++) {
    let stream;
    try {
      stream = await openAt(address, position, signal);
      for (;;) {
        const { done, value } = await stream.reader.read();
        if (done) return;
        const skipped = Math.min(stream.unwanted, value.length);
        stream.unwanted -= skipped;
        if (skipped === value.length) continue;
        position += value.length - skipped;
        attempt = 1;
        yield value.subarray(skipped);
      }
    } catch (error) {
      if (error instanceof Refused || signal?.aborted) throw error;
      if (attempt >= ATTEMPTS) {
        throw new Error(`${address}: broke off at byte ${position} (${error.message})`);
      }
      await new Promise((done) => setTimeout(done, FIRST_PAUSE_MS * 2 ** (attempt - 1)));
    } finally {
      stream?.reader.cancel().catch(() => {});
    }
  }
}

/** One shard into memory. `place(header)` makes room and says where; `onBytes(n)` is told. */
async function downloadShard(address, place, memory, onBytes, signal) {
  const head = new Uint8Array(HEADER_BYTES);
  let used = 0;
  let header, target;
  for await (let piece of pieces(address, signal)) {
    onBytes(piece.length);
    if (!header) {
      const taken = Math.min(piece.length, HEADER_BYTES - used);
      head.set(piece.subarray(0, taken), used);
      used += taken;
      piece = piece.subarray(taken);
      if (used < HEADER_BYTES) continue;
      header = readHeader(head, address);
      target = place(header);
      new Uint8Array(memory.buffer, target, HEADER_BYTES).set(head);
    }
    if (used + piece.length > header.size) {
      throw new Error(`${address}: more than the ${header.size} bytes that its header gives`);
    }
    new Uint8Array(memory.buffer, target + used, piece.length).set(piece);
    used += piece.length;
  }
  if (!header || used !== header.size) {
    const wanted = header?.size ?? HEADER_BYTES;
    throw new Error(`${address}: ${used} bytes arrived, ${wanted} are needed; load it again`);
  }
  return { address: target, bytes: used, shards: header.shards };
}

/** All shards of a package into memory, one copy.
 *
 * @param source address of shard 0, or the shards as buffers
 * @param memory WebAssembly.Memory
 * @param place (header) => where `header.size` bytes can go, on a multiple of 64
 * @param onProgress (loaded, total) with total that of the shards seen so far, or undefined
 * @returns [{address, bytes}] by shard
 */
export async function loadShards(source, memory, { place, onProgress, signal }) {
  if (typeof source !== "string") {
    return source.map((buffer, index) => {
      const bytes = ArrayBuffer.isView(buffer)
        ? new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength)
        : new Uint8Array(buffer);
      readHeader(bytes, `shard ${index + 1}`);
      const address = place({ size: bytes.length });
      new Uint8Array(memory.buffer, address, bytes.length).set(bytes);
      onProgress?.(bytes.length, bytes.length);
      return { address, bytes: bytes.length };
    });
  }
  let [loaded, total] = [0, 0];
  const counted = (header) => {
    total += header.size;
    return place(header);
  };
  const told = (bytes) => onProgress?.((loaded += bytes), total || undefined);
  const found = [await downloadShard(source, counted, memory, told, signal)];
  const { shards } = found[0];
  while (found.length < shards) {
    const address = shardAddress(source, found.length, shards);
    found.push(await downloadShard(address, counted, memory, told, signal));
  }
  return found;
}

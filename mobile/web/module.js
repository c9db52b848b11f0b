// The compiled module: its memory, its calls, and which of the two modules this engine takes.
// No DOM here.

const PAGE_BYTES = 65536;
const MOST_BYTES = 2 ** 32 - PAGE_BYTES;

// (module (func (result v128) i32.const 0 x 3 splats, i32x4.relaxed_dot_i8x16_i7x16_add_s))
// prettier-ignore
const RELAXED_PROBE = new Uint8Array([
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 19, 1, 17, 0,
  65, 0, 253, 15, 65, 0, 253, 15, 65, 0, 253, 15, 253, 147, 2, 11,
]);

/** Whether this engine takes the faster module, bcq-relaxed.wasm. */
export const hasRelaxedSimd = () => WebAssembly.validate(RELAXED_PROBE);

/** A call of the runtime that did not return BCQ_OK. */
export class RuntimeError extends Error {
  constructor(status, text) {
    super(text || `the runtime returned status ${status}`);
    this.name = "RuntimeError";
    this.status = status;
  }
}

/** The module's memory and calls. Addresses are numbers below 2^32; 64-bit integers BigInts. */
export class Module {
  constructor(instance) {
    this.calls = instance.exports;
    this.memory = instance.exports.memory;
    this.utf8 = new TextDecoder("utf-8", { ignoreBOM: true }); // U+FEFF is text like any other
    // The first allocation takes all memory that there is by then for the heap: before grow().
    this.calls.free(this.calls.malloc(8));
  }

  view() {
    return new DataView(this.memory.buffer); // anew each time: it ends when the memory grows
  }

  bytes(address, length) {
    return new Uint8Array(this.memory.buffer, address >>> 0, length);
  }

  text(address, length) {
    return this.utf8.decode(this.bytes(address, length));
  }

  errorText() {
    const address = this.calls.bcq_error_text() >>> 0;
    const all = new Uint8Array(this.memory.buffer, address);
    return this.text(address, all.indexOf(0));
  }

  call(name, ...values) {
    const status = this.calls[name](...values);
    if (status !== 0) throw new RuntimeError(status, this.errorText());
  }

  allocate(bytes) {
    const address = this.calls.malloc(Math.max(bytes, 8)) >>> 0;
    if (address === 0) throw new Error(`no memory for ${bytes} bytes; a page has 4 GB at most`);
    return address;
  }

  /** Runs `work` with a block of memory for each size, which end with it. */
  within(sizes, work) {
    const addresses = [];
    try {
      for (const size of sizes) addresses.push(this.allocate(size));
      return work(...addresses);
    } finally {
      addresses.forEach((address) => this.calls.free(address));
    }
  }

  /** Creates something through a call whose last argument is where its handle goes. */
  create(name, ...values) {
    return this.within([4], (at) => {
      this.call(name, ...values, at);
      return this.view().getUint32(at, true);
    });
  }

  /** Text that a call returns through a pointer and a length. */
  textOf(name, ...values) {
    return this.within([4, 4], (data, size) => {
      this.call(name, ...values, data, size);
      const view = this.view();
      return this.text(view.getUint32(data, true), view.getUint32(size, true));
    });
  }

  /** Pages beyond the heap, which allocations never touch: a package stays in its place. */
  grow(bytes) {
    const before = this.memory.buffer.byteLength;
    if (before + bytes > MOST_BYTES) {
      throw new Error(`the package needs ${bytes} bytes more; a page's memory ends at 4 GB`);
    }
    try {
      this.memory.grow(Math.ceil(bytes / PAGE_BYTES));
    } catch {
      throw new Error(`the browser has no memory for a package of ${bytes} bytes`);
    }
    return before;
  }
}

/// libFuzzer over packages: whatever opens is planned, verified, made a session of, and run.
///
/// An input is a package without its padding, so that a seed is small and each byte matters:
///
///     flags (1 byte) | header and index as in the file | sections in the index's order | a state
///
/// The harness puts each section where its row says and writes the digests anew, which would stop
/// every mutation otherwise. Flags: bits 0 and 1 the type of the caches, 2 section digests are made
/// anew and all is checked, 3 through a file, 4 and 5 activations, 6 the state is a saved session.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bcq/runtime.h"
#include "runtime/sha256.h"
#include "runtime/state.h"

namespace {

constexpr size_t kHeader = 128, kModelBlock = 136, kTable = kHeader + kModelBlock, kRow = 64;
constexpr size_t kFileBytes = 40, kIndexBytes = 56, kIndexDigest = 64;  // in a header
constexpr size_t kMaxShard = size_t{1} << 20, kMaxRows = 128;
constexpr int32_t kMaxShards = 2;
constexpr int64_t kContext = 20;  // more than one block of a cache
constexpr uint8_t kKvType = 3, kCheckAll = 4, kByFile = 8, kState = 64;
constexpr int kActivationsShift = 4;

template <class T>
T load(const uint8_t* from) {
  T value;
  memcpy(&value, from, sizeof(value));
  return value;
}

template <class T>
void store(uint8_t* to, T value) {
  memcpy(to, &value, sizeof(value));
}

/// What the inputs reached, told at the end: a test asks that the corpus still gets there.
struct Reached {
  long long opened, ran, loaded;
};
Reached reached;

void tell() {
  fprintf(stderr, "package_fuzz: %lld opened, %lld ran, %lld loaded\n", reached.opened, reached.ran,
          reached.loaded);
}

size_t smaller(uint64_t a, uint64_t b) { return (size_t)(a < b ? a : b); }

[[noreturn]] void stop(const char* what) {
  fprintf(stderr, "package_fuzz: %s (%s)\n", what, bcq_error_text());
  abort();
}

/// What is left of an input.
struct Input {
  const uint8_t* data;
  size_t bytes;

  /// The next `most` bytes, or what there is of them, into `to`.
  size_t take(uint64_t most, uint8_t* to) {
    const size_t got = smaller(most, bytes);
    if (got > 0) memcpy(to, data, got);
    data += got, bytes -= got;
    return got;
  }
};

/// The shards of a package, each in memory of exactly its size.
struct Shards {
  uint8_t* data[kMaxShards];
  size_t bytes[kMaxShards];
  int32_t num;
  size_t index_bytes;  ///< that lie within shard 0

  ~Shards() {
    for (uint8_t* shard : data) free(shard);
  }
};

/// End of what the rows place in shard `number`.
size_t end_of_shard(const uint8_t* start, size_t num_rows, uint32_t number) {
  size_t end = kHeader;
  for (size_t i = 0; i < num_rows; i++) {
    const uint8_t* const row = start + kTable + i * kRow;
    const uint64_t offset = load<uint64_t>(row + 8), bytes = load<uint64_t>(row + 16);
    if (load<uint32_t>(row + 4) != number || offset > kMaxShard || bytes > kMaxShard - offset)
      continue;
    if (offset + bytes > end) end = (size_t)(offset + bytes);
  }
  return end;
}

/// Digests of sections, then of the index, then every header's.
void sign(bool signs_sections, size_t num_rows, Shards* s) {
  for (size_t i = 0; i < num_rows && signs_sections; i++) {
    uint8_t* const row = s->data[0] + kTable + i * kRow;
    const uint32_t shard = load<uint32_t>(row + 4);
    const uint64_t offset = load<uint64_t>(row + 8), bytes = load<uint64_t>(row + 16);
    if (shard >= (uint32_t)s->num || offset > s->bytes[shard] || bytes > s->bytes[shard] - offset)
      continue;
    bcq::sha256(s->data[shard] + offset, (size_t)bytes, row + 24);
  }
  bcq::sha256(s->data[0] + kHeader, s->index_bytes, s->data[0] + kIndexDigest);
  for (int32_t i = 1; i < s->num; i++) {
    uint8_t* const header = s->data[i];
    memcpy(header, s->data[0], kHeader);
    store<uint32_t>(header + 12, (uint32_t)i);
    store<uint64_t>(header + kFileBytes, s->bytes[i]);
    memset(header + 48, 0, 16);  // there is no index
  }
}

/// Makes the shards; false where the input is too short for a header and a model block.
bool expand(Input* input, bool signs_sections, Shards* s) {
  uint8_t start[kTable + kMaxRows * kRow] = {};
  if (input->bytes < kTable) return false;
  input->take(kHeader, start);
  const uint64_t index_bytes = load<uint64_t>(start + kIndexBytes);
  input->take(smaller(index_bytes, sizeof(start) - kHeader), start + kHeader);
  s->bytes[0] = smaller(load<uint64_t>(start + kFileBytes), kMaxShard);
  if (s->bytes[0] < kTable) return false;
  s->index_bytes = smaller(index_bytes, s->bytes[0] - kHeader);
  const size_t in_index = s->index_bytes < kModelBlock ? 0 : s->index_bytes - kModelBlock;
  const size_t num_rows = smaller(in_index / kRow, kMaxRows);
  s->num = load<uint32_t>(start + 16) == kMaxShards ? kMaxShards : 1;
  if (s->num > 1) s->bytes[1] = end_of_shard(start, num_rows, 1);
  for (int32_t i = 0; i < s->num; i++) {
    s->data[i] = (uint8_t*)malloc(s->bytes[i]);
    if (s->data[i] == nullptr) stop("no memory");
    memset(s->data[i], 0, s->bytes[i]);
  }
  memcpy(s->data[0], start, smaller(sizeof(start), kHeader + s->index_bytes));
  for (size_t i = 0; i < num_rows; i++) {
    const uint8_t* const row = start + kTable + i * kRow;
    const uint32_t shard = load<uint32_t>(row + 4);
    const uint64_t offset = load<uint64_t>(row + 8), bytes = load<uint64_t>(row + 16);
    // What would write over the index is the reader's to refuse: that row says so all the same.
    const uint64_t least = shard == 0 ? kHeader + s->index_bytes : kHeader;
    if (shard >= (uint32_t)s->num || offset < least || offset > s->bytes[shard]) continue;
    input->take(smaller(bytes, s->bytes[shard] - offset), s->data[shard] + offset);
  }
  sign(signs_sections, num_rows, s);
  return true;
}

/// A file without a name; `path` is how it can be opened.
int memory_file(const uint8_t* data, size_t bytes, char path[32]) {
  const int handle = memfd_create("fuzz", MFD_CLOEXEC);
  if (handle < 0 || write(handle, data, bytes) != (ssize_t)bytes) stop("no file in memory");
  snprintf(path, 32, "/proc/self/fd/%d", handle);
  return handle;
}

bcq_status open_shards(const Shards& s, uint8_t flags, bcq_package** package) {
  const bcq_check check = (flags & kCheckAll) != 0 ? BCQ_CHECK_ALL : BCQ_CHECK_STRUCTURE;
  if ((flags & kByFile) == 0 || s.num > 1)  // names of several files need a folder
    return bcq_package_open_memory((const void* const*)s.data, s.bytes, s.num, check, package);
  char path[32];
  const int handle = memory_file(s.data[0], s.bytes[0], path);
  const bcq_status status = bcq_package_open(path, check, package);
  close(handle);
  return status;
}

/// Every text section from its first to its last byte, every digest, and a conversation.
void read_sections(const bcq_package* package, bool is_signed) {
  int32_t num = 0;
  for (int32_t i = 0; bcq_package_verify(package, i, &num) != BCQ_BAD_ARGUMENT; i++)
    if (i >= num) stop("a section beyond the last");
  unsigned sum = 0;
  for (int32_t kind = 63; kind <= 70; kind++) {
    const void* data = nullptr;
    size_t bytes = 0;
    if (bcq_package_section(package, kind, &data, &bytes) != BCQ_OK) continue;
    for (size_t i = 0; i < bytes; i++) sum += ((const uint8_t*)data)[i];
    if (bytes == 0 || (kind != 64 && kind != 66)) continue;
    bcq_tokenizer* tokenizer = nullptr;
    if (kind == 64 && bcq_tokenizer_create(data, bytes, &tokenizer) == BCQ_OK)
      bcq_tokenizer_destroy(tokenizer);
    const bcq_message message = {BCQ_USER, "a", 1};
    size_t needed = 0;
    if (kind == 66) bcq_chat_render(data, bytes, &message, 1, nullptr, 0, &needed);
  }
  volatile unsigned kept = sum;
  (void)kept;
  if (is_signed && num < 1) stop("a package without sections");
}

/// The rest of the input as a saved session, signed and of this package.
void load_state(Input rest, const Shards& s, bcq_model* model) {
  constexpr size_t kLeast = sizeof(bcq::StateHeader) + bcq::kDigestBytes;
  uint8_t* const copy = (uint8_t*)malloc(rest.bytes + kLeast);
  if (copy == nullptr) stop("no memory");
  memset(copy, 0, rest.bytes + kLeast);
  const size_t body = rest.take(rest.bytes, copy);
  if (body >= sizeof(bcq::StateHeader)) {
    memcpy(copy + offsetof(bcq::StateHeader, package), s.data[0] + kIndexDigest, bcq::kDigestBytes);
    bcq::sha256(copy, body, copy + body);
  }
  char path[32];
  const int handle = memory_file(copy, body + bcq::kDigestBytes, path);
  bcq_session* session = nullptr;
  if (bcq_session_load(model, path, kContext, &session) == BCQ_OK) {
    const int32_t id = 0;
    const float* logits = nullptr;
    reached.loaded++;
    if (bcq_session_position(session) > kContext) stop("more tokens than the context");
    if (bcq_session_set_overflow(session, BCQ_OVERFLOW_SLIDE, 1) != BCQ_OK) stop("no sliding");
    if (bcq_session_append(session, &id, 1, &logits) != BCQ_OK) stop("a loaded session is stuck");
  }
  bcq_session_destroy(session);
  close(handle);
  free(copy);
}

/// Two tokens at once, then one more; every logit is read.
void decode(bcq_model* model, int64_t vocab_size) {
  bcq_session* session = nullptr;
  if (bcq_session_create(model, kContext, &session) != BCQ_OK) return;
  const int32_t ids[] = {0, (int32_t)(vocab_size - 1), 0};
  const float* logits = nullptr;
  float sum = 0;
  for (int64_t at = 0; at < 3; at += at == 0 ? 2 : 1) {
    if (bcq_session_append(session, ids + at, at == 0 ? 2 : 1, &logits) != BCQ_OK)
      stop("a session does not take its vocabulary's ids");
    for (int64_t i = 0; i < vocab_size; i++) sum += logits[i];
  }
  volatile float kept = sum;
  (void)kept;
  reached.ran++;
  bcq_session_destroy(session);
}

void use(const bcq_package* package, uint8_t flags, const Shards& s, const Input& rest) {
  reached.opened++;
  bcq_model_info info;
  if (bcq_package_info(package, &info) != BCQ_OK) stop("no info");
  read_sections(package, (flags & kCheckAll) != 0);
  bcq_options options = {};
  options.num_threads = 1;
  options.activations = (flags >> kActivationsShift & 3) - 1;
  options.kv_type = (flags & kKvType) % (BCQ_KV_INT8 + 1);
  options.prefill_tokens = 2;
  options.tier = "scalar";  // the one that is built with the sanitizers
  bcq_plan plan;
  const bcq_status planned = bcq_plan_model(package, &options, kContext, &plan);
  bcq_model* model = nullptr;
  const bcq_status created = bcq_model_create(package, &options, &model);
  if (planned == BCQ_OK && created != BCQ_OK) stop("planned, but not created");
  if (created == BCQ_OK) {
    decode(model, info.vocab_size);
    if ((flags & kState) != 0) load_state(rest, s, model);
  }
  bcq_model_destroy(model);
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) { return atexit(tell); }

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  if (bytes < 1) return -1;
  const uint8_t flags = data[0];
  Input input = {data + 1, bytes - 1};
  Shards shards = {};
  if (!expand(&input, (flags & kCheckAll) != 0, &shards)) return -1;
  bcq_package* package = nullptr;
  const bcq_status status = open_shards(shards, flags, &package);
  if ((status == BCQ_OK) != (package != nullptr)) stop("status and package disagree");
  if (status == BCQ_OK) use(package, flags, shards, input);
  bcq_package_close(package);
  return 0;
}

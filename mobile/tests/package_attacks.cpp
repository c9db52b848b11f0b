/// Hostile packages: each is refused with a status, or runs; none crashes or reads what is not its.
///
///     package_attacks FILE.bcq
///
/// Built with the address and undefined behaviour sanitizers, which end the program at the first
/// fault. Memory of a package is of exactly its size, so that a byte beyond it is one.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bcq/runtime.h"
#include "runtime/index.h"
#include "runtime/sha256.h"

namespace {

constexpr size_t kHeader = 128, kTable = kHeader + 136, kRow = 64;
constexpr int64_t kContext = 8;
constexpr int kFills[] = {0, 0x7f, 0x80, 0xff};

struct Counts {
  int64_t refused, opened, made, ran;
};

struct Bytes {
  uint8_t* data;
  size_t size;
  size_t index_bytes;
};

[[noreturn]] void stop(const char* what, size_t at) {
  printf("package_attacks: %s at %zu (%s)\n", what, at, bcq_error_text());
  exit(1);
}

bcq_status open_bytes(const uint8_t* data, size_t size, bcq_check check, bcq_package** package) {
  const void* shard = data;
  return bcq_package_open_memory(&shard, &size, 1, check, package);
}

/// Runs two tokens of what can be opened.
void attempt(const uint8_t* data, size_t size, Counts* counts) {
  bcq_package* package = nullptr;
  if (open_bytes(data, size, BCQ_CHECK_STRUCTURE, &package) != BCQ_OK) {
    counts->refused++;
    return;
  }
  counts->opened++;
  bcq_options options = {1, -1, BCQ_KV_F16, 4, 0, "scalar"};
  bcq_plan plan;
  const bcq_status planned = bcq_plan_model(package, &options, kContext, &plan);
  bcq_model* model = nullptr;
  bcq_session* session = nullptr;
  const bcq_status created = bcq_model_create(package, &options, &model);
  if (planned == BCQ_OK && created != BCQ_OK) stop("planned, but not created", counts->opened);
  if (created == BCQ_OK && bcq_session_create(model, kContext, &session) == BCQ_OK) {
    counts->made++;
    const int32_t ids[2] = {1, 0};
    const float* logits = nullptr;
    if (bcq_session_append(session, ids, 2, &logits) == BCQ_OK) counts->ran++;
  }
  bcq_session_destroy(session);
  bcq_model_destroy(model);
  bcq_package_close(package);
}

/// Whether a byte is one of a section's digest, which the structure does not depend on.
bool is_digest(size_t at) {
  return at >= kTable && (at - kTable) % kRow / 8 >= 3 && (at - kTable) % kRow < 56;
}

void sign(const Bytes& b) { bcq::sha256(b.data + kHeader, b.index_bytes, b.data + 64); }

void report(const char* name, const Counts& c) {
  printf("%s: %lld refused, %lld opened, %lld made, %lld ran\n", name, (long long)c.refused,
         (long long)c.opened, (long long)c.made, (long long)c.ran);
}

void must_refuse(const uint8_t* data, size_t size, bcq_check check, const char* what, size_t at) {
  bcq_package* package = nullptr;
  if (open_bytes(data, size, check, &package) == BCQ_OK) stop(what, at);
  if (package != nullptr) stop("a package after an error", at);
}

/// Cut at every byte; the start of the file also in memory of its own, and with a header that says
/// the size it was cut to.
void cut_anywhere(const Bytes& b) {
  for (size_t size = 0; size < b.size; size++) {
    must_refuse(b.data, size, BCQ_CHECK_STRUCTURE, "a cut file opens", size);
    if (size > kHeader + b.index_bytes + 64 && size % 997 != 0) continue;
    uint8_t* const cut = (uint8_t*)malloc(size > 0 ? size : 1);
    memcpy(cut, b.data, size);
    must_refuse(cut, size, BCQ_CHECK_STRUCTURE, "a cut file opens", size);
    const uint64_t said = size;
    if (size >= kHeader) {
      memcpy(cut + 40, &said, 8);
      must_refuse(cut, size, BCQ_CHECK_STRUCTURE, "a cut file that says so opens", size);
    }
    free(cut);
  }
}

/// Every bit of header and index, the digest as it was.
void flip_unsigned(const Bytes& b) {
  for (size_t at = 0; at < kHeader + b.index_bytes; at++) {
    const bool is_optional = at >= 32 && at < 40;
    for (int bit = 0; bit < 8; bit++) {
      b.data[at] ^= (uint8_t)(1 << bit);
      bcq_package* package = nullptr;
      const bcq_status status = open_bytes(b.data, b.size, BCQ_CHECK_STRUCTURE, &package);
      if ((status == BCQ_OK) != is_optional) stop("a flipped bit is misjudged", at);
      bcq_package_close(package);
      b.data[at] ^= (uint8_t)(1 << bit);
    }
  }
}

/// Every bit of the index, the digest made anew: what a hostile writer does.
void flip_signed(const Bytes& b, Counts* counts) {
  for (size_t at = kHeader; at < kHeader + b.index_bytes; at++)
    for (int bit = 0; bit < 8 && !is_digest(at); bit++) {
      b.data[at] ^= (uint8_t)(1 << bit);
      sign(b);
      attempt(b.data, b.size, counts);
      b.data[at] ^= (uint8_t)(1 << bit);
    }
  sign(b);
}

/// Numbers that overflow, end beyond the file or touch its end, in every field.
void hostile_numbers(const Bytes& b, Counts* counts) {
  const uint64_t numbers[] = {0,
                              1,
                              0x7fffffff,
                              0x80000000,
                              0xffffffff,
                              uint64_t{1} << 32,
                              uint64_t{1} << 63,
                              UINT64_MAX,
                              UINT64_MAX - 16383,
                              UINT64_MAX - 63,
                              b.size,
                              b.size - 64,
                              b.size / 16384 * 16384,
                              b.size + 1};
  for (size_t at = 8; at + 8 <= kHeader + b.index_bytes; at += is_digest(at + 4) ? 32 : 4)
    for (const uint64_t number : numbers)
      for (size_t width = 4; width <= 8; width += 4) {
        uint8_t before[8];
        uint8_t digest[32];
        memcpy(before, b.data + at, 8);
        memcpy(digest, b.data + 64, 32);
        memcpy(b.data + at, &number, width);
        if (at >= kHeader) sign(b);
        attempt(b.data, b.size, counts);
        memcpy(b.data + at, before, 8);
        memcpy(b.data + 64, digest, 32);
      }
}

/// Several fields at once: values of one row in another, as a writer with an error would do.
void mixed_rows(const Bytes& b, Counts* counts) {
  const size_t rows = (b.index_bytes - 136) / kRow;
  uint8_t* const kept = (uint8_t*)malloc(b.index_bytes);
  memcpy(kept, b.data + kHeader, b.index_bytes);
  uint64_t state = 1;
  const auto draw = [&state](size_t below) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (size_t)(state >> 33) % below;
  };
  for (int i = 0; i < 1000; i++) {
    const size_t edits = 1 + draw(3);
    for (size_t e = 0; e < edits; e++) {
      const size_t at = draw(6) * 4, bytes = draw(2) == 0 ? 4 : 8;
      memmove(b.data + kTable + draw(rows) * kRow + at, b.data + kTable + draw(rows) * kRow + at,
              bytes);
    }
    if (draw(4) == 0) b.data[kHeader + draw(64)] = (uint8_t)draw(256);
    sign(b);
    attempt(b.data, b.size, counts);
    memcpy(b.data + kHeader, kept, b.index_bytes);
  }
  sign(b);
  free(kept);
}

/// Where the sections lie, from the index of a package that is sound.
bcq::Section section_at(const Bytes& b, size_t row) {
  const uint8_t* const at = b.data + kTable + row * kRow;
  bcq::Section s = {};
  uint16_t kind;
  memcpy(&kind, at, 2);
  s.kind = kind;
  memcpy(&s.offset, at + 8, 8);
  memcpy(&s.bytes, at + 16, 8);
  return s;
}

/// Every bit of every packed weight's header; and any content behind a good one.
void damaged_sections(const Bytes& b, Counts* headers, Counts* contents) {
  for (size_t row = 0; row < (b.index_bytes - 136) / kRow; row++) {
    const bcq::Section s = section_at(b, row);
    const size_t skip = bcq::is_blob(s.kind) ? 64 : 0;
    uint8_t* const data = b.data + s.offset;
    for (size_t bit = 0; bit < 8 * skip; bit++) {
      data[bit / 8] ^= (uint8_t)(1 << bit % 8);
      attempt(b.data, b.size, headers);
      if (bit % 64 == 0)  // the whole file is digested
        must_refuse(b.data, b.size, BCQ_CHECK_ALL, "a damaged section opens", row);
      data[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    if (s.kind >= bcq::kFirstText) continue;
    uint8_t* const kept = (uint8_t*)malloc(s.bytes);
    memcpy(kept, data, s.bytes);
    for (const int fill : kFills) {
      memset(data + skip, fill, s.bytes - skip);
      attempt(b.data, b.size, contents);
      memcpy(data, kept, s.bytes);
    }
    free(kept);
  }
}

/// Bytes all over the file under a whole check, also those between sections.
void damaged_anywhere(const Bytes& b) {
  for (size_t at = kHeader; at < b.size; at += 997) {
    b.data[at] ^= 0x10;
    must_refuse(b.data, b.size, BCQ_CHECK_ALL, "a damaged byte passes a whole check", at);
    b.data[at] ^= 0x10;
  }
}

Bytes read_file(const char* path) {
  FILE* const file = fopen(path, "rb");
  if (file == nullptr) stop("no file", 0);
  fseek(file, 0, SEEK_END);
  const long size = ftell(file);
  rewind(file);
  Bytes b = {(uint8_t*)malloc((size_t)size), (size_t)size, 0};
  if (fread(b.data, 1, b.size, file) != b.size) stop("short read", 0);
  fclose(file);
  uint64_t index_bytes;
  memcpy(&index_bytes, b.data + 56, 8);
  b.index_bytes = (size_t)index_bytes;
  return b;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const Bytes b = read_file(argv[1]);
  Counts sound = {}, flips = {}, numbers = {}, rows = {}, headers = {}, contents = {};
  attempt(b.data, b.size, &sound);
  if (sound.ran != 1) stop("the package does not run", 0);
  cut_anywhere(b);
  flip_unsigned(b);
  flip_signed(b, &flips);
  hostile_numbers(b, &numbers);
  mixed_rows(b, &rows);
  damaged_sections(b, &headers, &contents);
  damaged_anywhere(b);
  attempt(b.data, b.size, &sound);
  if (sound.ran != 2) stop("an attack left a trace", 0);
  report("flips", flips);
  report("numbers", numbers);
  report("rows", rows);
  report("blob headers", headers);
  report("contents", contents);
  free(b.data);
  printf("package_attacks: all passed\n");
  return 0;
}

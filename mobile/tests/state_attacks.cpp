/// Saved sessions that are damaged in every way must be refused; built with sanitizers.
///
///     state_attacks FILE.bcq FOLDER
///
/// Each byte is changed, once as it is and once with a digest that fits again, and the file is cut
/// at every length. With a fitting digest the change may be an id or a value of a cache: then the
/// session must still compute, slide, score and be saved.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bcq/runtime.h"
#include "runtime/memory.h"
#include "runtime/state.h"

namespace {

constexpr int32_t kTokens = 19, kContext = 24;
constexpr uint8_t kBits[] = {0x01, 0x10, 0x80};

bcq_model* model;
char path[4096], out[4096];
bcq::Buffer<uint8_t> whole;  // what was saved

[[noreturn]] void stop(const char* what, size_t at) {
  printf("state_attacks: %s at %zu (%s)\n", what, at, bcq_error_text());
  exit(1);
}

void expect(bool is_right, const char* what, size_t at) {
  if (!is_right) stop(what, at);
}

void write_file(const uint8_t* data, size_t bytes) {
  FILE* const stream = fopen(path, "wb");
  expect(stream != nullptr && fwrite(data, 1, bytes, stream) == bytes, "write", bytes);
  fclose(stream);
}

void read_file() {
  FILE* const stream = fopen(path, "rb");
  expect(stream != nullptr, "read", 0);
  for (int byte = fgetc(stream); byte != EOF; byte = fgetc(stream))
    expect(whole.push((uint8_t)byte), "memory", whole.size());
  fclose(stream);
}

/// Whether the file loads; such a session must then do all that one does.
bool loads(size_t at) {
  bcq_session* session = nullptr;
  const bcq_status status = bcq_session_load(model, path, kContext, &session);
  expect((status == BCQ_OK) == (session != nullptr), "a status without its session", at);
  if (status != BCQ_OK) return false;
  const int32_t more[] = {1, 2, 3, 4, 5, 6, 7};
  const float* logits = nullptr;
  double nll = 0;
  expect(bcq_session_position(session) <= kContext, "position", at);
  expect(bcq_session_set_overflow(session, BCQ_OVERFLOW_SLIDE, 3) == BCQ_OK, "overflow", at);
  expect(bcq_session_append(session, more, 7, &logits) == BCQ_OK, "append", at);
  expect(bcq_session_truncate(session, 2) == BCQ_OK, "truncate", at);
  expect(bcq_session_score(session, more, 7, &nll) == BCQ_OK, "score", at);
  expect(bcq_session_save(session, out) == BCQ_OK, "save", at);
  bcq_session_destroy(session);
  return true;
}

void save_one() {
  bcq_session* session = nullptr;
  int32_t ids[kTokens];
  const float* logits = nullptr;
  for (int32_t i = 0; i < kTokens; i++) ids[i] = 3 * i;
  expect(bcq_session_create(model, kContext, &session) == BCQ_OK, "create", 0);
  expect(bcq_session_append(session, ids, kTokens, &logits) == BCQ_OK, "append", 0);
  expect(bcq_session_save(session, path) == BCQ_OK, "save", 0);
  bcq_session_destroy(session);
  read_file();
  expect(loads(0), "the file itself", 0);
}

/// Byte `at` of the saved file changed by `bits`, with or without a digest that fits.
bool loads_changed(size_t at, uint8_t bits, bool has_digest) {
  const size_t end = whole.size() - bcq::kDigestBytes;
  bcq::Buffer<uint8_t> changed;
  expect(changed.append(whole.data(), whole.size()), "memory", at);
  changed[at] ^= bits;
  if (has_digest) bcq::sha256(changed.data(), end, changed.data() + end);
  write_file(changed.data(), changed.size());
  return loads(at);
}

void attack() {
  const size_t ids_end = sizeof(bcq::StateHeader) + kTokens * sizeof(int32_t);
  const size_t end = whole.size() - bcq::kDigestBytes;
  for (size_t at = 0; at < whole.size(); at += at < ids_end ? 1 : 97)
    expect(!loads_changed(at, 0x41, false), "a changed byte was taken", at);
  for (size_t at = 0; at < ids_end; at++)
    for (const uint8_t bits : kBits) {
      const bool is_loaded = loads_changed(at, bits, true);
      if (at < sizeof(bcq::StateHeader)) expect(!is_loaded, "a changed header was taken", at);
    }
  for (size_t at = ids_end; at < end; at += 211)
    expect(loads_changed(at, 0x04, true), "a value of a cache", at);
  for (size_t bytes = 0; bytes < whole.size(); bytes += bytes < ids_end ? 1 : 997) {
    write_file(whole.data(), bytes);
    expect(!loads(bytes), "a cut file was taken", bytes);
  }
  expect(whole.push(0), "memory", 0);
  write_file(whole.data(), whole.size());
  expect(!loads(whole.size()), "a longer file was taken", whole.size());
}

}  // namespace

int main(int argc, char** argv) {
  bcq_package* package = nullptr;
  const bcq_options options = {1, -1, BCQ_KV_INT8, 5, 0, "scalar"};
  if (argc != 3) return 2;
  snprintf(path, sizeof(path), "%s/state", argv[2]);
  snprintf(out, sizeof(out), "%s/out", argv[2]);
  expect(bcq_package_open(argv[1], BCQ_CHECK_ALL, &package) == BCQ_OK, "open", 0);
  expect(bcq_model_create(package, &options, &model) == BCQ_OK, "model", 0);
  save_one();
  attack();
  bcq_model_destroy(model);
  bcq_package_close(package);
  printf("all passed\n");
  return 0;
}

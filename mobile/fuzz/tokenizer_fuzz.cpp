/// libFuzzer over tokenizer sections and chat frames.
///
///     flags (1 byte) | a section, as long as its header says | a text
///     flags (1 byte) | chat frames up to the first zero byte, then contents between zero bytes
///
/// Flags: bits 0 and 1 those of bcq_tokenizer_encode, 2 the text goes on after a prompt, 3 chat
/// frames, 4 the section has all bytes. For frames bits 4 and 5 are the first message's role.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bcq/runtime.h"

namespace {

constexpr uint8_t kEncodeFlags = 3, kContinues = 4, kIsChat = 8, kTakesAll = 16;
constexpr int kRoleShift = 4;
constexpr size_t kSectionHeader = 40, kMaxText = 512;
constexpr int32_t kMaxMessages = 4;

[[noreturn]] void stop(const char* what) {
  fprintf(stderr, "tokenizer_fuzz: %s (%s)\n", what, bcq_error_text());
  abort();
}

/// What the inputs reached, told at the end: a test asks that the corpus still gets there.
struct Reached {
  long long accepted, rendered;
};
Reached reached;

void tell() {
  fprintf(stderr, "tokenizer_fuzz: %lld accepted, %lld rendered\n", reached.accepted,
          reached.rendered);
}

/// Bytes in memory of exactly their size, so that one beyond them is noticed.
struct Bytes {
  uint8_t* data;
  size_t size;

  Bytes(const uint8_t* from, size_t bytes) : data((uint8_t*)malloc(bytes)), size(bytes) {
    if (bytes > 0) memcpy(data, from, bytes);
  }
  ~Bytes() { free(data); }
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;
};

uint32_t number(const uint8_t* data, size_t at) {
  uint32_t value;
  memcpy(&value, data + at, sizeof(value));
  return value;
}

/// How long the header says that the section is; all bytes if that is more.
size_t section_bytes(const uint8_t* data, size_t bytes) {
  if (bytes < kSectionHeader) return bytes;
  const uint64_t tokens = number(data, 12), merges = number(data, 16), texts = number(data, 24);
  const uint64_t scores = number(data, 0) == 1 ? tokens * 4 : 0;
  const uint64_t all = kSectionHeader + 4 * (tokens + 1) + scores + 8 * merges + tokens + texts;
  return all < bytes ? (size_t)all : bytes;
}

/// Whether the bytes are whole UTF-8 characters, the shortest spelling of each.
bool is_utf8(const uint8_t* text, size_t bytes) {
  for (size_t at = 0; at < bytes;) {
    const uint8_t first = text[at];
    const size_t more = first < 0x80 ? 0 : first < 0xE0 ? 1 : first < 0xF0 ? 2 : 3;
    if ((first >= 0x80 && first < 0xC2) || first > 0xF4 || more >= bytes - at) return false;
    for (size_t i = 1; i <= more; i++)
      if (text[at + i] >> 6 != 2) return false;
    if ((first == 0xE0 && text[at + 1] < 0xA0) || (first == 0xED && text[at + 1] > 0x9F) ||
        (first == 0xF0 && text[at + 1] < 0x90) || (first == 0xF4 && text[at + 1] > 0x8F))
      return false;
    at += more + 1;
  }
  return true;
}

void push_piece(bcq_stream* stream, int32_t id) {
  const char* text = nullptr;
  size_t bytes = 0;
  if (bcq_stream_push(stream, id, &text, &bytes) != BCQ_OK) stop("an id was refused");
  if (!is_utf8((const uint8_t*)text, bytes)) stop("a piece is not whole characters");
}

/// The ids as text, and every token of a small vocabulary.
void show(const bcq_tokenizer* tokenizer, const int32_t* ids, size_t num, bool continues) {
  bcq_stream* stream = nullptr;
  if (bcq_stream_create(tokenizer, continues, &stream) != BCQ_OK) stop("no stream");
  for (size_t i = 0; i < num; i++) push_piece(stream, ids[i]);
  for (int32_t id = -1; id < 64; id++) push_piece(stream, id);
  const char* text = nullptr;
  size_t bytes = 0;
  if (bcq_stream_end(stream, &text, &bytes) != BCQ_OK) stop("a stream did not end");
  if (!is_utf8((const uint8_t*)text, bytes)) stop("the end is not whole characters");
  bcq_stream_destroy(stream);
  unsigned sum = 0;
  for (int32_t id = -1; id < 64; id++) {
    const bool is_told = bcq_tokenizer_token(tokenizer, id, &text, &bytes) == BCQ_OK;
    for (size_t i = 0; i < bytes && is_told; i++) sum += (uint8_t)text[i];
  }
  volatile unsigned kept = sum;
  (void)kept;
}

void tokenize(const bcq_tokenizer* tokenizer, uint32_t num_tokens, uint8_t flags,
              const Bytes& text) {
  reached.accepted++;
  constexpr size_t kRoom = 3 * kMaxText + 2;  // a byte has at most the three of U+FFFD
  int32_t ids[kRoom];
  size_t num = 0, again = 0;
  const char* const start = (const char*)text.data;
  const int32_t how = flags & kEncodeFlags;
  if (bcq_tokenizer_encode(tokenizer, text.size > 0 ? start : "", text.size, how, ids, kRoom,
                           &num) != BCQ_OK)
    stop("a text was refused");
  if (num > kRoom) stop("more ids than bytes");
  for (size_t i = 0; i < num; i++)
    if (ids[i] < 0 || (uint32_t)ids[i] >= num_tokens) stop("an id outside the vocabulary");
  if (bcq_tokenizer_encode(tokenizer, text.size > 0 ? start : "", text.size, how, nullptr, 0,
                           &again) != BCQ_OK ||
      again != num)
    stop("another number of ids without room");
  show(tokenizer, ids, num, (flags & kContinues) != 0);
}

void render(uint8_t flags, const uint8_t* data, size_t bytes) {
  const uint8_t* const zero = bytes > 0 ? (const uint8_t*)memchr(data, 0, bytes) : nullptr;
  const size_t frames_bytes = zero == nullptr ? bytes : (size_t)(zero - data);
  const Bytes frames(data, frames_bytes);
  bcq_message messages[kMaxMessages];
  int32_t num = 0;
  for (size_t at = frames_bytes; at < bytes && num < kMaxMessages; num++) {
    at++;
    const uint8_t* const end = at < bytes ? (const uint8_t*)memchr(data + at, 0, bytes - at) : data;
    const size_t size = at >= bytes ? 0 : end == nullptr ? bytes - at : (size_t)(end - data) - at;
    messages[num] = {((flags >> kRoleShift) + num) % 3, (const char*)data + at, size};
    at += size;
  }
  size_t needed = 0, again = 0;
  if (bcq_chat_render(frames.data, frames.size, messages, num, nullptr, 0, &needed) != BCQ_OK)
    return;
  char* const out = (char*)malloc(needed + 1);
  memset(out, 0x5A, needed + 1);
  if (bcq_chat_render(frames.data, frames.size, messages, num, out, needed, &again) != BCQ_OK ||
      again != needed || out[needed] != 0x5A)
    stop("a prompt of another length");
  free(out);
  reached.rendered++;
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) { return atexit(tell); }

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  if (bytes < 2) return -1;
  const uint8_t flags = *data++;
  bytes--;
  if ((flags & kIsChat) != 0) {
    render(flags, data, bytes);
    return 0;
  }
  const Bytes section(data, (flags & kTakesAll) != 0 ? bytes : section_bytes(data, bytes));
  const size_t rest = bytes - section.size;
  const Bytes text(data + section.size, rest < kMaxText ? rest : kMaxText);
  bcq_tokenizer* tokenizer = nullptr;
  const bcq_status status = bcq_tokenizer_create(section.data, section.size, &tokenizer);
  if ((status == BCQ_OK) != (tokenizer != nullptr)) stop("status and tokenizer disagree");
  if (status == BCQ_OK) tokenize(tokenizer, number(section.data, 12), flags, text);
  bcq_tokenizer_destroy(tokenizer);
  return 0;
}

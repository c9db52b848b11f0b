/// bcq_chat_render over damaged frames in memory that is exactly large enough, for the sanitizers:
/// every prefix, every flipped bit, every byte removed, doubled or replaced, and random damage.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bcq/runtime.h"
#include "runtime/random.h"

namespace {

const char kFrames[] =
    " {\"bos\":\"<s>\\u00e9\\ud83d\\ude00\", \"no_system\" : \"\\\"\\\\\\/\\b\\f\\n\\r\\t\",\n"
    "\"roles\":{\"system\":[\"s\xC3\xA9\",\"\xE2\x82\xAC\"],\"user\":[\"\",\"\xF0\x9F\x98\x80\"],"
    "\"assistant\":[\"a\",\"\"]}, \"generate\":\"go\", \"trim\" : true } ";
constexpr size_t kBytes = sizeof(kFrames) - 1;

uint64_t num_accepted, num_refused;

void die(const char* reason) {
  fprintf(stderr, "%s: %s\n", reason, bcq_error_text());
  exit(1);
}

/// Renders with frames in memory of their own; the prompt must fit exactly what it says it needs.
void try_frames(const char* frames, size_t bytes) {
  char* const own = static_cast<char*>(malloc(bytes));
  if (own == nullptr) abort();
  if (bytes != 0) memcpy(own, frames, bytes);
  const bcq_message messages[] = {{BCQ_USER, "\xE3\x80\x80hello\xC2\xA0", 10},
                                  {BCQ_ASSISTANT, nullptr, 0}};
  size_t needed = 1, again = 0;
  const bcq_status status = bcq_chat_render(own, bytes, messages, 2, nullptr, 0, &needed);
  if (status == BCQ_OK) {
    ++num_accepted;
    char* const out = static_cast<char*>(malloc(needed));
    if (out == nullptr) abort();
    memset(out, '#', needed);
    if (bcq_chat_render(own, bytes, messages, 2, out, needed - 1, &again) != BCQ_OK ||
        again != needed || memchr(out, '#', needed) != out) {
      die("a prompt was written where it has no room");
    }
    if (bcq_chat_render(own, bytes, messages, 2, out, needed, &again) != BCQ_OK) die("refused");
    free(out);
  } else if ((status != BCQ_BAD_BLOB && status != BCQ_UNSUPPORTED) || needed != 0) {
    die("another status");
  } else {
    ++num_refused;
  }
  free(own);
}

void try_prefixes_and_bits() {
  for (size_t bytes = 0; bytes < kBytes; ++bytes) try_frames(kFrames, bytes);
  char damaged[kBytes + 1];
  for (size_t i = 0; i < kBytes; ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      memcpy(damaged, kFrames, kBytes);
      damaged[i] = static_cast<char>(damaged[i] ^ (1 << bit));
      try_frames(damaged, kBytes);
    }
    for (int byte = 0; byte < 256; ++byte) {  // one more byte before this one
      memcpy(damaged, kFrames, i);
      damaged[i] = static_cast<char>(byte);
      memcpy(damaged + i + 1, kFrames + i, kBytes - i);
      try_frames(damaged, kBytes + 1);
    }
    memcpy(damaged, kFrames, i);  // one less
    memcpy(damaged + i, kFrames + i + 1, kBytes - i - 1);
    try_frames(damaged, kBytes - 1);
  }
}

void try_random_damage(uint64_t* state) {
  static const char kLikely[] = "\"\\u{}[],: 0dD\xC3\xE2\xF0\x80\xFF\x1F";
  char damaged[kBytes];
  memcpy(damaged, kFrames, kBytes);
  for (uint64_t left = 1 + bcq::random_below(state, 6); left > 0; --left) {
    const size_t at = bcq::random_below(state, kBytes);
    damaged[at] = kLikely[bcq::random_below(state, sizeof(kLikely))];
  }
  try_frames(damaged, bcq::random_below(state, 8) == 0 ? bcq::random_below(state, kBytes) : kBytes);
}

}  // namespace

int main() {
  try_frames(kFrames, kBytes);
  if (num_accepted != 1) die("good frames were refused");
  try_prefixes_and_bits();
  uint64_t state = 3;
  for (int i = 0; i < 100000; ++i) try_random_damage(&state);
  if (num_accepted < 1000 || num_refused < 10000) die("most damage was of one kind only");
  printf("chat_test: all passed\n");
  return 0;
}

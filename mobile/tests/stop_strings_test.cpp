/// bcq_stop over random pieces in memory that is exactly large enough, for the sanitizers.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bcq/runtime.h"
#include "runtime/memory.h"
#include "runtime/random.h"

namespace {

constexpr size_t kLongest = 9;

/// Random letters a and b (and now and then a zero byte) in memory of their own.
char* random_text(uint64_t* state, size_t shortest, size_t* bytes) {
  *bytes = shortest + bcq::random_below(state, kLongest - shortest + 1);
  char* const text = static_cast<char*>(malloc(*bytes));
  if (text == nullptr) abort();
  for (size_t i = 0; i < *bytes; ++i) {
    const uint64_t any = bcq::random_below(state, 32);
    text[i] = any == 0 ? '\0' : any < 16 ? 'a' : 'b';
  }
  return text;
}

/// What was pushed and what was shown, to be compared.
struct Texts {
  bcq::Buffer<char> pushed, shown;
};

bool show(Texts* texts, const char* text, size_t bytes) {
  if (!texts->shown.append(text, bytes)) abort();
  if (texts->shown.empty()) return true;
  return texts->shown.size() <= texts->pushed.size() &&
         memcmp(texts->shown.data(), texts->pushed.data(), texts->shown.size()) == 0;
}

/// Pushes pieces and then ends, twice with one object; whether all that is shown is the beginning
/// of what was pushed, and all of it where nothing was found.
bool run_case(uint64_t* state) {
  const int32_t num = static_cast<int32_t>(bcq::random_below(state, 5));
  char* strings[4];
  size_t bytes[4];
  for (int32_t i = 0; i < num; ++i) strings[i] = random_text(state, 1, &bytes[i]);
  bcq_stop* stop = nullptr;
  bool is_right = bcq_stop_create(strings, bytes, num, &stop) == BCQ_OK;
  for (int32_t i = 0; i < num; ++i) free(strings[i]);
  int32_t is_found = 0;
  for (int round = 0; is_right && round < 2; ++round) {
    Texts texts;
    const char* text = nullptr;
    size_t text_bytes = 0;
    const int32_t was_found = is_found;
    for (int i = 0; is_right && i < 12; ++i) {
      size_t piece_bytes;
      char* const piece = random_text(state, 0, &piece_bytes);
      if (!texts.pushed.append(piece, piece_bytes)) abort();
      is_right = bcq_stop_push(stop, piece, piece_bytes, &text, &text_bytes, &is_found) == BCQ_OK;
      free(piece);
      is_right = is_right && show(&texts, text, text_bytes);
    }
    is_right = is_right && bcq_stop_end(stop, &text, &text_bytes) == BCQ_OK &&
               show(&texts, text, text_bytes) &&
               (is_found != 0 || texts.shown.size() == texts.pushed.size()) &&
               (was_found == 0 || texts.shown.empty());
  }
  bcq_stop_destroy(stop);
  return is_right;
}

}  // namespace

int main() {
  uint64_t state = 11;
  for (int i = 0; i < 20000; ++i) {
    if (run_case(&state)) continue;
    fprintf(stderr, "case %d is wrong: %s\n", i, bcq_error_text());
    return 1;
  }
  if (bcq::memory_in_use() != 0) {
    fprintf(stderr, "memory is still in use\n");
    return 1;
  }
  printf("stop_strings_test: all passed\n");
  return 0;
}

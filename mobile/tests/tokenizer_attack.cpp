/// Damaged tokenizer sections: each must give a status, or a tokenizer that reads nothing beyond
/// its section. Run under the sanitizers: tokenizer_attack SECTION... ; 0 when all is well.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bcq/runtime.h"

namespace {

constexpr int kNumFlips = 8000;
constexpr size_t kHeaderBytes = 40;

const char* const kTexts[] = {
    "",
    "Hello  world, it's 12345 \n\n x \xE4\xBD\xA0\xE5\xA5\xBD",
    "<s>a</s> == <u12>\xE2\x96\x81\xFF\xF0\x9F\x98",
    " e\xCC\x81\xCC\xA3\xE1\x84\x80\xE1\x85\xA1 \xE2\x84\xAB",
};

uint64_t random_state = 1;

uint32_t next_random() {
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<uint32_t>(random_state >> 33);
}

[[noreturn]] void stop(const char* what, size_t where) {
  printf("tokenizer_attack: %s at %zu (%s)\n", what, where, bcq_error_text());
  exit(1);
}

/// Ids of every text and the text of every id, in any order.
void use(const bcq_tokenizer* tokenizer, size_t num_tokens) {
  int32_t ids[64];
  size_t num = 0, bytes = 0;
  for (const char* text : kTexts) {
    for (int32_t flags = 0; flags < 4; ++flags) {
      if (bcq_tokenizer_encode(tokenizer, text, strlen(text), flags, ids, 64, &num) != BCQ_OK) {
        stop("a text was refused", num);
      }
    }
  }
  bcq_stream* stream = nullptr;
  if (bcq_stream_create(tokenizer, 0, &stream) != BCQ_OK) stop("no stream", 0);
  const char* text = nullptr;
  volatile char last = 0;
  for (int64_t id = -2; id < static_cast<int64_t>(num_tokens) + 2; ++id) {
    if (bcq_stream_push(stream, static_cast<int32_t>(id), &text, &bytes) != BCQ_OK) {
      stop("an id was refused", static_cast<size_t>(id));
    }
    if (bytes > 0) last = text[bytes - 1];
  }
  if (bcq_stream_end(stream, &text, &bytes) != BCQ_OK) stop("the stream did not end", 0);
  (void)last;
  bcq_stream_destroy(stream);
}

/// Tries `bytes` of `data` where nothing follows them, on an odd address. True: it was accepted.
bool attack(const uint8_t* data, size_t bytes) {
  uint8_t* const copy = static_cast<uint8_t*>(malloc(bytes + 1));
  memcpy(copy + 1, data, bytes);
  bcq_tokenizer* tokenizer = nullptr;
  const bool is_accepted = bcq_tokenizer_create(copy + 1, bytes, &tokenizer) == BCQ_OK;
  if (is_accepted != (tokenizer != nullptr)) stop("status and tokenizer disagree", bytes);
  if (is_accepted) {
    uint32_t num_tokens;
    memcpy(&num_tokens, copy + 1 + 12, sizeof(num_tokens));
    use(tokenizer, num_tokens);
  }
  bcq_tokenizer_destroy(tokenizer);
  free(copy);
  return is_accepted;
}

/// Returns how many damaged sections were accepted all the same.
int attack_all(uint8_t* data, size_t bytes) {
  if (!attack(data, bytes)) stop("the whole section was refused", bytes);
  for (size_t part = 0; part < bytes; ++part) {
    if (attack(data, part)) stop("a part was accepted", part);
  }
  int num_accepted = 0;
  const uint32_t hostile[] = {0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF};
  for (size_t at = 0; at + 4 <= kHeaderBytes + 64; at += 4) {
    uint8_t saved[4];
    memcpy(saved, data + at, 4);
    for (const uint32_t value : hostile) {
      memcpy(data + at, &value, 4);
      num_accepted += attack(data, bytes);
    }
    memcpy(data + at, saved, 4);
  }
  for (int i = 0; i < kNumFlips; ++i) {
    const size_t first = next_random() % bytes, second = next_random() % bytes;
    const uint8_t a = data[first], b = data[second];
    data[first] ^= static_cast<uint8_t>(1u << next_random() % 8);
    if (i % 2 == 1) data[second] = static_cast<uint8_t>(next_random());
    num_accepted += attack(data, bytes);
    data[second] = b;
    data[first] = a;
  }
  return num_accepted;
}

}  // namespace

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    FILE* const file = fopen(argv[i], "rb");
    if (file == nullptr) stop("cannot open a section", static_cast<size_t>(i));
    static uint8_t data[1 << 16];
    const size_t bytes = fread(data, 1, sizeof(data), file);
    fclose(file);
    printf("%s: %d damaged ones accepted\n", argv[i], attack_all(data, bytes));
  }
  printf("tokenizer_attack: all passed\n");
  return 0;
}

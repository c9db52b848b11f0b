/// What a platform computes, as lines that another platform's run is compared with.
///
///     platform_driver MODEL.bcq KV ACTIVATIONS TEXT STATE
///
/// KV and ACTIVATIONS are the numbers of bcq_kv_type and bcq_precision (-1: as the package says).
/// Tells the tier, the ids of TEXT, the text that the ids give, the logits after them, then 16
/// greedy ids. The session after the prompt is saved as STATE.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bcq/runtime.h"

namespace {

constexpr int64_t kContext = 128;
constexpr int kNumDrawn = 16;
constexpr size_t kMaxIds = 100;

/// Ends the program if the runtime said no: a system takes back what is open.
void need(bcq_status status) {
  if (status == BCQ_OK) return;
  fprintf(stderr, "platform_driver: %s\n", bcq_error_text());
  exit(1);
}

/// "name 1,2,3"
template <class T>
void print_all(const char* name, const char* format, const T* values, int64_t num) {
  printf("%s ", name);
  for (int64_t i = 0; i < num; i++) {
    if (i > 0) printf(",");
    printf(format, values[i]);
  }
  printf("\n");
}

/// The text of the ids, in hexadecimal: it may hold anything.
void print_text(const bcq_tokenizer* tokenizer, const int32_t* ids, size_t num) {
  bcq_stream* stream = nullptr;
  need(bcq_stream_create(tokenizer, 0, &stream));
  printf("text ");
  for (size_t i = 0; i <= num; i++) {
    const char* piece = nullptr;
    size_t bytes = 0;
    need(i < num ? bcq_stream_push(stream, ids[i], &piece, &bytes)
                 : bcq_stream_end(stream, &piece, &bytes));
    for (size_t b = 0; b < bytes; b++) printf("%02x", (unsigned)(unsigned char)piece[b]);
  }
  printf("\n");
  bcq_stream_destroy(stream);
}

void draw(bcq_session* session, const float* logits, int32_t vocab_size) {
  int32_t drawn[kNumDrawn];
  for (int step = 0; step < kNumDrawn; step++) {
    int32_t best = 0;
    for (int32_t id = 1; id < vocab_size; id++)
      if (logits[id] > logits[best]) best = id;
    drawn[step] = best;
    need(bcq_session_append(session, &best, 1, &logits));
  }
  print_all("drawn", "%d", drawn, kNumDrawn);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6)
    return fputs("usage: platform_driver MODEL KV ACTIVATIONS TEXT STATE\n", stderr), 2;
  bcq_package* package = nullptr;
  bcq_model* model = nullptr;
  bcq_session* session = nullptr;
  bcq_tokenizer* tokenizer = nullptr;
  bcq_model_info info;
  bcq_options options = {};
  options.num_threads = 2;
  options.kv_type = atoi(argv[2]);
  options.activations = atoi(argv[3]);
  const void* section = nullptr;
  size_t bytes = 0;
  need(bcq_package_open(argv[1], BCQ_CHECK_ALL, &package));
  need(bcq_package_info(package, &info));
  need(bcq_package_section(package, 64, &section, &bytes));
  need(bcq_tokenizer_create(section, bytes, &tokenizer));
  need(bcq_model_create(package, &options, &model));
  need(bcq_session_create(model, kContext, &session));
  printf("tier %s\n", bcq_model_tier(model));

  int32_t ids[kMaxIds];
  size_t num = 0;
  need(bcq_tokenizer_encode(tokenizer, argv[4], strlen(argv[4]), 1, ids, kMaxIds, &num));
  if (num < 1 || num > kMaxIds) return fputs("platform_driver: 1 to 100 tokens\n", stderr), 1;
  print_all("ids", "%d", ids, (int64_t)num);
  print_text(tokenizer, ids, num);
  const float* logits = nullptr;
  need(bcq_session_append(session, ids, (int64_t)num, &logits));
  print_all("logits", "%a", logits, info.vocab_size);
  need(bcq_session_save(session, argv[5]));
  draw(session, logits, (int32_t)info.vocab_size);
  bcq_session_destroy(session);
  bcq_model_destroy(model);
  bcq_tokenizer_destroy(tokenizer);
  bcq_package_close(package);
  return 0;
}

/// A package, a prompt, 32 of the most likely tokens: the C API at its shortest.
///
///     hello MODEL.bcq "Once upon a time"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bcq/runtime.h"

/// Ends the program if the runtime said no: a system takes back what is open.
static void need(bcq_status status) {
  if (status == BCQ_OK) return;
  fprintf(stderr, "hello: %s\n", bcq_error_text());
  exit(1);
}

int main(int argc, char** argv) {
  if (argc != 3) return fputs("usage: hello MODEL.bcq PROMPT\n", stderr), 2;
  bcq_package* package = nullptr;
  bcq_model* model = nullptr;
  bcq_session* session = nullptr;
  bcq_tokenizer* tokenizer = nullptr;
  bcq_stream* stream = nullptr;
  bcq_model_info info;
  bcq_options options = {};
  options.activations = -1;  // as the package says
  options.kv_type = BCQ_KV_F16;
  const void* section = nullptr;
  size_t bytes = 0;
  need(bcq_package_open(argv[1], BCQ_CHECK_ALL, &package));
  need(bcq_package_info(package, &info));
  need(bcq_package_section(package, 64, &section, &bytes));
  need(bcq_tokenizer_create(section, bytes, &tokenizer));
  need(bcq_stream_create(tokenizer, 1, &stream));
  need(bcq_model_create(package, &options, &model));
  need(bcq_session_create(model, info.max_positions < 512 ? info.max_positions : 512, &session));

  int32_t ids[256];
  size_t num = 0;  // tokens of the prompt, begin token included
  need(bcq_tokenizer_encode(tokenizer, argv[2], strlen(argv[2]), 1, ids, 256, &num));
  if (num < 1 || num > 256) return fputs("hello: 1 to 256 tokens, please\n", stderr), 1;
  const float* logits = nullptr;
  need(bcq_session_append(session, ids, (int64_t)num, &logits));
  for (int step = 0; step < 32; step++) {
    int32_t best = 0;
    for (int32_t id = 1; id < info.vocab_size; id++)
      if (logits[id] > logits[best]) best = id;
    const char* text = nullptr;
    need(bcq_stream_push(stream, best, &text, &bytes));
    if (bytes > 0) fwrite(text, 1, bytes, stdout);
    need(bcq_session_append(session, &best, 1, &logits));
  }
  printf("\n");
  bcq_stream_destroy(stream);
  bcq_session_destroy(session);
  bcq_model_destroy(model);
  bcq_tokenizer_destroy(tokenizer);
  bcq_package_close(package);
}

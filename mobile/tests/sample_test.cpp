/// bcq_sample over random cases in memory that is exactly large enough, for the sanitizers; prints
/// a checksum of the tokens, which is the same for every compiler, flag and machine.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bcq/runtime.h"
#include "runtime/random.h"

namespace {

/// A number of -1 .. 1 in steps of 2^-23: exact in float32, so the same everywhere.
float signed_unit(uint64_t* state) {
  const int64_t step = static_cast<int64_t>(bcq::random_bits(state) >> 40) - (int64_t{1} << 23);
  return static_cast<float>(step) / 8388608.0f;
}

float positive_unit(uint64_t* state) {
  const float value = signed_unit(state);
  return value < 0 ? -value : value;
}

bcq_sampling random_sampling(uint64_t* state) {
  bcq_sampling sampling = {};
  const uint64_t bits = bcq::random_bits(state);
  sampling.temperature = (bits & 7) == 0 ? 0.0f : 0.01f + 2 * positive_unit(state);
  sampling.top_k = (bits & 8) != 0 ? static_cast<int32_t>(bits >> 32) & 63 : 0;
  sampling.top_p = (bits & 16) != 0 ? 0x1p-30f + positive_unit(state) * 0.99f : 1.0f;
  sampling.min_p = (bits & 32) != 0 ? positive_unit(state) * 0.2f : 0.0f;
  sampling.repetition_penalty = (bits & 64) != 0 ? 0.5f + positive_unit(state) : 1.0f;
  sampling.presence_penalty = (bits & 128) != 0 ? signed_unit(state) : 0.0f;
  return sampling;
}

/// One case; the token, or -1 where the call failed.
int32_t run_case(uint64_t* state) {
  const int64_t vocab_size = 1 + static_cast<int64_t>(bcq::random_below(state, 700));
  const int64_t num_previous = static_cast<int64_t>(bcq::random_below(state, 20));
  const size_t scratch_bytes = static_cast<size_t>(vocab_size) * 8;
  float* logits = static_cast<float*>(malloc(static_cast<size_t>(vocab_size) * sizeof(float)));
  int32_t* previous =
      static_cast<int32_t*>(malloc(static_cast<size_t>(num_previous) * sizeof(int32_t)));
  void* scratch = malloc(scratch_bytes);
  if (logits == nullptr || previous == nullptr || scratch == nullptr) abort();
  const bool has_ties = bcq::random_below(state, 3) == 0;
  for (int64_t i = 0; i < vocab_size; ++i) {
    const float value = signed_unit(state) * 16;
    logits[i] = has_ties ? static_cast<float>(static_cast<int32_t>(value)) : value;
    if (i > 0 && bcq::random_below(state, 50) == 0) logits[i] = -__builtin_inff();
  }
  for (int64_t i = 0; i < num_previous; ++i) {
    const uint64_t any = bcq::random_below(state, static_cast<uint64_t>(vocab_size) + 2);
    previous[i] = static_cast<int32_t>(any) - 1;
  }
  const bcq_sampling sampling = random_sampling(state);
  uint64_t seed = bcq::random_bits(state);
  int32_t id = -1;
  const bcq_status status = bcq_sample(logits, vocab_size, &sampling, previous, num_previous, &seed,
                                       scratch, scratch_bytes, &id);
  const bool is_right =
      status == BCQ_OK && id >= 0 && id < vocab_size && logits[id] > -__builtin_inff();
  free(logits);
  free(previous);
  free(scratch);
  return is_right ? id : -1;
}

}  // namespace

int main(int num_arguments, char** arguments) {
  const int num_cases = num_arguments > 1 ? atoi(arguments[1]) : 1000;
  uint64_t state = 5, sum = 0;
  for (int i = 0; i < num_cases; ++i) {
    const int32_t id = run_case(&state);
    if (id < 0) {
      fprintf(stderr, "case %d: %s\n", i, bcq_error_text());
      return 1;
    }
    sum = sum * 1000003 + static_cast<uint64_t>(id);
  }
  printf("%016llx\n", static_cast<unsigned long long>(sum));
  return 0;
}

/// Many texts in one call: what a test in Python needs to compare hundreds of thousands.
#include "bcq/runtime.h"

extern "C" {

/// Encodes `num` texts, text i at bytes begins[i] to begins[i + 1] of `texts`. ids: one after the
/// other, at most `capacity`; num_ids[i]: how many text i has. Errors: as bcq_tokenizer_encode, and
/// BCQ_BAD_SHAPE where they do not fit.
bcq_status bcq_test_encode_many(const bcq_tokenizer* tokenizer, const char* texts,
                                const int64_t* begins, int64_t num, int32_t flags, int32_t* ids,
                                int64_t capacity, int64_t* num_ids) {
  for (int64_t i = 0; i < num; ++i) {
    size_t found = 0;
    const bcq_status status = bcq_tokenizer_encode(
        tokenizer, texts + begins[i], static_cast<size_t>(begins[i + 1] - begins[i]), flags, ids,
        static_cast<size_t>(capacity), &found);
    if (status != BCQ_OK) return status;
    num_ids[i] = static_cast<int64_t>(found);
    if (num_ids[i] > capacity) return BCQ_BAD_SHAPE;
    ids += found;
    capacity -= num_ids[i];
  }
  return BCQ_OK;
}

}  // extern "C"

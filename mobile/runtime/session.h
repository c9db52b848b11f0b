/// A session: caches, scratch and the tokens held, over a model that others use as well.
#ifndef BCQ_RUNTIME_SESSION_H_
#define BCQ_RUNTIME_SESSION_H_

#include "runtime/model.h"

struct bcq_session {
  bcq_model* model;
  bcq::SessionSizes sizes;
  bcq_decoder decoder;    ///< the model's, with the rotary tables
  bcq::RopeTables* rope;  ///< null: ALiBi
  uint8_t* scratch;       ///< cut as `sizes` says into the next five
  float* x;               ///< [prefill_tokens][hidden], the residual stream
  float* logits;          ///< [vocab_size]
  float* zeros;           ///< [num_kv_heads * D], what a position holds that is not used
  bcq_kv* caches;         ///< [num_layers], over `cache_memory`
  void* decoder_scratch;
  uint8_t* cache_memory;
  int64_t position;
  int32_t is_cancelled;  ///< written by any thread
};

#endif  // BCQ_RUNTIME_SESSION_H_

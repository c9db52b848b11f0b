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
  int32_t* ids;  ///< [context], of the tokens held
  int64_t position;
  int32_t is_cancelled;  ///< written by any thread
  bcq_overflow overflow;
  int64_t keep;  ///< first tokens that a slide does not forget
};

namespace bcq {

/// Errors: BCQ_BAD_ARGUMENT (ids null, num < 1, an id outside the vocabulary).
bcq_status check_ids(const bcq_session& session, const int32_t* ids, int64_t num);
/// BCQ_BAD_SHAPE: `num` more tokens do not fit into the context.
bcq_status check_room(const bcq_session& session, int64_t num);

/// What to do with a computed chunk: rows 0 .. chunk - 1 of the residual stream are ids[first] .. .
using ChunkFn = bcq_status (*)(bcq_session* session, int64_t first, int64_t chunk, void* state);
/// Appends `num` ids, which are checked and have room, chunk by chunk, each handed to `done` with
/// `state`. After an error, also one of `done`, the session holds what it held before. `ids` may be
/// the end of session->ids itself.
bcq_status append_chunks(bcq_session* session, const int32_t* ids, int64_t num, ChunkFn done,
                         void* state);
/// Logits of a row of the chunk that was computed last, into session->logits.
bcq_status compute_logits(bcq_session* session, int64_t row);
/// Zeros into positions [first, last) of every cache; the kernels want them in what is unused of a
/// started block of 16.
void clear_positions(bcq_session* session, int64_t first, int64_t last);

}  // namespace bcq

#endif  // BCQ_RUNTIME_SESSION_H_

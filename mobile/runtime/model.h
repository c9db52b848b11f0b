/// A model: opened weights over the mapped package, the pool, and rotary tables that sessions
/// share.
#ifndef BCQ_RUNTIME_MODEL_H_
#define BCQ_RUNTIME_MODEL_H_

#include "bcq/decoder.h"
#include "runtime/lock.h"
#include "runtime/plan.h"

namespace bcq {

/// Cosines and sines of positions 0 .. num_positions - 1, [num_positions][D / 2] each, behind this
/// struct in one allocation.
struct RopeTables {
  int64_t num_positions;
  int64_t num_users;  ///< sessions, and the model for its newest tables
  float* cos;
  float* sin;
};

}  // namespace bcq

struct bcq_model {
  const bcq_package* package;
  bcq_model_info info;
  bcq::Settings settings;
  bcq_context context;     ///< kernels and pool
  bcq_weight* weights;     ///< [num_weights]
  bcq_block* blocks;       ///< [num_layers]
  const float* last_norm;  ///< [hidden]
  bcq_decoder decoder;     ///< without rotary tables: each session's are of its length
  bcq::FairLock turn;      ///< who may use the pool: for one layer at a time
  bcq::FairLock books;     ///< guards what follows
  bcq::RopeTables* rope;   ///< the longest so far
  uint64_t bytes_in_use;   ///< mapped, and allocated by the model and its sessions

  ~bcq_model();
};

namespace bcq {

/// Takes tables of at least `positions` for a session: the model's, or longer ones made now. Null
/// for ALiBi. The caller holds `books`. Errors: BCQ_OUT_OF_MEMORY.
bcq_status take_rope(bcq_model* model, int64_t positions, RopeTables** rope);
/// Gives them back; null is allowed. The caller holds `books`.
void give_rope(bcq_model* model, RopeTables* rope);
/// Bytes that take_rope would allocate.
uint64_t missing_rope_bytes(const bcq_model& model, int64_t positions);

}  // namespace bcq
#endif  // BCQ_RUNTIME_MODEL_H_

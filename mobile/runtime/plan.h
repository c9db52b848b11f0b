/// Sizes of everything that a model and its sessions allocate, and the options that decide them.
///
/// The functions here are the only place that computes them: what is planned is what is allocated.
#ifndef BCQ_RUNTIME_PLAN_H_
#define BCQ_RUNTIME_PLAN_H_

#include "bcq/decoder.h"
#include "bcq/runtime.h"
#include "runtime/package.h"

namespace bcq {

/// bcq_options with the defaults filled in. The tier is not among them: no size depends on it.
struct Settings {
  int32_t num_threads;  ///< 0: still to be asked of the system
  bcq_precision precision;
  bcq_kv_type kv_type;
  int32_t prefill_tokens;
  uint64_t budget_bytes;  ///< UINT64_MAX: none
};

/// Errors: BCQ_BAD_ARGUMENT (null, an option out of range).
bcq_status read_options(const bcq_package& package, const bcq_options* options, Settings* settings);

/// Packed weights of a model: the embedding, the head (the embedding again if it is tied), then
/// kNumLinears of each layer.
size_t num_weights(const bcq_model_info& info);
inline size_t linear_at(int64_t layer, int32_t linear) {
  return 2 + (size_t)layer * kNumLinears + (size_t)linear;
}

/// Opens every blob of the package and compares its shape with the model block.
/// weights: [num_weights], or null: only check. Errors: BCQ_BAD_BLOB, BCQ_UNSUPPORTED (no kernel
/// for a weight at this precision).
bcq_status open_weights(const bcq_package& package, bcq_precision precision, bcq_weight* weights);

/// What the kernels need to know of a model, without its tables.
bcq_decoder decoder_of(const bcq_model_info& info, const Settings& settings);

/// Bytes of one allocation for `bytes` bytes, as memory_in_use() counts it.
inline uint64_t counted(uint64_t bytes) { return bytes + kMemoryOverhead; }

/// Bytes of packed weights and vectors in the package: what a model reads of it.
uint64_t mapped_bytes(const bcq_package& package);
/// Bytes that a model allocates besides the cosines and sines.
uint64_t model_bytes(const bcq_model_info& info);
/// Bytes to allocate for cosines and sines of `positions`; 0 for ALiBi.
uint64_t rope_bytes(const bcq_model_info& info, int64_t positions);

/// A session's allocations.
struct SessionSizes {
  int64_t context;         ///< positions that it may hold
  int64_t capacity;        ///< of its caches, a multiple of 16
  int64_t prefill_tokens;  ///< of a chunk
  size_t decoder_bytes;    ///< scratch of the kernels
  size_t x_at, logits_at, zeros_at, decoder_at, caches_at, ids_at;  ///< offsets in the scratch
  size_t scratch_bytes;
  size_t layer_bytes;   ///< cache of one layer, a multiple of 64
  size_t caches_bytes;  ///< of all layers

  uint64_t counted_scratch() const;
  uint64_t counted_caches() const { return counted(caches_bytes); }
};

/// Sizes of a session of `context` tokens. Errors: BCQ_BAD_ARGUMENT (context < 1), BCQ_BAD_SHAPE
/// (above max_positions), BCQ_OUT_OF_MEMORY (more than this system can address).
bcq_status session_sizes(const bcq_model_info& info, const Settings& settings, int64_t context,
                         SessionSizes* sizes);

}  // namespace bcq
#endif  // BCQ_RUNTIME_PLAN_H_

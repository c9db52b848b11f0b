/// A decoder block and the head over packed weights: what every native runtime loops over.
///
/// The caller owns all memory; a step allocates nothing. embed -> bcq_decoder_block for each
/// layer -> bcq_decoder_head.
#ifndef BCQ_DECODER_H_
#define BCQ_DECODER_H_

#include "bcq/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/// y = x W^T + bias; bias float32 [N] or null.
typedef struct bcq_dense {
  const bcq_weight* weight;
  const float* bias;
} bcq_dense;

/// One block. Norms are float32; q_norm and k_norm ([D]) may be null.
typedef struct bcq_block {
  bcq_dense q, k, v, o, gate, up, down;
  const float* attention_norm;
  const float* mlp_norm;
  const float* q_norm;
  const float* k_norm;
  int64_t window;  ///< sliding window in tokens; 0: none
} bcq_block;

/// What all blocks share.
typedef struct bcq_decoder {
  int64_t hidden, intermediate, num_heads, num_kv_heads, head_dim;
  float eps;              ///< of every RMSNorm
  const float* rope_cos;  ///< [num_positions][D / 2], or null (ALiBi)
  const float* rope_sin;
  int64_t num_positions;
  const float* alibi;  ///< slope of each head, or null
  bcq_precision precision;
} bcq_decoder;

/// Scratch bytes for up to num_tokens at once, in a block or the head. Errors: BCQ_BAD_SHAPE (sizes
/// out of range, or more bytes than this machine can address), BCQ_BAD_ARGUMENT (null).
bcq_status bcq_decoder_scratch(const bcq_decoder* decoder, int64_t num_tokens, size_t* bytes);

/// x += attention(norm(x)); x += mlp(norm(x)), for tokens at first_position .. in `kv`, which
/// grows by them. x: [num_tokens][hidden], contiguous.
/// Errors: BCQ_BAD_SHAPE (weights, cache or positions do not fit), BCQ_BAD_ARGUMENT (scratch).
bcq_status bcq_decoder_block(const bcq_context* context, const bcq_decoder* decoder,
                             const bcq_block* block, const bcq_kv* kv, float* x, int64_t num_tokens,
                             int64_t first_position, void* scratch, size_t scratch_bytes);

/// logits[m] = head(norm(x[m])); x is not changed. logits: [num_tokens][N of head].
bcq_status bcq_decoder_head(const bcq_context* context, const bcq_decoder* decoder,
                            const float* norm, const bcq_weight* head, const float* x,
                            int64_t num_tokens, float* logits, void* scratch, size_t scratch_bytes);

#ifdef __cplusplus
}  // extern "C"
#endif
#endif  // BCQ_DECODER_H_

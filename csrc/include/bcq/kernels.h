/// The kernel contract: packed weights, and the operations of a decoder over them.
///
/// Two levels. `bcq_kernels` is what one ISA tier provides: single-threaded loops over a range, no
/// checks. The bcq_ functions below it check shapes, spread the ranges over a pool and return a
/// status; callers use these. Matrices are row-major float32 with a stride in floats; no pointer
/// needs more alignment than its element type. Unless said otherwise, outputs alias no input.
///
/// Layout: docs/formats/bcq_n16k32_v1.md.
#ifndef BCQ_KERNELS_H_
#define BCQ_KERNELS_H_

#include <stddef.h>
#include <stdint.h>

#include "bcq/status.h"
#include "bcq/threads.h"

#ifdef __cplusplus
extern "C" {
#endif

#define BCQ_PANEL_ROWS 16    ///< output rows that lie interleaved
#define BCQ_UNIT_COLUMNS 32  ///< input columns are padded to a multiple of this
#define BCQ_BLOB_HEADER 64   ///< bytes before the codes of a packed weight
#define BCQ_MAX_HEAD_DIM 256

/// One packed weight, opened: W[n, k] = scales[n, g] * (codes[n, k] - zeros[n, g]), g = k /
/// group_size. It points into the blob, which must outlive it.
typedef struct bcq_weight {
  int64_t out_features;    ///< N
  int64_t in_features;     ///< K
  int64_t in_padded;       ///< K rounded up to BCQ_UNIT_COLUMNS
  int64_t group_size;      ///< columns that share a scale, a multiple of 32, or K
  int64_t num_groups;      ///< G = ceil(K / group_size)
  int32_t bits;            ///< 2, 3, 4, 8: codes. 16: float16 values without scales
  int32_t zero;            ///< zero of every group where `zeros` is null: 2^(bits - 1)
  const uint8_t* codes;    ///< ceil(N / 16) panels of in_padded / 32 units of 64 * bits bytes
  const uint16_t* scales;  ///< float16, panels of G x 16; null for 16 bits
  const uint8_t* zeros;    ///< panels of G x 16, or null
} bcq_weight;

/// int8 activations: x = codes * scale. The order suits the tier that made them.
typedef struct bcq_act {
  int64_t num_tokens;  ///< M
  int64_t in_padded;
  int64_t block;       ///< columns that share a scale, a multiple of 32
  int64_t num_blocks;  ///< ceil(in_padded / block)
  int64_t tile;        ///< tokens that lie interleaved; the last tile holds what is left
  int8_t* codes;       ///< [tile][quad of columns][token][4], -127 .. 127, zero beyond K
  float* scales;       ///< [tile][block][token]; NaN where the block holds a NaN or an infinity
  int32_t* neg_sums;   ///< minus the sum of the block's codes, ordered as `scales`
} bcq_act;

typedef enum bcq_kv_type { BCQ_KV_F32 = 0, BCQ_KV_F16 = 1, BCQ_KV_INT8 = 2 } bcq_kv_type;

/// Keys and values of one layer. Unused positions of a started block of 16 hold zeros.
typedef struct bcq_kv {
  int32_t type;  ///< bcq_kv_type of keys and values
  int64_t num_kv_heads;
  int64_t head_dim;   ///< D, a multiple of 16, at most BCQ_MAX_HEAD_DIM
  int64_t capacity;   ///< positions, a multiple of 16
  void* keys;         ///< [kv head][capacity / 16][D][16]
  void* values;       ///< [kv head][capacity][D]
  float* key_scales;  ///< [kv head][capacity]; int8 only, else null
  float* value_scales;
} bcq_kv;

/// Causal attention of `num_tokens` new tokens, whose keys and values are already in `kv`.
typedef struct bcq_attention {
  const bcq_kv* kv;
  const float* q;  ///< [num_tokens][num_heads * D], row stride ldq
  int64_t ldq;
  float* out;  ///< as q, row stride ldo
  int64_t ldo;
  int64_t num_tokens;
  int64_t first_position;  ///< of token 0; token t sees positions 0 .. first_position + t
  int64_t num_heads;       ///< a multiple of num_kv_heads
  int64_t window;          ///< a token sees this many positions, itself included; 0: all
  float scale;             ///< on q.k, as a rule 1 / sqrt(D)
  const float* alibi;      ///< slope of each head, or null: adds -slope * (distance)
} bcq_attention;

/// What a tier provides. No function checks anything; ranges are [first, last).
typedef struct bcq_kernels {
  const char* tier;
  int32_t tile_tokens;  ///< tokens of a tile of gemm_int8
  int32_t tile_panels;  ///< panels of a tile
  int32_t gemv_tokens;  ///< up to here one pass over the weights serves all tokens

  /// Rows x[first .. last) of K columns -> `act`; first is a multiple of act->tile.
  void (*quantize)(const float* x, int64_t ldx, int64_t in_features, int64_t first, int64_t last,
                   const bcq_act* act);
  /// y[m, n] (+)= sum_k x[m, k] W[n, k] for the tokens of the tiles and the rows of the panels.
  void (*gemm_int8)(const bcq_weight* w, const bcq_act* act, int64_t tile_first, int64_t tile_last,
                    int64_t panel_first, int64_t panel_last, float* y, int64_t ldy,
                    int32_t accumulate);
  /// The same from float32 x, products and sums in float32; 16-bit weights too.
  void (*gemm_f32)(const bcq_weight* w, const float* x, int64_t ldx, int64_t token_first,
                   int64_t token_last, int64_t panel_first, int64_t panel_last, float* y,
                   int64_t ldy, int32_t accumulate);
  /// Row n of W as float32, K values.
  void (*embed_row)(const bcq_weight* w, int64_t n, float* out);
  /// y = x / sqrt(mean(x^2) + eps) * weight, one row of K; y may be x.
  void (*rmsnorm)(const float* x, const float* weight, float eps, int64_t num, float* y);
  /// Rotates num_heads heads of D in place: (x[i], x[i + D/2]) by the angle i; cos, sin: [D/2].
  void (*rope)(float* x, int64_t num_heads, int64_t head_dim, const float* cos, const float* sin);
  /// out = gate / (1 + exp(-gate)) * up; out may be gate or up.
  void (*silu_mul)(const float* gate, const float* up, int64_t num, float* out);
  /// y += x
  void (*add)(const float* x, int64_t num, float* y);
  /// Softmax in place of x / temperature; a row of only -inf gives zeros.
  void (*softmax)(float* x, int64_t num, float temperature);
  /// First index of the largest value; NaN counts as smaller than anything.
  int64_t (*argmax)(const float* x, int64_t num);
  /// One token's keys and values, [num_kv_heads * D] each, into position `at`.
  void (*kv_append)(const bcq_kv* kv, int64_t at, const float* k, const float* v);
  /// Query rows [first, last) of one kv head; row r is token r / group, head kv_head * group +
  /// r % group, with group = num_heads / num_kv_heads.
  void (*attention)(const bcq_attention* a, int64_t kv_head, int64_t first, int64_t last);
} bcq_kernels;

/// The tiers of this build, best first, also those that this CPU lacks. Returns their number.
int32_t bcq_tier_names(const char* const** names);

/// Kernels of a tier; null name: BCQ_FORCE_TIER if set, else the best that this CPU has.
/// Errors: BCQ_UNKNOWN_TIER, BCQ_TIER_NOT_HERE; `out` is null then. Never another tier instead.
bcq_status bcq_kernels_get(const char* name, const bcq_kernels** out);

/// Who computes: a tier's kernels and a pool (null: the calling thread alone).
typedef struct bcq_context {
  const bcq_kernels* kernels;
  bcq_pool* pool;
} bcq_context;

/// Bytes of a packed blob. Errors: BCQ_BAD_SHAPE, BCQ_UNSUPPORTED.
bcq_status bcq_weight_bytes(int64_t out_features, int64_t in_features, int32_t bits,
                            int64_t group_size, int32_t has_zeros, size_t* bytes);
/// Packs codes [N][K], scales [N][G] and zeros [N][G] (null: symmetric) into `blob`. The same bytes
/// on every machine. Errors: as above, BCQ_BAD_ARGUMENT (blob_bytes differs), BCQ_BAD_SHAPE (a code
/// or zero beyond 2^bits - 1).
bcq_status bcq_weight_pack(const uint8_t* codes, const uint16_t* scales, const uint8_t* zeros,
                           int64_t out_features, int64_t in_features, int32_t bits,
                           int64_t group_size, void* blob, size_t blob_bytes);
/// The same for float16 values [N][K], bits = 16.
bcq_status bcq_weight_pack_f16(const uint16_t* values, int64_t out_features, int64_t in_features,
                               void* blob, size_t blob_bytes);
/// Inverse of bcq_weight_pack; zeros may be null.
bcq_status bcq_weight_unpack(const bcq_weight* w, uint8_t* codes, uint16_t* scales, uint8_t* zeros);
/// Reads a blob's header, trusting no number in it. The blob starts on an even address; on a
/// multiple of 64 it is fastest. Errors: BCQ_BAD_ARGUMENT (address), BCQ_BAD_BLOB, BCQ_UNSUPPORTED.
bcq_status bcq_weight_open(const void* blob, size_t blob_bytes, bcq_weight* out);

/// How a linear layer treats its activations.
typedef enum bcq_precision {
  BCQ_EXACT = 0,      ///< float32
  BCQ_INT8 = 1,       ///< int8, a scale for each token and group (at most 128 columns)
  BCQ_INT8_TOKEN = 2  ///< int8, one scale a token (W8A8); weights of one group, K <= 65536
} bcq_precision;

/// Scratch bytes that bcq_linear needs; 0 for BCQ_EXACT.
bcq_status bcq_linear_scratch(int64_t num_tokens, int64_t in_features, size_t* bytes);

/// y_i[m, n] (+)= sum_k x[m, k] W_i[n, k] for `num` weights (1 .. 8) with the same K, the same
/// group size and one quantization of x. A 16-bit weight is always computed exactly.
/// Scratch may be null for BCQ_EXACT. M = 0 is allowed. Results do not depend on the pool.
bcq_status bcq_linear(const bcq_context* context, int32_t num, const bcq_weight* const* w,
                      const float* x, int64_t ldx, int64_t num_tokens, bcq_precision precision,
                      float* const* y, const int64_t* ldy, int32_t accumulate, void* scratch,
                      size_t scratch_bytes);

/// Sizes of a cache of one layer. Errors: BCQ_BAD_SHAPE.
bcq_status bcq_kv_bytes(bcq_kv_type type, int64_t num_kv_heads, int64_t head_dim, int64_t capacity,
                        size_t* bytes);
/// Lays a cache into zeroed memory of that size.
bcq_status bcq_kv_init(bcq_kv_type type, int64_t num_kv_heads, int64_t head_dim, int64_t capacity,
                       void* memory, size_t bytes, bcq_kv* out);
/// Writes positions first .. first + num_tokens - 1; k, v: [num_tokens][num_kv_heads * D].
bcq_status bcq_kv_append(const bcq_context* context, const bcq_kv* kv, int64_t first,
                         int64_t num_tokens, const float* k, int64_t ldk, const float* v,
                         int64_t ldv);
/// Errors: BCQ_BAD_SHAPE (positions beyond the capacity, heads that do not divide).
bcq_status bcq_attend(const bcq_context* context, const bcq_attention* attention);

/// Rows of a packed table: out[i] = W[ids[i]]. Errors: BCQ_BAD_ARGUMENT (an id outside 0 .. N - 1).
bcq_status bcq_embed(const bcq_context* context, const bcq_weight* w, const int32_t* ids,
                     int64_t num_tokens, float* out, int64_t ldo);

#ifdef __cplusplus
}  // extern "C"
#endif
#endif  // BCQ_KERNELS_H_

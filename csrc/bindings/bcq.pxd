# The C declarations that the bindings use; csrc/include/bcq/*.h says what they mean.
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t


cdef extern from "bcq/status.h" nogil:
    ctypedef enum bcq_status:
        BCQ_OK
        BCQ_OUT_OF_MEMORY

    const char* bcq_status_text(bcq_status status)


cdef extern from "bcq/threads.h" nogil:
    ctypedef struct bcq_pool:
        pass

    bcq_status bcq_pool_create(int32_t num_threads, bcq_pool** pool)
    void bcq_pool_destroy(bcq_pool* pool)
    int32_t bcq_pool_num_threads(const bcq_pool* pool)


cdef extern from "bcq/kernels.h" nogil:
    int BCQ_MAX_HEAD_DIM

    ctypedef struct bcq_weight:
        int64_t out_features
        int64_t in_features
        int64_t in_padded
        int64_t group_size
        int64_t num_groups
        int32_t bits
        int32_t zero
        const uint8_t* codes
        const uint16_t* scales
        const uint8_t* zeros

    ctypedef enum bcq_kv_type:
        BCQ_KV_F32
        BCQ_KV_F16
        BCQ_KV_INT8

    ctypedef struct bcq_kv:
        int32_t type
        int64_t num_kv_heads
        int64_t head_dim
        int64_t capacity

    ctypedef struct bcq_attention:
        const bcq_kv* kv
        const float* q
        int64_t ldq
        float* out
        int64_t ldo
        int64_t num_tokens
        int64_t first_position
        int64_t num_heads
        int64_t window
        float scale
        const float* alibi

    ctypedef struct bcq_kernels:
        const char* tier
        int32_t tile_tokens
        int32_t tile_panels
        int32_t gemv_tokens
        void (*rmsnorm)(const float* x, const float* weight, float eps, int64_t num, float* y) noexcept nogil
        void (*rope)(float* x, int64_t num_heads, int64_t head_dim, const float* cos,
                     const float* sin) noexcept nogil
        void (*silu_mul)(const float* gate, const float* up, int64_t num, float* out) noexcept nogil
        void (*add)(const float* x, int64_t num, float* y) noexcept nogil
        void (*softmax)(float* x, int64_t num, float temperature) noexcept nogil
        int64_t (*argmax)(const float* x, int64_t num) noexcept nogil

    int32_t bcq_tier_names(const char* const** names)
    bcq_status bcq_kernels_get(const char* name, const bcq_kernels** out)

    ctypedef struct bcq_context:
        const bcq_kernels* kernels
        bcq_pool* pool

    bcq_status bcq_weight_bytes(int64_t out_features, int64_t in_features, int32_t bits,
                                int64_t group_size, int32_t has_zeros, size_t* bytes)
    bcq_status bcq_weight_pack(const uint8_t* codes, const uint16_t* scales, const uint8_t* zeros,
                               int64_t out_features, int64_t in_features, int32_t bits,
                               int64_t group_size, void* blob, size_t blob_bytes)
    bcq_status bcq_weight_pack_f16(const uint16_t* values, int64_t out_features,
                                   int64_t in_features, void* blob, size_t blob_bytes)
    bcq_status bcq_weight_unpack(const bcq_weight* w, uint8_t* codes, uint16_t* scales,
                                 uint8_t* zeros)
    bcq_status bcq_weight_open(const void* blob, size_t blob_bytes, bcq_weight* out)

    ctypedef enum bcq_precision:
        BCQ_EXACT
        BCQ_INT8
        BCQ_INT8_TOKEN

    bcq_status bcq_linear_scratch(int64_t num_tokens, int64_t in_features, size_t* bytes)
    bcq_status bcq_linear(const bcq_context* context, int32_t num, const bcq_weight* const* w,
                          const float* x, int64_t ldx, int64_t num_tokens,
                          bcq_precision precision, float* const* y, const int64_t* ldy,
                          int32_t accumulate, void* scratch, size_t scratch_bytes)

    bcq_status bcq_kv_bytes(bcq_kv_type type, int64_t num_kv_heads, int64_t head_dim,
                            int64_t capacity, size_t* bytes)
    bcq_status bcq_kv_init(bcq_kv_type type, int64_t num_kv_heads, int64_t head_dim,
                           int64_t capacity, void* memory, size_t bytes, bcq_kv* out)
    bcq_status bcq_kv_append(const bcq_context* context, const bcq_kv* kv, int64_t first,
                             int64_t num_tokens, const float* k, int64_t ldk, const float* v,
                             int64_t ldv)
    bcq_status bcq_attend(const bcq_context* context, const bcq_attention* attention)
    bcq_status bcq_embed(const bcq_context* context, const bcq_weight* w, const int32_t* ids,
                         int64_t num_tokens, float* out, int64_t ldo)

/// The cache, attention over it and embeddings: checks of shapes, then ranges over the pool.
///
/// Tasks follow from the shapes alone, so results do not depend on the pool.
#include "bcq/kernels.h"

namespace {

constexpr int64_t kMost = INT64_MAX;
constexpr int64_t kInterleaved = 16;  // positions that the keys of a task's cache lines share
constexpr int64_t kTaskRows = 48;     // query rows of one attention task: two passes of a tier
constexpr int64_t kTaskEmbeddings = 4;

bool usable(const bcq_context* context) { return context && context->kernels; }

/// Bytes of one value, or 0 for no type.
int64_t value_bytes(int32_t type) {
  return type == BCQ_KV_F32 ? 4 : type == BCQ_KV_F16 ? 2 : type == BCQ_KV_INT8 ? 1 : 0;
}

bool is_cache_shape(int64_t num_kv_heads, int64_t head_dim, int64_t capacity) {
  return num_kv_heads > 0 && head_dim > 0 && head_dim <= BCQ_MAX_HEAD_DIM &&
         head_dim % kInterleaved == 0 && capacity > 0 && capacity % kInterleaved == 0 &&
         num_kv_heads <= kMost / BCQ_MAX_HEAD_DIM && capacity <= kMost / num_kv_heads;
}

bcq_status check_cache(const bcq_kv* kv) {
  if (!kv || !kv->keys || !kv->values || value_bytes(kv->type) == 0) return BCQ_BAD_ARGUMENT;
  const bool has_scales = kv->key_scales && kv->value_scales;
  const bool has_none = !kv->key_scales && !kv->value_scales;
  if (kv->type == BCQ_KV_INT8 ? !has_scales : !has_none) return BCQ_BAD_ARGUMENT;
  return is_cache_shape(kv->num_kv_heads, kv->head_dim, kv->capacity) ? BCQ_OK : BCQ_BAD_SHAPE;
}

bcq_status check_range(const bcq_kv* kv, int64_t first, int64_t num_tokens) {
  if (first < 0 || num_tokens < 0) return BCQ_BAD_ARGUMENT;
  return first <= kv->capacity && num_tokens <= kv->capacity - first ? BCQ_OK : BCQ_BAD_SHAPE;
}

struct AppendJob {
  const bcq_kernels* kernels;
  const bcq_kv* kv;
  int64_t first, last;
  const float* k;
  int64_t ldk;
  const float* v;
  int64_t ldv;
};

/// Positions of one block of 16, so that no two tasks write to the same cache line.
void append_task(void* context, int64_t task, int32_t) {
  const AppendJob& job = *(const AppendJob*)context;
  const int64_t start = (job.first / kInterleaved + task) * kInterleaved;
  const int64_t stop = start + kInterleaved < job.last ? start + kInterleaved : job.last;
  for (int64_t at = start > job.first ? start : job.first; at < stop; at++) {
    const int64_t row = at - job.first;
    job.kernels->kv_append(job.kv, at, job.k + row * job.ldk, job.v + row * job.ldv);
  }
}

struct AttendJob {
  const bcq_kernels* kernels;
  const bcq_attention* attention;
  int64_t rows, tasks_of_head;
};

/// The long rows of a head first: the last tasks are short and end together.
void attend_task(void* context, int64_t task, int32_t) {
  const AttendJob& job = *(const AttendJob*)context;
  const int64_t part = job.tasks_of_head - 1 - task % job.tasks_of_head;
  const int64_t first = part * kTaskRows;
  const int64_t last = first + kTaskRows < job.rows ? first + kTaskRows : job.rows;
  job.kernels->attention(job.attention, task / job.tasks_of_head, first, last);
}

bcq_status check_attention(const bcq_attention* a) {
  if (!a) return BCQ_BAD_ARGUMENT;
  if (const bcq_status status = check_cache(a->kv)) return status;
  if (a->window < 0) return BCQ_BAD_ARGUMENT;
  if (const bcq_status status = check_range(a->kv, a->first_position, a->num_tokens)) return status;
  if (a->num_heads <= 0 || a->num_heads % a->kv->num_kv_heads != 0) return BCQ_BAD_SHAPE;
  if (a->num_heads > kMost / BCQ_MAX_HEAD_DIM) return BCQ_BAD_SHAPE;
  const int64_t width = a->num_heads * a->kv->head_dim;
  if (a->ldq < width || a->ldo < width) return BCQ_BAD_SHAPE;
  const int64_t group = a->num_heads / a->kv->num_kv_heads;
  if (a->num_tokens > (kMost - kTaskRows) / group) return BCQ_BAD_SHAPE;
  return a->num_tokens > 0 && (!a->q || !a->out) ? BCQ_BAD_ARGUMENT : BCQ_OK;
}

struct EmbedJob {
  const bcq_kernels* kernels;
  const bcq_weight* w;
  const int32_t* ids;
  int64_t num_tokens;
  float* out;
  int64_t ldo;
};

void embed_task(void* context, int64_t task, int32_t) {
  const EmbedJob& job = *(const EmbedJob*)context;
  for (int64_t i = task * kTaskEmbeddings; i < (task + 1) * kTaskEmbeddings && i < job.num_tokens;
       i++)
    job.kernels->embed_row(job.w, job.ids[i], job.out + i * job.ldo);
}

}  // namespace

extern "C" {

bcq_status bcq_kv_bytes(bcq_kv_type type, int64_t num_kv_heads, int64_t head_dim, int64_t capacity,
                        size_t* bytes) {
  const int64_t size = value_bytes(type);
  if (!bytes || size == 0) return BCQ_BAD_ARGUMENT;
  *bytes = 0;
  if (!is_cache_shape(num_kv_heads, head_dim, capacity)) return BCQ_BAD_SHAPE;
  const int64_t rows = num_kv_heads * capacity;
  const int64_t row_bytes = 2 * (head_dim * size + (type == BCQ_KV_INT8 ? 4 : 0));
  const uint64_t most = SIZE_MAX < (uint64_t)kMost ? SIZE_MAX : (uint64_t)kMost;
  if ((uint64_t)rows > most / (uint64_t)row_bytes) return BCQ_BAD_SHAPE;
  *bytes = (size_t)(rows * row_bytes);
  return BCQ_OK;
}

bcq_status bcq_kv_init(bcq_kv_type type, int64_t num_kv_heads, int64_t head_dim, int64_t capacity,
                       void* memory, size_t bytes, bcq_kv* out) {
  size_t needed;
  if (!memory || !out || (uintptr_t)memory % sizeof(float) != 0) return BCQ_BAD_ARGUMENT;
  if (const bcq_status status = bcq_kv_bytes(type, num_kv_heads, head_dim, capacity, &needed))
    return status;
  if (bytes != needed) return BCQ_BAD_ARGUMENT;
  const int64_t rows = num_kv_heads * capacity;
  const int64_t half = rows * head_dim * value_bytes(type);  // a multiple of 256
  uint8_t* at = (uint8_t*)memory;
  float* scales = type == BCQ_KV_INT8 ? (float*)(at + 2 * half) : nullptr;
  *out = bcq_kv{};
  out->type = type;
  out->num_kv_heads = num_kv_heads;
  out->head_dim = head_dim;
  out->capacity = capacity;
  out->keys = at;
  out->values = at + half;
  out->key_scales = scales;
  out->value_scales = scales ? scales + rows : nullptr;
  return BCQ_OK;
}

bcq_status bcq_kv_append(const bcq_context* context, const bcq_kv* kv, int64_t first,
                         int64_t num_tokens, const float* k, int64_t ldk, const float* v,
                         int64_t ldv) {
  if (!usable(context)) return BCQ_BAD_ARGUMENT;
  if (const bcq_status status = check_cache(kv)) return status;
  if (const bcq_status status = check_range(kv, first, num_tokens)) return status;
  const int64_t width = kv->num_kv_heads * kv->head_dim;
  if (ldk < width || ldv < width) return BCQ_BAD_SHAPE;
  if (num_tokens == 0) return BCQ_OK;
  if (!k || !v) return BCQ_BAD_ARGUMENT;
  AppendJob job = {context->kernels, kv, first, first + num_tokens, k, ldk, v, ldv};
  const int64_t tasks = (job.last - 1) / kInterleaved - first / kInterleaved + 1;
  bcq_pool_run(context->pool, tasks, append_task, &job);
  return BCQ_OK;
}

bcq_status bcq_attend(const bcq_context* context, const bcq_attention* attention) {
  if (!usable(context)) return BCQ_BAD_ARGUMENT;
  if (const bcq_status status = check_attention(attention)) return status;
  if (attention->num_tokens == 0) return BCQ_OK;
  const int64_t heads = attention->kv->num_kv_heads;
  AttendJob job = {context->kernels, attention, 0, 0};
  job.rows = attention->num_tokens * (attention->num_heads / heads);
  job.tasks_of_head = (job.rows + kTaskRows - 1) / kTaskRows;
  bcq_pool_run(context->pool, heads * job.tasks_of_head, attend_task, &job);
  return BCQ_OK;
}

bcq_status bcq_embed(const bcq_context* context, const bcq_weight* w, const int32_t* ids,
                     int64_t num_tokens, float* out, int64_t ldo) {
  if (!usable(context) || !w || !w->codes || num_tokens < 0) return BCQ_BAD_ARGUMENT;
  if (num_tokens > 0 && (!ids || !out)) return BCQ_BAD_ARGUMENT;
  if (ldo < w->in_features) return BCQ_BAD_SHAPE;
  for (int64_t i = 0; i < num_tokens; i++)
    if (ids[i] < 0 || ids[i] >= w->out_features) return BCQ_BAD_ARGUMENT;
  EmbedJob job = {context->kernels, w, ids, num_tokens, out, ldo};
  const int64_t tasks = num_tokens / kTaskEmbeddings + (num_tokens % kTaskEmbeddings != 0);
  bcq_pool_run(context->pool, tasks, embed_task, &job);
  return BCQ_OK;
}

}  // extern "C"

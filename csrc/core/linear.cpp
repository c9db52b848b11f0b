/// Linear layers: checks, one quantization of the activations, panels spread over the pool.
#include "bcq/kernels.h"

namespace {

constexpr int32_t kMaxFused = 8;
constexpr int64_t kMaxBlock = 128;          // columns that share an activation scale
constexpr int64_t kCacheBytes = 512 << 10;  // activations that stay in L2 beside the weights
constexpr int64_t kTaskBytes = 48 << 10;    // weights below which a task is not worth sharing
constexpr int64_t kTasksPerThread = 8;
constexpr int64_t kSerialBytes = 96 << 10;     // weights that one thread reads in about 2 us
constexpr int64_t kMaxTokenColumns = 1 << 16;  // 255 * 127 * K stays below 2^31
constexpr int64_t kAlign = 64;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
int64_t padded(int64_t k) { return ceil_div(k, BCQ_UNIT_COLUMNS) * BCQ_UNIT_COLUMNS; }
int64_t aligned(int64_t bytes) { return ceil_div(bytes, kAlign) * kAlign; }

/// Everything that the tasks of one call share.
struct Job {
  const bcq_kernels* kernels;
  int32_t num;
  const bcq_weight* const* w;
  const float* x;
  int64_t ldx, num_tokens;
  float* const* y;
  const int64_t* ldy;
  int32_t accumulate;
  bool use_int8;
  bcq_act act;
  int64_t token_step;  // tokens of one pass over the weights
  int64_t num_passes;
  int64_t panel_step;                 // panels of one task
  int64_t first_task[kMaxFused + 1];  // of each weight, within a pass
};

bool int8_path(const Job& job, const bcq_weight& w) { return job.use_int8 && w.bits != 16; }

void quantize_task(void* context, int64_t task, int32_t) {
  const Job& job = *(const Job*)context;
  const int64_t first = task * job.act.tile;
  job.kernels->quantize(job.x, job.ldx, job.w[0]->in_features, first,
                        smaller(first + job.act.tile, job.num_tokens), &job.act);
}

void gemm_task(void* context, int64_t task, int32_t) {
  const Job& job = *(const Job*)context;
  const int64_t pass = task / job.first_task[job.num];
  const int64_t rest = task % job.first_task[job.num];
  int32_t i = 0;
  while (rest >= job.first_task[i + 1]) i++;
  const bcq_weight& w = *job.w[i];
  const int64_t first = (rest - job.first_task[i]) * job.panel_step;
  const int64_t last = smaller(first + job.panel_step, ceil_div(w.out_features, BCQ_PANEL_ROWS));
  const int64_t token = pass * job.token_step;
  const int64_t token_last = smaller(token + job.token_step, job.num_tokens);
  if (int8_path(job, w)) {
    job.kernels->gemm_int8(&w, &job.act, token / job.act.tile, ceil_div(token_last, job.act.tile),
                           first, last, job.y[i], job.ldy[i], job.accumulate);
  } else {
    job.kernels->gemm_f32(&w, job.x, job.ldx, token, token_last, first, last, job.y[i], job.ldy[i],
                          job.accumulate);
  }
}

/// Columns that share an activation scale: they divide the group, or are the whole row.
int64_t block_of(const bcq_weight& w, bcq_precision precision) {
  if (precision == BCQ_INT8_TOKEN) return w.in_padded;
  if (w.num_groups <= 1) return smaller(kMaxBlock, w.in_padded);
  int64_t block = kMaxBlock;
  while (w.group_size % block != 0) block -= BCQ_UNIT_COLUMNS;
  return block;
}

/// The activations' arrays, one after another in `scratch`; `start` is aligned.
bcq_act lay_out(uint8_t* start, int64_t num_tokens, int64_t in_padded, int64_t block,
                int64_t tile) {
  bcq_act act = {num_tokens, in_padded, block,   ceil_div(in_padded, block),
                 tile,       nullptr,   nullptr, nullptr};
  act.codes = (int8_t*)start;
  start += aligned(num_tokens * in_padded);
  act.scales = (float*)start;
  start += aligned(num_tokens * act.num_blocks * 4);
  act.neg_sums = (int32_t*)start;
  return act;
}

bcq_status check(const bcq_context* context, int32_t num, const bcq_weight* const* w,
                 const float* x, int64_t ldx, int64_t num_tokens, bcq_precision precision,
                 float* const* y, const int64_t* ldy) {
  if (context == nullptr || context->kernels == nullptr || w == nullptr || y == nullptr ||
      ldy == nullptr || num < 1 || num > kMaxFused || num_tokens < 0)
    return BCQ_BAD_ARGUMENT;
  if (precision < BCQ_EXACT || precision > BCQ_INT8_TOKEN) return BCQ_BAD_ARGUMENT;
  if (x == nullptr && num_tokens > 0) return BCQ_BAD_ARGUMENT;
  const bcq_weight* shaped = nullptr;  // the first with codes
  for (int32_t i = 0; i < num; i++) {
    if (w[i] == nullptr || (y[i] == nullptr && num_tokens > 0)) return BCQ_BAD_ARGUMENT;
    if (w[i]->in_features != w[0]->in_features || ldx < w[i]->in_features ||
        ldy[i] < w[i]->out_features)
      return BCQ_BAD_SHAPE;
    if (w[i]->bits == 16) continue;
    if (precision == BCQ_INT8_TOKEN &&
        (w[i]->num_groups != 1 || w[i]->in_features > kMaxTokenColumns))
      return BCQ_UNSUPPORTED;
    if (shaped != nullptr && shaped->group_size != w[i]->group_size) return BCQ_BAD_SHAPE;
    shaped = w[i];
  }
  return BCQ_OK;
}

int64_t weight_bytes(const bcq_weight& w) { return w.out_features * w.in_padded / 8 * w.bits; }

/// Cuts the call into tasks: passes over tokens whose activations fit the cache, then panels.
int64_t cut(Job* job, int64_t threads) {
  const bcq_kernels& k = *job->kernels;
  const int64_t tile = job->use_int8 ? job->act.tile : 1;
  const int64_t row_bytes = job->w[0]->in_padded * (job->use_int8 ? 1 : 4);
  int64_t bytes = 0, panels = 0;
  for (int32_t i = 0; i < job->num; i++) {
    bytes += weight_bytes(*job->w[i]);
    panels += ceil_div(job->w[i]->out_features, BCQ_PANEL_ROWS);
  }
  job->token_step = larger(kCacheBytes / row_bytes / tile, 8) * tile;
  job->num_passes = ceil_div(job->num_tokens, job->token_step);
  const int64_t work = bytes * larger(1, smaller(job->num_tokens, job->token_step) / 8);
  const int64_t tasks =
      work <= kSerialBytes ? 1 : smaller(ceil_div(work, kTaskBytes), threads * kTasksPerThread);
  job->panel_step = ceil_div(ceil_div(panels, larger(tasks, 1)), k.tile_panels) * k.tile_panels;
  job->first_task[0] = 0;
  for (int32_t i = 0; i < job->num; i++)
    job->first_task[i + 1] =
        job->first_task[i] +
        ceil_div(ceil_div(job->w[i]->out_features, BCQ_PANEL_ROWS), job->panel_step);
  return tasks;
}

}  // namespace

extern "C" {

bcq_status bcq_linear_scratch(int64_t num_tokens, int64_t in_features, size_t* bytes) {
  if (bytes == nullptr) return BCQ_BAD_ARGUMENT;
  if (num_tokens < 0 || in_features < 1 || in_features > int64_t{1} << 28 ||
      num_tokens > int64_t{1} << 28)
    return BCQ_BAD_SHAPE;
  const int64_t k = padded(in_features);
  // Below 2^58 within the limits above, but more than a size_t of 32 bits can hold.
  const int64_t all =
      kAlign + aligned(num_tokens * k) + 2 * aligned(num_tokens * (k / BCQ_UNIT_COLUMNS) * 4);
  if (all > PTRDIFF_MAX) return BCQ_BAD_SHAPE;
  *bytes = (size_t)all;
  return BCQ_OK;
}

bcq_status bcq_linear(const bcq_context* context, int32_t num, const bcq_weight* const* w,
                      const float* x, int64_t ldx, int64_t num_tokens, bcq_precision precision,
                      float* const* y, const int64_t* ldy, int32_t accumulate, void* scratch,
                      size_t scratch_bytes) {
  const bcq_status status = check(context, num, w, x, ldx, num_tokens, precision, y, ldy);
  if (status != BCQ_OK || num_tokens == 0) return status;
  const bcq_weight* coded = nullptr;
  for (int32_t i = 0; i < num && coded == nullptr; i++)
    if (w[i]->bits != 16) coded = w[i];
  Job job = {};
  job.kernels = context->kernels;
  job.num = num, job.w = w, job.x = x, job.ldx = ldx, job.num_tokens = num_tokens;
  job.y = y, job.ldy = ldy, job.accumulate = accumulate;
  job.use_int8 = precision != BCQ_EXACT && coded != nullptr;
  if (job.use_int8) {
    size_t need = 0;
    const bcq_status fits = bcq_linear_scratch(num_tokens, w[0]->in_features, &need);
    if (fits != BCQ_OK) return fits;
    if (scratch == nullptr || scratch_bytes < need) return BCQ_BAD_ARGUMENT;
    const int64_t tile =
        num_tokens <= context->kernels->gemv_tokens ? num_tokens : context->kernels->tile_tokens;
    uint8_t* start = (uint8_t*)(((uintptr_t)scratch + kAlign - 1) / kAlign * kAlign);
    job.act = lay_out(start, num_tokens, w[0]->in_padded, block_of(*coded, precision), tile);
  }
  const int64_t tasks = cut(&job, bcq_pool_num_threads(context->pool));
  bcq_pool* pool = tasks > 1 ? context->pool : nullptr;
  if (job.use_int8) {
    const bool spread = num_tokens > context->kernels->gemv_tokens;
    bcq_pool_run(spread ? pool : nullptr, ceil_div(num_tokens, job.act.tile), quantize_task, &job);
  }
  bcq_pool_run(pool, job.num_passes * job.first_task[num], gemm_task, &job);
  return BCQ_OK;
}

}  // extern "C"

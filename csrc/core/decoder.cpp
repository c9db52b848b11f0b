/// A decoder block as eleven kernel calls; see bcq/decoder.h.
#include "bcq/decoder.h"

#include <stdint.h>
#include <string.h>

namespace {

constexpr int64_t kTokensPerTask = 8;  // of the pointwise loops, which are short
constexpr int64_t kAlign = 64;
constexpr int64_t kMaxTokens = int64_t{1} << 24;
constexpr int64_t kMaxWidth = int64_t{1} << 28;

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Arrays of a step, cut from the caller's scratch.
struct Scratch {
  float *norm, *q, *k, *v, *attention, *gate, *up;
  void* linear;
  size_t linear_bytes;
};

struct Sizes {
  int64_t hidden, q, kv, intermediate, widest;
};

Sizes sizes_of(const bcq_decoder& d) {
  const int64_t q = d.num_heads * d.head_dim, kv = d.num_kv_heads * d.head_dim;
  return {d.hidden, q, kv, d.intermediate, larger(larger(d.hidden, q), d.intermediate)};
}

bool sound(const bcq_decoder* d) {
  return d != nullptr && d->hidden > 0 && d->hidden <= kMaxWidth && d->intermediate > 0 &&
         d->intermediate <= kMaxWidth && d->head_dim > 0 && d->head_dim <= BCQ_MAX_HEAD_DIM &&
         d->num_kv_heads > 0 && d->num_heads > 0 && d->num_heads <= (1 << 20) &&
         d->num_heads % d->num_kv_heads == 0;
}

bcq_status need(const bcq_decoder& d, int64_t tokens, size_t* linear, size_t* all) {
  if (tokens < 0 || tokens > kMaxTokens) return BCQ_BAD_SHAPE;
  const Sizes s = sizes_of(d);
  const bcq_status status = bcq_linear_scratch(tokens, s.widest, linear);
  if (status != BCQ_OK) return status;
  const int64_t floats = s.hidden + 2 * s.q + 2 * s.kv + 2 * s.intermediate;
  // Below 2^60 within the limits above, but more than a size_t of 32 bits can hold.
  const uint64_t bytes = (uint64_t)*linear + (uint64_t)(tokens * floats * 4 + 8 * kAlign);
  if (bytes > PTRDIFF_MAX) return BCQ_BAD_SHAPE;
  *all = (size_t)bytes;
  return BCQ_OK;
}

bcq_status cut(const bcq_decoder& d, int64_t tokens, void* memory, size_t bytes, Scratch* out) {
  size_t all = 0;
  const bcq_status status = need(d, tokens, &out->linear_bytes, &all);
  if (status != BCQ_OK) return status;
  if (memory == nullptr || bytes < all) return BCQ_BAD_ARGUMENT;
  uintptr_t at = (uintptr_t)memory;
  const auto take = [&at](int64_t floats) {
    at = (at + kAlign - 1) / kAlign * kAlign;
    float* start = (float*)at;
    at += (uintptr_t)floats * 4;
    return start;
  };
  const Sizes s = sizes_of(d);
  out->norm = take(tokens * s.hidden);
  out->q = take(tokens * s.q);
  out->k = take(tokens * s.kv);
  out->v = take(tokens * s.kv);
  out->attention = take(tokens * s.q);
  out->gate = take(tokens * s.intermediate);
  out->up = take(tokens * s.intermediate);
  out->linear = take(0);
  return BCQ_OK;
}

/// What the token-by-token loops of a step share.
struct Step {
  const bcq_context* context;
  const bcq_decoder* d;
  const bcq_block* block;
  const Scratch* s;
  float* x;
  int64_t num_tokens, first_position;
  const float* norm;  // weight of the norm to apply
};

using TokenFn = void (*)(const Step&, int64_t token);
struct TokenLoop {
  const Step* step;
  TokenFn fn;
};

void token_task(void* context, int64_t task, int32_t) {
  const TokenLoop& loop = *(const TokenLoop*)context;
  const int64_t first = task * kTokensPerTask;
  for (int64_t m = first; m < smaller(first + kTokensPerTask, loop.step->num_tokens); m++)
    loop.fn(*loop.step, m);
}

void each_token(const Step& step, TokenFn fn) {
  TokenLoop loop = {&step, fn};
  const int64_t tasks = ceil_div(step.num_tokens, kTokensPerTask);
  bcq_pool_run(tasks > 1 ? step.context->pool : nullptr, tasks, token_task, &loop);
}

void norm_token(const Step& t, int64_t m) {
  t.context->kernels->rmsnorm(t.x + m * t.d->hidden, t.norm, t.d->eps, t.d->hidden,
                              t.s->norm + m * t.d->hidden);
}

void head_norms(const Step& t, float* heads, int64_t num, const float* weight) {
  for (int64_t h = 0; weight != nullptr && h < num; h++) {
    float* head = heads + h * t.d->head_dim;
    t.context->kernels->rmsnorm(head, weight, t.d->eps, t.d->head_dim, head);
  }
}

/// Norms and rotation of one token's queries and keys.
void position_token(const Step& t, int64_t m) {
  const Sizes s = sizes_of(*t.d);
  float* q = t.s->q + m * s.q;
  float* k = t.s->k + m * s.kv;
  head_norms(t, q, t.d->num_heads, t.block->q_norm);
  head_norms(t, k, t.d->num_kv_heads, t.block->k_norm);
  if (t.d->rope_cos == nullptr) return;
  const int64_t at = (t.first_position + m) * (t.d->head_dim / 2);
  const float *cos = t.d->rope_cos + at, *sin = t.d->rope_sin + at;
  t.context->kernels->rope(q, t.d->num_heads, t.d->head_dim, cos, sin);
  t.context->kernels->rope(k, t.d->num_kv_heads, t.d->head_dim, cos, sin);
}

void gate_token(const Step& t, int64_t m) {
  const int64_t at = m * t.d->intermediate;
  t.context->kernels->silu_mul(t.s->gate + at, t.s->up + at, t.d->intermediate, t.s->gate + at);
}

/// Weights with the same activation block go in one call, so their input is quantized once.
bcq_status linear(const Step& t, int32_t num, const bcq_dense* const* dense, const float* x,
                  float* const* y, int32_t accumulate) {
  const bcq_weight* w[3];
  int64_t ldy[3];
  bool together = true;
  for (int32_t i = 0; i < num; i++) {
    w[i] = dense[i]->weight;
    ldy[i] = w[i]->out_features;
    together = together && w[i]->group_size == w[0]->group_size;
  }
  for (int32_t i = 0; i < num; i += together ? num : 1) {
    const bcq_status status =
        bcq_linear(t.context, together ? num : 1, w + i, x, w[0]->in_features, t.num_tokens,
                   t.d->precision, y + i, ldy + i, accumulate, t.s->linear, t.s->linear_bytes);
    if (status != BCQ_OK) return status;
  }
  for (int32_t i = 0; i < num; i++)
    for (int64_t m = 0; dense[i]->bias != nullptr && m < t.num_tokens; m++)
      t.context->kernels->add(dense[i]->bias, ldy[i], y[i] + m * ldy[i]);
  return BCQ_OK;
}

bool shaped(const bcq_dense& dense, int64_t n, int64_t k) {
  return dense.weight != nullptr && dense.weight->out_features == n &&
         dense.weight->in_features == k;
}

bcq_status check_block(const bcq_context* context, const bcq_decoder* d, const bcq_block* b,
                       const bcq_kv* kv, const float* x, int64_t tokens, int64_t first) {
  if (context == nullptr || context->kernels == nullptr || b == nullptr || kv == nullptr ||
      (x == nullptr && tokens > 0) || b->attention_norm == nullptr || b->mlp_norm == nullptr)
    return BCQ_BAD_ARGUMENT;
  if (!sound(d) || tokens < 0 || first < 0 || first > kv->capacity - tokens) return BCQ_BAD_SHAPE;
  const bool roped = d->rope_cos != nullptr && d->rope_sin != nullptr;
  if (roped && (first > d->num_positions - tokens || d->head_dim % 2 != 0)) return BCQ_BAD_SHAPE;
  const Sizes s = sizes_of(*d);
  const bool fits =
      shaped(b->q, s.q, s.hidden) && shaped(b->k, s.kv, s.hidden) && shaped(b->v, s.kv, s.hidden) &&
      shaped(b->o, s.hidden, s.q) && shaped(b->gate, s.intermediate, s.hidden) &&
      shaped(b->up, s.intermediate, s.hidden) && shaped(b->down, s.hidden, s.intermediate);
  return fits && kv->num_kv_heads == d->num_kv_heads && kv->head_dim == d->head_dim ? BCQ_OK
                                                                                    : BCQ_BAD_SHAPE;
}

bcq_status attend(const Step& t, const bcq_kv* kv) {
  const Sizes s = sizes_of(*t.d);
  bcq_status status =
      bcq_kv_append(t.context, kv, t.first_position, t.num_tokens, t.s->k, s.kv, t.s->v, s.kv);
  if (status != BCQ_OK) return status;
  bcq_attention a = {};
  a.kv = kv;
  a.q = t.s->q, a.ldq = s.q;
  a.out = t.s->attention, a.ldo = s.q;
  a.num_tokens = t.num_tokens;
  a.first_position = t.first_position;
  a.num_heads = t.d->num_heads;
  a.window = t.block->window;
  a.scale = 1.0f / __builtin_sqrtf((float)t.d->head_dim);
  a.alibi = t.d->alibi;
  return bcq_attend(t.context, &a);
}

}  // namespace

extern "C" {

bcq_status bcq_decoder_scratch(const bcq_decoder* decoder, int64_t num_tokens, size_t* bytes) {
  size_t linear_bytes = 0;
  if (bytes == nullptr) return BCQ_BAD_ARGUMENT;
  return sound(decoder) ? need(*decoder, num_tokens, &linear_bytes, bytes) : BCQ_BAD_SHAPE;
}

bcq_status bcq_decoder_block(const bcq_context* context, const bcq_decoder* decoder,
                             const bcq_block* block, const bcq_kv* kv, float* x, int64_t num_tokens,
                             int64_t first_position, void* scratch, size_t scratch_bytes) {
  bcq_status status = check_block(context, decoder, block, kv, x, num_tokens, first_position);
  if (status != BCQ_OK || num_tokens == 0) return status;
  Scratch s;
  status = cut(*decoder, num_tokens, scratch, scratch_bytes, &s);
  if (status != BCQ_OK) return status;
  Step t = {context, decoder, block, &s, x, num_tokens, first_position, block->attention_norm};
  each_token(t, norm_token);
  const bcq_dense* qkv[] = {&block->q, &block->k, &block->v};
  float* qkv_out[] = {s.q, s.k, s.v};
  status = linear(t, 3, qkv, s.norm, qkv_out, 0);
  if (status != BCQ_OK) return status;
  if (decoder->rope_cos != nullptr || block->q_norm != nullptr) each_token(t, position_token);
  status = attend(t, kv);
  if (status != BCQ_OK) return status;
  const bcq_dense* o[] = {&block->o};
  status = linear(t, 1, o, s.attention, &x, 1);
  if (status != BCQ_OK) return status;
  t.norm = block->mlp_norm;
  each_token(t, norm_token);
  const bcq_dense* gate_up[] = {&block->gate, &block->up};
  float* gate_up_out[] = {s.gate, s.up};
  status = linear(t, 2, gate_up, s.norm, gate_up_out, 0);
  if (status != BCQ_OK) return status;
  each_token(t, gate_token);
  const bcq_dense* down[] = {&block->down};
  return linear(t, 1, down, s.gate, &x, 1);
}

bcq_status bcq_decoder_head(const bcq_context* context, const bcq_decoder* decoder,
                            const float* norm, const bcq_weight* head, const float* x,
                            int64_t num_tokens, float* logits, void* scratch,
                            size_t scratch_bytes) {
  if (context == nullptr || context->kernels == nullptr || norm == nullptr || head == nullptr ||
      x == nullptr || logits == nullptr)
    return BCQ_BAD_ARGUMENT;
  if (!sound(decoder) || head->in_features != decoder->hidden) return BCQ_BAD_SHAPE;
  Scratch s;
  const bcq_status status = cut(*decoder, num_tokens, scratch, scratch_bytes, &s);
  if (status != BCQ_OK || num_tokens == 0) return status;
  Step t = {context, decoder, nullptr, &s, (float*)x, num_tokens, 0, norm};
  each_token(t, norm_token);
  const bcq_dense dense = {head, nullptr};
  const bcq_dense* one[] = {&dense};
  return linear(t, 1, one, s.norm, &logits, 0);
}

}  // extern "C"

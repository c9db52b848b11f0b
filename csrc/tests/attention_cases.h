/// Cases of kv_append and attention. Included once, by kernels_test.cpp.
#ifndef BCQ_TESTS_ATTENTION_CASES_H_
#define BCQ_TESTS_ATTENTION_CASES_H_

#include "tests/checks.h"

namespace {

struct AttentionShape {
  int head_dim, num_heads, num_kv_heads, first_position, num_tokens, window;
  bool has_alibi;
  bool is_spoiled;  ///< the newest position, which only the last token sees, holds NaN
};

constexpr AttentionShape kAttentionShapes[] = {
    {16, 1, 1, 0, 1, 0, false, false},    {16, 4, 4, 0, 17, 0, false, false},
    {32, 4, 2, 5, 3, 0, true, false},     {48, 6, 1, 63, 2, 0, false, true},
    {64, 9, 3, 0, 5, 0, false, false},    {64, 9, 3, 127, 1, 0, false, false},
    {64, 9, 3, 128, 1, 0, false, false},  {64, 5, 1, 130, 1, 0, true, false},
    {64, 2, 2, 40, 40, 16, false, false}, {80, 7, 1, 3, 11, 7, true, true},
    {96, 8, 2, 100, 4, 64, false, false}, {128, 4, 1, 250, 7, 0, false, false},
    {128, 2, 2, 64, 65, 1, false, false}, {256, 3, 1, 20, 9, 33, true, false},
    {256, 1, 1, 300, 2, 0, false, true},
};
constexpr int kElementBytes[] = {4, 2, 1};

/// Zeroed memory for `capacity` positions, of exact size.
bcq_kv make_cache(int32_t type, const AttentionShape& s, int64_t capacity) {
  const int64_t count = s.num_kv_heads * capacity * s.head_dim, rows = s.num_kv_heads * capacity;
  bcq_kv kv = {type, s.num_kv_heads, s.head_dim, capacity, nullptr, nullptr, nullptr, nullptr};
  kv.keys =
      memset(take_bytes(count * kElementBytes[type]), 0, (size_t)(count * kElementBytes[type]));
  kv.values =
      memset(take_bytes(count * kElementBytes[type]), 0, (size_t)(count * kElementBytes[type]));
  if (type != BCQ_KV_INT8) return kv;
  kv.key_scales = (float*)memset(take<float>(rows), 0, (size_t)rows * 4);
  kv.value_scales = (float*)memset(take<float>(rows), 0, (size_t)rows * 4);
  return kv;
}

/// The same bytes, or NaN beside NaN.
void check_cached(const char* what, int32_t type, const void* found, const void* wanted,
                  int64_t count) {
  for (int64_t i = 0; i < count; i++) {
    if (type == BCQ_KV_F32) {
      check_same(what, 0, i, ((const float*)found)[i], ((const float*)wanted)[i]);
    } else if (type == BCQ_KV_F16) {
      const int a = ((const uint16_t*)found)[i], b = ((const uint16_t*)wanted)[i];
      const bool both_nan = (a & 0x7fff) > 0x7c00 && (b & 0x7fff) > 0x7c00;
      check(a == b || both_nan, what, 0, i, a, b);
    } else {
      const int a = ((const int8_t*)found)[i], b = ((const int8_t*)wanted)[i];
      check(a == b, what, 0, i, a, b);
    }
  }
}

void check_caches(const bcq_kv& kv, const bcq_kv& truth) {
  const int64_t rows = kv.num_kv_heads * kv.capacity;
  check_cached("key", kv.type, kv.keys, truth.keys, rows * kv.head_dim);
  check_cached("value", kv.type, kv.values, truth.values, rows * kv.head_dim);
  for (int64_t i = 0; kv.type == BCQ_KV_INT8 && i < rows; i++) {
    check_same("key scale", 0, i, kv.key_scales[i], truth.key_scales[i]);
    check_same("value scale", 0, i, kv.value_scales[i], truth.value_scales[i]);
  }
}

/// Fills the truth's cache and the tier's with the same tokens, and compares them.
void fill_caches(const bcq_kernels& t, const AttentionShape& s, const bcq_kv& kv,
                 const bcq_kv& truth, int64_t num) {
  const int64_t width = s.num_kv_heads * s.head_dim;
  float* k = take_floats(width);
  float* v = take_floats(width);
  for (int64_t at = 0; at < num; at++) {
    fill_random(k, width);
    fill_random(v, width);
    if (at == num - 1 && s.is_spoiled) k[width - 2] = NAN, v[1] = INFINITY;
    t.kv_append(&kv, at, k, v);
    bcq_kernels_scalar.kv_append(&truth, at, k, v);
  }
  check_caches(kv, truth);
}

/// What float16 rounds, flushes or cannot hold, and an int8 cache's limits.
void run_cache_edges(const bcq_kernels& t) {
  snprintf(current_case, sizeof(current_case), "kv_append at its limits");
  const AttentionShape s = {16, 1, 1, 0, 1, 0, false, false};
  const float values[32] = {1.0f,         2049.0f,  2051.0f, 65504.0f, 65519.0f,
                            65520.0f,     70000.0f, -1e30f,  INFINITY, NAN,
                            1e-7f,        5e-8f,    2e-8f,   6.1e-5f,  -6.09e-5f,
                            8.940697e-8f, 0.0f,     -0.0f,   1e-36f,   -1e-40f};
  for (int32_t type = BCQ_KV_F32; type <= BCQ_KV_INT8; type++) {
    const bcq_kv kv = make_cache(type, s, 32), truth = make_cache(type, s, 32);
    for (int64_t at = 0; at < 17; at++) {
      t.kv_append(&kv, at, values + at % 16, values + 16 - at % 16);
      bcq_kernels_scalar.kv_append(&truth, at, values + at % 16, values + 16 - at % 16);
    }
    check_caches(kv, truth);
    give_all_back();
  }
}

float cached(const bcq_kv& kv, const void* data, const float* scales, int64_t index, int64_t row) {
  if (kv.type == BCQ_KV_INT8) return (float)((const int8_t*)data)[index] * scales[row];
  if (kv.type == BCQ_KV_F32) return ((const float*)data)[index];
  const int half = ((const uint16_t*)data)[index], exponent = half >> 10 & 31;
  if (exponent == 31) return INFINITY;
  return ldexpf((float)((half & 1023) + (exponent ? 1024 : 0)), (exponent ? exponent : 1) - 25);
}

/// What one row of the output may be off by.
///
/// A score sums D products, so it is off by (D + 4) roundings of its magnitudes, a weight by that
/// twice (itself and the sum); weights and values then take one rounding a position, and the
/// running softmax a few a block of 64.
double attention_bound(const bcq_attention& a, int64_t token, int64_t head) {
  const bcq_kv& kv = *a.kv;
  const int64_t kv_head = head / (a.num_heads / kv.num_kv_heads), last = a.first_position + token;
  const int64_t first = a.window > 0 && last >= a.window ? last - a.window + 1 : 0;
  const float* q = a.q + token * a.ldq + head * kv.head_dim;
  double most_score = 0.0, most_value = 0.0;
  for (int64_t at = first; at <= last; at++) {
    const int64_t row = kv_head * kv.capacity + at;
    double score = 0.0;
    for (int64_t i = 0; i < kv.head_dim; i++) {
      const int64_t key = (row - at % 16) * kv.head_dim + i * 16 + at % 16;
      score += fabs((double)q[i] * cached(kv, kv.keys, kv.key_scales, key, row));
      const int64_t value = row * kv.head_dim + i;
      most_value = fmax(most_value, fabs(cached(kv, kv.values, kv.value_scales, value, row)));
    }
    score *= fabs((double)a.scale);
    if (a.alibi) score += a.alibi[head] * (double)(last - at);
    most_score = fmax(most_score, score);
  }
  const double positions = (double)(last - first + 1);
  return kUlp * most_value * (2 * ((double)kv.head_dim + 8) * most_score + 3 * positions + 32);
}

void check_attention(const bcq_attention& a, const float* truth) {
  const int64_t width = a.num_heads * a.kv->head_dim;
  double bound = 0.0;  // of a head of a token; under qemu it takes most of the time
  for (int64_t i = 0; i < a.num_tokens * a.ldo; i++) {
    const int64_t m = i / a.ldo, c = i % a.ldo;
    if (c < width && c % a.kv->head_dim == 0) bound = attention_bound(a, m, c / a.kv->head_dim);
    if (c >= width || !isfinite(truth[i]))
      check_same("out", m, c, a.out[i], truth[i]);
    else
      check_close("out", m, c, a.out[i], truth[i], bound);
  }
}

void run_attention_shape(const bcq_kernels& t, const AttentionShape& s, int32_t type) {
  snprintf(current_case, sizeof(current_case),
           "attention: D %d, heads %d / %d, first %d, tokens %d, window %d, type %d", s.head_dim,
           s.num_heads, s.num_kv_heads, s.first_position, s.num_tokens, s.window, type);
  random_state = (uint64_t)s.head_dim;
  const int64_t num = s.first_position + s.num_tokens, capacity = ceil_div(num, 16) * 16;
  const bcq_kv kv = make_cache(type, s, capacity), truth_kv = make_cache(type, s, capacity);
  fill_caches(t, s, kv, truth_kv, num);
  const int64_t width = s.num_heads * s.head_dim, ld = width + 3;
  float* q = take_floats(s.num_tokens * ld);
  float* out = take_floats(s.num_tokens * ld);
  float* truth = take_floats(s.num_tokens * ld);
  float* slopes = take_floats(s.num_heads);
  fill_random(q, s.num_tokens * ld);
  for (int64_t i = 0; i < s.num_tokens * ld; i++) out[i] = truth[i] = -12345.5f;
  for (int h = 0; h < s.num_heads; h++) slopes[h] = exp2f((float)-h - 1.0f);
  bcq_attention a = {&kv,
                     q,
                     ld,
                     out,
                     ld,
                     s.num_tokens,
                     s.first_position,
                     s.num_heads,
                     s.window,
                     0.125f,
                     s.has_alibi ? slopes : nullptr};
  bcq_attention wanted = a;
  wanted.out = truth;
  const int64_t rows = (int64_t)s.num_tokens * s.num_heads / s.num_kv_heads, cut = rows / 3;
  for (int64_t h = 0; h < s.num_kv_heads; h++) {
    t.attention(&a, h, 0, cut);
    t.attention(&a, h, cut, rows);
    bcq_kernels_scalar.attention(&wanted, h, 0, rows);
  }
  check_attention(a, truth);
  give_all_back();
}

void run_attention(const bcq_kernels& t) {
  run_cache_edges(t);
  for (const AttentionShape& s : kAttentionShapes)
    for (int32_t type = BCQ_KV_F32; type <= BCQ_KV_INT8; type++) run_attention_shape(t, s, type);
}

}  // namespace

#endif  // BCQ_TESTS_ATTENTION_CASES_H_

/// Tests of the cache and of attention on one tier: `attention_test <tier>`.
#include "bcq/kernels.h"
#include "kernel_check.h"

namespace {

const bcq_kernels* kernels;

/// A cache of its own exact size with random keys and values.
struct Cache {
  bcq_kv kv;
  size_t bytes;
  Buffer<uint8_t>* memory;

  Cache(bcq_kv_type type, int64_t heads, int64_t dim, int64_t positions) {
    const int64_t capacity = (positions + 15) / 16 * 16;
    CHECK(bcq_kv_bytes(type, heads, dim, capacity, &bytes) == BCQ_OK);
    memory = new Buffer<uint8_t>((int64_t)bytes);
    CHECK(bcq_kv_init(type, heads, dim, capacity, memory->get(), bytes, &kv) == BCQ_OK);
    Buffer<float> k(positions * heads * dim), v(positions * heads * dim);
    fill(k.get(), positions * heads * dim, 1.0f);
    fill(v.get(), positions * heads * dim, 1.0f);
    const bcq_context context = {kernels, nullptr};
    CHECK(bcq_kv_append(&context, &kv, 0, positions, k.get(), heads * dim, v.get(), heads * dim) ==
          BCQ_OK);
  }
  ~Cache() { delete memory; }
  Cache(const Cache&) = delete;
  Cache& operator=(const Cache&) = delete;

  double value(const void* array, const float* scales, int64_t at, int64_t row) const {
    if (kv.type == BCQ_KV_F32) return ((const float*)array)[at];
    if (kv.type == BCQ_KV_F16) return from_f16(((const uint16_t*)array)[at]);
    return (double)((const int8_t*)array)[at] * scales[row];
  }
  double key_at(int64_t head, int64_t position, int64_t d) const {
    const int64_t block = head * (kv.capacity / 16) + position / 16;
    return value(kv.keys, kv.key_scales, (block * kv.head_dim + d) * 16 + position % 16,
                 head * kv.capacity + position);
  }
  double value_at(int64_t head, int64_t position, int64_t d) const {
    const int64_t row = head * kv.capacity + position;
    return value(kv.values, kv.value_scales, row * kv.head_dim + d, row);
  }
};

/// One row in float64, straight from the definition.
void naive_row(const Cache& cache, const bcq_attention& a, int64_t token, int64_t head,
               double* out) {
  const int64_t dim = a.kv->head_dim, group = a.num_heads / a.kv->num_kv_heads;
  const int64_t kv_head = head / group, last = a.first_position + token;
  const int64_t begin = a.window > 0 && a.window <= last ? last + 1 - a.window : 0;
  const float* q = a.q + token * a.ldq + head * dim;
  double* score = new double[(size_t)last + 1];
  double top = -INFINITY, sum = 0;
  for (int64_t j = begin; j <= last; j++) {
    double s = 0;
    for (int64_t d = 0; d < dim; d++) s += q[d] * cache.key_at(kv_head, j, d);
    score[j] = s * a.scale - (a.alibi ? a.alibi[head] * (double)(last - j) : 0.0);
    if (score[j] > top) top = score[j];
  }
  for (int64_t d = 0; d < dim; d++) out[d] = 0;
  for (int64_t j = begin; j <= last; j++) {
    const double weight = exp(score[j] - top);
    sum += weight;
    for (int64_t d = 0; d < dim; d++) out[d] += weight * cache.value_at(kv_head, j, d);
  }
  for (int64_t d = 0; d < dim; d++) out[d] /= sum;
  delete[] score;
}

struct Shape {
  bcq_kv_type type;
  int64_t tokens, first, group, dim, window;
  bool has_alibi;
};

constexpr int64_t kKvHeads = 2;
constexpr float kSlopes[8] = {0.5f, 0.25f, 0.125f, 0.0625f, 0.7f, 0.3f, 0.01f, 0.002f};

/// A problem: random queries over a cache, rows with gaps between them.
struct Problem {
  Cache cache;
  int64_t ld;
  Buffer<float> q, out;
  bcq_attention a;

  Problem(const Shape& s, float largest)
      : cache(s.type, kKvHeads, s.dim, s.first + s.tokens),
        ld(kKvHeads * s.group * s.dim + 3),
        q(s.tokens * ld - 3),
        out(s.tokens * ld - 3) {
    fill(q.get(), s.tokens * ld - 3, largest);
    a = bcq_attention{&cache.kv,
                      q.get(),
                      ld,
                      out.get(),
                      ld,
                      s.tokens,
                      s.first,
                      kKvHeads * s.group,
                      s.window,
                      1.0f / sqrtf((float)s.dim),
                      s.has_alibi ? kSlopes : nullptr};
  }
  void run(bcq_pool* pool) const {
    const bcq_context context = {kernels, pool};
    CHECK(bcq_attend(&context, &a) == BCQ_OK);
  }
  /// |values| < 1; float32 sums of up to a few hundred terms and scores below 8: 5e-6 is ten
  /// times what is seen.
  void check_rows() const {
    double row[BCQ_MAX_HEAD_DIM];
    for (int64_t t = 0; t < a.num_tokens; t++)
      for (int64_t h = 0; h < a.num_heads; h++) {
        naive_row(cache, a, t, h, row);
        for (int64_t d = 0; d < a.kv->head_dim; d++)
          CHECK(fabs(out[t * ld + h * a.kv->head_dim + d] - row[d]) < 5e-6);
      }
  }
};

void test_attention_matches_float64() {
  const int64_t tokens[] = {1, 2, 5, 16, 33}, firsts[] = {0, 1, 15, 16, 100};
  const int64_t groups[] = {1, 3, 4}, dims[] = {16, 64, 80, 96, 128, 256}, windows[] = {0, 1, 20};
  int64_t count = 0;
  for (int64_t m : tokens)
    for (int64_t first : firsts)
      for (int64_t dim : dims)
        for (int type = 0; type < 3; type++, count++) {
          const Problem p({(bcq_kv_type)type, m, first, groups[count / 2 % 3], dim,
                           windows[count / 3 % 5 % 3], count / 5 % 2 == 1},
                          2.0f);
          p.run(nullptr);
          p.check_rows();
        }
}

void test_long_contexts_match_float64() {
  for (int type = 0; type < 3; type++) {
    const Shape shapes[] = {{(bcq_kv_type)type, 130, 300, 3, 64, 70, false},
                            {(bcq_kv_type)type, 1, 1000, 3, 64, 0, true},
                            {(bcq_kv_type)type, 3, 700, 1, 128, 0, false}};
    for (const Shape& shape : shapes) {
      const Problem p(shape, 2.0f);
      p.run(nullptr);
      p.check_rows();
    }
  }
}

/// Every row alone, and on three threads: the same bits.
void test_results_depend_on_the_row_alone() {
  bcq_pool* pool;
  CHECK(bcq_pool_create(3, &pool) == BCQ_OK);
  for (int type = 0; type < 3; type++)
    for (int64_t group = 1; group <= 4; group++) {
      const Problem p({(bcq_kv_type)type, 70, 60, group, 80, group == 2 ? 50 : 0, group == 3},
                      4.0f);
      const int64_t num = 70 * p.ld - 3, width = kKvHeads * group * 80;
      Buffer<float> expected(num);
      p.run(nullptr);
      memcpy(expected.get(), p.out.get(), (size_t)num * sizeof(float));
      p.run(pool);
      CHECK(memcmp(expected.get(), p.out.get(), (size_t)num * sizeof(float)) == 0);
      for (int64_t t = 0; t < 70; t++) {
        bcq_attention one = p.a;
        Buffer<float> row(width);
        one.q = p.q.get() + t * p.ld, one.out = row.get();
        one.num_tokens = 1, one.first_position = 60 + t;
        const bcq_context context = {kernels, nullptr};
        CHECK(bcq_attend(&context, &one) == BCQ_OK);
        CHECK(memcmp(expected.get() + t * p.ld, row.get(), (size_t)width * sizeof(float)) == 0);
      }
    }
  bcq_pool_destroy(pool);
}

/// Rows of tokens first .. last - 1 of one head are NaN throughout, all others finite.
void check_nan_rows(const Problem& p, int64_t first, int64_t last, int64_t head_first,
                    int64_t head_last) {
  for (int64_t t = 0; t < p.a.num_tokens; t++)
    for (int64_t h = 0; h < p.a.num_heads; h++)
      for (int64_t d = 0; d < p.a.kv->head_dim; d++) {
        const bool is_hit = t >= first && t < last && h >= head_first && h < head_last;
        CHECK(isnan(p.out[t * p.ld + h * p.a.kv->head_dim + d]) == is_hit);
      }
}

void test_nan_stays_in_its_rows() {
  for (int type = 0; type < 3; type++) {
    const Shape shape = {(bcq_kv_type)type, 20, 60, 3, 64, 8, false};
    {
      const Problem p(shape, 2.0f);
      p.q[7 * p.ld + 4 * 64 + 5] = NAN;
      p.run(nullptr);
      check_nan_rows(p, 7, 8, 4, 5);
    }
    for (int part = 0; part < 2; part++) {  // a key, then a value: seen by 8 tokens of 3 heads
      const Problem p(shape, 2.0f);
      Buffer<float> k(2 * 64), v(2 * 64);
      float* hit = part == 0 ? k.get() : v.get();
      for (int d = 0; d < 64; d++) hit[64 + d] = part == 0 ? NAN : INFINITY;
      if (part == 1) hit[64] = NAN;
      kernels->kv_append(&p.cache.kv, 67, k.get(), v.get());
      p.run(nullptr);
      if (part == 0 || type == BCQ_KV_INT8) check_nan_rows(p, 7, 15, 3, 6);
      for (int64_t t = 0; t < 20; t++)
        for (int64_t i = 0; i < 6 * 64; i++)
          CHECK(isfinite(p.out[t * p.ld + i]) == !(t >= 7 && t < 15 && i >= 3 * 64));
    }
  }
}

/// Scores of thousands: the softmax is one position, never NaN.
void test_extreme_scores_stay_finite() {
  const Problem p({BCQ_KV_F32, 33, 100, 3, 64, 0, true}, 3e4f);
  p.run(nullptr);
  for (int64_t t = 0; t < 33; t++)
    for (int64_t i = 0; i < 6 * 64; i++) CHECK(fabsf(p.out[t * p.ld + i]) <= 1.0f);
}

void test_append_rounds_and_leaves_the_rest() {
  for (int type = 0; type < 3; type++) {
    Cache cache((bcq_kv_type)type, 2, 32, 20);
    Buffer<float> k(64), v(64);
    fill(k.get(), 64, 3.0f), fill(v.get(), 64, 0.1f);
    k[5] = -3.5f, k[40] = 0.5f * 3.0f / 127, k[63] = 3.0f, v[33] = -0.2f;
    const double before = cache.key_at(1, 17, 3), unused = cache.value_at(1, 30, 3);
    kernels->kv_append(&cache.kv, 18, k.get(), v.get());
    CHECK(cache.key_at(1, 17, 3) == before && unused == 0 && cache.key_at(0, 25, 0) == 0);
    for (int i = 0; i < 64; i++) {
      const int64_t h = i / 32, d = i % 32, row = h * cache.kv.capacity + 18;
      const double step_k = type == 2 ? cache.kv.key_scales[row] : type == 1 ? 0x1p-9 : 0;
      const double step_v = type == 2 ? cache.kv.value_scales[row] : type == 1 ? 0x1p-13 : 0;
      CHECK(fabs(cache.key_at(h, 18, d) - k[i]) <= step_k * 0.50001);
      CHECK(fabs(cache.value_at(h, 18, d) - v[i]) <= step_v * 0.50001);
    }
    if (type != BCQ_KV_INT8) continue;
    CHECK(cache.kv.key_scales[18] == 3.5f / 127 && cache.kv.value_scales[32 + 18] == 0.2f / 127);
    CHECK(cache.key_at(1, 18, 8) == 0);  // half a step: to even
    Buffer<float> nothing(64);
    nothing[3] = 1e-36f, nothing[35] = INFINITY;
    kernels->kv_append(&cache.kv, 19, nothing.get(), nothing.get());
    CHECK(cache.kv.key_scales[19] == 0 && isnan(cache.kv.key_scales[32 + 19]));
    CHECK(((int8_t*)cache.kv.values)[(32 + 19) * 32 + 3] == 0);
  }
}

void test_bad_caches_are_refused() {
  size_t bytes = 1;
  CHECK(bcq_kv_bytes(BCQ_KV_INT8, 3, 64, 32, &bytes) == BCQ_OK && bytes == 2 * 3 * 32 * (64 + 4));
  CHECK(bcq_kv_bytes(BCQ_KV_F32, 3, 72, 32, &bytes) == BCQ_BAD_SHAPE);
  CHECK(bcq_kv_bytes(BCQ_KV_F32, 3, 272, 32, &bytes) == BCQ_BAD_SHAPE);
  CHECK(bcq_kv_bytes(BCQ_KV_F32, 3, 64, 33, &bytes) == BCQ_BAD_SHAPE);
  CHECK(bcq_kv_bytes(BCQ_KV_F32, 0, 64, 32, &bytes) == BCQ_BAD_SHAPE);
  CHECK(bcq_kv_bytes(BCQ_KV_F32, INT64_MAX, 64, 32, &bytes) == BCQ_BAD_SHAPE);
  CHECK(bcq_kv_bytes(BCQ_KV_F32, 1 << 20, 256, (int64_t)1 << 40, &bytes) == BCQ_BAD_SHAPE);
  CHECK(bcq_kv_bytes((bcq_kv_type)3, 3, 64, 32, &bytes) == BCQ_BAD_ARGUMENT);
  bcq_kv kv;
  Buffer<uint8_t> memory(4096);
  CHECK(bcq_kv_init(BCQ_KV_F32, 1, 16, 16, memory.get(), 2049, &kv) == BCQ_BAD_ARGUMENT);
  CHECK(bcq_kv_init(BCQ_KV_F32, 1, 16, 16, memory.get() + 1, 2048, &kv) == BCQ_BAD_ARGUMENT);
  CHECK(bcq_kv_init(BCQ_KV_F32, 1, 16, 16, memory.get(), 2048, &kv) == BCQ_OK);
  const bcq_context context = {kernels, nullptr};
  float row[32] = {};
  CHECK(bcq_kv_append(&context, &kv, 15, 2, row, 16, row, 16) == BCQ_BAD_SHAPE);
  CHECK(bcq_kv_append(&context, &kv, 15, INT64_MAX, row, 16, row, 16) == BCQ_BAD_SHAPE);
  CHECK(bcq_kv_append(&context, &kv, -1, 1, row, 16, row, 16) == BCQ_BAD_ARGUMENT);
  CHECK(bcq_kv_append(&context, &kv, 0, 1, row, 15, row, 16) == BCQ_BAD_SHAPE);
  CHECK(bcq_kv_append(&context, &kv, 16, 0, row, 16, row, 16) == BCQ_OK);
  CHECK(bcq_kv_append(nullptr, &kv, 0, 1, row, 16, row, 16) == BCQ_BAD_ARGUMENT);
  const bcq_attention good = {&kv, row, 32, row, 32, 1, 3, 2, 0, 1.0f, nullptr};
  bcq_attention a = good;
  a.first_position = 16;
  CHECK(bcq_attend(&context, &a) == BCQ_BAD_SHAPE);
  a = good, a.num_heads = 0;
  CHECK(bcq_attend(&context, &a) == BCQ_BAD_SHAPE);
  a = good, a.ldo = 31;
  CHECK(bcq_attend(&context, &a) == BCQ_BAD_SHAPE);
  a = good, a.window = -1;
  CHECK(bcq_attend(&context, &a) == BCQ_BAD_ARGUMENT);
  a = good, a.q = nullptr;
  CHECK(bcq_attend(&context, &a) == BCQ_BAD_ARGUMENT);
  a.num_tokens = 0;
  CHECK(bcq_attend(&context, &a) == BCQ_OK);
  CHECK(bcq_attend(&context, nullptr) == BCQ_BAD_ARGUMENT);
}

}  // namespace

int main(int argc, char** argv) {
  const bcq_status status = bcq_kernels_get(argc > 1 ? argv[1] : nullptr, &kernels);
  if (status == BCQ_TIER_NOT_HERE) return printf("attention_test: tier not here\n"), 0;
  CHECK(status == BCQ_OK);
  CHECK(argc < 2 || strcmp(kernels->tier, argv[1]) == 0);
  test_bad_caches_are_refused();
  test_append_rounds_and_leaves_the_rest();
  test_attention_matches_float64();
  test_long_contexts_match_float64();
  test_results_depend_on_the_row_alone();
  test_nan_stays_in_its_rows();
  test_extreme_scores_stay_finite();
  printf("attention_test: all passed on %s\n", kernels->tier);
  return 0;
}

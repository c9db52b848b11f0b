/// Cases of the operations on rows: norms, rotations, activations, softmax, argmax.
/// Included once, by kernels_test.cpp.
#ifndef BCQ_TESTS_ROW_CASES_H_
#define BCQ_TESTS_ROW_CASES_H_

#include "tests/checks.h"

namespace {

constexpr int kLengths[] = {1, 3, 4, 7, 8, 15, 16, 17, 31, 64, 65, 100, 576, 1000};

float* random_row(int64_t num, float size) {
  float* x = take_floats(num);
  for (int64_t i = 0; i < num; i++) x[i] = random_float() * size;
  return x;
}

float* copy_of(const float* x, int64_t num) {
  float* y = take_floats(num);
  memcpy(y, x, sizeof(float) * (size_t)num);
  return y;
}

void start_case(const char* name, int64_t num) {
  snprintf(current_case, sizeof(current_case), "%s of %lld", name, (long long)num);
  random_state = (uint64_t)num;
}

/// Roundings of a sum in at least 4 chains.
double sum_roundings(int64_t num) { return (double)num / 4 + 16; }

void run_rmsnorm(const bcq_kernels& t, int64_t num) {
  start_case("rmsnorm", num);
  const float sizes[] = {1.0f, 1e-4f, 1e4f, 0.0f};
  for (float size : sizes) {
    const float* weight = random_row(num, 1.0f);
    float* x = random_row(num, size);
    float* y = take_floats(num);
    float* truth = take_floats(num);
    bcq_kernels_scalar.rmsnorm(x, weight, 1e-5f, num, truth);
    t.rmsnorm(x, weight, 1e-5f, num, y);
    t.rmsnorm(x, weight, 1e-5f, num, x);  // in place
    for (int64_t i = 0; i < num; i++) {
      check_close("y", 0, i, y[i], truth[i], sum_roundings(num) * kUlp * fabs(truth[i]) + 1e-37);
      check_same("in place", 0, i, x[i], y[i]);
    }
  }
}

void run_rope(const bcq_kernels& t, int64_t head_dim) {
  start_case("rope", head_dim);
  const int64_t heads = 3, half = head_dim / 2, num = heads * head_dim;
  float* x = random_row(num, 1.0f);
  const float* before = copy_of(x, num);
  float* truth = copy_of(x, num);
  float* cosines = take_floats(half);
  float* sines = take_floats(half);
  for (int64_t i = 0; i < half; i++) cosines[i] = cosf((float)i), sines[i] = sinf((float)i);
  t.rope(x, heads, head_dim, cosines, sines);
  bcq_kernels_scalar.rope(truth, heads, head_dim, cosines, sines);
  for (int64_t i = 0; i < num; i++) {
    const int64_t pair = i % head_dim < half ? i + half : i - half;
    // Two products and their sum, each rounded once.
    check_close("x", i / head_dim, i % head_dim, x[i], truth[i],
                3 * kUlp * (fabs((double)before[i]) + fabs((double)before[pair])));
  }
}

void run_silu_mul(const bcq_kernels& t, int64_t num) {
  start_case("silu_mul", num);
  const float special[] = {0.0f,   -0.0f,  100.0f,   -100.0f,   88.0f, -88.2f,
                           -87.0f, 1e-30f, INFINITY, -INFINITY, NAN};
  float* gate = random_row(num, 5.0f);
  float* up = random_row(num, 2.0f);
  for (int64_t i = 1; i < num; i += 3) gate[i] = special[i / 3 % 11];
  float* out = take_floats(num);
  float* truth = take_floats(num);
  bcq_kernels_scalar.silu_mul(gate, up, num, truth);
  t.silu_mul(gate, up, num, out);
  for (int64_t i = 0; i < num; i++)
    // exp within 1.1 ulp, a sum, a quotient and a product; below -88.3 the result may be 0.
    check_close("out", 0, i, out[i], truth[i],
                8 * kUlp * fabs((double)truth[i]) + 4e-37 * fabs((double)up[i]));
  float* over = copy_of(up, num);
  t.silu_mul(gate, over, num, over);
  t.silu_mul(gate, up, num, gate);
  for (int64_t i = 0; i < num; i++) {
    check_same("over up", 0, i, over[i], out[i]);
    check_same("over gate", 0, i, gate[i], out[i]);
  }
}

void run_add(const bcq_kernels& t, int64_t num) {
  start_case("add", num);
  const float* x = random_row(num, 1.0f);
  float* y = random_row(num, 1.0f);
  float* truth = copy_of(y, num);
  t.add(x, num, y);
  bcq_kernels_scalar.add(x, num, truth);
  for (int64_t i = 0; i < num; i++) check_same("y", 0, i, y[i], truth[i]);
}

void check_softmax(const bcq_kernels& t, float* x, int64_t num, float temperature) {
  const float* before = copy_of(x, num);
  float* truth = copy_of(x, num);
  double top = -INFINITY;
  for (int64_t i = 0; i < num; i++) top = fmax(top, before[i]);
  t.softmax(x, num, temperature);
  bcq_kernels_scalar.softmax(truth, num, temperature);
  for (int64_t i = 0; i < num; i++) {
    // The argument is rounded three times and exp is within 1.1 ulp; its tail may be cut to 0.
    const double argument = fmin(fabs((before[i] - top) / temperature), 100.0);
    const double bound = (3 * argument + 4 + sum_roundings(num)) * kUlp * fabs((double)truth[i]);
    check_close("p", 0, i, x[i], truth[i], bound + 1e-37);
  }
}

void run_softmax(const bcq_kernels& t, int64_t num) {
  start_case("softmax", num);
  const float temperatures[] = {1.0f, 0.3f, 2.5f, 0.01f};
  for (float temperature : temperatures) {
    check_softmax(t, random_row(num, 4.0f), num, temperature);
    float* masked = random_row(num, 4.0f);
    for (int64_t i = 0; i < num; i += 2) masked[i] = -INFINITY;
    check_softmax(t, masked, num, temperature);
  }
  float* nothing = take_floats(num);
  for (int64_t i = 0; i < num; i++) nothing[i] = -INFINITY;
  t.softmax(nothing, num, 1.0f);
  for (int64_t i = 0; i < num; i++) check_same("p of -inf", 0, i, nothing[i], 0.0f);
  float* spoiled = random_row(num, 1.0f);
  spoiled[num / 2] = NAN;
  check_softmax(t, spoiled, num, 1.0f);
}

void check_argmax(const bcq_kernels& t, const float* x, int64_t num) {
  const int64_t found = t.argmax(x, num), wanted = bcq_kernels_scalar.argmax(x, num);
  check(found == wanted, "argmax", 0, 0, (double)found, (double)wanted);
}

void run_argmax(const bcq_kernels& t, int64_t num) {
  start_case("argmax", num);
  float* x = random_row(num, 1.0f);
  check_argmax(t, x, num);
  for (int64_t i = 0; i < num; i++) x[i] = floorf(x[i]);  // many equal values
  check_argmax(t, x, num);
  for (int64_t i = 0; i < num; i += 3) x[i] = NAN;
  check_argmax(t, x, num);
  x[num - 1] = INFINITY;
  check_argmax(t, x, num);
  for (int64_t i = 0; i < num; i++) x[i] = i % 2 ? -INFINITY : -1e30f;
  check_argmax(t, x, num);
}

void run_rows(const bcq_kernels& t) {
  for (int num : kLengths) {
    run_rmsnorm(t, num);
    run_rope(t, num * 2);
    run_silu_mul(t, num);
    run_add(t, num);
    give_all_back();
    run_softmax(t, num);
    run_argmax(t, num);
    give_all_back();
  }
  run_argmax(t, 5000);
  give_all_back();
}

}  // namespace

#endif  // BCQ_TESTS_ROW_CASES_H_

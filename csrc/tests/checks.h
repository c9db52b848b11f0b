/// What the C++ kernel tests share: data, memory with exact ends, comparisons and their count.
///
/// Included once, by kernels_test.cpp. C headers only: the runner is also built for WASM and ARM.
#ifndef BCQ_TESTS_CHECKS_H_
#define BCQ_TESTS_CHECKS_H_

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bcq/kernels.h"

extern "C" {
extern const bcq_kernels bcq_kernels_scalar;  // what the other tiers are compared with
}

namespace {

constexpr double kUlp = 0x1p-24;  // relative error of one float operation
constexpr int kMaxPrinted = 20;

int64_t num_checks = 0, num_failures = 0;
char current_case[256];

/// One comparison: counts it, and says what failed.
bool check(bool holds, const char* what, int64_t row, int64_t column, double found, double wanted) {
  num_checks++;
  if (holds) return true;
  if (num_failures++ < kMaxPrinted)
    printf("FAILED %s: %s[%lld, %lld] is %.9g, wanted %.9g\n", current_case, what, (long long)row,
           (long long)column, found, wanted);
  return false;
}

/// The same bits, or NaN beside NaN.
bool check_same(const char* what, int64_t row, int64_t column, float found, float wanted) {
  const bool both_nan = isnan(found) && isnan(wanted);
  return check(both_nan || memcmp(&found, &wanted, 4) == 0, what, row, column, found, wanted);
}

/// At most `bound` apart; what is not finite must be the same.
bool check_close(const char* what, int64_t row, int64_t column, float found, double wanted,
                 double bound) {
  if (!isfinite(wanted)) return check_same(what, row, column, found, (float)wanted);
  return check(fabs((double)found - wanted) <= bound, what, row, column, found, wanted);
}

// Memory of one case. Blocks end where the data ends, so that a sanitizer sees each overrun.

constexpr int kMaxBlocks = 64;
void* blocks[kMaxBlocks];
int num_blocks = 0;

void* take_bytes(int64_t bytes) {
  void* memory = malloc(bytes > 0 ? (size_t)bytes : 1);
  if (memory == nullptr || num_blocks == kMaxBlocks) {
    printf("FAILED: no memory for a test\n");
    exit(1);
  }
  return blocks[num_blocks++] = memory;
}

template <typename T>
T* take(int64_t count) {
  return (T*)take_bytes(count * (int64_t)sizeof(T));
}

/// Floats on an address that only floats may have: 4 bytes past a block's start.
float* take_floats(int64_t count) { return take<float>(count + 1) + 1; }

void give_all_back() {
  while (num_blocks > 0) free(blocks[--num_blocks]);
}

// Data: the same on every machine.

uint64_t random_state = 1;

uint32_t random_bits() {
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)(random_state >> 33);
}

int random_below(int end) { return (int)(random_bits() % (uint32_t)end); }

/// About normal: mean 0, deviation 1.
float random_float() {
  float sum = 0.0f;
  for (int i = 0; i < 12; i++) sum += (float)random_below(1 << 16) / 65536.0f;
  return sum - 6.0f;
}

void fill_random(float* x, int64_t count) {
  for (int64_t i = 0; i < count; i++) x[i] = random_float();
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

#endif  // BCQ_TESTS_CHECKS_H_

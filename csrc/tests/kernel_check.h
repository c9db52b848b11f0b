/// What the kernel tests share: checks, random numbers, buffers that end where they say.
#ifndef BCQ_TESTS_KERNEL_CHECK_H_
#define BCQ_TESTS_KERNEL_CHECK_H_

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <initializer_list>

#include "require.h"

namespace {

/// Uniform in [-1, 1), the same sequence everywhere.
inline float random_float() {
  static uint64_t state = 0x9e3779b97f4a7c15u;
  state = state * 6364136223846793005u + 1442695040888963407u;
  return (float)(int32_t)(state >> 32) * 0x1p-31f;
}

/// `num` values at the end of an allocation and 4 bytes off any wider alignment, so that a
/// sanitizer sees a read beyond the end and a misaligned vector load traps.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t num) : bytes_((size_t)num * sizeof(T) + 4) {
    memory_ = (uint8_t*)calloc(1, bytes_);
    CHECK(memory_ != nullptr);
  }
  ~Buffer() { free(memory_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() const { return (T*)(memory_ + 4); }
  T& operator[](int64_t i) const { return get()[i]; }

 private:
  size_t bytes_;
  uint8_t* memory_;
};

inline void fill(float* x, int64_t num, float scale) {
  for (int64_t i = 0; i < num; i++) x[i] = random_float() * scale;
}

inline double from_f16(uint16_t half) {
  const int exponent = half >> 10 & 31;
  const double fraction = half & 1023;
  const double size = exponent == 31  ? (fraction != 0 ? NAN : INFINITY)
                      : exponent == 0 ? ldexp(fraction, -24)
                                      : ldexp(1024 + fraction, exponent - 25);
  return half & 0x8000 ? -size : size;
}

}  // namespace

#endif  // BCQ_TESTS_KERNEL_CHECK_H_

#include <cmath>

#include "bcq/solver.h"
#include "clones.h"

namespace {

// Rows done at once: a block of 128 columns of them is 16 KB, half of an L1 cache.
constexpr int kStrip = 32;

}  // namespace

BCQ_CLONES
bcq_solver_status bcq_round_block(float* work, float* errors, uint8_t* codes, int64_t row_stride,
                                  const float* upper, int64_t upper_stride, int64_t num_columns,
                                  const int32_t* group_of, const float* scales, const float* zeros,
                                  int32_t max_code, int64_t first, int64_t last) {
  if (!work || !errors || !codes || !upper || !group_of || !scales || !zeros) {
    return BCQ_SOLVER_BAD_ARGUMENT;
  }
  if (num_columns < 1 || num_columns > BCQ_MAX_BLOCK || first < 0 || last < first ||
      last > row_stride || max_code < 1 || max_code > 255) {
    return BCQ_SOLVER_BAD_ARGUMENT;
  }
  const float top = static_cast<float>(max_code);
  alignas(64) float strip[BCQ_MAX_BLOCK][kStrip];
  for (int64_t begin = first; begin < last; begin += kStrip) {
    const int64_t rest = last - begin;
    const int rows = rest < kStrip ? static_cast<int>(rest) : kStrip;
    for (int64_t j = 0; j < num_columns; ++j) {
      const float* column = work + j * row_stride + begin;
      for (int r = 0; r < kStrip; ++r) strip[j][r] = r < rows ? column[r] : 0.0F;
    }
    for (int64_t j = 0; j < num_columns; ++j) {
      const float* scale = scales + group_of[j] * row_stride + begin;
      const float* zero = zeros + group_of[j] * row_stride + begin;
      const float* factor = upper + j * upper_stride;
      alignas(64) float error[kStrip] = {};
      for (int r = 0; r < rows; ++r) {
        float code = std::rint(strip[j][r] / scale[r]) + zero[r];
        code = code < 0.0F ? 0.0F : code;
        code = code > top ? top : code;
        codes[j * row_stride + begin + r] = static_cast<uint8_t>(code);
        error[r] = (strip[j][r] - (code - zero[r]) * scale[r]) / factor[j];
        errors[j * row_stride + begin + r] = error[r];
      }
      for (int64_t later = j + 1; later < num_columns; ++later) {
        const float share = factor[later];
        for (int r = 0; r < kStrip; ++r) strip[later][r] -= share * error[r];
      }
    }
  }
  return BCQ_SOLVER_OK;
}

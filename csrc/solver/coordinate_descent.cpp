#include <algorithm>
#include <cmath>

#include "bcq/solver.h"
#include "clones.h"

namespace {

// Rows done at once: a block of 128 columns of their gradients is 16 KB, half of an L1 cache.
constexpr int kStrip = 32;

// A move must lower the loss by this share of what one step on the column costs; what is less is
// rounding of the gradient, and ties would move back and forth.
constexpr float kLeastGain = 1e-3F;

// What one column of a strip of rows is moved on; pointers are at the strip's first row.
struct Column {
  const float* gradient;
  float diagonal;
  const float* scale;
  const float* zero;
  float top;
  int rows;
};

// Best codes of a column; `move` gets what the weights move by, `gained` the falls of the loss.
inline __attribute__((always_inline)) bool descend_column(const Column& column, uint8_t* code,
                                                          float* move, float* gained) {
  int32_t num_moved = 0;
#pragma omp simd reduction(+ : num_moved)
  for (int r = 0; r < column.rows; ++r) {
    const float s = column.scale[r];
    const float z = column.zero[r];
    const float slope = column.gradient[r];
    const float u = static_cast<float>(code[r]) - z;
    float target = std::rint(u - slope / (column.diagonal * s)) + z;
    target = target < 0.0F ? 0.0F : target;
    target = target > column.top ? column.top : target;
    const float delta = (target - z - u) * s;
    const float gain = -delta * (2.0F * slope + column.diagonal * delta);
    const bool is_better = gain > kLeastGain * column.diagonal * s * s;  // false for NaN
    move[r] = is_better ? delta : 0.0F;
    gained[r] += is_better ? gain : 0.0F;
    code[r] = static_cast<uint8_t>(static_cast<int>(is_better ? target : u + z));
    num_moved += is_better ? 1 : 0;
  }
  return num_moved > 0;
}

}  // namespace

BCQ_CLONES
bcq_solver_status bcq_descend_block(float* gradient, float* errors, uint8_t* codes,
                                    int64_t row_stride, const float* hessian,
                                    int64_t hessian_stride, int64_t num_columns, const float* scale,
                                    const float* zero, int32_t max_code, double* gains,
                                    int64_t first, int64_t last) {
  if (!gradient || !errors || !codes || !hessian || !scale || !zero || !gains) {
    return BCQ_SOLVER_BAD_ARGUMENT;
  }
  if (num_columns < 1 || num_columns > BCQ_MAX_BLOCK || hessian_stride < num_columns || first < 0 ||
      last < first || last > row_stride || max_code < 1 || max_code > 255) {
    return BCQ_SOLVER_BAD_ARGUMENT;
  }
  alignas(64) float strip[BCQ_MAX_BLOCK][kStrip];
  for (int64_t begin = first; begin < last; begin += kStrip) {
    const int rows = static_cast<int>(std::min<int64_t>(kStrip, last - begin));
    for (int64_t j = 0; j < num_columns; ++j) {
      const float* column = gradient + j * row_stride + begin;
      for (int r = 0; r < kStrip; ++r) strip[j][r] = r < rows ? column[r] : 0.0F;
    }
    alignas(64) float gained[kStrip] = {};
    for (int64_t j = 0; j < num_columns; ++j) {
      const float* row = hessian + j * hessian_stride;
      if (!(row[j] > 0.0F)) continue;  // a dead column: nothing to gain
      alignas(64) float move[kStrip] = {};
      const Column column{
          strip[j], row[j], scale + begin, zero + begin, static_cast<float>(max_code), rows};
      if (!descend_column(column, codes + j * row_stride + begin, move, gained)) continue;
      float* error = errors + j * row_stride + begin;
      for (int r = 0; r < rows; ++r) error[r] += move[r];
      for (int64_t other = 0; other < num_columns; ++other) {
        const float share = row[other];
        for (int r = 0; r < kStrip; ++r) strip[other][r] += share * move[r];
      }
    }
    for (int64_t j = 0; j < num_columns; ++j) {
      float* column = gradient + j * row_stride + begin;
      for (int r = 0; r < rows; ++r) column[r] = strip[j][r];
    }
    for (int r = 0; r < rows; ++r) gains[begin + r] += static_cast<double>(gained[r]);
  }
  return BCQ_SOLVER_OK;
}

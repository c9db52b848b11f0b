#include <algorithm>

#include "bcq/solver.h"
#include "clones.h"
#include "float16.h"

namespace {

constexpr int kStrip = 32;   // rows done at once
constexpr int kPanel = 128;  // columns of a strip held as floats: 16 KB, half of an L1 cache

struct Strip {
  const uint8_t* codes;
  int64_t stride;
  int rows;
  alignas(64) float zero[kStrip];

  // u = q - z of one column; 0 in lanes without a row.
  inline __attribute__((always_inline)) void unpack(int64_t column, float* u) const {
    const uint8_t* code = codes + column * stride;
    if (rows == kStrip) {
      for (int r = 0; r < kStrip; ++r) u[r] = static_cast<float>(code[r]) - zero[r];
      return;
    }
    for (int r = 0; r < kStrip; ++r) {
      u[r] = r < rows ? static_cast<float>(code[r]) - zero[r] : 0.0F;
    }
  }
};

// square[r] = u H u^T from the lower triangle, a panel of columns at a time.
inline __attribute__((always_inline)) void quadratic_form(const Strip& strip, const float* hessian,
                                                          int64_t hessian_stride,
                                                          int64_t num_columns, double* square) {
  alignas(64) float panel[kPanel][kStrip];
  for (int64_t start = 0; start < num_columns; start += kPanel) {
    const int64_t stop = std::min<int64_t>(start + kPanel, num_columns);
    for (int64_t j = start; j < stop; ++j) strip.unpack(j, panel[j - start]);
    for (int64_t i = start; i < num_columns; ++i) {
      const float* row = hessian + i * hessian_stride;
      alignas(64) float product[kStrip] = {};
      for (int64_t j = start; j < std::min(i, stop); ++j) {
        for (int r = 0; r < kStrip; ++r) product[r] += row[j] * panel[j - start][r];
      }
      alignas(64) float u[kStrip];
      strip.unpack(i, u);
      const float diagonal = i < stop ? row[i] : 0.0F;
      for (int r = 0; r < kStrip; ++r) {
        square[r] += static_cast<double>(u[r] * (2.0F * product[r] + diagonal * u[r]));
      }
    }
  }
}

// The loss along the scale is a parabola: its float16 minimum, where that is lower.
inline __attribute__((always_inline)) void refit(const double* square, const double* slope,
                                                 int rows, float* scale, double* gains,
                                                 float* step) {
  for (int r = 0; r < rows; ++r) {
    if (!(square[r] > 0.0)) continue;  // every code is the zero, or the input was always 0
    const double before = static_cast<double>(scale[r]);
    const float refitted = to_float16(static_cast<float>(before - slope[r] / square[r]));
    const double delta = static_cast<double>(refitted) - before;
    const double gain = -delta * (2.0 * slope[r] + delta * square[r]);
    if (!(gain > 0.0)) continue;
    step[r] = static_cast<float>(delta);
    scale[r] = refitted;
    gains[r] += gain;
  }
}

}  // namespace

BCQ_CLONES
bcq_solver_status bcq_refit_scale(const float* gradient, float* errors, const uint8_t* codes,
                                  int64_t row_stride, const float* hessian, int64_t hessian_stride,
                                  int64_t num_columns, float* scale, const float* zero,
                                  double* gains, int64_t first, int64_t last) {
  if (!gradient || !errors || !codes || !hessian || !scale || !zero || !gains) {
    return BCQ_SOLVER_BAD_ARGUMENT;
  }
  if (num_columns < 1 || num_columns > BCQ_MAX_GROUP || hessian_stride < num_columns || first < 0 ||
      last < first || last > row_stride) {
    return BCQ_SOLVER_BAD_ARGUMENT;
  }
  for (int64_t begin = first; begin < last; begin += kStrip) {
    const int rows = static_cast<int>(std::min<int64_t>(kStrip, last - begin));
    Strip strip{codes + begin, row_stride, rows, {}};
    for (int r = 0; r < rows; ++r) strip.zero[r] = zero[begin + r];
    double square[kStrip] = {};
    quadratic_form(strip, hessian, hessian_stride, num_columns, square);
    double slope[kStrip] = {};  // u (Q - W) H, half of the loss's derivative by the scale
    alignas(64) float u[kStrip];
    for (int64_t i = 0; i < num_columns; ++i) {
      const float* column = gradient + i * row_stride + begin;
      strip.unpack(i, u);
      for (int r = 0; r < rows; ++r) slope[r] += static_cast<double>(u[r] * column[r]);
    }
    alignas(64) float step[kStrip] = {};
    refit(square, slope, rows, scale + begin, gains + begin, step);
    for (int64_t i = 0; i < num_columns; ++i) {
      float* error = errors + i * row_stride + begin;
      strip.unpack(i, u);
      for (int r = 0; r < rows; ++r) error[r] += step[r] * u[r];
    }
  }
  return BCQ_SOLVER_OK;
}

#include <algorithm>
#include <cmath>

#include "bcq/solver.h"
#include "clones.h"
#include "float16.h"

namespace {

// The best grid so far of one group. The weighted error of a grid is
// sum cost x^2 - gain, gain = 2 s a - s^2 b, a = sum cost x u, b = sum cost u^2, u = q - z.
struct Best {
  float scale = 1.0F;
  float zero = 0.0F;
  float gain = -INFINITY;
};

struct Group {
  const float* x;
  const float* cost;
  int64_t width;
  float top;
};

inline __attribute__((always_inline)) void offer(const Group& group, float scale, float zero,
                                                 bool refit, Best* best) {
  scale = to_float16(scale);
  zero = std::min(zero, group.top);
  if (zero < 1.0F) {  // zero 0 counted from the other end: s (q - 0) = -s ((top - q) - top)
    scale = -scale;
    zero = group.top;
  }
  const float inverse = 1.0F / scale;
  const float low = -zero;
  const float high = group.top - zero;
  float a = 0.0F;
  float b = 0.0F;
#pragma omp simd reduction(+ : a, b)
  for (int64_t i = 0; i < group.width; ++i) {
    float u = std::rint(group.x[i] * inverse);
    u = u < low ? low : u;
    u = u > high ? high : u;
    const float weighted = group.cost[i] * u;
    a += weighted * group.x[i];
    b += weighted * u;
  }
  if (refit && b > 0.0F) scale = to_float16(a / b);
  const float gain = 2.0F * scale * a - scale * scale * b;
  if (gain > best->gain) *best = Best{scale, zero, gain};
}

inline __attribute__((always_inline)) Best search(const Group& group, bool symmetric,
                                                  int num_ratios) {
  float lowest = 0.0F;
  float highest = 0.0F;
#pragma omp simd reduction(min : lowest) reduction(max : highest)
  for (int64_t i = 0; i < group.width; ++i) {
    lowest = std::min(lowest, group.x[i]);
    highest = std::max(highest, group.x[i]);
  }
  const float extreme = std::max(-lowest, highest);
  const float middle_zero = (group.top + 1.0F) / 2.0F;
  const float span = (highest - lowest) / group.top;
  Best best;
  if (extreme == 0.0F) return Best{1.0F, symmetric ? middle_zero : 1.0F, 0.0F};
  if (symmetric) {
    offer(group, 2.0F * extreme / group.top, middle_zero, false, &best);
  } else {
    offer(group, span, std::rint(-lowest / to_float16(span)), false, &best);
  }
  for (int i = 0; i < num_ratios; ++i) {
    const float ratio =
        0.5F + 0.6F * static_cast<float>(i) / static_cast<float>(std::max(1, num_ratios - 1));
    if (symmetric) {
      // |extreme| / 2^(b-1): the longer side of the grid lands on the extreme.
      offer(group, extreme / middle_zero * ratio, middle_zero, true, &best);
      offer(group, -extreme / middle_zero * ratio, middle_zero, true, &best);
      continue;
    }
    // Shrinking the span about its middle moves the zero towards the middle code.
    const float zero = (-lowest / std::max(span, kSmallestScale) - group.top / 2.0F) / ratio;
    for (int step = -1; step <= 1; ++step) {
      offer(group, span * ratio, std::rint(zero + group.top / 2.0F + static_cast<float>(step)),
            true, &best);
    }
  }
  offer(group, best.scale, best.zero, true, &best);
  return best;
}

}  // namespace

BCQ_CLONES
bcq_solver_status bcq_search_grid(const float* weight, int64_t num_rows, int64_t k,
                                  const float* cost, int64_t width, int32_t max_code,
                                  int32_t symmetric, int32_t num_ratios, float* scales,
                                  float* zeros) {
  if (!weight || !cost || !scales || !zeros) return BCQ_SOLVER_BAD_ARGUMENT;
  if (num_rows < 0 || k < 1 || width < 1 || width > BCQ_MAX_GROUP || max_code < 1 ||
      max_code > 255 || num_ratios < 1) {
    return BCQ_SOLVER_BAD_ARGUMENT;
  }
  const int64_t groups = (k + width - 1) / width;
  for (int64_t n = 0; n < num_rows; ++n) {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t first = g * width;
      const Group group{weight + n * k + first, cost + first, std::min(width, k - first),
                        static_cast<float>(max_code)};
      const Best best = search(group, symmetric != 0, num_ratios);
      scales[n * groups + g] = best.scale;
      zeros[n * groups + g] = best.zero;
    }
  }
  return BCQ_SOLVER_OK;
}

/// Scales as the file formats store them.
#ifndef BCQ_SOLVER_FLOAT16_H
#define BCQ_SOLVER_FLOAT16_H

#include <algorithm>
#include <cmath>

constexpr float kSmallestScale = 5.9604644775390625e-8F;  // 2^-24, the smallest positive float16
constexpr float kLargestScale = 65504.0F;

/// Nearest float16, but never zero or infinite; a zero scale (an empty group) becomes 1.
inline float to_float16(float scale) {
  if (scale == 0.0F) return 1.0F;
  const float bounded = std::min(std::max(scale, -kLargestScale), kLargestScale);
  const float rounded = static_cast<float>(static_cast<_Float16>(bounded));
  return rounded == 0.0F ? std::copysign(kSmallestScale, scale) : rounded;
}

#endif  // BCQ_SOLVER_FLOAT16_H

/// Weights, inputs and outputs for the cases of linear_cases.h, and what a product must be.
#ifndef BCQ_TESTS_LINEAR_DATA_H_
#define BCQ_TESTS_LINEAR_DATA_H_

#include "tests/checks.h"

namespace {

enum Pattern { kRandom, kExtreme, kWhole };  // kWhole: results that float32 holds exactly

struct Shape {
  int bits, group_size, has_zeros, n, k, m, accumulate;
  Pattern pattern;
};

/// A weight as given and as packed.
struct Layer {
  bcq_weight w;
  uint8_t* codes;    ///< [N][K]; 16 bits: null
  uint16_t* halves;  ///< [N][K] of 16 bits, else scales [N][G]
  uint8_t* zeros;    ///< [N][G] or null
};

/// float16 of +-2^e; e in -14 .. 15.
uint16_t power_of_two(int e, bool negative) {
  return (uint16_t)((e + 15) << 10 | (negative ? 0x8000 : 0));
}

uint16_t random_half() { return (uint16_t)(random_bits() & 0x83ff) | (uint16_t)(12 << 10); }

double half_value(uint16_t half) {
  const double size = ldexp(1024 + (half & 1023), (half >> 10 & 31) - 25);
  return half & 0x8000 ? -size : size;
}

int random_code(const Shape& s) {
  const int most = (1 << s.bits) - 1;
  return s.pattern == kExtreme ? most * random_below(2) : random_below(most + 1);
}

Layer make_layer(const Shape& s) {
  Layer layer = {};
  const int64_t groups = s.bits == 16 ? s.k : ceil_div(s.k, s.group_size);
  layer.halves = take<uint16_t>(s.n * groups);
  for (int64_t i = 0; i < s.n * groups; i++)
    layer.halves[i] =
        s.pattern == kWhole ? power_of_two(random_below(5) - 4, random_below(2)) : random_half();
  size_t bytes = 0;
  const int group_size = s.bits == 16 ? s.k : s.group_size;
  bcq_status status = bcq_weight_bytes(s.n, s.k, s.bits, group_size, s.has_zeros, &bytes);
  void* blob = take_bytes((int64_t)bytes);
  if (s.bits == 16) {
    if (status == BCQ_OK) status = bcq_weight_pack_f16(layer.halves, s.n, s.k, blob, bytes);
  } else {
    layer.codes = take<uint8_t>((int64_t)s.n * s.k);
    for (int64_t i = 0; i < (int64_t)s.n * s.k; i++) layer.codes[i] = (uint8_t)random_code(s);
    if (s.has_zeros) {
      layer.zeros = take<uint8_t>(s.n * groups);
      for (int64_t i = 0; i < s.n * groups; i++) layer.zeros[i] = (uint8_t)random_code(s);
    }
    if (status == BCQ_OK)
      status = bcq_weight_pack(layer.codes, layer.halves, layer.zeros, s.n, s.k, s.bits,
                               s.group_size, blob, bytes);
  }
  if (status == BCQ_OK) status = bcq_weight_open(blob, bytes, &layer.w);
  check(status == BCQ_OK, "pack's status", 0, 0, status, BCQ_OK);
  return layer;
}

/// Input rows of stride ldx; the gap is NaN, which nobody may read into a result.
float* make_input(const Shape& s, int64_t ldx) {
  const int64_t count = s.m > 0 ? (s.m - 1) * ldx + s.k : 0;
  float* x = take_floats(count);
  for (int64_t i = 0; i < count; i++) {
    const int64_t k = i % ldx;
    x[i] = random_float();
    if (s.pattern == kExtreme) x[i] = random_below(2) ? 1.5f : -1.5f;
    if (s.pattern == kWhole) x[i] = (float)(k == 0 ? 127 : random_below(255) - 127) * 0.25f;
    if (k >= s.k) x[i] = NAN;
  }
  return x;
}

bcq_act make_act(int64_t m, int64_t in_padded, int64_t block, int64_t tile) {
  bcq_act act = {m, in_padded, block, ceil_div(in_padded, block), tile, nullptr, nullptr, nullptr};
  act.codes = take<int8_t>(m * in_padded);
  act.scales = take<float>(m * act.num_blocks);
  act.neg_sums = take<int32_t>(m * act.num_blocks);
  return act;
}

/// Tiles as bcq_linear chooses them.
bcq_act make_act_for(const bcq_kernels& t, int64_t m, int64_t in_padded, int64_t block) {
  const int64_t tile = m > 0 && m <= t.gemv_tokens ? m : t.tile_tokens;
  return make_act(m, in_padded, block, tile);
}

/// Where token m's values lie, as kernels.h says.
int64_t code_index(const bcq_act& act, int64_t m, int64_t k) {
  const int64_t base = m / act.tile * act.tile, left = act.num_tokens - base;
  const int64_t width = left < act.tile ? left : act.tile;
  return base * act.in_padded + k / 4 * 4 * width + (m - base) * 4 + k % 4;
}
int64_t block_index(const bcq_act& act, int64_t m, int64_t b) {
  const int64_t base = m / act.tile * act.tile, left = act.num_tokens - base;
  return base * act.num_blocks + b * (left < act.tile ? left : act.tile) + (m - base);
}

/// Output with a gap of 3 behind each row that must stay as it is.
struct Output {
  float* at;
  int64_t ld;
};

constexpr float kUntouched = -12345.5f;

/// What y[i] holds where a product is added to it.
float start_of(int64_t i) { return (float)(i % 19 - 9) * 0.375f; }

Output make_output(const Shape& s) {
  const Output y = {take_floats((int64_t)s.m * (s.n + 3)), s.n + 3};
  for (int64_t i = 0; i < s.m * y.ld; i++)
    y.at[i] = i % y.ld >= s.n ? kUntouched : s.accumulate ? start_of(i) : NAN;
  return y;
}

/// One product in double, from what was packed.
struct Wanted {
  double value;
  double magnitude;  ///< sum of the magnitudes of what is added up
};

Wanted wanted_at(const Layer& layer, int64_t n, const float* x, const bcq_act* act, int64_t m) {
  const bcq_weight& w = layer.w;
  Wanted sum = {0.0, 0.0};
  for (int64_t k = 0; k < w.in_features; k++) {
    const double a = act ? (double)act->codes[code_index(*act, m, k)] *
                               act->scales[block_index(*act, m, k / act->block)]
                         : x[k];
    const int64_t at = n * w.in_features + k;
    double value, size;
    if (w.bits == 16) {
      value = half_value(layer.halves[at]) * a, size = fabs(value);
    } else {
      const int64_t group = n * w.num_groups + k / w.group_size;
      const int zero = layer.zeros ? layer.zeros[group] : w.zero;
      const double step = half_value(layer.halves[group]) * a;
      value = (layer.codes[at] - zero) * step;
      // Integer sums of codes alone become floats before the zero is taken off.
      size = (act ? layer.codes[at] + zero : abs(layer.codes[at] - zero)) * fabs(step);
    }
    sum.value += value, sum.magnitude += size;
  }
  return sum;
}

}  // namespace

#endif  // BCQ_TESTS_LINEAR_DATA_H_

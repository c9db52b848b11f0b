/// Cases of quantize, gemm_int8, gemm_f32 and embed_row. Included once, by kernels_test.cpp.
#ifndef BCQ_TESTS_LINEAR_CASES_H_
#define BCQ_TESTS_LINEAR_CASES_H_

#include "tests/linear_data.h"

namespace {

void quantize_all(const bcq_kernels& t, const float* x, int64_t ldx, int64_t k,
                  const bcq_act& act) {
  const int64_t cut = act.num_tokens / 2 / act.tile * act.tile;
  t.quantize(x, ldx, k, 0, cut, &act);
  t.quantize(x, ldx, k, cut, act.num_tokens, &act);
}

/// Codes, scales and sums are the same bits on every tier, once they lie in the same order.
void check_acts(const bcq_act& found, const bcq_act& wanted) {
  for (int64_t m = 0; m < found.num_tokens; m++) {
    for (int64_t k = 0; k < found.in_padded; k++) {
      const int a = found.codes[code_index(found, m, k)];
      const int b = wanted.codes[code_index(wanted, m, k)];
      check(a == b, "activation code", m, k, a, b);
    }
    for (int64_t b = 0; b < found.num_blocks; b++) {
      const int64_t i = block_index(found, m, b), j = block_index(wanted, m, b);
      check_same("activation scale", m, b, found.scales[i], wanted.scales[j]);
      check(found.neg_sums[i] == wanted.neg_sums[j], "activation sum", m, b, found.neg_sums[i],
            wanted.neg_sums[j]);
    }
  }
}

/// Where a range of tokens or panels is cut in two: an odd place, so that panels are left over.
int64_t cut_of(int64_t count) { return count > 1 ? (count / 2) | 1 : 0; }

/// All of y, in four calls.
void gemm_int8_all(const bcq_kernels& t, const bcq_weight& w, const bcq_act& act, Output y,
                   int32_t accumulate) {
  const int64_t tiles = ceil_div(act.num_tokens, act.tile);
  const int64_t panels = ceil_div(w.out_features, BCQ_PANEL_ROWS);
  const int64_t tile = cut_of(tiles), panel = cut_of(panels);
  t.gemm_int8(&w, &act, 0, tile, 0, panel, y.at, y.ld, accumulate);
  t.gemm_int8(&w, &act, 0, tile, panel, panels, y.at, y.ld, accumulate);
  t.gemm_int8(&w, &act, tile, tiles, 0, panel, y.at, y.ld, accumulate);
  t.gemm_int8(&w, &act, tile, tiles, panel, panels, y.at, y.ld, accumulate);
}

void gemm_f32_all(const bcq_kernels& t, const bcq_weight& w, const float* x, int64_t ldx, int64_t m,
                  Output y, int32_t accumulate) {
  const int64_t panels = ceil_div(w.out_features, BCQ_PANEL_ROWS);
  const int64_t token = m > 16 ? m / 3 : 0, panel = cut_of(panels);
  t.gemm_f32(&w, x, ldx, 0, token, 0, panel, y.at, y.ld, accumulate);
  t.gemm_f32(&w, x, ldx, 0, token, panel, panels, y.at, y.ld, accumulate);
  t.gemm_f32(&w, x, ldx, token, m, 0, panel, y.at, y.ld, accumulate);
  t.gemm_f32(&w, x, ldx, token, m, panel, panels, y.at, y.ld, accumulate);
}

/// `found` against the scalar tier's `truth`, and the truth against sums over what was packed.
///
/// Bound: `roundings` float operations touch each of the summed magnitudes; then the sum and its
/// addition to y are rounded on both sides.
void check_output(const Shape& s, const Layer& layer, Output found, Output truth, const float* x,
                  int64_t ldx, const bcq_act* act, double roundings, bool is_exact) {
  for (int64_t i = 0; i < s.m * found.ld; i++) {
    const int64_t m = i / found.ld, n = i % found.ld;
    if (n >= s.n) {
      check_same("y's gap", m, n, found.at[i], kUntouched);
      continue;
    }
    const Wanted w = wanted_at(layer, n, x + m * ldx, act, m);
    const double total = w.value + (s.accumulate ? start_of(i) : 0.0f);
    const double last = 2 * kUlp * (fabs(w.value) + fabs(total)) + 1e-37;
    check_close("scalar y", m, n, truth.at[i], total, last + 1e-12 * w.magnitude);
    if (is_exact)
      check_same("exact y", m, n, found.at[i], truth.at[i]);
    else
      check_close("y", m, n, found.at[i], truth.at[i], last + roundings * kUlp * w.magnitude);
  }
}

/// Columns that share an activation scale: they divide a group, or are the whole row.
int64_t block_for(const bcq_weight& w, int choice) {
  if (w.num_groups > 1) return choice % 2 && w.group_size % 64 == 0 ? 64 : 32;
  if (choice % 3 == 0) return w.in_padded;
  return choice % 3 == 1 || w.in_padded < 128 ? 32 : 128;
}

void run_int8(const bcq_kernels& t, const Shape& s, const Layer& layer, const float* x, int64_t ldx,
              int64_t block) {
  const bcq_act act = make_act_for(t, s.m, layer.w.in_padded, block);
  const bcq_act plain = make_act(s.m, layer.w.in_padded, block, 1);
  quantize_all(t, x, ldx, s.k, act);
  quantize_all(bcq_kernels_scalar, x, ldx, s.k, plain);
  check_acts(act, plain);
  const Output y = make_output(s), truth = make_output(s);
  gemm_int8_all(t, layer.w, act, y, s.accumulate);
  gemm_int8_all(bcq_kernels_scalar, layer.w, plain, truth, s.accumulate);
  // Sums below 2^24 become floats without rounding, and powers of two only move the point.
  const bool fits = (int64_t)((1 << s.bits) - 1) * 127 * s.k < 1 << 24;
  const bool is_exact = s.pattern == kWhole && act.num_blocks == 1 && fits;
  // Int to float, zero, activation scale: 3; scale and sum over blocks: one fma each.
  check_output(s, layer, y, truth, x, ldx, &plain, 3.0 + (double)act.num_blocks, is_exact);
}

void run_f32(const bcq_kernels& t, const Shape& s, const Layer& layer, const float* x,
             int64_t ldx) {
  const Output y = make_output(s), truth = make_output(s);
  gemm_f32_all(t, layer.w, x, ldx, s.m, y, s.accumulate);
  gemm_f32_all(bcq_kernels_scalar, layer.w, x, ldx, s.m, truth, s.accumulate);
  const bool fits = s.bits == 16 || (int64_t)((1 << s.bits) - 1) * 127 * s.k < 1 << 24;
  const bool is_exact = s.pattern == kWhole && layer.w.num_groups <= 1 && fits;
  // One fma a column, one a group.
  const double roundings = (double)(layer.w.in_padded + layer.w.num_groups + 2);
  check_output(s, layer, y, truth, x, ldx, nullptr, roundings, is_exact);
}

/// A row as float32: one rounding, so the same bits everywhere.
void run_embed(const bcq_kernels& t, const Shape& s, const Layer& layer) {
  float* row = take_floats(s.k);
  float* truth = take_floats(s.k);
  for (int64_t n = s.n - 1; n >= 0; n -= 7) {
    t.embed_row(&layer.w, n, row);
    bcq_kernels_scalar.embed_row(&layer.w, n, truth);
    for (int64_t k = 0; k < s.k; k++) check_same("embedded", n, k, row[k], truth[k]);
  }
}

/// A token with a NaN and one with an infinity: only their rows may show it.
void spoil_tokens(const Shape& s, float* x, int64_t ldx) {
  if (s.m < 3) return;
  x[s.m / 2 * ldx + s.k / 2] = NAN;
  x[(s.m - 1) * ldx + s.k - 1] = -INFINITY;
}

void run_shape(const bcq_kernels& t, const Shape& s, int index) {
  snprintf(current_case, sizeof(current_case),
           "bits %d, group %d, %s, N %d, K %d, M %d, accumulate %d, pattern %d", s.bits,
           s.group_size, s.has_zeros ? "zeros" : "symmetric", s.n, s.k, s.m, s.accumulate,
           s.pattern);
  random_state = (uint64_t)index * 977 + 1;
  const Layer layer = make_layer(s);
  const int64_t ldx = s.k + 3;
  float* x = make_input(s, ldx);
  if (index % 5 == 0) spoil_tokens(s, x, ldx);
  if (s.bits != 16) run_int8(t, s, layer, x, ldx, block_for(layer.w, index));
  run_f32(t, s, layer, x, ldx);
  run_embed(t, s, layer);
  give_all_back();
}

/// Every `every`-th shape of the table; M, the pattern and accumulation change from shape to shape.
void run_linear_shapes(const bcq_kernels& t, int every) {
  const int all_bits[] = {2, 3, 4, 8, 16}, rows[] = {1, 15, 16, 17, 48, 100};
  const int columns[] = {32, 33, 40, 64, 96, 160, 576, 1000}, groups[] = {32, 64, 96, 128, 0};
  int index = 0;
  for (int bits : all_bits)
    for (int k : columns)
      for (int group : groups)
        for (int has_zeros = 0; has_zeros < 2; has_zeros++)
          for (int n : rows) {
            if (group >= k || (bits == 16 && (group > 0 || has_zeros))) continue;
            index++;
            if (index % every != 0) continue;
            const Shape s = {bits, group > 0 ? group : k, has_zeros,      n,
                             k,    index * 5 % 21,        index % 4 == 1, (Pattern)(index / 2 % 3)};
            run_shape(t, s, index);
          }
}

/// Every number of tokens that a tile can be left with, for every width of codes.
void run_linear_tokens(const bcq_kernels& t, int every) {
  const int all_bits[] = {2, 3, 4, 8, 16};
  for (int bits : all_bits)
    for (int m = 0; m <= 20; m++)
      for (int has_zeros = 0; has_zeros < (bits == 16 ? 1 : 2); has_zeros++)
        for (int pattern = kRandom; pattern <= kWhole; pattern++) {
          if ((m + pattern) % every != 0) continue;
          const Shape s = {bits,      bits == 16 || pattern == kWhole ? 96 : 32,
                           has_zeros, 48,
                           96,        m,
                           m % 2,     (Pattern)pattern};
          run_shape(t, s, 10000 + m * 3 + pattern);
        }
}

/// Blocks whose largest magnitude is at or near a limit, and products that lie between integers.
void run_quantize_edges(const bcq_kernels& t) {
  snprintf(current_case, sizeof(current_case), "quantize at its limits");
  const float largest[] = {0.0f,  1e-45f,  1e-38f, 1e-35f, 1.0000001e-35f, 1.0f,
                           1e38f, 3.4e38f, NAN,    -NAN,   INFINITY,       -INFINITY};
  const int64_t m = sizeof(largest) / sizeof(largest[0]), k = 64;
  float* x = take_floats(m * k);
  for (int64_t i = 0; i < m * k; i++) x[i] = largest[i / k] * (float)(i % 64 - 32) / 31.0f;
  for (int64_t i = 0; i < m; i++) x[i * k + 5] = -largest[i], x[i * k + 40] = 0.5f;
  for (int i = 0; i < 32; i++) x[5 * k + i] = i == 0 ? 127.0f : (float)i - 15.5f;  // ties
  const bcq_act act = make_act_for(t, m, k, 32), plain = make_act(m, k, 32, 1);
  quantize_all(t, x, k, k, act);
  quantize_all(bcq_kernels_scalar, x, k, k, plain);
  check_acts(act, plain);
  const int8_t ties[] = {127, -14, -14, -12, -12};  // of 127, -14.5, -13.5, -12.5, -11.5
  for (int i = 0; i < 5; i++) {
    const int code = act.codes[code_index(act, 5, i)];
    check(code == ties[i], "tie", 5, i, code, ties[i]);
  }
  for (int64_t row = 8; row < m; row++) {
    check_same("scale", row, 0, act.scales[block_index(act, row, 0)], NAN);
    check(act.codes[code_index(act, row, 5)] == 0, "code", row, 5, 1, 0);
  }
  give_all_back();
}

void run_linear(const bcq_kernels& t, int every) {
  run_quantize_edges(t);
  run_linear_tokens(t, every);
  run_linear_shapes(t, every);
}

}  // namespace

#endif  // BCQ_TESTS_LINEAR_CASES_H_

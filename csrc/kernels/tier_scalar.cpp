/// The tier `scalar`: plain loops that run anywhere and say what every other tier must compute.
///
/// It shares nothing with the `.inc` files. Integer sums are exact, float sums run in double and
/// are rounded once, so it is also the reference in tests. It reads activations of any tile and
/// makes tiles of one token. Build it with -ffp-contract=off.
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "bcq/kernels.h"

namespace {

constexpr int kTileTokens = 1;
constexpr int kTilePanels = 1;
constexpr int kGemvTokens = 1;
constexpr float kSmallest = 1e-35f;  // blocks with no larger magnitude count as zero

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

float from_f16(uint16_t half) {
  const uint32_t sign = (uint32_t)(half & 0x8000) << 16;
  const uint32_t exponent = half >> 10 & 31, fraction = half & 1023;
  if (exponent == 31) return float_of(sign | 0x7f800000 | fraction << 13);
  if (exponent == 0) return float_of(sign | bits_of((float)fraction * 0x1p-24f));
  return float_of(sign | (exponent + 112) << 23 | fraction << 13);
}

/// Nearest, ties to even; what lies beyond 65504 by half a step becomes infinite.
uint16_t to_f16(float x) {
  const uint32_t bits = bits_of(x), magnitude = bits & 0x7fffffff;
  const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
  if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return (uint16_t)(sign | 0x7c00);
  if (magnitude < 0x38800000)  // below 2^-14: counted in steps of 2^-24
    return (uint16_t)(sign | (uint16_t)lrintf(float_of(magnitude) * 0x1p24f));
  const uint32_t odd = magnitude >> 13 & 1;
  return (uint16_t)(sign | ((magnitude - 0x38000000 + 0xfff + odd) >> 13));
}

// Where things lie.

/// Codes of row n in the unit of column k.
const uint8_t* unit_at(const bcq_weight* w, int64_t n, int64_t k) {
  const int64_t units = w->in_padded / BCQ_UNIT_COLUMNS;
  return w->codes + (n / BCQ_PANEL_ROWS * units + k / BCQ_UNIT_COLUMNS) * 64 * w->bits;
}

int code_at(const bcq_weight* w, int64_t n, int64_t k) {
  const uint8_t* unit = unit_at(w, n, k);
  const int quad = (int)(k % BCQ_UNIT_COLUMNS / 4);
  const int byte = (int)(n % BCQ_PANEL_ROWS * 4 + k % 4);
  if (w->bits == 8) return unit[quad * 64 + byte];
  if (w->bits == 4) return unit[quad / 2 * 64 + byte] >> quad % 2 * 4 & 15;
  const int low = unit[quad / 4 * 64 + byte] >> quad % 4 * 2 & 3;
  return w->bits == 2 ? low : low | (unit[128 + byte] >> quad & 1) << 2;
}

float value_at_f16(const bcq_weight* w, int64_t n, int64_t k) {
  uint16_t half;
  const int64_t at = k % BCQ_UNIT_COLUMNS * BCQ_PANEL_ROWS + n % BCQ_PANEL_ROWS;
  memcpy(&half, unit_at(w, n, k) + at * 2, 2);
  return from_f16(half);
}

int64_t group_at(const bcq_weight* w, int64_t n, int64_t k) {
  const int64_t group = k / w->group_size;
  return (n / BCQ_PANEL_ROWS * w->num_groups + group) * BCQ_PANEL_ROWS + n % BCQ_PANEL_ROWS;
}

int zero_at(const bcq_weight* w, int64_t n, int64_t k) {
  return w->zeros ? w->zeros[group_at(w, n, k)] : w->zero;
}

float scale_at(const bcq_weight* w, int64_t n, int64_t k) {
  return from_f16(w->scales[group_at(w, n, k)]);
}

/// The tile of token m.
struct Tile {
  int64_t first, width, token;
};

Tile tile_of(const bcq_act* act, int64_t m) {
  const int64_t first = m / act->tile * act->tile;
  return {first, smaller(act->tile, act->num_tokens - first), m - first};
}

int8_t* act_code(const bcq_act* act, int64_t m, int64_t k) {
  const Tile tile = tile_of(act, m);
  return act->codes + tile.first * act->in_padded + (k / 4 * tile.width + tile.token) * 4 + k % 4;
}

int64_t act_block(const bcq_act* act, int64_t m, int64_t block) {
  const Tile tile = tile_of(act, m);
  return tile.first * act->num_blocks + block * tile.width + tile.token;
}

// int8 activations.

/// The scale that makes the largest magnitude 127: 0 for no signal, NaN beside NaN or infinity.
float int8_scale(const float* x, int64_t num) {
  float largest = 0.0f;
  for (int64_t k = 0; k < num; k++) {
    if (!(fabsf(x[k]) < INFINITY)) return NAN;
    largest = fmaxf(largest, fabsf(x[k]));
  }
  return largest > kSmallest ? largest : 0.0f;
}

/// `largest` as int8_scale gives it.
int8_t int8_code(float x, float largest) {
  return largest > 0.0f ? (int8_t)lrintf(x * (127.0f / largest)) : (int8_t)0;
}

void quantize(const float* x, int64_t ldx, int64_t in_features, int64_t first, int64_t last,
              const bcq_act* act) {
  for (int64_t m = first; m < last; m++)
    for (int64_t b = 0; b < act->num_blocks; b++) {
      const int64_t start = b * act->block, stop = smaller(start + act->block, act->in_padded);
      const int64_t held = smaller(stop, in_features);
      const float* row = x + m * ldx;
      const float largest = int8_scale(row + start, held - start);
      int32_t sum = 0;
      for (int64_t k = start; k < stop; k++) {
        const int8_t code = k < in_features ? int8_code(row[k], largest) : (int8_t)0;
        *act_code(act, m, k) = code;
        sum += code;
      }
      act->scales[act_block(act, m, b)] = largest / 127.0f;
      act->neg_sums[act_block(act, m, b)] = -sum;
    }
}

// Linear layers.

double dot_int8(const bcq_weight* w, const bcq_act* act, int64_t m, int64_t n) {
  double total = 0.0;
  for (int64_t b = 0; b < act->num_blocks; b++) {
    const int64_t start = b * act->block, stop = smaller(start + act->block, w->in_features);
    const int zero = zero_at(w, n, start);
    int64_t sum = 0;
    for (int64_t k = start; k < stop; k++)
      sum += (code_at(w, n, k) - zero) * (int64_t)*act_code(act, m, k);
    total += (double)sum * act->scales[act_block(act, m, b)] * scale_at(w, n, start);
  }
  return total;
}

double dot_f32(const bcq_weight* w, const float* x, int64_t n) {
  double total = 0.0;
  for (int64_t k = 0; k < w->in_features; k++) {
    if (w->bits == 16)
      total += (double)value_at_f16(w, n, k) * x[k];
    else
      total += (double)scale_at(w, n, k) * (code_at(w, n, k) - zero_at(w, n, k)) * x[k];
  }
  return total;
}

void put(double value, float* y, int32_t accumulate) {
  *y = accumulate ? *y + (float)value : (float)value;
}

void gemm_int8(const bcq_weight* w, const bcq_act* act, int64_t tile_first, int64_t tile_last,
               int64_t panel_first, int64_t panel_last, float* y, int64_t ldy, int32_t accumulate) {
  const int64_t token_last = smaller(tile_last * act->tile, act->num_tokens);
  const int64_t row_last = smaller(panel_last * BCQ_PANEL_ROWS, w->out_features);
  for (int64_t m = tile_first * act->tile; m < token_last; m++)
    for (int64_t n = panel_first * BCQ_PANEL_ROWS; n < row_last; n++)
      put(dot_int8(w, act, m, n), y + m * ldy + n, accumulate);
}

void gemm_f32(const bcq_weight* w, const float* x, int64_t ldx, int64_t token_first,
              int64_t token_last, int64_t panel_first, int64_t panel_last, float* y, int64_t ldy,
              int32_t accumulate) {
  const int64_t row_last = smaller(panel_last * BCQ_PANEL_ROWS, w->out_features);
  for (int64_t m = token_first; m < token_last; m++)
    for (int64_t n = panel_first * BCQ_PANEL_ROWS; n < row_last; n++)
      put(dot_f32(w, x + m * ldx, n), y + m * ldy + n, accumulate);
}

void embed_row(const bcq_weight* w, int64_t n, float* out) {
  for (int64_t k = 0; k < w->in_features; k++)
    out[k] = w->bits == 16 ? value_at_f16(w, n, k)
                           : (float)(code_at(w, n, k) - zero_at(w, n, k)) * scale_at(w, n, k);
}

// Rows.

void rmsnorm(const float* x, const float* weight, float eps, int64_t num, float* y) {
  double sum = 0.0;
  for (int64_t k = 0; k < num; k++) sum += (double)x[k] * x[k];
  const double factor = 1.0 / sqrt(sum / (double)num + eps);
  for (int64_t k = 0; k < num; k++) y[k] = (float)(x[k] * factor * weight[k]);
}

void rope(float* x, int64_t num_heads, int64_t head_dim, const float* cos, const float* sin) {
  const int64_t half = head_dim / 2;
  for (int64_t h = 0; h < num_heads; h++)
    for (int64_t i = 0; i < half; i++) {
      float* a = x + h * head_dim + i;
      float* b = a + half;
      const double real = *a, imaginary = *b;
      *a = (float)(real * cos[i] - imaginary * sin[i]);
      *b = (float)(imaginary * cos[i] + real * sin[i]);
    }
}

void silu_mul(const float* gate, const float* up, int64_t num, float* out) {
  for (int64_t k = 0; k < num; k++)
    out[k] = (float)(gate[k] / (1.0 + exp(-(double)gate[k])) * up[k]);
}

void add(const float* x, int64_t num, float* y) {
  for (int64_t k = 0; k < num; k++) y[k] += x[k];
}

void softmax(float* x, int64_t num, float temperature) {
  double top = -INFINITY, total = 0.0;
  for (int64_t k = 0; k < num; k++) top = fmax(top, x[k]);  // NaN only where all are
  if (top == -INFINITY) top = 0.0;
  for (int64_t k = 0; k < num; k++) total += exp((x[k] - top) / temperature);
  for (int64_t k = 0; k < num; k++)
    x[k] = total == 0.0 ? 0.0f : (float)(exp((x[k] - top) / temperature) / total);
}

int64_t argmax(const float* x, int64_t num) {
  int64_t best = 0;
  for (int64_t k = 1; k < num; k++)
    if (x[k] > x[best] || (isnan(x[best]) && !isnan(x[k]))) best = k;
  return best;
}

// The cache.

int64_t key_index(const bcq_kv* kv, int64_t head, int64_t at, int64_t i) {
  return (head * kv->capacity + at / 16 * 16) * kv->head_dim + i * 16 + at % 16;
}

int64_t value_index(const bcq_kv* kv, int64_t head, int64_t at, int64_t i) {
  return (head * kv->capacity + at) * kv->head_dim + i;
}

void store_cached(int32_t type, void* values, int64_t index, float x, float largest) {
  if (type == BCQ_KV_F32) ((float*)values)[index] = x;
  if (type == BCQ_KV_F16) ((uint16_t*)values)[index] = to_f16(x);
  if (type == BCQ_KV_INT8) ((int8_t*)values)[index] = int8_code(x, largest);
}

float load_cached(int32_t type, const void* values, int64_t index) {
  if (type == BCQ_KV_F32) return ((const float*)values)[index];
  if (type == BCQ_KV_F16) return from_f16(((const uint16_t*)values)[index]);
  return ((const int8_t*)values)[index];
}

void kv_append(const bcq_kv* kv, int64_t at, const float* k, const float* v) {
  for (int64_t h = 0; h < kv->num_kv_heads; h++, k += kv->head_dim, v += kv->head_dim) {
    const float key_largest = int8_scale(k, kv->head_dim);
    const float value_largest = int8_scale(v, kv->head_dim);
    for (int64_t i = 0; i < kv->head_dim; i++) {
      store_cached(kv->type, kv->keys, key_index(kv, h, at, i), k[i], key_largest);
      store_cached(kv->type, kv->values, value_index(kv, h, at, i), v[i], value_largest);
    }
    if (kv->type != BCQ_KV_INT8) continue;
    kv->key_scales[h * kv->capacity + at] = key_largest / 127.0f;
    kv->value_scales[h * kv->capacity + at] = value_largest / 127.0f;
  }
}

double score(const bcq_attention* a, const float* q, int64_t head, int64_t kv_head, int64_t at,
             int64_t distance) {
  const bcq_kv* kv = a->kv;
  double sum = 0.0;
  for (int64_t i = 0; i < kv->head_dim; i++)
    sum += (double)q[i] * load_cached(kv->type, kv->keys, key_index(kv, kv_head, at, i));
  if (kv->type == BCQ_KV_INT8) sum *= kv->key_scales[kv_head * kv->capacity + at];
  sum *= a->scale;
  return a->alibi ? sum - (double)a->alibi[head] * (double)distance : sum;
}

/// One token and head: the largest score first, then the weighted mean of the values.
void attend_row(const bcq_attention* a, int64_t token, int64_t head, int64_t kv_head) {
  const bcq_kv* kv = a->kv;
  const float* q = a->q + token * a->ldq + head * kv->head_dim;
  const int64_t last = a->first_position + token;
  const int64_t first = a->window > 0 && last - a->window + 1 > 0 ? last - a->window + 1 : 0;
  double top = -INFINITY, total = 0.0, sum[BCQ_MAX_HEAD_DIM] = {};
  for (int64_t at = first; at <= last; at++)
    top = fmax(top, score(a, q, head, kv_head, at, last - at));
  if (top == -INFINITY) top = 0.0;
  for (int64_t at = first; at <= last; at++) {
    double weight = exp(score(a, q, head, kv_head, at, last - at) - top);
    total += weight;
    if (kv->type == BCQ_KV_INT8) weight *= kv->value_scales[kv_head * kv->capacity + at];
    for (int64_t i = 0; i < kv->head_dim; i++)
      sum[i] += weight * load_cached(kv->type, kv->values, value_index(kv, kv_head, at, i));
  }
  float* out = a->out + token * a->ldo + head * kv->head_dim;
  for (int64_t i = 0; i < kv->head_dim; i++) out[i] = total == 0.0 ? 0.0f : (float)(sum[i] / total);
}

void attention(const bcq_attention* a, int64_t kv_head, int64_t first, int64_t last) {
  const int64_t group = a->num_heads / a->kv->num_kv_heads;
  for (int64_t r = first; r < last; r++)
    attend_row(a, r / group, kv_head * group + r % group, kv_head);
}

}  // namespace

#define BCQ_TIER scalar
#include "kernels/table.inc"

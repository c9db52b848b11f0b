/// The vector vocabulary of the `.inc` files on WASM SIMD: 4 lanes, a panel is 4 vectors.
///
/// With __wasm_relaxed_simd__ the dot product of narrow codes and the multiply-add are the relaxed
/// ones. The engine may fuse a relaxed multiply-add or not; dot products are exact either way.
#ifndef BCQ_SIMD_WASM_SIMD128_H_
#define BCQ_SIMD_WASM_SIMD128_H_

#include <stdint.h>
#include <string.h>
#include <wasm_simd128.h>

namespace {

constexpr int kLanes = 4;
constexpr int kVectorRegisters = 16;  // of engines on x86-64
constexpr int kTilePanels = 1;
constexpr int kTileTokens = 2;  // 8 accumulators
constexpr int kGemvTokens = 4;
constexpr int kExactTokens = 2;
constexpr int32_t kBias8 = 0;

using vf = v128_t;
using vi = v128_t;

inline vf vf_zero() { return wasm_f32x4_const_splat(0.0f); }
inline vf vf_set1(float x) { return wasm_f32x4_splat(x); }
inline vf vf_load(const float* p) { return wasm_v128_load(p); }
inline void vf_store(float* p, vf x) { wasm_v128_store(p, x); }
inline vf vf_add(vf a, vf b) { return wasm_f32x4_add(a, b); }
inline vf vf_sub(vf a, vf b) { return wasm_f32x4_sub(a, b); }
inline vf vf_mul(vf a, vf b) { return wasm_f32x4_mul(a, b); }
/// a where a > b, else b: b where either is NaN, as on x86.
inline vf vf_max(vf a, vf b) { return wasm_f32x4_pmax(b, a); }
inline vf vf_min(vf a, vf b) { return wasm_f32x4_pmin(b, a); }
inline vf vf_div(vf a, vf b) { return wasm_f32x4_div(a, b); }
/// a * b + c
inline vf vf_fma(vf a, vf b, vf c) {
#ifdef __wasm_relaxed_simd__
  return wasm_f32x4_relaxed_madd(a, b, c);
#else
  return wasm_f32x4_add(wasm_f32x4_mul(a, b), c);
#endif
}
inline float vf_sum(vf a) {
  const vf half = vf_add(a, wasm_i32x4_shuffle(a, a, 2, 3, 0, 1));
  return wasm_f32x4_extract_lane(vf_add(half, wasm_i32x4_shuffle(half, half, 1, 0, 3, 2)), 0);
}
inline float vf_largest(vf a) {
  const vf half = vf_max(a, wasm_i32x4_shuffle(a, a, 2, 3, 0, 1));
  return wasm_f32x4_extract_lane(vf_max(half, wasm_i32x4_shuffle(half, half, 1, 0, 3, 2)), 0);
}
inline vf vf_from_vi(vi a) { return wasm_f32x4_convert_i32x4(a); }
inline vf vf_from_bits(vi a) { return a; }
inline vi vi_bits(vf a) { return a; }

inline vi vi_zero() { return wasm_i32x4_const_splat(0); }
inline vi vi_set1(int32_t x) { return wasm_i32x4_splat(x); }
inline vi vi_load(const void* p) { return wasm_v128_load(p); }
inline vi vi_add(vi a, vi b) { return wasm_i32x4_add(a, b); }
inline vi vi_sub(vi a, vi b) { return wasm_i32x4_sub(a, b); }
inline vi vi_and(vi a, vi b) { return wasm_v128_and(a, b); }
inline vi vi_or(vi a, vi b) { return wasm_v128_or(a, b); }
inline vi vi_max(vi a, vi b) { return wasm_i32x4_max(a, b); }
inline int32_t vi_largest(vi a) {
  const vi half = vi_max(a, wasm_i32x4_shuffle(a, a, 2, 3, 0, 1));
  return wasm_i32x4_extract_lane(vi_max(half, wasm_i32x4_shuffle(half, half, 1, 0, 3, 2)), 0);
}
inline int32_t vi_sum(vi a) {
  const vi half = vi_add(a, wasm_i32x4_shuffle(a, a, 2, 3, 0, 1));
  return wasm_i32x4_extract_lane(vi_add(half, wasm_i32x4_shuffle(half, half, 1, 0, 3, 2)), 0);
}
template <int n>
inline vi vi_srl(vi a) {
  return wasm_u32x4_shr(a, n);
}
template <int n>
inline vi vi_sll(vi a) {
  return wasm_i32x4_shl(a, n);
}
/// Nearest integer, ties to even.
inline vi vi_round(vf a) { return wasm_i32x4_trunc_sat_f32x4(wasm_f32x4_nearest(a)); }
/// Four bytes of memory in every lane; no alignment.
inline vi vi_quad(const int8_t* p) { return wasm_v128_load32_splat(p); }
inline vi vi_load_u8(const uint8_t* p) {
  return wasm_u32x4_extend_low_u16x8(wasm_u16x8_extend_low_u8x16(wasm_v128_load32_zero(p)));
}
inline vi vi_load_s8(const int8_t* p) {
  return wasm_i32x4_extend_low_i16x8(wasm_i16x8_extend_low_i8x16(wasm_v128_load32_zero(p)));
}
/// Lanes must lie in -128 .. 127.
inline void vi_store_s8(int8_t* p, vi a) {
  const vi half = wasm_i16x8_narrow_i32x4(a, a);
  wasm_v128_store32_lane(p, wasm_i8x16_narrow_i16x8(half, half), 0);
}

/// WASM has no float16; a product moves the exponent, which is exact for subnormals too.
inline vf vf_load_f16(const uint16_t* p) {
  const vi half = wasm_u32x4_load16x4(p);
  const vi sign = vi_sll<16>(vi_and(half, vi_set1(0x8000)));
  const vf magnitude = vf_mul(vi_sll<13>(vi_and(half, vi_set1(0x7fff))), vf_set1(0x1p112f));
  // An exponent of only ones (infinity, NaN) keeps only ones.
  const vi special = vi_and(wasm_f32x4_ge(magnitude, vf_set1(0x1p16f)), vi_set1(0x7f800000));
  return vi_or(vi_or(magnitude, special), sign);
}
/// Nearest float16, ties to even; beyond 65504 infinity, any NaN a quiet NaN.
inline void vf_store_f16(uint16_t* p, vf x) {
  const vi bits = vi_and(x, vi_set1(0x7fffffff));
  const vi sign = vi_and(vi_srl<16>(x), vi_set1(0x8000));
  // Below 2^-14 the addition of 0.5 lets the float adder round at 2^-24.
  const vi tiny = vi_sub(vf_add(bits, vf_set1(0.5f)), vi_set1(0x3f000000));
  const vi odd = vi_and(vi_srl<13>(bits), vi_set1(1));
  const vi normal = vi_srl<13>(vi_add(vi_add(bits, odd), vi_set1(0xfff - (112 << 23))));
  const vi nan = vi_and(wasm_i32x4_gt(bits, vi_set1(0x7f800000)), vi_set1(0x200));
  const vi special = vi_or(nan, vi_set1(0x7c00));
  vi half = wasm_v128_bitselect(tiny, normal, wasm_i32x4_lt(bits, vi_set1(113 << 23)));
  half = wasm_v128_bitselect(special, half, wasm_i32x4_ge(bits, vi_set1(143 << 23)));
  half = vi_or(half, sign);
  wasm_v128_store64_lane(p, wasm_u16x8_narrow_i32x4(half, half), 0);
}

/// acc[lane] + sum of four products; w bytes 0 .. 255, a bytes signed. Even and odd bytes apart,
/// each as 16-bit numbers, so that the 2-way dot product adds within its lane.
inline vi dot8(vi acc, vi w, vi a) {
  const vi even =
      wasm_i32x4_dot_i16x8(vi_and(w, vi_set1(0x00ff00ff)), wasm_i16x8_shr(wasm_i16x8_shl(a, 8), 8));
  const vi odd = wasm_i32x4_dot_i16x8(wasm_u16x8_shr(w, 8), wasm_i16x8_shr(a, 8));
  return vi_add(acc, vi_add(even, odd));
}
/// The same with w bytes 0 .. 127. The relaxed one is exact there: no pair of products exceeds 16
/// bits.
inline vi dot7(vi acc, vi w, vi a) {
#ifdef __wasm_relaxed_simd__
  return wasm_i32x4_relaxed_dot_i8x16_i7x16_add(a, w, acc);
#else
  return dot8(acc, w, a);
#endif
}
inline void prefetch(const void*) {}

}  // namespace

#endif  // BCQ_SIMD_WASM_SIMD128_H_

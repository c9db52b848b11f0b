/// The vector vocabulary of the `.inc` files on ARMv8 NEON: 4 lanes, a panel is 4 vectors.
///
/// ARMv8.0 has no 4-way dot product; simd_neon_dotprod.h brings its own and includes this file.
#ifndef BCQ_SIMD_NEON_H_
#define BCQ_SIMD_NEON_H_

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

namespace {

constexpr int kLanes = 4;
constexpr int kVectorRegisters = 32;
constexpr int kTilePanels = 1;
constexpr int kTileTokens = 4;  // 16 accumulators and 4 of codes: with 6 the compilers spill
constexpr int kGemvTokens = 4;
constexpr int kExactTokens = 4;
constexpr int32_t kBias8 = 128;  // the dot products are signed: 8-bit codes move to -128 .. 127

using vf = float32x4_t;
using vi = int32x4_t;

inline vf vf_zero() { return vdupq_n_f32(0.0f); }
inline vf vf_set1(float x) { return vdupq_n_f32(x); }
inline vf vf_load(const float* p) { return vld1q_f32(p); }
inline void vf_store(float* p, vf x) { vst1q_f32(p, x); }
inline vf vf_add(vf a, vf b) { return vaddq_f32(a, b); }
inline vf vf_sub(vf a, vf b) { return vsubq_f32(a, b); }
inline vf vf_mul(vf a, vf b) { return vmulq_f32(a, b); }
/// a where a > b, else b: b where either is NaN, as on x86.
inline vf vf_max(vf a, vf b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline vf vf_min(vf a, vf b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
inline vf vf_div(vf a, vf b) { return vdivq_f32(a, b); }
/// a * b + c
inline vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
inline float vf_sum(vf a) { return vaddvq_f32(a); }
inline float vf_largest(vf a) { return vmaxvq_f32(a); }
inline vf vf_from_vi(vi a) { return vcvtq_f32_s32(a); }
inline vf vf_load_f16(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
inline void vf_store_f16(uint16_t* p, vf x) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x))); }
inline vf vf_from_bits(vi a) { return vreinterpretq_f32_s32(a); }
inline vi vi_bits(vf a) { return vreinterpretq_s32_f32(a); }

inline vi vi_zero() { return vdupq_n_s32(0); }
inline vi vi_set1(int32_t x) { return vdupq_n_s32(x); }
inline vi vi_load(const void* p) { return vreinterpretq_s32_u8(vld1q_u8((const uint8_t*)p)); }
inline vi vi_add(vi a, vi b) { return vaddq_s32(a, b); }
inline vi vi_sub(vi a, vi b) { return vsubq_s32(a, b); }
inline vi vi_and(vi a, vi b) { return vandq_s32(a, b); }
inline vi vi_or(vi a, vi b) { return vorrq_s32(a, b); }
inline vi vi_max(vi a, vi b) { return vmaxq_s32(a, b); }
inline int32_t vi_largest(vi a) { return vmaxvq_s32(a); }
inline int32_t vi_sum(vi a) { return vaddvq_s32(a); }
template <int n>
inline vi vi_srl(vi a) {
  if constexpr (n == 0)
    return a;
  else
    return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(a), n));
}
template <int n>
inline vi vi_sll(vi a) {
  if constexpr (n == 0)
    return a;
  else
    return vshlq_n_s32(a, n);
}
/// Nearest integer, ties to even.
inline vi vi_round(vf a) { return vcvtnq_s32_f32(a); }
/// Four bytes of memory in every lane; no alignment.
inline vi vi_quad(const int8_t* p) {
  int32_t x;
  memcpy(&x, p, 4);
  return vdupq_n_s32(x);
}
inline vi vi_load_u8(const uint8_t* p) {
  const uint8x16_t bytes = vreinterpretq_u8_s32(vi_quad((const int8_t*)p));
  return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vget_low_u8(bytes)))));
}
inline vi vi_load_s8(const int8_t* p) {
  const int8x16_t bytes = vreinterpretq_s8_s32(vi_quad(p));
  return vmovl_s16(vget_low_s16(vmovl_s8(vget_low_s8(bytes))));
}
/// Lanes must lie in -128 .. 127.
inline void vi_store_s8(int8_t* p, vi a) {
  const int16x4_t half = vmovn_s32(a);
  const int32_t x = vget_lane_s32(vreinterpret_s32_s8(vmovn_s16(vcombine_s16(half, half))), 0);
  memcpy(p, &x, 4);
}

/// An 8-bit code minus kBias8, as a signed byte.
inline vi signed_codes(vi w) { return veorq_s32(w, vdupq_n_s32((int32_t)0x80808080)); }

#ifndef __ARM_FEATURE_DOTPROD
/// acc[lane] + sum of four products; w bytes -128 .. 127, a bytes -127 .. 127. Two products make
/// at most 2 * 128 * 127 = 32512, so their sum fits 16 bits.
inline vi dot7(vi acc, vi w, vi a) {
  const int8x16_t codes = vreinterpretq_s8_s32(w), x = vreinterpretq_s8_s32(a);
  const int16x8_t low = vmull_s8(vget_low_s8(codes), vget_low_s8(x));
  const int16x8_t high = vmull_high_s8(codes, x);
  return vpadalq_s16(acc, vpaddq_s16(low, high));
}
/// The same with w bytes 0 .. 255, each taken as w - kBias8.
inline vi dot8(vi acc, vi w, vi a) { return dot7(acc, signed_codes(w), a); }
#endif

inline void prefetch(const void* p) { __builtin_prefetch(p); }

}  // namespace

#endif  // BCQ_SIMD_NEON_H_

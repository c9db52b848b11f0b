/// The vector vocabulary of the `.inc` files on AVX-512 with VNNI: 16 lanes.
#ifndef BCQ_SIMD_AVX512VNNI_H_
#define BCQ_SIMD_AVX512VNNI_H_

#include <stdint.h>
#include <string.h>

// GCC 12's own header reads "undefined" vectors on purpose and warns of every use (PR 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop

namespace {

constexpr int kLanes = 16;
constexpr int kTileTokens = 6;   // 2 panels x 6 tokens: 12 int32 and 12 float accumulators
constexpr int kTilePanels = 2;   // panels that one tile covers
constexpr int kGemvTokens = 8;   // 1 panel x 8 tokens: one pass over the weights
constexpr int kExactTokens = 8;  // 1 panel x 8 tokens in float32
constexpr int kVectorRegisters = 32;
constexpr int32_t kBias8 = 0;  // what dot8 takes from every 8-bit code

using vf = __m512;
using vi = __m512i;

inline vf vf_zero() { return _mm512_setzero_ps(); }
inline vf vf_set1(float x) { return _mm512_set1_ps(x); }
inline vf vf_load(const float* p) { return _mm512_loadu_ps(p); }
inline void vf_store(float* p, vf x) { _mm512_storeu_ps(p, x); }
inline vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
inline vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
inline vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
/// a > b ? a : b and a < b ? a : b in every lane: b where one is NaN.
inline vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
inline vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
inline vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
/// a * b + c
inline vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
inline float vf_sum(vf a) { return _mm512_reduce_add_ps(a); }
/// Largest lane; no lane may be NaN.
inline float vf_largest(vf a) { return _mm512_reduce_max_ps(a); }
inline vf vf_from_vi(vi a) { return _mm512_cvtepi32_ps(a); }
inline vf vf_load_f16(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
inline void vf_store_f16(uint16_t* p, vf x) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
inline vf vf_from_bits(vi a) { return _mm512_castsi512_ps(a); }
inline vi vi_bits(vf a) { return _mm512_castps_si512(a); }

inline vi vi_zero() { return _mm512_setzero_si512(); }
inline vi vi_set1(int32_t x) { return _mm512_set1_epi32(x); }
inline vi vi_load(const void* p) { return _mm512_loadu_si512(p); }
inline vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
inline vi vi_sub(vi a, vi b) { return _mm512_sub_epi32(a, b); }
inline vi vi_and(vi a, vi b) { return _mm512_and_si512(a, b); }
inline vi vi_or(vi a, vi b) { return _mm512_or_si512(a, b); }
inline vi vi_max(vi a, vi b) { return _mm512_max_epi32(a, b); }
inline int32_t vi_largest(vi a) { return _mm512_reduce_max_epi32(a); }
inline int32_t vi_sum(vi a) { return _mm512_reduce_add_epi32(a); }
template <int n>
inline vi vi_srl(vi a) {
  if constexpr (n == 0) return a;
  return _mm512_srli_epi32(a, n);
}
template <int n>
inline vi vi_sll(vi a) {
  if constexpr (n == 0) return a;
  return _mm512_slli_epi32(a, n);
}
/// Nearest integer, ties to even.
inline vi vi_round(vf a) { return _mm512_cvtps_epi32(a); }
inline vi vi_load_u8(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
}
inline vi vi_load_s8(const int8_t* p) {
  return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p));
}
/// Lanes must lie in -128 .. 127.
inline void vi_store_s8(int8_t* p, vi a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(a)); }
/// Four bytes of memory in every lane.
inline vi vi_quad(const int8_t* p) {
  int32_t x;
  memcpy(&x, p, 4);
  return _mm512_set1_epi32(x);
}
/// acc[lane] + sum of four products; w bytes 0 .. 127, a bytes signed.
inline vi dot7(vi acc, vi w, vi a) { return _mm512_dpbusd_epi32(acc, w, a); }
/// The same with w bytes 0 .. 255, each taken as w - kBias8.
inline vi dot8(vi acc, vi w, vi a) { return _mm512_dpbusd_epi32(acc, w, a); }
inline void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }

}  // namespace

#endif  // BCQ_SIMD_AVX512VNNI_H_

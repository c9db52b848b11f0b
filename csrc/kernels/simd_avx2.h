/// The vector vocabulary of the `.inc` files on AVX2 with FMA and F16C: 8 lanes.
#ifndef BCQ_SIMD_AVX2_H_
#define BCQ_SIMD_AVX2_H_

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

namespace {

constexpr int kLanes = 8;
constexpr int kTileTokens = 4;  // 1 panel x 4 tokens: 8 accumulators, 2 of codes, 3 of products
constexpr int kTilePanels = 1;  // two panels x 2 .. 4 tokens are 10 % slower on Zen 5
constexpr int kGemvTokens = 4;  // the arithmetic, not the stream of codes, bounds 2 tokens and more
constexpr int kExactTokens = 4;  // 6 spill with 16-bit weights: 64 GFLOP/s, not 113
constexpr int kVectorRegisters = 16;
constexpr int32_t kBias8 = 128;  // what dot8 takes from every 8-bit code

using vf = __m256;
using vi = __m256i;

inline vf vf_zero() { return _mm256_setzero_ps(); }
inline vf vf_set1(float x) { return _mm256_set1_ps(x); }
inline vf vf_load(const float* p) { return _mm256_loadu_ps(p); }
inline void vf_store(float* p, vf x) { _mm256_storeu_ps(p, x); }
inline vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
inline vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
inline vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
/// a > b ? a : b and a < b ? a : b in every lane: b where one is NaN.
inline vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
inline vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
inline vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
/// a * b + c
inline vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
inline float vf_sum(vf a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
/// Largest lane; no lane may be NaN.
inline float vf_largest(vf a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
inline vf vf_from_vi(vi a) { return _mm256_cvtepi32_ps(a); }
inline vf vf_load_f16(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
}
inline void vf_store_f16(uint16_t* p, vf x) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
inline vf vf_from_bits(vi a) { return _mm256_castsi256_ps(a); }
inline vi vi_bits(vf a) { return _mm256_castps_si256(a); }

inline vi vi_zero() { return _mm256_setzero_si256(); }
inline vi vi_set1(int32_t x) { return _mm256_set1_epi32(x); }
inline vi vi_load(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline vi vi_add(vi a, vi b) { return _mm256_add_epi32(a, b); }
inline vi vi_sub(vi a, vi b) { return _mm256_sub_epi32(a, b); }
inline vi vi_and(vi a, vi b) { return _mm256_and_si256(a, b); }
inline vi vi_or(vi a, vi b) { return _mm256_or_si256(a, b); }
inline vi vi_max(vi a, vi b) { return _mm256_max_epi32(a, b); }
inline int32_t vi_largest(vi a) {
  __m128i x = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  x = _mm_max_epi32(x, _mm_shuffle_epi32(x, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(x, _mm_shuffle_epi32(x, 0xb1)));
}
inline int32_t vi_sum(vi a) {
  __m128i x = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  x = _mm_add_epi32(x, _mm_shuffle_epi32(x, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32(x, 0xb1)));
}
template <int n>
inline vi vi_srl(vi a) {
  if constexpr (n == 0) return a;
  return _mm256_srli_epi32(a, n);
}
template <int n>
inline vi vi_sll(vi a) {
  if constexpr (n == 0) return a;
  return _mm256_slli_epi32(a, n);
}
/// Nearest integer, ties to even.
inline vi vi_round(vf a) { return _mm256_cvtps_epi32(a); }
inline vi vi_load_u8(const uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
}
inline vi vi_load_s8(const int8_t* p) {
  return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p));
}
/// Lanes must lie in -128 .. 127.
inline void vi_store_s8(int8_t* p, vi a) {
  const __m128i x = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  _mm_storel_epi64((__m128i*)p, _mm_packs_epi16(x, x));
}
/// Four bytes of memory in every lane.
inline vi vi_quad(const int8_t* p) {
  int32_t x;
  memcpy(&x, p, 4);
  return _mm256_set1_epi32(x);
}
/// acc[lane] + sum of four products; w bytes 0 .. 127, a bytes signed. Exact: a pair of products
/// is at most 2 * 127 * 127 < 2^15. GCC would gather the sums of a unit into a tree and spill every
/// product; the barrier keeps each sum where it stands (Zen 5, 4 bits: 187 GOP/s without, 263
/// with).
inline vi dot7(vi acc, vi w, vi a) {
  acc = _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), _mm256_set1_epi16(1)));
  __asm__ volatile("" : "+x"(acc));
  return acc;
}
/// The same with w bytes 0 .. 255, each taken as w - kBias8. The sign of w moves to a, which is
/// never -128, and |w| <= 128 is the unsigned factor: a pair is at most 2 * 128 * 127 < 2^15.
inline vi dot8(vi acc, vi w, vi a) {
  const vi centred = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
  return dot7(acc, _mm256_abs_epi8(centred), _mm256_sign_epi8(a, centred));
}
/// Sums of a unit of narrow codes in 16 bits: at most 8 quads * 2 * 15 * 127 = 30480 < 2^15.
#define BCQ_NARROW_SUMS
inline vi dot_narrow(vi part, vi w, vi a) {
  part = _mm256_add_epi16(part, _mm256_maddubs_epi16(w, a));
  __asm__ volatile("" : "+x"(part));  // as in dot7
  return part;
}
inline vi add_narrow(vi acc, vi part) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(part, _mm256_set1_epi16(1)));
}
inline void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }

}  // namespace

#endif  // BCQ_SIMD_AVX2_H_

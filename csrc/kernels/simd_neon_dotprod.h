/// NEON with the 4-way dot product of ARMv8.2 (FEAT_DotProd): only what differs from simd_neon.h.
#ifndef BCQ_SIMD_NEON_DOTPROD_H_
#define BCQ_SIMD_NEON_DOTPROD_H_

#ifndef __ARM_FEATURE_DOTPROD
#error "compile this tier with -march=armv8.2-a+dotprod"
#endif

#include "simd_neon.h"

namespace {

/// acc[lane] + sum of four products; w bytes 0 .. 127, a bytes signed.
inline vi dot7(vi acc, vi w, vi a) {
  return vdotq_s32(acc, vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(a));
}
/// The same with w bytes 0 .. 255, each taken as w - kBias8.
inline vi dot8(vi acc, vi w, vi a) { return dot7(acc, signed_codes(w), a); }

}  // namespace

#endif  // BCQ_SIMD_NEON_DOTPROD_H_

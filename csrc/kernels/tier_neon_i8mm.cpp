/// The tier `neon_i8mm`, built with -march=armv8.2-a+dotprod+i8mm: neon_dotprod, but many tokens
/// meet int8 weights through matrix products.
#include "bcq/kernels.h"
#include "kernels/simd_neon_dotprod.h"
// The order matters: later files use names of earlier ones.
#include "kernels/unit.inc"
//
#include "kernels/quantize.inc"
//
#include "kernels/gemm_int8.inc"
//
#include "kernels/gemm_i8mm.inc"
//
#include "kernels/gemm_f32.inc"
//
#include "kernels/pointwise.inc"
//
#include "kernels/embed.inc"
//
#include "kernels/kv.inc"
//
#include "kernels/attention.inc"

// The table takes this one in its stead.
#define gemm_int8 gemm_i8mm
#define BCQ_TIER neon_i8mm
#include "kernels/table.inc"

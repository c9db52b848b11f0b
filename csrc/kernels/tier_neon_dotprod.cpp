/// The tier `neon_dotprod`, built with -march=armv8.2-a+dotprod.
#include "bcq/kernels.h"
#include "kernels/simd_neon_dotprod.h"
// The order matters: later files use names of earlier ones.
#include "kernels/unit.inc"
//
#include "kernels/quantize.inc"
//
#include "kernels/gemm_int8.inc"
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

#define BCQ_TIER neon_dotprod
#include "kernels/table.inc"

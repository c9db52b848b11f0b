/// The tier `wasm_simd128`, built with -msimd128, and -mrelaxed-simd for its relaxed variant.
#include "bcq/kernels.h"
#include "kernels/simd_wasm_simd128.h"
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

#define BCQ_TIER wasm_simd128
#include "kernels/table.inc"

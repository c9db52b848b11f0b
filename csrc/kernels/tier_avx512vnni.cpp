/// The tier `avx512vnni`, built with the flags of that instruction set.
#include "bcq/kernels.h"
#include "kernels/simd_avx512vnni.h"
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

#define BCQ_TIER avx512vnni
#include "kernels/table.inc"

/// A tier without its matrix products, for the sanitizers: those compile 20 times longer there.
///
/// BCQ_TIER is the tier's name, BCQ_TIER_HEADER its vector vocabulary, in quotes.
#include "bcq/kernels.h"
#include BCQ_TIER_HEADER
// The order matters: later files use names of earlier ones.
#include "kernels/unit.inc"
//
#include "kernels/quantize.inc"

namespace {

void gemm_int8(const bcq_weight*, const bcq_act*, int64_t, int64_t, int64_t, int64_t, float*,
               int64_t, int32_t) {}
void gemm_f32(const bcq_weight*, const float*, int64_t, int64_t, int64_t, int64_t, int64_t, float*,
              int64_t, int32_t) {}

}  // namespace

#include "kernels/pointwise.inc"
//
#include "kernels/embed.inc"
//
#include "kernels/kv.inc"
//
#include "kernels/attention.inc"
//
#include "kernels/table.inc"

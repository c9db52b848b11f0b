/// What the CPU that runs this can do, as far as the kernel tiers ask.
#ifndef BCQ_CORE_CPU_FEATURES_H_
#define BCQ_CORE_CPU_FEATURES_H_

#include <stdint.h>

namespace bcq {

enum CpuFeature : uint32_t {
  kCpuAvx2 = 1u << 0,        ///< AVX2, FMA and F16C, and a system that keeps 256-bit registers
  kCpuAvx512Vnni = 1u << 1,  ///< F, BW, VL, DQ and VNNI, and a system that keeps 512-bit registers
  kCpuDotprod = 1u << 2,     ///< AArch64 SDOT and UDOT
  kCpuI8mm = 1u << 3,        ///< AArch64 SMMLA
};

/// All features of this CPU, or'ed. Asks the CPU or the system each time; it takes a microsecond.
uint32_t cpu_features();

}  // namespace bcq

#endif  // BCQ_CORE_CPU_FEATURES_H_

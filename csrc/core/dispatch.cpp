/// Which tier's kernels run: the one asked for or an error, never another.
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "bcq/kernels.h"
#include "core/cpu_features.h"

extern "C" {
extern const bcq_kernels bcq_kernels_scalar;
#if defined(__x86_64__)
extern const bcq_kernels bcq_kernels_avx512vnni, bcq_kernels_avx2;
#elif defined(__aarch64__)
extern const bcq_kernels bcq_kernels_neon_i8mm, bcq_kernels_neon_dotprod, bcq_kernels_neon;
#elif defined(__wasm__)
extern const bcq_kernels bcq_kernels_wasm_simd128;
#endif
}

namespace {

/// Every tier that any build has.
constexpr const char* kAllTiers[] = {"avx512vnni", "avx2",         "neon_i8mm", "neon_dotprod",
                                     "neon",       "wasm_simd128", "scalar"};

struct Tier {
  const char* name;
  uint32_t needs;  ///< CpuFeature bits
  const bcq_kernels* kernels;
};

/// The tiers of this build, best first.
constexpr Tier kTiers[] = {
#if defined(__x86_64__)
    {"avx512vnni", bcq::kCpuAvx2 | bcq::kCpuAvx512Vnni, &bcq_kernels_avx512vnni},
    {"avx2", bcq::kCpuAvx2, &bcq_kernels_avx2},
#elif defined(__aarch64__)
    {"neon_i8mm", bcq::kCpuDotprod | bcq::kCpuI8mm, &bcq_kernels_neon_i8mm},
    {"neon_dotprod", bcq::kCpuDotprod, &bcq_kernels_neon_dotprod},
    {"neon", 0, &bcq_kernels_neon},
#elif defined(__wasm__)
    {"wasm_simd128", 0, &bcq_kernels_wasm_simd128},  // a module with it loads only where it runs
#endif
    {"scalar", 0, &bcq_kernels_scalar},
};
constexpr int32_t kNumTiers = sizeof(kTiers) / sizeof(kTiers[0]);

struct Names {
  const char* at[kNumTiers];
};

constexpr Names names_of_tiers() {
  Names names = {};
  for (int32_t i = 0; i < kNumTiers; i++) names.at[i] = kTiers[i].name;
  return names;
}

constexpr Names kNames = names_of_tiers();

bool is_known(const char* name) {
  for (const char* known : kAllTiers)
    if (strcmp(name, known) == 0) return true;
  return false;
}

/// BCQ_FORCE_TIER; empty counts as not set.
const char* forced_tier() {
  const char* name = getenv("BCQ_FORCE_TIER");
  return name != nullptr && *name == '\0' ? nullptr : name;
}

bool runs_here(const Tier& tier) { return (bcq::cpu_features() & tier.needs) == tier.needs; }

}  // namespace

extern "C" {

int32_t bcq_tier_names(const char* const** names) {
  if (names != nullptr) *names = kNames.at;
  return kNumTiers;
}

bcq_status bcq_kernels_get(const char* name, const bcq_kernels** out) {
  if (out == nullptr) return BCQ_BAD_ARGUMENT;
  *out = nullptr;
  if (name == nullptr) name = forced_tier();
  for (const Tier& tier : kTiers) {
    if (name != nullptr && strcmp(name, tier.name) != 0) continue;
    if (runs_here(tier)) {
      *out = tier.kernels;
      return BCQ_OK;
    }
    if (name != nullptr) return BCQ_TIER_NOT_HERE;
  }
  return is_known(name) ? BCQ_TIER_NOT_HERE : BCQ_UNKNOWN_TIER;
}

}  // extern "C"

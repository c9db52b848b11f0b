#include "core/cpu_features.h"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <stddef.h>
#include <sys/sysctl.h>
#endif

namespace bcq {

#if defined(__x86_64__) || defined(__i386__)

namespace {

// CPUID leaf 1, ecx.
constexpr uint32_t kFma = 1u << 12, kOsXsave = 1u << 27, kAvx = 1u << 28, kF16c = 1u << 29;
// Leaf 7, ebx and ecx.
constexpr uint32_t kAvx2 = 1u << 5;
constexpr uint32_t kAvx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F, DQ, BW, VL
constexpr uint32_t kAvx512Vnni = 1u << 11;
// XCR0: registers that the system saves when it switches threads.
constexpr uint32_t kYmmState = 0x06, kZmmState = 0xe6;

uint32_t saved_registers() {
  uint32_t low, high;
  __asm__ __volatile__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

}  // namespace

uint32_t cpu_features() {
  uint32_t a, b1, c1, d, b7, c7;
  if (!__get_cpuid(1, &a, &b1, &c1, &d) || !(c1 & kOsXsave)) return 0;
  if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d)) return 0;
  const uint32_t saved = saved_registers();
  const bool has_avx2 = (c1 & kAvx) && (c1 & kFma) && (c1 & kF16c) && (b7 & kAvx2) &&
                        (saved & kYmmState) == kYmmState;
  const bool has_avx512 = has_avx2 && (b7 & kAvx512) == kAvx512 && (c7 & kAvx512Vnni) &&
                          (saved & kZmmState) == kZmmState;
  return (has_avx2 ? kCpuAvx2 : 0u) | (has_avx512 ? kCpuAvx512Vnni : 0u);
}

#elif defined(__aarch64__) && defined(__linux__)

uint32_t cpu_features() {
  // The numbers of <asm/hwcap.h>; older NDK headers lack the second.
  constexpr unsigned long kHwcapDotprod = 1ul << 20, kHwcap2I8mm = 1ul << 13;
  return ((getauxval(AT_HWCAP) & kHwcapDotprod) ? kCpuDotprod : 0u) |
         ((getauxval(AT_HWCAP2) & kHwcap2I8mm) ? kCpuI8mm : 0u);
}

#elif defined(__aarch64__) && defined(__APPLE__)

namespace {

bool has(const char* name) {
  int value = 0;
  size_t size = sizeof(value);
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}

}  // namespace

uint32_t cpu_features() {
  return (has("hw.optional.arm.FEAT_DotProd") ? kCpuDotprod : 0u) |
         (has("hw.optional.arm.FEAT_I8MM") ? kCpuI8mm : 0u);
}

#else

uint32_t cpu_features() { return 0; }

#endif

}  // namespace bcq

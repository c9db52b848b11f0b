/// SHA-256 (FIPS 180-4), with the CPU's instructions for it where it has them.
#ifndef BCQ_RUNTIME_SHA256_H_
#define BCQ_RUNTIME_SHA256_H_

#include <stddef.h>
#include <stdint.h>

namespace bcq {

constexpr size_t kDigestBytes = 32;

/// The digest of `bytes` bytes at `data` (may be null for none) into `digest`.
void sha256(const void* data, size_t bytes, uint8_t digest[kDigestBytes]);

/// The same by plain C++, for tests of the instructions.
void sha256_plain(const void* data, size_t bytes, uint8_t digest[kDigestBytes]);

}  // namespace bcq
#endif  // BCQ_RUNTIME_SHA256_H_

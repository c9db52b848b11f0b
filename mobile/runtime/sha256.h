/// SHA-256 (FIPS 180-4), with the CPU's instructions for it where it has them.
#ifndef BCQ_RUNTIME_SHA256_H_
#define BCQ_RUNTIME_SHA256_H_

#include <stddef.h>
#include <stdint.h>

namespace bcq {

constexpr size_t kDigestBytes = 32;

/// The digest of `bytes` bytes at `data` (may be null for none) into `digest`.
void sha256(const void* data, size_t bytes, uint8_t digest[kDigestBytes]);

/// A message of a queue, and its digest once that is made.
struct Digest {
  const void* data;  ///< may be null for no bytes
  size_t bytes;
  uint8_t value[kDigestBytes];
};

/// Messages that any number of threads digest together.
struct DigestQueue {
  Digest* digests;
  size_t num;
  size_t next;  ///< the first one that no thread has taken; 0 at the start
};

/// Digests messages of the queue until none is left to take, two at a time on this thread: that
/// is about twice as fast as one after the other. Large messages are best put first.
void sha256_drain(DigestQueue* queue);

/// The same by plain C++, for tests of the instructions.
void sha256_plain(const void* data, size_t bytes, uint8_t digest[kDigestBytes]);
void sha256_drain_plain(DigestQueue* queue);

}  // namespace bcq
#endif  // BCQ_RUNTIME_SHA256_H_

/// SHA-512 (FIPS 180-4), which Ed25519 is made of. Plain C++: what is signed is a few bytes.
#ifndef BCQ_RUNTIME_SHA512_H_
#define BCQ_RUNTIME_SHA512_H_

#include <stddef.h>
#include <stdint.h>

namespace bcq {

constexpr size_t kSha512Bytes = 64;

/// One message in the making: `add` any number of times, then `finish` once.
class Sha512 {
 public:
  Sha512();
  /// `bytes` bytes at `data` (may be null for none) more.
  void add(const void* data, size_t bytes);
  /// The digest of everything that was added.
  void finish(uint8_t digest[kSha512Bytes]);

 private:
  static constexpr size_t kBlock = 128;
  /// Takes the whole block in block_.
  void take_block();

  uint64_t state_[8];
  uint64_t bytes_ = 0;  // added
  uint8_t block_[kBlock];
  size_t held_ = 0;  // bytes in block_
};

}  // namespace bcq
#endif  // BCQ_RUNTIME_SHA512_H_

/// Ed25519 (RFC 8032): the check of a signature, and nothing that needs a secret.
///
/// Time depends on the values, all of which are public. Strict where the standard leaves a choice:
/// every number has its only encoding, the equation is that without the cofactor, and a key of
/// small order, under which one signature fits many messages, is none.
#ifndef BCQ_RUNTIME_ED25519_H_
#define BCQ_RUNTIME_ED25519_H_

#include <stddef.h>
#include <stdint.h>

namespace bcq {

constexpr size_t kPublicKeyBytes = 32;
constexpr size_t kSignatureBytes = 64;

/// Whether `key` is a point of the curve in its only encoding, and not of small order.
bool ed25519_is_key(const uint8_t key[kPublicKeyBytes]);

/// Whether `signature` is one of the `bytes` bytes at `message` (may be null for none) by `key`;
/// false also for a key that is none.
bool ed25519_verify(const uint8_t key[kPublicKeyBytes], const void* message, size_t bytes,
                    const uint8_t signature[kSignatureBytes]);

}  // namespace bcq
#endif  // BCQ_RUNTIME_ED25519_H_

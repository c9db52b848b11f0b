/// A package's signature: a file of its own beside it, docs/formats/bcq_package_v1.md.
#ifndef BCQ_RUNTIME_SIGNATURE_H_
#define BCQ_RUNTIME_SIGNATURE_H_

#include "bcq/runtime.h"
#include "runtime/ed25519.h"
#include "runtime/sha256.h"

namespace bcq {

/// Whether the `bytes` bytes of a signature's file are by `key` and of the package whose index has
/// this digest. Errors: those of bcq_package_check_signature.
bcq_status check_signature(const uint8_t digest[kDigestBytes], const uint8_t* signature,
                           size_t bytes, const uint8_t key[kPublicKeyBytes]);

}  // namespace bcq
#endif  // BCQ_RUNTIME_SIGNATURE_H_

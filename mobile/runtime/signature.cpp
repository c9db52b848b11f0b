#include "runtime/signature.h"

#include <string.h>

#include "runtime/error.h"

namespace {

constexpr uint8_t kMagic[8] = {0x89, 'B', 'C', 'S', '\r', '\n', 0x1a, '\n'};
constexpr uint32_t kVersion = 1;
constexpr size_t kVersionAt = 8, kZeroAt = 12, kKeyAt = 16;
constexpr size_t kSignatureAt = kKeyAt + bcq::kPublicKeyBytes;
constexpr size_t kFileBytes = kSignatureAt + bcq::kSignatureBytes;

/// What goes before the index's digest, so that no other use of the key signs the same bytes.
constexpr char kDomain[] = "bcq_package_v1 signature";
constexpr size_t kDomainBytes = sizeof(kDomain) - 1;

uint32_t read_u32(const uint8_t* at) {
  uint32_t value;
  memcpy(&value, at, sizeof(value));
  return value;
}

bcq_status check_file(const uint8_t* signature, size_t bytes) {
  if (signature == nullptr || bytes == 0)
    return bcq::fail(BCQ_BAD_BLOB, "The package has no signature, and one is needed.");
  if (bytes < kKeyAt || memcmp(signature, kMagic, sizeof(kMagic)) != 0)
    return bcq::fail(BCQ_BAD_BLOB,
                     "The %zu bytes of a signature do not begin as one; copy it "
                     "again.",
                     bytes);
  if (read_u32(signature + kVersionAt) != kVersion)
    return bcq::fail(BCQ_UNSUPPORTED, "The signature has version %u; this is version 1.",
                     read_u32(signature + kVersionAt));
  if (bytes != kFileBytes || read_u32(signature + kZeroAt) != 0)
    return bcq::fail(BCQ_BAD_BLOB, "The signature is damaged (%zu bytes of %zu); copy it again.",
                     bytes, kFileBytes);
  return BCQ_OK;
}

}  // namespace

namespace bcq {

bcq_status check_signature(const uint8_t digest[kDigestBytes], const uint8_t* signature,
                           size_t bytes, const uint8_t key[kPublicKeyBytes]) {
  if (!ed25519_is_key(key))
    return fail(BCQ_BAD_ARGUMENT,
                "The public key is no key of Ed25519 (32 bytes that name a point "
                "of large order).");
  const bcq_status status = check_file(signature, bytes);
  if (status != BCQ_OK) return status;
  if (memcmp(signature + kKeyAt, key, kPublicKeyBytes) != 0)
    return fail(BCQ_BAD_BLOB, "The package is signed with another key than the one given.");
  uint8_t message[kDomainBytes + kDigestBytes];
  memcpy(message, kDomain, kDomainBytes);
  memcpy(message + kDomainBytes, digest, kDigestBytes);
  if (ed25519_verify(key, message, sizeof(message), signature + kSignatureAt)) return BCQ_OK;
  return fail(BCQ_BAD_BLOB, "The signature is not of this package: one of the two was changed.");
}

}  // namespace bcq

/// Signatures and digests under the sanitizers, and on other processors.
///
///     signature_test CASES
///
/// CASES: lines of public key, message ("-" for none), signature, and 1 (right) or 0, in base 16.
/// Prints how many were as said, and compares every way to a SHA-256 with the plain one.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/ed25519.h"
#include "runtime/sha256.h"

namespace {

constexpr size_t kLine = 1 << 13;

[[noreturn]] void stop(const char* what, size_t at) {
  printf("signature_test: %s at %zu\n", what, at);
  exit(1);
}

/// Bytes of a word of digits, in memory of exactly that size; the caller frees.
uint8_t* bytes_of(const char* digits, size_t* bytes) {
  *bytes = strcmp(digits, "-") == 0 ? 0 : strlen(digits) / 2;
  uint8_t* const made = (uint8_t*)malloc(*bytes > 0 ? *bytes : 1);
  for (size_t i = 0; i < *bytes; i++) {
    unsigned value = 0;
    if (sscanf(digits + 2 * i, "%2x", &value) != 1) stop("no digits", i);
    made[i] = (uint8_t)value;
  }
  return made;
}

void check_signatures(const char* path) {
  FILE* const file = fopen(path, "r");
  if (file == nullptr) stop("no file", 0);
  static char line[kLine], key[kLine], message[kLine], signature[kLine];
  size_t num = 0;
  for (; fgets(line, sizeof(line), file) != nullptr; num++) {
    int expected = 0;
    if (sscanf(line, "%s %s %s %d", key, message, signature, &expected) != 4) stop("no case", num);
    size_t key_bytes, message_bytes, signature_bytes;
    uint8_t* const k = bytes_of(key, &key_bytes);
    uint8_t* const m = bytes_of(message, &message_bytes);
    uint8_t* const s = bytes_of(signature, &signature_bytes);
    if (key_bytes != 32 || signature_bytes != 64) stop("a case of another size", num);
    if (bcq::ed25519_verify(k, m, message_bytes, s) != (expected != 0)) stop("a wrong answer", num);
    free(k);
    free(m);
    free(s);
  }
  fclose(file);
  printf("%zu signatures\n", num);
}

/// Messages of all lengths about a block's end, long ones beside short ones and none at all.
void check_digests() {
  constexpr size_t kNum = 300, kMost = 5000;
  constexpr void (*kDrains[])(bcq::DigestQueue*) = {bcq::sha256_drain, bcq::sha256_drain_plain};
  bcq::Digest digests[kNum];
  for (size_t i = 0; i < kNum; i++) {
    const size_t bytes = i < 200 ? i : i * 7919 % kMost;
    uint8_t* const data = (uint8_t*)malloc(bytes > 0 ? bytes : 1);
    for (size_t j = 0; j < bytes; j++) data[j] = (uint8_t)((i + 1) * (j + 3) >> 2);
    digests[i] = {data, bytes, {}};
  }
  for (size_t num = 0; num <= kNum; num += num < 4 ? 1 : kNum - 4)
    for (const auto drain : kDrains) {
      for (bcq::Digest& digest : digests) memset(digest.value, 0, sizeof(digest.value));
      bcq::DigestQueue queue = {digests, num, 0};
      drain(&queue);
      for (size_t i = 0; i < num; i++) {
        uint8_t one[32], plain[32];
        bcq::sha256(digests[i].data, digests[i].bytes, one);
        bcq::sha256_plain(digests[i].data, digests[i].bytes, plain);
        if (memcmp(one, plain, 32) != 0) stop("another digest", i);
        if (memcmp(digests[i].value, plain, 32) != 0) stop("another digest of two lanes", i);
      }
    }
  for (bcq::Digest& digest : digests) free((void*)digest.data);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  check_signatures(argv[1]);
  check_digests();
  printf("signature_test: all passed\n");
  return 0;
}

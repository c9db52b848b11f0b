/// A public key of Ed25519 as people write it: digits, bytes, or PEM.
#ifndef BCQ_TOOLS_KEY_TEXT_H_
#define BCQ_TOOLS_KEY_TEXT_H_

#include <stddef.h>
#include <stdint.h>
#include <string.h>

namespace bcq {

constexpr size_t kKeyBytes = 32;

/// 32 bytes of digits that carry `width` bits each, the highest first; false if one is none. What
/// the last one carries beyond them must be 0.
inline bool read_digits(const char* text, const char* digits, int width, uint8_t* key) {
  uint32_t held = 0;
  int bits = 0;
  for (size_t num = 0; num < kKeyBytes;) {
    const char* const found = *text == '\0' ? nullptr : strchr(digits, *text++);
    if (found == nullptr) return false;
    held = (held << width | (uint32_t)(found - digits)) & 0xffff;
    bits += width;
    if (bits >= 8) key[num++] = (uint8_t)(held >> (bits -= 8));
  }
  return (held & ((1u << bits) - 1)) == 0;
}

/// The key that 64 digits of base 16 in small letters are; false if `text`, which ends in a zero
/// byte, is something else.
inline bool key_of_digits(const char* text, uint8_t* key) {
  return strlen(text) == 2 * kKeyBytes && read_digits(text, "0123456789abcdef", 4, key);
}

/// The key in a file's `bytes` bytes: its 32 bytes, or PEM as `openssl pkey -pubout` writes it;
/// false if it is something else.
inline bool key_of_file(const char* file, size_t bytes, uint8_t* key) {
  constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  // Ends in what X.509 puts before such a key (RFC 8410, section 4): 16 digits of base 64.
  constexpr char kBegin[] = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA";
  constexpr size_t kBeginBytes = sizeof(kBegin) - 1, kKeyDigits = 43;
  if (bytes == kKeyBytes) {
    memcpy(key, file, kKeyBytes);
    return true;
  }
  return bytes >= kBeginBytes + kKeyDigits && memcmp(file, kBegin, kBeginBytes) == 0 &&
         read_digits(file + kBeginBytes, kDigits, 6, key);
}

}  // namespace bcq
#endif  // BCQ_TOOLS_KEY_TEXT_H_

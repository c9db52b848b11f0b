#include "runtime/unicode.h"

namespace bcq {
namespace {

constexpr uint32_t kRuns[] = {
#include "runtime/unicode_tables.inc"
};
constexpr size_t kNumRuns = sizeof(kRuns) / sizeof(kRuns[0]);
constexpr uint32_t kCodeMask = 0xFFFFFF;
constexpr uint32_t kReplacement = 0xFFFD;

/// How the bytes after the first one must look: the second has a range of its own, which keeps out
/// surrogates, overlong forms and code points beyond U+10FFFF (Unicode, table 3-7).
struct Form {
  uint32_t bytes;
  uint8_t low, high;
};

Form form_of(uint8_t first) {
  if (first < 0xC2) return {0, 0, 0};
  if (first < 0xE0) return {2, 0x80, 0xBF};
  if (first == 0xE0) return {3, 0xA0, 0xBF};
  if (first == 0xED) return {3, 0x80, 0x9F};
  if (first < 0xF0) return {3, 0x80, 0xBF};
  if (first == 0xF0) return {4, 0x90, 0xBF};
  if (first < 0xF4) return {4, 0x80, 0xBF};
  if (first == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

}  // namespace

Utf8Char read_utf8(const uint8_t* text, size_t bytes) {
  if (text[0] < 0x80) return {text[0], 1, Utf8::kValid};
  const Form form = form_of(text[0]);
  if (form.bytes == 0) return {kReplacement, 1, Utf8::kInvalid};
  uint32_t code = text[0] & (0xFFu >> (form.bytes + 1));
  for (uint32_t i = 1; i < form.bytes; ++i) {
    if (i == bytes) return {kReplacement, i, Utf8::kIncomplete};
    const uint8_t low = i == 1 ? form.low : 0x80, high = i == 1 ? form.high : 0xBF;
    if (text[i] < low || text[i] > high) return {kReplacement, i, Utf8::kInvalid};
    code = code << 6 | (text[i] & 0x3Fu);
  }
  return {code, form.bytes, Utf8::kValid};
}

bool is_utf8(const uint8_t* text, size_t bytes) {
  for (size_t at = 0; at < bytes;) {
    const Utf8Char next = read_utf8(text + at, bytes - at);
    if (next.state != Utf8::kValid) return false;
    at += next.bytes;
  }
  return true;
}

bool append_utf8(const uint8_t* text, size_t bytes, Buffer<uint8_t>* out) {
  static constexpr uint8_t kMark[] = {0xEF, 0xBF, 0xBD};
  size_t begin = 0, at = 0;
  while (at < bytes) {
    const Utf8Char next = read_utf8(text + at, bytes - at);
    if (next.state != Utf8::kValid) {
      if (!out->append(text + begin, at - begin) || !out->append(kMark, sizeof(kMark))) {
        return false;
      }
      begin = at + next.bytes;
    }
    at += next.bytes;
  }
  return out->append(text + begin, at - begin);
}

CharClass char_class(uint32_t code) {
  size_t low = 0, high = kNumRuns;  // the run is in [low, high)
  while (high - low > 1) {
    const size_t middle = low + (high - low) / 2;
    if ((kRuns[middle] & kCodeMask) <= code) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return static_cast<CharClass>(kRuns[low] >> 24);
}

}  // namespace bcq

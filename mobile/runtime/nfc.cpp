#include "runtime/nfc.h"

#include <algorithm>
#include <iterator>

#include "runtime/unicode.h"

namespace bcq {
namespace {

#include "runtime/nfc_tables.inc"

constexpr uint64_t kCodeMask = 0x1FFFFF;
constexpr uint32_t kCodeBits = 21;
/// Code points of which nothing decomposes, is a mark or joins what is before it.
constexpr uint32_t kFirstActive = 0xC0, kFirstIdeograph = 0x3400, kLastIdeograph = 0x9FFF;
/// UTF-8 begins so from U+0300 on; what is below it decomposes only to be put together again.
constexpr uint8_t kFirstChangingLead = 0xCC;

/// Hangul syllables are numbered by their parts (The Unicode Standard, 3.12).
constexpr uint32_t kSyllable = 0xAC00, kLead = 0x1100, kVowel = 0x1161, kTail = 0x11A7;
constexpr uint32_t kNumLeads = 19, kNumVowels = 21, kNumTails = 28;
constexpr uint32_t kNumSyllables = kNumLeads * kNumVowels * kNumTails;

/// A code point on its way: class << 53 | place << 21 | code, so that sorting marks as numbers
/// leaves those of one class in their order.
uint64_t make_point(uint32_t code, uint32_t mark_class, size_t place) {
  return uint64_t{mark_class} << 53 | uint64_t{place} << kCodeBits | code;
}
uint32_t code_of(uint64_t point) { return static_cast<uint32_t>(point & kCodeMask); }
uint32_t class_of(uint64_t point) { return static_cast<uint32_t>(point >> 53); }

uint32_t combining_class(uint32_t code) {
  const auto key = [](uint32_t run) { return run & 0xFFFFFF; };
  const uint32_t* const next =
      std::upper_bound(std::begin(kClassRuns), std::end(kClassRuns), code,
                       [key](uint32_t wanted, uint32_t run) { return wanted < key(run); });
  return next[-1] >> 24;  // the first run begins at 0
}

/// What two code points are together; 0: nothing.
uint32_t compose(uint32_t first, uint32_t second) {
  if (first - kLead < kNumLeads && second - kVowel < kNumVowels) {
    return kSyllable + ((first - kLead) * kNumVowels + (second - kVowel)) * kNumTails;
  }
  if (first - kSyllable < kNumSyllables && (first - kSyllable) % kNumTails == 0 &&
      second - kTail - 1 < kNumTails - 1) {
    return first + (second - kTail);
  }
  const uint64_t wanted = uint64_t{first} << kCodeBits | second;
  constexpr uint64_t kPairMask = (uint64_t{1} << 2 * kCodeBits) - 1;
  const uint16_t* const found = std::lower_bound(
      std::begin(kComposed), std::end(kComposed), wanted,
      [](uint16_t place, uint64_t pair) { return (kPairs[place] & kPairMask) < pair; });
  if (found == std::end(kComposed) || (kPairs[*found] & kPairMask) != wanted) return 0;
  return static_cast<uint32_t>(kPairs[*found] >> 2 * kCodeBits);
}

/// Each run of marks in the order of their classes.
void order_marks(Buffer<uint64_t>* points) {
  for (size_t at = 0; at < points->size(); ++at) {
    size_t end = at;
    while (end < points->size() && class_of((*points)[end]) != 0) ++end;
    if (end - at > 1) {
      std::sort(points->begin() + at, points->begin() + end,
                [](uint64_t a, uint64_t b) { return a < b; });
    }
    at = end;
  }
}

/// Joins every code point to the last letter before it that it makes one with, unless one of its
/// own class or higher, or a letter, stands between.
void compose_all(Buffer<uint64_t>* points) {
  size_t kept = 0, letter = SIZE_MAX;
  for (size_t at = 0; at < points->size(); ++at) {
    const uint64_t point = (*points)[at];
    const uint32_t mark_class = class_of(point);
    const bool is_next = letter != SIZE_MAX && letter + 1 == kept;
    const bool is_free =
        is_next || (letter != SIZE_MAX && class_of((*points)[kept - 1]) < mark_class);
    const uint32_t joined = is_free ? compose(code_of((*points)[letter]), code_of(point)) : 0;
    if (joined != 0) {
      (*points)[letter] = make_point(joined, 0, 0);
      continue;
    }
    if (mark_class == 0) letter = kept;
    (*points)[kept++] = point;
  }
  while (points->size() > kept) points->pop();
}

bool append_code(uint32_t code, Buffer<uint8_t>* out) {
  if (code < 0x80) return out->push(static_cast<uint8_t>(code));
  uint8_t data[4];
  const size_t bytes = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
  for (size_t i = bytes - 1; i > 0; --i, code >>= 6) {
    data[i] = static_cast<uint8_t>(0x80 | (code & 0x3F));
  }
  data[0] = static_cast<uint8_t>((0xF00 >> bytes) | code);  // 0xC0, 0xE0, 0xF0 in the low byte
  return out->append(data, bytes);
}

/// Writes what is waiting, which nothing that follows can change. False: no memory.
bool flush(NfcSpace* space) {
  if (space->points.size() > 1) {
    order_marks(&space->points);
    compose_all(&space->points);
  }
  for (const uint64_t point : space->points) {
    if (!append_code(code_of(point), &space->text)) return false;
  }
  space->points.clear();
  return true;
}

/// Whether a code point that is no mark can make one with a letter before it.
bool joins(uint32_t code) {
  return code - kVowel < kNumVowels || code - kTail < kNumTails ||
         std::binary_search(std::begin(kJoining), std::end(kJoining), code);
}

/// Appends one that does not decompose; where it can change nothing before it, that is written.
bool push_point(uint32_t code, NfcSpace* space) {
  const uint32_t mark_class = combining_class(code);
  if (mark_class == 0 && !joins(code) && !flush(space)) return false;
  return space->points.push(make_point(code, mark_class, space->points.size()));
}

/// Appends what a code point decomposes to, wholly. False: no memory.
bool decompose(uint32_t code, NfcSpace* space) {
  if (code - kSyllable < kNumSyllables) {
    const uint32_t index = code - kSyllable, tail = index % kNumTails;
    return push_point(kLead + index / (kNumVowels * kNumTails), space) &&
           push_point(kVowel + index / kNumTails % kNumVowels, space) &&
           (tail == 0 || push_point(kTail + tail, space));
  }
  uint32_t seconds[4];  // no chain of the table is longer than three
  size_t num = 0;
  while (num < 4) {
    const uint64_t* const found =
        std::lower_bound(std::begin(kPairs), std::end(kPairs), uint64_t{code} << 2 * kCodeBits);
    if (found == std::end(kPairs) || *found >> 2 * kCodeBits != code) break;
    code = code_of(*found >> kCodeBits);
    if (code_of(*found) != 0) seconds[num++] = code_of(*found);
  }
  bool is_done = push_point(code, space);
  while (is_done && num > 0) is_done = push_point(seconds[--num], space);
  return is_done;
}

}  // namespace

bool normalize_nfc(const uint8_t** data, size_t* bytes, NfcSpace* space) {
  const uint8_t* const text = *data;
  const auto may_change = [](uint8_t byte) { return byte >= kFirstChangingLead; };
  if (std::none_of(text, text + *bytes, may_change)) return true;
  space->points.clear();
  space->text.clear();
  if (!space->text.reserve(*bytes)) return false;
  for (size_t at = 0; at < *bytes;) {
    const Utf8Char next = read_utf8(text + at, *bytes - at);
    at += next.bytes;
    const bool is_inert =
        next.code < kFirstActive || (next.code >= kFirstIdeograph && next.code <= kLastIdeograph);
    if (is_inert) {
      if (!flush(space) || !space->points.push(make_point(next.code, 0, 0))) return false;
    } else if (!decompose(next.code, space)) {
      return false;
    }
  }
  if (!flush(space)) return false;
  *data = space->text.data();
  *bytes = space->text.size();
  return true;
}

}  // namespace bcq

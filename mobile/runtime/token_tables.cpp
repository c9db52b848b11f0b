#include "runtime/token_tables.h"

#include <string.h>

#include <algorithm>

namespace bcq {
namespace {

uint32_t hash_of(Text text) {
  uint64_t hash = mix(text.bytes + 1);
  size_t at = 0;
  for (; at + 8 <= text.bytes; at += 8) {
    uint64_t word;
    memcpy(&word, text.data + at, sizeof(word));
    hash = mix(hash ^ word);
  }
  uint64_t rest = 0;
  if (at < text.bytes) memcpy(&rest, text.data + at, text.bytes - at);
  return static_cast<uint32_t>(mix(hash ^ rest) >> 16);
}

bool is_equal(Text a, Text b) {
  return a.bytes == b.bytes && (a.bytes == 0 || memcmp(a.data, b.data, a.bytes) == 0);
}

/// Negative, 0 or positive as `a` comes before, with or after `b`.
int compare(Text a, Text b) {
  const size_t common = a.bytes < b.bytes ? a.bytes : b.bytes;
  const int order = common > 0 ? memcmp(a.data, b.data, common) : 0;
  if (order != 0 || a.bytes == b.bytes) return order;
  return a.bytes < b.bytes ? -1 : 1;
}

}  // namespace

bool TextTable::create(const TokenSection& section) {
  section_ = &section;
  size_t slots = 16;
  while (slots < size_t{2} * section.num_tokens) slots *= 2;
  return slots_.resize(slots);
}

void TextTable::add(uint32_t id) {
  const Text text = section_->text(id);
  const uint32_t hash = hash_of(text);
  const size_t mask = slots_.size() - 1;
  size_t at = hash & mask;
  for (; slots_[at].id_plus_1 != 0; at = (at + 1) & mask) {
    if (slots_[at].hash == hash && is_equal(section_->text(slots_[at].id_plus_1 - 1), text)) return;
  }
  slots_[at] = {hash, id + 1};
  if (text.bytes > longest_) longest_ = text.bytes;
}

int32_t TextTable::find(Text text) const {
  if (text.bytes > longest_) return -1;
  const uint32_t hash = hash_of(text);
  const size_t mask = slots_.size() - 1;
  for (size_t at = hash & mask; slots_[at].id_plus_1 != 0; at = (at + 1) & mask) {
    const uint32_t id = slots_[at].id_plus_1 - 1;
    if (slots_[at].hash == hash && is_equal(section_->text(id), text)) {
      return static_cast<int32_t>(id);
    }
  }
  return -1;
}

bool PrefixMatcher::create(const TokenSection& section, TypeMask types) {
  section_ = &section;
  for (uint32_t id = 0; id < section.num_tokens; ++id) {
    if (section.is_of(id, types) && section.text(id).bytes > 0 && !ids_.push(id)) return false;
  }
  std::sort(ids_.begin(), ids_.end(), [&section](uint32_t a, uint32_t b) {
    const int order = compare(section.text(a), section.text(b));
    return order < 0 || (order == 0 && a < b);
  });
  uint32_t at = 0;
  for (uint32_t first = 0; first < 257; ++first) {
    while (at < ids_.size() && section.text(ids_[at]).data[0] < first) ++at;
    begins_[first] = at;
  }
  return true;
}

int32_t PrefixMatcher::longest(Text text) const {
  if (text.bytes == 0) return -1;
  // Tokens that begin with the first `depth` bytes of the text; the shortest comes first.
  uint32_t low = begins_[text.data[0]], high = begins_[text.data[0] + 1];
  int32_t found = -1;
  for (size_t depth = 1; low < high; ++depth) {
    if (section_->text(ids_[low]).bytes == depth) {
      found = static_cast<int32_t>(ids_[low]);
      while (low < high && section_->text(ids_[low]).bytes == depth) ++low;
    }
    if (depth == text.bytes) break;
    const uint8_t byte = text.data[depth];
    // All that are left are longer than `depth`.
    const uint32_t* const begin = ids_.begin() + low;
    const uint32_t* const end = ids_.begin() + high;
    const auto byte_of = [this, depth](uint32_t id) { return section_->text(id).data[depth]; };
    low = static_cast<uint32_t>(
        std::lower_bound(begin, end, byte,
                         [&](uint32_t id, uint8_t wanted) { return byte_of(id) < wanted; }) -
        ids_.begin());
    high = static_cast<uint32_t>(
        std::upper_bound(begin, end, byte,
                         [&](uint8_t wanted, uint32_t id) { return wanted < byte_of(id); }) -
        ids_.begin());
  }
  return found;
}

int32_t PrefixMatcher::find(Text text) const {
  const auto at = std::lower_bound(
      ids_.begin(), ids_.end(), text,
      [this](uint32_t id, Text wanted) { return compare(section_->text(id), wanted) < 0; });
  if (at == ids_.end() || !is_equal(section_->text(*at), text)) return -1;
  return static_cast<int32_t>(*at);
}

}  // namespace bcq

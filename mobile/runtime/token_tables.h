/// What is looked up while a text becomes ids: tokens by their text, and the longest token that
/// stands at a place.
#ifndef BCQ_RUNTIME_TOKEN_TABLES_H_
#define BCQ_RUNTIME_TOKEN_TABLES_H_

#include <stddef.h>
#include <stdint.h>

#include "runtime/memory.h"
#include "runtime/token_section.h"

namespace bcq {

/// Mixes a number so that every bit of it matters in every bit of the result.
inline uint64_t mix(uint64_t value) {
  value = (value ^ value >> 32) * 0x9E3779B97F4A7C15u;
  return value ^ value >> 29;
}

/// Ids by text; of equal texts the first that was added counts.
class TextTable {
 public:
  /// Room for every token of a section, which outlives the table. False: no memory.
  bool create(const TokenSection& section);
  /// Makes token `id` found; each id at most once.
  void add(uint32_t id);
  /// The id of a text, or -1.
  int32_t find(Text text) const;

 private:
  struct Slot {
    uint32_t hash;
    uint32_t id_plus_1;  ///< 0: free
  };

  const TokenSection* section_ = nullptr;
  Buffer<Slot> slots_;
  size_t longest_ = 0;  ///< no text beyond it is looked up
};

/// Tokens of some types, sorted by text.
class PrefixMatcher {
 public:
  /// Takes the tokens of `section`, which outlives the matcher, whose types are in `types` and
  /// whose texts are not empty. False: no memory.
  bool create(const TokenSection& section, TypeMask types);
  /// The longest token that `text` begins with, or -1; of equal ones the lowest id.
  int32_t longest(Text text) const;
  /// The token with exactly this text, or -1.
  int32_t find(Text text) const;
  /// Ids in the order of their texts.
  const Buffer<uint32_t>& ids() const { return ids_; }

 private:
  const TokenSection* section_ = nullptr;
  Buffer<uint32_t> ids_;
  uint32_t begins_[257] = {};  ///< where the tokens with each first byte begin in ids_
};

}  // namespace bcq
#endif  // BCQ_RUNTIME_TOKEN_TABLES_H_

/// The tokenizer section of a package (kind 64), checked and readable where it lies.
#ifndef BCQ_RUNTIME_TOKEN_SECTION_H_
#define BCQ_RUNTIME_TOKEN_SECTION_H_

#include <stddef.h>
#include <stdint.h>

#include "bcq/status.h"
#include "runtime/pre_tokenizer.h"

namespace bcq {

/// Bytes that someone else owns.
struct Text {
  const uint8_t* data;
  size_t bytes;
};

enum class TokenizerKind : uint32_t { kSentencePiece = 1, kByteLevel = 2, kCharacters = 3 };

enum TokenType : uint8_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
  kAdded = 7,  ///< cut as a control token, shown as text
};

/// A set of token types, for the tables that hold some of them.
using TypeMask = uint32_t;
constexpr TypeMask mask_of(TokenType type) { return 1u << type; }

/// Views into a section of docs/formats/bcq_package_v1.md, which may start on any byte.
struct TokenSection {
  TokenizerKind kind;
  bool adds_prefix, squeezes_spaces, falls_back_to_bytes, takes_whole_words;
  bool normalizes;           ///< stretches to NFC first
  bool spares_marked;        ///< no prefix before a stretch that begins with a space or its mark
  bool prefixes_start_only;  ///< no prefix but at the start of the whole text
  bool cuts_at_marks;        ///< every mark begins a word
  SplitRule split_rule;      ///< kNone unless kByteLevel
  uint32_t num_tokens, num_merges;
  int32_t unknown, before, after;  ///< ids or -1
  const uint8_t *offsets, *scores, *merges, *types, *texts;

  /// What token `id` < num_tokens is spelled.
  Text text(uint32_t id) const;
  float score(uint32_t id) const;
  uint8_t type(uint32_t id) const { return types[id]; }
  bool is_of(uint32_t id, TypeMask mask) const { return (mask >> types[id] & 1) != 0; }
  /// The two tokens of a merge.
  void merge(uint32_t index, uint32_t* left, uint32_t* right) const;
};

/// Checks every number of a section: sizes, ranges, ids, UTF-8. `data` outlives *section.
/// Errors: BCQ_BAD_BLOB, BCQ_UNSUPPORTED (a kind, bit, rule or token type of the future).
bcq_status read_token_section(const void* data, size_t bytes, TokenSection* section);

}  // namespace bcq
#endif  // BCQ_RUNTIME_TOKEN_SECTION_H_

#include "runtime/token_section.h"

#include <math.h>
#include <string.h>

#include "runtime/error.h"
#include "runtime/unicode.h"

namespace bcq {
namespace {

constexpr size_t kHeaderBytes = 40;
constexpr uint32_t kKnownBits = 0x3FF;

/// What differs between kinds; index 0 is none.
struct KindRules {
  uint32_t bits;
  uint32_t low_rule, high_rule;
  bool has_scores;
  uint8_t last_type;
};
constexpr KindRules kRules[] = {
    {0, 0, 0, false, 0},
    {0x37, 0, 0, true, kAdded},
    {0x78, 1, 5, false, kUnused},
    {0x3F5, 0, 0, false, kByte},
};

const KindRules& rules_of(TokenizerKind kind) { return kRules[static_cast<uint32_t>(kind)]; }

uint32_t load_u32(const uint8_t* data) {
  uint32_t value;
  memcpy(&value, data, sizeof(value));
  return value;
}

bcq_status read_header(const uint8_t* data, TokenSection* section, uint32_t* text_bytes) {
  const uint32_t kind = load_u32(data), bits = load_u32(data + 4), rule = load_u32(data + 8);
  if (kind < 1 || kind > 3) {
    return fail(BCQ_UNSUPPORTED, "the tokenizer is of kind %u; this runtime knows 1 to 3", kind);
  }
  if ((bits & ~kKnownBits) != 0) {
    return fail(BCQ_UNSUPPORTED, "the tokenizer has bits 0x%x; this runtime knows 0x%x", bits,
                kKnownBits);
  }
  const KindRules& rules = kRules[kind];
  if (rule < rules.low_rule || rule > rules.high_rule) {
    return fail(BCQ_UNSUPPORTED, "the tokenizer is of kind %u and cuts words by rule %u", kind,
                rule);
  }
  section->kind = static_cast<TokenizerKind>(kind);
  section->adds_prefix = (bits & 1) != 0;
  section->squeezes_spaces = (bits & 2) != 0;
  section->falls_back_to_bytes = (bits & 4) != 0;
  section->takes_whole_words = (bits & 8) != 0;
  section->normalizes = (bits & 0x40) != 0;
  section->spares_marked = (bits & 0x80) != 0;
  section->prefixes_start_only = (bits & 0x100) != 0;
  section->cuts_at_marks = (bits & 0x200) != 0;
  section->split_rule = static_cast<SplitRule>(rule);
  section->num_tokens = load_u32(data + 12);
  section->num_merges = load_u32(data + 16);
  section->unknown = static_cast<int32_t>(load_u32(data + 20));
  *text_bytes = load_u32(data + 24);
  section->before = static_cast<int32_t>(load_u32(data + 28));
  section->after = static_cast<int32_t>(load_u32(data + 32));
  if (load_u32(data + 36) != 0 || (bits & ~rules.bits) != 0 ||
      (rules.has_scores && section->num_merges != 0) || section->num_tokens > INT32_MAX ||
      ((bits & 0x180) != 0 && !section->adds_prefix) ||
      ((bits & 0x10) != 0) != (section->before >= 0) ||
      ((bits & 0x20) != 0) != (section->after >= 0)) {
    return fail(BCQ_BAD_BLOB, "the tokenizer's header contradicts itself (kind %u, bits 0x%x)",
                kind, bits);
  }
  const int32_t named[] = {section->unknown, section->before, section->after};
  for (const int32_t id : named) {
    if (id < -1 || id >= static_cast<int64_t>(section->num_tokens)) {
      return fail(BCQ_BAD_BLOB, "the tokenizer names token %d of %u", id, section->num_tokens);
    }
  }
  return BCQ_OK;
}

bcq_status check_token(const TokenSection& section, uint32_t id, uint32_t text_bytes) {
  const uint32_t begin = load_u32(section.offsets + size_t{4} * id);
  const uint32_t end = load_u32(section.offsets + size_t{4} * (id + size_t{1}));
  if (begin > end || end > text_bytes) {
    return fail(BCQ_BAD_BLOB, "the text of token %u is bytes %u to %u of %u", id, begin, end,
                text_bytes);
  }
  const KindRules& rules = rules_of(section.kind);
  const uint8_t type = section.type(id);
  if (type < kNormal || type > rules.last_type) {
    return fail(BCQ_UNSUPPORTED, "token %u is of type %u", id, type);
  }
  const bool is_bytes =
      section.kind == TokenizerKind::kByteLevel && (type == kNormal || type == kUnused);
  if (!is_bytes && !is_utf8(section.texts + begin, end - begin)) {
    return fail(BCQ_BAD_BLOB, "the text of token %u is not UTF-8", id);
  }
  if (rules.has_scores && isnan(section.score(id))) {
    return fail(BCQ_BAD_BLOB, "the score of token %u is not a number", id);
  }
  return BCQ_OK;
}

}  // namespace

Text TokenSection::text(uint32_t id) const {
  const uint32_t begin = load_u32(offsets + size_t{4} * id);
  const uint32_t end = load_u32(offsets + size_t{4} * (id + size_t{1}));
  return {texts + begin, end - begin};
}

float TokenSection::score(uint32_t id) const {
  float value;
  memcpy(&value, scores + size_t{4} * id, sizeof(value));
  return value;
}

void TokenSection::merge(uint32_t index, uint32_t* left, uint32_t* right) const {
  *left = load_u32(merges + size_t{8} * index);
  *right = load_u32(merges + size_t{8} * index + 4);
}

bcq_status read_token_section(const void* data, size_t bytes, TokenSection* section) {
  const uint8_t* at = static_cast<const uint8_t*>(data);
  if (bytes < kHeaderBytes) {
    return fail(BCQ_BAD_BLOB, "the tokenizer has %zu bytes; its header alone has %zu", bytes,
                kHeaderBytes);
  }
  uint32_t text_bytes = 0;
  const bcq_status status = read_header(at, section, &text_bytes);
  if (status != BCQ_OK) return status;
  const bool has_scores = rules_of(section->kind).has_scores;
  const uint64_t num = section->num_tokens, num_merges = section->num_merges;
  // Each factor is below 2^32, so 64 bits hold every sum here.
  const uint64_t needed =
      kHeaderBytes + 4 * (num + 1) + (has_scores ? 4 * num : 0) + 8 * num_merges + num + text_bytes;
  if (needed != bytes) {
    return fail(BCQ_BAD_BLOB, "the tokenizer has %zu bytes; its numbers ask for %llu", bytes,
                static_cast<unsigned long long>(needed));
  }
  section->offsets = at + kHeaderBytes;
  section->scores = section->offsets + 4 * (num + 1);
  section->merges = section->scores + (has_scores ? 4 * num : 0);
  section->types = section->merges + 8 * num_merges;
  section->texts = section->types + num;
  if (load_u32(section->offsets) != 0 || load_u32(section->offsets + 4 * num) != text_bytes) {
    return fail(BCQ_BAD_BLOB, "the tokenizer's texts do not fill their %u bytes", text_bytes);
  }
  for (uint32_t id = 0; id < section->num_tokens; ++id) {
    const bcq_status checked = check_token(*section, id, text_bytes);
    if (checked != BCQ_OK) return checked;
  }
  return BCQ_OK;
}

}  // namespace bcq

#include "runtime/tokenizer.h"

#include "runtime/error.h"
#include "runtime/unicode.h"

namespace bcq {
namespace {

/// Prepared text is up to three times as long, and places in it are 32-bit numbers.
constexpr size_t kMaxTextBytes = size_t{1} << 28;
constexpr int32_t kAddsFrame = 1, kParsesSpecial = 2;
/// Tokens that only a caller may spell who asked for it.
constexpr TypeMask kSpecial = mask_of(kUnknown) | mask_of(kControl);

bool encode_stretch(const bcq_tokenizer& tokenizer, Text text, bool is_start, EncodeSpace* space,
                    IdSink* ids) {
  if (text.bytes == 0) return true;
  if (tokenizer.section.normalizes && !normalize_nfc(&text.data, &text.bytes, &space->normal)) {
    return false;
  }
  switch (tokenizer.section.kind) {
    case TokenizerKind::kSentencePiece:
      return encode_sentencepiece(tokenizer, text, space, ids);
    case TokenizerKind::kByteLevel:
      return encode_byte_level(tokenizer, text, space, ids);
    case TokenizerKind::kCharacters:
      break;
  }
  return encode_characters(tokenizer, text, is_start, space, ids);
}

/// Cuts special and, at byte level, user-defined tokens out; what is between is encoded.
bool encode_text(const bcq_tokenizer& tokenizer, Text text, bool parses_special, IdSink* ids) {
  EncodeSpace space;
  const TokenSection& section = tokenizer.section;
  if (section.kind == TokenizerKind::kSentencePiece && !parses_special) {
    return encode_stretch(tokenizer, text, true, &space, ids);
  }
  size_t begin = 0;
  for (size_t at = 0; at < text.bytes;) {
    const int32_t found = tokenizer.cut.longest({text.data + at, text.bytes - at});
    if (found < 0) {
      ++at;
      continue;
    }
    const uint32_t id = static_cast<uint32_t>(found);
    const size_t end = at + section.text(id).bytes;
    // A special token that is not parsed stays text, yet no other token begins within it.
    if (parses_special || !section.is_of(id, kSpecial)) {
      const Text stretch = {text.data + begin, at - begin};
      if (!encode_stretch(tokenizer, stretch, begin == 0, &space, ids)) return false;
      ids->push(found);
      begin = end;
    }
    at = end;
  }
  const Text rest = {text.data + begin, text.bytes - begin};
  return encode_stretch(tokenizer, rest, begin == 0, &space, ids);
}

bcq_status prepare(bcq_tokenizer* tokenizer, const void* section, size_t bytes) {
  const bcq_status status = read_token_section(section, bytes, &tokenizer->section);
  if (status != BCQ_OK) return status;
  const TokenizerKind kind = tokenizer->section.kind;
  const bcq_status prepared = kind == TokenizerKind::kSentencePiece
                                  ? prepare_sentencepiece(tokenizer)
                              : kind == TokenizerKind::kByteLevel ? prepare_byte_level(tokenizer)
                                                                  : prepare_characters(tokenizer);
  if (prepared != BCQ_OUT_OF_MEMORY) return prepared;
  return fail(prepared, "no memory for a tokenizer of %u tokens", tokenizer->section.num_tokens);
}

}  // namespace
}  // namespace bcq

extern "C" {

bcq_status bcq_tokenizer_create(const void* section, size_t bytes, bcq_tokenizer** tokenizer) {
  if (tokenizer == nullptr || section == nullptr) {
    if (tokenizer != nullptr) *tokenizer = nullptr;
    return bcq::fail(BCQ_BAD_ARGUMENT, "bcq_tokenizer_create: a pointer is null");
  }
  *tokenizer = nullptr;
  bcq_tokenizer* made = bcq::create<bcq_tokenizer>();
  if (made == nullptr) return bcq::fail(BCQ_OUT_OF_MEMORY, "no memory for a tokenizer");
  const bcq_status status = bcq::prepare(made, section, bytes);
  if (status != BCQ_OK) {
    bcq::destroy(made);
    return status;
  }
  *tokenizer = made;
  return BCQ_OK;
}

void bcq_tokenizer_destroy(bcq_tokenizer* tokenizer) { bcq::destroy(tokenizer); }

bcq_status bcq_tokenizer_encode(const bcq_tokenizer* tokenizer, const char* text, size_t bytes,
                                int32_t flags, int32_t* ids, size_t capacity, size_t* num) {
  if (tokenizer == nullptr || num == nullptr || (text == nullptr && bytes > 0) ||
      (ids == nullptr && capacity > 0)) {
    return bcq::fail(BCQ_BAD_ARGUMENT, "bcq_tokenizer_encode: a pointer is null");
  }
  *num = 0;
  if (bytes > bcq::kMaxTextBytes || (flags & ~(bcq::kAddsFrame | bcq::kParsesSpecial)) != 0) {
    return bcq::fail(BCQ_BAD_ARGUMENT, "bcq_tokenizer_encode: %zu bytes, flags %d", bytes, flags);
  }
  const bcq::TokenSection& section = tokenizer->section;
  const bool adds_frame = (flags & bcq::kAddsFrame) != 0;
  bcq::Text clean = {reinterpret_cast<const uint8_t*>(text), bytes};
  bcq::Buffer<uint8_t> repaired;
  bool has_memory = true;
  if (!bcq::is_utf8(clean.data, clean.bytes)) {
    has_memory = bcq::append_utf8(clean.data, clean.bytes, &repaired);
    clean = {repaired.data(), repaired.size()};
  }
  bcq::IdSink sink = {ids, capacity, 0};
  if (adds_frame && section.before >= 0) sink.push(section.before);
  has_memory =
      has_memory && bcq::encode_text(*tokenizer, clean, (flags & bcq::kParsesSpecial) != 0, &sink);
  if (!has_memory) return bcq::fail(BCQ_OUT_OF_MEMORY, "no memory to encode %zu bytes", bytes);
  if (adds_frame && section.after >= 0) sink.push(section.after);
  *num = sink.num;
  return BCQ_OK;
}

bcq_status bcq_tokenizer_token(const bcq_tokenizer* tokenizer, int32_t id, const char** data,
                               size_t* bytes) {
  if (tokenizer == nullptr || data == nullptr || bytes == nullptr) {
    return bcq::fail(BCQ_BAD_ARGUMENT, "bcq_tokenizer_token: a pointer is null");
  }
  const bcq::TokenSection& section = tokenizer->section;
  bcq::Text text = {nullptr, 0};
  if (id >= 0 && static_cast<uint32_t>(id) < section.num_tokens) {
    const uint32_t token = static_cast<uint32_t>(id);
    if (section.kind != bcq::TokenizerKind::kByteLevel) {
      const uint32_t begin = tokenizer->shown_begins[token];
      text = {tokenizer->shown.data() + begin, tokenizer->shown_begins[token + 1] - begin};
    } else if (!section.is_of(token, bcq::kSpecial)) {
      text = section.text(token);
    }
  }
  *data = reinterpret_cast<const char*>(text.data);
  *bytes = text.bytes;
  return BCQ_OK;
}

}  // extern "C"

#include "runtime/piece_text.h"

#include <string.h>

namespace bcq {
namespace {

constexpr uint8_t kSpaceMark[] = {0xE2, 0x96, 0x81};  // U+2581
constexpr size_t kMarkBytes = sizeof(kSpaceMark);

/// Appends one token's text with real spaces. False: no memory.
bool append_shown(Text text, Buffer<uint8_t>* out) {
  for (size_t at = 0; at < text.bytes;) {
    const bool is_mark = begins_with_mark({text.data + at, text.bytes - at});
    if (!out->push(is_mark ? ' ' : text.data[at])) return false;
    at += is_mark ? kMarkBytes : 1;
  }
  return true;
}

bool takes_prefix(const TokenSection& section, Text text, bool is_start) {
  if (!section.adds_prefix || (section.prefixes_start_only && !is_start)) return false;
  const bool is_marked = text.data[0] == ' ' || begins_with_mark(text);
  return !(section.spares_marked && is_marked);
}

}  // namespace

int byte_of_piece(Text piece) {
  if (piece.bytes != 6 || memcmp(piece.data, "<0x", 3) != 0 || piece.data[5] != '>') return -1;
  int value = 0;
  for (size_t i = 3; i < 5; ++i) {
    const uint8_t digit = piece.data[i];
    if (digit >= '0' && digit <= '9') {
      value = value * 16 + (digit - '0');
    } else if (digit >= 'A' && digit <= 'F') {
      value = value * 16 + (digit - 'A' + 10);
    } else {
      return -1;
    }
  }
  return value;
}

bool prepare_text(const TokenSection& section, Text text, bool is_start, Buffer<uint8_t>* out) {
  out->clear();
  size_t at = 0;
  if (section.squeezes_spaces) {
    while (at < text.bytes && text.data[at] == ' ') ++at;
  }
  if (at == text.bytes) return true;
  if (takes_prefix(section, text, is_start) && !out->append(kSpaceMark, kMarkBytes)) return false;
  for (bool is_after_space = false; at < text.bytes; ++at) {
    const bool is_space = text.data[at] == ' ';
    if (is_space && !(section.squeezes_spaces && is_after_space)) {
      if (!out->append(kSpaceMark, kMarkBytes)) return false;
    } else if (!is_space && !out->push(text.data[at])) {
      return false;
    }
    is_after_space = is_space;
  }
  while (section.squeezes_spaces && out->size() >= kMarkBytes &&
         memcmp(out->end() - kMarkBytes, kSpaceMark, kMarkBytes) == 0) {
    for (size_t i = 0; i < kMarkBytes; ++i) out->pop();
  }
  return true;
}

bool begins_with_mark(Text text) {
  return text.bytes >= kMarkBytes && memcmp(text.data, kSpaceMark, kMarkBytes) == 0;
}

bool prepare_shown(bcq_tokenizer* tokenizer) {
  static constexpr uint8_t kUnknownText[] = {' ', 0xE2, 0x81, 0x87, ' '};  // U+2047
  const TokenSection& section = tokenizer->section;
  const bool is_sentencepiece = section.kind == TokenizerKind::kSentencePiece;
  Buffer<uint8_t>* const shown = &tokenizer->shown;
  for (uint32_t id = 0; id < section.num_tokens; ++id) {
    if (!tokenizer->shown_begins.push(static_cast<uint32_t>(shown->size()))) return false;
    const Text text = section.text(id);
    const int byte = section.type(id) == kByte ? byte_of_piece(text) : -1;
    bool is_done = true;
    if (byte >= 0) {
      is_done = shown->push(static_cast<uint8_t>(byte));
    } else if (section.type(id) == kUnknown && is_sentencepiece) {
      is_done = shown->append(kUnknownText, sizeof(kUnknownText));
    } else if (section.type(id) == kAdded ||
               (section.type(id) == kUserDefined && !is_sentencepiece)) {
      is_done = shown->append(text.data, text.bytes);
    } else if (!section.is_of(id, mask_of(kControl) | mask_of(kUnknown))) {
      is_done = append_shown(text, shown);
    }
    // Unknown texts are the only ones that grow, so 2^32 bytes are a damaged package.
    if (!is_done || shown->size() > UINT32_MAX) return false;
  }
  return tokenizer->shown_begins.push(static_cast<uint32_t>(shown->size()));
}

void prepare_byte_pieces(bcq_tokenizer* tokenizer) {
  for (int32_t& id : tokenizer->byte_ids) id = -1;
  for (uint32_t id = 0; id < tokenizer->section.num_tokens; ++id) {
    if (tokenizer->section.type(id) != kByte) continue;
    const int byte = byte_of_piece(tokenizer->section.text(id));
    if (byte >= 0) tokenizer->byte_ids[byte] = static_cast<int32_t>(id);
  }
}

}  // namespace bcq

/// SentencePiece BPE: text prepared as its identity normalizer does, characters merged by score.
#include <string.h>

#include "runtime/piece_text.h"
#include "runtime/tokenizer.h"
#include "runtime/unicode.h"

namespace bcq {
namespace {

/// A number that falls as the score rises; equal for -0 and 0.
uint32_t order_of(float score) {
  const float positive_zero = score + 0.0f;
  uint32_t bits;
  memcpy(&bits, &positive_zero, sizeof(bits));
  const uint32_t rising = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return ~rising;
}

struct MergeByScore {
  const bcq_tokenizer* tokenizer;
  const uint8_t* text;

  bool join(const Symbol& left, const Symbol& right, uint32_t* order, int32_t* id) const {
    *id = tokenizer->words.find({text + left.begin, size_t{left.bytes} + right.bytes});
    if (*id < 0) return false;
    *order = order_of(tokenizer->section.score(static_cast<uint32_t>(*id)));
    return true;
  }
  /// Symbols only grow, so bytes are enough to know them.
  bool is_current(const Symbol& left, const Symbol& right, int32_t id) const {
    const size_t bytes = tokenizer->section.text(static_cast<uint32_t>(id)).bytes;
    return size_t{left.bytes} + right.bytes == bytes;
  }
};

/// User-defined pieces and, between them, characters. False: no memory.
bool cut_symbols(const bcq_tokenizer& tokenizer, Text text, MergeSpace* merging) {
  merging->symbols.clear();
  for (size_t at = 0; at < text.bytes;) {
    const Text rest = {text.data + at, text.bytes - at};
    const int32_t id = tokenizer.whole.longest(rest);
    const size_t bytes = id >= 0 ? tokenizer.section.text(static_cast<uint32_t>(id)).bytes
                                 : read_utf8(rest.data, rest.bytes).bytes;
    if (!merging->push(static_cast<uint32_t>(at), static_cast<uint32_t>(bytes), id, id >= 0)) {
      return false;
    }
    at += bytes;
  }
  return true;
}

/// What no piece has: its bytes, or one unknown token for a whole run of it.
void push_unknown(const bcq_tokenizer& tokenizer, Text text, bool is_run, IdSink* ids) {
  const int32_t unknown = tokenizer.section.unknown;
  if (!tokenizer.section.falls_back_to_bytes) {
    if (unknown >= 0 && !is_run) ids->push(unknown);
    return;
  }
  for (size_t i = 0; i < text.bytes; ++i) {
    const int32_t id = tokenizer.byte_ids[text.data[i]];
    if (id >= 0 || unknown >= 0) ids->push(id >= 0 ? id : unknown);
  }
}

}  // namespace

bcq_status prepare_sentencepiece(bcq_tokenizer* tokenizer) {
  const TokenSection& section = tokenizer->section;
  const TypeMask cut = mask_of(kUnknown) | mask_of(kControl) | mask_of(kAdded);
  if (!tokenizer->words.create(section) || !tokenizer->cut.create(section, cut) ||
      !tokenizer->whole.create(section, mask_of(kUserDefined)) || !prepare_shown(tokenizer)) {
    return BCQ_OUT_OF_MEMORY;
  }
  prepare_byte_pieces(tokenizer);
  for (uint32_t id = 0; id < section.num_tokens; ++id) {
    if (section.is_of(id, mask_of(kNormal) | mask_of(kUserDefined))) tokenizer->words.add(id);
  }
  return BCQ_OK;
}

bool encode_sentencepiece(const bcq_tokenizer& tokenizer, Text text, EncodeSpace* space,
                          IdSink* ids) {
  if (!prepare_text(tokenizer.section, text, false, &space->text)) return false;
  const Text prepared = {space->text.data(), space->text.size()};
  MergeSpace* const merging = &space->merging;
  if (!cut_symbols(tokenizer, prepared, merging)) return false;
  if (!merge_all(MergeByScore{&tokenizer, prepared.data}, merging)) return false;
  bool is_after_unknown = false;
  for (const Symbol& symbol : merging->symbols) {
    if (symbol.bytes == 0) continue;
    const Text piece = {prepared.data + symbol.begin, symbol.bytes};
    const int32_t id = symbol.id >= 0 ? symbol.id : tokenizer.words.find(piece);
    if (id >= 0) {
      ids->push(id);
    } else {
      push_unknown(tokenizer, piece, is_after_unknown, ids);
    }
    is_after_unknown = id < 0;
  }
  return true;
}

}  // namespace bcq

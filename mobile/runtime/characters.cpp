/// BPE over characters, merged by rank: a tokenizer.json that was made from a SentencePiece model.
#include "runtime/piece_text.h"
#include "runtime/rank_merges.h"
#include "runtime/tokenizer.h"
#include "runtime/unicode.h"

namespace bcq {
namespace {

/// The symbols of one character that is no token: its bytes, or one unknown token for a whole run.
/// False: no memory.
bool push_unknown(const bcq_tokenizer& tokenizer, const uint8_t* text, uint32_t begin,
                  uint32_t bytes, MergeSpace* merging) {
  if (tokenizer.section.falls_back_to_bytes) {
    for (uint32_t i = begin; i < begin + bytes; ++i) {
      const int32_t byte_id = tokenizer.byte_ids[text[i]];
      const int32_t id = byte_id >= 0 ? byte_id : tokenizer.section.unknown;
      if (id >= 0 && !merging->push(i, 1, id, false)) return false;
    }
    return true;
  }
  const int32_t unknown = tokenizer.section.unknown;
  const size_t num = merging->symbols.size();
  if (unknown < 0 || (num > 0 && merging->symbols[num - 1].id == unknown)) return true;
  return merging->push(begin, bytes, unknown, false);
}

/// Where the word ends that begins at `begin`: before the next mark, or nowhere but at the end.
size_t end_of_word(const TokenSection& section, Text text, size_t begin) {
  if (!section.cuts_at_marks) return text.bytes;
  size_t end = begin + 1;
  while (end < text.bytes && !begins_with_mark({text.data + end, text.bytes - end})) ++end;
  return end;
}

bool encode_word(const bcq_tokenizer& tokenizer, Text word, MergeSpace* merging, IdSink* ids) {
  merging->symbols.clear();
  for (uint32_t at = 0; at < word.bytes;) {
    const uint32_t bytes = read_utf8(word.data + at, word.bytes - at).bytes;
    const int32_t id = tokenizer.words.find({word.data + at, bytes});
    const bool is_done = id >= 0 ? merging->push(at, bytes, id, false)
                                 : push_unknown(tokenizer, word.data, at, bytes, merging);
    if (!is_done) return false;
    at += bytes;
  }
  if (!merge_all(MergeByRank{&tokenizer}, merging)) return false;
  for (const Symbol& symbol : merging->symbols) {
    if (symbol.bytes > 0) ids->push(symbol.id);
  }
  return true;
}

}  // namespace

bcq_status prepare_characters(bcq_tokenizer* tokenizer) {
  const TokenSection& section = tokenizer->section;
  const TypeMask cut = mask_of(kUnknown) | mask_of(kControl) | mask_of(kUserDefined);
  if (!tokenizer->words.create(section) || !tokenizer->cut.create(section, cut) ||
      !prepare_shown(tokenizer)) {
    return BCQ_OUT_OF_MEMORY;
  }
  for (uint32_t id = 0; id < section.num_tokens; ++id) {
    if (section.type(id) == kNormal && section.text(id).bytes > 0) tokenizer->words.add(id);
  }
  for (const uint32_t id : tokenizer->cut.ids()) {
    const Text text = section.text(id);
    if (read_utf8(text.data, text.bytes).bytes == text.bytes) tokenizer->words.add(id);
  }
  prepare_byte_pieces(tokenizer);
  return prepare_rank_merges(tokenizer);
}

bool encode_characters(const bcq_tokenizer& tokenizer, Text text, bool is_start, EncodeSpace* space,
                       IdSink* ids) {
  if (!prepare_text(tokenizer.section, text, is_start, &space->text)) return false;
  const Text prepared = {space->text.data(), space->text.size()};
  for (size_t begin = 0; begin < prepared.bytes;) {
    const size_t end = end_of_word(tokenizer.section, prepared, begin);
    const Text word = {prepared.data + begin, end - begin};
    if (!encode_word(tokenizer, word, &space->merging, ids)) return false;
    begin = end;
  }
  return true;
}

}  // namespace bcq

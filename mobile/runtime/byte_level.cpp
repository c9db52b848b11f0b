/// Byte-level BPE: words of the pre-tokenizer, bytes merged by rank.
#include "runtime/pre_tokenizer.h"
#include "runtime/rank_merges.h"
#include "runtime/tokenizer.h"

namespace bcq {
namespace {

bool merge_word(const bcq_tokenizer& tokenizer, Text word, MergeSpace* merging, IdSink* ids) {
  merging->symbols.clear();
  for (size_t i = 0; i < word.bytes; ++i) {
    int32_t id = tokenizer.byte_ids[word.data[i]];
    if (id < 0) id = tokenizer.section.unknown;
    if (id >= 0 && !merging->push(static_cast<uint32_t>(i), 1, id, false)) return false;
  }
  if (!merge_all(MergeByRank{&tokenizer}, merging)) return false;
  for (const Symbol& symbol : merging->symbols) {
    if (symbol.bytes > 0) ids->push(symbol.id);
  }
  return true;
}

}  // namespace

bcq_status prepare_byte_level(bcq_tokenizer* tokenizer) {
  const TokenSection& section = tokenizer->section;
  const TypeMask cut = mask_of(kUnknown) | mask_of(kControl) | mask_of(kUserDefined);
  if (!tokenizer->words.create(section) || !tokenizer->cut.create(section, cut)) {
    return BCQ_OUT_OF_MEMORY;
  }
  for (uint32_t id = 0; id < section.num_tokens; ++id) {
    if (section.type(id) == kNormal && section.text(id).bytes > 0) tokenizer->words.add(id);
  }
  for (const uint32_t id : tokenizer->cut.ids()) {
    if (section.text(id).bytes == 1) tokenizer->words.add(id);
  }
  const bcq_status status = prepare_rank_merges(tokenizer);
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const uint8_t text = static_cast<uint8_t>(byte);
    tokenizer->byte_ids[byte] = tokenizer->words.find({&text, 1});
  }
  return status;
}

bool encode_byte_level(const bcq_tokenizer& tokenizer, Text text, EncodeSpace* space, IdSink* ids) {
  WordSplitter splitter(tokenizer.section.split_rule, text.data, text.bytes);
  for (size_t begin = 0; begin < text.bytes;) {
    const size_t end = splitter.end_of_word(begin);
    const Text word = {text.data + begin, end - begin};
    const int32_t id = tokenizer.section.takes_whole_words ? tokenizer.words.find(word) : -1;
    if (id >= 0) {
      ids->push(id);
    } else if (!merge_word(tokenizer, word, &space->merging, ids)) {
      return false;
    }
    begin = end;
  }
  return true;
}

}  // namespace bcq

/// What bcq_tokenizer holds, for the two encoders and the stream.
#ifndef BCQ_RUNTIME_TOKENIZER_H_
#define BCQ_RUNTIME_TOKENIZER_H_

#include <stddef.h>
#include <stdint.h>

#include "bcq/runtime.h"
#include "runtime/memory.h"
#include "runtime/merging.h"
#include "runtime/nfc.h"
#include "runtime/token_section.h"
#include "runtime/token_tables.h"

/// Made once, never changed, so shared by any number of threads.
struct bcq_tokenizer {
  bcq::TokenSection section;
  bcq::PrefixMatcher cut;        ///< tokens that are cut out of a text before anything else
  bcq::PrefixMatcher whole;      ///< SentencePiece: user-defined pieces, cut out of prepared text
  bcq::TextTable words;          ///< what merging can make
  int32_t byte_ids[256];         ///< the token of each byte, or -1
  bcq::Buffer<uint32_t> merges;  ///< hash table of merges, index + 1
  bcq::Buffer<int32_t> merged;   ///< what each merge makes
  bcq::Buffer<uint8_t> shown;    ///< kinds that mark spaces: texts with real ones
  bcq::Buffer<uint32_t> shown_begins;
};

namespace bcq {

/// Where ids go: counted all, written while there is room.
struct IdSink {
  int32_t* ids;
  size_t capacity;
  size_t num;

  void push(int32_t id) {
    if (num < capacity) ids[num] = id;
    ++num;
  }
};

/// Scratch of one call.
struct EncodeSpace {
  Buffer<uint8_t> text;  ///< with spaces prepared
  NfcSpace normal;
  MergeSpace merging;
};

/// Fills `byte_ids` and the tables of a SentencePiece vocabulary. Errors: BCQ_OUT_OF_MEMORY.
bcq_status prepare_sentencepiece(bcq_tokenizer* tokenizer);
/// Ids of a stretch of valid UTF-8 without special tokens, at most 2^28 bytes. False: no memory.
bool encode_sentencepiece(const bcq_tokenizer& tokenizer, Text text, EncodeSpace* space,
                          IdSink* ids);

/// The same for byte-level BPE. Errors: also BCQ_BAD_BLOB (a merge that makes no token).
bcq_status prepare_byte_level(bcq_tokenizer* tokenizer);
bool encode_byte_level(const bcq_tokenizer& tokenizer, Text text, EncodeSpace* space, IdSink* ids);

/// The same for BPE over characters; `is_start`: nothing of the whole text is before the stretch.
bcq_status prepare_characters(bcq_tokenizer* tokenizer);
bool encode_characters(const bcq_tokenizer& tokenizer, Text text, bool is_start, EncodeSpace* space,
                       IdSink* ids);

}  // namespace bcq
#endif  // BCQ_RUNTIME_TOKENIZER_H_

/// How vocabularies that mark spaces with U+2581 spell text.
#ifndef BCQ_RUNTIME_PIECE_TEXT_H_
#define BCQ_RUNTIME_PIECE_TEXT_H_

#include "runtime/tokenizer.h"

namespace bcq {

/// The byte that a piece such as "<0x0A>" stands for, or -1.
int byte_of_piece(Text piece);

/// Whether a text begins with U+2581.
bool begins_with_mark(Text text);

/// Marks spaces, puts the dummy prefix before a stretch that is not empty, and squeezes if the
/// model does, as SentencePiece's identity normalizer and Metaspace of `tokenizers`. `is_start`:
/// nothing of the whole text is before the stretch. False: no memory.
bool prepare_text(const TokenSection& section, Text text, bool is_start, Buffer<uint8_t>* out);

/// Fills `shown` and `shown_begins` of a tokenizer whose section is read. False: no memory.
bool prepare_shown(bcq_tokenizer* tokenizer);

/// Fills `byte_ids` from the byte pieces; a byte without one gets -1.
void prepare_byte_pieces(bcq_tokenizer* tokenizer);

}  // namespace bcq
#endif  // BCQ_RUNTIME_PIECE_TEXT_H_

/// UTF-8, and what a character is to a pre-tokenizer.
#ifndef BCQ_RUNTIME_UNICODE_H_
#define BCQ_RUNTIME_UNICODE_H_

#include <stddef.h>
#include <stdint.h>

#include "runtime/memory.h"

namespace bcq {

enum class Utf8 : uint8_t {
  kValid,
  kIncomplete,  ///< the text ends inside a character that could still become valid
  kInvalid,
};

/// The first character of a text.
struct Utf8Char {
  uint32_t code;   ///< 0xFFFD unless valid
  uint32_t bytes;  ///< 1 to 4: of the character, or of what one U+FFFD stands for
  Utf8 state;
};

/// Reads one character of `bytes` >= 1 bytes. What is invalid is cut as Unicode recommends and
/// Python does: the longest start of a character is one U+FFFD.
Utf8Char read_utf8(const uint8_t* text, size_t bytes);

/// Whether a text has nothing but whole, valid characters.
bool is_utf8(const uint8_t* text, size_t bytes);

/// Appends `text` to `out` with U+FFFD for what is invalid or, at the end, incomplete. False: no
/// memory.
bool append_utf8(const uint8_t* text, size_t bytes, Buffer<uint8_t>* out);

enum class CharClass : uint8_t {
  kOther = 0,
  kLetter = 1,       ///< \p{L}
  kNumber = 2,       ///< \p{N}
  kSpace = 3,        ///< \s
  kLaterNumber = 4,  ///< a number only to the Digits step of `tokenizers`, whose Unicode is newer
};

/// The class of any number; of one beyond Unicode kOther.
CharClass char_class(uint32_t code);

}  // namespace bcq
#endif  // BCQ_RUNTIME_UNICODE_H_

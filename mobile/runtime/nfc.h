/// Unicode's normalization form C, as the `tokenizers` library has it.
#ifndef BCQ_RUNTIME_NFC_H_
#define BCQ_RUNTIME_NFC_H_

#include <stddef.h>
#include <stdint.h>

#include "runtime/memory.h"

namespace bcq {

/// Scratch of one normalization, to be used again.
struct NfcSpace {
  Buffer<uint64_t> points;
  Buffer<uint8_t> text;
};

/// Normalizes valid UTF-8 of at most 2^28 bytes. Afterwards *data and *bytes are the result: the
/// text itself if it holds nothing that could change, else `space->text`, at most three times as
/// long. O(n log n) for marks without end, else linear. False: no memory.
bool normalize_nfc(const uint8_t** data, size_t* bytes, NfcSpace* space);

}  // namespace bcq
#endif  // BCQ_RUNTIME_NFC_H_

/// A saved session: the tokens held and their caches, for the package that made them.
///
/// Little endian, without gaps:
///
///     StateHeader
///     int32 ids[position]
///     for each layer, for each kv head, blocks = position / 16 rounded up:
///       keys    [blocks][D][16]   of the cache's type
///       values  [blocks][16][D]
///       key scales, value scales, float32 [blocks][16] each, of int8 caches alone
///     SHA-256 of all bytes before
///
/// A reader compares the file's size with what the header asks for, so nothing may follow.
#ifndef BCQ_RUNTIME_STATE_H_
#define BCQ_RUNTIME_STATE_H_

#include <stdint.h>

#include "runtime/sha256.h"

/// A module for browsers imports nothing, so nothing that writes files may be linked into it.
#if defined(__wasm__)
#define BCQ_WRITES_FILES 0
#else
#define BCQ_WRITES_FILES 1
#endif

namespace bcq {

constexpr char kStateMagic[8] = {'B', 'C', 'Q', 'S', 'T', 'A', 'T', 'E'};
constexpr uint32_t kStateVersion = 1;

/// The start of the file.
struct StateHeader {
  char magic[8];                  ///< kStateMagic
  uint32_t version;               ///< kStateVersion
  uint32_t kv_type;               ///< bcq_kv_type of the caches
  uint64_t position;              ///< tokens
  uint8_t package[kDigestBytes];  ///< SHA-256 of the package's index, from its header
  uint64_t zero;
};
static_assert(sizeof(StateHeader) == 64, "the layout of the file");

}  // namespace bcq
#endif  // BCQ_RUNTIME_STATE_H_

/// The frames of a conversation (section kind 66), as bcq_chat_render reads them.
#ifndef BCQ_RUNTIME_CHAT_H_
#define BCQ_RUNTIME_CHAT_H_

#include <stddef.h>
#include <stdint.h>

#include "bcq/runtime.h"

namespace bcq {

/// What stands between the quotes of a JSON string whose escapes and UTF-8 were checked; it points
/// into the section.
struct JsonText {
  const char* data;
  size_t bytes;
};

/// What stands around the messages of a conversation; roles are numbered as bcq_role is.
struct ChatFrames {
  JsonText bos, no_system, generate;
  JsonText before[3], after[3];
  bool has_role[3];
  bool trims;  ///< white space at both ends of every content goes
};

/// Reads the JSON of docs/formats/bcq_package_v1.md and nothing else; allocates nothing.
/// Errors: BCQ_BAD_BLOB (not JSON of this shape, with the byte where it stops being so),
/// BCQ_UNSUPPORTED (a key that this version does not know).
bcq_status parse_chat_frames(const char* json, size_t bytes, ChatFrames* frames);

/// Writes what a checked string says to `out`, null: only counts. Returns its bytes, never more
/// than text.bytes.
size_t decode(JsonText text, char* out);

}  // namespace bcq
#endif  // BCQ_RUNTIME_CHAT_H_

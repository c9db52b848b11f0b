/// Ids in, whole characters out.
#include <string.h>

#include "bcq/runtime.h"
#include "runtime/error.h"
#include "runtime/memory.h"
#include "runtime/tokenizer.h"
#include "runtime/unicode.h"

struct bcq_stream {
  const bcq_tokenizer* tokenizer;
  bool strips_space;             ///< from the first token that shows anything
  bcq::Buffer<uint8_t> pending;  ///< the start of a character, then the bytes of the new token
  bcq::Buffer<uint8_t> text;     ///< what the last call gave
};

namespace {

/// Bytes at the end that begin a character.
size_t incomplete_bytes(const uint8_t* text, size_t bytes) {
  // At most three bytes; fewer if one of them does not go on what is before it.
  for (size_t back = bytes < 3 ? bytes : 3; back > 0; --back) {
    const bcq::Utf8Char last = bcq::read_utf8(text + bytes - back, back);
    if (last.state == bcq::Utf8::kIncomplete && last.bytes == back) return back;
    // Two thirds of a surrogate never become a character, but Python waits for the third byte.
    if (back == 2 && text[bytes - 2] == 0xED && text[bytes - 1] >= 0xA0 && text[bytes - 1] < 0xC0) {
      return back;
    }
  }
  return 0;
}

/// Moves all of `pending` but its last `kept` bytes to `text`. False: no memory.
bool emit(bcq_stream* stream, size_t kept) {
  bcq::Buffer<uint8_t>* const pending = &stream->pending;
  const size_t done = pending->size() - kept;
  stream->text.clear();
  if (!bcq::append_utf8(pending->data(), done, &stream->text)) return false;
  if (kept > 0 && done > 0) memmove(pending->data(), pending->data() + done, kept);
  return pending->resize(kept);
}

bcq_status hand_out(bcq_stream* stream, bool is_done, const char** text, size_t* bytes) {
  if (!is_done) {
    *text = nullptr;
    *bytes = 0;
    return bcq::fail(BCQ_OUT_OF_MEMORY, "no memory for the text of a token");
  }
  *text = reinterpret_cast<const char*>(stream->text.data());
  *bytes = stream->text.size();
  return BCQ_OK;
}

}  // namespace

extern "C" {

bcq_status bcq_stream_create(const bcq_tokenizer* tokenizer, int32_t is_continuation,
                             bcq_stream** stream) {
  if (stream == nullptr || tokenizer == nullptr) {
    if (stream != nullptr) *stream = nullptr;
    return bcq::fail(BCQ_BAD_ARGUMENT, "bcq_stream_create: a pointer is null");
  }
  *stream = bcq::create<bcq_stream>();
  if (*stream == nullptr) return bcq::fail(BCQ_OUT_OF_MEMORY, "no memory for a stream");
  const bcq::TokenSection& section = tokenizer->section;
  (*stream)->tokenizer = tokenizer;
  (*stream)->strips_space =
      is_continuation == 0 && (section.adds_prefix || section.squeezes_spaces);
  return BCQ_OK;
}

void bcq_stream_destroy(bcq_stream* stream) { bcq::destroy(stream); }

bcq_status bcq_stream_push(bcq_stream* stream, int32_t id, const char** text, size_t* bytes) {
  if (stream == nullptr || text == nullptr || bytes == nullptr) {
    return bcq::fail(BCQ_BAD_ARGUMENT, "bcq_stream_push: a pointer is null");
  }
  const char* data = nullptr;
  size_t num = 0;
  const bcq_status status = bcq_tokenizer_token(stream->tokenizer, id, &data, &num);
  if (status != BCQ_OK) return status;
  if (num > 0 && stream->strips_space) {
    stream->strips_space = false;
    if (data[0] == ' ') {
      ++data;
      --num;
    }
  }
  bool is_done = stream->pending.append(reinterpret_cast<const uint8_t*>(data), num);
  is_done =
      is_done && emit(stream, incomplete_bytes(stream->pending.data(), stream->pending.size()));
  return hand_out(stream, is_done, text, bytes);
}

bcq_status bcq_stream_end(bcq_stream* stream, const char** text, size_t* bytes) {
  if (stream == nullptr || text == nullptr || bytes == nullptr) {
    return bcq::fail(BCQ_BAD_ARGUMENT, "bcq_stream_end: a pointer is null");
  }
  return hand_out(stream, emit(stream, 0), text, bytes);
}

}  // extern "C"

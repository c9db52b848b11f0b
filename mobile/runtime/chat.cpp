/// bcq_chat_render: a strict reader for the one shape of JSON that chat frames have, and the
/// prompt.
#include "runtime/chat.h"

#include <string.h>

#include "runtime/error.h"
#include "runtime/memory.h"
#include "runtime/unicode.h"

namespace bcq {
namespace {

struct Reader {
  const char* start;
  const char* at;
  const char* end;
};

bcq_status damaged(const Reader& reader, const char* needed) {
  return fail(BCQ_BAD_BLOB, "chat frames: byte %zu: %s is needed",
              static_cast<size_t>(reader.at - reader.start), needed);
}

void skip_space(Reader* reader) {
  while (reader->at < reader->end && (*reader->at == ' ' || *reader->at == '\n' ||
                                      *reader->at == '\r' || *reader->at == '\t')) {
    ++reader->at;
  }
}

/// Steps over white space and then over `wanted`, if it is there.
bool take(Reader* reader, char wanted) {
  skip_space(reader);
  if (reader->at == reader->end || *reader->at != wanted) return false;
  ++reader->at;
  return true;
}

/// The number that 4 hexadecimal digits spell, or -1.
int32_t hex4(const char* at, const char* end) {
  if (end - at < 4) return -1;
  int32_t value = 0;
  for (int i = 0; i < 4; ++i) {
    const char c = at[i];
    const char lower = static_cast<char>(c | 0x20);
    if (c >= '0' && c <= '9') {
      value = value * 16 + (c - '0');
    } else if (lower >= 'a' && lower <= 'f') {
      value = value * 16 + (lower - 'a' + 10);
    } else {
      return -1;
    }
  }
  return value;
}

/// The code point behind "\u"; *bytes: 4, or 10 for a pair of surrogates. -1: there is none.
int32_t code_point(const char* at, const char* end, size_t* bytes) {
  const int32_t first = hex4(at, end);
  *bytes = 4;
  if (first < 0xD800 || first > 0xDFFF) return first;
  if (first > 0xDBFF || end - at < 10 || at[4] != '\\' || at[5] != 'u') return -1;
  const int32_t second = hex4(at + 6, end);
  if (second < 0xDC00 || second > 0xDFFF) return -1;
  *bytes = 10;
  return 0x10000 + (first - 0xD800) * 0x400 + (second - 0xDC00);
}

/// Writes a code point as UTF-8 to `out` [4]; returns its bytes.
size_t write_utf8(int32_t point, char* out) {
  if (point < 0x80) {
    out[0] = static_cast<char>(point);
    return 1;
  }
  const size_t bytes = point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
  for (size_t i = bytes - 1; i > 0; --i, point >>= 6) {
    out[i] = static_cast<char>(0x80 | (point & 0x3F));
  }
  out[0] = static_cast<char>((0xF00 >> bytes) | point);  // 0xC0, 0xE0, 0xF0 in the low byte
  return bytes;
}

/// Bytes of the UTF-8 character beyond ASCII at `at`; 0 where there is no valid one.
size_t utf8_bytes(const char* at, const char* end) {
  const uint8_t lead = static_cast<uint8_t>(*at);
  const size_t bytes = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || static_cast<size_t>(end - at) < bytes) return 0;
  int32_t point = lead & (0x7F >> bytes);
  for (size_t i = 1; i < bytes; ++i) {
    if ((static_cast<uint8_t>(at[i]) & 0xC0) != 0x80) return 0;
    point = point << 6 | (at[i] & 0x3F);
  }
  const bool is_overlong = bytes == 3 ? point < 0x800 : bytes == 4 && point < 0x10000;
  const bool is_none = (point >= 0xD800 && point <= 0xDFFF) || point > 0x10FFFF;
  return is_overlong || is_none ? 0 : bytes;
}

/// What the letter behind a backslash stands for; 0: it is no such letter ('u' is another matter).
char simple_escape(char letter) {
  static const char kLetters[] = "\"\\/bfnrt";
  static const char kMeanings[] = "\"\\/\b\f\n\r\t";
  const char* found = static_cast<const char*>(memchr(kLetters, letter, sizeof(kLetters) - 1));
  return found != nullptr ? kMeanings[found - kLetters] : '\0';
}

/// Bytes of the escape at `at`, which is a backslash; 0: there is no such escape.
size_t escape_bytes(const char* at, const char* end) {
  if (end - at < 2) return 0;
  if (at[1] != 'u') return simple_escape(at[1]) != '\0' ? 2 : 0;
  size_t digits;
  return code_point(at + 2, end, &digits) < 0 ? 0 : 2 + digits;
}

bcq_status read_string(Reader* reader, JsonText* text) {
  if (!take(reader, '"')) return damaged(*reader, "a string");
  const char* const first = reader->at;
  while (reader->at < reader->end && *reader->at != '"') {
    const uint8_t byte = static_cast<uint8_t>(*reader->at);
    size_t bytes = 1;
    if (byte == '\\') {
      bytes = escape_bytes(reader->at, reader->end);
    } else if (byte >= 0x80) {
      bytes = utf8_bytes(reader->at, reader->end);
    } else if (byte < 0x20) {
      bytes = 0;
    }
    if (bytes == 0) return damaged(*reader, "a character of a JSON string");
    reader->at += bytes;
  }
  *text = {first, static_cast<size_t>(reader->at - first)};
  return take(reader, '"') ? BCQ_OK : damaged(*reader, "the end of a string");
}

/// The place of a key among `names` in *index, and its colon.
bcq_status read_key(Reader* reader, const char* const* names, int32_t num, int32_t* index) {
  JsonText key;
  const bcq_status status = read_string(reader, &key);
  if (status != BCQ_OK) return status;
  for (int32_t i = 0; i < num; ++i) {
    if (strlen(names[i]) != key.bytes || memcmp(names[i], key.data, key.bytes) != 0) continue;
    *index = i;
    return take(reader, ':') ? BCQ_OK : damaged(*reader, "a colon");
  }
  return fail(BCQ_UNSUPPORTED, "chat frames: byte %zu: this version does not know the key",
              static_cast<size_t>(key.data - reader->start));
}

/// Reads `{"name": value, ...}`: every name at most once; *found has a bit for each that was there.
template <class ReadValue>
bcq_status read_object(Reader* reader, const char* const* names, int32_t num, ReadValue read_value,
                       uint32_t* found) {
  *found = 0;
  if (!take(reader, '{')) return damaged(*reader, "an object");
  do {
    int32_t index = 0;
    bcq_status status = read_key(reader, names, num, &index);
    if (status != BCQ_OK) return status;
    if ((*found >> index & 1) != 0) return damaged(*reader, "a key that was not there before");
    *found |= uint32_t{1} << index;
    status = read_value(index);
    if (status != BCQ_OK) return status;
  } while (take(reader, ','));
  return take(reader, '}') ? BCQ_OK : damaged(*reader, "a comma or the end of an object");
}

bcq_status read_pair(Reader* reader, JsonText* first, JsonText* second) {
  if (!take(reader, '[')) return damaged(*reader, "a list of two strings");
  bcq_status status = read_string(reader, first);
  if (status != BCQ_OK) return status;
  if (!take(reader, ',')) return damaged(*reader, "a comma");
  status = read_string(reader, second);
  if (status != BCQ_OK) return status;
  return take(reader, ']') ? BCQ_OK : damaged(*reader, "the end of a list of two");
}

/// Steps over `word`, if it is there.
bool take_word(Reader* reader, const char* word) {
  const size_t bytes = strlen(word);
  const bool is_there = static_cast<size_t>(reader->end - reader->at) >= bytes &&
                        memcmp(reader->at, word, bytes) == 0;
  if (is_there) reader->at += bytes;
  return is_there;
}

bcq_status read_bool(Reader* reader, bool* value) {
  skip_space(reader);
  *value = take_word(reader, "true");
  return *value || take_word(reader, "false") ? BCQ_OK : damaged(*reader, "true or false");
}

bcq_status read_roles(Reader* reader, ChatFrames* frames) {
  static const char* const kNames[] = {"system", "user", "assistant"};
  uint32_t found;
  const auto read_role = [&](int32_t role) {
    return read_pair(reader, &frames->before[role], &frames->after[role]);
  };
  const bcq_status status = read_object(reader, kNames, 3, read_role, &found);
  if (status != BCQ_OK) return status;
  for (int32_t role = 0; role < 3; ++role) frames->has_role[role] = (found >> role & 1) != 0;
  return frames->has_role[BCQ_USER] && frames->has_role[BCQ_ASSISTANT]
             ? BCQ_OK
             : damaged(*reader, "a frame of user and assistant");
}

/// Why these frames have no place for a message; null: they have.
const char* misplaced(const ChatFrames& frames, int32_t role, int32_t index) {
  if (!frames.has_role[role]) return "this model's chat has no system message";
  return role == BCQ_SYSTEM && index > 0 ? "only the first message can be a system message"
                                         : nullptr;
}

/// White space as Python's str.strip, and so a template's `trim`, has it.
bool is_white(uint32_t code) {
  return char_class(code) == CharClass::kSpace || (code >= 0x1C && code <= 0x1F);
}

/// Takes white space off both ends of *text; what is no UTF-8 is none.
void trim(const uint8_t** text, size_t* bytes) {
  while (*bytes > 0) {
    const Utf8Char first = read_utf8(*text, *bytes);
    if (!is_white(first.code)) break;
    *text += first.bytes;
    *bytes -= first.bytes;
  }
  while (*bytes > 0) {
    size_t begin = *bytes - 1;
    while (begin > 0 && *bytes - begin < 4 && ((*text)[begin] & 0xC0) == 0x80) --begin;
    const Utf8Char last = read_utf8(*text + begin, *bytes - begin);
    if (last.bytes != *bytes - begin || !is_white(last.code)) break;
    *bytes = begin;
  }
}

/// A place to write to that counts beyond its end.
struct Output {
  char* out;  // null: only count
  size_t bytes;
  bool has_overflow;
};

void put(Output* output, JsonText text) {
  char* const out = output->out != nullptr ? output->out + output->bytes : nullptr;
  output->has_overflow |= !add(output->bytes, decode(text, out), &output->bytes);
}

void put_content(Output* output, const bcq_message& message, bool trims) {
  const uint8_t* content = reinterpret_cast<const uint8_t*>(message.content);
  size_t bytes = message.content_bytes;
  if (trims) trim(&content, &bytes);
  if (output->out != nullptr && bytes != 0) memcpy(output->out + output->bytes, content, bytes);
  output->has_overflow |= !add(output->bytes, bytes, &output->bytes);
}

/// The prompt's bytes; `out`, unless null, has room for them all.
Output render(const ChatFrames& frames, const bcq_message* messages, int32_t num, char* out) {
  Output output = {out, 0, false};
  put(&output, frames.bos);
  if (messages[0].role != BCQ_SYSTEM) put(&output, frames.no_system);
  for (int32_t i = 0; i < num; ++i) {
    put(&output, frames.before[messages[i].role]);
    put_content(&output, messages[i], frames.trims);
    put(&output, frames.after[messages[i].role]);
  }
  put(&output, frames.generate);
  return output;
}

}  // namespace

size_t decode(JsonText text, char* out) {
  size_t written = 0;
  const char* const end = text.data + text.bytes;
  for (const char* at = text.data; at < end;) {
    char character[4] = {*at};
    size_t num = 1;
    if (*at != '\\') {
      ++at;
    } else if (at[1] != 'u') {
      character[0] = simple_escape(at[1]);
      at += 2;
    } else {
      size_t digits;
      num = write_utf8(code_point(at + 2, end, &digits), character);
      at += 2 + digits;
    }
    if (out != nullptr) memcpy(out + written, character, num);
    written += num;
  }
  return written;
}

bcq_status parse_chat_frames(const char* json, size_t bytes, ChatFrames* frames) {
  static const char* const kNames[] = {"bos", "no_system", "generate", "roles", "trim"};
  *frames = {};
  JsonText* const texts[] = {&frames->bos, &frames->no_system, &frames->generate};
  Reader reader = {json, json, json + bytes};
  uint32_t found;
  const auto read_value = [&](int32_t index) {
    if (index < 3) return read_string(&reader, texts[index]);
    return index == 3 ? read_roles(&reader, frames) : read_bool(&reader, &frames->trims);
  };
  const bcq_status status = read_object(&reader, kNames, 5, read_value, &found);
  if (status != BCQ_OK) return status;
  if ((found & 15) != 15) return damaged(reader, "each of bos, no_system, generate and roles");
  skip_space(&reader);
  return reader.at == reader.end ? BCQ_OK : damaged(reader, "the end");
}

}  // namespace bcq

bcq_status bcq_chat_render(const void* frames, size_t frames_bytes, const bcq_message* messages,
                           int32_t num, char* out, size_t capacity, size_t* needed) {
  using bcq::fail;
  if (needed == nullptr) return fail(BCQ_BAD_ARGUMENT, "bcq_chat_render: needed is null");
  *needed = 0;
  if (frames == nullptr || messages == nullptr || (out == nullptr && capacity > 0)) {
    return fail(BCQ_BAD_ARGUMENT, "bcq_chat_render: an argument is null");
  }
  if (num < 1) return fail(BCQ_BAD_ARGUMENT, "bcq_chat_render: a conversation has no message");
  bcq::ChatFrames parsed;
  const bcq_status status =
      bcq::parse_chat_frames(static_cast<const char*>(frames), frames_bytes, &parsed);
  if (status != BCQ_OK) return status;
  for (int32_t i = 0; i < num; ++i) {
    const bcq_message& message = messages[i];
    if (message.role < BCQ_SYSTEM || message.role > BCQ_ASSISTANT ||
        (message.content == nullptr && message.content_bytes > 0)) {
      return fail(BCQ_BAD_ARGUMENT, "message %d has no such role or no content", i);
    }
    if (const char* reason = bcq::misplaced(parsed, message.role, i)) {
      return fail(BCQ_UNSUPPORTED, "message %d: %s", i, reason);
    }
  }
  const bcq::Output counted = bcq::render(parsed, messages, num, nullptr);
  if (counted.has_overflow) return fail(BCQ_BAD_SHAPE, "the prompt has more than SIZE_MAX bytes");
  *needed = counted.bytes;
  if (out != nullptr && capacity >= counted.bytes) bcq::render(parsed, messages, num, out);
  return BCQ_OK;
}

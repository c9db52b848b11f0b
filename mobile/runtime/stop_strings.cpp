#include "runtime/stop_strings.h"

#include "bcq/runtime.h"
#include "runtime/error.h"

namespace bcq {

bool StopStrings::add_string(const char* data, size_t bytes) {
  const Stop stop = {characters_.size(), bytes, 0};
  if (!characters_.append(data, bytes)) return false;
  size_t border = 0;
  if (!borders_.push(0)) return false;
  for (size_t i = 1; i < bytes; ++i) {
    while (border != 0 && data[i] != data[border]) border = borders_[stop.first + border - 1];
    if (data[i] == data[border]) ++border;
    if (!borders_.push(border)) return false;
  }
  return stops_.push(stop);
}

bool StopStrings::advance(Stop* stop, char byte) const {
  const char* const characters = characters_.data() + stop->first;
  const size_t* const borders = borders_.data() + stop->first;
  // Only the last push completes a string, so matched < bytes here.
  while (stop->matched != 0 && byte != characters[stop->matched]) {
    stop->matched = borders[stop->matched - 1];
  }
  if (byte == characters[stop->matched]) ++stop->matched;
  return stop->matched == stop->bytes;
}

size_t StopStrings::num_held() const {
  size_t longest = 0;
  for (const Stop& stop : stops_) {
    if (stop.matched > longest) longest = stop.matched;
  }
  return longest;
}

void StopStrings::forget_shown() {
  const size_t num_left = text_.size() - num_shown_;
  if (num_left != 0) memmove(text_.data(), text_.data() + num_shown_, num_left);
  text_.resize(num_left);  // shrinking needs no memory
  num_shown_ = 0;
}

bool StopStrings::push(const char* piece, size_t piece_bytes, const char** text, size_t* bytes) {
  forget_shown();
  *bytes = 0;
  if (!is_found) {
    const size_t num_before = text_.size();
    if (!text_.append(piece, piece_bytes)) return false;
    size_t first = text_.size();  // where the first complete stop string begins
    for (Stop& stop : stops_) {
      for (size_t i = num_before; i < text_.size(); ++i) {
        if (!advance(&stop, text_[i])) continue;
        is_found = true;
        if (i + 1 - stop.bytes < first) first = i + 1 - stop.bytes;
        break;
      }
    }
    num_shown_ = is_found ? first : text_.size() - num_held();
    *bytes = num_shown_;
  }
  *text = text_.data();
  return true;
}

void StopStrings::end(const char** text, size_t* bytes) {
  forget_shown();
  *bytes = is_found ? 0 : text_.size();
  *text = text_.data();
  num_shown_ = text_.size();
  for (Stop& stop : stops_) stop.matched = 0;
}

}  // namespace bcq

struct bcq_stop {
  bcq::StopStrings strings;
};

bcq_status bcq_stop_create(const char* const* strings, const size_t* bytes, int32_t num,
                           bcq_stop** stop) {
  using bcq::fail;
  if (stop == nullptr) return fail(BCQ_BAD_ARGUMENT, "bcq_stop_create: stop is null");
  *stop = nullptr;
  if (num < 0 || (num > 0 && (strings == nullptr || bytes == nullptr))) {
    return fail(BCQ_BAD_ARGUMENT, "bcq_stop_create: an argument is null or negative");
  }
  for (int32_t i = 0; i < num; ++i) {
    if (strings[i] == nullptr || bytes[i] == 0) {
      return fail(BCQ_BAD_ARGUMENT, "a stop string is empty; give at least one character");
    }
  }
  bcq_stop* made = bcq::create<bcq_stop>();
  bool has_memory = made != nullptr;
  for (int32_t i = 0; has_memory && i < num; ++i) {
    has_memory = made->strings.add_string(strings[i], bytes[i]);
  }
  if (!has_memory) {
    bcq::destroy(made);
    return fail(BCQ_OUT_OF_MEMORY, "no memory for %d stop strings", num);
  }
  *stop = made;
  return BCQ_OK;
}

void bcq_stop_destroy(bcq_stop* stop) { bcq::destroy(stop); }

bcq_status bcq_stop_push(bcq_stop* stop, const char* piece, size_t piece_bytes, const char** text,
                         size_t* text_bytes, int32_t* is_found) {
  using bcq::fail;
  if (stop == nullptr || (piece == nullptr && piece_bytes > 0) || text == nullptr ||
      text_bytes == nullptr || is_found == nullptr) {
    return fail(BCQ_BAD_ARGUMENT, "bcq_stop_push: an argument is null");
  }
  if (!stop->strings.push(piece, piece_bytes, text, text_bytes)) {
    return fail(BCQ_OUT_OF_MEMORY, "no memory for %zu bytes of text", piece_bytes);
  }
  *is_found = stop->strings.is_found;
  return BCQ_OK;
}

bcq_status bcq_stop_end(bcq_stop* stop, const char** text, size_t* text_bytes) {
  if (stop == nullptr || text == nullptr || text_bytes == nullptr) {
    return bcq::fail(BCQ_BAD_ARGUMENT, "bcq_stop_end: an argument is null");
  }
  stop->strings.end(text, text_bytes);
  return BCQ_OK;
}

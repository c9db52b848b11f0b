#include "runtime/pre_tokenizer.h"

#include "runtime/unicode.h"

namespace bcq {
namespace {

/// A stretch of text that the expressions see as if it were all.
struct Span {
  const uint8_t* text;
  size_t end;
};

struct Char {
  uint32_t code;
  size_t after;  ///< where the next one begins
  CharClass kind;
};

Char char_at(const Span& span, size_t at) {
  const Utf8Char read = read_utf8(span.text + at, span.end - at);
  return {read.code, at + read.bytes, char_class(read.code)};
}

/// The classes of the expressions, which know no later numbers.
CharClass class_of(const Char& c) {
  return c.kind == CharClass::kLaterNumber ? CharClass::kOther : c.kind;
}

bool is_line_end(uint32_t code) { return code == '\r' || code == '\n'; }

/// End of the longest run of one class from `at`, at most `most` characters.
size_t end_of_run(const Span& span, size_t at, CharClass kind, size_t most = SIZE_MAX) {
  for (; at < span.end && most > 0; --most) {
    const Char c = char_at(span, at);
    if (class_of(c) != kind) break;
    at = c.after;
  }
  return at;
}

/// `\s+(?!\S)|\s+` at a space: a run leaves its last space to the word behind it.
size_t end_of_spaces(const Span& span, size_t at) {
  const size_t first_end = char_at(span, at).after;
  size_t last = at, end = first_end;
  while (end < span.end) {
    const Char c = char_at(span, end);
    if (c.kind != CharClass::kSpace) return last == at ? first_end : last;
    last = end;
    end = c.after;
  }
  return end;
}

/// `'s|'t|'re|'ve|'m|'ll|'d`: bytes of a match at `at`, 0 for none. Without regard to case the long
/// s U+017F is an s too.
size_t contraction(const Span& span, size_t at, bool any_case) {
  if (span.text[at] != '\'' || span.end - at < 2) return 0;
  const uint8_t* next = span.text + at + 1;
  const size_t left = span.end - at - 1;
  const uint8_t fold = any_case ? 0x20 : 0;
  const uint8_t a = next[0] | fold;
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
  if (any_case && left >= 2 && next[0] == 0xC5 && next[1] == 0xBF) return 3;
  if (left < 2) return 0;
  const uint8_t b = next[1] | fold;
  return ((a == 'r' || a == 'v') && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

size_t gpt2_word(const Span& span, size_t at) {
  const size_t short_form = contraction(span, at, false);
  if (short_form > 0) return at + short_form;
  Char first = char_at(span, at);
  if (first.code == ' ' && first.after < span.end) {
    const Char second = char_at(span, first.after);
    if (second.kind != CharClass::kSpace) first = second;
  }
  if (first.kind == CharClass::kSpace) return end_of_spaces(span, at);
  return end_of_run(span, first.after, class_of(first));
}

/// `\s*[\r\n]+|\s+(?!\S)|\s+` at a space.
size_t end_of_lines(const Span& span, size_t at) {
  size_t last_line_end = 0;
  for (size_t end = at; end < span.end;) {
    const Char c = char_at(span, end);
    if (c.kind != CharClass::kSpace) break;
    end = c.after;
    if (is_line_end(c.code)) last_line_end = end;
  }
  return last_line_end > 0 ? last_line_end : end_of_spaces(span, at);
}

/// llama3 and qwen2 differ in how many digits make a word.
size_t llama3_word(const Span& span, size_t at, size_t most_digits) {
  const size_t short_form = contraction(span, at, true);
  if (short_form > 0) return at + short_form;
  const Char first = char_at(span, at);
  const CharClass kind = class_of(first);
  if (kind == CharClass::kLetter) return end_of_run(span, first.after, CharClass::kLetter);
  if (kind == CharClass::kNumber) return end_of_run(span, at, kind, most_digits);
  size_t symbols = at;
  if (first.after < span.end) {
    const CharClass next = class_of(char_at(span, first.after));
    if (next == CharClass::kLetter && !is_line_end(first.code)) {
      return end_of_run(span, first.after, next);
    }
    if (first.code == ' ' && next == CharClass::kOther) symbols = first.after;
  }
  if (symbols == at && kind == CharClass::kSpace) return end_of_lines(span, at);
  size_t end = end_of_run(span, symbols, CharClass::kOther);
  while (end < span.end && is_line_end(span.text[end])) ++end;
  return end;
}

}  // namespace

size_t WordSplitter::end_of_word(size_t begin) {
  const Span all = {text_, bytes_};
  if (rule_ == SplitRule::kLlama3) return llama3_word(all, begin, 3);
  if (rule_ == SplitRule::kQwen2) return llama3_word(all, begin, 1);
  if (rule_ == SplitRule::kGpt2) return gpt2_word(all, begin);
  if (begin >= part_end_) {
    const bool has_later = rule_ == SplitRule::kDigitsThenGpt2;
    part_end_ = begin;
    while (part_end_ < bytes_) {
      const Char c = char_at(all, part_end_);
      const bool is_single =
          c.kind == CharClass::kNumber || (has_later && c.kind == CharClass::kLaterNumber);
      if (is_single && part_end_ > begin) break;
      part_end_ = c.after;
      if (is_single) return part_end_;
    }
  }
  return gpt2_word({text_, part_end_}, begin);
}

}  // namespace bcq

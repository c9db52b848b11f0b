/// Ending a text at the first of some strings; the object behind bcq_stop_*.
#ifndef BCQ_RUNTIME_STOP_STRINGS_H_
#define BCQ_RUNTIME_STOP_STRINGS_H_

#include "runtime/memory.h"

namespace bcq {

/// Stop strings and how far the text matches each: what bcquant/runtime/stop_strings.py does, in
/// time that depends on no string's content (Knuth, Morris and Pratt's automaton).
///
/// Bytes are compared. Where pieces are whole UTF-8 characters, as a stream gives them, and stop
/// strings are UTF-8, no character is cut: a start of a stop string that ends a text of whole
/// characters begins and ends between characters.
struct StopStrings {
  /// Takes a stop string of at least 1 byte. False: no memory.
  bool add_string(const char* data, size_t bytes);
  /// Takes a piece; *text, *bytes: what can be shown, inside this object. False: no memory, and the
  /// piece was not taken.
  bool push(const char* piece, size_t piece_bytes, const char** text, size_t* bytes);
  /// What is held back; *text, *bytes as in `push`.
  void end(const char** text, size_t* bytes);

  bool is_found = false;

 private:
  struct Stop {
    size_t first;    // of its bytes in characters_ and of its borders
    size_t bytes;    // at least 1
    size_t matched;  // of its bytes end the text
  };
  /// Takes a byte into the match of one stop string; true if the string is complete.
  bool advance(Stop* stop, char byte) const;
  /// The longest end of the text that is a start of a stop string.
  size_t num_held() const;
  void forget_shown();

  Buffer<Stop> stops_;
  Buffer<char> characters_;  // of all stop strings
  Buffer<size_t> borders_;   // [i]: longest proper start of a stop string that also ends its [..i]
  Buffer<char> text_;        // shown by the last call, then held back
  size_t num_shown_ = 0;     // of text_
};

}  // namespace bcq
#endif  // BCQ_RUNTIME_STOP_STRINGS_H_

/// A whole file of any length, also one that cannot be asked for its size.
#ifndef BCQ_TOOLS_READ_FILE_H_
#define BCQ_TOOLS_READ_FILE_H_

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

namespace bcq {

/// A whole file in memory that the caller frees; null after an error.
inline char* read_file(const char* path, size_t* bytes) {
  FILE* const stream = fopen(path, "rb");
  if (stream == nullptr) return nullptr;
  char* text = nullptr;
  size_t capacity = 0;
  *bytes = 0;
  for (bool is_there = true; is_there;) {
    if (*bytes == capacity) {
      capacity = capacity > 0 ? 2 * capacity : size_t{1} << 16;
      char* const larger = (char*)realloc(text, capacity);
      if (larger == nullptr) break;
      text = larger;
    }
    const size_t got = fread(text + *bytes, 1, capacity - *bytes, stream);
    *bytes += got;
    is_there = got > 0;
  }
  const bool is_whole = feof(stream) != 0 && ferror(stream) == 0;
  fclose(stream);
  if (is_whole) return text;
  free(text);
  return nullptr;
}

}  // namespace bcq
#endif  // BCQ_TOOLS_READ_FILE_H_

/// A whole file as memory that is only read.
#ifndef BCQ_RUNTIME_MAPPED_FILE_H_
#define BCQ_RUNTIME_MAPPED_FILE_H_

#include <stddef.h>
#include <stdint.h>

#include "bcq/status.h"

// Systems without mmap read the file into memory. BCQ_NO_MMAP: tests of that flavour.
#if !defined(BCQ_NO_MMAP) && (defined(__unix__) || defined(__APPLE__)) && !defined(__wasm__)
#define BCQ_HAS_MMAP 1
#else
#define BCQ_HAS_MMAP 0
#endif

namespace bcq {

/// A file's bytes, on a multiple of 64; `unmap_file` gives them back.
struct MappedFile {
  const uint8_t* data;  ///< null: no file
  size_t bytes;
};

/// Opens the file at `path`, which ends in a zero byte. Where it is mapped, another program that
/// cuts the file short while it is used takes pages away from this one, as with every map: an app
/// keeps its packages where only it writes.
/// Errors, with *file empty: BCQ_BAD_ARGUMENT (no such file, no right to read it, a folder),
/// BCQ_BAD_BLOB (it is empty, or reading fails), BCQ_OUT_OF_MEMORY.
bcq_status map_file(const char* path, MappedFile* file);

/// An empty one is allowed; it is empty afterwards.
void unmap_file(MappedFile* file);

}  // namespace bcq
#endif  // BCQ_RUNTIME_MAPPED_FILE_H_

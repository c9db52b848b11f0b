#include "runtime/mapped_file.h"

#include <errno.h>
#include <string.h>

#include "runtime/error.h"
#include "runtime/memory.h"

#if BCQ_HAS_MMAP
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#else
#include <stdio.h>
#endif

namespace bcq {

#if BCQ_HAS_MMAP

namespace {

/// Maps what `handle` refers to.
bcq_status map_handle(int handle, const char* path, MappedFile* file) {
  struct stat about;
  if (fstat(handle, &about) != 0)
    return fail(BCQ_BAD_ARGUMENT, "%s: its size cannot be read (%s).", path, strerror(errno));
  if (!S_ISREG(about.st_mode)) return fail(BCQ_BAD_ARGUMENT, "%s is not a file.", path);
  if (about.st_size <= 0) return fail(BCQ_BAD_BLOB, "%s is empty.", path);
  if ((uint64_t)about.st_size > PTRDIFF_MAX)
    return fail(BCQ_OUT_OF_MEMORY, "%s is larger than this system's address space.", path);
  const size_t bytes = (size_t)about.st_size;
  void* const data = mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, handle, 0);
  if (data == MAP_FAILED)
    return fail(BCQ_OUT_OF_MEMORY, "%s: %zu bytes cannot be mapped (%s).", path, bytes,
                strerror(errno));
  *file = {(const uint8_t*)data, bytes};
  return BCQ_OK;
}

}  // namespace

bcq_status map_file(const char* path, MappedFile* file) {
  *file = {};
  const int handle = open(path, O_RDONLY | O_CLOEXEC);
  if (handle < 0) return fail(BCQ_BAD_ARGUMENT, "%s cannot be opened (%s).", path, strerror(errno));
  const bcq_status status = map_handle(handle, path, file);
  close(handle);  // the map stays
  return status;
}

void unmap_file(MappedFile* file) {
  if (file->data != nullptr) munmap((void*)file->data, file->bytes);
  *file = {};
}

#else

namespace {

constexpr size_t kReadBytes = size_t{1} << 20;

/// All bytes of `stream`, in `bytes`; false without memory.
bool read_all(FILE* stream, Buffer<uint8_t>* bytes) {
  for (;;) {
    const size_t before = bytes->size();
    if (!bytes->resize(before + kReadBytes)) return false;
    const size_t got = fread(bytes->data() + before, 1, kReadBytes, stream);
    if (!bytes->resize(before + got)) return false;
    if (got < kReadBytes) return true;
  }
}

}  // namespace

bcq_status map_file(const char* path, MappedFile* file) {
  *file = {};
  FILE* const stream = fopen(path, "rb");
  if (stream == nullptr)
    return fail(BCQ_BAD_ARGUMENT, "%s cannot be opened (%s).", path, strerror(errno));
  Buffer<uint8_t> bytes;
  // The end of the file says how much is needed; without one (a pipe) the buffer grows.
  const bool has_size = fseek(stream, 0, SEEK_END) == 0;
  const long size = has_size ? ftell(stream) : -1;
  if (has_size) rewind(stream);
  const bool has_room = size <= 0 || bytes.reserve((size_t)size + kReadBytes);
  const bool is_read = has_room && read_all(stream, &bytes);
  const bool is_whole = is_read && ferror(stream) == 0;
  fclose(stream);
  if (!is_read) return fail(BCQ_OUT_OF_MEMORY, "%s does not fit into the memory.", path);
  if (!is_whole) return fail(BCQ_BAD_BLOB, "%s cannot be read.", path);
  if (bytes.empty()) return fail(BCQ_BAD_BLOB, "%s is empty.", path);
  file->bytes = bytes.size();
  file->data = bytes.give_away();
  return BCQ_OK;
}

void unmap_file(MappedFile* file) {
  release((void*)file->data);
  *file = {};
}

#endif

}  // namespace bcq

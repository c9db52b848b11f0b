/// What the runtime takes from an operating system, for a module that imports nothing.
///
/// Takes the place of mobile/runtime/mapped_file.cpp, and of the few calls of wasi-libc whose WASI
/// imports would otherwise stay: nothing in a browser reads or writes files.
#include <stddef.h>
#include <stdint.h>

#include "bcq/runtime.h"
#include "runtime/error.h"
#include "runtime/mapped_file.h"

// runtime.js writes and reads these structures by the same numbers.
static_assert(sizeof(bcq_options) == 32 && offsetof(bcq_options, budget_bytes) == 16 &&
              offsetof(bcq_options, tier) == 24);
static_assert(sizeof(bcq_plan) == 40);
static_assert(sizeof(bcq_model_info) == 128 && offsetof(bcq_model_info, bos) == 80 &&
              offsetof(bcq_model_info, num_eos) == 88 && offsetof(bcq_model_info, eos) == 92);
static_assert(sizeof(bcq_sampling) == 24 && sizeof(bcq_message) == 12);
static_assert(sizeof(size_t) == 4 && BCQ_KV_F32 == 0 && BCQ_KV_F16 == 1 && BCQ_KV_INT8 == 2);

namespace bcq {

bcq_status map_file(const char* path, MappedFile* file) {
  *file = {};
  return fail(BCQ_UNSUPPORTED, "%s cannot be opened: this build has no files.", path);
}

void unmap_file(MappedFile* file) { *file = {}; }

}  // namespace bcq

namespace {

constexpr int32_t kBadHandle = 8;  // WASI's EBADF

}  // namespace

extern "C" {

/// There are no environment variables.
char* getenv(const char*) { return nullptr; }

// Linked with vsnprintf, though it writes to memory alone.
int32_t __imported_wasi_snapshot_preview1_fd_close(int32_t) { return kBadHandle; }
int32_t __imported_wasi_snapshot_preview1_fd_seek(int32_t, int64_t, int32_t, int32_t) {
  return kBadHandle;
}
int32_t __imported_wasi_snapshot_preview1_fd_write(int32_t, int32_t, int32_t, int32_t) {
  return kBadHandle;
}

}  // extern "C"

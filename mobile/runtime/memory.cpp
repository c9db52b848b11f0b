#include "runtime/memory.h"

#include <stdlib.h>

namespace {

/// What lies right before the memory that a caller gets.
struct Before {
  void* start;   ///< what calloc gave
  size_t bytes;  ///< that calloc was asked for
};
static_assert(sizeof(Before) == bcq::kMemoryOverhead - bcq::kMemoryAlign, "room before a block");

uint64_t in_use;

}  // namespace

namespace bcq {

void* allocate(size_t bytes) {
  size_t all;
  if (!add(bytes, kMemoryOverhead, &all) || all > PTRDIFF_MAX) return nullptr;
  void* const start = calloc(1, all);
  if (start == nullptr) return nullptr;
  // At most kMemoryAlign - 1 bytes are skipped behind the room for Before.
  const uintptr_t first = reinterpret_cast<uintptr_t>(start) + sizeof(Before);
  const size_t skip = (kMemoryAlign - first % kMemoryAlign) % kMemoryAlign;
  char* const memory = static_cast<char*>(start) + sizeof(Before) + skip;
  const Before before = {start, all};
  memcpy(memory - sizeof(before), &before, sizeof(before));
  __atomic_add_fetch(&in_use, all, __ATOMIC_RELAXED);
  return memory;
}

void release(void* memory) {
  if (memory == nullptr) return;
  Before before;
  memcpy(&before, static_cast<char*>(memory) - sizeof(before), sizeof(before));
  __atomic_sub_fetch(&in_use, before.bytes, __ATOMIC_RELAXED);
  free(before.start);
}

uint64_t memory_in_use() { return __atomic_load_n(&in_use, __ATOMIC_RELAXED); }

}  // namespace bcq

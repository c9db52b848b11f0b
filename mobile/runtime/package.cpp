#include "runtime/package.h"

#include <stdio.h>
#include <string.h>

#include "bcq/threads.h"
#include "runtime/cores.h"
#include "runtime/error.h"
#include "runtime/signature.h"

namespace {

using bcq::Buffer;
using bcq::fail;
using bcq::Section;

constexpr uintptr_t kBaseAlign = 4;   // of a caller's memory: sections hold floats
constexpr int32_t kMaxThreads = 256;  // of a bcq_pool

/// Refuses bytes outside header, index and sections that are not 0: nothing may hide there.
bcq_status check_gaps(const bcq_package& package, uint64_t index_end) {
  const auto is_clear = [](const bcq::MappedFile& file, uint64_t first, uint64_t last) {
    uint8_t any = 0;
    for (uint64_t at = first; at < last; at++) any |= file.data[at];
    return any == 0;
  };
  size_t next = 0;
  for (size_t shard = 0; shard < package.shards.size(); shard++) {
    const bcq::MappedFile& file = package.shards[shard];
    uint64_t from = shard == 0 ? index_end : bcq::kHeaderBytes;
    bool clear = true;
    for (; next < package.sections.size() && package.sections[next].shard == shard; next++) {
      clear = clear && is_clear(file, from, package.sections[next].offset);
      from = package.sections[next].offset + package.sections[next].bytes;
    }
    if (!clear || !is_clear(file, from, file.bytes))
      return fail(BCQ_BAD_BLOB, "Shard %zu holds bytes that belong to no section.", shard);
  }
  return BCQ_OK;
}

/// Whether a section's digest is that of its row.
bcq_status compare(const Section& section, const uint8_t* digest) {
  if (memcmp(digest, section.digest, bcq::kDigestBytes) == 0) return BCQ_OK;
  return fail(BCQ_BAD_BLOB, "%s is damaged (its SHA-256 differs); copy the package again.",
              bcq::name_of(section).text);
}

/// Everything that a check of the whole package reads beyond its structure. The first damaged
/// section is named, however many threads of `pool` (null: this one alone) found it.
bcq_status check_contents(bcq_package* package, bcq_pool* pool) {
  Buffer<bcq::Digest> digests;
  for (const Section& section : package->sections)
    if (!digests.push({bcq::section_data(*package, section), (size_t)section.bytes, {}}))
      return fail(BCQ_OUT_OF_MEMORY, "No memory to check %zu sections.", package->sections.size());
  bcq::DigestQueue queue = {digests.data(), digests.size(), 0};
  const bcq_task_fn drain = [](void* context, int64_t, int32_t) {
    bcq::sha256_drain((bcq::DigestQueue*)context);
  };
  bcq_pool_run(pool, bcq_pool_num_threads(pool), drain, &queue);
  for (size_t i = 0; i < digests.size(); i++) {
    const bcq_status status = compare(package->sections[i], digests[i].value);
    if (status != BCQ_OK) return status;
  }
  const bcq_status status = check_gaps(*package, package->index_end);
  package->is_checked = status == BCQ_OK;
  return status;
}

/// Whether shard `number` is one of the package whose first header is `first`.
bcq_status check_shard(const bcq::MappedFile& file, const char* name, uint32_t number,
                       const bcq::ShardHeader& first) {
  bcq::ShardHeader header;
  const bcq_status status = bcq::read_header(file.data, file.bytes, name, &header);
  if (status != BCQ_OK) return status;
  if (header.shard != number || header.num_shards != first.num_shards ||
      memcmp(header.digest, first.digest, bcq::kDigestBytes) != 0)
    return fail(BCQ_BAD_BLOB, "%s is not shard %u of %u of this package.", name, number,
                first.num_shards);
  return BCQ_OK;
}

/// Index and sections of a package whose shards are all there.
bcq_status read_package(bcq_package* package, const bcq::ShardHeader& first, const char* name,
                        bcq_check check) {
  const uint8_t* const data = package->shards[0].data;
  bcq_status status = bcq::read_index(data, first, name, &package->info, &package->sections);
  if (status != BCQ_OK) return status;
  Buffer<uint64_t> sizes;
  for (const bcq::MappedFile& shard : package->shards)
    if (!sizes.push(shard.bytes)) return fail(BCQ_OUT_OF_MEMORY, "No memory for a package.");
  package->index_end = first.index_at + first.index_bytes;
  memcpy(package->digest, first.digest, sizeof(package->digest));
  status = bcq::check_sections(package->info, package->sections, package->index_end, sizes);
  if (status != BCQ_OK || check == BCQ_CHECK_STRUCTURE) return status;
  return check_contents(package, nullptr);
}

/// Maps shard `number` at `path` into package->shards.
bcq_status add_shard(bcq_package* package, const char* path) {
  bcq::MappedFile file;
  const bcq_status status = bcq::map_file(path, &file);
  if (status != BCQ_OK) return status;
  if (package->shards.push(file)) return BCQ_OK;
  bcq::unmap_file(&file);
  return fail(BCQ_OUT_OF_MEMORY, "No memory for a package.");
}

bcq_status open_files(const char* path, bcq_check check, bcq_package* package) {
  package->owns_shards = true;
  bcq_status status = add_shard(package, path);
  if (status != BCQ_OK) return status;
  bcq::ShardHeader first;
  status = bcq::read_header(package->shards[0].data, package->shards[0].bytes, path, &first);
  if (status != BCQ_OK) return status;
  if (first.shard != 0)
    return fail(BCQ_BAD_ARGUMENT, "%s is shard %u of %u; open the first one.", path,
                first.shard + 1, first.num_shards);
  for (uint32_t i = 1; i < first.num_shards; i++) {
    Buffer<char> name;
    status = bcq::shard_path(path, i, first.num_shards, &name);
    if (status == BCQ_OK) status = add_shard(package, name.data());
    if (status == BCQ_OK) status = check_shard(package->shards[i], name.data(), i, first);
    if (status != BCQ_OK) return status;
  }
  return read_package(package, first, path, check);
}

bcq_status open_memory(const void* const* shards, const size_t* shard_bytes, int32_t num_shards,
                       bcq_check check, bcq_package* package) {
  for (int32_t i = 0; i < num_shards; i++) {
    if (shards[i] == nullptr || (uintptr_t)shards[i] % kBaseAlign != 0)
      return fail(BCQ_BAD_ARGUMENT, "Shard %d is null or not on a multiple of 4.", (int)i);
    if (!package->shards.push({(const uint8_t*)shards[i], shard_bytes[i]}))
      return fail(BCQ_OUT_OF_MEMORY, "No memory for a package.");
  }
  bcq::ShardHeader first;
  const char* const name = "The memory of shard 0";
  bcq_status status = bcq::read_header(package->shards[0].data, shard_bytes[0], name, &first);
  if (status != BCQ_OK) return status;
  if (first.shard != 0 || first.num_shards != (uint32_t)num_shards)
    return fail(BCQ_BAD_BLOB, "Memory of %d shards begins with shard %u of %u.", (int)num_shards,
                first.shard, first.num_shards);
  for (int32_t i = 1; i < num_shards; i++) {
    char shard_name[48];
    snprintf(shard_name, sizeof(shard_name), "The memory of shard %d", (int)i);
    status = check_shard(package->shards[i], shard_name, (uint32_t)i, first);
    if (status != BCQ_OK) return status;
  }
  return read_package(package, first, name, check);
}

/// Hands a package to the caller, or ends it after an error.
bcq_status finish(bcq_status status, bcq_package* made, bcq_package** package) {
  if (status == BCQ_OK)
    *package = made;
  else
    bcq::destroy(made);
  return status;
}

}  // namespace

bcq_package::~bcq_package() {
  for (bcq::MappedFile& shard : shards)
    if (owns_shards) bcq::unmap_file(&shard);
}

namespace bcq {

bcq_status shard_path(const char* first, uint32_t shard, uint32_t num_shards, Buffer<char>* path) {
  char first_ending[32], ending[32];
  snprintf(first_ending, sizeof(first_ending), "-00001-of-%05u.bcq", num_shards);
  snprintf(ending, sizeof(ending), "-%05u-of-%05u.bcq", shard + 1, num_shards);
  const size_t length = strlen(first), ending_length = strlen(first_ending);
  if (length < ending_length || strcmp(first + length - ending_length, first_ending) != 0)
    return fail(BCQ_BAD_ARGUMENT,
                "%s is the first of %u shards, so its name must end in %s, or the others cannot be "
                "found.",
                first, num_shards, first_ending);
  path->clear();
  if (!path->append(first, length - ending_length) || !path->append(ending, strlen(ending) + 1))
    return fail(BCQ_OUT_OF_MEMORY, "No memory for a package.");
  return BCQ_OK;
}

}  // namespace bcq

extern "C" {

bcq_status bcq_package_open(const char* path, bcq_check check, bcq_package** package) {
  if (package == nullptr) return fail(BCQ_BAD_ARGUMENT, "package is null.");
  *package = nullptr;
  if (path == nullptr) return fail(BCQ_BAD_ARGUMENT, "path is null.");
  bcq_package* const made = bcq::create<bcq_package>();
  if (made == nullptr) return fail(BCQ_OUT_OF_MEMORY, "No memory for a package.");
  return finish(open_files(path, check, made), made, package);
}

bcq_status bcq_package_open_memory(const void* const* shards, const size_t* shard_bytes,
                                   int32_t num_shards, bcq_check check, bcq_package** package) {
  if (package == nullptr) return fail(BCQ_BAD_ARGUMENT, "package is null.");
  *package = nullptr;
  if (shards == nullptr || shard_bytes == nullptr || num_shards < 1 || num_shards > 999)
    return fail(BCQ_BAD_ARGUMENT, "shards are null, or there are not 1 to 999 of them.");
  bcq_package* const made = bcq::create<bcq_package>();
  if (made == nullptr) return fail(BCQ_OUT_OF_MEMORY, "No memory for a package.");
  return finish(open_memory(shards, shard_bytes, num_shards, check, made), made, package);
}

void bcq_package_close(bcq_package* package) { bcq::destroy(package); }

bcq_status bcq_package_info(const bcq_package* package, bcq_model_info* info) {
  if (package == nullptr || info == nullptr)
    return fail(BCQ_BAD_ARGUMENT, "package or info is null.");
  *info = package->info;
  return BCQ_OK;
}

bcq_status bcq_package_section(const bcq_package* package, int32_t kind, const void** data,
                               size_t* bytes) {
  if (package == nullptr || data == nullptr || bytes == nullptr)
    return fail(BCQ_BAD_ARGUMENT, "package, data or bytes is null.");
  *data = nullptr, *bytes = 0;
  if (kind < bcq::kFirstText || kind > bcq::kLastText)
    return fail(BCQ_BAD_ARGUMENT, "Kind %d is not 64 to 69.", (int)kind);
  const Section* const section = bcq::find_section(package->sections, kind, bcq::kNoLayer);
  if (section == nullptr) return BCQ_OK;
  *data = bcq::section_data(*package, *section);
  *bytes = (size_t)section->bytes;
  return BCQ_OK;
}

bcq_status bcq_package_verify(const bcq_package* package, int32_t index, int32_t* num) {
  if (package == nullptr || num == nullptr)
    return fail(BCQ_BAD_ARGUMENT, "package or num is null.");
  *num = (int32_t)package->sections.size();
  if (index < 0 || index >= *num)
    return fail(BCQ_BAD_ARGUMENT, "Section %d is not one of 0 .. %d.", (int)index, (int)*num - 1);
  const Section& section = package->sections[(size_t)index];
  uint8_t digest[bcq::kDigestBytes];
  bcq::sha256(bcq::section_data(*package, section), (size_t)section.bytes, digest);
  return compare(section, digest);
}

bcq_status bcq_package_check(bcq_package* package, int32_t num_threads) {
  if (package == nullptr || num_threads < 0 || num_threads > kMaxThreads)
    return fail(BCQ_BAD_ARGUMENT, "package is null, or there are not 0 to 256 threads.");
  bcq_pool* pool = nullptr;
  const int32_t threads = num_threads > 0 ? num_threads : bcq::num_big_cores();
  bcq_status status = bcq_pool_create(threads, &pool);
  if (status != BCQ_OK)
    return fail(status, "A pool of %d threads: %s", (int)threads, bcq_status_text(status));
  status = check_contents(package, pool);
  bcq_pool_destroy(pool);
  return status;
}

bcq_status bcq_package_check_signature(const bcq_package* package, const void* signature,
                                       size_t bytes, const uint8_t* public_key) {
  if (package == nullptr || public_key == nullptr)
    return fail(BCQ_BAD_ARGUMENT, "package or public_key is null.");
  if (!package->is_checked)
    return fail(BCQ_BAD_ARGUMENT,
                "A signature is of the sections' digests, which were not compared yet; open the "
                "package with BCQ_CHECK_ALL, or call bcq_package_check first.");
  return bcq::check_signature(package->digest, (const uint8_t*)signature, bytes, public_key);
}

}  // extern "C"

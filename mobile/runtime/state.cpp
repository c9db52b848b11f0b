#include "runtime/state.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "runtime/error.h"
#include "runtime/session.h"

namespace {

using bcq::fail;
using bcq::StateHeader;

constexpr int64_t kBlockPositions = 16;
constexpr int32_t kNumParts = 4;  // keys, values and their scales

/// A mapped file that ends with its scope.
struct Mapped {
  bcq::MappedFile file = {};
  ~Mapped() { bcq::unmap_file(&file); }
};

/// What is saved of one kv head.
struct Part {
  void* data;
  size_t bytes;
};

int64_t blocks_of(int64_t position) { return (position + kBlockPositions - 1) / kBlockPositions; }

/// Part 0 .. kNumParts - 1 of a head over `blocks` started blocks; scales are none but for int8.
Part part_of(const bcq_kv& kv, int64_t head, int64_t blocks, int32_t part) {
  const int64_t value_bytes = kv.type == BCQ_KV_F32 ? 4 : kv.type == BCQ_KV_F16 ? 2 : 1;
  const bool is_scales = part >= 2;
  void* const starts[kNumParts] = {kv.keys, kv.values, kv.key_scales, kv.value_scales};
  if (starts[part] == nullptr) return {nullptr, 0};
  const int64_t row = is_scales ? (int64_t)sizeof(float) : kv.head_dim * value_bytes;
  return {(uint8_t*)starts[part] + head * kv.capacity * row,
          (size_t)(blocks * kBlockPositions * row)};
}

/// Calls use(Part) for everything that is saved of the caches, in order, while it returns true.
template <class Use>
bool for_each_part(const bcq_session& s, int64_t position, Use use) {
  const bcq_model_info& info = s.model->info;
  for (int64_t layer = 0; layer < info.num_layers; layer++)
    for (int64_t head = 0; head < info.num_kv_heads; head++)
      for (int32_t part = 0; part < kNumParts; part++)
        if (!use(part_of(s.caches[layer], head, blocks_of(position), part))) return false;
  return true;
}

/// The header that a state of the model has, but for its position.
bcq_status header_of(const bcq_model& model, StateHeader* header) {
  bcq::ShardHeader shard;
  const bcq::MappedFile& first = model.package->shards[0];
  const bcq_status status = bcq::read_header(first.data, first.bytes, "The package", &shard);
  if (status != BCQ_OK) return status;
  *header = {};
  memcpy(header->magic, bcq::kStateMagic, sizeof(header->magic));
  header->version = bcq::kStateVersion;
  header->kv_type = (uint32_t)model.settings.kv_type;
  memcpy(header->package, shard.digest, bcq::kDigestBytes);
  return BCQ_OK;
}

// ---- save ----

#if BCQ_WRITES_FILES

constexpr char kPartialEnding[] = ".partial";

bcq_status cannot_write(const char* path) {
  return fail(BCQ_BAD_ARGUMENT, "%s cannot be written (%s).", path, strerror(errno));
}

bool write_all(FILE* stream, const void* data, size_t bytes) {
  return bytes == 0 || fwrite(data, 1, bytes, stream) == bytes;
}

/// Everything but the digest.
bcq_status write_contents(const bcq_session& s, const StateHeader& header, const char* path) {
  FILE* const stream = fopen(path, "wb");
  if (stream == nullptr) return cannot_write(path);
  const bool is_written = write_all(stream, &header, sizeof(header)) &&
                          write_all(stream, s.ids, (size_t)s.position * sizeof(int32_t)) &&
                          for_each_part(s, s.position, [stream](const Part& part) {
                            return write_all(stream, part.data, part.bytes);
                          });
  const bool is_closed = fclose(stream) == 0;
  return is_written && is_closed ? BCQ_OK : cannot_write(path);
}

/// The digest of what the file holds, at its end.
bcq_status write_digest(const char* path) {
  uint8_t digest[bcq::kDigestBytes];
  {
    Mapped mapped;
    const bcq_status status = bcq::map_file(path, &mapped.file);
    if (status != BCQ_OK) return status;
    bcq::sha256(mapped.file.data, mapped.file.bytes, digest);
  }
  FILE* const stream = fopen(path, "ab");
  if (stream == nullptr) return cannot_write(path);
  const bool is_written = write_all(stream, digest, sizeof(digest));
  const bool is_closed = fclose(stream) == 0;
  return is_written && is_closed ? BCQ_OK : cannot_write(path);
}

bcq_status save(const bcq_session& s, const char* path) {
  bcq::Buffer<char> partial;
  if (!partial.append(path, strlen(path)) ||
      !partial.append(kPartialEnding, sizeof(kPartialEnding)))
    return fail(BCQ_OUT_OF_MEMORY, "No memory for the name of a file.");
  StateHeader header;
  bcq_status status = header_of(*s.model, &header);
  if (status != BCQ_OK) return status;
  header.position = (uint64_t)s.position;
  status = write_contents(s, header, partial.data());
  if (status == BCQ_OK) status = write_digest(partial.data());
  if (status == BCQ_OK && rename(partial.data(), path) != 0) status = cannot_write(path);
  if (status != BCQ_OK) remove(partial.data());
  return status;
}

#else

bcq_status save(const bcq_session&, const char* path) {
  return fail(BCQ_UNSUPPORTED, "%s cannot be written: this build writes no files.", path);
}

#endif

// ---- load ----

/// Whether the bytes are a whole state for the model, of at most `context` tokens.
bcq_status check_state(const bcq::MappedFile& file, const bcq_model& model, int64_t context,
                       const char* path, StateHeader* header) {
  StateHeader wanted;
  const bcq_status status = header_of(model, &wanted);
  if (status != BCQ_OK) return status;
  if (file.bytes < sizeof(*header) + bcq::kDigestBytes)
    return fail(BCQ_BAD_BLOB, "%s is too short for a saved session.", path);
  memcpy(header, file.data, sizeof(*header));
  if (memcmp(header->magic, wanted.magic, sizeof(wanted.magic)) != 0)
    return fail(BCQ_BAD_BLOB, "%s is no saved session.", path);
  if (header->version != wanted.version || header->zero != 0)
    return fail(BCQ_UNSUPPORTED, "%s has version %u of saved sessions; this is %u.", path,
                header->version, wanted.version);
  uint8_t digest[bcq::kDigestBytes];
  const size_t end = file.bytes - bcq::kDigestBytes;
  bcq::sha256(file.data, end, digest);
  if (memcmp(digest, file.data + end, bcq::kDigestBytes) != 0)
    return fail(BCQ_BAD_BLOB, "%s is damaged (its SHA-256 differs).", path);
  if (memcmp(header->package, wanted.package, bcq::kDigestBytes) != 0)
    return fail(BCQ_BAD_SHAPE, "%s was saved with another package.", path);
  if (header->kv_type != wanted.kv_type)
    return fail(BCQ_BAD_SHAPE, "%s has caches of type %u; the model's are %u.", path,
                header->kv_type, wanted.kv_type);
  if (header->position > (uint64_t)context)
    return fail(BCQ_BAD_SHAPE, "%s holds %llu tokens; the context is %lld.", path,
                (unsigned long long)header->position, (long long)context);
  return BCQ_OK;
}

/// Ids and caches of a checked state into a new session, whose context has room for them.
bcq_status read_contents(const bcq::MappedFile& file, int64_t position, const char* path,
                         bcq_session* s) {
  size_t bytes = sizeof(StateHeader) + (size_t)position * sizeof(int32_t) + bcq::kDigestBytes;
  for_each_part(*s, position, [&bytes](const Part& part) {
    bytes += part.bytes;  // fits: the session has allocated all parts
    return true;
  });
  if (bytes != file.bytes)
    return fail(BCQ_BAD_BLOB, "%s has %zu bytes; its %lld tokens need %zu.", path, file.bytes,
                (long long)position, bytes);
  if (position == 0) return BCQ_OK;
  const uint8_t* from = file.data + sizeof(StateHeader);
  memcpy(s->ids, from, (size_t)position * sizeof(int32_t));
  const bcq_status status = bcq::check_ids(*s, s->ids, position);
  if (status != BCQ_OK) return fail(BCQ_BAD_BLOB, "%s holds an id of another vocabulary.", path);
  from += (size_t)position * sizeof(int32_t);
  for_each_part(*s, position, [&from](const Part& part) {
    if (part.bytes > 0) memcpy(part.data, from, part.bytes);
    from += part.bytes;
    return true;
  });
  s->position = position;
  // Whatever the file has there, the rest of the last block is zeros.
  bcq::clear_positions(s, position, blocks_of(position) * kBlockPositions);
  return BCQ_OK;
}

}  // namespace

extern "C" {

bcq_status bcq_session_save(const bcq_session* session, const char* path) {
  if (session == nullptr || path == nullptr)
    return fail(BCQ_BAD_ARGUMENT, "session or path is null.");
  return save(*session, path);
}

bcq_status bcq_session_load(bcq_model* model, const char* path, int64_t context,
                            bcq_session** session) {
  if (session == nullptr) return fail(BCQ_BAD_ARGUMENT, "session is null.");
  *session = nullptr;
  if (model == nullptr || path == nullptr) return fail(BCQ_BAD_ARGUMENT, "model or path is null.");
  bcq_session* made = nullptr;
  bcq_status status = bcq_session_create(model, context, &made);
  if (status != BCQ_OK) return status;
  Mapped mapped;
  StateHeader header;
  status = bcq::map_file(path, &mapped.file);
  if (status == BCQ_OK) status = check_state(mapped.file, *model, context, path, &header);
  if (status == BCQ_OK) status = read_contents(mapped.file, (int64_t)header.position, path, made);
  if (status == BCQ_OK)
    *session = made;
  else
    bcq_session_destroy(made);
  return status;
}

}  // extern "C"

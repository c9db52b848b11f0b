/// Header and index of a package as plain values, every one of them checked.
///
/// docs/formats/bcq_package_v1.md; nothing here reads a section.
#ifndef BCQ_RUNTIME_INDEX_H_
#define BCQ_RUNTIME_INDEX_H_

#include "bcq/runtime.h"
#include "runtime/memory.h"
#include "runtime/sha256.h"

namespace bcq {

/// Kinds of sections. Linears and biases of a layer stand in the order q, k, v, o, gate, up, down.
enum Kind : int32_t {
  kEmbedding = 1,
  kHead = 2,
  kLastNorm = 3,
  kPositions = 4,
  kWindows = 5,
  kFirstLinear = 16,
  kFirstBias = 32,
  kAttentionNorm = 48,
  kMlpNorm = 49,
  kQNorm = 50,
  kKNorm = 51,
  kFirstText = 64,
  kLastText = 69,
};
constexpr int32_t kNumLinears = 7;
constexpr uint16_t kNoLayer = 65535;

/// Bytes of every shard's header; sections of shard 1 and above begin here at the earliest.
constexpr uint64_t kHeaderBytes = 128;

/// Sides of a matrix [N, K].
struct Shape {
  int64_t out_features, in_features;
};
/// Of linear 0 .. kNumLinears - 1 of every layer.
Shape linear_shape(const bcq_model_info& info, int32_t linear);

/// A shard's header.
struct ShardHeader {
  uint32_t shard, num_shards;
  uint64_t index_at, index_bytes;  ///< of shard 0, within its bytes; else 0
  uint8_t digest[kDigestBytes];    ///< of the index
};

/// One row of the index.
struct Section {
  int32_t kind;
  uint16_t layer;  ///< kNoLayer where the kind has none
  uint32_t shard;
  uint64_t offset, bytes;
  uint8_t digest[kDigestBytes];
};

/// What a section is, for a sentence: "the section 'k bias' of layer 3".
struct SectionName {
  char text[64];
};
SectionName name_of(const Section& section);

/// Whether the section is a packed weight, which starts on a page of Android's.
bool is_blob(int32_t kind);

/// Reads the header of a shard of `bytes` bytes; `name` says in errors which one.
/// Errors: BCQ_BAD_BLOB, BCQ_UNSUPPORTED (a version or required feature that is not known).
bcq_status read_header(const uint8_t* data, size_t bytes, const char* name, ShardHeader* header);

/// Reads the index of shard 0 at `data`, whose digest must be the header's.
/// Errors: BCQ_BAD_BLOB, BCQ_UNSUPPORTED (a kind that is not known), BCQ_OUT_OF_MEMORY.
bcq_status read_index(const uint8_t* data, const ShardHeader& header, const char* name,
                      bcq_model_info* info, Buffer<Section>* sections);

/// Checks that the rows lie in files of these sizes, in order, and are those that the model needs.
/// `index_end` is where sections of shard 0 may begin. Errors: BCQ_BAD_BLOB.
bcq_status check_sections(const bcq_model_info& info, const Buffer<Section>& sections,
                          uint64_t index_end, const Buffer<uint64_t>& shard_bytes);

/// The row of (kind, layer), or null; the rows are sorted.
const Section* find_section(const Buffer<Section>& sections, int32_t kind, uint16_t layer);

}  // namespace bcq
#endif  // BCQ_RUNTIME_INDEX_H_

#include "runtime/index.h"

#include <stdio.h>
#include <string.h>

#include "runtime/error.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "packages are little endian and read as they lie"
#endif

namespace {

constexpr uint8_t kMagic[8] = {0x89, 'B', 'C', 'Q', '\r', '\n', 0x1a, '\n'};
constexpr uint32_t kVersion = 1;
constexpr uint32_t kMaxShards = 999;
constexpr uint64_t kKnownFeatures = 0;  // of those that are required
constexpr uint64_t kModelBytes = 128;
constexpr uint64_t kTableAt = kModelBytes + 8;
constexpr uint64_t kRowBytes = 64;
constexpr uint64_t kBlobAlign = 16384;
constexpr uint64_t kAlign = 64;
constexpr uint32_t kMaxLayers = 4096;
constexpr uint32_t kMaxHeads = 1u << 20;
constexpr int64_t kMaxFeatures = int64_t{1} << 28;  // of a side of a blob

template <class T>
T read(const uint8_t* at) {
  T value;
  memcpy(&value, at, sizeof(value));
  return value;
}

bool is_zero(const uint8_t* at, size_t bytes) {
  uint8_t any = 0;
  for (size_t i = 0; i < bytes; i++) any |= at[i];
  return any == 0;
}

/// Counts of the model block, before they are known to be sound.
struct Counts {
  uint32_t vocab, hidden, intermediate, layers, heads, kv_heads, head_dim, max_positions;
};

bool sound(const Counts& c) {
  const auto is_side = [](uint64_t n) { return n >= 1 && n <= (uint64_t)kMaxFeatures; };
  return is_side(c.vocab) && is_side(c.hidden) && is_side(c.intermediate) && c.layers >= 1 &&
         c.layers <= kMaxLayers && c.heads >= 1 && c.heads <= kMaxHeads && c.kv_heads >= 1 &&
         c.heads % c.kv_heads == 0 && c.head_dim >= 16 && c.head_dim <= BCQ_MAX_HEAD_DIM &&
         c.head_dim % 16 == 0 && is_side(uint64_t{c.heads} * c.head_dim) && c.max_positions >= 1 &&
         c.max_positions <= INT32_MAX;
}

/// Token ids of the model block: begin, padding, end.
bool read_tokens(const uint8_t* block, bcq_model_info* info) {
  const auto is_token = [info](int32_t id) { return id >= 0 && id < info->vocab_size; };
  info->bos = read<int32_t>(block + 48);
  info->pad = read<int32_t>(block + 52);
  if ((info->bos != -1 && !is_token(info->bos)) || (info->pad != -1 && !is_token(info->pad)))
    return false;
  const uint32_t num = read<uint32_t>(block + 56);
  if (num > 8) return false;
  info->num_eos = (int32_t)num;
  for (uint32_t i = 0; i < 8; i++) {
    info->eos[i] = read<int32_t>(block + 60 + 4 * i);
    if (i < num ? !is_token(info->eos[i]) : info->eos[i] != -1) return false;
  }
  return true;
}

bcq_status read_model(const uint8_t* block, const char* name, bcq_model_info* info) {
  Counts c;
  memcpy(&c, block, sizeof(c));
  if (!sound(c))
    return bcq::fail(BCQ_BAD_BLOB,
                     "%s: a count of the model block is out of range (vocabulary %u, hidden %u, "
                     "intermediate %u, layers %u, heads %u, kv heads %u, head size %u, positions "
                     "%u).",
                     name, c.vocab, c.hidden, c.intermediate, c.layers, c.heads, c.kv_heads,
                     c.head_dim, c.max_positions);
  *info = {};
  info->vocab_size = c.vocab, info->hidden_size = c.hidden;
  info->intermediate_size = c.intermediate, info->num_layers = c.layers;
  info->num_heads = c.heads, info->num_kv_heads = c.kv_heads;
  info->head_dim = c.head_dim, info->max_positions = c.max_positions;
  info->eps = read<float>(block + 32);
  if (!(info->eps > 0) || info->eps > 1e30f)  // also NaN and infinity
    return bcq::fail(BCQ_BAD_BLOB, "%s: rms_norm_eps is %g; a number above 0 is needed.", name,
                     (double)info->eps);
  const uint32_t position = read<uint32_t>(block + 36), bits = read<uint32_t>(block + 40),
                 activations = read<uint32_t>(block + 44);
  if (position > 1 || bits > 1 || activations > 2 || !is_zero(block + 92, 36))
    return bcq::fail(BCQ_BAD_BLOB,
                     "%s: the model block holds a choice that does not exist (position %u, bits "
                     "%u, activations %u, or its last 36 bytes).",
                     name, position, bits, activations);
  info->is_alibi = (int32_t)position;
  info->ties_head = (int32_t)bits;
  info->activations = (int32_t)activations;
  if (!read_tokens(block, info))
    return bcq::fail(BCQ_BAD_BLOB, "%s: a begin, end or padding token is not of the vocabulary.",
                     name);
  return BCQ_OK;
}

/// What a kind of section looks like.
struct Rule {
  bool is_known;
  bool has_layer;
  uint64_t bytes;  ///< 0: whatever it says
};

Rule rule_of(const bcq_model_info& info, int32_t kind) {
  const uint64_t hidden = (uint64_t)info.hidden_size * 4, head = (uint64_t)info.head_dim * 4;
  if (kind == bcq::kEmbedding || kind == bcq::kHead) return {true, false, 0};
  if (kind == bcq::kLastNorm) return {true, false, hidden};
  if (kind == bcq::kPositions)
    return {true, false, info.is_alibi ? (uint64_t)info.num_heads * 4 : head / 2};
  if (kind == bcq::kWindows) return {true, false, (uint64_t)info.num_layers * 4};
  if (kind >= bcq::kFirstLinear && kind < bcq::kFirstLinear + bcq::kNumLinears)
    return {true, true, 0};
  if (kind >= bcq::kFirstBias && kind < bcq::kFirstBias + bcq::kNumLinears)
    return {true, true, (uint64_t)bcq::linear_shape(info, kind - bcq::kFirstBias).out_features * 4};
  if (kind == bcq::kAttentionNorm || kind == bcq::kMlpNorm) return {true, true, hidden};
  if (kind == bcq::kQNorm || kind == bcq::kKNorm) return {true, true, head};
  return {kind >= bcq::kFirstText && kind <= bcq::kLastText, false, 0};
}

/// Order of the rows.
uint32_t key(int32_t kind, uint16_t layer) { return (uint32_t)kind << 16 | layer; }

bcq_status check_row(const bcq_model_info& info, const bcq::Section& s) {
  const Rule rule = rule_of(info, s.kind);
  if (!rule.is_known)
    return bcq::fail(BCQ_UNSUPPORTED,
                     "The package has a section of kind %d, which this version does not know.",
                     (int)s.kind);
  const bool fits = rule.has_layer ? s.layer < info.num_layers : s.layer == bcq::kNoLayer;
  if (!fits)
    return bcq::fail(BCQ_BAD_BLOB, "%s: the model has %lld layers.", bcq::name_of(s).text,
                     (long long)info.num_layers);
  const bool is_free = rule.bytes == 0;
  if (is_free ? s.bytes == 0 : s.bytes != rule.bytes)
    return bcq::fail(BCQ_BAD_BLOB, "%s has %llu bytes; %llu are needed.", bcq::name_of(s).text,
                     (unsigned long long)s.bytes, (unsigned long long)(is_free ? 1 : rule.bytes));
  return BCQ_OK;
}

/// Whether a section lies in its file behind `free_from`, the end of the one before.
bcq_status check_place(const bcq::Section& s, uint64_t free_from, uint64_t file_bytes) {
  const uint64_t align = bcq::is_blob(s.kind) ? kBlobAlign : kAlign;
  if (s.offset % align != 0 || s.offset < free_from)
    return bcq::fail(BCQ_BAD_BLOB, "%s starts at byte %llu, out of order or not aligned.",
                     bcq::name_of(s).text, (unsigned long long)s.offset);
  if (s.offset > file_bytes || s.bytes > file_bytes - s.offset)
    return bcq::fail(BCQ_BAD_BLOB, "%s ends beyond its file of %llu bytes.", bcq::name_of(s).text,
                     (unsigned long long)file_bytes);
  return BCQ_OK;
}

bcq_status missing(int32_t kind, uint16_t layer) {
  bcq::Section absent = {};
  absent.kind = kind, absent.layer = layer;
  return bcq::fail(BCQ_BAD_BLOB, "%s is missing.", bcq::name_of(absent).text);
}

/// Whether every section is there that the model needs; the rows are known and sorted.
bcq_status check_complete(const bcq_model_info& info, const bcq::Buffer<bcq::Section>& sections) {
  const auto has = [&sections](int32_t kind, uint16_t layer) {
    return bcq::find_section(sections, kind, layer) != nullptr;
  };
  constexpr int32_t kAlways[] = {bcq::kEmbedding, bcq::kLastNorm, bcq::kPositions};
  for (const int32_t kind : kAlways)
    if (!has(kind, bcq::kNoLayer)) return missing(kind, bcq::kNoLayer);
  if (has(bcq::kHead, bcq::kNoLayer) == (info.ties_head != 0))
    return info.ties_head ? bcq::fail(BCQ_BAD_BLOB,
                                      "The package has a head, but says that it is the embedding.")
                          : missing(bcq::kHead, bcq::kNoLayer);
  for (uint16_t layer = 0; layer < info.num_layers; layer++) {
    for (int32_t i = 0; i < bcq::kNumLinears; i++)
      if (!has(bcq::kFirstLinear + i, layer)) return missing(bcq::kFirstLinear + i, layer);
    for (int32_t kind = bcq::kAttentionNorm; kind <= bcq::kMlpNorm; kind++)
      if (!has(kind, layer)) return missing(kind, layer);
    const bool has_q = has(bcq::kQNorm, layer), has_k = has(bcq::kKNorm, layer);
    if (has_q != has_k) return missing(has_q ? bcq::kKNorm : bcq::kQNorm, layer);
  }
  return BCQ_OK;
}

}  // namespace

namespace bcq {

Shape linear_shape(const bcq_model_info& info, int32_t linear) {
  const int64_t hidden = info.hidden_size, q = info.num_heads * info.head_dim;
  const int64_t kv = info.num_kv_heads * info.head_dim, intermediate = info.intermediate_size;
  switch (linear) {
    case 0:
      return {q, hidden};
    case 1:
    case 2:
      return {kv, hidden};
    case 3:
      return {hidden, q};
    case 4:
    case 5:
      return {intermediate, hidden};
    default:
      return {hidden, intermediate};
  }
}

bool is_blob(int32_t kind) {
  return kind == kEmbedding || kind == kHead ||
         (kind >= kFirstLinear && kind < kFirstLinear + kNumLinears);
}

SectionName name_of(const Section& section) {
  constexpr const char* kLinears[] = {"q", "k", "v", "o", "gate", "up", "down"};
  constexpr const char* kOnce[] = {"embedding", "head", "last norm", "positions", "windows"};
  constexpr const char* kNorms[] = {"attention norm", "mlp norm", "q norm", "k norm"};
  constexpr const char* kTexts[] = {"tokenizer",           "chat template", "chat frames",
                                    "generation defaults", "certificate",   "origin"};
  const int32_t kind = section.kind;
  const char* what = "unknown";
  if (kind >= kEmbedding && kind <= kWindows) what = kOnce[kind - kEmbedding];
  if (kind >= kFirstLinear && kind < kFirstLinear + kNumLinears)
    what = kLinears[kind - kFirstLinear];
  if (kind >= kFirstBias && kind < kFirstBias + kNumLinears) what = kLinears[kind - kFirstBias];
  if (kind >= kAttentionNorm && kind <= kKNorm) what = kNorms[kind - kAttentionNorm];
  if (kind >= kFirstText && kind <= kLastText) what = kTexts[kind - kFirstText];
  const bool is_bias = kind >= kFirstBias && kind < kFirstBias + kNumLinears;
  SectionName name;
  if (section.layer == kNoLayer)
    snprintf(name.text, sizeof(name.text), "Section '%s'", what);
  else
    snprintf(name.text, sizeof(name.text), "Section '%s%s' of layer %d", what,
             is_bias ? " bias" : "", (int)section.layer);
  return name;
}

bcq_status read_header(const uint8_t* data, size_t bytes, const char* name, ShardHeader* header) {
  *header = {};
  if (bytes < kHeaderBytes || memcmp(data, kMagic, sizeof(kMagic)) != 0)
    return fail(BCQ_BAD_BLOB, "%s is not a bcq package, or was damaged when it was copied.", name);
  if (read<uint32_t>(data + 8) != kVersion)
    return fail(BCQ_UNSUPPORTED, "%s has version %u of the format; this is version 1.", name,
                read<uint32_t>(data + 8));
  const uint64_t unknown = read<uint64_t>(data + 24) & ~kKnownFeatures;
  if (unknown != 0)
    return fail(BCQ_UNSUPPORTED,
                "%s needs features %#llx, which this version does not have; use a newer one.", name,
                (unsigned long long)unknown);
  if (read<uint64_t>(data + 40) != bytes)
    return fail(BCQ_BAD_BLOB, "%s has %zu bytes, but its header says %llu; copy it again.", name,
                bytes, (unsigned long long)read<uint64_t>(data + 40));
  header->shard = read<uint32_t>(data + 12);
  header->num_shards = read<uint32_t>(data + 16);
  header->index_at = read<uint64_t>(data + 48);
  header->index_bytes = read<uint64_t>(data + 56);
  memcpy(header->digest, data + 64, kDigestBytes);
  const bool is_first = header->shard == 0;
  const bool fits = is_first
                        ? header->index_at == kHeaderBytes && header->index_bytes >= kTableAt &&
                              header->index_bytes <= bytes - kHeaderBytes
                        : header->index_at == 0 && header->index_bytes == 0;
  if (header->num_shards < 1 || header->num_shards > kMaxShards ||
      header->shard >= header->num_shards || !fits || !is_zero(data + 20, 4) ||
      !is_zero(data + 96, 32))
    return fail(BCQ_BAD_BLOB, "%s: its header contradicts itself.", name);
  return BCQ_OK;
}

bcq_status read_index(const uint8_t* data, const ShardHeader& header, const char* name,
                      bcq_model_info* info, Buffer<Section>* sections) {
  const uint8_t* const index = data + header.index_at;
  uint8_t digest[kDigestBytes];
  sha256(index, (size_t)header.index_bytes, digest);
  if (memcmp(digest, header.digest, kDigestBytes) != 0)
    return fail(BCQ_BAD_BLOB, "%s: the index is damaged (its SHA-256 differs).", name);
  const uint32_t num = read<uint32_t>(index + kModelBytes);
  if (header.index_bytes != kTableAt + kRowBytes * num || !is_zero(index + kModelBytes + 4, 4))
    return fail(BCQ_BAD_BLOB, "%s: the index has %llu bytes, which does not suit %u sections.",
                name, (unsigned long long)header.index_bytes, num);
  const bcq_status status = read_model(index, name, info);
  if (status != BCQ_OK) return status;
  if (!sections->resize(num)) return fail(BCQ_OUT_OF_MEMORY, "No memory for %u sections.", num);
  for (uint32_t i = 0; i < num; i++) {
    const uint8_t* const row = index + kTableAt + kRowBytes * i;
    Section& s = (*sections)[i];
    s.kind = read<uint16_t>(row);
    s.layer = read<uint16_t>(row + 2);
    s.shard = read<uint32_t>(row + 4);
    s.offset = read<uint64_t>(row + 8);
    s.bytes = read<uint64_t>(row + 16);
    memcpy(s.digest, row + 24, kDigestBytes);
    if (!is_zero(row + 56, 8))
      return fail(BCQ_BAD_BLOB, "%s: row %u of the index ends in something unknown.", name, i);
  }
  return BCQ_OK;
}

bcq_status check_sections(const bcq_model_info& info, const Buffer<Section>& sections,
                          uint64_t index_end, const Buffer<uint64_t>& shard_bytes) {
  uint64_t free_from = index_end;
  uint32_t shard = 0;
  // Goes on to the next shard; a file ends with its last section.
  const auto next_shard = [&]() {
    const bool ends = free_from == shard_bytes[shard++];
    free_from = kHeaderBytes;
    return ends ? BCQ_OK : fail(BCQ_BAD_BLOB, "Shard %u goes on behind its last section.", shard);
  };
  for (size_t i = 0; i < sections.size(); i++) {
    const Section& s = sections[i];
    bcq_status status = check_row(info, s);
    if (status != BCQ_OK) return status;
    const bool follows =
        i == 0 || key(sections[i - 1].kind, sections[i - 1].layer) < key(s.kind, s.layer);
    if (!follows || s.shard < shard || s.shard >= shard_bytes.size())
      return fail(BCQ_BAD_BLOB, "%s is out of order, there twice, or in shard %u of %zu.",
                  name_of(s).text, s.shard, shard_bytes.size());
    while (status == BCQ_OK && shard < s.shard) status = next_shard();
    if (status != BCQ_OK) return status;
    status = check_place(s, free_from, shard_bytes[shard]);
    if (status != BCQ_OK) return status;
    free_from = s.offset + s.bytes;
  }
  while (shard < shard_bytes.size()) {
    const bcq_status status = next_shard();
    if (status != BCQ_OK) return status;
  }
  return check_complete(info, sections);
}

const Section* find_section(const Buffer<Section>& sections, int32_t kind, uint16_t layer) {
  const uint32_t wanted = key(kind, layer);
  size_t first = 0, last = sections.size();
  while (first < last) {
    const size_t middle = first + (last - first) / 2;
    if (key(sections[middle].kind, sections[middle].layer) < wanted)
      first = middle + 1;
    else
      last = middle;
  }
  const bool found =
      first < sections.size() && key(sections[first].kind, sections[first].layer) == wanted;
  return found ? &sections[first] : nullptr;
}

}  // namespace bcq

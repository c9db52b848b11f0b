/// Packed weights: docs/formats/bcq_n16k32_v1.md. Packing is the same bytes on every machine.
#include <string.h>

#include "bcq/kernels.h"

namespace {

constexpr char kMagic[4] = {'B', 'C', 'Q', 'W'};
constexpr uint16_t kVersion = 1;
constexpr int64_t kMaxFeatures = int64_t{1} << 28;
constexpr int64_t kSectionAlign = 64;

/// The first 64 bytes of a blob, little endian.
struct Header {
  char magic[4];
  uint16_t version;
  uint8_t bits;
  uint8_t has_zeros;
  uint32_t out_features;
  uint32_t in_features;
  uint32_t group_size;
  uint32_t num_groups;
  uint64_t codes_at;
  uint64_t scales_at;
  uint64_t zeros_at;
  uint64_t total;
  uint64_t reserved;
};
static_assert(sizeof(Header) == BCQ_BLOB_HEADER, "the header is 64 bytes");

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t aligned(int64_t bytes) { return ceil_div(bytes, kSectionAlign) * kSectionAlign; }

/// The header that a weight of these sizes has. All sizes stay below 2^63: N, K <= 2^28.
bcq_status plan(int64_t n, int64_t k, int32_t bits, int64_t group_size, int32_t has_zeros,
                Header* out) {
  if (n < 1 || k < 1 || n > kMaxFeatures || k > kMaxFeatures) return BCQ_BAD_SHAPE;
  if (bits != 2 && bits != 3 && bits != 4 && bits != 8 && bits != 16) return BCQ_UNSUPPORTED;
  if (group_size < 1 || group_size > k) group_size = k;
  if (group_size != k && group_size % BCQ_UNIT_COLUMNS != 0) return BCQ_UNSUPPORTED;
  if (bits == 16 && (has_zeros || group_size != k)) return BCQ_UNSUPPORTED;
  const int64_t panels = ceil_div(n, BCQ_PANEL_ROWS);
  const int64_t groups = bits == 16 ? 0 : ceil_div(k, group_size);
  const int64_t codes = panels * ceil_div(k, BCQ_UNIT_COLUMNS) * 64 * bits;
  const int64_t scales = panels * groups * BCQ_PANEL_ROWS * 2;
  const int64_t zeros = has_zeros ? panels * groups * BCQ_PANEL_ROWS : 0;
  Header h = {};
  memcpy(h.magic, kMagic, 4);
  h.version = kVersion;
  h.bits = (uint8_t)bits;
  h.has_zeros = has_zeros ? 1 : 0;
  h.out_features = (uint32_t)n;
  h.in_features = (uint32_t)k;
  h.group_size = (uint32_t)group_size;
  h.num_groups = (uint32_t)groups;
  h.codes_at = BCQ_BLOB_HEADER;
  h.scales_at = h.codes_at + (uint64_t)aligned(codes);
  h.zeros_at = has_zeros ? h.scales_at + (uint64_t)aligned(scales) : 0;
  h.total = h.scales_at + (uint64_t)(aligned(scales) + aligned(zeros));
  *out = h;
  return BCQ_OK;
}

/// Where code (row, column) of a unit lies: a byte and a shift; 3 bits keep the third elsewhere.
struct Place {
  int64_t byte;
  int shift;
};
Place place_of(int bits, int row, int column) {
  const int quad = column / 4, byte = row * 4 + column % 4;
  const int shared = bits == 3 ? 4 : 8 / bits;  // quads that share a byte-quad
  const int width = bits == 3 ? 2 : bits;
  return {quad / shared * 64 + byte, quad % shared * width};
}
int64_t third_place(int row, int column) { return 128 + row * 4 + column % 4; }

int code_at(const uint8_t* unit, int bits, int row, int column) {
  const Place at = place_of(bits, row, column);
  if (bits != 3) return unit[at.byte] >> at.shift & ((1 << bits) - 1);
  const int third = unit[third_place(row, column)] >> (column / 4) & 1;
  return (unit[at.byte] >> at.shift & 3) | third << 2;
}

void put_code(uint8_t* unit, int bits, int row, int column, int code) {
  const Place at = place_of(bits, row, column);
  const int low = bits == 3 ? code & 3 : code;
  unit[at.byte] = (uint8_t)(unit[at.byte] | low << at.shift);
  if (bits == 3) {
    uint8_t* third = unit + third_place(row, column);
    *third = (uint8_t)(*third | (code >> 2) << (column / 4));
  }
}

int64_t unit_at(const bcq_weight& w, int64_t n, int64_t k) {
  const int64_t units = w.in_padded / BCQ_UNIT_COLUMNS;
  return (n / BCQ_PANEL_ROWS * units + k / BCQ_UNIT_COLUMNS) * 64 * w.bits;
}

int64_t group_at(const bcq_weight& w, int64_t n, int64_t g) {
  return (n / BCQ_PANEL_ROWS * w.num_groups + g) * BCQ_PANEL_ROWS + n % BCQ_PANEL_ROWS;
}

/// Header and zeroed sections into a blob of exactly the planned size.
bcq_status start_blob(const Header& h, void* blob, size_t blob_bytes, bcq_weight* w) {
  if (blob == nullptr || blob_bytes != h.total) return BCQ_BAD_ARGUMENT;
  memset(blob, 0, blob_bytes);
  memcpy(blob, &h, sizeof(h));
  return bcq_weight_open(blob, blob_bytes, w);
}

bool codes_fit(const uint8_t* codes, int64_t count, int32_t bits) {
  uint8_t seen = 0;
  for (int64_t i = 0; i < count; i++) seen |= codes[i];
  return bits >= 8 || seen >> bits == 0;
}

}  // namespace

extern "C" {

bcq_status bcq_weight_bytes(int64_t out_features, int64_t in_features, int32_t bits,
                            int64_t group_size, int32_t has_zeros, size_t* bytes) {
  Header h;
  if (bytes == nullptr) return BCQ_BAD_ARGUMENT;
  const bcq_status status = plan(out_features, in_features, bits, group_size, has_zeros, &h);
  if (status == BCQ_OK) *bytes = (size_t)h.total;
  return status;
}

bcq_status bcq_weight_open(const void* blob, size_t blob_bytes, bcq_weight* out) {
  Header h, want;
  if (blob == nullptr || out == nullptr || (uintptr_t)blob % 2 != 0) return BCQ_BAD_ARGUMENT;
  if (blob_bytes < sizeof(h)) return BCQ_BAD_BLOB;
  memcpy(&h, blob, sizeof(h));
  if (memcmp(h.magic, kMagic, 4) != 0) return BCQ_BAD_BLOB;
  if (h.version != kVersion) return BCQ_UNSUPPORTED;
  if (h.has_zeros > 1 || h.group_size < 1 || h.group_size > h.in_features) return BCQ_BAD_BLOB;
  if (plan(h.out_features, h.in_features, h.bits, h.group_size, h.has_zeros, &want) != BCQ_OK)
    return BCQ_BAD_BLOB;
  // Every number follows from the shape, so nothing in the header has to be trusted.
  if (memcmp(&h, &want, sizeof(h)) != 0 || h.total != blob_bytes) return BCQ_BAD_BLOB;
  const uint8_t* base = (const uint8_t*)blob;
  out->out_features = h.out_features;
  out->in_features = h.in_features;
  out->in_padded = ceil_div(h.in_features, BCQ_UNIT_COLUMNS) * BCQ_UNIT_COLUMNS;
  out->group_size = h.group_size;
  out->num_groups = h.num_groups;
  out->bits = h.bits;
  out->zero = h.bits == 16 ? 0 : 1 << (h.bits - 1);
  out->codes = base + h.codes_at;
  out->scales = h.bits == 16 ? nullptr : (const uint16_t*)(base + h.scales_at);
  out->zeros = h.has_zeros ? base + h.zeros_at : nullptr;
  return BCQ_OK;
}

bcq_status bcq_weight_pack(const uint8_t* codes, const uint16_t* scales, const uint8_t* zeros,
                           int64_t out_features, int64_t in_features, int32_t bits,
                           int64_t group_size, void* blob, size_t blob_bytes) {
  Header h;
  bcq_weight w;
  if (codes == nullptr || scales == nullptr || bits == 16) return BCQ_BAD_ARGUMENT;
  bcq_status status = plan(out_features, in_features, bits, group_size, zeros != nullptr, &h);
  if (status != BCQ_OK) return status;
  if (!codes_fit(codes, out_features * in_features, bits)) return BCQ_BAD_SHAPE;
  if (zeros != nullptr && !codes_fit(zeros, out_features * h.num_groups, bits))
    return BCQ_BAD_SHAPE;
  status = start_blob(h, blob, blob_bytes, &w);
  if (status != BCQ_OK) return status;
  for (int64_t n = 0; n < out_features; n++) {
    for (int64_t k = 0; k < in_features; k++)
      put_code((uint8_t*)w.codes + unit_at(w, n, k), bits, (int)(n % BCQ_PANEL_ROWS),
               (int)(k % BCQ_UNIT_COLUMNS), codes[n * in_features + k]);
    for (int64_t g = 0; g < w.num_groups; g++) {
      ((uint16_t*)w.scales)[group_at(w, n, g)] = scales[n * w.num_groups + g];
      if (zeros != nullptr) ((uint8_t*)w.zeros)[group_at(w, n, g)] = zeros[n * w.num_groups + g];
    }
  }
  return BCQ_OK;
}

bcq_status bcq_weight_pack_f16(const uint16_t* values, int64_t out_features, int64_t in_features,
                               void* blob, size_t blob_bytes) {
  Header h;
  bcq_weight w;
  if (values == nullptr) return BCQ_BAD_ARGUMENT;
  bcq_status status = plan(out_features, in_features, 16, in_features, 0, &h);
  if (status != BCQ_OK) return status;
  status = start_blob(h, blob, blob_bytes, &w);
  if (status != BCQ_OK) return status;
  for (int64_t n = 0; n < out_features; n++)
    for (int64_t k = 0; k < in_features; k++) {
      uint16_t* unit = (uint16_t*)(w.codes + unit_at(w, n, k));
      unit[k % BCQ_UNIT_COLUMNS * BCQ_PANEL_ROWS + n % BCQ_PANEL_ROWS] =
          values[n * in_features + k];
    }
  return BCQ_OK;
}

bcq_status bcq_weight_unpack(const bcq_weight* w, uint8_t* codes, uint16_t* scales,
                             uint8_t* zeros) {
  if (w == nullptr || codes == nullptr || scales == nullptr) return BCQ_BAD_ARGUMENT;
  if (w->bits == 16) return BCQ_UNSUPPORTED;
  for (int64_t n = 0; n < w->out_features; n++) {
    for (int64_t k = 0; k < w->in_features; k++)
      codes[n * w->in_features + k] =
          (uint8_t)code_at(w->codes + unit_at(*w, n, k), w->bits, (int)(n % BCQ_PANEL_ROWS),
                           (int)(k % BCQ_UNIT_COLUMNS));
    for (int64_t g = 0; g < w->num_groups; g++) {
      scales[n * w->num_groups + g] = w->scales[group_at(*w, n, g)];
      if (zeros != nullptr)
        zeros[n * w->num_groups + g] =
            w->zeros != nullptr ? w->zeros[group_at(*w, n, g)] : (uint8_t)w->zero;
    }
  }
  return BCQ_OK;
}

}  // extern "C"

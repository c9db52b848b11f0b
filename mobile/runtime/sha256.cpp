#include "runtime/sha256.h"

#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#endif

namespace {

constexpr size_t kBlock = 64;

alignas(64) constexpr uint32_t kRound[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

constexpr uint32_t kStart[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

/// A message on its way: what was taken of it, and what is left.
struct Lane {
  uint32_t state[8];
  const uint8_t* at;
  size_t blocks;        ///< whole ones that are left
  bcq::Digest* digest;  ///< null: the lane is free
};

/// Takes `num` blocks of each of the lanes, which have that many. The instructions' latency is
/// twice what they need of the core, so two messages take hardly longer than one.
using BlocksFn = void (*)(Lane* const* lanes, size_t num);
struct Blocks {
  BlocksFn one, two;
};

uint32_t rotate(uint32_t x, int by) { return x >> by | x << (32 - by); }

uint32_t load_big_endian(const uint8_t* at) {
  return uint32_t{at[0]} << 24 | uint32_t{at[1]} << 16 | uint32_t{at[2]} << 8 | at[3];
}

void store_big_endian(uint32_t value, uint8_t* at) {
  for (int i = 0; i < 4; i++) at[i] = (uint8_t)(value >> (24 - 8 * i));
}

void lane_plain(Lane* lane, size_t num) {
  uint32_t* const state = lane->state;
  const uint8_t* data = lane->at;
  for (; num > 0; num--, data += kBlock) {
    uint32_t w[64];
    for (int i = 0; i < 16; i++) w[i] = load_big_endian(data + 4 * i);
    for (int i = 16; i < 64; i++) {
      const uint32_t a = w[i - 15], b = w[i - 2];
      const uint32_t s0 = rotate(a, 7) ^ rotate(a, 18) ^ a >> 3;
      const uint32_t s1 = rotate(b, 17) ^ rotate(b, 19) ^ b >> 10;
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (int i = 0; i < 64; i++) {
      const uint32_t s1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25);
      const uint32_t t1 = h + s1 + ((e & f) ^ (~e & g)) + kRound[i] + w[i];
      const uint32_t s0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22);
      const uint32_t t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d;
    state[4] += e, state[5] += f, state[6] += g, state[7] += h;
  }
  lane->at = data;
}

template <int kLanes>
void blocks_plain(Lane* const* lanes, size_t num) {
  for (int i = 0; i < kLanes; i++) lane_plain(lanes[i], num);
}
constexpr Blocks kPlain = {blocks_plain<1>, blocks_plain<2>};

#if defined(__x86_64__)

bool has_instructions() {
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & 1u << 19) || !(c & 1u << 9)) return false;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & 1u << 29);  // SHA; above: SSE4.1, SSSE3
}

#define BCQ_SHA __attribute__((target("sha,sse4.1,ssse3")))

/// A lane's state as the instructions want it: (f, e, b, a) and (h, g, d, c), lowest first.
struct Packed {
  __m128i abef, cdgh;
};

BCQ_SHA inline Packed pack(const uint32_t* state) {
  const __m128i abcd = _mm_loadu_si128((const __m128i*)state);
  const __m128i efgh = _mm_loadu_si128((const __m128i*)(state + 4));
  const __m128i ba = _mm_shuffle_epi32(abcd, 0xb1), fe = _mm_shuffle_epi32(efgh, 0x1b);
  return {_mm_alignr_epi8(ba, fe, 8), _mm_blend_epi16(fe, ba, 0xf0)};
}

BCQ_SHA inline void unpack(const Packed& packed, uint32_t* state) {
  const __m128i feba = _mm_shuffle_epi32(packed.abef, 0x1b);
  const __m128i dchg = _mm_shuffle_epi32(packed.cdgh, 0xb1);
  _mm_storeu_si128((__m128i*)state, _mm_blend_epi16(feba, dchg, 0xf0));
  _mm_storeu_si128((__m128i*)(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}

template <int kLanes>
BCQ_SHA void blocks_fast(Lane* const* lanes, size_t num) {
  const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  Packed now[kLanes], before[kLanes];
  __m128i w[kLanes][4];
  const uint8_t* at[kLanes];
  for (int n = 0; n < kLanes; n++) now[n] = pack(lanes[n]->state), at[n] = lanes[n]->at;
  for (; num > 0; num--) {
#pragma GCC unroll 2
    for (int n = 0; n < kLanes; n++) {
      before[n] = now[n];
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++)
        w[n][i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i*)(at[n] + 16 * i)), swap);
      at[n] += kBlock;
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
#pragma GCC unroll 2
      for (int n = 0; n < kLanes; n++) {
        const __m128i words = w[n][i % 4];
        const __m128i sum = _mm_add_epi32(words, _mm_load_si128((const __m128i*)(kRound + 4 * i)));
        now[n].cdgh = _mm_sha256rnds2_epu32(now[n].cdgh, now[n].abef, sum);
        now[n].abef = _mm_sha256rnds2_epu32(now[n].abef, now[n].cdgh, _mm_shuffle_epi32(sum, 0x0e));
        if (i >= 12) continue;
        // Words 4 i + 16 .. 4 i + 19, from those of i .. i + 3.
        const __m128i next = w[n][(i + 1) % 4], last = w[n][(i + 3) % 4];
        const __m128i middle = _mm_alignr_epi8(last, w[n][(i + 2) % 4], 4);
        w[n][i % 4] =
            _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(words, next), middle), last);
      }
    }
#pragma GCC unroll 2
    for (int n = 0; n < kLanes; n++) {
      now[n].abef = _mm_add_epi32(now[n].abef, before[n].abef);
      now[n].cdgh = _mm_add_epi32(now[n].cdgh, before[n].cdgh);
    }
  }
  for (int n = 0; n < kLanes; n++) unpack(now[n], lanes[n]->state), lanes[n]->at = at[n];
}
constexpr Blocks kFast = {blocks_fast<1>, blocks_fast<2>};

#elif defined(__aarch64__) && (defined(__linux__) || defined(__APPLE__))

bool has_instructions() {
#if defined(__APPLE__)
  return true;  // every 64-bit core of Apple's has them
#else
  constexpr unsigned long kHwcapSha2 = 1ul << 6;  // of <asm/hwcap.h>
  return (getauxval(AT_HWCAP) & kHwcapSha2) != 0;
#endif
}

#if defined(__clang__)
#define BCQ_SHA __attribute__((target("sha2")))
#else
#define BCQ_SHA __attribute__((target("+crypto")))  // GCC 12 has SHA-2 only together with AES
#endif

template <int kLanes>
BCQ_SHA void blocks_fast(Lane* const* lanes, size_t num) {
  uint32x4_t abcd[kLanes], efgh[kLanes], abcd_before[kLanes], efgh_before[kLanes], w[kLanes][4];
  const uint8_t* at[kLanes];
  for (int n = 0; n < kLanes; n++) {
    at[n] = lanes[n]->at;
    abcd[n] = vld1q_u32(lanes[n]->state);
    efgh[n] = vld1q_u32(lanes[n]->state + 4);
  }
  for (; num > 0; num--) {
#pragma GCC unroll 2
    for (int n = 0; n < kLanes; n++) {
      abcd_before[n] = abcd[n], efgh_before[n] = efgh[n];
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++)
        w[n][i] = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(at[n] + 16 * i)));
      at[n] += kBlock;
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
#pragma GCC unroll 2
      for (int n = 0; n < kLanes; n++) {
        const uint32x4_t sum = vaddq_u32(w[n][i % 4], vld1q_u32(kRound + 4 * i));
        const uint32x4_t abcd_old = abcd[n];
        abcd[n] = vsha256hq_u32(abcd[n], efgh[n], sum);
        efgh[n] = vsha256h2q_u32(efgh[n], abcd_old, sum);
        if (i < 12)
          w[n][i % 4] = vsha256su1q_u32(vsha256su0q_u32(w[n][i % 4], w[n][(i + 1) % 4]),
                                        w[n][(i + 2) % 4], w[n][(i + 3) % 4]);
      }
    }
#pragma GCC unroll 2
    for (int n = 0; n < kLanes; n++) {
      abcd[n] = vaddq_u32(abcd[n], abcd_before[n]);
      efgh[n] = vaddq_u32(efgh[n], efgh_before[n]);
    }
  }
  for (int n = 0; n < kLanes; n++) {
    lanes[n]->at = at[n];
    vst1q_u32(lanes[n]->state, abcd[n]);
    vst1q_u32(lanes[n]->state + 4, efgh[n]);
  }
}
constexpr Blocks kFast = {blocks_fast<1>, blocks_fast<2>};

#else

bool has_instructions() { return false; }
constexpr Blocks kFast = kPlain;

#endif

void begin(bcq::Digest* digest, Lane* lane) {
  memcpy(lane->state, kStart, sizeof(lane->state));
  lane->at = (const uint8_t*)digest->data;
  lane->blocks = digest->bytes / kBlock;
  lane->digest = digest;
}

/// What is left of a message without whole blocks: its last bytes, a set bit, zeros, and the length
/// in bits, big endian.
void finish(const Blocks& blocks, Lane* lane) {
  bcq::Digest* const digest = lane->digest;
  const size_t left = digest->bytes % kBlock;
  uint8_t end[2 * kBlock] = {};
  if (left > 0) memcpy(end, lane->at, left);
  end[left] = 0x80;
  const size_t end_blocks = left < kBlock - 8 ? 1 : 2;
  const uint64_t bits = uint64_t{digest->bytes} * 8;
  store_big_endian((uint32_t)(bits >> 32), end + end_blocks * kBlock - 8);
  store_big_endian((uint32_t)bits, end + end_blocks * kBlock - 4);
  lane->at = end;
  blocks.one(&lane, end_blocks);
  for (int i = 0; i < 8; i++) store_big_endian(lane->state[i], digest->value + 4 * i);
  lane->digest = nullptr;
}

/// The next message of the queue, null after the last.
bcq::Digest* take(bcq::DigestQueue* queue) {
  // Digests are handed to other threads by whoever started this one: no order is needed here.
  const size_t next = __atomic_fetch_add(&queue->next, 1, __ATOMIC_RELAXED);
  return next < queue->num ? queue->digests + next : nullptr;
}

/// Ends what can be ended and begins what there is, until the lane has a whole block or is free.
void refill(const Blocks& blocks, bcq::DigestQueue* queue, Lane* lane) {
  while (lane->blocks == 0) {
    if (lane->digest != nullptr) finish(blocks, lane);
    bcq::Digest* const next = take(queue);
    if (next == nullptr) return;
    begin(next, lane);
  }
}

void drain(const Blocks& blocks, bcq::DigestQueue* queue) {
  Lane lanes[2] = {};
  for (;;) {
    Lane* busy[2];
    int num_busy = 0;
    for (Lane& lane : lanes) {
      refill(blocks, queue, &lane);
      if (lane.blocks > 0) busy[num_busy++] = &lane;
    }
    if (num_busy == 0) return;
    const size_t last = busy[num_busy - 1]->blocks;
    const size_t num = last < busy[0]->blocks ? last : busy[0]->blocks;
    (num_busy == 2 ? blocks.two : blocks.one)(busy, num);
    for (int i = 0; i < num_busy; i++) busy[i]->blocks -= num;
  }
}

void digest_of(const Blocks& blocks, const void* data, size_t bytes, uint8_t* value) {
  bcq::Digest digest = {data, bytes, {}};
  Lane lane;
  Lane* const lanes[1] = {&lane};
  begin(&digest, &lane);
  blocks.one(lanes, lane.blocks);
  finish(blocks, &lane);
  memcpy(value, digest.value, sizeof(digest.value));
}

}  // namespace

namespace bcq {

void sha256(const void* data, size_t bytes, uint8_t digest[kDigestBytes]) {
  digest_of(has_instructions() ? kFast : kPlain, data, bytes, digest);
}

void sha256_plain(const void* data, size_t bytes, uint8_t digest[kDigestBytes]) {
  digest_of(kPlain, data, bytes, digest);
}

void sha256_drain(DigestQueue* queue) { drain(has_instructions() ? kFast : kPlain, queue); }

void sha256_drain_plain(DigestQueue* queue) { drain(kPlain, queue); }

}  // namespace bcq

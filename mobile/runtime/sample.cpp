/// bcq_sample: the next token from one row of logits.
///
/// The same tokens on every machine
///
/// A draw compares a random number with sums of probabilities, so one rounding that a compiler or a
/// math library does its own way could change a token. None is left: probabilities are integers
/// (weight_of), whose sums are exact in any order, and what floating point remains is single
/// operations of IEEE 754 on which a fused multiply-add cannot act: no product is added to anything
/// except in `penalize`, where the product is exact.
///
/// No step sorts the vocabulary: find_border is a radix selection of 4 passes.
#include "runtime/sample.h"

#include <string.h>

#include "bcq/runtime.h"
#include "runtime/error.h"
#include "runtime/random.h"

namespace bcq {
namespace {

constexpr float kRuledOut = -__builtin_inff();
constexpr int kWeightBits = 42;

/// Where a walk through the tokens, from the least likely on, exceeds a mass.
struct Border {
  uint32_t key;    ///< order_key of the first score at which it does
  uint64_t below;  ///< mass of all lower scores
};

/// Unsigned integers in the order of floats; both zeros are one. Not for NaN.
uint32_t order_key(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  if (value == 0.0f) bits = 0;
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

/// The lowest score of which all scores up to it have a mass above `limit`; the whole mass must
/// exceed it. masses [num], or null: 1 for each.
Border find_border(const float* scores, const uint64_t* masses, int64_t num, uint64_t limit) {
  Border border = {0, 0};
  uint32_t known = 0;  // bits of border.key that are found
  for (int shift = 24; shift >= 0; shift -= 8) {
    uint64_t sums[256] = {};
    for (int64_t i = 0; i < num; ++i) {
      const uint32_t key = order_key(scores[i]);
      if ((key & known) != border.key) continue;
      sums[(key >> shift) & 255] += masses != nullptr ? masses[i] : 1;
    }
    uint32_t byte = 0;
    while (byte < 255 && border.below + sums[byte] <= limit) border.below += sums[byte++];
    border.key |= byte << shift;
    known |= uint32_t{255} << shift;
  }
  return border;
}

/// Repetition and presence penalty for every id of `previous` inside the vocabulary, once each.
/// seen: a bit for each token, in words of 64.
void penalize(float* logits, int64_t vocab_size, const bcq_sampling& sampling,
              const int32_t* previous, int64_t num_previous, uint64_t* seen) {
  const double penalty = sampling.repetition_penalty, presence = sampling.presence_penalty;
  if (num_previous == 0 || (penalty == 1.0 && presence == 0.0)) return;
  memset(seen, 0, static_cast<size_t>((vocab_size + 63) / 64) * sizeof(uint64_t));
  for (int64_t i = 0; i < num_previous; ++i) {
    const int32_t id = previous[i];
    if (id < 0 || id >= vocab_size || ((seen[id / 64] >> (id % 64)) & 1) != 0) continue;
    seen[id / 64] |= uint64_t{1} << (id % 64);
    // A float64 holds the product of two float32 exactly, and their quotient well enough to round
    // to the same float32: so without a presence penalty this is float32 arithmetic.
    const double logit = logits[id];
    const double scaled = logit < 0 ? logit * penalty : logit / penalty;
    logits[id] = static_cast<float>(scaled - presence);
  }
}

/// The first of the largest scores, or -1: one is NaN or the largest is not finite.
int64_t best_id(const float* scores, int64_t num) {
  int64_t best = 0;
  bool has_nan = false;
  for (int64_t i = 0; i < num; ++i) {
    has_nan |= scores[i] != scores[i];
    if (scores[i] > scores[best]) best = i;
  }
  return !has_nan && __builtin_isfinite(scores[best]) ? best : -1;
}

/// Rules out all scores below the k-th largest, 0 < k < num.
void keep_top_k(float* scores, int64_t num, int32_t k) {
  const Border last_kept = find_border(scores, nullptr, num, static_cast<uint64_t>(num - k));
  for (int64_t i = 0; i < num; ++i) {
    if (order_key(scores[i]) < last_kept.key) scores[i] = kRuledOut;
  }
}

/// Rules out the least likely tokens that together have at most 1 - p of `total`, the sum of the
/// weights, but never all; of equal ones the lowest ids first. Returns the sum of what stays.
uint64_t keep_top_p(float* scores, uint64_t* weights, int64_t num, uint64_t total, float p) {
  const double share = (1.0 - static_cast<double>(p)) * static_cast<double>(total);
  uint64_t limit = static_cast<uint64_t>(share);  // below 2^63, as total is at most that
  if (limit >= total) limit = total - 1;          // the most likely one stays
  const Border border = find_border(scores, weights, num, limit);
  uint64_t left = limit - border.below, kept = 0;
  for (int64_t i = 0; i < num; ++i) {
    const uint32_t key = order_key(scores[i]);
    bool is_out = key < border.key;
    if (key == border.key && weights[i] <= left) {
      left -= weights[i];
      is_out = true;
    }
    if (is_out) {
      scores[i] = kRuledOut;
      weights[i] = 0;
    }
    kept += weights[i];
  }
  return kept;
}

/// Rules out tokens with less than `share` of the best one's weight. Returns the sum of what stays.
uint64_t keep_min_p(float* scores, uint64_t* weights, int64_t num, float share) {
  const double least = static_cast<double>(share) * static_cast<double>(uint64_t{1} << kWeightBits);
  uint64_t kept = 0;
  for (int64_t i = 0; i < num; ++i) {
    if (static_cast<double>(weights[i]) < least) {
      scores[i] = kRuledOut;
      weights[i] = 0;
    }
    kept += weights[i];
  }
  return kept;
}

/// Which setting is out of its range, or null.
const char* wrong_setting(const bcq_sampling& s) {
  // Comparisons that NaN fails.
  const float largest = __FLT_MAX__;
  if (!(s.temperature >= 0 && s.temperature <= largest)) return "temperature";
  if (s.top_k < 0) return "top_k";
  if (!(s.top_p > 0 && s.top_p <= 1)) return "top_p";
  if (!(s.min_p >= 0 && s.min_p <= 1)) return "min_p";
  if (!(s.repetition_penalty > 0 && s.repetition_penalty <= largest)) return "repetition_penalty";
  if (!(s.presence_penalty >= -largest && s.presence_penalty <= largest)) return "presence_penalty";
  return nullptr;
}

/// A draw among scores that are finite or -infinity, `best` the largest. weights: scratch [num].
int32_t draw(float* scores, int64_t num, float best, const bcq_sampling& sampling, uint64_t* seed,
             uint64_t* weights) {
  if (sampling.top_k > 0 && sampling.top_k < num) keep_top_k(scores, num, sampling.top_k);
  uint64_t total = 0;
  for (int64_t i = 0; i < num; ++i) total += weights[i] = weight_of(scores[i], best);
  if (sampling.top_p < 1) total = keep_top_p(scores, weights, num, total, sampling.top_p);
  if (sampling.min_p > 0) total = keep_min_p(scores, weights, num, sampling.min_p);
  uint64_t point = random_below(seed, total);
  int32_t id = 0;
  while (point >= weights[id]) point -= weights[id++];  // the sum of all exceeds the point
  return id;
}

/// Everything that can be wrong with the arguments of bcq_sample but `previous`.
bcq_status check(const float* logits, int64_t vocab_size, const bcq_sampling* sampling,
                 const uint64_t* seed, const void* scratch, size_t scratch_bytes,
                 const int32_t* id) {
  if (logits == nullptr || sampling == nullptr || seed == nullptr || scratch == nullptr ||
      id == nullptr) {
    return fail(BCQ_BAD_ARGUMENT, "bcq_sample: an argument is null");
  }
  if (vocab_size < 1 || vocab_size > kMostTokens) {
    return fail(BCQ_BAD_ARGUMENT, "bcq_sample: a vocabulary of %lld; 1 to %lld is needed",
                static_cast<long long>(vocab_size), static_cast<long long>(kMostTokens));
  }
  if (scratch_bytes / sizeof(uint64_t) < static_cast<uint64_t>(vocab_size) ||
      reinterpret_cast<uintptr_t>(scratch) % alignof(uint64_t) != 0) {
    return fail(BCQ_BAD_ARGUMENT, "bcq_sample: scratch has no %lld bytes on a multiple of 8",
                static_cast<long long>(vocab_size) * 8);
  }
  if (const char* name = wrong_setting(*sampling)) {
    return fail(BCQ_BAD_ARGUMENT, "bcq_sample: %s is out of its range", name);
  }
  return BCQ_OK;
}

}  // namespace

uint64_t weight_of(float score, float best) {
  constexpr double kOctave = 4294967296.0;
  constexpr double kOctavesPerUnit = 0x1.7154'7652'b82fep+32;  // 2^32 / ln 2
  constexpr uint64_t kLn2 = 2977044472, kOne = uint64_t{1} << 32;
  // 2^(31 - i / 16), rounded.
  static const uint32_t kSixteenths[16] = {2147483648u, 2056437387u, 1969251188u, 1885761398u,
                                           1805811301u, 1729250827u, 1655936265u, 1585730000u,
                                           1518500250u, 1454120821u, 1392470869u, 1333434672u,
                                           1276901417u, 1222764986u, 1170923762u, 1121280436u};
  // exp(-x) = 2^-(octaves + rest), in steps of 2^-32 octaves.
  const double steps = (static_cast<double>(best) - static_cast<double>(score)) * kOctavesPerUnit;
  if (!(steps < (kWeightBits + 1) * kOctave)) return 0;
  const uint64_t whole = static_cast<uint64_t>(steps);
  const uint64_t sixteenth = (whole >> 28) & 15, rest = whole & ((uint64_t{1} << 28) - 1);
  // Taylor's series of exp(-t), 0 <= t < ln 2 / 16, to t^5: what is left out is below 1e-11.
  const uint64_t t = rest * kLn2 >> 32;
  uint64_t power = kOne - t / 5;
  power = kOne - (t * power >> 32) / 4;
  power = kOne - (t * power >> 32) / 3;
  power = kOne - (t * power >> 32) / 2;
  power = kOne - (t * power >> 32);
  return (power * kSixteenths[sixteenth]) >> (63 - kWeightBits + (whole >> 32));
}

}  // namespace bcq

bcq_status bcq_sample(float* logits, int64_t vocab_size, const bcq_sampling* sampling,
                      const int32_t* previous, int64_t num_previous, uint64_t* seed, void* scratch,
                      size_t scratch_bytes, int32_t* id) {
  using bcq::fail;
  const bcq_status status =
      bcq::check(logits, vocab_size, sampling, seed, scratch, scratch_bytes, id);
  if (status != BCQ_OK) return status;
  if (num_previous < 0 || (previous == nullptr && num_previous > 0)) {
    return fail(BCQ_BAD_ARGUMENT, "bcq_sample: previous is null or its number negative");
  }
  if (bcq::best_id(logits, vocab_size) < 0) {
    return fail(BCQ_BAD_ARGUMENT, "the model's logits are broken: NaN, infinite or none finite");
  }
  uint64_t* const words = static_cast<uint64_t*>(scratch);
  bcq::penalize(logits, vocab_size, *sampling, previous, num_previous, words);
  const float temperature = sampling->temperature;
  if (temperature > 0) {
    for (int64_t i = 0; i < vocab_size; ++i) logits[i] /= temperature;
  }
  const int64_t best = bcq::best_id(logits, vocab_size);
  if (best < 0) {
    return fail(BCQ_BAD_ARGUMENT, "no logit is finite after penalties and temperature");
  }
  *id = temperature > 0 ? bcq::draw(logits, vocab_size, logits[best], *sampling, seed, words)
                        : static_cast<int32_t>(best);
  return BCQ_OK;
}

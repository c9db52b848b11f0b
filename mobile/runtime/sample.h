/// What bcq_sample computes with.
#ifndef BCQ_RUNTIME_SAMPLE_H_
#define BCQ_RUNTIME_SAMPLE_H_

#include <stdint.h>

namespace bcq {

/// The largest vocabulary: so many weights of 2^42 add up to 2^63.
constexpr int64_t kMostTokens = int64_t{1} << 21;

/// 2^42 * exp(score - best) as an integer, rounded down: exactly 2^42 where they are equal, 0 where
/// score is -infinity. Differs from the true value by less than 2^-29 of it plus 1.
/// score <= best; best is finite.
uint64_t weight_of(float score, float best);

}  // namespace bcq
#endif  // BCQ_RUNTIME_SAMPLE_H_

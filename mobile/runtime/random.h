/// Random numbers that are the same on every machine.
#ifndef BCQ_RUNTIME_RANDOM_H_
#define BCQ_RUNTIME_RANDOM_H_

#include <stdint.h>

namespace bcq {

/// 64 random bits; *state advances by one step. Every state is a good start and the period is 2^64.
/// Source: SplitMix64, Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
/// OOPSLA 2014: a counter of odd steps whose value is mixed by a bijection.
uint64_t random_bits(uint64_t* state);

/// A random number from 0 to n - 1, n > 0: the high word of random_bits * n, so that the
/// probability of any set of numbers is off by less than 2^-63. One step of the state.
uint64_t random_below(uint64_t* state, uint64_t n);

}  // namespace bcq
#endif  // BCQ_RUNTIME_RANDOM_H_

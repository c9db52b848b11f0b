#include "runtime/random.h"

namespace bcq {

uint64_t random_bits(uint64_t* state) {
  *state += 0x9E3779B97F4A7C15u;  // 2^64 / the golden ratio, made odd
  uint64_t bits = *state;
  bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9u;
  bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EBu;
  return bits ^ (bits >> 31);
}

uint64_t random_below(uint64_t* state, uint64_t n) {
  // In halves: not every target has a 128-bit product.
  const uint64_t bits = random_bits(state), low = 0xFFFFFFFFu;
  const uint64_t cross = (bits >> 32) * (n & low) + ((bits & low) * (n & low) >> 32);
  const uint64_t other = (bits & low) * (n >> 32) + (cross & low);
  return (bits >> 32) * (n >> 32) + (cross >> 32) + (other >> 32);
}

}  // namespace bcq

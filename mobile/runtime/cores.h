/// How many threads a model gets when nobody says.
#ifndef BCQ_RUNTIME_CORES_H_
#define BCQ_RUNTIME_CORES_H_

#include <stdint.h>

namespace bcq {

/// Physical big cores that the process may run on, 1 .. 256: on a machine with cores of several
/// kinds those whose capacity is at least half of the best one's (where the system only tells
/// clocks: 70 % of the highest). One thread a core: two on one core's hyper-threads gain nothing.
/// Where the system tells nothing, the cores that are online.
/// `root`: the folder that is /sys, which a test may replace.
int32_t num_big_cores(const char* root = "/sys");

}  // namespace bcq
#endif  // BCQ_RUNTIME_CORES_H_

/// Status codes of the C ABI. No call throws, aborts or prints.
#ifndef BCQ_STATUS_H_
#define BCQ_STATUS_H_

#ifdef __cplusplus
extern "C" {
#endif

typedef enum bcq_status {
  BCQ_OK = 0,
  BCQ_BAD_ARGUMENT = 1,   ///< a null pointer, a negative count, a size that does not fit
  BCQ_BAD_SHAPE = 2,      ///< shapes disagree with each other or with the weight
  BCQ_UNSUPPORTED = 3,    ///< bits, group size or layout that this build has no kernel for
  BCQ_UNKNOWN_TIER = 4,   ///< BCQ_FORCE_TIER names no tier
  BCQ_TIER_NOT_HERE = 5,  ///< the tier exists, but this CPU or this build lacks it
  BCQ_BAD_BLOB = 6,       ///< a packed weight's header or size is wrong
  BCQ_OUT_OF_MEMORY = 7,
  BCQ_CANCELLED = 8,  ///< another thread asked for it
} bcq_status;

/// One English sentence for `status`; a static string, never null.
const char* bcq_status_text(bcq_status status);

#ifdef __cplusplus
}  // extern "C"
#endif
#endif  // BCQ_STATUS_H_

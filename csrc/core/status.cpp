#include "bcq/status.h"

const char* bcq_status_text(bcq_status status) {
  switch (status) {
    case BCQ_OK:
      return "The call succeeded.";
    case BCQ_BAD_ARGUMENT:
      return "An argument is null, negative or out of range.";
    case BCQ_BAD_SHAPE:
      return "The shapes disagree with each other or with the weight.";
    case BCQ_UNSUPPORTED:
      return "This build has no kernel for these bits, this group size or this layout.";
    case BCQ_UNKNOWN_TIER:
      return "BCQ_FORCE_TIER names no kernel tier.";
    case BCQ_TIER_NOT_HERE:
      return "The kernel tier exists, but this CPU or this build lacks it.";
    case BCQ_BAD_BLOB:
      return "The packed weight's header or size is wrong.";
    case BCQ_OUT_OF_MEMORY:
      return "The system gave no memory or no thread.";
    case BCQ_CANCELLED:
      return "Another thread asked the call to end.";
  }
  return "This status code is not one of bcquant's.";
}

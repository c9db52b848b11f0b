/// The sentence behind bcq_error_text().
#ifndef BCQ_RUNTIME_ERROR_H_
#define BCQ_RUNTIME_ERROR_H_

#include "bcq/status.h"

namespace bcq {

/// Writes the sentence of the calling thread's last failure, as printf does, cut to 511 bytes.
/// Returns `status`, so that `return fail(BCQ_BAD_BLOB, "...")` is all that a check needs.
bcq_status fail(bcq_status status, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace bcq
#endif  // BCQ_RUNTIME_ERROR_H_

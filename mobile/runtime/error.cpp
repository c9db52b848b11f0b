#include "runtime/error.h"

#include <stdarg.h>
#include <stdio.h>

#include "bcq/runtime.h"

namespace {

/// Room for a path and a sentence; a longer text is cut.
constexpr size_t kTextBytes = 512;

// Constant initialisation: no constructor runs, and no C++ run-time library is needed for it.
thread_local char error_text[kTextBytes];

}  // namespace

namespace bcq {

bcq_status fail(bcq_status status, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  if (vsnprintf(error_text, kTextBytes, format, arguments) < 0) error_text[0] = '\0';
  va_end(arguments);
  return status;
}

}  // namespace bcq

extern "C" const char* bcq_error_text(void) { return error_text; }

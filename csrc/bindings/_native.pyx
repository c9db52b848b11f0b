# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=False
"""bcq kernels for Python: shapes and dtypes checked, the GIL released, a status made an error.

Each part is a file of its own, included here into one extension module.
"""

include "checks.pxi"
include "context.pxi"
include "weights.pxi"
include "operations.pxi"
include "attention.pxi"
include "decoder.pxi"

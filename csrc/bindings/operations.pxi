# Linear layers and the pointwise operations of a decoder.
#
# Matrices are float32 with contiguous rows, of any row stride; results go to arrays of the caller.

EXACT = BCQ_EXACT
INT8 = BCQ_INT8
INT8_TOKEN = BCQ_INT8_TOKEN
cdef enum:
    MAX_FUSED = 8  # weights of one bcq_linear


def linear(Context context not None, weights, x, ys, int precision=BCQ_EXACT,
           bint accumulate=False):
    """y_i = x @ W_i.T, or += with `accumulate`, for 1 .. 8 weights over the same x.

    Args:
        weights: PackedWeight each, of the same K and group size.
        x: float32 (M, K). ys: float32 (M, N_i) each; they share memory with nothing.
        precision: EXACT (float32), INT8 (a scale a token and group of at most 128 columns) or
            INT8_TOKEN (a scale a token). Float16 weights are computed exactly.
    Raises:
        ShapeError: an array does not fit.
        KernelError: the kernels refuse the weights or the precision.
    """
    cdef const bcq_weight* w[MAX_FUSED]
    cdef float* y[MAX_FUSED]
    cdef int64_t ldy[MAX_FUSED]
    cdef int num = len(weights), i
    if not 1 <= num <= MAX_FUSED or len(ys) != num:
        raise ShapeError(f"{num} weights and {len(ys)} results; 1 .. {MAX_FUSED} pairs are needed")
    cdef PackedWeight weight
    cdef Array a = array_of(x, "x", "f", 2, False), b
    cdef list held = []
    for i in range(num):
        weight = weights[i]
        if weight is None:
            raise ShapeError("a weight is None")
        want_shape(a, "x", -1, weight.c.in_features)
        b = array_of(ys[i], "y", "f", 2, True)
        want_shape(b, "y", a.rows, weight.c.out_features)
        want_apart(a, "x", b, "y")
        for other in held:
            want_apart(other, "y", b, "another y")
        w[i], y[i], ldy[i] = &weight.c, <float*>b.data, b.stride
        held.append(b)
    cdef bcq_status status = _run_linear(context, num, w, a, precision, y, ldy, accumulate)
    if status != BCQ_OK:
        check(status, f"linear of x {[a.rows, a.columns]} by {list(weights)}, "
                      f"precision {precision}")


cdef bcq_status _run_linear(Context context, int num, const bcq_weight** w, Array x, int precision,
                            float** y, int64_t* ldy, bint accumulate) except? BCQ_OK:
    cdef size_t bytes = 0
    cdef void* scratch = NULL
    cdef bcq_status status = BCQ_OK
    context.pool.enter()
    try:
        if precision != BCQ_EXACT:
            status = bcq_linear_scratch(x.rows, x.columns, &bytes)
            if status != BCQ_OK:
                return status
            scratch = context.pool.scratch_of(bytes)
        with nogil:
            status = bcq_linear(&context.c, num, w, <const float*>x.data, x.stride, x.rows,
                                <bcq_precision>precision, y, ldy, accumulate, scratch, bytes)
    finally:
        context.pool.leave()
    return status


def embed(Context context not None, PackedWeight weight not None, ids, out):
    """out[i] = W[ids[i]].

    Args:
        ids: int32 (M). out: float32 (M, K).
    Raises:
        ShapeError: an array does not fit.
        KernelError: an id is outside 0 .. N - 1.
    """
    cdef Array i = array_of(ids, "ids", "i", 1, False)
    cdef Array o = array_of(out, "out", "f", 2, True)
    want_shape(o, "out", i.columns, weight.c.in_features)
    cdef bcq_status status
    context.pool.enter()
    with nogil:
        status = bcq_embed(&context.c, &weight.c, <const int32_t*>i.data, i.columns,
                           <float*>o.data, o.stride)
    context.pool.leave()
    check(status, f"embed {i.columns} ids from {weight}; ids are 0 .. {weight.c.out_features - 1}")


def rmsnorm(Context context not None, x, weight, float eps, out):
    """out = x / sqrt(mean(x^2) + eps) * weight, row by row; `out` may be `x`.

    Args:
        x, out: float32 (M, K). weight: float32 (K).
    Raises:
        ShapeError: an array does not fit.
    """
    cdef Array a = array_of(x, "x", "f", 2, False)
    cdef Array g = array_of(weight, "weight", "f", 1, False)
    cdef Array o = array_of(out, "out", "f", 2, True)
    want_shape(g, "weight", 1, a.columns)
    want_shape(o, "out", a.rows, a.columns)
    _want_same_or_apart(a, "x", o)
    cdef int64_t i
    with nogil:
        for i in range(a.rows):
            context.c.kernels.rmsnorm(<float*>a.data + i * a.stride, <float*>g.data, eps,
                                      a.columns, <float*>o.data + i * o.stride)


def rope(Context context not None, x, int64_t num_heads, cos, sin):
    """Rotate the heads of every row in place: (x[i], x[i + D/2]) by the angle i.

    Args:
        x: float32 (M, num_heads * D), D even. cos, sin: float32 (M, D / 2).
    Raises:
        ShapeError: an array does not fit.
    """
    cdef Array a = array_of(x, "x", "f", 2, True)
    cdef Array c = array_of(cos, "cos", "f", 2, False)
    cdef Array s = array_of(sin, "sin", "f", 2, False)
    if num_heads < 1 or a.columns % (2 * num_heads) != 0:
        raise ShapeError(f"x is {a.text()}; {num_heads} heads of an even size are needed")
    cdef int64_t head_dim = a.columns // num_heads, i
    want_shape(c, "cos", a.rows, head_dim // 2)
    want_shape(s, "sin", a.rows, head_dim // 2)
    want_apart(a, "x", c, "cos")
    want_apart(a, "x", s, "sin")
    with nogil:
        for i in range(a.rows):
            context.c.kernels.rope(<float*>a.data + i * a.stride, num_heads, head_dim,
                                   <float*>c.data + i * c.stride, <float*>s.data + i * s.stride)


def silu_mul(Context context not None, gate, up, out):
    """out = gate / (1 + exp(-gate)) * up; `out` may be `gate` or `up`.

    Args:
        gate, up, out: float32 (M, K).
    Raises:
        ShapeError: an array does not fit.
    """
    cdef Array g = array_of(gate, "gate", "f", 2, False)
    cdef Array u = array_of(up, "up", "f", 2, False)
    cdef Array o = array_of(out, "out", "f", 2, True)
    want_shape(u, "up", g.rows, g.columns)
    want_shape(o, "out", g.rows, g.columns)
    _want_same_or_apart(g, "gate", o)
    _want_same_or_apart(u, "up", o)
    cdef int64_t i
    with nogil:
        for i in range(g.rows):
            context.c.kernels.silu_mul(<float*>g.data + i * g.stride, <float*>u.data + i * u.stride,
                                       g.columns, <float*>o.data + i * o.stride)


def add(Context context not None, x, y):
    """y += x.

    Args:
        x, y: float32 (M, K).
    Raises:
        ShapeError: an array does not fit.
    """
    cdef Array a = array_of(x, "x", "f", 2, False)
    cdef Array b = array_of(y, "y", "f", 2, True)
    want_shape(b, "y", a.rows, a.columns)
    want_apart(a, "x", b, "y")
    cdef int64_t i
    with nogil:
        for i in range(a.rows):
            context.c.kernels.add(<float*>a.data + i * a.stride, a.columns,
                                  <float*>b.data + i * b.stride)


def softmax(Context context not None, x, float temperature=1.0):
    """Softmax of x / temperature in place, row by row; a row of only -inf becomes zeros.

    Args:
        x: float32 (M, K). temperature: > 0.
    Raises:
        ShapeError: the array does not fit.
        KernelError: the temperature is not a positive number.
    """
    cdef Array a = array_of(x, "x", "f", 2, True)
    if not temperature > 0:
        raise KernelError(f"softmax: the temperature is {temperature}; more than 0 is needed")
    cdef int64_t i
    with nogil:
        for i in range(a.rows if a.columns > 0 else 0):
            context.c.kernels.softmax(<float*>a.data + i * a.stride, a.columns, temperature)


def argmax(Context context not None, x):
    """First index of the largest value; NaN counts as smaller than anything.

    Args:
        x: float32 (K), K > 0.
    Raises:
        ShapeError: the array does not fit.
    """
    cdef Array a = array_of(x, "x", "f", 1, False)
    if a.columns == 0:
        raise ShapeError("x is empty; a value is needed")
    cdef int64_t found
    with nogil:
        found = context.c.kernels.argmax(<float*>a.data, a.columns)
    return found


cdef int _want_same_or_apart(Array a, str name, Array out) except -1:
    if a.data != out.data or a.stride != out.stride:
        want_apart(a, name, out, "out")
    return 0

# Keys and values of one layer, and attention over them.

KV_F32 = BCQ_KV_F32
KV_F16 = BCQ_KV_F16
KV_INT8 = BCQ_KV_INT8


cdef class KvCache:
    """Keys and values of one layer.

    Args:
        kv_type: KV_F32, KV_F16 or KV_INT8.
        num_kv_heads, head_dim: head_dim is a multiple of 16, at most 256.
        capacity: positions, a multiple of 16.
    Raises:
        KernelError: a size does not fit.
    """

    cdef bcq_kv c
    cdef void* memory
    cdef readonly size_t nbytes

    def __cinit__(self, int kv_type, int64_t num_kv_heads, int64_t head_dim, int64_t capacity):
        sentence = (
            f"a cache of type {kv_type} with {num_kv_heads} heads of {head_dim} and {capacity} "
            "positions"
        )
        check(bcq_kv_bytes(<bcq_kv_type>kv_type, num_kv_heads, head_dim, capacity, &self.nbytes),
              sentence)
        self.memory = aligned_bytes(self.nbytes)
        memset(self.memory, 0, self.nbytes)
        check(bcq_kv_init(<bcq_kv_type>kv_type, num_kv_heads, head_dim, capacity, self.memory,
                          self.nbytes, &self.c), sentence)

    def __dealloc__(self):
        free(self.memory)

    @property
    def capacity(self):
        """Positions."""
        return self.c.capacity

    @property
    def num_kv_heads(self):
        """Heads of keys and values."""
        return self.c.num_kv_heads

    @property
    def head_dim(self):
        """D."""
        return self.c.head_dim

    def append(self, Context context not None, int64_t first, keys, values):
        """Write positions first .. first + T - 1.

        Args:
            keys, values: float32 (T, num_kv_heads * D).
        Raises:
            ShapeError: an array does not fit.
            KernelError: the positions are outside the cache.
        """
        cdef Array k = array_of(keys, "keys", "f", 2, False)
        cdef Array v = array_of(values, "values", "f", 2, False)
        want_shape(k, "keys", -1, self.c.num_kv_heads * self.c.head_dim)
        want_shape(v, "values", k.rows, self.c.num_kv_heads * self.c.head_dim)
        cdef bcq_status status
        context.pool.enter()
        with nogil:
            status = bcq_kv_append(&context.c, &self.c, first, k.rows, <float*>k.data, k.stride,
                                   <float*>v.data, v.stride)
        context.pool.leave()
        check(status, f"append {k.rows} positions from {first} to a cache of {self.c.capacity}")


def attend(Context context not None, KvCache cache not None, q, out, int64_t first_position,
           float scale, int64_t window=0, alibi=None):
    """Causal attention of T new tokens whose keys and values are in the cache.

    Args:
        q, out: float32 (T, num_heads * D); token t sees positions 0 .. first_position + t.
        scale: on q.k, as a rule 1 / sqrt(D).
        window: positions that a token sees, itself included; 0 = all.
        alibi: float32 (num_heads), slopes; adds -slope * distance.
    Raises:
        ShapeError: an array does not fit.
        KernelError: positions beyond the cache, heads that do not divide.
    """
    cdef Array a = array_of(q, "q", "f", 2, False)
    cdef Array o = array_of(out, "out", "f", 2, True)
    cdef Array slopes = None if alibi is None else array_of(alibi, "alibi", "f", 1, False)
    cdef bcq_attention attention
    if a.columns == 0 or a.columns % cache.c.head_dim != 0:
        raise ShapeError(f"q is {a.text()}; whole heads of {cache.c.head_dim} are needed")
    want_shape(o, "out", a.rows, a.columns)
    want_apart(a, "q", o, "out")
    attention.num_heads = a.columns // cache.c.head_dim
    attention.alibi = NULL
    if slopes is not None:
        want_shape(slopes, "alibi", 1, attention.num_heads)
        attention.alibi = <float*>slopes.data
    attention.kv = &cache.c
    attention.q, attention.ldq = <float*>a.data, a.stride
    attention.out, attention.ldo = <float*>o.data, o.stride
    attention.num_tokens, attention.first_position = a.rows, first_position
    attention.window, attention.scale = window, scale
    cdef bcq_status status
    context.pool.enter()
    with nogil:
        status = bcq_attend(&context.c, &attention)
    context.pool.leave()
    check(status, f"attention of {a.rows} tokens from position {first_position}, "
                  f"{attention.num_heads} heads over {cache.c.num_kv_heads}, "
                  f"in a cache of {cache.c.capacity}")

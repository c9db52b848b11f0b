# Packed weights, layout bcq_n16k32_v1.


cdef class PackedWeight:
    """One weight as the kernels read it, in memory of its own or in a buffer that it keeps alive.

    Made by `pack`, `pack_f16` or `open_packed`; never written to.
    """

    cdef bcq_weight c
    cdef void* owned
    cdef Py_buffer view  # of a blob that was opened, not packed
    cdef const void* blob
    cdef readonly size_t nbytes

    def __dealloc__(self):
        free(self.owned)
        PyBuffer_Release(&self.view)

    @property
    def out_features(self):
        """N."""
        return self.c.out_features

    @property
    def in_features(self):
        """K."""
        return self.c.in_features

    @property
    def bits(self):
        """2, 3, 4 or 8; 16 for float16 values."""
        return self.c.bits

    @property
    def group_size(self):
        """Columns that share a scale; K where the whole row does."""
        return self.c.group_size

    @property
    def num_groups(self):
        """G; 0 for float16 values."""
        return self.c.num_groups

    @property
    def has_zeros(self):
        """Whether zeros are stored; else every zero is 2^(bits-1)."""
        return self.c.zeros is not NULL

    def tobytes(self):
        """The blob, as `open_packed` reads it."""
        return (<const char*>self.blob)[:self.nbytes]

    def unpack(self):
        """(codes_NK uint8, scales_NG float16, zeros_NG uint8), symmetric zeros filled in.

        Raises:
            KernelError: the weight holds float16 values.
        """
        import numpy as np

        shape = (self.c.out_features, self.c.num_groups)
        codes = np.empty((self.c.out_features, self.c.in_features), np.uint8)
        scales, zeros = np.empty(shape, np.float16), np.empty(shape, np.uint8)
        cdef Array c = array_of(codes, "codes", "B", 2, True)
        cdef Array s = array_of(scales, "scales", "e", 2, True)
        cdef Array z = array_of(zeros, "zeros", "B", 2, True)
        cdef bcq_status status
        with nogil:
            status = bcq_weight_unpack(&self.c, <uint8_t*>c.data, <uint16_t*>s.data,
                                       <uint8_t*>z.data)
        check(status, f"unpack {self}")
        return codes, scales, zeros

    def __repr__(self):
        return (
            f"PackedWeight({self.c.out_features}, {self.c.in_features}, bits={self.c.bits}, "
            f"group_size={self.c.group_size}, has_zeros={self.has_zeros})"
        )

    cdef int reserve(self, int64_t n, int64_t k, int bits, int64_t group_size,
                     bint has_zeros) except -1:
        sentence = f"pack a weight {[n, k]} with {bits} bits and group_size {group_size}"
        check(bcq_weight_bytes(n, k, bits, group_size, has_zeros, &self.nbytes), sentence)
        self.owned = aligned_bytes(self.nbytes)
        self.blob = self.owned
        return 0


def pack(codes, scales, zeros, int bits, int64_t group_size):
    """Pack a quantized weight.

    Args:
        codes: uint8 (N, K). scales: float16 (N, G). zeros: uint8 (N, G); None = symmetric.
        group_size: a multiple of 32; K, or -1, for one scale a row.
    Raises:
        ShapeError: an array does not fit.
        KernelError: there is no kernel for the bits or the group size, or a code is too large.
    """
    cdef Array c = array_of(codes, "codes", "B", 2, False)
    cdef Array s = array_of(scales, "scales", "e", 2, False)
    cdef Array z = None if zeros is None else array_of(zeros, "zeros", "B", 2, False)
    cdef int64_t n = c.rows, k = c.columns
    cdef int64_t width = k if group_size < 1 or group_size > k else group_size
    if bits == 16:
        raise KernelError("pack: 16 bits are packed from float16 values; use pack_f16")
    want_contiguous(c, "codes")
    for array, name in ((s, "scales"), (z, "zeros")):
        if array is not None:
            want_shape(array, name, n, (k + width - 1) // width if width > 0 else 0)
            want_contiguous(array, name)
    cdef PackedWeight w = PackedWeight.__new__(PackedWeight)
    w.reserve(n, k, bits, width, z is not None)
    cdef const uint8_t* zero_data = NULL
    if z is not None:
        zero_data = <const uint8_t*>z.data
    cdef bcq_status status
    with nogil:
        status = bcq_weight_pack(<const uint8_t*>c.data, <const uint16_t*>s.data, zero_data, n, k,
                                 bits, width, w.owned, w.nbytes)
        if status == BCQ_OK:
            status = bcq_weight_open(w.blob, w.nbytes, &w.c)
    check(status, f"pack a weight {[n, k]} with {bits} bits and group_size {width}")
    return w


def pack_f16(values):
    """Pack float16 values (N, K), which have no scales.

    Raises:
        ShapeError: another dtype or rank.
    """
    cdef Array v = array_of(values, "values", "e", 2, False)
    want_contiguous(v, "values")
    cdef PackedWeight w = PackedWeight.__new__(PackedWeight)
    w.reserve(v.rows, v.columns, 16, v.columns, False)
    cdef bcq_status status
    with nogil:
        status = bcq_weight_pack_f16(<const uint16_t*>v.data, v.rows, v.columns, w.owned, w.nbytes)
        if status == BCQ_OK:
            status = bcq_weight_open(w.blob, w.nbytes, &w.c)
    check(status, f"pack float16 values {[v.rows, v.columns]}")
    return w


def open_packed(blob):
    """A weight inside a buffer (bytes, a mapped file, a uint8 array), which is not copied.

    It must not change, and should start on a multiple of 64 bytes for speed.

    Raises:
        ShapeError: the buffer is not contiguous or starts on an odd address.
        KernelError: it is no packed weight; no number in its header is trusted.
    """
    cdef PackedWeight w = PackedWeight.__new__(PackedWeight)
    try:
        PyObject_GetBuffer(blob, &w.view, 0)
    except (TypeError, ValueError, BufferError) as error:
        raise ShapeError(f"blob: {error}; a contiguous buffer is needed") from error
    w.blob, w.nbytes = w.view.buf, w.view.len
    if <uintptr_t>w.blob % 2 != 0:
        raise ShapeError("blob starts on an odd address; its float16 scales need an even one")
    check(bcq_weight_open(w.blob, w.nbytes, &w.c), f"open a packed weight of {w.nbytes} bytes")
    return w

# What every call shares: arrays borrowed from Python, and errors.
from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uintptr_t
from libc.string cimport memset

from bcq cimport *

from bcquant.errors import KernelError, ShapeError

_DTYPE_NAMES = {"f": "float32", "B": "uint8", "e": "float16", "i": "int32"}


cdef class Array:
    """A matrix in somebody else's memory, held for as long as this object lives."""

    cdef Py_buffer view
    cdef void* data
    cdef int64_t rows
    cdef int64_t columns
    cdef int64_t stride  # items from a row to the next

    def __dealloc__(self):
        PyBuffer_Release(&self.view)

    cdef str text(self):
        """dtype and shape, for messages."""
        cdef str kind = "?" if self.view.format is NULL else (<bytes>self.view.format).decode()
        shape = [self.view.shape[i] for i in range(self.view.ndim)]
        return f"{_DTYPE_NAMES.get(kind, repr(kind))}{shape}"


cdef Array array_of(object source, str name, str kind, int rank, bint writable):
    """Borrow a matrix (rank 2) or a row (rank 1) with items of one kind and contiguous rows."""
    cdef Array a = Array.__new__(Array)
    cdef int flags = PyBUF_FORMAT | PyBUF_STRIDES | (PyBUF_WRITABLE if writable else 0)
    try:
        PyObject_GetBuffer(source, &a.view, flags)
    except (TypeError, ValueError, BufferError) as error:
        raise ShapeError(f"{name}: {error}; {_needed(kind, rank, writable)}") from error
    cdef bint fits = (
        a.view.ndim == rank and a.view.format is not NULL and a.view.format[0] == ord(kind)
        and a.view.format[1] == 0 and <uintptr_t>a.view.buf % <size_t>a.view.itemsize == 0
    )
    if fits:
        a.data = a.view.buf
        a.rows = a.view.shape[0] if rank == 2 else 1
        a.columns = a.view.shape[rank - 1]
        fits = _rows_lie_in_order(a, rank)
    if not fits:
        raise ShapeError(f"{name} is {a.text()}; {_needed(kind, rank, writable)}")
    return a


cdef str _needed(str kind, int rank, bint writable):
    return (
        f"a{' writable' if writable else ''} {_DTYPE_NAMES[kind]} array of rank {rank} with "
        "contiguous rows is needed"
    )


cdef bint _rows_lie_in_order(Array a, int rank):
    cdef int64_t item = a.view.itemsize
    if a.columns > 1 and a.view.strides[rank - 1] != item:
        return False
    a.stride = a.columns
    if a.rows > 1:
        if a.view.strides[0] % item != 0 or a.view.strides[0] < a.columns * item:
            return False
        a.stride = a.view.strides[0] // item
    return True


cdef int want_shape(Array a, str name, int64_t rows, int64_t columns) except -1:
    """Refuse an array of another shape; -1: any number of rows."""
    if (rows >= 0 and a.rows != rows) or a.columns != columns:
        wanted = [columns] if a.view.ndim == 1 else ["M" if rows < 0 else rows, columns]
        raise ShapeError(f"{name} is {a.text()}; shape {wanted} is needed")
    return 0


cdef int want_contiguous(Array a, str name) except -1:
    if a.stride != a.columns:
        raise ShapeError(f"{name} is {a.text()} with gaps between its rows; make it contiguous")
    return 0


cdef int want_apart(Array a, str name_a, Array b, str name_b) except -1:
    """Refuse arrays that share memory; columns of one wider matrix are apart."""
    cdef uintptr_t a_first = <uintptr_t>a.data, b_first = <uintptr_t>b.data
    cdef int64_t a_item = a.view.itemsize, b_item = b.view.itemsize
    cdef int64_t step = a.stride * a_item, offset
    if a.rows * a.columns == 0 or b.rows * b.columns == 0:
        return 0
    cdef uintptr_t a_last = a_first + ((a.rows - 1) * a.stride + a.columns) * a_item
    cdef uintptr_t b_last = b_first + ((b.rows - 1) * b.stride + b.columns) * b_item
    if a_last <= b_first or b_last <= a_first:
        return 0
    if step == b.stride * b_item:
        offset = (<int64_t>b_first - <int64_t>a_first) % step
        offset = offset + step if offset < 0 else offset
        if offset >= a.columns * a_item and offset + b.columns * b_item <= step:
            return 0
    raise ShapeError(f"{name_a} and {name_b} share memory; the result needs memory of its own")


cdef int check(bcq_status status, str sentence) except -1:
    """Turn a status into an error; `sentence` names the operation and its shapes."""
    if status != BCQ_OK:
        raise KernelError(f"{sentence}: {bcq_status_text(status).decode()}")
    return 0

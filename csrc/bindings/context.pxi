# Who computes: a pool of threads and the kernels of one tier.
from cpython.pythread cimport (
    PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock, PyThread_release_lock,
    PyThread_type_lock, NOWAIT_LOCK, WAIT_LOCK,
)
from libc.stdlib cimport free
from posix.stdlib cimport posix_memalign

import os

cdef int64_t _forks = 0  # that lie between the first process and this one


def _count_fork():
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


cdef extern from *:
    """
    #include <sys/mman.h>
    /* Large arrays in huge pages, where the system has them: a stream of weights then misses the
       TLB once in 2 MB. Advice only; nothing depends on it. */
    static void bcq_advise_huge(void* memory, size_t bytes) {
    #ifdef MADV_HUGEPAGE
      (void)madvise(memory, bytes, MADV_HUGEPAGE);
    #else
      (void)memory, (void)bytes;
    #endif
    }
    """
    void bcq_advise_huge(void* memory, size_t bytes) nogil

cdef size_t HUGE_PAGE = 2 << 20


cdef void* aligned_bytes(size_t bytes) except NULL:
    """Memory that starts on a cache line, large arrays on a huge page; free() frees it."""
    cdef void* memory = NULL
    cdef bint huge = bytes >= 2 * HUGE_PAGE
    if posix_memalign(&memory, HUGE_PAGE if huge else 64, bytes if bytes > 0 else 64) != 0:
        raise KernelError(f"the system gave no {bytes} bytes of memory")
    if huge:
        bcq_advise_huge(memory, bytes)
    return memory


cdef class Pool:
    """Threads that share the loops of one call; calls from several threads wait for each other.

    Args:
        num_threads: 1 .. 256, the caller being one of them.
    Raises:
        KernelError: another number, or the system gives no threads.
    """

    cdef bcq_pool* c
    cdef PyThread_type_lock lock
    cdef int64_t forks  # at which the lock was made
    cdef void* scratch
    cdef size_t scratch_bytes

    def __cinit__(self, int num_threads):
        self.lock = PyThread_allocate_lock()
        if self.lock is NULL:
            raise KernelError("the system gave no lock for a pool of threads")
        check(bcq_pool_create(num_threads, &self.c), f"a pool of {num_threads} threads")
        self.forks = _forks

    def __dealloc__(self):
        with nogil:
            bcq_pool_destroy(self.c)
        if self.lock is not NULL:
            PyThread_free_lock(self.lock)
        free(self.scratch)

    @property
    def num_threads(self):
        """Threads of the pool, the caller included."""
        return bcq_pool_num_threads(self.c)

    cdef int enter(self) except -1:
        """Become the pool's one caller; `leave` must follow."""
        if _forks != self.forks:  # forked, perhaps while another thread held the lock
            self.lock, self.forks = PyThread_allocate_lock(), _forks
            if self.lock is NULL:
                raise KernelError("the system gave no lock for a pool of threads")
        if not PyThread_acquire_lock(self.lock, NOWAIT_LOCK):
            with nogil:
                PyThread_acquire_lock(self.lock, WAIT_LOCK)
        return 0

    cdef void leave(self) noexcept:
        PyThread_release_lock(self.lock)

    cdef void* scratch_of(self, size_t bytes) except? NULL:
        """Memory for one call, between `enter` and `leave`; kept, so that steps allocate nothing."""
        if bytes > self.scratch_bytes:
            free(self.scratch)
            self.scratch, self.scratch_bytes = NULL, 0
            self.scratch = aligned_bytes(bytes)
            self.scratch_bytes = bytes
        return self.scratch


cdef class Context:
    """The kernels of one tier and the pool that runs them.

    Args:
        pool: shared by any number of contexts.
        tier: a name of `tiers()`; None = BCQ_FORCE_TIER if set, else the best of this CPU.
    Raises:
        KernelError: no such tier, or this CPU lacks it.
    """

    cdef bcq_context c
    cdef readonly Pool pool

    def __cinit__(self, Pool pool not None, str tier=None):
        cdef bytes encoded
        cdef const char* name = NULL
        if tier is not None:
            encoded = tier.encode()
            name = encoded
        cdef bcq_status status = bcq_kernels_get(name, &self.c.kernels)
        self.pool = pool
        self.c.pool = pool.c
        if status != BCQ_OK:
            asked = f"kernel tier {tier!r}" if tier is not None else "kernels of this CPU"
            check(status, f"{asked} (this build has {', '.join(tiers())})")

    @property
    def tier(self):
        """Name of the tier that runs."""
        return self.c.kernels.tier.decode()

    @property
    def num_threads(self):
        """Threads of the pool."""
        return self.pool.num_threads


def tiers():
    """The tiers of this build, best first, also those that this CPU lacks."""
    cdef const char* const* names = NULL
    cdef int32_t count = bcq_tier_names(&names)
    return tuple([names[i].decode() for i in range(count)])

/// A small pool of threads for parallel loops that last microseconds.
///
/// A loop's tasks are handed out one by one through a counter, so a thread that loses its core
/// keeps only the task that it holds. Workers spin briefly between loops, then sleep. A worker
/// whose core another process wants takes no tasks for 5 to 40 ms, then tries again; the others
/// go on. Measured figures and reasons: docs/decisions/0006-threads.md.
#ifndef BCQ_THREADS_H_
#define BCQ_THREADS_H_

#include <stdint.h>

#include "bcq/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bcq_pool bcq_pool;

/// One task of a loop. `worker` is 0 .. num_threads - 1 (0 = the calling thread): an index into
/// per-thread scratch. It must not call bcq_pool_run on the same pool, nor wait for another task:
/// all tasks may run on one thread, in order.
typedef void (*bcq_task_fn)(void* context, int64_t task, int32_t worker);

/// Makes a pool of `num_threads` threads, the caller of bcq_pool_run being one of them. For one
/// thread, and in a build without threads (WASM without atomics), `*pool` is the null pool.
/// Errors, with `*pool` null: BCQ_BAD_ARGUMENT (num_threads < 1 or > 256, or `pool` null),
/// BCQ_OUT_OF_MEMORY (no memory or no thread to be had).
bcq_status bcq_pool_create(int32_t num_threads, bcq_pool** pool);

/// Stops the threads and frees the pool; null is allowed. No loop may be running.
void bcq_pool_destroy(bcq_pool* pool);

/// Threads of the pool; 1 for null.
int32_t bcq_pool_num_threads(const bcq_pool* pool);

/// Calls fn(context, task, worker) once for each task in 0 .. num_tasks - 1 and returns when all
/// have finished; what they wrote is visible to the caller. No task for num_tasks <= 0. A null
/// pool runs them in turn on the calling thread, and so does any pool in a forked child, where its
/// threads do not exist. One caller at a time for a pool. Which thread runs a task is not fixed,
/// so results must not depend on it.
void bcq_pool_run(bcq_pool* pool, int64_t num_tasks, bcq_task_fn fn, void* context);

#ifdef __cplusplus
}  // extern "C"
#endif
#endif  // BCQ_THREADS_H_

#include "bcq/threads.h"

#include "platform.h"

// How it works
//
// `remaining` is the whole hand-over: the caller stores the number of tasks there, idle workers
// spin on it, and whoever decrements a positive value owns a task. A claimed task keeps its loop
// alive (the caller waits until `unfinished` is 0), so a claim needs no epoch: a worker that slept
// through three loops and then decrements a positive value has a task of the current one.
//
// A worker whose core is wanted by somebody else must not hold tasks: the caller would wait for a
// scheduler slice (3 ms and more) at the end of a loop that lasts 40 us. The scheduler's own books
// say so without guessing from task times: wall time minus the thread's CPU time, with a
// preemption. Such a worker rests on its own, in growing steps, and the others go on.

#if BCQ_HAS_THREADS

namespace bcq {
namespace {

constexpr int64_t kUs = 1000;
constexpr int64_t kMs = 1000 * kUs;
constexpr int64_t kIdleSpin = 150 * kUs;    // between the loops of a token; a wake-up costs 5-50 us
constexpr int64_t kFinishSpin = 100 * kUs;  // for the others' last tasks
constexpr int64_t kWatchPeriod = 1 * kMs;   // between looks at the CPU clock (a system call)
constexpr int64_t kDenied = 300 * kUs;      // without a core for so long: it is contested
constexpr int64_t kLateWake = 500 * kUs;    // from wake-up to running; quiet: under 100 us
constexpr int64_t kFirstRest = 5 * kMs;
constexpr int64_t kLongestRest = 40 * kMs;   // a trial costs the caller nothing, so often
constexpr int64_t kLongestTrial = 10 * kMs;  // longer than a slice of the scheduler
constexpr int64_t kStepAside = 1 * kMs;
constexpr int64_t kForget = 100 * kMs;  // undisturbed for so long: start from kFirstRest
constexpr int kPollsPerClock = 32;
constexpr size_t kLine = 128;  // two cache lines: neighbours are prefetched in pairs

struct alignas(kLine) Worker {
  Parking parking;     // shared with the caller, as the next two are
  int64_t woken_at;    // by the caller's clock
  int32_t is_resting;  // not to be woken: sleeps for a set time, or is on trial
  bcq_pool* pool;      // from here on the worker's own
  int32_t index;
  pthread_t thread;
  int64_t rest;       // the last rest's length
  int64_t joined_at;  // end of the last rest
  int64_t seen_wall, seen_cpu, seen_preemptions;
};

int32_t fork_generation;  // how many forks lie between the first process and this one
pthread_once_t fork_once = PTHREAD_ONCE_INIT;

void count_fork() { __atomic_add_fetch(&fork_generation, 1, __ATOMIC_RELAXED); }
void watch_forks() { pthread_atfork(nullptr, nullptr, count_fork); }

}  // namespace
}  // namespace bcq

struct bcq_pool {
  alignas(bcq::kLine) int64_t remaining;  // tasks that nobody has claimed; <= 0: none
  int64_t num_tasks;
  bcq_task_fn fn;
  void* context;
  int32_t stop;
  alignas(bcq::kLine) int64_t unfinished;  // tasks whose writes the caller cannot see yet
  bcq::Parking caller;
  alignas(bcq::kLine) int32_t num_absent;  // workers asleep or resting
  int32_t caller_core;
  int32_t num_workers;  // without the caller
  int32_t generation;   // of the process that the threads live in
  bcq::Worker* workers;
};

namespace bcq {
namespace {

// Runs tasks of the current loop, if there is one, until none is unclaimed.
void run_tasks(bcq_pool* pool, int32_t worker) {
  int64_t finished = 0;
  for (;;) {
    const int64_t claimed = __atomic_fetch_sub(&pool->remaining, 1, __ATOMIC_ACQUIRE);
    if (claimed <= 0) break;
    pool->fn(pool->context, pool->num_tasks - claimed, worker);
    ++finished;
  }
  if (finished == 0) return;
  const int64_t left = __atomic_sub_fetch(&pool->unfinished, finished, __ATOMIC_SEQ_CST);
  if (left == 0 && worker != 0 && claim_wake(&pool->caller)) unpark(&pool->caller);
}

bool has_tasks(const bcq_pool* pool) {
  return __atomic_load_n(&pool->remaining, __ATOMIC_SEQ_CST) > 0;
}

bool is_stopped(const bcq_pool* pool) {
  return __atomic_load_n(&pool->stop, __ATOMIC_SEQ_CST) != 0;
}

void start_watch(Worker* self, int64_t now) {
  self->seen_wall = now;
  self->seen_cpu = thread_cpu_ns();
}

// True if another thread had this worker's core for kDenied or longer since the last look. Time
// lost to a page fault that reads a file counts only where the system cannot tell it apart.
bool was_denied(Worker* self, int64_t now) {
  if (now - self->seen_wall < kWatchPeriod) return false;
  const int64_t wall = self->seen_wall;
  const int64_t cpu = self->seen_cpu;
  start_watch(self, now);
  if ((now - wall) - (self->seen_cpu - cpu) < kDenied) return false;
  const int64_t before = self->seen_preemptions;
  self->seen_preemptions = preemptions();
  return self->seen_preemptions < 0 || self->seen_preemptions != before;
}

bool is_in_callers_way(const bcq_pool* pool) {
  const int32_t core = current_core();
  return core >= 0 && core == __atomic_load_n(&pool->caller_core, __ATOMIC_RELAXED);
}

// Sleeps until the caller has a loop. True if it then runs promptly and on a core of its own.
bool sleep_until_woken(Worker* self) {
  bcq_pool* pool = self->pool;
  __atomic_add_fetch(&pool->num_absent, 1, __ATOMIC_SEQ_CST);
  prepare_to_park(&self->parking);
  const bool has_reason = is_stopped(pool) || has_tasks(pool);
  if (has_reason) {
    claim_wake(&self->parking);
  } else {
    park(&self->parking, -1);
  }
  __atomic_sub_fetch(&pool->num_absent, 1, __ATOMIC_SEQ_CST);
  if (has_reason) return true;
  const int64_t now = now_ns();
  start_watch(self, now);
  return now - __atomic_load_n(&self->woken_at, __ATOMIC_RELAXED) < kLateWake &&
         !is_in_callers_way(pool);
}

// Sleeps for a set time, whatever the caller does.
void sleep_for(Worker* self, int64_t length) {
  prepare_to_park(&self->parking);
  if (!is_stopped(self->pool)) park(&self->parking, length);
  claim_wake(&self->parking);
}

// Sleeps for self->rest, then on, while there is no loop.
void sleep_for_rest(Worker* self) {
  sleep_for(self, self->rest);
  if (has_tasks(self->pool)) return;
  __atomic_store_n(&self->is_resting, 0, __ATOMIC_SEQ_CST);
  sleep_until_woken(self);
  __atomic_store_n(&self->is_resting, 1, __ATOMIC_SEQ_CST);
}

// Spins without taking tasks; true if the core stays the worker's and is not the caller's. On the
// caller's core it steps aside, and the scheduler places it anew.
bool passes_trial(Worker* self, int64_t length) {
  const int64_t start = now_ns();
  int64_t before = start;
  while (before - start < length && !is_stopped(self->pool)) {
    if (is_in_callers_way(self->pool)) {
      sleep_for(self, kStepAside);
      before = now_ns();
      continue;
    }
    for (int i = 0; i < kPollsPerClock; ++i) relax();
    const int64_t now = now_ns();
    if (now - before > kDenied) return false;
    before = now;
  }
  return !is_in_callers_way(self->pool);
}

// The core is contested: stay away, longer each time that it still is.
void rest(Worker* self) {
#if defined(BCQ_NEVER_REST)  // for tests: on a busy machine workers would do little else
  return;
#endif
  if (now_ns() - self->joined_at > kForget) self->rest = 0;
  __atomic_store_n(&self->is_resting, 1, __ATOMIC_SEQ_CST);
  __atomic_add_fetch(&self->pool->num_absent, 1, __ATOMIC_SEQ_CST);
  bool is_clear = false;
  while (!is_clear && !is_stopped(self->pool)) {
    const int64_t doubled = self->rest == 0 ? kFirstRest : 2 * self->rest;
    self->rest = doubled < kLongestRest ? doubled : kLongestRest;
    const int64_t trial = self->rest < kLongestTrial ? self->rest : kLongestTrial;
    sleep_for_rest(self);
    is_clear = passes_trial(self, trial);
  }
  __atomic_sub_fetch(&self->pool->num_absent, 1, __ATOMIC_SEQ_CST);
  __atomic_store_n(&self->is_resting, 0, __ATOMIC_SEQ_CST);
  self->joined_at = now_ns();
  start_watch(self, self->joined_at);
}

// Spins, then sleeps, until there are tasks; false when the pool is being destroyed.
bool wait_for_tasks(Worker* self) {
  bcq_pool* pool = self->pool;
  int64_t idle_since = now_ns();
  if (was_denied(self, idle_since)) rest(self);
  for (;;) {
    for (int i = 0; i < kPollsPerClock; ++i) {
      if (is_stopped(pool)) return false;
      if (has_tasks(pool)) return true;
      relax();
    }
    const int64_t now = now_ns();
    const bool is_contested =
        was_denied(self, now) || (now - idle_since > kIdleSpin && !sleep_until_woken(self));
    if (is_contested) rest(self);
    if (is_contested || now - idle_since > kIdleSpin) idle_since = now_ns();
  }
}

void* worker_body(void* argument) {
  Worker* self = static_cast<Worker*>(argument);
  self->seen_preemptions = preemptions();
  start_watch(self, now_ns());
  while (wait_for_tasks(self)) run_tasks(self->pool, self->index);
  return nullptr;
}

// Wakes sleeping workers, as many as the loop has use for; tells the others where the caller is.
void wake_workers(bcq_pool* pool, int64_t num_wanted) {
  if (__atomic_load_n(&pool->num_absent, __ATOMIC_SEQ_CST) == 0) return;
  __atomic_store_n(&pool->caller_core, current_core(), __ATOMIC_RELAXED);
  for (int32_t i = 0; i < pool->num_workers && num_wanted > 0; ++i) {
    Worker* worker = &pool->workers[i];
    if (__atomic_load_n(&worker->is_resting, __ATOMIC_SEQ_CST) != 0) continue;
    --num_wanted;  // if not asleep, it is spinning, or lying down and will see the loop
    if (__atomic_load_n(&worker->parking.asleep, __ATOMIC_SEQ_CST) == 0) continue;
    __atomic_store_n(&worker->woken_at, now_ns(), __ATOMIC_RELAXED);
    if (claim_wake(&worker->parking)) unpark(&worker->parking);
  }
}

bool is_finished(const bcq_pool* pool) {
  return __atomic_load_n(&pool->unfinished, __ATOMIC_SEQ_CST) == 0;
}

// Waits for tasks that other threads hold. Asleep, the caller leaves its core to a worker that
// lost its own.
void wait_until_finished(bcq_pool* pool) {
  if (is_finished(pool)) return;
  const int64_t start = now_ns();
  do {
    for (int i = 0; i < kPollsPerClock; ++i) {
      if (is_finished(pool)) return;
      relax();
    }
  } while (now_ns() - start < kFinishSpin);
  while (!is_finished(pool)) {  // the wake-up can be a late one, of the loop before
    prepare_to_park(&pool->caller);
    if (is_finished(pool) && claim_wake(&pool->caller)) return;
    park(&pool->caller, -1);
  }
}

void free_pool(bcq_pool* pool) {
  free(pool->workers);
  free(pool);
}

// Allocates a pool of `num_workers` workers without threads; null when there is no memory.
bcq_pool* new_pool(int32_t num_workers) {
  const size_t workers_bytes = static_cast<size_t>(num_workers) * sizeof(Worker);
  bcq_pool* pool = static_cast<bcq_pool*>(aligned_memory(kLine, sizeof(bcq_pool)));
  Worker* workers = static_cast<Worker*>(aligned_memory(kLine, workers_bytes));
  if (pool == nullptr || workers == nullptr) {
    free(pool);
    free(workers);
    return nullptr;
  }
  *pool = bcq_pool{};
  parking_init(&pool->caller);
  pool->caller_core = -1;
  pool->num_workers = num_workers;
  pool->generation = __atomic_load_n(&fork_generation, __ATOMIC_RELAXED);
  pool->workers = workers;
  for (int32_t i = 0; i < num_workers; ++i) {
    workers[i] = Worker{};
    parking_init(&workers[i].parking);
    workers[i].pool = pool;
    workers[i].index = i + 1;
  }
  return pool;
}

// Ends the first `num_started` threads. Not for a forked child: with the workers lost, what they
// slept on stays in use for ever, and pthread_cond_destroy would wait for them.
void stop_threads(bcq_pool* pool, int32_t num_started) {
  __atomic_store_n(&pool->stop, 1, __ATOMIC_SEQ_CST);
  for (int32_t i = 0; i < num_started; ++i) {
    Parking* parking = &pool->workers[i].parking;
    if (claim_wake(parking)) unpark(parking);
    pthread_join(pool->workers[i].thread, nullptr);
  }
  for (int32_t i = 0; i < pool->num_workers; ++i) parking_destroy(&pool->workers[i].parking);
  parking_destroy(&pool->caller);
}

bool has_threads(const bcq_pool* pool) {  // a fork leaves them behind
  return pool->generation == __atomic_load_n(&fork_generation, __ATOMIC_RELAXED);
}

void run_in_turn(int64_t num_tasks, bcq_task_fn fn, void* context) {
  for (int64_t task = 0; task < num_tasks; ++task) fn(context, task, 0);
}

}  // namespace
}  // namespace bcq

bcq_status bcq_pool_create(int32_t num_threads, bcq_pool** pool) {
  using namespace bcq;
  if (pool == nullptr) return BCQ_BAD_ARGUMENT;
  *pool = nullptr;
  if (num_threads < 1 || num_threads > 256) return BCQ_BAD_ARGUMENT;
  if (num_threads == 1) return BCQ_OK;
  pthread_once(&fork_once, watch_forks);
  bcq_pool* made = new_pool(num_threads - 1);
  if (made == nullptr) return BCQ_OUT_OF_MEMORY;
  for (int32_t i = 0; i < made->num_workers; ++i) {
    Worker* worker = &made->workers[i];
    if (start_thread(&worker->thread, worker_body, worker)) continue;
    stop_threads(made, i);
    free_pool(made);
    return BCQ_OUT_OF_MEMORY;
  }
  *pool = made;
  return BCQ_OK;
}

void bcq_pool_destroy(bcq_pool* pool) {
  using namespace bcq;
  if (pool == nullptr) return;
  if (has_threads(pool)) stop_threads(pool, pool->num_workers);
  free_pool(pool);
}

int32_t bcq_pool_num_threads(const bcq_pool* pool) {
  return pool == nullptr ? 1 : pool->num_workers + 1;
}

void bcq_pool_run(bcq_pool* pool, int64_t num_tasks, bcq_task_fn fn, void* context) {
  using namespace bcq;
  if (pool == nullptr || num_tasks <= 1 || !has_threads(pool)) {
    run_in_turn(num_tasks, fn, context);
    return;
  }
  pool->fn = fn;
  pool->context = context;
  pool->num_tasks = num_tasks;
  __atomic_store_n(&pool->unfinished, num_tasks, __ATOMIC_RELAXED);
  __atomic_store_n(&pool->remaining, num_tasks, __ATOMIC_SEQ_CST);
  wake_workers(pool, num_tasks - 1);
  run_tasks(pool, 0);
  wait_until_finished(pool);
}

#else  // no threads: every pool is the null pool

bcq_status bcq_pool_create(int32_t num_threads, bcq_pool** pool) {
  if (pool == nullptr) return BCQ_BAD_ARGUMENT;
  *pool = nullptr;
  return num_threads < 1 || num_threads > 256 ? BCQ_BAD_ARGUMENT : BCQ_OK;
}

void bcq_pool_destroy(bcq_pool*) {}

int32_t bcq_pool_num_threads(const bcq_pool*) { return 1; }

void bcq_pool_run(bcq_pool*, int64_t num_tasks, bcq_task_fn fn, void* context) {
  for (int64_t task = 0; task < num_tasks; ++task) fn(context, task, 0);
}

#endif  // BCQ_HAS_THREADS

/// Tests of the thread pool; `threads_test bench [repeats [seconds of one]]` measures it instead.
#include "bcq/threads.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "require.h"

#if defined(__linux__)
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#endif
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

namespace {

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int kShare = 10;  // of the repetitions: sanitizers are slow
#else
constexpr int kShare = 1;
#endif

#if defined(BCQ_NO_THREADS)
constexpr bool kHasThreads = false;
#else
constexpr bool kHasThreads = true;
#endif

#if defined(BCQ_NEVER_REST)
constexpr bool kNeverRest = true;
#else
constexpr bool kNeverRest = false;
#endif

double now_s() {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

void sleep_us(long us) {
  struct timespec time = {us / 1000000, us % 1000000 * 1000};
  nanosleep(&time, nullptr);
}

bcq_pool* make_pool(int32_t num_threads) {
  bcq_pool* pool = nullptr;
  CHECK(bcq_pool_create(num_threads, &pool) == BCQ_OK);
  return pool;
}

// Plain counters on purpose: a task that ran twice or whose write is not visible shows, and the
// thread sanitizer sees every unordered access.
struct Visits {
  int32_t* count;  // per task
  int32_t num_threads;
};

void visit(void* context, int64_t task, int32_t worker) {
  Visits* visits = static_cast<Visits*>(context);
  CHECK(worker >= 0 && worker < visits->num_threads);
  ++visits->count[task];
}

void check_loop(bcq_pool* pool, int64_t num_tasks) {
  Visits visits = {static_cast<int32_t*>(calloc(static_cast<size_t>(num_tasks) + 1, 4)),
                   pool == nullptr ? 1 : bcq_pool_num_threads(pool)};
  CHECK(visits.count != nullptr);
  bcq_pool_run(pool, num_tasks, visit, &visits);
  for (int64_t task = 0; task < num_tasks; ++task) CHECK(visits.count[task] == 1);
  CHECK(visits.count[num_tasks] == 0);
  free(visits.count);
}

void test_every_task_runs_once() {
  const int32_t threads[] = {1, 2, 3, 8};
  const int64_t sizes[] = {0, 1, 2, 3, 1000, 1000000 / kShare};
  for (const int32_t num_threads : threads) {
    bcq_pool* pool = make_pool(num_threads);
    CHECK(bcq_pool_num_threads(pool) == (kHasThreads ? num_threads : 1));
    for (const int64_t size : sizes) check_loop(pool, size);
    bcq_pool_destroy(pool);
  }
}

void test_null_pool_runs_on_the_caller() {
  CHECK(bcq_pool_num_threads(nullptr) == 1);
  check_loop(nullptr, 1000);
  bcq_pool_run(nullptr, -1, visit, nullptr);  // no task, so no call
  bcq_pool_destroy(nullptr);
}

void test_bad_arguments() {
  bcq_pool* pool = nullptr;
  CHECK(bcq_pool_create(2, nullptr) == BCQ_BAD_ARGUMENT);
  CHECK(bcq_pool_create(0, &pool) == BCQ_BAD_ARGUMENT && pool == nullptr);
  CHECK(bcq_pool_create(-3, &pool) == BCQ_BAD_ARGUMENT && pool == nullptr);
  CHECK(bcq_pool_create(257, &pool) == BCQ_BAD_ARGUMENT && pool == nullptr);
  pool = make_pool(2);
  bcq_pool_run(pool, -5, visit, nullptr);
  bcq_pool_destroy(pool);
}

void test_status_texts() {
  for (int code = BCQ_OK; code <= BCQ_CANCELLED + 1; ++code) {
    const char* text = bcq_status_text(static_cast<bcq_status>(code));
    CHECK(text != nullptr && strlen(text) > 10);
    CHECK((strstr(text, "not one of") != nullptr) == (code > BCQ_CANCELLED));
  }
}

// Loop after loop over the same memory: each task reads what its neighbour wrote in the loop
// before.
struct Chain {
  int64_t from[4], to[4];
};

void step(void* context, int64_t task, int32_t) {
  Chain* chain = static_cast<Chain*>(context);
  chain->to[task] = chain->from[(task + 1) % 4] + 1;
}

void test_loops_follow_each_other(int32_t num_threads, int64_t num_loops) {
  bcq_pool* pool = make_pool(num_threads);
  Chain chain = {};
  for (int64_t loop = 0; loop < num_loops; ++loop) {
    bcq_pool_run(pool, 4, step, &chain);
    memcpy(chain.from, chain.to, sizeof(chain.from));
  }
  for (int i = 0; i < 4; ++i) CHECK(chain.to[i] == num_loops);
  bcq_pool_destroy(pool);
}

void test_create_and_destroy() {
  for (int i = 0; i < 1000 / kShare; ++i) {
    bcq_pool* pool = make_pool(1 + i % 4);
    if (i % 3 == 0) check_loop(pool, 10);
    if (i % 50 == 0) sleep_us(500);  // so that some are asleep when they are stopped
    bcq_pool_destroy(pool);
  }
}

struct Helpers {
  Visits visits;
  int32_t has_helped;  // a worker ran a task
};

void visit_slowly(void* context, int64_t task, int32_t worker) {
  Helpers* helpers = static_cast<Helpers*>(context);
  visit(&helpers->visits, task, worker);
  if (worker > 0) __atomic_store_n(&helpers->has_helped, 1, __ATOMIC_RELAXED);
  sleep_us(20);
}

void test_sleeping_workers_wake() {
  bcq_pool* pool = make_pool(2);
  for (int i = 0; i < 400 / kShare; ++i) {
    check_loop(pool, 20);
    sleep_us(i);  // around the moment when the worker lies down
  }
  bool has_helped = false;
  const double start = now_s();
  for (int i = 0; i < 10 || (kNeverRest && !has_helped && now_s() - start < 20); ++i) {
    sleep_us(3000);  // far beyond the idle spin
    int32_t count[40] = {};
    Helpers helpers = {{count, 2}, 0};
    bcq_pool_run(pool, 40, visit_slowly, &helpers);
    for (const int32_t one : count) CHECK(one == 1);
    has_helped = has_helped || helpers.has_helped != 0;
  }
  CHECK(has_helped || !kNeverRest);  // on a busy machine a worker that may rest can rest for ever
  bcq_pool_destroy(pool);
}

void test_workers_use_no_time_when_idle() {
  bcq_pool* pool = make_pool(8);
  check_loop(pool, 1000);
  sleep_us(20000);
  struct timespec before, after;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
  sleep_us(50000);
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
  const long used = (after.tv_sec - before.tv_sec) * 1000000000 + after.tv_nsec - before.tv_nsec;
  CHECK(used < 5000000);  // 5 of 50 ms: seven threads that spun would use 100 ms of two cores
  bcq_pool_destroy(pool);
}

void test_forked_child_runs_alone() {
  bcq_pool* pool = make_pool(3);
  check_loop(pool, 100);
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    alarm(10);  // a child that hangs dies of it
    check_loop(pool, 1000);
    bcq_pool_destroy(pool);
    _exit(0);
  }
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  check_loop(pool, 1000);  // the parent's threads are still there
  bcq_pool_destroy(pool);
}

// ---- bench -----------------------------------------------------------------------------------

struct Work {
  int64_t rounds;  // of a task
  int64_t num_tasks;
  int64_t serial_rounds;  // between two loops
};

uint32_t spin(int64_t rounds) {
  uint32_t x = 1;
  for (int64_t i = 0; i < rounds; ++i) {
    x = x * 1664525 + 1013904223;
    __asm__ __volatile__("" : "+r"(x));
  }
  return x;
}

void compute(void* context, int64_t, int32_t) { spin(static_cast<Work*>(context)->rounds); }
void nothing(void*, int64_t, int32_t) {}

double rounds_per_us() {
  double best = 0;
  for (int i = 0; i < 50; ++i) {
    const double start = now_s();
    spin(200000);
    const double speed = 200000 / (now_s() - start) * 1e-6;
    best = speed > best ? speed : best;
  }
  return best;
}

// Loops a second over `length` seconds.
double speed(bcq_pool* pool, Work* work, double length) {
  const double start = now_s();
  double now = start;
  int64_t loops = 0;
  for (; now - start < length; now = now_s(), ++loops) {
    bcq_pool_run(pool, work->num_tasks, compute, work);
    spin(work->serial_rounds);
  }
  return static_cast<double>(loops) / (now - start);
}

int ascending(const void* a, const void* b) {
  const double x = *static_cast<const double*>(a), y = *static_cast<const double*>(b);
  return (x > y) - (x < y);
}

void print_ratios(const char* what, double* ratios, int count) {
  qsort(ratios, static_cast<size_t>(count), sizeof(double), ascending);
  printf("%-44s min %.2f  median %.2f  max %.2f\n", what, ratios[0], ratios[count / 2],
         ratios[count - 1]);
  fflush(stdout);
}

void bench_hand_over() {
  for (int32_t num_threads = 1; num_threads <= 2; ++num_threads) {
    bcq_pool* pool = make_pool(num_threads);
    double ns[21];
    for (double& one : ns) {
      const double start = now_s();
      for (int i = 0; i < 20000; ++i) bcq_pool_run(pool, 2, nothing, nullptr);
      one = (now_s() - start) / 20000 * 1e9;
    }
    char what[64];
    snprintf(what, sizeof(what), "ns a loop of 2 empty tasks, %d threads", num_threads);
    print_ratios(what, ns, 21);
    bcq_pool_destroy(pool);
  }
}

// A process that takes a core, or (core < 0) any; it dies with us.
pid_t start_hog(int core) {
  const pid_t parent = getpid();
  const pid_t hog = fork();
  if (hog != 0) return hog;
#if defined(__linux__)
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  cpu_set_t cores;
  CPU_ZERO(&cores);
  if (core >= 0) CPU_SET(static_cast<unsigned>(core), &cores);
  if (core >= 0) sched_setaffinity(0, sizeof(cores), &cores);
#endif
  while (getppid() == parent) spin(1000000);
  _exit(0);
}

void bench_ratio(const char* what, Work* work, int32_t num_threads, int repeats, double length) {
  bcq_pool* pool = make_pool(num_threads);
  double ratios[64];
  repeats = repeats > 64 ? 64 : repeats;
  for (int i = 0; i < repeats; ++i) {
    const double single = speed(nullptr, work, length);
    ratios[i] = speed(pool, work, length) / single;
  }
  print_ratios(what, ratios, repeats);
  bcq_pool_destroy(pool);
}

// Milliseconds from the hog's end until 20 ms ran 1.5 times as fast as one thread does.
void bench_return(Work* work) {
  bcq_pool* pool = make_pool(2);
  const double single = speed(nullptr, work, 0.3);
  double times[5];
  for (double& one : times) {
    const pid_t hog = start_hog(1);
    speed(pool, work, 0.7);  // until it rests for the longest time
    kill(hog, SIGKILL);
    waitpid(hog, nullptr, 0);
    const double start = now_s();
    while (speed(pool, work, 0.02) < 1.5 * single && now_s() - start < 1) {
    }
    one = (now_s() - start) * 1e3;
  }
  print_ratios("ms until two threads are back, 1000: never", times, 5);
  bcq_pool_destroy(pool);
}

int bench(int repeats, double length) {
  const double us = rounds_per_us();
  const auto rounds = [us](double length_us) { return static_cast<int64_t>(us * length_us); };
  Work works[] = {
      {rounds(20), 200, rounds(1)}, {rounds(2), 20, rounds(1.5)}, {rounds(1), 6, rounds(1.5)}};
  const char* names[] = {"200 x 20 us", "20 x 2 us", "6 x 1 us"};
  bench_hand_over();
  for (int hog_core = -2; hog_core < 2; ++hog_core) {  // none, unpinned, core 0, core 1
    const pid_t hog = hog_core == -2 ? 0 : start_hog(hog_core);
    for (int i = 0; i < 3; ++i) {
      const char* beside[] = {"quiet", "hog anywhere", "hog on core 0", "hog on core 1"};
      char what[96];
      snprintf(what, sizeof(what), "2 threads / 1, %s, %s", names[i], beside[hog_core + 2]);
      bench_ratio(what, &works[i], 2, repeats, length);
    }
    if (hog > 0) kill(hog, SIGKILL);
    if (hog > 0) waitpid(hog, nullptr, 0);
  }
  bench_return(&works[1]);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && strcmp(argv[1], "bench") == 0) {
    return bench(argc > 2 ? atoi(argv[2]) : 8, argc > 3 ? atof(argv[3]) : 0.4);
  }
  test_status_texts();
  test_bad_arguments();
  test_null_pool_runs_on_the_caller();
  test_every_task_runs_once();
  test_loops_follow_each_other(2, 100000);
  test_loops_follow_each_other(3, 2000);
  test_create_and_destroy();
  test_sleeping_workers_wake();
  test_workers_use_no_time_when_idle();
  test_forked_child_runs_alone();
  printf("threads_test: all passed\n");
  return 0;
}

/// What the runtime asks of the operating system: clocks, parking, threads, aligned memory.
///
/// Three flavours: Linux and Android (futex), other POSIX systems (mutex and condition), and no
/// threads at all (WASM without atomics), where BCQ_HAS_THREADS is 0 and only relax() is there.
/// Nothing here needs the C++ run-time library.
#ifndef BCQ_CORE_PLATFORM_H_
#define BCQ_CORE_PLATFORM_H_

#include <stddef.h>
#include <stdint.h>

#if defined(BCQ_NO_THREADS) || (defined(__wasm__) && !defined(__wasm_atomics__))
#define BCQ_HAS_THREADS 0
#else
#define BCQ_HAS_THREADS 1
#endif

#if BCQ_HAS_THREADS
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__linux__) && !defined(BCQ_NO_FUTEX)  // BCQ_NO_FUTEX: tests of the other flavour
#define BCQ_HAS_FUTEX 1
#else
#define BCQ_HAS_FUTEX 0
#endif
#endif

namespace bcq {

/// Tells the core that this is a spin loop; some 10 to 50 ns.
inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("isb" ::: "memory");  // "yield" does nothing on most cores
#elif defined(__arm__)
  __asm__ __volatile__("yield" ::: "memory");
#endif
}

#if BCQ_HAS_THREADS

inline int64_t clock_ns(clockid_t clock) {
  struct timespec time;
  clock_gettime(clock, &time);
  return static_cast<int64_t>(time.tv_sec) * 1000000000 + time.tv_nsec;
}

/// Wall clock that never goes back.
inline int64_t now_ns() { return clock_ns(CLOCK_MONOTONIC); }

/// Time for which the calling thread has had a core: falls behind now_ns() when it is denied one.
inline int64_t thread_cpu_ns() { return clock_ns(CLOCK_THREAD_CPUTIME_ID); }

/// How often another thread took the calling thread's core; -1 where the system does not say.
inline int64_t preemptions() {
#if defined(__linux__)
  struct rusage usage;
  return getrusage(RUSAGE_THREAD, &usage) == 0 ? static_cast<int64_t>(usage.ru_nivcsw) : -1;
#else
  return -1;
#endif
}

/// The core that the calling thread is on; -1 where the system does not say.
inline int32_t current_core() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

/// A place for one thread to sleep. `asleep` is 1 from prepare() until the wake-up.
struct Parking {
  int32_t asleep;
#if !BCQ_HAS_FUTEX
  pthread_mutex_t mutex;
  pthread_cond_t wake;
#endif
};

inline void parking_init(Parking* parking) {
  parking->asleep = 0;
#if !BCQ_HAS_FUTEX
  pthread_mutex_init(&parking->mutex, nullptr);
  pthread_cond_init(&parking->wake, nullptr);
#endif
}

inline void parking_destroy(Parking* parking) {
#if BCQ_HAS_FUTEX
  (void)parking;
#else
  pthread_cond_destroy(&parking->wake);
  pthread_mutex_destroy(&parking->mutex);
#endif
}

/// Announces that the calling thread is about to park. It must then look once more for a reason
/// not to, and call park() or, with such a reason, claim_wake().
inline void prepare_to_park(Parking* parking) {
  __atomic_store_n(&parking->asleep, 1, __ATOMIC_SEQ_CST);
}

/// True for the one thread that ends the current sleep; it calls unpark() unless it is the sleeper.
inline bool claim_wake(Parking* parking) {
  int32_t expected = 1;
  return __atomic_load_n(&parking->asleep, __ATOMIC_SEQ_CST) == 1 &&
         __atomic_compare_exchange_n(&parking->asleep, &expected, 0, false, __ATOMIC_SEQ_CST,
                                     __ATOMIC_SEQ_CST);
}

/// Sleeps until another thread has claimed the wake-up, or once for up to `limit_ns` (< 0: no
/// limit): then the sleep may not be over, and the caller ends it with claim_wake().
inline void park(Parking* parking, int64_t limit_ns) {
#if BCQ_HAS_FUTEX
  // Two longs on every Linux, whatever time_t is; a relative time.
  const long limit[2] = {static_cast<long>(limit_ns / 1000000000),
                         static_cast<long>(limit_ns % 1000000000)};
  while (__atomic_load_n(&parking->asleep, __ATOMIC_ACQUIRE) == 1) {
    syscall(SYS_futex, &parking->asleep, FUTEX_WAIT_PRIVATE, 1, limit_ns < 0 ? nullptr : limit,
            nullptr, 0);
    if (limit_ns >= 0) return;
  }
#else
  const int64_t until = clock_ns(CLOCK_REALTIME) + limit_ns;
  const struct timespec limit = {static_cast<time_t>(until / 1000000000),
                                 static_cast<long>(until % 1000000000)};
  pthread_mutex_lock(&parking->mutex);
  while (__atomic_load_n(&parking->asleep, __ATOMIC_ACQUIRE) == 1) {
    if (limit_ns < 0) {
      pthread_cond_wait(&parking->wake, &parking->mutex);
    } else {
      pthread_cond_timedwait(&parking->wake, &parking->mutex, &limit);
      break;
    }
  }
  pthread_mutex_unlock(&parking->mutex);
#endif
}

inline void unpark(Parking* parking) {
#if BCQ_HAS_FUTEX
  syscall(SYS_futex, &parking->asleep, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
#else
  pthread_mutex_lock(&parking->mutex);
  pthread_cond_signal(&parking->wake);
  pthread_mutex_unlock(&parking->mutex);
#endif
}

/// Starts a thread that takes no signals: handlers belong to the threads of the host program.
inline bool start_thread(pthread_t* thread, void* (*body)(void*), void* argument) {
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  const bool started = pthread_create(thread, nullptr, body, argument) == 0;
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return started;
}

/// Memory that starts on a multiple of `alignment` (a power of two >= 8), or null; free() frees it.
inline void* aligned_memory(size_t alignment, size_t bytes) {
  void* memory = nullptr;
  return posix_memalign(&memory, alignment, bytes) == 0 ? memory : nullptr;
}

#endif  // BCQ_HAS_THREADS
}  // namespace bcq
#endif  // BCQ_CORE_PLATFORM_H_

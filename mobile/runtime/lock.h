/// A lock that serves its waiters in the order in which they came.
///
/// Sessions of one model take turns on its pool, layer by layer: with an unfair lock a session that
/// reads a long prompt would keep the others waiting, since it asks again at once.
#ifndef BCQ_RUNTIME_LOCK_H_
#define BCQ_RUNTIME_LOCK_H_

#include "core/platform.h"

namespace bcq {

/// Not for one thread to take twice. A build without threads has nothing to lock.
class FairLock {
 public:
#if BCQ_HAS_THREADS
  FairLock() {
    pthread_mutex_init(&mutex_, nullptr);
    pthread_cond_init(&turn_, nullptr);
  }
  ~FairLock() {
    pthread_cond_destroy(&turn_);
    pthread_mutex_destroy(&mutex_);
  }
  void enter() {
    pthread_mutex_lock(&mutex_);
    const uint64_t ticket = next_++;
    while (serving_ != ticket) pthread_cond_wait(&turn_, &mutex_);
    pthread_mutex_unlock(&mutex_);
  }
  void leave() {
    pthread_mutex_lock(&mutex_);
    ++serving_;
    if (serving_ != next_) pthread_cond_broadcast(&turn_);
    pthread_mutex_unlock(&mutex_);
  }

 private:
  pthread_mutex_t mutex_;
  pthread_cond_t turn_;
  uint64_t next_ = 0;     // ticket of who comes next
  uint64_t serving_ = 0;  // ticket whose turn it is
#else
  void enter() {}
  void leave() {}
#endif

 public:
  FairLock(const FairLock&) = delete;
  FairLock& operator=(const FairLock&) = delete;
#if !BCQ_HAS_THREADS
  FairLock() = default;
#endif
};

/// Holds a lock while it lives.
class Locked {
 public:
  explicit Locked(FairLock* lock) : lock_(lock) { lock_->enter(); }
  ~Locked() { lock_->leave(); }
  Locked(const Locked&) = delete;
  Locked& operator=(const Locked&) = delete;

 private:
  FairLock* lock_;
};

}  // namespace bcq
#endif  // BCQ_RUNTIME_LOCK_H_

/// Sessions of one model on several threads, one of them cancelled again and again.
///
///     session_threads FILE.bcq
///
/// Built with the thread sanitizer, which ends the program at the first race. Every session must
/// compute the logits of one that is alone.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bcq/runtime.h"

namespace {

constexpr int32_t kTokens = 24;
constexpr int32_t kPrompt = 17;
constexpr int32_t kRounds = 12;
constexpr int32_t kThreads = 3;
constexpr int32_t kCancels = 30;

bcq_model* model;
int64_t vocab;
float* expected;  // [vocab], after kTokens
bcq_session* target;
int32_t is_done;

[[noreturn]] void stop(const char* what) {
  printf("session_threads: %s (%s)\n", what, bcq_error_text());
  exit(1);
}

void fill(int32_t* ids) {
  for (int32_t i = 0; i < kTokens; i++) ids[i] = (int32_t)((i * 37 + 5) % vocab);
}

/// The logits after a prompt and single tokens; an append that is cancelled is tried again.
const float* run_all(bcq_session* session, int64_t* num_cancelled) {
  int32_t ids[kTokens];
  fill(ids);
  const float* logits = nullptr;
  for (int32_t at = 0; at < kTokens;) {
    const int32_t num = at == 0 ? kPrompt : 1;
    const bcq_status status = bcq_session_append(session, ids + at, num, &logits);
    if (status == BCQ_CANCELLED) {
      if (bcq_session_position(session) != at) stop("a cancelled call moved the position");
      ++*num_cancelled;
      continue;
    }
    if (status != BCQ_OK) stop("append");
    at += num;
  }
  return logits;
}

bool is_expected(const float* logits) {
  return memcmp(logits, expected, (size_t)vocab * sizeof(float)) == 0;
}

/// Sessions that come and go, longer each time: they share rotary tables.
void* come_and_go(void*) {
  for (int32_t round = 0; round < kRounds; round++) {
    bcq_session* session = nullptr;
    int64_t num_cancelled = 0;
    if (bcq_session_create(model, kTokens + round, &session) != BCQ_OK) stop("create");
    if (!is_expected(run_all(session, &num_cancelled))) stop("a session differs");
    bcq_session_destroy(session);
  }
  return nullptr;
}

/// A limited number of times: a call that is always cancelled never ends.
void* cancel_often(void*) {
  for (int32_t i = 0; i < kCancels && __atomic_load_n(&is_done, __ATOMIC_ACQUIRE) == 0; i++) {
    bcq_session_cancel(target);
    const struct timespec pause = {0, 1000000};
    nanosleep(&pause, nullptr);
  }
  return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  bcq_package* package = nullptr;
  const bcq_options options = {2, -1, BCQ_KV_INT8, 5, 0, "scalar"};
  if (bcq_package_open(argv[1], BCQ_CHECK_ALL, &package) != BCQ_OK) stop("open");
  if (bcq_model_create(package, &options, &model) != BCQ_OK) stop("model");
  bcq_model_info info;
  bcq_package_info(package, &info);
  vocab = info.vocab_size;
  if (bcq_session_create(model, kTokens, &target) != BCQ_OK) stop("session");
  int64_t num_cancelled = 0;
  const float* const logits = run_all(target, &num_cancelled);
  expected = (float*)malloc((size_t)vocab * sizeof(float));
  memcpy(expected, logits, (size_t)vocab * sizeof(float));

  pthread_t threads[kThreads], canceller;
  for (pthread_t& thread : threads) pthread_create(&thread, nullptr, come_and_go, nullptr);
  pthread_create(&canceller, nullptr, cancel_often, nullptr);
  for (int32_t round = 0; round < kRounds; round++) {
    if (bcq_session_truncate(target, 0) != BCQ_OK) stop("truncate");
    if (!is_expected(run_all(target, &num_cancelled))) stop("the cancelled session differs");
  }
  __atomic_store_n(&is_done, 1, __ATOMIC_RELEASE);
  for (const pthread_t thread : threads) pthread_join(thread, nullptr);
  pthread_join(canceller, nullptr);
  bcq_session_destroy(target);
  bcq_model_destroy(model);
  bcq_package_close(package);
  free(expected);
  printf("session_threads: all passed, %lld calls were cancelled\n", (long long)num_cancelled);
  return num_cancelled > 0 ? 0 : 1;
}

#include "runtime/cores.h"

#include <stddef.h>

#include "core/platform.h"

#if BCQ_HAS_THREADS && defined(__linux__)
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#elif BCQ_HAS_THREADS && defined(__APPLE__)
#include <sys/sysctl.h>
#elif BCQ_HAS_THREADS
#include <unistd.h>
#endif

namespace {

#if BCQ_HAS_THREADS
constexpr int32_t kMaxThreads = 256;  // of a bcq_pool

int32_t within_limits(int64_t num) {
  return (int32_t)(num < 1 ? 1 : num > kMaxThreads ? kMaxThreads : num);
}
#endif

#if BCQ_HAS_THREADS && defined(__linux__)

constexpr int32_t kMaxCpus = 1024;  // of cpu_set_t

/// The number at the start of a file of /sys/devices/system/cpu/cpu<cpu>, -1 where there is none.
long read_number(const char* root, int32_t cpu, const char* file) {
  char path[512], text[64];
  const int length =
      snprintf(path, sizeof(path), "%s/devices/system/cpu/cpu%d/%s", root, (int)cpu, file);
  if (length < 0 || (size_t)length >= sizeof(path)) return -1;
  const int handle = open(path, O_RDONLY | O_CLOEXEC);
  if (handle < 0) return -1;
  const ssize_t got = read(handle, text, sizeof(text) - 1);
  close(handle);
  if (got <= 0) return -1;
  text[got] = '\0';
  char* end = text;
  const long number = strtol(text, &end, 10);
  return end == text || number < 0 ? -1 : number;
}

/// Allowed cores whose `file` is at least `percent` of the highest, -1 where one does not tell.
int32_t count_fast(const char* root, const cpu_set_t& allowed, const char* file, long percent) {
  long best = 0;
  for (int32_t cpu = 0; cpu < kMaxCpus; cpu++) {
    if (!CPU_ISSET((size_t)cpu, &allowed)) continue;
    const long speed = read_number(root, cpu, file);
    if (speed < 0) return -1;
    best = speed > best ? speed : best;
  }
  int32_t num = 0;
  for (int32_t cpu = 0; cpu < kMaxCpus; cpu++) {
    if (!CPU_ISSET((size_t)cpu, &allowed)) continue;
    // The list begins with the core's lowest thread.
    const long first = read_number(root, cpu, "topology/thread_siblings_list");
    const bool is_second =
        first >= 0 && first < cpu && first < kMaxCpus && CPU_ISSET((size_t)first, &allowed);
    const long speed = read_number(root, cpu, file);
    if (!is_second && speed * 100.0 >= best * (double)percent) num++;
  }
  return num;
}

#endif

}  // namespace

namespace bcq {

#if !BCQ_HAS_THREADS

int32_t num_big_cores(const char*) { return 1; }

#elif defined(__linux__)

int32_t num_big_cores(const char* root) {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0)
    return within_limits(sysconf(_SC_NPROCESSORS_ONLN));
  int32_t num = count_fast(root, allowed, "cpu_capacity", 50);
  if (num < 0) num = count_fast(root, allowed, "cpufreq/cpuinfo_max_freq", 70);
  if (num < 0) num = count_fast(root, allowed, "topology/core_id", 0);  // all are alike
  return within_limits(num < 0 ? CPU_COUNT(&allowed) : num);
}

#elif defined(__APPLE__)

int32_t num_big_cores(const char*) {
  int32_t num = 0;
  size_t size = sizeof(num);
  if (sysctlbyname("hw.perflevel0.physicalcpu", &num, &size, nullptr, 0) == 0 && num > 0)
    return within_limits(num);
  size = sizeof(num);
  return within_limits(sysctlbyname("hw.physicalcpu", &num, &size, nullptr, 0) == 0 ? num : 1);
}

#else

int32_t num_big_cores(const char*) { return within_limits(sysconf(_SC_NPROCESSORS_ONLN)); }

#endif

}  // namespace bcq

/// What this machine can do at best: reading memory, and int8 dot products in registers.
///
/// Built at run time by _machine.py (g++ -O3 -march=native -pthread). Reads requests on stdin,
/// one a line, and answers each with one number on stdout:
///   read THREADS     GB/s of one pass over 256 MB, the threads' parts contiguous
///   dot THREADS      GOP/s (a multiply and an add are two) of independent 4-way dot products
#include <sys/mman.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>
#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace {

constexpr size_t kBytes = size_t{256} << 20;  // eight times a large L3
constexpr size_t kHugePage = size_t{2} << 20;
constexpr int64_t kRounds = 1'000'000;
constexpr int kSums = 12;  // more than two units with five cycles of latency have in flight
volatile uint64_t g_sink;  // keeps the loops' results alive

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

typedef uint64_t Wide __attribute__((vector_size(64)));

/// Reads `bytes` (a multiple of 256) from `p` as wide loads; four sums hide their latency. A
/// prefetch 512 to 8192 bytes ahead made it no faster on Zen 5.
uint64_t read_all(const char* p, size_t bytes) {
  Wide a = {}, b = a, c = a, d = a;
  for (size_t i = 0; i < bytes; i += 256) {
    a |= *(const Wide*)(p + i);
    b |= *(const Wide*)(p + i + 64);
    c |= *(const Wide*)(p + i + 128);
    d |= *(const Wide*)(p + i + 192);
  }
  const Wide all = (a | b) | (c | d);
  return all[0] | all[1] | all[2] | all[3] | all[4] | all[5] | all[6] | all[7];
}

#if defined(__AVX512VNNI__)
typedef __m512i Dot;
constexpr int kDotOps = 2 * 64;
inline Dot dot(Dot sum, Dot a, Dot b) { return _mm512_dpbusd_epi32(sum, a, b); }
#elif defined(__AVXVNNI__)
typedef __m256i Dot;
constexpr int kDotOps = 2 * 32;
inline Dot dot(Dot sum, Dot a, Dot b) { return _mm256_dpbusd_avx_epi32(sum, a, b); }
#else
#define NO_DOT
#endif

#ifndef NO_DOT
/// Sums in variables of their own: GCC keeps an array of them in memory.
uint64_t dot_loop(int64_t rounds) {
  const Dot a = Dot{} + 3, b = Dot{} + 5;
  Dot s0{}, s1{}, s2{}, s3{}, s4{}, s5{}, s6{}, s7{}, s8{}, s9{}, s10{}, s11{};
  for (int64_t i = 0; i < rounds; i++) {
    s0 = dot(s0, a, b), s1 = dot(s1, a, b), s2 = dot(s2, a, b), s3 = dot(s3, a, b);
    s4 = dot(s4, a, b), s5 = dot(s5, a, b), s6 = dot(s6, a, b), s7 = dot(s7, a, b);
    s8 = dot(s8, a, b), s9 = dot(s9, a, b), s10 = dot(s10, a, b), s11 = dot(s11, a, b);
    // Else the twelve are found to be equal.
    asm volatile("" : "+v"(s0), "+v"(s1), "+v"(s2), "+v"(s3), "+v"(s4), "+v"(s5), "+v"(s6),
                      "+v"(s7), "+v"(s8), "+v"(s9), "+v"(s10), "+v"(s11));
  }
  const Dot all = s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7 + s8 + s9 + s10 + s11;
  return (uint64_t)all[0];
}
#endif

/// Seconds from the moment that all threads stand ready until the last has finished.
template <typename Work>
double run(int threads, Work work) {
  std::atomic<int> ready{0};
  std::vector<double> first(threads), last(threads);
  auto body = [&](int i) {
    ready++;
    while (ready < threads) {
    }
    first[i] = now_s();
    work(i);
    last[i] = now_s();
  };
  std::vector<std::thread> others;
  for (int i = 1; i < threads; i++) others.emplace_back(body, i);
  body(0);
  for (std::thread& t : others) t.join();
  double start = first[0], stop = last[0];
  for (int i = 1; i < threads; i++) {
    start = first[i] < start ? first[i] : start;
    stop = last[i] > stop ? last[i] : stop;
  }
  return stop - start;
}

}  // namespace

int main() {
  char* memory = (char*)aligned_alloc(kHugePage, kBytes);
  if (memory == nullptr) return 1;
#ifdef MADV_HUGEPAGE
  madvise(memory, kBytes, MADV_HUGEPAGE);
#endif
  memset(memory, 1, kBytes);
  char what[8];
  int threads;
  while (scanf("%7s %d", what, &threads) == 2 && threads > 0 && threads <= 256) {
    double figure = 0.0;
    if (strcmp(what, "read") == 0) {
      const size_t part = kBytes / threads / 256 * 256;
      const double s = run(threads, [&](int i) { g_sink = read_all(memory + part * i, part); });
      figure = (double)part * threads / s / 1e9;
    }
#ifndef NO_DOT
    if (strcmp(what, "dot") == 0) {
      const double s = run(threads, [&](int) { g_sink = dot_loop(kRounds); });
      figure = (double)kSums * kRounds * kDotOps * threads / s / 1e9;
    }
#endif
    printf("%.3f\n", figure);
    fflush(stdout);
  }
  return 0;
}

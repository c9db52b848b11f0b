/// Runs one tier's kernels against the scalar tier's.
///
///   kernels_test <tier> [every]   every `every`-th linear shape (default 1: all)
///   kernels_test --names          the tiers of this build, best first
///   kernels_test --get [name]     what bcq_kernels_get says: status, then the tier or "-"
#include "tests/attention_cases.h"
#include "tests/linear_cases.h"
#include "tests/row_cases.h"

namespace {

int print_names() {
  const char* const* names = nullptr;
  const int32_t num = bcq_tier_names(&names);
  for (int32_t i = 0; i < num; i++) printf("%s\n", names[i]);
  return 0;
}

int print_choice(const char* name) {
  const bcq_kernels* kernels = &bcq_kernels_scalar;
  const bcq_status status = bcq_kernels_get(name, &kernels);
  printf("%d %s\n", status, kernels != nullptr ? kernels->tier : "-");
  return 0;
}

int run_tier(const char* name, int every) {
  const bcq_kernels* kernels = nullptr;
  const bcq_status status = bcq_kernels_get(name, &kernels);
  if (status != BCQ_OK) {
    printf("no tier %s: status %d\n", name, status);
    return 2;
  }
  run_linear(*kernels, every);
  run_rows(*kernels);
  run_attention(*kernels);
  printf("ran tier %s, %lld checks, %lld failures\n", kernels->tier, (long long)num_checks,
         (long long)num_failures);
  return num_failures == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return printf("name a tier\n"), 2;
  if (strcmp(argv[1], "--names") == 0) return print_names();
  if (strcmp(argv[1], "--get") == 0) return print_choice(argc > 2 ? argv[2] : nullptr);
  const int every = argc > 2 ? atoi(argv[2]) : 1;
  return run_tier(argv[1], every > 0 ? every : 1);
}

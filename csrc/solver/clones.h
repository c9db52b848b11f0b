/// Compile a function once per instruction set and pick at load time.
#ifndef BCQ_SOLVER_CLONES_H
#define BCQ_SOLVER_CLONES_H

// Only GCC on x86-64 with glibc: elsewhere the baseline (NEON on AArch64) is compiled alone.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__)
#define BCQ_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define BCQ_CLONES
#endif

#endif  // BCQ_SOLVER_CLONES_H

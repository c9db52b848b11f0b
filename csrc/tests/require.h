/// CHECK: ends the test program and says where, unless the condition holds.
#ifndef BCQ_TESTS_REQUIRE_H_
#define BCQ_TESTS_REQUIRE_H_

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                   \
  do {                                                                     \
    if (!(condition)) {                                                    \
      printf("%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
      exit(1);                                                             \
    }                                                                      \
  } while (0)

#endif  // BCQ_TESTS_REQUIRE_H_

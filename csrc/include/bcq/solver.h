/// The solver's inner loops. Plain C; every function works on one run of rows, allocates nothing
/// but a few kilobytes of stack, keeps no state, and may run on many threads at once.
#ifndef BCQ_SOLVER_H
#define BCQ_SOLVER_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/// What a call returns.
typedef enum bcq_solver_status {
  BCQ_SOLVER_OK = 0,
  BCQ_SOLVER_BAD_ARGUMENT = 1,  ///< a size is out of range, or a pointer is null
} bcq_solver_status;

/// Columns that `bcq_round_block` takes at most.
#define BCQ_MAX_BLOCK 256

/// Widest group that `bcq_search_grid` takes.
#define BCQ_MAX_GROUP 65536

/// Scales and zeros that minimise sum_k cost[k] (W[n,k] - s (q - z))^2 in every group of every row.
///
/// Candidates are the grid over the group's range, `num_ratios` ratios of it (symmetric: both signs
/// of the scale; asymmetric: three zeros each), each with the scale refitted in closed form for the
/// codes it gives, and a last refit of the best. All scales are rounded to float16.
///
/// weight     (num_rows, k), row-major
/// cost       (k), > 0
/// width      columns per group, 1 .. BCQ_MAX_GROUP; the last group is shorter if it must be
/// max_code   largest code, 2^bits - 1
/// symmetric  not 0: every zero is (max_code + 1) / 2; else zeros are 1 .. max_code, and a grid
///            that needs zero 0 is given as its mirror: a negative scale and zero max_code
/// scales     out, (num_rows, ceil(k / width)), float16 values
/// zeros      out, the same shape, integers
bcq_solver_status bcq_search_grid(const float* weight, int64_t num_rows, int64_t k,
                                  const float* cost, int64_t width, int32_t max_code,
                                  int32_t symmetric, int32_t num_ratios, float* scales,
                                  float* zeros);

/// Round a block of columns one after the other; each error is passed on to the block's later
/// columns: w_j' -= upper[j,j'] * (w_j - s (q - z)) / upper[j,j].
///
/// work         (num_columns, row_stride), the block's columns, rows contiguous; destroyed
/// errors       out, (num_columns, row_stride): the errors divided by upper[j,j]
/// codes        out, (num_columns, row_stride)
/// upper        upper[j,j'] at upper[j * upper_stride + j'], within the block
/// group_of     (num_columns): row of `scales` and `zeros` that a column uses
/// scales,zeros (groups, row_stride)
/// first, last  the rows to do, 0 <= first <= last <= row_stride
bcq_solver_status bcq_round_block(float* work, float* errors, uint8_t* codes, int64_t row_stride,
                                  const float* upper, int64_t upper_stride, int64_t num_columns,
                                  const int32_t* group_of, const float* scales, const float* zeros,
                                  int32_t max_code, int64_t first, int64_t last);

#ifdef __cplusplus
}
#endif

#endif  // BCQ_SOLVER_H

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

/// Columns that `bcq_round_block` and `bcq_descend_block` take at most.
#define BCQ_MAX_BLOCK 256

/// Widest group that `bcq_search_grid` and `bcq_refit_scale` take.
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

/// Coordinate descent on a block of columns of one group: each column in turn takes the code that
/// minimises (Q - W) H (Q - W)^T while the others stay, if the loss falls by more than 0.1 % of
/// diag(H)_j s^2 (less is rounding). Never raises the loss.
///
/// gradient     (num_columns, row_stride), (Q - W) H on the block's columns, rows contiguous;
///              kept up to date with the block's own moves
/// errors       (num_columns, row_stride), Q - W; kept up to date
/// codes        (num_columns, row_stride); updated
/// hessian      H[j,j'] at hessian[j * hessian_stride + j'], within the block; symmetric
/// scale, zero  (row_stride), the group's
/// gains        (row_stride), each row's fall of the loss is added
/// first, last  the rows to do, 0 <= first <= last <= row_stride
bcq_solver_status bcq_descend_block(float* gradient, float* errors, uint8_t* codes,
                                    int64_t row_stride, const float* hessian,
                                    int64_t hessian_stride, int64_t num_columns, const float* scale,
                                    const float* zero, int32_t max_code, double* gains,
                                    int64_t first, int64_t last);

/// The scale of one group that minimises (Q - W) H (Q - W)^T with all codes and the other groups'
/// scales as they are: s - (u (Q - W) H) / (u H u^T), u = q - z, rounded to float16 and taken only
/// if the loss then falls.
///
/// The arrays are those of `bcq_descend_block` for all columns of the group (up to BCQ_MAX_GROUP);
/// `gradient` is only read and does not hold after a change of scale, `scale` is updated.
bcq_solver_status bcq_refit_scale(const float* gradient, float* errors, const uint8_t* codes,
                                  int64_t row_stride, const float* hessian, int64_t hessian_stride,
                                  int64_t num_columns, float* scale, const float* zero,
                                  double* gains, int64_t first, int64_t last);

#ifdef __cplusplus
}
#endif

#endif  // BCQ_SOLVER_H

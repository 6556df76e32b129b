/* What the shared library gives: plain C, no Python and no torch, so that one build serves all their versions. */
#ifndef ISOLOSS_H
#define ISOLOSS_H

#include <stdint.h>

#if defined(_WIN32)
#define ISOLOSS_API __declspec(dllexport)
#else
#define ISOLOSS_API __attribute__((visibility("default")))
#endif

/* Changes whenever a declaration below changes; isoloss/native/library.py names the number that it speaks. */
#define ISOLOSS_ABI 2

ISOLOSS_API int32_t isoloss_abi(void);

/* Digest of the sources that this library was made of. */
ISOLOSS_API const char *isoloss_source(void);

/* Instruction sets that this library has code for and this processor runs, best first, with spaces between. */
ISOLOSS_API const char *isoloss_sets(void);

/* Exact weighted k-means of every row of numbers on a line.
 *
 * x        rows * columns numbers, float or (x_double) double, row by row, finite
 * w        weights, float or (w_double) double, finite, at least 0; as x or (w_shared) one row for all; NULL: all one
 * centres  rows * levels, ascending
 * codes    rows * columns: which centre
 * cost     rows: sum of w (x - centre)^2
 * set      the place in isoloss_sets() of the instruction set to use
 *
 * Returns 0; 1: no memory; 2: a size or set out of range.
 */
ISOLOSS_API int32_t isoloss_kmeans_rows(const void *x, int32_t x_double, int64_t rows, int64_t columns, const void *w,
                                        int32_t w_double, int32_t w_shared, int32_t levels, double *centres,
                                        uint8_t *codes, double *cost, int32_t set);

/* Columns rounded one after another to the nearest of their values, the change of each passed on to others.
 *
 * x        columns * rows numbers, column by column: what to round; afterwards what each was at its turn (old NULL) or at
 *          the end
 * levels   groups * count * rows values, ascending in the second
 * group    columns: which values a column has
 * moves    columns * columns: a change d of column j adds d * moves[j][k] to column k; the diagonal is not read
 * old      columns * rows: a change is the rounded number minus this, and all other columns change; NULL: minus the
 *          number at its turn, and columns k > j change
 * kept     columns * rows: not 0 where a number stays as it is at its turn; NULL: nowhere
 * codes    columns * rows: which value
 * moved    columns * rows: the change
 * set      the place in isoloss_sets() of the instruction set to use
 *
 * Returns 0; 1: no memory; 2: a size, group or set out of range.
 */
ISOLOSS_API int32_t isoloss_round_columns(float *x, int64_t columns, int64_t rows, const float *levels, int32_t count,
                                          const int32_t *group, int32_t groups, const float *moves, const float *old,
                                          const uint8_t *kept, uint8_t *codes, float *moved, int32_t set);

#endif

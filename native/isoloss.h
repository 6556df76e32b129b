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
#define ISOLOSS_ABI 1

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

#endif

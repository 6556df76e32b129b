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
#define ISOLOSS_ABI 3

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

/* Activations rounded to 8 bits, or (parts 2) to 16 bits as two tokens of 8: code = 256 high + low, high first.
 *
 * x         tokens * columns floats
 * start     runs: first column of each run of columns that has one scale
 * count     runs: its columns
 * wide      runs: columns per plane; plane p of a run begins `stride * p` bytes behind its place
 * place     runs: where the run begins in a row of codes
 * segment   runs: ascending, which sum of `segment_sum` it counts in
 * width     bytes of a row of codes
 * codes     tokens * parts * width; what no column has is 0
 * scale     tokens * parts * runs: largest size / 127, or / 32512 (high: times 256); NaN where a number is NaN or infinite
 * sum       tokens * parts * runs: of the codes
 * segment_sum  tokens * parts * segments: sum of scale * sum, in order
 * set       the place in isoloss_sets() of the instruction set to use
 *
 * Returns 0; 2: a size, place or set out of range.
 */
ISOLOSS_API int32_t isoloss_activations(const float *x, int64_t tokens, int64_t columns, const int32_t *start,
                                        const int32_t *count, const int32_t *wide, int32_t stride,
                                        const int64_t *place, const int32_t *segment, int64_t runs, int64_t segments,
                                        int64_t width, int32_t parts, int8_t *codes, float *scale, int32_t *sum,
                                        float *segment_sum, int32_t set);

/* Rows with tables of bytes, times activations of 8 bits: out = sum over segments of step * (sum over its blocks, lane by
 * lane, of scale * exact product, lanes then added) + low * segment_sum.
 *
 * codes     rows * row_bytes, blocks as bytes.h says
 * bits      1 to 6
 * table     rows * segments * 2^bits
 * step      rows * segments; low: the same
 * wide      blocks: bytes per plane, 1 to 64
 * segment   blocks: ascending
 * x         tokens * blocks * 512 bytes; x_scale: tokens * blocks; x_sum: tokens * segments
 * first     row, and the one behind the last
 * out       tokens * out_stride; rows first to last are written
 * set       the place in isoloss_sets() of the instruction set to use
 *
 * Returns 0; 2: a size or set out of range.
 */
ISOLOSS_API int32_t isoloss_table_product(const uint8_t *codes, int32_t bits, int64_t row_bytes, const uint8_t *table,
                                          const float *step, const float *low, const int32_t *wide,
                                          const int32_t *segment, int64_t blocks, int64_t segments, const int8_t *x,
                                          const float *x_scale, const float *x_sum, int64_t tokens, int64_t first,
                                          int64_t last, float *out, int64_t out_stride, int32_t set);

/* The same with tables of fp16 numbers and float32 activations; bits 1 to 4. In a block of x, lane l of byte i of plane p
 * is at 64 p + 16 i + l.
 */
ISOLOSS_API int32_t isoloss_table_floats(const uint8_t *codes, int32_t bits, int64_t row_bytes, const uint16_t *table,
                                         const int32_t *wide, const int32_t *segment, int64_t blocks,
                                         int64_t segments, const float *x, int64_t tokens, int64_t first,
                                         int64_t last, float *out, int64_t out_stride, int32_t set);

/* Levels with a scale per group, times activations of 8 bits: out = sum over runs, in order, of
 * (times * exact product + (offset - zero) * x_sum) * (scale * x_scale).
 *
 * codes     tiles of 16 rows * all blocks of 32 columns * bits * 64 bytes, as bytes.h says
 * bits      1 to 8
 * table     64 bytes, the table of 2^bits (bits at most 4) repeated; NULL: a code is its own value
 * scale     tiles * groups * 16, float or (half) fp16
 * zero      tiles * groups * 16; NULL: none
 * blocks    runs: how many blocks a run has; group: runs, whose scale
 * x         tokens * 32 bytes per block; x_scale: tokens * runs; x_sum: tokens * runs
 * rows      of the matrix; first: a multiple of 16
 * out       tokens * out_stride; rows first to last, up to the end of a tile, are written
 * set       the place in isoloss_sets() of the instruction set to use
 *
 * Returns 0; 2: a size or set out of range.
 */
ISOLOSS_API int32_t isoloss_group_product(const uint8_t *codes, int32_t bits, const uint8_t *table, const void *scale,
                                          int32_t half, const uint8_t *zero, int32_t times, int32_t offset,
                                          const int32_t *blocks, const int32_t *group, int64_t runs, int64_t groups,
                                          const int8_t *x, const float *x_scale, const int32_t *x_sum, int64_t tokens,
                                          int64_t rows, int64_t first, int64_t last, float *out, int64_t out_stride,
                                          int32_t set);

/* Products with a sparse matrix in compressed rows, added to out.
 *
 * value     fp16; column: 1, 2 or 4 bytes each; row: rows + 1 pointers, ascending
 * x         tokens * columns floats
 * first     row, and the one behind the last
 * set       the place in isoloss_sets() of the instruction set to use
 *
 * Returns 0; 2: a size or set out of range.
 */
ISOLOSS_API int32_t isoloss_sparse_add(const uint16_t *value, const void *column, int32_t column_bytes,
                                       const int32_t *row, const float *x, int64_t tokens, int64_t columns,
                                       int64_t first, int64_t last, float *out, int64_t out_stride, int32_t set);

/* Exact products of unsigned whole numbers held as planes of bits: out[r][c] = sum of 2^(i + j) |a_ri AND b_cj|.
 *
 * a         rows * a_bits * words; b: b_rows * b_bits * words; bits: 1 to 8
 * first     row of a, and the one behind the last
 * out       rows * b_rows
 * set       the place in isoloss_sets() of the instruction set to use
 *
 * Returns 0; 2: a size or set out of range.
 */
ISOLOSS_API int32_t isoloss_plane_product(const uint64_t *a, int32_t a_bits, int64_t first, int64_t last,
                                          const uint64_t *b, int32_t b_bits, int64_t b_rows, int64_t words,
                                          int64_t *out, int32_t set);

/* Reads memory and does nothing else; returns the OR of all 64-bit words, folded to a byte, or -1. */
ISOLOSS_API int32_t isoloss_read_bytes(const uint8_t *from, int64_t count, int32_t set);

#endif

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
#define ISOLOSS_ABI 4

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

/* A matrix that is multiplied with float32 activations: what it holds becomes floats as it is read.
 *
 * kind 0    rows * columns numbers of 16 bits in `value`; `scale`: floats, rows * groups of `group` columns; NULL: none
 * kind 1    codes of `bits` (1 to 8) bits in tiles of 16 rows, of each group of columns two at a time (an odd last one
 *           filled up), 4 * bits bytes in `code`, a stream of bits. With `exponent` 1 to 5 they are floats of so many
 *           exponent bits and that bias; with 0 whole numbers, n * code + bias - zero (`zero`: tiles * groups * 16, or
 *           NULL); with -1 places in `value`, 16 floats (bits at most 4). `scale`: of `scale_type`, tiles * groups * 16;
 *           NULL: none; `unit`: tiles * 16, times all of a row; NULL: none
 * kind 2    codes of 5 to 8 bits in `code`, rows * groups, each group a stream of bits that ends on a byte of eight codes;
 *           `value`: fp16, rows * groups * 2^bits, or (shared) groups * 2^bits
 * kind 3    codes of 1 to 16 bits, each for `group` columns of a row: vectors * tiles * 2 * bits bytes; `value`: fp16,
 *           2^bits * group
 * kind 4    n of every `group` columns: `value` rows * kept, kept a multiple of 16; `code`: rows * kept places within the
 *           group, a stream of `bits` (1 to 8); `index`: kept, the first column of the group of each
 * kind 5    blocks of 16 rows * `group` columns: `value` blocks * group * 16; `index`: which columns, in units of `group`,
 *           `start`: tiles + 1, the first block of each tile
 * type      of `value`: 0 float, 1 fp16, 2 bf16, 3 int16 (kind 0 alone; 0 not there)
 * scale_type  of `scale`: 0 float, 1 fp16, 4 powers of two as exponent + 127, 5 E4M3 without its sign
 */
typedef struct {
    int64_t rows, columns, group, kept;
    const void *value, *scale;
    const uint8_t *code, *zero;
    const float *unit;
    const int32_t *index, *start;
    int32_t kind, type, scale_type, bits, exponent, bias, n, shared;
} isoloss_reals;

/* A compressed matrix: sizes, and arrays that the caller keeps. Rows and columns are cut as bytes.h says; a run is the columns
 * that have one scale of activations, a segment those that have one table or scale.
 *
 * kind      ISOLOSS_TABLES, ISOLOSS_FLOATS, ISOLOSS_LEVELS; ISOLOSS_REALS: `reals` alone; ISOLOSS_ADDED: outliers alone
 * bits      of a code: tables 1 to 6, floats 1 to 4, levels 1 to 8 (with a table 1 to 4)
 * start     runs: first column; count: runs: columns
 * wide      runs: columns per plane of activations; plane p of a run begins `stride * p` bytes behind its place
 * segment   runs: ascending; place: runs: where the run begins in a token's activations, which take `width` bytes
 * codes     tables and floats: rows * row_bytes; levels: tiles of 16 rows * row_bytes (reals: what a row takes, about)
 * table     tables: rows * segments * 2^bits bytes; floats: as many fp16 numbers; levels: 64 bytes, a table repeated, or
 *           NULL: a code is its own value
 * step      tables: rows * segments; low: the same: an entry is low + step * byte
 * scale     levels: tiles * segments * 16, float or (half) fp16; zero: tiles * segments * 16, or NULL
 * times     levels: a level is times * (table of) code + offset - zero
 * outlier   fp16 numbers in compressed rows, added to the rest, or NULL: outlier_column has outlier_bytes (1, 2 or 4) each,
 *           outlier_row rows + 1 pointers, ascending
 */
enum { ISOLOSS_TABLES, ISOLOSS_FLOATS, ISOLOSS_LEVELS, ISOLOSS_REALS, ISOLOSS_ADDED };

typedef struct {
    int64_t kind, bits, rows, columns, runs, segments, width, stride, row_bytes;
    const int32_t *start, *count, *wide, *segment;
    const int64_t *place;
    const uint8_t *codes;
    const void *table;
    const float *step, *low;
    const void *scale;
    const uint8_t *zero;
    int64_t half, times, offset, outlier_bytes;
    const uint16_t *outlier;
    const void *outlier_column;
    const int32_t *outlier_row;
    const isoloss_reals *reals;
} isoloss_weight;

/* Whether sizes and layout are as above: 0, or 2. What lies in codes, tables and scales may be anything; columns and pointers
 * of outliers are not looked at. */
ISOLOSS_API int32_t isoloss_weight_fits(const isoloss_weight *weight);

/* out = x times the matrix, transposed, plus bias. The weight must have been found to fit.
 *
 * x         tokens * columns
 * parts     tables and levels: activations are rounded to 8 bits (1), or to 16 as two tokens of 8 (2); others: 1
 * bias      rows; NULL: none
 * out       tokens * rows; of ISOLOSS_ADDED, what is added to
 * threads   that share rows at most, this one among them
 * set       the place in isoloss_sets() of the instruction set to use
 *
 * Activations, per token and run: size / 127 (or 32512) of the largest is the scale, NaN where a number is NaN or infinite.
 * Tables: sum over segments of step * (sum over its runs, in order, of scale * exact product) + low * (sum of scale * sum of
 * codes). Levels: sum over runs, in order, of (times * exact product + (offset - zero) * sum of codes) * (scale * scale).
 *
 * Returns 0; 1: no memory; 2: a size or set out of range.
 */
ISOLOSS_API int32_t isoloss_product(const isoloss_weight *weight, const float *x, int64_t tokens, int32_t parts,
                                    const float *bias, float *out, int32_t threads, int32_t set);

/* A stored weight of a model, rows * columns: `weight`, or where that is NULL floats, or (upper) bfloat16, in `floats`; of no
 * rows where there is no such weight.
 *
 * parts     as isoloss_product takes it; bias: rows, or NULL
 */
typedef struct {
    const isoloss_weight *weight;
    const void *floats;
    const float *bias;
    int64_t rows, columns, upper, parts;
} isoloss_matrix;

/* k and v may have no rows: q then has theirs behind its own. */
typedef struct {
    isoloss_matrix q, k, v, out, gate, up, down;
    const float *attention_norm, *mlp_norm, *q_norm, *k_norm; /* NULL: no weights */
} isoloss_layer;

/* A language model: x += out(attention(norm x)), x += down(act(norm x)) in each layer, then a norm and the head.
 *
 * act       ISOLOSS_GATED: silu(gate) * up; ISOLOSS_SQUARED: max(up, 0)^2, without gate
 * size      of a head; normed_heads: queries and keys are normalised, each head, before they are rotated
 * cosine    context * size / 2; sine: the same
 */
enum { ISOLOSS_GATED, ISOLOSS_SQUARED };

typedef struct {
    int64_t layers, width, heads, kv_heads, size, inner, vocabulary, context, act, normed_heads;
    float eps, head_eps, score_scale, unused;
    const float *cosine, *sine, *norm;
    isoloss_matrix embedding, head;
    const isoloss_layer *layer;
} isoloss_model;

/* Tokens through a model, each after those that its text's cache holds.
 *
 * ids       tokens; position: place of each in its text: those of one text must be ascending
 * cache     of each token's text: layers * 2 * kv_heads * room * (size filled up to 16) floats; room: places in it
 * hidden    tokens * width: what the head gets
 * logits    tokens * vocabulary; NULL: not wanted
 * scratch   memory to work in
 * threads   that share products, this one among them
 * set       the place in isoloss_sets() of the instruction set to use
 *
 * Returns 0; above 0: bytes of scratch that are needed, nothing was done; -1: no memory; -2: a size, token, position or set
 * out of range.
 */
ISOLOSS_API int64_t isoloss_decode(const isoloss_model *model, const int64_t *ids, const int64_t *position, int64_t tokens,
                                   float *const *cache, const int64_t *room, float *hidden, float *logits,
                                   uint8_t *scratch, int64_t scratch_bytes, int32_t threads, int32_t set);

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

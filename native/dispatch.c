/* Which instruction set runs: asked of the processor at each call. */
#include "isoloss.h"

#include <stddef.h>

#ifndef ISOLOSS_SOURCE
#define ISOLOSS_SOURCE ""
#endif

typedef int32_t kmeans_rows(const void *, int32_t, int64_t, int64_t, const void *, int32_t, int32_t, int32_t, double *,
                            uint8_t *, double *);

typedef int32_t round_columns(float *, int64_t, int64_t, const float *, int32_t, const int32_t *, int32_t, const float *,
                              const float *, const uint8_t *, uint8_t *, float *);

typedef void activations(const float *, int64_t, int64_t, const int32_t *, const int32_t *, const int32_t *, int32_t,
                         const int64_t *, const int32_t *, int64_t, int64_t, int64_t, int32_t, int8_t *, float *,
                         int32_t *, float *);

typedef void table_product(const uint8_t *, int32_t, int64_t, const uint8_t *, const float *, const float *,
                           const int32_t *, const int32_t *, int64_t, int64_t, const int8_t *, const float *,
                           const float *, int64_t, int64_t, int64_t, float *, int64_t);

typedef void table_floats(const uint8_t *, int32_t, int64_t, const uint16_t *, const int32_t *, const int32_t *, int64_t,
                          int64_t, const float *, int64_t, int64_t, int64_t, float *, int64_t);

typedef void group_product(const uint8_t *, int32_t, const uint8_t *, const void *, int32_t, const uint8_t *, int32_t,
                           int32_t, const int32_t *, const int32_t *, int64_t, int64_t, const int8_t *, const float *,
                           const int32_t *, int64_t, int64_t, int64_t, int64_t, float *, int64_t);

typedef void sparse_add(const uint16_t *, const void *, int32_t, const int32_t *, const float *, int64_t, int64_t,
                        int64_t, int64_t, float *, int64_t);

typedef void plane_product(const uint64_t *, int32_t, int64_t, int64_t, const uint64_t *, int32_t, int64_t, int64_t,
                           int64_t *);

typedef int32_t read_bytes(const uint8_t *, int64_t);

/* All kernels in one instruction set. */
typedef struct {
    kmeans_rows *kmeans;
    round_columns *columns;
    activations *activations;
    table_product *tables;
    table_floats *floats;
    group_product *groups;
    sparse_add *sparse;
    plane_product *planes;
    read_bytes *read;
} Kernels;

#define DECLARED(SET)                                                                                                  \
    activations activations_##SET;                                                                                     \
    table_product table_product_##SET;                                                                                 \
    table_floats table_floats_##SET;                                                                                   \
    group_product group_product_##SET;                                                                                 \
    sparse_add sparse_add_##SET;                                                                                       \
    plane_product plane_product_##SET;                                                                                 \
    read_bytes read_bytes_##SET;
#define DEPLOYED(SET)                                                                                                  \
    activations_##SET, table_product_##SET, table_floats_##SET, group_product_##SET, sparse_add_##SET,                 \
        plane_product_##SET, read_bytes_##SET

kmeans_rows kmeans_rows_plain;
round_columns round_columns_plain;
DECLARED(plain)
static const Kernels plain = {kmeans_rows_plain, round_columns_plain, DEPLOYED(plain)};

int32_t isoloss_abi(void) { return ISOLOSS_ABI; }

const char *isoloss_source(void) { return ISOLOSS_SOURCE; }

#ifdef ISOLOSS_X86
kmeans_rows kmeans_rows_avx2;
round_columns round_columns_avx2;
DECLARED(avx2)
DECLARED(avx512)
static const Kernels avx2 = {kmeans_rows_avx2, round_columns_avx2, DEPLOYED(avx2)};
/* k-means and columns are no faster in wider registers. */
static const Kernels avx512 = {kmeans_rows_avx2, round_columns_avx2, DEPLOYED(avx512)};

/* How many of plain, avx2 and avx512 this processor runs; avx512 with the byte permutes and dot products of 2019. */
static int32_t known(void)
{
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2"))
        return 1;
    return 2 + (__builtin_cpu_supports("fma") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni") &&
                __builtin_cpu_supports("avx512vpopcntdq"));
}

const char *isoloss_sets(void)
{
    static const char *const sets[] = {"plain", "avx2 plain", "avx512 avx2 plain"};
    return sets[known() - 1];
}

static const Kernels *chosen(int32_t set)
{
    static const Kernels *const all[] = {&plain, &avx2, &avx512};
    const int32_t count = known();
    return set < 0 || set >= count ? NULL : all[count - 1 - set];
}
#else
const char *isoloss_sets(void) { return "plain"; }

static const Kernels *chosen(int32_t set) { return set == 0 ? &plain : NULL; }
#endif

/* Codes of so many bits in so many rows and columns. */
static int sizes_fit(int32_t bits, int32_t most_bits, int64_t blocks, int64_t segments, int64_t tokens, int64_t first,
                     int64_t last)
{
    const int64_t most = INT32_MAX;
    return bits >= 1 && bits <= most_bits && blocks >= 0 && blocks <= most / 512 && segments >= 0 && segments <= most &&
           tokens >= 0 && tokens <= most && first >= 0 && last >= first && last <= most;
}

/* Ascending numbers from 0 to below `count`. */
static int ascending(const int32_t *number, int64_t length, int64_t count)
{
    for (int64_t i = 0; i < length; i++)
        if (number[i] < (i ? number[i - 1] : 0) || number[i] >= count)
            return 0;
    return 1;
}

/* Planes of 1 to 64 bytes that fill a row. */
static int planes_fit(const int32_t *wide, int64_t blocks, int32_t bits, int64_t row_bytes)
{
    int64_t bytes = 0;
    for (int64_t b = 0; b < blocks; b++) {
        if (wide[b] < 1 || wide[b] > 64)
            return 0;
        bytes += (int64_t)wide[b] * bits;
    }
    return bytes == row_bytes;
}

int32_t isoloss_kmeans_rows(const void *x, int32_t x_double, int64_t rows, int64_t columns, const void *w,
                            int32_t w_double, int32_t w_shared, int32_t levels, double *centres, uint8_t *codes,
                            double *cost, int32_t set)
{
    const Kernels *run = chosen(set);
    if (!run || rows < 0 || columns < 1 || columns > INT32_MAX / 4 || levels < 1 || levels > 256)
        return 2;
    return run->kmeans(x, x_double, rows, columns, w, w_double, w_shared, levels, centres, codes, cost);
}

int32_t isoloss_round_columns(float *x, int64_t columns, int64_t rows, const float *levels, int32_t count,
                              const int32_t *group, int32_t groups, const float *moves, const float *old,
                              const uint8_t *kept, uint8_t *codes, float *moved, int32_t set)
{
    const Kernels *run = chosen(set);
    if (!run || rows < 0 || columns < 0 || columns > INT32_MAX / 4 || count < 1 || count > 256 || groups < 1)
        return 2;
    for (int64_t j = 0; j < columns; j++)
        if (group[j] < 0 || group[j] >= groups)
            return 2;
    return run->columns(x, columns, rows, levels, count, group, groups, moves, old, kept, codes, moved);
}

int32_t isoloss_activations(const float *x, int64_t tokens, int64_t columns, const int32_t *start,
                            const int32_t *count, const int32_t *wide, int32_t stride, const int64_t *place,
                            const int32_t *segment, int64_t runs, int64_t segments, int64_t width, int32_t parts,
                            int8_t *codes, float *scale, int32_t *sum, float *segment_sum, int32_t set)
{
    const Kernels *run = chosen(set);
    if (!run || !sizes_fit(1, 1, runs, segments, tokens, 0, 0) || columns < 0 || width < 0 || stride < 1 || parts < 1 ||
        parts > 2 || !ascending(segment, runs, segments))
        return 2;
    for (int64_t b = 0; b < runs; b++) {
        if (start[b] < 0 || count[b] < 1 || count[b] > columns - start[b] || wide[b] < 1 || place[b] < 0)
            return 2;
        const int64_t planes = (count[b] - 1) / wide[b], left = count[b] - planes * wide[b];
        if (place[b] > width || planes * stride + (planes ? wide[b] : left) > width - place[b] || (planes && stride < wide[b]))
            return 2;
    }
    run->activations(x, tokens, columns, start, count, wide, stride, place, segment, runs, segments, width, parts, codes,
                     scale, sum, segment_sum);
    return 0;
}

int32_t isoloss_table_product(const uint8_t *codes, int32_t bits, int64_t row_bytes, const uint8_t *table,
                              const float *step, const float *low, const int32_t *wide, const int32_t *segment,
                              int64_t blocks, int64_t segments, const int8_t *x, const float *x_scale,
                              const float *x_sum, int64_t tokens, int64_t first, int64_t last, float *out,
                              int64_t out_stride, int32_t set)
{
    const Kernels *run = chosen(set);
    if (!run || !sizes_fit(bits, 6, blocks, segments, tokens, first, last) || out_stride < last ||
        !ascending(segment, blocks, segments) || !planes_fit(wide, blocks, bits, row_bytes))
        return 2;
    run->tables(codes, bits, row_bytes, table, step, low, wide, segment, blocks, segments, x, x_scale, x_sum, tokens,
                first, last, out, out_stride);
    return 0;
}

int32_t isoloss_table_floats(const uint8_t *codes, int32_t bits, int64_t row_bytes, const uint16_t *table,
                             const int32_t *wide, const int32_t *segment, int64_t blocks, int64_t segments,
                             const float *x, int64_t tokens, int64_t first, int64_t last, float *out,
                             int64_t out_stride, int32_t set)
{
    const Kernels *run = chosen(set);
    if (!run || !sizes_fit(bits, 4, blocks, segments, tokens, first, last) || out_stride < last ||
        !ascending(segment, blocks, segments) || !planes_fit(wide, blocks, bits, row_bytes))
        return 2;
    run->floats(codes, bits, row_bytes, table, wide, segment, blocks, segments, x, tokens, first, last, out, out_stride);
    return 0;
}

int32_t isoloss_group_product(const uint8_t *codes, int32_t bits, const uint8_t *table, const void *scale, int32_t half,
                              const uint8_t *zero, int32_t times, int32_t offset, const int32_t *blocks,
                              const int32_t *group, int64_t runs, int64_t groups, const int8_t *x,
                              const float *x_scale, const int32_t *x_sum, int64_t tokens, int64_t rows, int64_t first,
                              int64_t last, float *out, int64_t out_stride, int32_t set)
{
    const Kernels *run = chosen(set);
    if (!run || !sizes_fit(bits, table ? 4 : 8, runs, groups, tokens, first, last) || last > rows ||
        out_stride < rows || first % 16 || !ascending(group, runs, groups) || times < 1 || times > 2 ||
        offset < -256 || offset > 256)
        return 2;
    for (int64_t b = 0; b < runs; b++)
        if (blocks[b] < 1 || blocks[b] > 64)
            return 2;
    run->groups(codes, bits, table, scale, half, zero, times, offset, blocks, group, runs, groups, x, x_scale, x_sum,
                tokens, rows, first, last, out, out_stride);
    return 0;
}

int32_t isoloss_sparse_add(const uint16_t *value, const void *column, int32_t column_bytes, const int32_t *row,
                           const float *x, int64_t tokens, int64_t columns, int64_t first, int64_t last, float *out,
                           int64_t out_stride, int32_t set)
{
    const Kernels *run = chosen(set);
    if (!run || (column_bytes != 1 && column_bytes != 2 && column_bytes != 4) || tokens < 0 || columns < 0 ||
        first < 0 || last < first || out_stride < last)
        return 2;
    run->sparse(value, column, column_bytes, row, x, tokens, columns, first, last, out, out_stride);
    return 0;
}

int32_t isoloss_plane_product(const uint64_t *a, int32_t a_bits, int64_t first, int64_t last, const uint64_t *b,
                              int32_t b_bits, int64_t b_rows, int64_t words, int64_t *out, int32_t set)
{
    const Kernels *run = chosen(set);
    if (!run || a_bits < 1 || a_bits > 8 || b_bits < 1 || b_bits > 8 || first < 0 || last < first || b_rows < 0 ||
        words < 0 || words > INT32_MAX)
        return 2;
    run->planes(a, a_bits, first, last, b, b_bits, b_rows, words, out);
    return 0;
}

int32_t isoloss_read_bytes(const uint8_t *from, int64_t count, int32_t set)
{
    const Kernels *run = chosen(set);
    return run && count >= 0 ? run->read(from, count) : -1;
}

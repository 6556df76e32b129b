/* A matrix of whole-number levels with a scale per group, times activations of 8 bits; compiled once per set (SET).
 *
 * Rows are the lanes: 16 rows are a tile, and 32 columns of a tile a block of eight planes (bytes.h), of which plane p has
 * four columns of every row. Scales of 16 rows are then one register, needed once per run of columns.
 */
#include "bytes.h"
#include "isoloss.h"

#ifndef SET
#define SET plain
#endif
#define JOINED(a, b) a##b
#define NAMED(a, b) JOINED(a, b)

enum { AHEAD = 2048, MOST_TOKENS = 8, BLOCK_COLUMNS = 32, TILE = LANES_OUT };

typedef struct {
    const uint8_t *codes, *table, *zero;
    const void *scale;
    int32_t half, times, offset;
    const int32_t *blocks, *group;
    int64_t runs, groups, all_blocks;
    const int8_t *x;
    const float *x_scale;
    const int32_t *x_sum;
    float *out;
    int64_t out_stride, rows;
} Product;

ALWAYS reals scales_of(const Product *m, int64_t at)
{
    reals v;
    if (!m->half) {
        memcpy(&v, (const float *)m->scale + at, sizeof v);
        return v;
    }
    const uint16_t *from = (const uint16_t *)m->scale + at;
#if defined(__AVX512F__)
    return (reals)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
#else
    float all[TILE];
    for (int i = 0; i < TILE; i++)
        all[i] = half_to_float(from[i]);
    memcpy(&v, all, sizeof v);
    return v;
#endif
}

ALWAYS whole zeros_of(const Product *m, int64_t at)
{
#if defined(__AVX512F__)
    return (whole)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(m->zero + at)));
#else
    int32_t all[TILE];
    for (int i = 0; i < TILE; i++)
        all[i] = m->zero[at + i];
    whole v;
    memcpy(&v, all, sizeof v);
    return v;
#endif
}

/* One tile, `count` tokens, the first of them `token`. */
ALWAYS void tile_of(const Product *m, int64_t tile, int64_t token, const int count, const int bits, const int looked)
{
    const uint8_t *code = m->codes + tile * m->all_blocks * bits * WIDE;
    const int64_t x_bytes = m->all_blocks * BLOCK_COLUMNS;
    const int8_t *x = m->x + token * x_bytes;
    const bytes mask = all_bytes((uint8_t)((1 << bits) - 1));
    const bytes table = looked ? load_bytes(m->table) : mask;
    reals answer[MOST_TOKENS] = {{0}};
    for (int64_t run = 0; run < m->runs; run++) {
        whole even[MOST_TOKENS] = {{0}}, odd[MOST_TOKENS] = {{0}};
        for (int32_t b = m->blocks[run]; b > 0; b--) {
            bytes in[8], w[PLANES];
UNROLLED(8)
            for (int k = 0; k < bits; k++) {
                in[k] = load_bytes(code + k * WIDE);
                __builtin_prefetch(code + k * WIDE + AHEAD);
            }
UNROLLED(8)
            for (int p = 0; p < PLANES; p++)
                w[p] = looked ? look(table, plane(in, bits, p), bits) : plane(in, bits, p) & mask;
UNROLLED(8)
            for (int t = 0; t < count; t++) {
                const int8_t *from = x + t * x_bytes;
UNROLLED(4)
                for (int p = 0; p < PLANES; p += 2) {
                    even[t] = dot(even[t], w[p], four(from + 4 * p));
                    odd[t] = dot(odd[t], w[p + 1], four(from + 4 * p + 4));
                }
            }
            code += bits * WIDE;
            x += BLOCK_COLUMNS;
        }
        const int64_t own = (tile * m->groups + m->group[run]) * TILE;
        const reals scale = scales_of(m, own);
        const whole zero = m->zero ? zeros_of(m, own) : (whole){0};
UNROLLED(8)
        for (int t = 0; t < count; t++) {
            const int64_t at = (token + t) * m->runs + run;
            const whole level = (even[t] + odd[t]) * m->times + (m->offset - zero) * m->x_sum[at];
            answer[t] += to_reals(level) * (scale * m->x_scale[at]);
        }
    }
    const int64_t left = m->rows - tile * TILE;
    for (int t = 0; t < count; t++)
        memcpy(m->out + (token + t) * m->out_stride + tile * TILE, &answer[t],
               (size_t)(left < TILE ? left : TILE) * sizeof(float));
}

typedef void tile_product(const Product *, int64_t, int64_t, int, int);

#if defined(ISOLOSS_WRITTEN_OUT)
#define OF_COUNT(BITS, COUNT)                                                                                          \
    static void tile_##BITS##_##COUNT(const Product *m, int64_t tile, int64_t token, int count, int bits)              \
    {                                                                                                                  \
        (void)count;                                                                                                   \
        (void)bits;                                                                                                    \
        if (BITS <= 4 && m->table)                                                                                     \
            tile_of(m, tile, token, COUNT, BITS, BITS <= 4);                                                           \
        else                                                                                                           \
            tile_of(m, tile, token, COUNT, BITS, 0);                                                                   \
    }
#define OF_BITS(BITS) OF_COUNT(BITS, 1) OF_COUNT(BITS, 2) OF_COUNT(BITS, 4) OF_COUNT(BITS, 8)
OF_BITS(1) OF_BITS(2) OF_BITS(3) OF_BITS(4) OF_BITS(5) OF_BITS(6) OF_BITS(7) OF_BITS(8)
#define ALL(BITS) {tile_##BITS##_1, tile_##BITS##_2, tile_##BITS##_4, tile_##BITS##_8}
static tile_product *const made[8][4] = {ALL(1), ALL(2), ALL(3), ALL(4), ALL(5), ALL(6), ALL(7), ALL(8)};
#else
/* One for all: a product per bits and tokens takes a compiler minutes where no register is 64 bytes wide. */
static void tile_any(const Product *m, int64_t tile, int64_t token, int count, int bits)
{
    tile_of(m, tile, token, count, bits, m->table != 0);
}
#endif

static tile_product *product_of(int32_t bits, int power)
{
#if defined(ISOLOSS_WRITTEN_OUT)
    return made[bits - 1][power];
#else
    (void)bits;
    (void)power;
    return tile_any;
#endif
}

void NAMED(group_product_, SET)(const uint8_t *codes, int32_t bits, const uint8_t *table, const void *scale,
                                int32_t half, const uint8_t *zero, int32_t times, int32_t offset,
                                const int32_t *blocks, const int32_t *group, int64_t runs, int64_t groups,
                                const int8_t *x, const float *x_scale, const int32_t *x_sum, int64_t tokens,
                                int64_t rows, int64_t first, int64_t last, float *out, int64_t out_stride);

void NAMED(group_product_, SET)(const uint8_t *codes, int32_t bits, const uint8_t *table, const void *scale,
                                int32_t half, const uint8_t *zero, int32_t times, int32_t offset,
                                const int32_t *blocks, const int32_t *group, int64_t runs, int64_t groups,
                                const int8_t *x, const float *x_scale, const int32_t *x_sum, int64_t tokens,
                                int64_t rows, int64_t first, int64_t last, float *out, int64_t out_stride)
{
    Product m = {codes, table, zero,    scale, half,    times, offset, blocks, group,
                 runs,  groups, 0,      x,     x_scale, x_sum, out,    out_stride, rows};
    for (int64_t run = 0; run < runs; run++)
        m.all_blocks += blocks[run];
    for (int64_t tile = first / TILE; tile * TILE < last; tile++)
        for (int64_t t = 0; t < tokens;) {
            const int64_t left = tokens - t;
            const int power = left >= 8 ? 3 : left >= 4 ? 2 : left >= 2;
            product_of(bits, power)(&m, tile, t, 1 << power, bits);
            t += 1 << power;
        }
}

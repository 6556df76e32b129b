/* A matrix whose rows have tables, times activations of 8 bits; compiled once per set (SET).
 *
 * Columns are the lanes: 512 columns of a row are a block of eight planes (bytes.h), and a table of up to 64 bytes is one
 * register. Of the last columns of a segment, fewer than 512, a plane has an eighth.
 */
#include "bytes.h"
#include "isoloss.h"

#ifndef SET
#define SET plain
#endif
#define JOINED(a, b) a##b
#define NAMED(a, b) JOINED(a, b)

enum { AHEAD = 2048, MOST_TOKENS = 8 };

typedef struct {
    const uint8_t *codes, *table;
    int64_t row_bytes;
    const float *step, *low;
    const int32_t *wide, *segment;
    int64_t blocks, segments;
    const int8_t *x;
    const float *x_scale, *x_total;
    float *out;
    int64_t out_stride;
} Product;

/* Rows first to last of `count` tokens, the first of them `token`. */
ALWAYS void rows_of(const Product *m, int64_t first, int64_t last, int64_t token, const int count, const int bits)
{
    const int64_t x_bytes = m->blocks * PLANES * WIDE;
    const int8_t *const x0 = m->x + token * x_bytes;
    for (int64_t r = first; r < last; r++) {
        const uint8_t *code = m->codes + r * m->row_bytes;
        float answer[MOST_TOKENS] = {0};
        for (int64_t b = 0; b < m->blocks;) {
            const int32_t segment = m->segment[b];
            const int64_t own = r * m->segments + segment;
            const bytes table = repeated(m->table + (own << bits), bits);
            reals sum[MOST_TOKENS] = {{0}};
            for (; b < m->blocks && m->segment[b] == segment; b++) {
                const int32_t wide = m->wide[b];
                bytes in[8], w[PLANES];
                if (wide == WIDE) {
UNROLLED(8)
                    for (int k = 0; k < bits; k++) {
                        in[k] = load_bytes(code + k * WIDE);
                        __builtin_prefetch(code + k * WIDE + AHEAD);
                    }
                } else
UNROLLED(8)
                    for (int k = 0; k < bits; k++)
                        in[k] = load_some(code + k * wide, wide);
                code += bits * wide;
UNROLLED(8)
                for (int p = 0; p < PLANES; p++)
                    w[p] = look(table, plane(in, bits, p), bits);
UNROLLED(8)
                for (int t = 0; t < count; t++) {
                    const int8_t *x = x0 + t * x_bytes + b * PLANES * WIDE;
                    whole even = {0}, odd = {0};
UNROLLED(4)
                    for (int p = 0; p < PLANES; p += 2) {
                        even = dot(even, w[p], load_bytes((const uint8_t *)x + p * WIDE));
                        odd = dot(odd, w[p + 1], load_bytes((const uint8_t *)x + (p + 1) * WIDE));
                    }
                    sum[t] += to_reals(even + odd) * m->x_scale[(token + t) * m->blocks + b];
                }
            }
            for (int t = 0; t < count; t++)
                answer[t] += m->step[own] * total(sum[t]) + m->low[own] * m->x_total[(token + t) * m->segments + segment];
        }
        for (int t = 0; t < count; t++)
            m->out[(token + t) * m->out_stride + r] = answer[t];
    }
}

typedef void rows_product(const Product *, int64_t, int64_t, int64_t, int, int);

#if defined(ISOLOSS_WRITTEN_OUT)
#define OF_COUNT(BITS, COUNT)                                                                                          \
    static void rows_##BITS##_##COUNT(const Product *m, int64_t first, int64_t last, int64_t token, int count,         \
                                      int bits)                                                                        \
    {                                                                                                                  \
        (void)count;                                                                                                   \
        (void)bits;                                                                                                    \
        rows_of(m, first, last, token, COUNT, BITS);                                                                   \
    }
#define OF_BITS(BITS) OF_COUNT(BITS, 1) OF_COUNT(BITS, 2) OF_COUNT(BITS, 4) OF_COUNT(BITS, 8)
OF_BITS(1) OF_BITS(2) OF_BITS(3) OF_BITS(4) OF_BITS(5) OF_BITS(6)
#define ALL(BITS) {rows_##BITS##_1, rows_##BITS##_2, rows_##BITS##_4, rows_##BITS##_8}
static rows_product *const made[6][4] = {ALL(1), ALL(2), ALL(3), ALL(4), ALL(5), ALL(6)};
#else
/* One for all: a product per bits and tokens takes a compiler minutes where no register is 64 bytes wide. */
static void rows_any(const Product *m, int64_t first, int64_t last, int64_t token, int count, int bits)
{
    rows_of(m, first, last, token, count, bits);
}
#endif

static rows_product *product_of(int32_t bits, int power)
{
#if defined(ISOLOSS_WRITTEN_OUT)
    return made[bits - 1][power];
#else
    (void)bits;
    (void)power;
    return rows_any;
#endif
}

void NAMED(table_product_, SET)(const uint8_t *codes, int32_t bits, int64_t row_bytes, const uint8_t *table,
                                const float *step, const float *low, const int32_t *wide, const int32_t *segment,
                                int64_t blocks, int64_t segments, const int8_t *x, const float *x_scale,
                                const float *x_total, int64_t tokens, int64_t first, int64_t last, float *out,
                                int64_t out_stride);

void NAMED(table_product_, SET)(const uint8_t *codes, int32_t bits, int64_t row_bytes, const uint8_t *table,
                                const float *step, const float *low, const int32_t *wide, const int32_t *segment,
                                int64_t blocks, int64_t segments, const int8_t *x, const float *x_scale,
                                const float *x_total, int64_t tokens, int64_t first, int64_t last, float *out,
                                int64_t out_stride)
{
    const Product m = {codes,  table,    row_bytes, step,    low,     wide, segment,
                       blocks, segments, x,         x_scale, x_total, out,  out_stride};
    enum { NEAR = 16 }; /* rows that stay in the cache while all tokens pass */
    const int64_t step_rows = tokens > MOST_TOKENS ? NEAR : last - first;
    for (int64_t from = first; from < last; from += step_rows) {
        const int64_t to = last - from < step_rows ? last : from + step_rows;
        for (int64_t t = 0; t < tokens;) {
            const int64_t left = tokens - t;
            const int power = left >= 8 ? 3 : left >= 4 ? 2 : left >= 2;
            product_of(bits, power)(&m, from, to, t, 1 << power, bits);
            t += 1 << power;
        }
    }
}

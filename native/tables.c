/* A matrix whose rows have tables of bytes, times activations of 8 bits; compiled once per set (SET).
 *
 * Columns are the lanes: 512 columns of a row are a block of eight planes (bytes.h), and a table of up to 64 bytes is one
 * register. Of the last columns of a segment, fewer than 512, a plane has an eighth. A block's exact products of 16 rows are
 * added up together, so that scales are applied to 16 rows at once.
 */
#include "weights.h"

enum { MOST_TOKENS = 8 };

/* One number of each row. */
ALWAYS reals of_rows(const float *from, int64_t stride, int64_t rows)
{
    float all[TILE] = {0};
    for (int64_t r = 0; r < rows; r++)
        all[r] = from[r * stride];
    reals v;
    memcpy(&v, all, sizeof v);
    return v;
}

/* A block of up to 16 rows: exact products with `count` tokens, lane by lane. */
ALWAYS void block_of(const isoloss_weight *w, const uint8_t *code, int32_t wide, const uint8_t *tables, int64_t stride,
                     int64_t rows, const int8_t *x, whole (*dots)[TILE], const int count, const int bits, const int full)
{
    const int64_t ahead = ahead_of(TILE * w->row_bytes);
    for (int64_t r = 0; r < rows; r++) {
        const bytes table = repeated(tables + r * stride, bits);
        const uint8_t *const from = code + r * w->row_bytes;
        bytes in[8], v[PLANES];
UNROLLED(8)
        for (int k = 0; k < bits; k++) {
            in[k] = full ? load_bytes(from + k * WIDE) : load_some(from + k * wide, wide);
            if (full)
                __builtin_prefetch(from + ahead + k * WIDE, 0, 2);
        }
UNROLLED(8)
        for (int p = 0; p < PLANES; p++)
            v[p] = look(table, plane(in, bits, p), bits);
UNROLLED(8)
        for (int t = 0; t < count; t++) {
            whole sum = {0};
UNROLLED(8)
            for (int p = 0; p < PLANES; p++)
                sum = dot(sum, v[p], load_bytes((const uint8_t *)x + t * w->width + p * WIDE));
            dots[t][r] = sum;
        }
    }
}

/* Up to 16 rows of `count` tokens, the first of them `token`. */
ALWAYS void tile_of(const Product *m, int64_t first, int64_t rows, int64_t token, const int count, const int bits)
{
    const isoloss_weight *const w = m->weight;
    const uint8_t *code = w->codes + first * w->row_bytes;
    const int8_t *x = m->x.codes + token * w->width;
    whole dots[MOST_TOKENS][TILE];
    reals answer[MOST_TOKENS] = {{0}};
    if (rows < TILE)
        memset(dots, 0, sizeof dots);
    for (int64_t b = 0; b < w->runs;) {
        const int32_t segment = w->segment[b];
        const int64_t own = first * w->segments + segment;
        const uint8_t *const tables = (const uint8_t *)w->table + (own << bits);
        reals sum[MOST_TOKENS] = {{0}};
        for (; b < w->runs && w->segment[b] == segment; b++) {
            const int32_t wide = w->wide[b];
            if (wide == WIDE)
                block_of(w, code, wide, tables, w->segments << bits, rows, x, dots, count, bits, 1);
            else
                block_of(w, code, wide, tables, w->segments << bits, rows, x, dots, count, bits, 0);
            code += bits * wide;
            x += PLANES * WIDE;
            for (int t = 0; t < count; t++)
                sum[t] += to_reals(totals(dots[t])) * m->x.scale[(token + t) * w->runs + b];
        }
        const reals step = of_rows(w->step + own, w->segments, rows), low = of_rows(w->low + own, w->segments, rows);
        for (int t = 0; t < count; t++)
            answer[t] += step * sum[t] + low * m->x.segment_sum[(token + t) * w->segments + segment];
    }
    for (int t = 0; t < count; t++)
        memcpy(m->out + (token + t) * w->rows + first, &answer[t], (size_t)rows * sizeof(float));
}

typedef void rows_product(const Product *, int64_t, int64_t, int64_t, int, int);

#if defined(ISOLOSS_WRITTEN_OUT)
#define OF_COUNT(BITS, COUNT)                                                                                          \
    static void tile_##BITS##_##COUNT(const Product *m, int64_t first, int64_t rows, int64_t token, int count,         \
                                      int bits)                                                                        \
    {                                                                                                                  \
        (void)count;                                                                                                   \
        (void)bits;                                                                                                    \
        tile_of(m, first, rows, token, COUNT, BITS);                                                                   \
    }
#define OF_BITS(BITS) OF_COUNT(BITS, 1) OF_COUNT(BITS, 2) OF_COUNT(BITS, 4) OF_COUNT(BITS, 8)
OF_BITS(1) OF_BITS(2) OF_BITS(3) OF_BITS(4) OF_BITS(5) OF_BITS(6)
#define ALL(BITS) {tile_##BITS##_1, tile_##BITS##_2, tile_##BITS##_4, tile_##BITS##_8}
static rows_product *const made[6][4] = {ALL(1), ALL(2), ALL(3), ALL(4), ALL(5), ALL(6)};
#else
/* One for all: a product per bits and tokens takes a compiler minutes where no register is 64 bytes wide. */
static void tile_any(const Product *m, int64_t first, int64_t rows, int64_t token, int count, int bits)
{
    tile_of(m, first, rows, token, count, bits);
}
#endif

static rows_product *product_of(int64_t bits, int power)
{
#if defined(ISOLOSS_WRITTEN_OUT)
    return made[bits - 1][power];
#else
    (void)bits;
    (void)power;
    return tile_any;
#endif
}

void NAMED(table_rows_, SET)(const Product *m, int64_t first, int64_t last);

void NAMED(table_rows_, SET)(const Product *m, int64_t first, int64_t last)
{
    for (int64_t from = first; from < last; from += TILE)
        for (int64_t t = 0; t < m->tokens;) {
            const int64_t left = m->tokens - t;
            const int power = left >= 8 ? 3 : left >= 4 ? 2 : left >= 2;
            product_of(m->weight->bits, power)(m, from, last - from < TILE ? last - from : TILE, t, 1 << power,
                                               (int)m->weight->bits);
            t += 1 << power;
        }
}

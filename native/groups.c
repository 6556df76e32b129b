/* A matrix of whole-number levels with a scale per group, times activations of 8 bits; compiled once per set (SET).
 *
 * Rows are the lanes: 16 rows are a tile, and 32 columns of a tile a block of eight planes (bytes.h), of which plane p has
 * four columns of every row. Scales of 16 rows are then one register, needed once per run of columns.
 */
#include "weights.h"

enum { MOST_TOKENS = 8, BLOCK_COLUMNS = 32 };

/* One tile, `count` tokens, the first of them `token`. */
ALWAYS void tile_of(const Product *m, int64_t tile, int64_t token, const int count, const int bits, const int looked)
{
    const isoloss_weight *const v = m->weight;
    const uint8_t *code = v->codes + tile * v->row_bytes;
    const int8_t *x = m->x.codes + token * v->width;
    const bytes mask = all_bytes((uint8_t)((1 << bits) - 1));
    const bytes table = looked ? load_bytes(v->table) : mask;
    const int64_t ahead = ahead_of(v->row_bytes);
    const int32_t times = (int32_t)v->times, offset = (int32_t)v->offset;
    reals answer[MOST_TOKENS] = {{0}};
    for (int64_t run = 0; run < v->runs; run++) {
        whole even[MOST_TOKENS] = {{0}}, odd[MOST_TOKENS] = {{0}};
        for (int32_t left = v->count[run]; left > 0; left -= BLOCK_COLUMNS) {
            bytes in[8], w[PLANES];
UNROLLED(8)
            for (int k = 0; k < bits; k++) {
                in[k] = load_bytes(code + k * WIDE);
                __builtin_prefetch(code + ahead + k * WIDE, 0, 2);
            }
UNROLLED(8)
            for (int p = 0; p < PLANES; p++)
                w[p] = looked ? look(table, plane(in, bits, p), bits) : plane(in, bits, p) & mask;
UNROLLED(8)
            for (int t = 0; t < count; t++) {
                const int8_t *from = x + t * v->width;
UNROLLED(4)
                for (int p = 0; p < PLANES; p += 2) {
                    even[t] = dot(even[t], w[p], four(from + 4 * p));
                    odd[t] = dot(odd[t], w[p + 1], four(from + 4 * p + 4));
                }
            }
            code += bits * WIDE;
            x += BLOCK_COLUMNS;
        }
        const int64_t own = (tile * v->segments + v->segment[run]) * TILE;
        const reals scale = scales_of(v, own);
        const whole zero = v->zero ? zeros_of(v, own) : (whole){0};
UNROLLED(8)
        for (int t = 0; t < count; t++) {
            const int64_t at = (token + t) * v->runs + run;
            const whole level = (even[t] + odd[t]) * times + (offset - zero) * m->x.sum[at];
            answer[t] += to_reals(level) * (scale * m->x.scale[at]);
        }
    }
    const int64_t left = v->rows - tile * TILE;
    for (int t = 0; t < count; t++)
        memcpy(m->out + (token + t) * v->rows + tile * TILE, &answer[t],
               (size_t)(left < TILE ? left : TILE) * sizeof(float));
}

typedef void tile_product(const Product *, int64_t, int64_t, int, int);

#if defined(ISOLOSS_WRITTEN_OUT)
#define OF_COUNT(BITS, COUNT)                                                                                          \
    static void tile_##BITS##_##COUNT(const Product *m, int64_t tile, int64_t token, int count, int bits)              \
    {                                                                                                                  \
        (void)count;                                                                                                   \
        (void)bits;                                                                                                    \
        if (BITS <= 4 && m->weight->table)                                                                                     \
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
    tile_of(m, tile, token, count, bits, m->weight->table != 0);
}
#endif

static tile_product *product_of(int64_t bits, int power)
{
#if defined(ISOLOSS_WRITTEN_OUT)
    return made[bits - 1][power];
#else
    (void)bits;
    (void)power;
    return tile_any;
#endif
}

void NAMED(level_rows_, SET)(const Product *m, int64_t first, int64_t last);

void NAMED(level_rows_, SET)(const Product *m, int64_t first, int64_t last)
{
    for (int64_t tile = first / TILE; tile * TILE < last; tile++)
        for (int64_t t = 0; t < m->tokens;) {
            const int64_t left = m->tokens - t;
            const int power = left >= 8 ? 3 : left >= 4 ? 2 : left >= 2;
            product_of(m->weight->bits, power)(m, tile, t, 1 << power, (int)m->weight->bits);
            t += 1 << power;
        }
}

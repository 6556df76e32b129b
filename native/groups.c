/* A matrix of whole-number levels with a scale per group, times activations of 8 bits; compiled once per set (SET).
 *
 * Rows are the lanes: 16 rows are a tile, and 32 columns of a tile a block of eight planes (bytes.h), of which plane p has
 * four columns of every row. Scales of 16 rows are then one register, needed once per run of columns.
 */
#include "weights.h"

enum { BLOCK_COLUMNS = 32 };

/* One tile, `count` tokens, the first of them `token`. */
ALWAYS void tile_of(const Product *m, int64_t tile, int64_t token, const int count, const int bits, const int looked)
{
    const isoloss_weight *const v = m->weight;
    const uint8_t *code = v->codes + tile * v->row_bytes;
    const int8_t *x = m->x.codes + token * v->width;
    const lookup table = looked ? repeated(v->table, 4) : (lookup){0};
    const int32_t taken = looked || bits == 8 ? TAKEN : 0; /* smaller codes are the same with a sign */
    const int64_t ahead = ahead_of(v->row_bytes);
    const int32_t times = (int32_t)v->times, offset = (int32_t)v->offset + times * taken;
    reals answer[MOST_TOKENS] = {{0}};
    for (int64_t run = 0; run < v->runs; run++) {
        const int64_t blocks = (v->count[run] + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS;
        whole exact[MOST_TOKENS];
        for (int part = 0; part < WIDE; part += PART) {
            sums even[MOST_TOKENS] = {{0}}, odd[MOST_TOKENS] = {{0}};
            for (int64_t block = 0; block < blocks; block++) {
                const uint8_t *const own = code + block * bits * WIDE + part;
                bytes in[8], w[PLANES];
UNROLLED(8)
                for (int k = 0; k < bits; k++) {
                    in[k] = load_bytes(own + k * WIDE);
                    if (part == 0)
                        __builtin_prefetch(own + ahead + k * WIDE, 0, 2);
                }
UNROLLED(8)
                for (int p = 0; p < PLANES; p++)
                    w[p] = looked ? look(table, plane(in, bits, p), bits) : alone(plane(in, bits, p), bits) ^ (uint8_t)taken;
UNROLLED(8)
                for (int t = 0; t < count; t++) {
                    const int8_t *from = x + t * v->width + block * BLOCK_COLUMNS;
UNROLLED(4)
                    for (int p = 0; p < PLANES; p += 2) {
                        even[t] = dot_four(even[t], w[p], from, p);
                        odd[t] = dot_four(odd[t], w[p + 1], from, p + 1);
                    }
                }
            }
UNROLLED(8)
            for (int t = 0; t < count; t++) {
                const sums all = even[t] + odd[t];
                memcpy((char *)(exact + t) + part, &all, sizeof all);
            }
        }
        code += blocks * bits * WIDE;
        x += blocks * BLOCK_COLUMNS;
        const int64_t own = (tile * v->segments + v->segment[run]) * TILE;
        const reals scale = scales_of(v, own);
        const whole zero = v->zero ? zeros_of(v, own) : (whole){0};
UNROLLED(8)
        for (int t = 0; t < count; t++) {
            const int64_t at = (token + t) * v->runs + run;
            const whole level = exact[t] * times + (offset - zero) * m->x.sum[at];
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
        if (BITS <= 4 && m->weight->table)                                                                             \
            tile_of(m, tile, token, COUNT, BITS, BITS <= 4);                                                           \
        else                                                                                                           \
            tile_of(m, tile, token, COUNT, BITS, 0);                                                                   \
    }
#define OF_BITS(BITS) WITH_COUNTS(OF_COUNT, BITS)
OF_BITS(1) OF_BITS(2) OF_BITS(3) OF_BITS(4) OF_BITS(5) OF_BITS(6) OF_BITS(7) OF_BITS(8)
#define NAME(BITS, COUNT) tile_##BITS##_##COUNT,
#define ALL(BITS) {WITH_COUNTS(NAME, BITS)}
static tile_product *const made[8][5] = {ALL(1), ALL(2), ALL(3), ALL(4), ALL(5), ALL(6), ALL(7), ALL(8)};
#else
/* One for all: a product per bits and tokens takes a compiler minutes where parts are no registers. */
static void tile_any(const Product *m, int64_t tile, int64_t token, int count, int bits)
{
    tile_of(m, tile, token, count, bits, m->weight->table != 0);
}
#endif

static tile_product *product_of(int64_t bits, int count)
{
#if defined(ISOLOSS_WRITTEN_OUT)
    return made[bits - 1][place_of_count(count)];
#else
    (void)bits;
    (void)count;
    return tile_any;
#endif
}

void NAMED(level_rows_, SET)(const Product *m, int64_t first, int64_t last);

void NAMED(level_rows_, SET)(const Product *m, int64_t first, int64_t last)
{
    for (int64_t tile = first / TILE; tile * TILE < last; tile++)
        for (int64_t t = 0; t < m->tokens;) {
            const int count = count_of(m->tokens - t);
            product_of(m->weight->bits, count)(m, tile, t, count, (int)m->weight->bits);
            t += count;
        }
}

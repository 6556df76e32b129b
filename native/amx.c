/* Products with several tokens by the matrix unit (AMX), the same numbers: 16 times 16 sums of 64 products at once.
 *
 * Tables: the codes of 16 rows are looked up, plane by plane, and lie then as the unit reads its first factor; the second, 16
 * tokens' activations, is laid out once. Levels: a block's planes, looked up, lie as it reads its second factor, activations
 * as it reads its first.
 */
#include "weights.h"

enum { PAIR = 2, BLOCK_COLUMNS = 32, MOST_BLOCKS = 16, TABLES_FROM = 5, LEVELS_FROM = 3 };

product_rows table_rows_avx512, level_rows_avx512, table_rows_amx, level_rows_amx;
turn_tokens turn_tokens_amx;
reads_turned reads_turned_amx;

/* Which shapes the eight registers have. */
typedef struct {
    uint8_t palette, start, none[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} Shapes;

#define CONFIGURE(shapes) __asm__ volatile("ldtilecfg %0" ::"m"(shapes))
#define RELEASE() __asm__ volatile("tilerelease")
#define ZERO(to) __asm__ volatile("tilezero %%tmm" #to ::)
#define LOAD(to, from, stride)                                                                                         \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #to ::"r"(from), "r"((int64_t)(stride)) : "memory")
#define STORE(from, to, stride)                                                                                        \
    __asm__ volatile("tilestored %%tmm" #from ", (%0,%1,1)" ::"r"(to), "r"((int64_t)(stride)) : "memory")
#define UNSIGNED_SIGNED(sum, u, s) __asm__ volatile("tdpbusd %%tmm" #s ", %%tmm" #u ", %%tmm" #sum ::)
#define SIGNED_UNSIGNED(sum, s, u) __asm__ volatile("tdpbsud %%tmm" #u ", %%tmm" #s ", %%tmm" #sum ::)

static void turn_run(const Product *m, int64_t first, int64_t b)
{
    const isoloss_weight *const w = m->weight;
    const Turned to = m->turned;
    const int64_t left = m->tokens - first, tokens = left < TILE ? left : TILE;
    int32_t *const codes = (int32_t *)(to.codes + (first * w->runs + b * TILE) * PLANES * WIDE);
    float *const scale = to.scale + first * w->runs + b * TILE;
    memset(codes, 0, TILE * PLANES * WIDE);
    memset(scale, 0, TILE * sizeof *scale);
    for (int64_t t = 0; t < tokens; t++) {
        int32_t own[PLANES * TILE];
        memcpy(own, m->x.codes + (first + t) * w->width + b * PLANES * WIDE, sizeof own);
        for (int k = 0; k < PLANES * TILE; k++)
            codes[k * TILE + t] = own[k];
        scale[t] = m->x.scale[(first + t) * w->runs + b];
    }
}

int32_t reads_turned_amx(const isoloss_weight *w, int64_t tokens)
{
    return w->kind == ISOLOSS_TABLES && tokens >= TABLES_FROM;
}

void turn_tokens_amx(const Product *m, int64_t first)
{
    const isoloss_weight *const w = m->weight;
    for (int64_t b = 0; b < w->runs; b++)
        turn_run(m, first, b);
    for (int64_t s = 0; s < w->segments; s++)
        for (int64_t t = 0; t < TILE; t++)
            m->turned.segment_sum[first * w->segments + s * TILE + t] =
                first + t < m->tokens ? m->x.segment_sum[(first + t) * w->segments + s] : 0;
}

ALWAYS reals load_reals(const float *from)
{
    reals v;
    memcpy(&v, from, sizeof v);
    return v;
}

/* A block of up to 32 rows looked up, plane by plane of 16 rows. */
ALWAYS void look_up(const isoloss_weight *w, const uint8_t *code, int32_t wide, const uint8_t *tables, int64_t rows,
                    int64_t ahead, bytes (*to)[PLANES][TILE], const int bits, const int full)
{
    for (int64_t r = 0; r < rows; r++) {
        const lookup table = repeated(tables + r * (w->segments << bits), bits);
        const uint8_t *const from = code + r * w->row_bytes;
        bytes in[8];
UNROLLED(8)
        for (int k = 0; k < bits; k++) {
            in[k] = full ? load_bytes(from + k * WIDE) : load_some(from + k * wide, wide);
            if (full)
                __builtin_prefetch(from + ahead + k * WIDE, 0, 2);
        }
UNROLLED(8)
        for (int p = 0; p < PLANES; p++)
            to[r / TILE][p][r % TILE] = look(table, plane(in, bits, p), bits);
    }
}

/* Up to 32 rows of up to 16 tokens, the first of them `token`. */
ALWAYS void pair_of(const Product *m, int64_t first, int64_t rows, int64_t token, const int bits)
{
    const isoloss_weight *const w = m->weight;
    const int64_t ahead = ahead_of(PAIR * TILE * w->row_bytes);
    const uint8_t *code = w->codes + first * w->row_bytes;
    const int8_t *x = m->turned.codes + token * w->runs * PLANES * WIDE;
    bytes looked[PAIR][PLANES][TILE];
    whole dots[PAIR][2][TILE];
    reals answer[PAIR * TILE] = {{0}}, sum[PAIR * TILE];
    if (rows < PAIR * TILE)
        memset(looked, 0, sizeof looked);
    for (int64_t b = 0; b < w->runs;) {
        const int32_t segment = w->segment[b];
        const int64_t own = first * w->segments + segment;
        const uint8_t *const tables = (const uint8_t *)w->table + (own << bits);
        memset(sum, 0, sizeof sum);
        for (; b < w->runs && w->segment[b] == segment; b++) {
            const int32_t wide = w->wide[b];
            if (wide == WIDE)
                look_up(w, code, wide, tables, rows, ahead, looked, bits, 1);
            else
                look_up(w, code, wide, tables, rows, ahead, looked, bits, 0);
            ZERO(0);
            ZERO(1);
            ZERO(2);
            ZERO(3);
            for (int p = 0; p < PLANES; p += 2) {
                LOAD(6, x + p * TILE * WIDE, WIDE);
                LOAD(4, looked[0][p], WIDE);
                UNSIGNED_SIGNED(0, 4, 6);
                LOAD(5, looked[1][p], WIDE);
                UNSIGNED_SIGNED(2, 5, 6);
                LOAD(7, x + (p + 1) * TILE * WIDE, WIDE);
                LOAD(4, looked[0][p + 1], WIDE);
                UNSIGNED_SIGNED(1, 4, 7);
                LOAD(5, looked[1][p + 1], WIDE);
                UNSIGNED_SIGNED(3, 5, 7);
            }
            STORE(0, dots[0][0], WIDE);
            STORE(1, dots[0][1], WIDE);
            STORE(2, dots[1][0], WIDE);
            STORE(3, dots[1][1], WIDE);
            const reals scale = load_reals(m->turned.scale + token * w->runs + b * TILE);
            for (int64_t r = 0; r < PAIR * TILE; r++)
                sum[r] += to_reals(dots[r / TILE][0][r % TILE] + dots[r / TILE][1][r % TILE]) * scale;
            code += bits * wide;
            x += TILE * PLANES * WIDE;
        }
        const reals total = load_reals(m->turned.segment_sum + token * w->segments + segment * TILE);
        for (int64_t r = 0; r < rows; r++) {
            const reals step = (reals){0} + w->step[own + r * w->segments], low = (reals){0} + w->low[own + r * w->segments];
            answer[r] += step * sum[r] + low * total;
        }
    }
    const int64_t left = m->tokens - token, tokens = left < TILE ? left : TILE;
    const float *const all = (const float *)answer;
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t r = 0; r < rows; r++)
            m->out[(token + t) * w->rows + first + r] = all[r * TILE + t];
}

#define OF_BITS(BITS)                                                                                                  \
    static void pair_##BITS(const Product *m, int64_t first, int64_t rows, int64_t token)                              \
    {                                                                                                                  \
        pair_of(m, first, rows, token, BITS);                                                                          \
    }
OF_BITS(1) OF_BITS(2) OF_BITS(3) OF_BITS(4) OF_BITS(5) OF_BITS(6)

void table_rows_amx(const Product *m, int64_t first, int64_t last)
{
    static void (*const of_bits[])(const Product *, int64_t, int64_t, int64_t) = {pair_1, pair_2, pair_3,
                                                                                  pair_4, pair_5, pair_6};
    if (!reads_turned_amx(m->weight, m->tokens)) {
        table_rows_avx512(m, first, last);
        return;
    }
    Shapes shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        shapes.bytes[i] = WIDE;
        shapes.rows[i] = TILE;
    }
    CONFIGURE(shapes);
    for (int64_t from = first; from < last; from += PAIR * TILE)
        for (int64_t t = 0; t < m->tokens; t += TILE)
            of_bits[m->weight->bits - 1](m, from, last - from < PAIR * TILE ? last - from : PAIR * TILE, t);
    RELEASE();
}

/* Two tiles of up to 16 tokens, the first of them `token`; where `both` is 0, the second is the first again. */
ALWAYS void tiles_of(const Product *m, int64_t tile, int64_t both, int64_t token, const int bits, const int looked)
{
    const isoloss_weight *const v = m->weight;
    const int64_t ahead = ahead_of(PAIR * v->row_bytes), left = m->tokens - token, tokens = left < TILE ? left : TILE;
    const uint8_t *code = v->codes + tile * v->row_bytes;
    const int64_t beside = both ? v->row_bytes : 0, other = both ? TILE * v->segments : 0;
    const int8_t *const x0 = m->x.codes + token * v->width;
    const bytes mask = all_bytes((uint8_t)((1 << bits) - 1));
    const bytes table = looked ? load_bytes(v->table) : mask;
    const int32_t times = (int32_t)v->times, offset = (int32_t)v->offset;
    bytes w[PAIR][MOST_BLOCKS * PLANES];
    whole dots[PAIR][2][TILE];
    reals answer[PAIR][TILE] = {{{0}}};
    for (int64_t run = 0; run < v->runs; run++) {
        const int blocks = (v->count[run] + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS;
        for (int i = 0; i < PAIR; i++) {
            const uint8_t *from = code + i * beside;
            for (int b = 0; b < blocks; b++, from += bits * WIDE) {
                bytes in[8];
UNROLLED(8)
                for (int k = 0; k < bits; k++) {
                    in[k] = load_bytes(from + k * WIDE);
                    __builtin_prefetch(from + ahead + k * WIDE, 0, 2);
                }
UNROLLED(8)
                for (int p = 0; p < PLANES; p++)
                    w[i][b * PLANES + p] = looked ? look(table, plane(in, bits, p), bits) : plane(in, bits, p) & mask;
            }
        }
        code += blocks * bits * WIDE;
        const int8_t *const x = x0 + v->place[run];
        ZERO(0);
        ZERO(1);
        ZERO(2);
        ZERO(3);
        for (int b = 0; b + 1 < blocks; b += 2) {
            LOAD(4, x + b * BLOCK_COLUMNS, v->width);
            if (b & 2) {
                LOAD(6, &w[0][b * PLANES], WIDE);
                SIGNED_UNSIGNED(1, 4, 6);
                LOAD(6, &w[1][b * PLANES], WIDE);
                SIGNED_UNSIGNED(3, 4, 6);
            } else {
                LOAD(6, &w[0][b * PLANES], WIDE);
                SIGNED_UNSIGNED(0, 4, 6);
                LOAD(6, &w[1][b * PLANES], WIDE);
                SIGNED_UNSIGNED(2, 4, 6);
            }
        }
        if (blocks & 1) {
            const int b = blocks - 1;
            LOAD(5, x + b * BLOCK_COLUMNS, v->width);
            LOAD(7, &w[0][b * PLANES], WIDE);
            SIGNED_UNSIGNED(0, 5, 7);
            LOAD(7, &w[1][b * PLANES], WIDE);
            SIGNED_UNSIGNED(2, 5, 7);
        }
        STORE(0, dots[0][0], WIDE);
        STORE(1, dots[0][1], WIDE);
        STORE(2, dots[1][0], WIDE);
        STORE(3, dots[1][1], WIDE);
        for (int i = 0; i < PAIR; i++) {
            const int64_t own = (tile * v->segments + v->segment[run]) * TILE + i * other;
            const reals scale = scales_of(v, own);
            const whole zero = v->zero ? zeros_of(v, own) : (whole){0};
            for (int64_t t = 0; t < tokens; t++) {
                const int64_t at = (token + t) * v->runs + run;
                const whole level = (dots[i][0][t] + dots[i][1][t]) * times + (offset - zero) * m->x.sum[at];
                answer[i][t] += to_reals(level) * (scale * m->x.scale[at]);
            }
        }
    }
    for (int64_t i = 0; i <= both; i++) {
        const int64_t row = (tile + i) * TILE, rows = v->rows - row;
        for (int64_t t = 0; t < tokens; t++)
            memcpy(m->out + (token + t) * v->rows + row, &answer[i][t], (size_t)(rows < TILE ? rows : TILE) * sizeof(float));
    }
}

#define TILES_OF_BITS(BITS)                                                                                            \
    static void tiles_##BITS(const Product *m, int64_t tile, int64_t both, int64_t token)                              \
    {                                                                                                                  \
        if (BITS <= 4 && m->weight->table)                                                                             \
            tiles_of(m, tile, both, token, BITS, BITS <= 4);                                                           \
        else                                                                                                           \
            tiles_of(m, tile, both, token, BITS, 0);                                                                   \
    }
TILES_OF_BITS(1) TILES_OF_BITS(2) TILES_OF_BITS(3) TILES_OF_BITS(4)
TILES_OF_BITS(5) TILES_OF_BITS(6) TILES_OF_BITS(7) TILES_OF_BITS(8)

void level_rows_amx(const Product *m, int64_t first, int64_t last)
{
    static void (*const of_bits[])(const Product *, int64_t, int64_t, int64_t) = {tiles_1, tiles_2, tiles_3, tiles_4,
                                                                                  tiles_5, tiles_6, tiles_7, tiles_8};
    if (m->tokens < LEVELS_FROM) {
        level_rows_avx512(m, first, last);
        return;
    }
    int64_t shaped = 0;
    for (int64_t t = 0; t < m->tokens; t += TILE) {
        const int64_t tokens = m->tokens - t < TILE ? m->tokens - t : TILE;
        if (tokens != shaped) {
            Shapes shapes = {.palette = 1};
            for (int i = 0; i < 8; i++) {
                shapes.bytes[i] = i == 5 ? WIDE / 2 : WIDE;
                shapes.rows[i] = (uint8_t)(i < 6 ? tokens : i == 6 ? TILE : TILE / 2);
            }
            CONFIGURE(shapes);
            shaped = tokens;
        }
        for (int64_t tile = first / TILE; tile * TILE < last; tile += PAIR)
            of_bits[m->weight->bits - 1](m, tile, (tile + 1) * TILE < last, t);
    }
    RELEASE();
}

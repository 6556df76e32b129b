/* Sparse matrices of a pattern, times float32 activations; compiled once per set (SET).
 *
 * n-of-m: of m neighbouring columns of a row, n are kept; 16 numbers and their 16 places, a stream of bits, are one step.
 * Blocks: of 16 rows, blocks of neighbouring columns are kept, in compressed rows; rows are the lanes.
 */
#include "reals.h"

enum { REACH = 2 * LANES_OUT };

/* Activations of 16 kept numbers: their columns are within 32 of `start` (near), or anywhere. */
ALWAYS reals picked(const float *x, int64_t start, int64_t columns, whole column, const int near)
{
#if defined(__AVX512F__)
    if (near) {
        const reals low = some_reals(x + start, columns - start);
        const int64_t left = columns - start - LANES_OUT;
        const reals high = left > 0 ? some_reals(x + start + LANES_OUT, left) : everywhere(0);
        return (reals)_mm512_permutex2var_ps((__m512)low, (__m512i)(column - (int32_t)start), (__m512)high);
    }
#else
    (void)start;
    (void)columns;
    (void)near;
#endif
    return gathered(x, column);
}

ALWAYS void row_of(const Reals *m, const Stream *s, int64_t r, const Tokens *t, const int count, const int type,
                   const int near)
{
    const uint8_t *code = m->code + r * m->kept / LANES_OUT * 2 * s->bits;
    const int32_t last = (int32_t)m->columns - 1;
    reals sum[MOST_TOKENS] = {{0}};
    for (int64_t k = 0; k < m->kept; k += LANES_OUT) {
        whole first;
        memcpy(&first, m->index + k, sizeof first);
        whole column = first + sixteen(s, code);
        column = ((column < last) & column) | ((column >= last) & last); /* damaged places end at the last column */
        code += 2 * s->bits;
        __builtin_prefetch((const uint8_t *)m->value + (r * m->kept + k) * (type == FLOAT_TYPE ? 4 : 2) + AHEAD);
        const reals w = some_of(m->value, r * m->kept + k, LANES_OUT, type);
UNROLLED(8)
        for (int i = 0; i < count; i++)
            sum[i] = multiplied(w, picked(t->x + i * t->columns, m->index[k], m->columns, column, near), sum[i]);
    }
    for (int i = 0; i < count; i++)
        t->out[i * t->stride + r] = total(sum[i]);
}

ALWAYS void tile_of(const Reals *m, int64_t tile, const Tokens *t, const int count, const int type)
{
    reals even[MOST_TOKENS] = {{0}}, odd[MOST_TOKENS] = {{0}};
    for (int64_t b = m->start[tile]; b < m->start[tile + 1]; b++) {
        const int64_t first = m->index[b] * m->group, left = m->columns - first;
        const int64_t here = left < m->group ? left : m->group;
        const int64_t at = b * m->group * TILE;
        int64_t c = 0;
        for (; c + 2 <= here; c += 2) {
            __builtin_prefetch((const uint8_t *)m->value + (at + c * TILE) * (type == FLOAT_TYPE ? 4 : 2) + AHEAD);
            const reals one = some_of(m->value, at + c * TILE, TILE, type);
            const reals two = some_of(m->value, at + (c + 1) * TILE, TILE, type);
UNROLLED(8)
            for (int i = 0; i < count; i++) {
                const float *x = t->x + i * t->columns + first + c;
                even[i] = multiplied(one, everywhere(x[0]), even[i]);
                odd[i] = multiplied(two, everywhere(x[1]), odd[i]);
            }
        }
        if (c < here) {
            const reals one = some_of(m->value, at + c * TILE, TILE, type);
            for (int i = 0; i < count; i++)
                even[i] = multiplied(one, everywhere(t->x[i * t->columns + first + c]), even[i]);
        }
    }
    for (int i = 0; i < count; i++)
        put_tile(m, t, tile, i, even[i] + odd[i]);
}

typedef void a_row(const Reals *, const Stream *, int64_t, const Tokens *);
typedef void a_tile(const Reals *, int64_t, const Tokens *);

#define OF_COUNT(NAME, TYPE, COUNT)                                                                                    \
    static void near_##NAME##_##COUNT(const Reals *m, const Stream *s, int64_t r, const Tokens *t)                     \
    {                                                                                                                  \
        row_of(m, s, r, t, COUNT, TYPE, 1);                                                                            \
    }                                                                                                                  \
    static void far_##NAME##_##COUNT(const Reals *m, const Stream *s, int64_t r, const Tokens *t)                      \
    {                                                                                                                  \
        row_of(m, s, r, t, COUNT, TYPE, 0);                                                                            \
    }                                                                                                                  \
    static void tile_##NAME##_##COUNT(const Reals *m, int64_t tile, const Tokens *t)                                   \
    {                                                                                                                  \
        tile_of(m, tile, t, COUNT, TYPE);                                                                              \
    }
#if defined(ISOLOSS_WRITTEN_OUT)
#define OF_TYPE(NAME, TYPE)                                                                                            \
    OF_COUNT(NAME, TYPE, 1) OF_COUNT(NAME, TYPE, 2) OF_COUNT(NAME, TYPE, 4) OF_COUNT(NAME, TYPE, 8)
#define ALL(NAME) {NAME##_1, NAME##_2, NAME##_4, NAME##_8}
#else
#define OF_TYPE(NAME, TYPE) OF_COUNT(NAME, TYPE, 1)
#define ALL(NAME) {NAME##_1, NAME##_1, NAME##_1, NAME##_1}
#endif
OF_TYPE(float, FLOAT_TYPE)
OF_TYPE(half, HALF_TYPE)
OF_TYPE(brain, BRAIN_TYPE)
static a_row *const rows_made[2][3][4] = {{ALL(far_float), ALL(far_half), ALL(far_brain)},
                                          {ALL(near_float), ALL(near_half), ALL(near_brain)}};
static a_tile *const tiles_made[3][4] = {ALL(tile_float), ALL(tile_half), ALL(tile_brain)};

real_product NAMED(n_of_m_, SET);

int32_t NAMED(n_of_m_, SET)(const Reals *m, const float *x, int64_t tokens, int64_t first, int64_t last, float *out,
                            int64_t stride)
{
    const Stream s = stream_of(m->bits);
    /* Whether 16 kept numbers, from the first of their columns on, lie within two registers. */
    const int near = LANES_OUT % m->n == 0 && LANES_OUT / m->n * m->group <= REACH;
    for (int64_t r = first; r < last; r++)
        for (int64_t token = 0; token < tokens;) {
            const int power = WRITTEN(power_of_tokens(tokens - token));
            const Tokens t = tokens_at(m, x, token, out, stride);
            rows_made[near][m->type][power](m, &s, r, &t);
            token += 1 << power;
        }
    return 0;
}

real_product NAMED(blocks_, SET);

int32_t NAMED(blocks_, SET)(const Reals *m, const float *x, int64_t tokens, int64_t first, int64_t last, float *out,
                            int64_t stride)
{
    for (int64_t tile = first / TILE; tile * TILE < last; tile++)
        for (int64_t token = 0; token < tokens;) {
            const int power = WRITTEN(power_of_tokens(tokens - token));
            const Tokens t = tokens_at(m, x, token, out, stride);
            tiles_made[m->type][power](m, tile, &t);
            token += 1 << power;
        }
    return 0;
}

/* Codes that stand for several neighbouring columns of a row, times float32 activations; compiled once per set (SET).
 *
 * The codes of 16 rows for one vector of columns are 2 * bits bytes, those of the next rows behind them. Of one token the
 * products of a small codebook with a few vectors of its activations are found first, and each code looks one up; for
 * several, rows are the lanes and numbers of the codebook are gathered. Vectors of a large codebook are multiplied as they
 * come.
 */
#include "reals.h"

#include <stdlib.h>

enum { MOST_BITS = 12, NEAR_BITS = 10, VECTORS = 4, PAYS = 28, BESIDE = 16, AT_ONCE = 4 };

/* Products of all vectors of the codebook, (length, entries) floats, with the activations of one vector of columns. */
static void products_of(const float *book, int64_t entries, const float *x, int64_t columns, float *out)
{
    for (int64_t k = 0; k < entries; k += LANES_OUT) {
        reals sum = {0};
        for (int64_t d = 0; d < columns; d++)
            sum = multiplied(load_reals(book + d * entries + k), everywhere(x[d]), sum);
        memcpy(out + k, &sum, sizeof sum);
    }
}

/* Some vectors of columns, all rows first to last; what is there is added to where `adds`. */
ALWAYS void looked_up(const Reals *m, const Stream *s, const float *table, int64_t entries, int64_t vector,
                      const int vectors, int64_t first, int64_t last, float *out, int adds)
{
    const int64_t tiles = (m->rows + TILE - 1) / TILE, step = 2 * s->bits;
    for (int64_t tile = first / TILE; tile * TILE < last; tile++) {
        const int64_t left = m->rows - tile * TILE;
        reals sum = adds ? some_reals(out + tile * TILE, left) : everywhere(0);
UNROLLED(4)
        for (int v = 0; v < vectors; v++) {
            const uint8_t *code = m->code + ((vector + v) * tiles + tile) * step;
            __builtin_prefetch(code + AHEAD);
            sum += gathered(table + v * entries, sixteen(s, code));
        }
        memcpy(out + tile * TILE, &sum, (size_t)(left < TILE ? left : TILE) * sizeof(float));
    }
}

/* The codebook as (length, entries) floats, entries a multiple of 16, with room for products of some vectors behind. */
static float *book_of(const Reals *m, int64_t entries)
{
    const int64_t length = m->group;
    float *const book = malloc((size_t)((length + VECTORS) * entries) * sizeof *book);
    if (book)
        memset(book, 0, (size_t)(length * entries) * sizeof *book);
    for (int64_t k = 0; book && k < 1 << m->bits; k++)
        for (int64_t d = 0; d < length; d++)
            book[d * entries + k] = half_to_float(((const uint16_t *)m->value)[k * length + d]);
    return book;
}

static int64_t entries_of(const Reals *m) { return ((1 << m->bits) + LANES_OUT - 1) / LANES_OUT * LANES_OUT; }

static int32_t by_tables(const Reals *m, const float *x, int64_t tokens, int64_t first, int64_t last, float *out,
                         int64_t stride)
{
    const int64_t length = m->group, count = (m->columns + length - 1) / length, entries = entries_of(m);
    float *const book = book_of(m, entries);
    if (!book)
        return 1;
    float *const table = book + length * entries;
    const Stream s = stream_of(m->bits);
    for (int64_t token = 0; token < tokens; token++)
        for (int64_t v = 0; v < count;) {
            const int vectors = m->bits <= NEAR_BITS && count - v >= VECTORS ? VECTORS : 1;
            for (int k = 0; k < vectors; k++) {
                const int64_t start = (v + k) * length, left = m->columns - start;
                products_of(book, entries, x + token * m->columns + start, left < length ? left : length,
                            table + k * entries);
            }
            if (vectors == VECTORS)
                looked_up(m, &s, table, entries, v, VECTORS, first, last, out + token * stride, v > 0);
            else
                looked_up(m, &s, table, entries, v, 1, first, last, out + token * stride, v > 0);
            v += vectors;
        }
    free(book);
    return 0;
}

/* Some tiles, whose codes for one vector lie side by side. */
ALWAYS void tiles_of(const Reals *m, const Stream *s, const float *book, int64_t entries, int64_t tile, int64_t some,
                     const Tokens *t, const int count)
{
    const int64_t length = m->group, vectors = (m->columns + length - 1) / length, tiles = (m->rows + TILE - 1) / TILE;
    reals sum[BESIDE][MOST_TOKENS] = {{{0}}};
    for (int64_t v = 0; v < vectors; v++) {
        const uint8_t *code = m->code + (v * tiles + tile) * 2 * s->bits;
        const int64_t start = v * length, left = m->columns - start, here = left < length ? left : length;
        for (int64_t k = 0; k < some; k++) {
            const whole codes = sixteen(s, code + k * 2 * s->bits);
            int64_t d = 0;
            for (; d + AT_ONCE <= here; d += AT_ONCE) {
                reals w[AT_ONCE];
UNROLLED(4)
                for (int j = 0; j < AT_ONCE; j++)
                    w[j] = gathered(book + (d + j) * entries, codes);
UNROLLED(8)
                for (int i = 0; i < count; i++)
UNROLLED(4)
                    for (int j = 0; j < AT_ONCE; j++)
                        sum[k][i] = multiplied(w[j], everywhere(t->x[i * t->columns + start + d + j]), sum[k][i]);
            }
            for (; d < here; d++) {
                const reals w = gathered(book + d * entries, codes);
                for (int i = 0; i < count; i++)
                    sum[k][i] = multiplied(w, everywhere(t->x[i * t->columns + start + d]), sum[k][i]);
            }
        }
    }
    for (int64_t k = 0; k < some; k++)
        for (int i = 0; i < count; i++)
            put_tile(m, t, tile + k, i, sum[k][i]);
}

static int32_t by_columns(const Reals *m, const float *x, int64_t tokens, int64_t first, int64_t last, float *out,
                          int64_t stride)
{
    const int64_t entries = entries_of(m), end = (last + TILE - 1) / TILE;
    float *const book = book_of(m, entries);
    if (!book)
        return 1;
    const Stream s = stream_of(m->bits);
    for (int64_t tile = first / TILE; tile < end; tile += BESIDE)
        for (int64_t token = 0; token < tokens;) {
            const int64_t some = end - tile < BESIDE ? end - tile : BESIDE;
            const int power = power_of_tokens(tokens - token);
            const Tokens t = tokens_at(m, x, token, out, stride);
            if (power == 3)
                tiles_of(m, &s, book, entries, tile, some, &t, 8);
            else if (power == 2)
                tiles_of(m, &s, book, entries, tile, some, &t, 4);
            else
                tiles_of(m, &s, book, entries, tile, some, &t, power + 1);
            token += 1 << power;
        }
    free(book);
    return 0;
}

static int32_t one_by_one(const Reals *m, const float *x, int64_t tokens, int64_t first, int64_t last, float *out,
                          int64_t stride)
{
    const int64_t length = m->group, vectors = (m->columns + length - 1) / length, tiles = (m->rows + TILE - 1) / TILE;
    const Stream s = stream_of(m->bits);
    for (int64_t tile = first / TILE; tile * TILE < last; tile++)
        for (int64_t token = 0; token < tokens; token += MOST_TOKENS) {
            const int64_t count = tokens - token < MOST_TOKENS ? tokens - token : MOST_TOKENS;
            const Tokens t = tokens_at(m, x, token, out, stride);
            reals sum[MOST_TOKENS][TILE] = {{{0}}};
            for (int64_t v = 0; v < vectors; v++) {
                int32_t code[LANES_OUT];
                const whole codes = sixteen(&s, m->code + (v * tiles + tile) * 2 * s.bits);
                memcpy(code, &codes, sizeof code);
                const int64_t start = v * length, left = m->columns - start, here = left < length ? left : length;
                for (int64_t d = 0; d < here; d += LANES_OUT)
                    for (int l = 0; l < TILE; l++) {
                        const reals w = some_of(m->value, code[l] * length + d, here - d, HALF_TYPE);
                        for (int64_t i = 0; i < count; i++)
                            sum[i][l] = multiplied(w, some_reals(t.x + i * t.columns + start + d, here - d), sum[i][l]);
                    }
            }
            for (int i = 0; i < count; i++) {
                float answer[TILE];
                for (int l = 0; l < TILE; l++)
                    answer[l] = total(sum[i][l]);
                put_tile(m, &t, tile, i, load_reals(answer));
            }
        }
    return 0;
}

real_product NAMED(vectors_, SET);

int32_t NAMED(vectors_, SET)(const Reals *m, const float *x, int64_t tokens, int64_t first, int64_t last, float *out,
                             int64_t stride)
{
    const int small = m->bits <= MOST_BITS && (m->group << m->bits) < PAYS * m->rows;
    return (!small ? one_by_one : tokens > 2 ? by_columns : by_tables)(m, x, tokens, first, last, out, stride);
}

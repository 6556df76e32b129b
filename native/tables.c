/* A matrix whose rows have tables of bytes, times activations of 8 bits; compiled once per set (SET).
 *
 * Columns are the lanes: 512 columns of a row are a block of eight planes (bytes.h), and a table of up to 64 bytes is one
 * register. Of the last columns of a segment, fewer than 512, a plane has an eighth. A block's exact products of 16 rows are
 * added up together, so that scales are applied to 16 rows at once.
 */
#include "weights.h"

/* One number of each row. */
ALWAYS reals of_rows(const float *from, int64_t stride, int64_t rows)
{
    reals v;
    if (stride == 1 && rows == TILE) {
        memcpy(&v, from, sizeof v);
        return v;
    }
    float all[TILE] = {0};
    for (int64_t r = 0; r < rows; r++)
        all[r] = from[r * stride];
    memcpy(&v, all, sizeof v);
    return v;
}

/* A block of up to 16 rows: exact products with `count` tokens, lane by lane. */
ALWAYS void block_of(const isoloss_weight *w, const uint8_t *code, int32_t wide, const uint8_t *tables, int64_t stride,
                     int64_t rows, const int8_t *x, sums (*dots)[TILE], const int count, const int bits, const int full)
{
    const int64_t ahead = ahead_of(TILE * w->row_bytes);
    for (int64_t r = 0; r < rows; r++) {
        const lookup table = repeated(tables + r * stride, bits);
        const uint8_t *const from = code + r * w->row_bytes;
UNROLLED(4)
        for (int part = 0; part < WIDE; part += PART) {
            bytes in[8], v[PLANES];
            if (part > 0 && !full && part >= wide)
                break;
UNROLLED(8)
            for (int k = 0; k < bits; k++) {
                in[k] = full ? load_bytes(from + k * WIDE + part) : load_some(from + k * wide + part, wide - part);
                if (full && part == 0)
                    __builtin_prefetch(from + ahead + k * WIDE, 0, 2);
            }
UNROLLED(8)
            for (int p = 0; p < PLANES; p++)
                v[p] = look(table, plane(in, bits, p), bits);
UNROLLED(8)
            for (int t = 0; t < count; t++) {
                sums sum = part ? dots[t][r] : (sums){0};
UNROLLED(8)
                for (int p = 0; p < PLANES; p++)
                    sum = dot(sum, v[p], load_bytes((const uint8_t *)x + t * w->width + p * WIDE + part));
                dots[t][r] = sum;
            }
        }
    }
}

#if defined(ISOLOSS_WRITTEN_OUT) && defined(__AVX512F__)
#define NARROW
/* Where 8 bytes of plane p lie: the 8 bytes of a block they are taken from, `apart` of them a plane, and how far to move them.
 * Above 3 bits the last ones come from a second place, as plane() of bytes.h has them. */
ALWAYS void places_of(int bits, int apart, int p, int of, int64_t *first, int64_t *right, int64_t *second, int64_t *left,
                      int64_t *back)
{
    const int own = bits == 1 ? 0 : bits == 2 ? p / 4 : bits == 3 && p > 5 ? p - 6 : p / 2;
    const int other = bits == 3 ? 2 : bits == 6 ? 4 + p / 4 : 4;
    const int by = bits == 3 ? p - 2 : bits == 6 ? 2 * (p % 4) - 4 : p - 4;
    *first = own * apart + of;
    *right = bits == 1 ? p : bits == 2 ? 2 * (p % 4) : bits == 3 ? (p < 6 ? 3 * (p % 2) : 6) : 4 * (p % 2);
    *second = other * apart + of;
    *left = by < 0 ? -by : 0;
    *back = by > 0 ? by : 0;
}

/* Codes of as many whole planes as 64 bytes hold, the first of them `from`; a plane has 8, 16 or 32 bytes. */
ALWAYS bytes planes_of(bytes low, bytes high, int bits, int wide, int from)
{
    const int apart = wide / 8;
    longs first = {0}, right = {0}, second = {0}, left = {0}, back = {0}, mask = {0};
UNROLLED(8)
    for (int l = 0; l < 8; l++) {
        const int p = from + l / apart;
        int64_t at[5];
        places_of(bits, apart, p, l % apart, at, at + 1, at + 2, at + 3, at + 4);
        first[l] = at[0], right[l] = at[1], second[l] = at[2], left[l] = at[3], back[l] = at[4];
        mask[l] = bits == 3 ? (p < 6 ? -1 : 0x0303030303030303) : 0x0f0f0f0f0f0f0f0f;
    }
    typedef uint64_t places __attribute__((vector_size(WIDE)));
    const longs a = (longs)((places)__builtin_shuffle((longs)low, (longs)high, first) >> (places)right);
    if (bits < 3 || bits == 4)
        return (bytes)a;
    const longs b = (longs)((places)(__builtin_shuffle((longs)low, (longs)high, second) << left) >> (places)back);
    return (bytes)_mm512_ternarylogic_epi64((__m512i)mask, (__m512i)a, (__m512i)b, 0xCA);
}

/* A block of planes of 8, 16 or 32 bytes (`wide`): several at once. */
ALWAYS void narrow_block_of(const isoloss_weight *w, const uint8_t *code, int wide, const uint8_t *tables, int64_t stride,
                            int64_t rows, const int8_t *x, whole (*dots)[TILE], const int count, const int bits)
{
    const int64_t ahead = ahead_of(TILE * w->row_bytes);
    const int vectors = wide / 8;
    bytes activations[MOST_TOKENS][4];
    for (int t = 0; t < count; t++)
        for (int p = 0; p < PLANES; p++)
            memcpy((uint8_t *)activations[t] + p * wide, x + t * w->width + p * WIDE, (size_t)wide);
    for (int64_t r = 0; r < rows; r++) {
        const bytes table = repeated(tables + r * stride, bits);
        const uint8_t *const from = code + r * w->row_bytes;
        const bytes low = load_some(from, bits * wide);
        const bytes high = bits * wide > WIDE ? load_some(from + WIDE, bits * wide - WIDE) : low;
        bytes v[4];
        __builtin_prefetch(from + ahead, 0, 2);
UNROLLED(4)
        for (int i = 0; i < vectors; i++)
            v[i] = look(table, planes_of(low, high, bits, wide, i * PLANES / vectors), bits);
UNROLLED(8)
        for (int t = 0; t < count; t++) {
            whole sum = {0};
UNROLLED(4)
            for (int i = 0; i < vectors; i++)
                sum = dot(sum, v[i], activations[t][i]);
            dots[t][r] = sum;
        }
    }
}
#endif

/* Up to 16 rows of `count` tokens, the first of them `token`. */
ALWAYS void tile_of(const Product *m, int64_t first, int64_t rows, int64_t token, const int count, const int bits)
{
    const isoloss_weight *const w = m->weight;
    const uint8_t *code = w->codes + first * w->row_bytes;
    const int8_t *x = m->x.codes + token * w->width;
    sums dots[MOST_TOKENS][TILE];
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
#if defined(NARROW)
            else if (wide == 8)
                narrow_block_of(w, code, 8, tables, w->segments << bits, rows, x, dots, count, bits);
            else if (wide == 16)
                narrow_block_of(w, code, 16, tables, w->segments << bits, rows, x, dots, count, bits);
            else if (wide == 32 && bits <= 4)
                narrow_block_of(w, code, 32, tables, w->segments << bits, rows, x, dots, count, bits);
#endif
            else
                block_of(w, code, wide, tables, w->segments << bits, rows, x, dots, count, bits, 0);
            code += bits * wide;
            x += PLANES * WIDE;
            for (int t = 0; t < count; t++) {
                const int64_t at = (token + t) * w->runs + b;
                sum[t] += to_reals(totals(dots[t]) + TAKEN * m->x.sum[at]) * m->x.scale[at];
            }
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
#define OF_BITS(BITS) WITH_COUNTS(OF_COUNT, BITS)
OF_BITS(1) OF_BITS(2) OF_BITS(3) OF_BITS(4) OF_BITS(5) OF_BITS(6)
#define NAME(BITS, COUNT) tile_##BITS##_##COUNT,
#define ALL(BITS) {WITH_COUNTS(NAME, BITS)}
static rows_product *const made[6][5] = {ALL(1), ALL(2), ALL(3), ALL(4), ALL(5), ALL(6)};
#else
/* One for all: a product per bits and tokens takes a compiler minutes where parts are no registers. */
static void tile_any(const Product *m, int64_t first, int64_t rows, int64_t token, int count, int bits)
{
    tile_of(m, first, rows, token, count, bits);
}
#endif

static rows_product *product_of(int64_t bits, int count)
{
#if defined(ISOLOSS_WRITTEN_OUT)
    return made[bits - 1][place_of_count(count)];
#else
    (void)bits;
    (void)count;
    return tile_any;
#endif
}

void NAMED(table_rows_, SET)(const Product *m, int64_t first, int64_t last);

void NAMED(table_rows_, SET)(const Product *m, int64_t first, int64_t last)
{
    for (int64_t from = first; from < last; from += TILE)
        for (int64_t t = 0; t < m->tokens;) {
            const int count = count_of(m->tokens - t);
            product_of(m->weight->bits, count)(m, from, last - from < TILE ? last - from : TILE, t, count,
                                               (int)m->weight->bits);
            t += count;
        }
}

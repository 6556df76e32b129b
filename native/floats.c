/* A matrix whose rows have tables of up to 16 numbers, times float32 activations; compiled once per set (SET).
 *
 * Codes lie as in tables.c. A block of activations is eight planes of four times 16: those that byte i of the 16 lanes of
 * plane p stands before.
 */
#include "bytes.h"
#include "isoloss.h"

#ifndef SET
#define SET plain
#endif
#define JOINED(a, b) a##b
#define NAMED(a, b) JOINED(a, b)

enum { AHEAD = 2048, ENTRIES = 16, BYTES = 4 };

typedef struct {
    const uint8_t *codes;
    const uint16_t *table;
    int64_t row_bytes;
    const int32_t *wide, *segment;
    int64_t blocks, segments;
    const float *x;
    float *out;
    int64_t out_stride;
} Product;

ALWAYS reals load_reals(const float *from)
{
    reals v;
    memcpy(&v, from, sizeof v);
    return v;
}

/* sum + entry of byte i of each lane, times x */
ALWAYS reals add_products(reals sum, reals table, bytes codes, int i, reals x, int bits)
{
#if defined(__AVX512F__)
    (void)bits;
    const __m512i index = _mm512_srli_epi32((__m512i)codes, (unsigned)(8 * i));
    return (reals)_mm512_fmadd_ps(_mm512_permutexvar_ps(index, (__m512)table), (__m512)x, (__m512)sum);
#else
    float entry[ENTRIES], product[LANES_OUT];
    uint8_t code[WIDE];
    memcpy(entry, &table, sizeof entry);
    memcpy(code, &codes, sizeof code);
    for (int l = 0; l < LANES_OUT; l++)
        product[l] = entry[code[4 * l + i] & ((1 << bits) - 1)] * x[l];
    return sum + load_reals(product);
#endif
}

ALWAYS reals table_of(const uint16_t *from, int bits)
{
    float all[ENTRIES];
    for (int i = 0; i < ENTRIES; i++)
        all[i] = half_to_float(from[i & ((1 << bits) - 1)]);
    return load_reals(all);
}

ALWAYS void rows_of(const Product *m, int64_t first, int64_t last, int64_t token, const int bits)
{
    const float *const x0 = m->x + token * m->blocks * PLANES * WIDE;
    for (int64_t r = first; r < last; r++) {
        const uint8_t *code = m->codes + r * m->row_bytes;
        reals sum[BYTES] = {{0}}, table = {0};
        int32_t segment = -1;
        for (int64_t b = 0; b < m->blocks; b++) {
            if (m->segment[b] != segment) {
                segment = m->segment[b];
                table = table_of(m->table + ((r * m->segments + segment) << bits), bits);
            }
            const int32_t wide = m->wide[b];
            bytes in[8];
            if (wide == WIDE) {
UNROLLED(4)
                for (int k = 0; k < bits; k++) {
                    in[k] = load_bytes(code + k * WIDE);
                    __builtin_prefetch(code + k * WIDE + AHEAD);
                }
            } else
UNROLLED(4)
                for (int k = 0; k < bits; k++)
                    in[k] = load_some(code + k * wide, wide);
            code += bits * wide;
            const float *x = x0 + b * PLANES * WIDE;
UNROLLED(8)
            for (int p = 0; p < PLANES; p++) {
                const bytes codes = plane(in, bits, p);
UNROLLED(4)
                for (int i = 0; i < BYTES; i++)
                    sum[i] = add_products(sum[i], table, codes, i, load_reals(x + p * WIDE + i * LANES_OUT), bits);
            }
        }
        m->out[token * m->out_stride + r] = total((sum[0] + sum[1]) + (sum[2] + sum[3]));
    }
}

#define OF_BITS(BITS)                                                                                                  \
    static void rows_##BITS(const Product *m, int64_t first, int64_t last, int64_t token)                              \
    {                                                                                                                  \
        rows_of(m, first, last, token, BITS);                                                                          \
    }
OF_BITS(1)
OF_BITS(2)
OF_BITS(3)
OF_BITS(4)

void NAMED(table_floats_, SET)(const uint8_t *codes, int32_t bits, int64_t row_bytes, const uint16_t *table,
                               const int32_t *wide, const int32_t *segment, int64_t blocks, int64_t segments,
                               const float *x, int64_t tokens, int64_t first, int64_t last, float *out,
                               int64_t out_stride);

void NAMED(table_floats_, SET)(const uint8_t *codes, int32_t bits, int64_t row_bytes, const uint16_t *table,
                               const int32_t *wide, const int32_t *segment, int64_t blocks, int64_t segments,
                               const float *x, int64_t tokens, int64_t first, int64_t last, float *out,
                               int64_t out_stride)
{
    static void (*const of_bits[])(const Product *, int64_t, int64_t, int64_t) = {rows_1, rows_2, rows_3, rows_4};
    const Product m = {codes, table, row_bytes, wide, segment, blocks, segments, x, out, out_stride};
    enum { NEAR = 16 };
    const int64_t step_rows = tokens > 1 ? NEAR : last - first;
    for (int64_t from = first; from < last; from += step_rows)
        for (int64_t t = 0; t < tokens; t++)
            of_bits[bits - 1](&m, from, last - from < step_rows ? last : from + step_rows, t);
}

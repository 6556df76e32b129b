/* A matrix whose rows have tables of up to 16 numbers, times float32 activations; compiled once per set (SET).
 *
 * Codes lie as in tables.c. A block of activations is eight planes of four times 16: those that byte i of the 16 lanes of
 * plane p stands before.
 */
#include "bytes.h"
#include "kernels.h"

enum { AHEAD = 2048, ENTRIES = 16, BYTES = 4 };

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
    const isoloss_weight *const w = m->weight;
    const uint16_t *const tables = w->table;
    const float *const x0 = m->floats + token * w->runs * PLANES * WIDE;
    for (int64_t r = first; r < last; r++) {
        const uint8_t *code = w->codes + r * w->row_bytes;
        reals sum[BYTES] = {{0}}, table = {0};
        int32_t segment = -1;
        for (int64_t b = 0; b < w->runs; b++) {
            if (w->segment[b] != segment) {
                segment = w->segment[b];
                table = table_of(tables + ((r * w->segments + segment) << bits), bits);
            }
            const int32_t wide = w->wide[b];
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
        m->out[token * w->rows + r] = total((sum[0] + sum[1]) + (sum[2] + sum[3]));
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

void NAMED(float_rows_, SET)(const Product *m, int64_t first, int64_t last);
void NAMED(order_tokens_, SET)(const isoloss_weight *w, const float *x, float *to, int64_t first, int64_t last);

void NAMED(float_rows_, SET)(const Product *m, int64_t first, int64_t last)
{
    static void (*const of_bits[])(const Product *, int64_t, int64_t, int64_t) = {rows_1, rows_2, rows_3, rows_4};
    enum { NEAR = 16 };
    const int64_t step_rows = m->tokens > 1 ? NEAR : last - first;
    for (int64_t from = first; from < last; from += step_rows)
        for (int64_t t = 0; t < m->tokens; t++)
            of_bits[m->weight->bits - 1](m, from, last - from < step_rows ? last : from + step_rows, t);
}

void NAMED(order_tokens_, SET)(const isoloss_weight *w, const float *x, float *to, int64_t first, int64_t last)
{
    memset(to + first * w->runs * PLANES * WIDE, 0, (size_t)((last - first) * w->runs * PLANES * WIDE) * sizeof *to);
    for (int64_t t = first; t < last; t++)
        for (int64_t b = 0; b < w->runs; b++) {
            const float *const from = x + t * w->columns + w->start[b];
            float *const block = to + (t * w->runs + b) * PLANES * WIDE;
            const int32_t wide = w->wide[b], count = w->count[b];
            for (int32_t done = 0, p = 0; done < count; done += wide, p++)
                for (int32_t i = 0; i < wide && done + i < count; i++)
                    block[p * WIDE + i % BYTES * LANES_OUT + i / BYTES] = from[done + i];
        }
}

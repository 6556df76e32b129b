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

typedef float floats __attribute__((vector_size(PART)));

ALWAYS floats load_floats(const float *from)
{
    floats v;
    memcpy(&v, from, sizeof v);
    return v;
}

/* sum + entry of byte i of each lane, times x */
ALWAYS floats add_products(floats sum, reals table, bytes codes, int i, floats x, int bits)
{
#if defined(__AVX512F__)
    (void)bits;
    const __m512i index = _mm512_srli_epi32((__m512i)codes, (unsigned)(8 * i));
    return (reals)_mm512_fmadd_ps(_mm512_permutexvar_ps(index, (__m512)table), (__m512)x, (__m512)sum);
#elif defined(__aarch64__)
    /* The four bytes of a code's entry, all lanes. */
    const sums code = (((sums)codes) >> (8 * i)) & ((1 << bits) - 1), places = code * 0x04040404 + 0x03020100;
    uint8x16x4_t entries;
    memcpy(&entries, &table, sizeof entries);
    return sum + (floats)vqtbl4q_u8(entries, (uint8x16_t)places) * x;
#elif defined(ISOLOSS_AVX2)
    const __m256i index = _mm256_srli_epi32((__m256i)codes, 8 * i);
    __m256 half[2];
    memcpy(half, &table, sizeof half);
    __m256 entry = _mm256_permutevar8x32_ps(half[0], index);
    if (bits == 4)
        entry = _mm256_blendv_ps(entry, _mm256_permutevar8x32_ps(half[1], index),
                                 _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
    return sum + (floats)entry * x;
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

/* A row, of every 64 bytes the part that begins with byte `part`. */
ALWAYS void part_of(const isoloss_weight *w, int64_t r, const float *x, const int part, reals *to, const int bits)
{
    const uint8_t *code = w->codes + r * w->row_bytes + part;
    floats sum[BYTES] = {{0}};
    reals table = {0};
    int32_t segment = -1;
    x += part / BYTES;
    for (int64_t b = 0; b < w->runs; b++) {
        if (w->segment[b] != segment) {
            segment = w->segment[b];
            table = table_of((const uint16_t *)w->table + ((r * w->segments + segment) << bits), bits);
        }
        const int32_t wide = w->wide[b];
        bytes in[8];
        if (wide == WIDE) {
UNROLLED(4)
            for (int k = 0; k < bits; k++) {
                in[k] = load_bytes(code + k * WIDE);
                if (part == 0)
                    __builtin_prefetch(code + k * WIDE + AHEAD);
            }
        } else
UNROLLED(4)
            for (int k = 0; k < bits; k++)
                in[k] = load_some(code + k * wide, wide - part);
        code += bits * wide;
UNROLLED(8)
        for (int p = 0; p < PLANES; p++) {
            const bytes codes = plane(in, bits, p);
UNROLLED(4)
            for (int i = 0; i < BYTES; i++)
                sum[i] = add_products(sum[i], table, codes, i, load_floats(x + p * WIDE + i * LANES_OUT), bits);
        }
        x += PLANES * WIDE;
    }
    for (int i = 0; i < BYTES; i++)
        memcpy((char *)(to + i) + part, sum + i, sizeof sum[i]);
}

ALWAYS void rows_of(const Product *m, int64_t first, int64_t last, int64_t token, const int bits)
{
    const isoloss_weight *const w = m->weight;
    const float *const x = m->floats + token * w->runs * PLANES * WIDE;
    for (int64_t r = first; r < last; r++) {
        reals sum[BYTES];
        for (int part = 0; part < WIDE; part += PART)
            part_of(w, r, x, part, sum, bits);
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

/* Matrices whose numbers become floats as they are read, for products with float32 activations: how they are read. */
#ifndef ISOLOSS_REALS_H
#define ISOLOSS_REALS_H

#include "bytes.h"
#include "kernels.h"

#include <math.h>

enum { AHEAD = 2048, MOST_TOKENS = 8, TILE = LANES_OUT };
enum { FLOAT_TYPE, HALF_TYPE, BRAIN_TYPE, WHOLE_TYPE, POWER_TYPE, SMALL_TYPE };

typedef isoloss_reals Reals;

/* Where loops over tokens are not written out, tokens are taken one by one. */
#if defined(ISOLOSS_WRITTEN_OUT)
#define WRITTEN(power) (power)
#else
#define WRITTEN(power) 0
#endif

/* Of `count` tokens at `x`, a row of `columns` each; their answers go to `out`, `stride` from token to token. */
typedef struct {
    const float *x;
    int64_t columns;
    float *out;
    int64_t stride;
} Tokens;

ALWAYS reals load_reals(const float *from)
{
    reals v;
    memcpy(&v, from, sizeof v);
    return v;
}

/* The first `count` of 16, zeros behind. */
ALWAYS reals some_reals(const float *from, int64_t count)
{
#if defined(__AVX512F__)
    return (reals)_mm512_maskz_loadu_ps(count >= LANES_OUT ? 0xFFFF : (__mmask16)((1 << count) - 1), from);
#else
    if (count >= LANES_OUT)
        return load_reals(from);
    float all[LANES_OUT] = {0};
    memcpy(all, from, (size_t)count * sizeof *all);
    return load_reals(all);
#endif
}

/* The first `count` of 16 numbers of a type from place `at` on, zeros behind. */
ALWAYS reals some_of(const void *value, int64_t at, int64_t count, const int type)
{
    if (type == FLOAT_TYPE)
        return some_reals((const float *)value + at, count);
    const uint16_t *from = (const uint16_t *)value + at;
    if (type == HALF_TYPE)
        return some_halves(from, count);
#if defined(__AVX512BW__)
    const __mmask16 which = count >= LANES_OUT ? 0xFFFF : (__mmask16)((1 << count) - 1);
    const __m256i raw = _mm256_maskz_loadu_epi16(which, from);
    if (type == BRAIN_TYPE)
        return (reals)_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16);
    return (reals)_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(raw));
#else
    uint16_t all[LANES_OUT] = {0};
    if (count < LANES_OUT) {
        memcpy(all, from, (size_t)count * sizeof *all);
        from = all;
    }
#if defined(ISOLOSS_AVX2)
    __m256 half[2];
    for (int i = 0; i < 2; i++) {
        const __m128i raw = _mm_loadu_si128((const __m128i *)from + i);
        half[i] = type == BRAIN_TYPE ? _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16))
                                     : _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(raw));
    }
    reals v;
    memcpy(&v, half, sizeof v);
    return v;
#else
    float out[LANES_OUT];
    if (type == BRAIN_TYPE)
        for (int l = 0; l < LANES_OUT; l++) {
            const uint32_t bits = (uint32_t)from[l] << 16;
            memcpy(out + l, &bits, sizeof bits);
        }
    else
        for (int l = 0; l < LANES_OUT; l++)
            out[l] = (int16_t)from[l];
    return load_reals(out);
#endif
#endif
}

ALWAYS reals multiplied(reals a, reals b, reals sum)
{
#if defined(__AVX512F__)
    return (reals)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#else
    return sum + a * b;
#endif
}

ALWAYS reals everywhere(float one) { return (reals){0} + one; }

/* A power of two as its exponent plus 127. */
ALWAYS float power_of(uint8_t code)
{
    const uint32_t bits = code ? (uint32_t)code << 23 : UINT32_C(1) << 22;
    float out;
    memcpy(&out, &bits, sizeof out);
    return out;
}

/* A float of 4 exponent and 3 mantissa bits, its sign left out. */
ALWAYS float small_of(uint8_t code) { return half_to_float((uint16_t)((code & 127) << 7)) * 256; }

/* 16 scales from place `at` on. */
ALWAYS reals scales_of(const void *scale, int64_t at, int32_t type)
{
    if (type == FLOAT_TYPE || type == HALF_TYPE)
        return type == FLOAT_TYPE ? some_of(scale, at, LANES_OUT, FLOAT_TYPE) : some_of(scale, at, LANES_OUT, HALF_TYPE);
    const uint8_t *from = (const uint8_t *)scale + at;
#if defined(__AVX512BW__)
    const __m128i raw = _mm_loadu_si128((const __m128i *)from);
    if (type == SMALL_TYPE) {
        const __m256i half = _mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_and_si128(raw, _mm_set1_epi8(127))), 7);
        return (reals)_mm512_cvtph_ps(half) * 256;
    }
    const __m512i code = _mm512_cvtepu8_epi32(raw), least = _mm512_set1_epi32(1 << 22);
    return (reals)_mm512_max_epu32(_mm512_slli_epi32(code, 23), least);
#else
    float all[LANES_OUT];
    for (int l = 0; l < LANES_OUT; l++)
        all[l] = type == SMALL_TYPE ? small_of(from[l]) : power_of(from[l]);
    return load_reals(all);
#endif
}

/* How 16 codes of 1 to 16 bits are taken out of a stream of bits. */
typedef struct {
    int bits;
#if defined(__AVX512VBMI__)
    __m512i place, shift, keep;
    __mmask64 bytes;
#endif
} Stream;

ALWAYS Stream stream_of(int bits)
{
    Stream s = {.bits = bits};
#if defined(__AVX512VBMI__)
    uint8_t place[WIDE];
    int32_t shift[LANES_OUT];
    for (int l = 0; l < LANES_OUT; l++) {
        shift[l] = l * bits % 8;
        for (int i = 0; i < 4; i++)
            place[4 * l + i] = (uint8_t)(l * bits / 8 + i);
    }
    memcpy(&s.place, place, sizeof place);
    memcpy(&s.shift, shift, sizeof shift);
    s.keep = _mm512_set1_epi32((1 << bits) - 1);
    s.bytes = ((__mmask64)1 << 2 * bits) - 1;
#endif
    return s;
}

/* The 16 codes in the 2 * bits bytes from `from` on. */
ALWAYS whole sixteen(const Stream *s, const uint8_t *from)
{
#if defined(__AVX512VBMI__)
    const __m512i raw = _mm512_permutexvar_epi8(s->place, _mm512_maskz_loadu_epi8(s->bytes, from));
    return (whole)_mm512_and_si512(_mm512_srlv_epi32(raw, s->shift), s->keep);
#else
    int32_t all[LANES_OUT];
    for (int l = 0; l < LANES_OUT; l++) {
        const int first = l * s->bits, last = first + s->bits - 1;
        uint32_t code = 0;
        for (int byte = first / 8; byte <= last / 8; byte++)
            code |= (uint32_t)from[byte] << (8 * (byte - first / 8));
        all[l] = (int32_t)(code >> first % 8 & ((1u << s->bits) - 1));
    }
    whole v;
    memcpy(&v, all, sizeof v);
    return v;
#endif
}

/* The numbers of `table` at 16 places. */
ALWAYS reals gathered(const float *table, whole at)
{
#if defined(__AVX512F__)
    return (reals)_mm512_i32gather_ps((__m512i)at, table, 4);
#else
    float all[LANES_OUT];
    for (int l = 0; l < LANES_OUT; l++)
        all[l] = table[at[l]];
    return load_reals(all);
#endif
}

/* The next 8, 4, 2 or 1 of so many tokens, as a power of two. */
ALWAYS int power_of_tokens(int64_t left) { return left >= 8 ? 3 : left >= 4 ? 2 : left >= 2; }

ALWAYS Tokens tokens_at(const Reals *m, const float *x, int64_t token, float *out, int64_t stride)
{
    return (Tokens){x + token * m->columns, m->columns, out + token * stride, stride};
}

/* Answers of a tile's rows, as many as there are. */
ALWAYS void put_tile(const Reals *m, const Tokens *t, int64_t tile, int token, reals answer)
{
    const int64_t left = m->rows - tile * TILE;
    memcpy(t->out + token * t->stride + tile * TILE, &answer, (size_t)(left < TILE ? left : TILE) * sizeof(float));
}

#endif

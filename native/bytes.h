/* 64 bytes at once: codes taken out of their planes, looked up in tables, multiplied with activations.
 *
 * A block of b bits is b vectors of 64 bytes and holds eight planes of 64 codes. Plane p lies in
 *   1, 2, 4, 8 bits   byte p / (8 / b), from bit b (p mod (8 / b)) on
 *   3 bits            planes 0 to 5 in bytes p / 2 from bit 3 (p mod 2) on; 6 in the upper two bits of byte 0 and bit 6
 *                     of byte 2; 7 in the upper two bits of byte 1 and bit 7 of byte 2
 *   5, 6, 7 bits      the lower 4 as of 4 bits, then 1, 2, 2 and 1 more as of 1 and 2 bits
 */
#ifndef ISOLOSS_BYTES_H
#define ISOLOSS_BYTES_H

#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

enum { WIDE = 64, PLANES = 8, LANES_OUT = 16 };

typedef uint8_t bytes __attribute__((vector_size(WIDE)));
typedef uint16_t words __attribute__((vector_size(WIDE)));
typedef int32_t whole __attribute__((vector_size(WIDE)));
typedef int64_t longs __attribute__((vector_size(WIDE)));
typedef float reals __attribute__((vector_size(WIDE)));

/* Where registers have 64 bytes, loops over them are written out. Elsewhere, and with checks compiled in, that takes a
 * compiler minutes and gains nothing. */
#if defined(__AVX512VNNI__) && !defined(__SANITIZE_ADDRESS__)
#define ISOLOSS_WRITTEN_OUT
#define PRAGMA(words) _Pragma(#words)
#define UNROLLED(times) PRAGMA(GCC unroll times)
#else
#define UNROLLED(times)
#endif

#define ALWAYS static inline __attribute__((always_inline))

ALWAYS bytes load_bytes(const uint8_t *from)
{
    bytes v;
    memcpy(&v, from, sizeof v);
    return v;
}

/* The first `count` bytes, zeros behind. */
ALWAYS bytes load_some(const uint8_t *from, int32_t count)
{
#if defined(__AVX512BW__)
    return (bytes)_mm512_maskz_loadu_epi8(count >= WIDE ? ~(__mmask64)0 : ((__mmask64)1 << count) - 1, from);
#else
    bytes v = {0};
    memcpy(&v, from, (size_t)count);
    return v;
#endif
}

ALWAYS bytes all_bytes(uint8_t one)
{
    return (bytes){0} + one;
}

/* Bits that come in from the neighbouring byte stand above those that count. */
ALWAYS bytes moved(bytes v, int right)
{
    return right >= 0 ? (bytes)((words)v >> right) : (bytes)((words)v << -right);
}

/* Bits of a where the mask has them, else of b. */
ALWAYS bytes merged(uint8_t mask, bytes a, bytes b)
{
    const bytes m = all_bytes(mask);
#if defined(__AVX512F__)
    return (bytes)_mm512_ternarylogic_epi64((__m512i)m, (__m512i)a, (__m512i)b, 0xCA);
#else
    return (a & m) | (b & ~m);
#endif
}

/* Codes of plane p: right in their lower `bits` bits, anything above. */
ALWAYS bytes plane(const bytes *in, int bits, int p)
{
    switch (bits) {
    case 1:
        return moved(in[0], p);
    case 2:
        return moved(in[p / 4], 2 * (p % 4));
    case 3:
        return p < 6 ? moved(in[p / 2], 3 * (p % 2)) : merged(3, moved(in[p - 6], 6), moved(in[2], p == 6 ? 4 : 5));
    case 4:
        return moved(in[p / 2], 4 * (p % 2));
    case 5:
        return merged(15, moved(in[p / 2], 4 * (p % 2)), moved(in[4], p - 4));
    case 6:
        return merged(15, moved(in[p / 2], 4 * (p % 2)), moved(in[4 + p / 4], 2 * (p % 4) - 4));
    case 7:
        return merged(63, merged(15, moved(in[p / 2], 4 * (p % 2)), moved(in[4 + p / 4], 2 * (p % 4) - 4)),
                      moved(in[6], p - 6));
    default:
        return in[p];
    }
}

/* A table of 2^bits bytes, again and again up to 64 (bits at most 6). */
ALWAYS bytes repeated(const uint8_t *table, int bits)
{
    if (bits == 2) {
        uint32_t one;
        memcpy(&one, table, sizeof one);
        return (bytes)((whole){0} + (int32_t)one);
    }
    if (bits == 3) {
        int64_t one;
        memcpy(&one, table, sizeof one);
        return (bytes)((longs){0} + one);
    }
#if defined(__AVX512F__)
    if (bits == 4) {
        __m128i one;
        memcpy(&one, table, sizeof one);
        return (bytes)_mm512_broadcast_i32x4(one);
    }
#endif
    uint8_t all[WIDE];
    for (int i = 0; i < WIDE; i += 1 << bits)
        memcpy(all + i, table, (size_t)1 << bits);
    return load_bytes(all);
}

/* The entry of each code; bits above the code do not count. */
ALWAYS bytes look(bytes table, bytes codes, int bits)
{
#if defined(__AVX512VBMI__)
    (void)bits;
    return (bytes)_mm512_permutexvar_epi8((__m512i)codes, (__m512i)table);
#else
    uint8_t t[WIDE], c[WIDE], out[WIDE];
#if defined(__AVX2__)
    if (bits <= 4) {
        bytes low = codes & 15;
        __m256i half[2];
        memcpy(half, &low, sizeof half);
        __m128i first;
        memcpy(&first, &table, sizeof first);
        const __m256i both = _mm256_broadcastsi128_si256(first);
        for (int i = 0; i < 2; i++)
            half[i] = _mm256_shuffle_epi8(both, half[i]);
        memcpy(&low, half, sizeof low);
        return low;
    }
#else
    (void)bits;
#endif
    memcpy(t, &table, sizeof t);
    memcpy(c, &codes, sizeof c);
    for (int i = 0; i < WIDE; i++)
        out[i] = t[c[i] & (WIDE - 1)];
    return load_bytes(out);
#endif
}

/* sum[l] + four products of unsigned and signed bytes 4 l to 4 l + 3, exact. */
ALWAYS whole dot(whole sum, bytes u, bytes s)
{
#if defined(__AVX512VNNI__)
    return (whole)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)u, (__m512i)s);
#elif defined(__AVX2__)
    __m256i a[2], b[2], c[2];
    memcpy(a, &u, sizeof a);
    memcpy(b, &s, sizeof b);
    memcpy(c, &sum, sizeof c);
    for (int i = 0; i < 2; i++) {
        const __m256i even = _mm256_madd_epi16(_mm256_and_si256(a[i], _mm256_set1_epi16(255)),
                                               _mm256_srai_epi16(_mm256_slli_epi16(b[i], 8), 8));
        const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(a[i], 8), _mm256_srai_epi16(b[i], 8));
        c[i] = _mm256_add_epi32(c[i], _mm256_add_epi32(even, odd));
    }
    memcpy(&sum, c, sizeof sum);
    return sum;
#else
    uint8_t a[WIDE];
    int8_t b[WIDE];
    memcpy(a, &u, sizeof a);
    memcpy(b, &s, sizeof b);
    int32_t c[LANES_OUT];
    for (int l = 0; l < LANES_OUT; l++)
        c[l] = a[4 * l] * b[4 * l] + a[4 * l + 1] * b[4 * l + 1] + a[4 * l + 2] * b[4 * l + 2] +
               a[4 * l + 3] * b[4 * l + 3];
    whole more;
    memcpy(&more, c, sizeof more);
    return sum + more;
#endif
}

/* Four activations, in every lane. */
ALWAYS bytes four(const int8_t *from)
{
    int32_t one;
    memcpy(&one, from, sizeof one);
    return (bytes)((whole){0} + one);
}

ALWAYS reals to_reals(whole v) { return __builtin_convertvector(v, reals); }

#ifdef __clang__
#define SHUFFLED_REALS(v, ...) __builtin_shufflevector(v, v, __VA_ARGS__)
#else
#define SHUFFLED_REALS(v, ...) __builtin_shuffle(v, (whole){__VA_ARGS__})
#endif

/* The sum of all lanes: halves added, four times over. */
ALWAYS float total(reals v)
{
    v += SHUFFLED_REALS(v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    v += SHUFFLED_REALS(v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    v += SHUFFLED_REALS(v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    v += SHUFFLED_REALS(v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    return v[0];
}

#ifdef __clang__
#define OF_TWO(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define OF_TWO(a, b, ...) __builtin_shuffle(a, b, (whole){__VA_ARGS__})
#endif

/* The sums of the lanes of 16 vectors, one in each lane. */
ALWAYS whole totals(const whole *v)
{
#if defined(__AVX512F__)
    whole two[8], four[4], eight[2];
UNROLLED(8)
    for (int i = 0; i < 8; i++)
        two[i] = OF_TWO(v[2 * i], v[2 * i + 1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
                 OF_TWO(v[2 * i], v[2 * i + 1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
UNROLLED(4)
    for (int i = 0; i < 4; i++)
        four[i] = OF_TWO(two[2 * i], two[2 * i + 1], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
                  OF_TWO(two[2 * i], two[2 * i + 1], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
UNROLLED(2)
    for (int i = 0; i < 2; i++)
        eight[i] = OF_TWO(four[2 * i], four[2 * i + 1], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
                   OF_TWO(four[2 * i], four[2 * i + 1], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    return OF_TWO(eight[0], eight[1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           OF_TWO(eight[0], eight[1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
#else
    int32_t all[LANES_OUT];
    for (int i = 0; i < LANES_OUT; i++) {
        int32_t lane[LANES_OUT], sum = 0;
        memcpy(lane, v + i, sizeof lane);
        for (int l = 0; l < LANES_OUT; l++)
            sum += lane[l];
        all[i] = sum;
    }
    whole out;
    memcpy(&out, all, sizeof out);
    return out;
#endif
}

/* An fp16 number, exact. */
ALWAYS float half_to_float(uint16_t half)
{
    const uint32_t w = (uint32_t)half << 16, twice = w + w;
    const uint32_t normal_bits = (twice >> 4) + (UINT32_C(0xE0) << 23);
    const uint32_t tiny_bits = (twice >> 17) | (UINT32_C(126) << 23);
    float normal, tiny;
    memcpy(&normal, &normal_bits, sizeof normal);
    memcpy(&tiny, &tiny_bits, sizeof tiny);
    const float size = twice < (UINT32_C(1) << 27) ? tiny - 0.5f : normal * 0x1p-112f;
    uint32_t bits;
    memcpy(&bits, &size, sizeof bits);
    bits |= w & (UINT32_C(1) << 31);
    float out;
    memcpy(&out, &bits, sizeof out);
    return out;
}

#endif

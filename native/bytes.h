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
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

/* Of 64 bytes a part is worked on at a time: all, or by AVX2 and 64-bit ARM as many as a register has, since compilers keep
 * larger vectors in memory. */
#if defined(__aarch64__)
enum { PART = 16 };
#elif defined(__AVX2__) && !defined(__AVX512F__)
#define ISOLOSS_AVX2
enum { PART = 32 };
#else
enum { PART = 64 };
#endif
enum { WIDE = 64, PLANES = 8, LANES_OUT = 16 };

typedef uint8_t bytes __attribute__((vector_size(PART)));
typedef uint16_t words __attribute__((vector_size(PART)));
typedef int32_t sums __attribute__((vector_size(PART)));
typedef int64_t longs __attribute__((vector_size(PART)));
typedef int32_t whole __attribute__((vector_size(WIDE)));
typedef float reals __attribute__((vector_size(WIDE)));

/* Where a part is a register, loops over them are written out. Elsewhere, and with checks compiled in, that takes a compiler
 * minutes and gains nothing. */
#if (defined(__AVX512VNNI__) || defined(__aarch64__) || defined(ISOLOSS_AVX2)) && !defined(__SANITIZE_ADDRESS__)
#define ISOLOSS_WRITTEN_OUT
#define PRAGMA(words) _Pragma(#words)
#define UNROLLED(times) PRAGMA(GCC unroll times)
#else
#define UNROLLED(times)
#endif

#define ALWAYS static inline __attribute__((always_inline))

/* What unsigned bytes are less before dot() takes them, where it takes signed ones: callers put it back, times the sum of the
 * activations. */
#if defined(__aarch64__) && !defined(__ARM_FEATURE_MATMUL_INT8)
enum { TAKEN = 128 };
#else
enum { TAKEN = 0 };
#endif

ALWAYS bytes load_bytes(const uint8_t *from)
{
    bytes v;
    memcpy(&v, from, sizeof v);
    return v;
}

/* The first `count` bytes, zeros behind; none where it is below 0. */
ALWAYS bytes load_some(const uint8_t *from, int32_t count)
{
#if defined(__AVX512BW__)
    return (bytes)_mm512_maskz_loadu_epi8(count >= WIDE ? ~(__mmask64)0 : ((__mmask64)1 << count) - 1, from);
#else
    bytes v = {0};
    if (count > 0)
        memcpy(&v, from, (size_t)(count < PART ? count : PART));
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
#if defined(__aarch64__)
    return right >= 0 ? v >> right : v << -right;
#else
    return right >= 0 ? (bytes)((words)v >> right) : (bytes)((words)v << -right);
#endif
}

/* The same of codes that look() takes as they are: it may want nothing above bit 3. */
ALWAYS bytes down(bytes v, int right)
{
#if defined(__aarch64__)
    return right < 4 ? moved(v, right) & 15 : moved(v, right);
#else
    return moved(v, right);
#endif
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

/* The upper two bits of a, then what b has from bit 2 on. */
ALWAYS bytes upper_two(bytes a, bytes b)
{
#if defined(__aarch64__)
    return (bytes)vsriq_n_u8((uint8x16_t)b, (uint8x16_t)a, 6);
#else
    return merged(3, moved(a, 6), b);
#endif
}

/* Codes of plane p: right in their lower `bits` bits, anything above. */
ALWAYS bytes plane(const bytes *in, int bits, int p)
{
    switch (bits) {
    case 1:
        return down(in[0], p);
    case 2:
        return down(in[p / 4], 2 * (p % 4));
    case 3:
        return p < 6 ? down(in[p / 2], 3 * (p % 2)) : upper_two(in[p - 6], moved(in[2], p == 6 ? 4 : 5));
    case 4:
        return down(in[p / 2], 4 * (p % 2));
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

/* Codes with nothing above them. */
ALWAYS bytes alone(bytes codes, int bits)
{
    return PART == 16 && bits == 4 ? codes : codes & (uint8_t)((1 << bits) - 1);
}

#if defined(__aarch64__)
typedef uint8x16x4_t lookup;

/* A table of 2^bits bytes, again and again up to 16 where it is smaller, each less TAKEN. */
ALWAYS lookup repeated(const uint8_t *table, int bits)
{
    lookup made = {{{0}}};
    uint64_t few = 0;
    memcpy(&few, table, bits < 3 ? (size_t)1 << bits : sizeof few);
    const uint8x16_t again = bits == 1   ? vreinterpretq_u8_u16(vdupq_n_u16((uint16_t)few))
                             : bits == 2 ? vreinterpretq_u8_u32(vdupq_n_u32((uint32_t)few))
                                         : vreinterpretq_u8_u64(vdupq_n_u64(few));
    for (int i = 0; i < 4 && (i == 0 || i * PART < 1 << bits); i++)
        made.val[i] = veorq_u8(bits < 4 ? again : vld1q_u8(table + i * PART), vdupq_n_u8(TAKEN));
    return made;
}

/* The entry of each code, of plane() of so many bits. */
ALWAYS bytes look(lookup table, bytes codes, int bits)
{
    if (bits <= 4)
        return (bytes)vqtbl1q_u8(table.val[0], (uint8x16_t)codes);
    return (bytes)vqtbl4q_u8(table, (uint8x16_t)alone(codes, bits));
}
#elif defined(ISOLOSS_AVX2)
typedef struct {
    __m256i of[4]; /* 16 entries each, twice */
} lookup;

/* A table of 2^bits bytes, again and again up to 16 where it is smaller. */
ALWAYS lookup repeated(const uint8_t *table, int bits)
{
    lookup made;
    uint64_t few = 0;
    memcpy(&few, table, bits < 3 ? (size_t)1 << bits : sizeof few);
    const __m256i again = bits == 1   ? _mm256_set1_epi16((short)few)
                          : bits == 2 ? _mm256_set1_epi32((int)few)
                                      : _mm256_set1_epi64x((long long)few);
    for (int i = 0; i < 4; i++)
        made.of[i] = bits < 4 || i * 16 >= 1 << bits
                         ? again
                         : _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(table + i * 16)));
    return made;
}

/* The entry of each code; bits above the code do not count. */
ALWAYS bytes look(lookup table, bytes codes, int bits)
{
    const __m256i low = (__m256i)(codes & 15), fifth = _mm256_slli_epi16((__m256i)codes, 3);
    const __m256i first = _mm256_shuffle_epi8(table.of[0], low);
    if (bits <= 4)
        return (bytes)first;
    const __m256i lower = _mm256_blendv_epi8(first, _mm256_shuffle_epi8(table.of[1], low), fifth);
    if (bits == 5)
        return (bytes)lower;
    const __m256i upper = _mm256_blendv_epi8(_mm256_shuffle_epi8(table.of[2], low), _mm256_shuffle_epi8(table.of[3], low), fifth);
    return (bytes)_mm256_blendv_epi8(lower, upper, _mm256_slli_epi16((__m256i)codes, 2));
}
#else
typedef bytes lookup;

/* A table of 2^bits bytes, again and again up to 64 (bits at most 6). */
ALWAYS lookup repeated(const uint8_t *table, int bits)
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
ALWAYS bytes look(lookup table, bytes codes, int bits)
{
#if defined(__AVX512VBMI__)
    (void)bits;
    return (bytes)_mm512_permutexvar_epi8((__m512i)codes, (__m512i)table);
#else
    uint8_t t[WIDE], c[WIDE], out[WIDE];
    (void)bits;
    memcpy(t, &table, sizeof t);
    memcpy(c, &codes, sizeof c);
    for (int i = 0; i < WIDE; i++)
        out[i] = t[c[i] & (WIDE - 1)];
    return load_bytes(out);
#endif
}
#endif

/* sum[l] + four products of unsigned (with TAKEN: signed) and signed bytes 4 l to 4 l + 3, exact. */
ALWAYS sums dot(sums sum, bytes u, bytes s)
{
#if defined(__AVX512VNNI__)
    return (whole)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)u, (__m512i)s);
#elif defined(__ARM_FEATURE_MATMUL_INT8)
    return (sums)vusdotq_s32((int32x4_t)sum, (uint8x16_t)u, (int8x16_t)s);
#elif defined(__ARM_FEATURE_DOTPROD)
    return (sums)vdotq_s32((int32x4_t)sum, (int8x16_t)u, (int8x16_t)s);
#elif defined(__aarch64__)
    const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8((int8x16_t)u), vget_low_s8((int8x16_t)s)));
    const int32x4_t high = vpaddlq_s16(vmull_high_s8((int8x16_t)u, (int8x16_t)s));
    return sum + (sums)vpaddq_s32(low, high);
#elif defined(__AVXVNNI__) && defined(ISOLOSS_AVX2)
    return (sums)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)u, (__m256i)s);
#elif defined(ISOLOSS_AVX2)
    const __m256i a = (__m256i)u, b = (__m256i)s;
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(a, _mm256_set1_epi16(255)),
                                           _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(b, 8));
    return sum + (sums)_mm256_add_epi32(even, odd);
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
    return (bytes)((sums){0} + one);
}

/* dot() with the four activations of plane p, of the 32 of a block. */
ALWAYS sums dot_four(sums sum, bytes u, const int8_t *from, int p)
{
#if defined(__ARM_FEATURE_MATMUL_INT8)
#define DOT_LANE(lane) vusdotq_laneq_s32((int32x4_t)sum, (uint8x16_t)u, vld1q_s8(from + p / 4 * PART), lane)
#elif defined(__ARM_FEATURE_DOTPROD)
#define DOT_LANE(lane) vdotq_laneq_s32((int32x4_t)sum, (int8x16_t)u, vld1q_s8(from + p / 4 * PART), lane)
#endif
#if defined(DOT_LANE)
    switch (p % 4) {
    case 0:
        return (sums)DOT_LANE(0);
    case 1:
        return (sums)DOT_LANE(1);
    case 2:
        return (sums)DOT_LANE(2);
    default:
        return (sums)DOT_LANE(3);
    }
#else
    return dot(sum, u, four(from + 4 * p));
#endif
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
#if defined(__aarch64__)
    float32x4_t part[4];
    memcpy(part, &v, sizeof part);
    const float32x4_t four_left = vaddq_f32(vaddq_f32(part[0], part[2]), vaddq_f32(part[1], part[3]));
    return vpadds_f32(vadd_f32(vget_low_f32(four_left), vget_high_f32(four_left)));
#else
    v += SHUFFLED_REALS(v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    v += SHUFFLED_REALS(v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    v += SHUFFLED_REALS(v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    v += SHUFFLED_REALS(v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    return v[0];
#endif
}

#ifdef __clang__
#define OF_TWO(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define OF_TWO(a, b, ...) __builtin_shuffle(a, b, (whole){__VA_ARGS__})
#endif

/* The sums of the lanes of 16 vectors, one in each lane. */
ALWAYS whole totals(const sums *v)
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
#elif defined(__aarch64__)
    int32_t all[LANES_OUT];
    for (int i = 0; i < LANES_OUT; i += 4)
        vst1q_s32(all + i, vpaddq_s32(vpaddq_s32((int32x4_t)v[i], (int32x4_t)v[i + 1]),
                                      vpaddq_s32((int32x4_t)v[i + 2], (int32x4_t)v[i + 3])));
    whole out;
    memcpy(&out, all, sizeof out);
    return out;
#elif defined(ISOLOSS_AVX2)
    int32_t all[LANES_OUT];
    for (int i = 0; i < LANES_OUT; i += 4) {
        const __m256i one = _mm256_hadd_epi32((__m256i)v[i], (__m256i)v[i + 1]);
        const __m256i other = _mm256_hadd_epi32((__m256i)v[i + 2], (__m256i)v[i + 3]), both = _mm256_hadd_epi32(one, other);
        _mm_storeu_si128((__m128i *)(all + i),
                         _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1)));
    }
    whole out;
    memcpy(&out, all, sizeof out);
    return out;
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
#if defined(__aarch64__)
    __fp16 same;
    memcpy(&same, &half, sizeof same);
    return same;
#elif defined(ISOLOSS_AVX2)
    return _cvtsh_ss(half);
#else
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
#endif
}

/* 16 of them. */
ALWAYS reals halves_at(const uint16_t *from)
{
#if defined(__AVX512F__)
    return (reals)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
#elif defined(ISOLOSS_AVX2)
    const __m256 half[2] = {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from)),
                            _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from + 8)))};
    reals v;
    memcpy(&v, half, sizeof v);
    return v;
#else
    float all[LANES_OUT];
#if defined(__aarch64__)
    for (int i = 0; i < LANES_OUT; i += 8) {
        const float16x8_t eight = vreinterpretq_f16_u16(vld1q_u16(from + i));
        vst1q_f32(all + i, vcvt_f32_f16(vget_low_f16(eight)));
        vst1q_f32(all + i + 4, vcvt_high_f32_f16(eight));
    }
#else
    for (int i = 0; i < LANES_OUT; i++)
        all[i] = half_to_float(from[i]);
#endif
    reals v;
    memcpy(&v, all, sizeof v);
    return v;
#endif
}

/* The first `count` of them, zeros behind. */
ALWAYS reals some_halves(const uint16_t *from, int64_t count)
{
#if defined(__AVX512BW__)
    const __mmask16 which = count >= LANES_OUT ? 0xFFFF : (__mmask16)((1 << count) - 1);
    return (reals)_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(which, from));
#else
    uint16_t all[LANES_OUT] = {0};
    if (count >= LANES_OUT)
        return halves_at(from);
    memcpy(all, from, (size_t)count * sizeof *all);
    return halves_at(all);
#endif
}

#endif

/* A matrix whose rows have tables of 32 to 256 fp16 numbers, times float32 activations; compiled once per set (SET).
 *
 * Columns are the lanes, and the codes of a group of columns a stream of bits. Eight codes are as many bytes as a code has
 * bits, so that 64 are one vector; the two bytes of their numbers are looked up one by one and put side by side.
 */
#include "reals.h"

enum { CHUNK = 64, PARTS = CHUNK / LANES_OUT, MOST = 256 };

typedef struct {
    int bits;
#if defined(__AVX512VBMI__)
    __m512i place, fields, low[4], high[4];
#else
    float number[MOST];
#endif
} Reader;

static Reader reader_of(int bits)
{
    Reader r = {.bits = bits};
#if defined(__AVX512VBMI__)
    /* Eights of codes in such an order that bytes put side by side within lanes of 16 come out in order. */
    static const uint8_t eights[] = {0, 4, 1, 5, 2, 6, 3, 7};
    uint8_t place[WIDE], field[WIDE];
    for (int k = 0; k < WIDE; k++) {
        place[k] = (uint8_t)((eights[k / 8] * bits + k % 8) & 63);
        field[k] = (uint8_t)(k % 8 * bits);
    }
    memcpy(&r.place, place, sizeof place);
    memcpy(&r.fields, field, sizeof field);
#endif
    return r;
}

ALWAYS void take_table(Reader *r, const uint16_t *table)
{
#if defined(__AVX512VBMI__)
    uint8_t low[MOST], high[MOST];
    const int entries = 1 << r->bits;
    for (int k = 0; k < MOST; k += 2 * LANES_OUT) {
        const __m512i both = _mm512_loadu_si512(table + k % entries);
        _mm256_storeu_si256((__m256i *)(low + k), _mm512_cvtepi16_epi8(both));
        _mm256_storeu_si256((__m256i *)(high + k), _mm512_cvtepi16_epi8(_mm512_srli_epi16(both, 8)));
    }
    for (int k = 0; k < 4; k++) {
        r->low[k] = _mm512_loadu_si512(low + WIDE * k);
        r->high[k] = _mm512_loadu_si512(high + WIDE * k);
    }
#else
    for (int k = 0; k < 1 << r->bits; k++)
        r->number[k] = half_to_float(table[k]);
#endif
}

/* The numbers of the first `count` of 64 codes. */
ALWAYS void chunk_of(const Reader *r, const uint8_t *from, int64_t count, const int bits, reals *out)
{
#if defined(__AVX512VBMI__)
    const int64_t bytes_here = (count + 7) / 8 * bits;
    const __mmask64 which = bytes_here >= WIDE ? ~(__mmask64)0 : ((__mmask64)1 << bytes_here) - 1;
    const __m512i spread = _mm512_permutexvar_epi8(r->place, _mm512_maskz_loadu_epi8(which, from));
    const __m512i code = _mm512_multishift_epi64_epi8(r->fields, spread);
    __m512i low, high;
    if (bits <= 6) {
        low = _mm512_permutexvar_epi8(code, r->low[0]);
        high = _mm512_permutexvar_epi8(code, r->high[0]);
    } else {
        low = _mm512_permutex2var_epi8(r->low[0], code, r->low[1]);
        high = _mm512_permutex2var_epi8(r->high[0], code, r->high[1]);
        if (bits == 8) {
            const __mmask64 upper = _mm512_movepi8_mask(code);
            low = _mm512_mask_blend_epi8(upper, low, _mm512_permutex2var_epi8(r->low[2], code, r->low[3]));
            high = _mm512_mask_blend_epi8(upper, high, _mm512_permutex2var_epi8(r->high[2], code, r->high[3]));
        }
    }
    const __m512i one = _mm512_unpacklo_epi8(low, high), two = _mm512_unpackhi_epi8(low, high);
    out[0] = (reals)_mm512_cvtph_ps(_mm512_castsi512_si256(one));
    out[1] = (reals)_mm512_cvtph_ps(_mm512_extracti64x4_epi64(one, 1));
    out[2] = (reals)_mm512_cvtph_ps(_mm512_castsi512_si256(two));
    out[3] = (reals)_mm512_cvtph_ps(_mm512_extracti64x4_epi64(two, 1));
#else
    float all[CHUNK] = {0};
    for (int64_t k = 0; k < count && k < CHUNK; k++) {
        const int64_t at = k * bits, byte = at / 8;
        uint32_t code = from[byte];
        if ((at + bits - 1) / 8 > byte)
            code |= (uint32_t)from[byte + 1] << 8;
        all[k] = r->number[code >> at % 8 & ((1u << bits) - 1)];
    }
    memcpy(out, all, sizeof all);
#endif
}

ALWAYS void row_of(const Reals *m, Reader *r, int64_t row, const Tokens *t, const int count, const int bits)
{
    const int64_t groups = (m->columns + m->group - 1) / m->group, each = (m->group + 7) / 8 * bits;
    const int64_t last = (m->columns - (groups - 1) * m->group + 7) / 8 * bits;
    const uint8_t *code = m->code + row * ((groups - 1) * each + last);
    reals sum[MOST_TOKENS][2] = {{{0}}};
    for (int64_t g = 0; g < groups; g++) {
        const int64_t start = g * m->group, end = start + m->group < m->columns ? start + m->group : m->columns;
        take_table(r, (const uint16_t *)m->value + ((m->shared ? 0 : row * groups + g) << bits));
        reals w[PARTS];
        int64_t c = start;
        for (; c + CHUNK <= end; c += CHUNK) {
            chunk_of(r, code, CHUNK, bits, w);
            __builtin_prefetch(code + AHEAD);
            code += CHUNK / 8 * bits;
UNROLLED(8)
            for (int i = 0; i < count; i++)
UNROLLED(4)
                for (int k = 0; k < PARTS; k++)
                    sum[i][k % 2] = multiplied(w[k], load_reals(t->x + i * t->columns + c + k * LANES_OUT), sum[i][k % 2]);
        }
        if (c < end) {
            chunk_of(r, code, end - c, bits, w);
            code += (end - c + 7) / 8 * bits;
            for (int i = 0; i < count; i++)
                for (int64_t k = 0; k * LANES_OUT < end - c; k++) {
                    const int64_t left = end - c - k * LANES_OUT;
                    sum[i][k % 2] =
                        multiplied(w[k], some_reals(t->x + i * t->columns + c + k * LANES_OUT, left), sum[i][k % 2]);
                }
        }
    }
    for (int i = 0; i < count; i++)
        t->out[i * t->stride + row] = total(sum[i][0] + sum[i][1]);
}

typedef void a_row(const Reals *, Reader *, int64_t, const Tokens *);

#define OF_COUNT(BITS, COUNT)                                                                                          \
    static void row_##BITS##_##COUNT(const Reals *m, Reader *r, int64_t row, const Tokens *t)                          \
    {                                                                                                                  \
        row_of(m, r, row, t, COUNT, BITS);                                                                             \
    }
#if defined(ISOLOSS_WRITTEN_OUT)
#define OF_BITS(BITS) OF_COUNT(BITS, 1) OF_COUNT(BITS, 2) OF_COUNT(BITS, 4) OF_COUNT(BITS, 8)
#define ALL(BITS) {row_##BITS##_1, row_##BITS##_2, row_##BITS##_4, row_##BITS##_8}
#else
#define OF_BITS(BITS) OF_COUNT(BITS, 1)
#define ALL(BITS) {row_##BITS##_1, row_##BITS##_1, row_##BITS##_1, row_##BITS##_1}
#endif
OF_BITS(5) OF_BITS(6) OF_BITS(7) OF_BITS(8)
static a_row *const made[4][4] = {ALL(5), ALL(6), ALL(7), ALL(8)};

real_product NAMED(wide_tables_, SET);

int32_t NAMED(wide_tables_, SET)(const Reals *m, const float *x, int64_t tokens, int64_t first, int64_t last,
                                 float *out, int64_t stride)
{
    Reader r = reader_of(m->bits);
    for (int64_t row = first; row < last; row++)
        for (int64_t token = 0; token < tokens;) {
            const int power = WRITTEN(power_of_tokens(tokens - token));
            const Tokens t = tokens_at(m, x, token, out, stride);
            made[m->bits - 5][power](m, &r, row, &t);
            token += 1 << power;
        }
    return 0;
}

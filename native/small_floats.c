/* Small floats, whole numbers or places in one table, 1 to 8 bits each, with a scale per row and group, times float32
 * activations; compiled once per set (SET).
 *
 * Rows are the lanes: 16 rows are a tile, in which two columns are 32 codes in 4 * bits bytes, a stream of bits. A float
 * moved to the upper end of 16 bits, then its exponent to that of fp16, is an fp16 number, off by a power of two; a whole
 * number put under the exponent of 1024 is that number and 1024.
 */
#include "reals.h"

enum { PAIR = 2 * LANES_OUT };
enum { SMALL, WHOLE, PLACES };

typedef struct {
    int bits;
    float factor;
#if defined(__AVX512VBMI__)
    __m512i place, left, right, keep;
    __m512 table;
    __mmask64 bytes;
#elif defined(__aarch64__)
    uint8x16_t place[PAIR / 8];
    int16x8_t left[PAIR / 8], right;
    uint16x8_t keep;
    uint8x16x4_t table;
#else
    float number[256];
#endif
} Reader;

static Reader reader_of(const Reals *m, int kind)
{
    const int bits = m->bits, mantissa = bits - 1 - m->exponent;
    const uint16_t keep = kind != SMALL ? 0x6400 : (uint16_t)(0x8000 | ((1 << (bits - 1)) - 1) << (10 - mantissa));
    Reader r = {.bits = bits, .factor = kind == SMALL ? ldexpf(1, 15 - m->bias) : (float)m->n};
#if defined(__AVX512VBMI__)
    uint8_t place[WIDE];
    uint16_t left[PAIR];
    for (int l = 0; l < PAIR; l++) {
        left[l] = (uint16_t)(16 - bits - l * bits % 8);
        for (int i = 0; i < 2; i++)
            place[2 * l + i] = (uint8_t)(l * bits / 8 + i);
    }
    memcpy(&r.place, place, sizeof place);
    memcpy(&r.left, left, sizeof left);
    r.keep = _mm512_set1_epi16((int16_t)keep);
    r.right = _mm512_set1_epi16((int16_t)(kind == SMALL ? 5 - m->exponent : 16 - bits));
    r.bytes = ((__mmask64)1 << 4 * bits) - 1;
    if (kind == PLACES)
        r.table = _mm512_loadu_ps(m->value);
#elif defined(__aarch64__)
    const int second = bits < 4 ? 0 : 4 * bits - 16; /* where the second of two registers begins */
    for (int l = 0; l < PAIR; l += 8) {
        uint8_t place[16];
        int16_t left[8];
        for (int k = 0; k < 8; k++) {
            left[k] = (int16_t)(16 - bits - (l + k) * bits % 8);
            for (int i = 0; i < 2; i++) {
                const int at = (l + k) * bits / 8 + i;
                place[2 * k + i] = (uint8_t)(at < 16 ? at : at - second + 16);
            }
        }
        r.place[l / 8] = vld1q_u8(place);
        r.left[l / 8] = vld1q_s16(left);
    }
    r.right = vdupq_n_s16((int16_t)(kind == SMALL ? m->exponent - 5 : bits - 16));
    r.keep = vdupq_n_u16(keep);
    if (kind == PLACES)
        memcpy(&r.table, m->value, sizeof r.table);
#else
    for (int code = 0; code < 1 << bits; code++) {
        const int32_t signed_code = code >> (bits - 1) ? code - (1 << bits) : code;
        const int32_t moved_up = signed_code * (1 << (11 + m->exponent - bits));
        r.number[code] = kind == SMALL   ? half_to_float((uint16_t)((uint16_t)moved_up & keep))
                         : kind == WHOLE ? (float)(1024 + code)
                                         : ((const float *)m->value)[code];
    }
#endif
    return r;
}

/* Two columns of a tile. */
ALWAYS void pair_of(const Reader *r, const uint8_t *from, const int kind, reals *first, reals *second)
{
#if defined(__AVX512VBMI__)
    __m512i v = _mm512_permutexvar_epi8(r->place, _mm512_maskz_loadu_epi8(r->bytes, from));
    v = _mm512_sllv_epi16(v, r->left);
    v = kind == SMALL ? _mm512_srav_epi16(v, r->right) : _mm512_srlv_epi16(v, r->right);
    if (kind == PLACES) {
        const __m512i one = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(v));
        const __m512i two = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(v, 1));
        *first = (reals)_mm512_permutexvar_ps(one, r->table);
        *second = (reals)_mm512_permutexvar_ps(two, r->table);
        return;
    }
    v = kind == SMALL ? _mm512_and_si512(v, r->keep) : _mm512_or_si512(v, r->keep);
    *first = (reals)_mm512_cvtph_ps(_mm512_castsi512_si256(v));
    *second = (reals)_mm512_cvtph_ps(_mm512_extracti64x4_epi64(v, 1));
#elif defined(__aarch64__)
    uint8x16x2_t in = {{vdupq_n_u8(0), vdupq_n_u8(0)}};
    if (r->bits >= 4) {
        in.val[0] = vld1q_u8(from);
        in.val[1] = vld1q_u8(from + 4 * r->bits - 16);
    } else
        in.val[0] = (uint8x16_t)load_some(from, 4 * r->bits);
    float all[PAIR];
    for (int l = 0; l < PAIR; l += 8) {
        uint16x8_t v = vreinterpretq_u16_u8(vqtbl2q_u8(in, r->place[l / 8]));
        v = vshlq_u16(v, r->left[l / 8]);
        if (kind == SMALL)
            v = vandq_u16(vreinterpretq_u16_s16(vshlq_s16(vreinterpretq_s16_u16(v), r->right)), r->keep);
        else
            v = vshlq_u16(v, r->right);
        if (kind == PLACES) { /* the four bytes of each number */
            for (int half = 0; half < 2; half++) {
                const uint32x4_t code = vmovl_u16(half ? vget_high_u16(v) : vget_low_u16(v));
                const uint32x4_t place = vmlaq_n_u32(vdupq_n_u32(0x03020100), code, 0x04040404);
                vst1q_f32(all + l + 4 * half, vreinterpretq_f32_u8(vqtbl4q_u8(r->table, vreinterpretq_u8_u32(place))));
            }
            continue;
        }
        const float16x8_t eight = vreinterpretq_f16_u16(kind == SMALL ? v : vorrq_u16(v, r->keep));
        vst1q_f32(all + l, vcvt_f32_f16(vget_low_f16(eight)));
        vst1q_f32(all + l + 4, vcvt_high_f32_f16(eight));
    }
    *first = load_reals(all);
    *second = load_reals(all + LANES_OUT);
#else
    (void)kind;
    float all[PAIR];
    for (int l = 0; l < PAIR; l++) {
        const int at = l * r->bits, byte = at / 8;
        uint32_t code = from[byte];
        if ((at + r->bits - 1) / 8 > byte)
            code |= (uint32_t)from[byte + 1] << 8;
        all[l] = r->number[code >> at % 8 & ((1u << r->bits) - 1)];
    }
    *first = load_reals(all);
    *second = load_reals(all + LANES_OUT);
#endif
}

/* What whole numbers stand above, in units of their factor. */
ALWAYS reals centre_of(const Reals *m, int64_t at)
{
    float all[TILE];
    for (int l = 0; l < TILE; l++)
        all[l] = 1024 - (float)(m->bias - (m->zero ? m->zero[at + l] : 0)) / (float)m->n;
    return load_reals(all);
}

ALWAYS void tile_of(const Reals *m, const Reader *r, int64_t tile, const Tokens *t, const int count,
                    const int kind)
{
    const int64_t groups = (m->columns + m->group - 1) / m->group;
    const int64_t pairs = (groups - 1) * ((m->group + 1) / 2) + (m->columns - (groups - 1) * m->group + 1) / 2;
    const int step = 4 * r->bits;
    const uint8_t *code = m->code + tile * pairs * step;
    reals answer[MOST_TOKENS] = {{0}};
    for (int64_t g = 0; g < groups; g++) {
        const int64_t start = g * m->group, end = start + m->group < m->columns ? start + m->group : m->columns;
        reals even[MOST_TOKENS] = {{0}}, odd[MOST_TOKENS] = {{0}}, first, second;
        const reals centre = kind == WHOLE ? centre_of(m, (tile * groups + g) * TILE) : everywhere(0);
        int64_t c = start;
        for (; c + 2 <= end; c += 2) {
            __builtin_prefetch(code + AHEAD);
            pair_of(r, code, kind, &first, &second);
            code += step;
            if (kind == WHOLE) {
                first -= centre;
                second -= centre;
            }
UNROLLED(8)
            for (int i = 0; i < count; i++) {
                const float *x = t->x + i * t->columns + c;
                even[i] = multiplied(first, everywhere(x[0]), even[i]);
                odd[i] = multiplied(second, everywhere(x[1]), odd[i]);
            }
        }
        if (c < end) {
            pair_of(r, code, kind, &first, &second);
            code += step;
            if (kind == WHOLE) {
                first -= centre;
                second -= centre;
            }
            for (int i = 0; i < count; i++)
                even[i] = multiplied(first, everywhere(t->x[i * t->columns + c]), even[i]);
        }
        reals scale = everywhere(r->factor);
        if (m->scale)
            scale *= scales_of(m->scale, (tile * groups + g) * TILE, m->scale_type);
        for (int i = 0; i < count; i++)
            answer[i] = multiplied(scale, even[i] + odd[i], answer[i]);
    }
    for (int i = 0; i < count; i++)
        put_tile(m, t, tile, i, m->unit ? answer[i] * load_reals(m->unit + tile * TILE) : answer[i]);
}

typedef void a_tile(const Reals *, const Reader *, int64_t, const Tokens *);

#define OF_COUNT(NAME, KIND, COUNT)                                                                                    \
    static void NAME##_##COUNT(const Reals *m, const Reader *r, int64_t tile, const Tokens *t)                         \
    {                                                                                                                  \
        tile_of(m, r, tile, t, COUNT, KIND);                                                                           \
    }
#if defined(ISOLOSS_WRITTEN_OUT)
#define OF_KIND(NAME, KIND)                                                                                            \
    OF_COUNT(NAME, KIND, 1) OF_COUNT(NAME, KIND, 2) OF_COUNT(NAME, KIND, 4) OF_COUNT(NAME, KIND, 8)
#define ALL(NAME) {NAME##_1, NAME##_2, NAME##_4, NAME##_8}
#else
#define OF_KIND(NAME, KIND) OF_COUNT(NAME, KIND, 1)
#define ALL(NAME) {NAME##_1, NAME##_1, NAME##_1, NAME##_1}
#endif
OF_KIND(small, SMALL)
OF_KIND(integers, WHOLE)
OF_KIND(places, PLACES)
static a_tile *const made[3][4] = {ALL(small), ALL(integers), ALL(places)};

real_product NAMED(small_floats_, SET);

int32_t NAMED(small_floats_, SET)(const Reals *m, const float *x, int64_t tokens, int64_t first, int64_t last,
                                  float *out, int64_t stride)
{
    const int kind = m->exponent > 0 ? SMALL : m->exponent ? PLACES : WHOLE;
    const Reader r = reader_of(m, kind);
    for (int64_t tile = first / TILE; tile * TILE < last; tile++)
        for (int64_t token = 0; token < tokens;) {
            const int power = WRITTEN(power_of_tokens(tokens - token));
            const Tokens t = tokens_at(m, x, token, out, stride);
            made[kind][power](m, &r, tile, &t);
            token += 1 << power;
        }
    return 0;
}

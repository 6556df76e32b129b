/* Rows of 16-bit numbers (fp16, bf16, whole), perhaps with a scale per row and group, times float32 activations; compiled
 * once per set (SET). Columns are the lanes. */
#include "reals.h"

enum { PARTS = 2, FAR = 1 << 13 }; /* sums that do not wait for one another; how far ahead numbers are asked for */

ALWAYS void row_of(const Reals *m, int64_t r, const Tokens *t, const int count, const int type)
{
    const int64_t groups = (m->columns + m->group - 1) / m->group, first = r * m->columns;
    reals answer[MOST_TOKENS] = {{0}};
    for (int64_t g = 0; g < groups; g++) {
        const int64_t start = g * m->group, end = start + m->group < m->columns ? start + m->group : m->columns;
        reals sum[MOST_TOKENS][PARTS] = {{{0}}};
        int64_t c = start;
        for (; c + PARTS * LANES_OUT <= end; c += PARTS * LANES_OUT) {
            __builtin_prefetch((const uint8_t *)m->value + 2 * (first + c) + FAR, 0, 2);
UNROLLED(2)
            for (int k = 0; k < PARTS; k++) {
                const int64_t at = c + k * LANES_OUT;
                const reals w = some_of(m->value, first + at, LANES_OUT, type);
UNROLLED(8)
                for (int i = 0; i < count; i++)
                    sum[i][k] = multiplied(w, load_reals(t->x + i * t->columns + at), sum[i][k]);
            }
        }
        for (; c < end; c += LANES_OUT) {
            const reals w = some_of(m->value, first + c, end - c, type);
            for (int i = 0; i < count; i++)
                sum[i][0] = multiplied(w, some_reals(t->x + i * t->columns + c, end - c), sum[i][0]);
        }
        const reals scale = everywhere(m->scale ? ((const float *)m->scale)[r * groups + g] : 1);
        for (int i = 0; i < count; i++)
            answer[i] = multiplied(scale, sum[i][0] + sum[i][1], answer[i]);
    }
    for (int i = 0; i < count; i++)
        t->out[i * t->stride + r] = total(answer[i]);
}

typedef void a_row(const Reals *, int64_t, const Tokens *);

#if defined(ISOLOSS_WRITTEN_OUT)
#define OF_COUNT(NAME, TYPE, COUNT)                                                                                    \
    static void row_##NAME##_##COUNT(const Reals *m, int64_t r, const Tokens *t) { row_of(m, r, t, COUNT, TYPE); }
#define OF_TYPE(NAME, TYPE)                                                                                            \
    OF_COUNT(NAME, TYPE, 1) OF_COUNT(NAME, TYPE, 2) OF_COUNT(NAME, TYPE, 4) OF_COUNT(NAME, TYPE, 8)
#define ALL(NAME) {row_##NAME##_1, row_##NAME##_2, row_##NAME##_4, row_##NAME##_8}
#else
#define OF_TYPE(NAME, TYPE)                                                                                            \
    static void row_##NAME(const Reals *m, int64_t r, const Tokens *t) { row_of(m, r, t, 1, TYPE); }
#define ALL(NAME) {row_##NAME, row_##NAME, row_##NAME, row_##NAME}
#endif
OF_TYPE(half, HALF_TYPE)
OF_TYPE(brain, BRAIN_TYPE)
OF_TYPE(whole, WHOLE_TYPE)
static a_row *const made[3][4] = {ALL(half), ALL(brain), ALL(whole)};

real_product NAMED(halves_, SET);

int32_t NAMED(halves_, SET)(const Reals *m, const float *x, int64_t tokens, int64_t first, int64_t last, float *out,
                            int64_t stride)
{
    for (int64_t r = first; r < last; r++)
        for (int64_t token = 0; token < tokens;) {
            const int power = WRITTEN(power_of_tokens(tokens - token));
            const Tokens t = tokens_at(m, x, token, out, stride);
            made[m->type - HALF_TYPE][power](m, r, &t);
            token += 1 << power;
        }
    return 0;
}

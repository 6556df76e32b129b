/* Products with a sparse matrix of fp16 numbers in compressed rows, added to what is there; compiled once per set (SET).
 *
 * Few tokens: the numbers of a row are the lanes. Many: 16 tokens are, and activations lie side by side (product.c lays
 * them out once), so that a number is read once for all of them.
 */
#include "weights.h"

/* Numbers of x in so many columns, at most 16, zeros behind. */
ALWAYS reals some_of(const float *x, const void *column, int64_t count, const int bytes)
{
#if defined(__AVX512BW__)
    const __mmask16 mask = count >= TILE ? 0xffff : (__mmask16)((1 << count) - 1);
    const __m512i at = bytes == 1   ? _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, column))
                       : bytes == 2 ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, column))
                                    : _mm512_maskz_loadu_epi32(mask, column);
    return (reals)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, at, x, sizeof *x);
#else
    float all[TILE] = {0};
    for (int64_t i = 0; i < count && i < TILE; i++)
        all[i] = x[bytes == 1   ? ((const uint8_t *)column)[i]
                   : bytes == 2 ? ((const uint16_t *)column)[i]
                                : ((const int32_t *)column)[i]];
    reals v;
    memcpy(&v, all, sizeof v);
    return v;
#endif
}

#define OF_INDEX(NAME, INDEX)                                                                                          \
    static float row_##NAME(const uint16_t *value, const INDEX *column, int64_t count, const float *x)                 \
    {                                                                                                                  \
        reals sum = {0};                                                                                               \
        for (int64_t i = 0; i < count; i += TILE)                                                                      \
            sum += some_halves(value + i, count - i) * some_of(x, column + i, count - i, sizeof *column);              \
        return total(sum);                                                                                             \
    }                                                                                                                  \
    static void few_##NAME(const isoloss_weight *w, const float *x, int64_t tokens, float *out, int64_t first,         \
                           int64_t last)                                                                               \
    {                                                                                                                  \
        const int32_t *const row = w->outlier_row;                                                                     \
        for (int64_t r = first; r < last; r++)                                                                         \
            for (int64_t t = 0; t < tokens && row[r + 1] > row[r]; t++)                                                \
                out[t * w->rows + r] += row_##NAME(w->outlier + row[r], (const INDEX *)w->outlier_column + row[r],     \
                                                   row[r + 1] - row[r], x + t * w->columns);                           \
    }                                                                                                                  \
    static void many_##NAME(const isoloss_weight *w, const float *x, int64_t tokens, float *out, int64_t first,        \
                            int64_t last)                                                                              \
    {                                                                                                                  \
        const INDEX *const column = (const INDEX *)w->outlier_column;                                                  \
        for (int64_t t = 0; t < tokens; t += TILE, x += TILE * w->columns)                                             \
            for (int64_t r = first; r < last; r++) {                                                                   \
                reals sum = {0};                                                                                       \
                for (int64_t i = w->outlier_row[r]; i < w->outlier_row[r + 1]; i += TILE) {                            \
                    const int64_t here = w->outlier_row[r + 1] - i < TILE ? w->outlier_row[r + 1] - i : TILE;          \
                    const reals numbers = some_halves(w->outlier + i, here);                                           \
                    float each[TILE];                                                                                  \
                    memcpy(each, &numbers, sizeof each);                                                               \
                    for (int64_t l = 0; l < here; l++) {                                                               \
                        reals all;                                                                                     \
                        memcpy(&all, x + TILE * (int64_t)column[i + l], sizeof all);                                   \
                        sum += each[l] * all;                                                                          \
                    }                                                                                                  \
                }                                                                                                      \
                for (int64_t u = 0; u < TILE && t + u < tokens; u++)                                                   \
                    out[(t + u) * w->rows + r] += sum[u];                                                              \
            }                                                                                                          \
    }
OF_INDEX(1, uint8_t)
OF_INDEX(2, uint16_t)
OF_INDEX(4, int32_t)

void NAMED(sparse_rows_, SET)(const isoloss_weight *w, const float *x, const float *beside, int64_t tokens, float *out,
                              int64_t first, int64_t last);

void NAMED(sparse_rows_, SET)(const isoloss_weight *w, const float *x, const float *beside, int64_t tokens, float *out,
                              int64_t first, int64_t last)
{
    const int bytes = (int)w->outlier_bytes;
    if (beside)
        (bytes == 1 ? many_1 : bytes == 2 ? many_2 : many_4)(w, beside, tokens, out, first, last);
    else
        (bytes == 1 ? few_1 : bytes == 2 ? few_2 : few_4)(w, x, tokens, out, first, last);
}

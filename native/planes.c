/* Products of matrices held as planes of bits, exact: AND and count; compiled once per set (SET). */
#include "kernels.h"

/* Bits that are set in both. */
static inline int64_t both(const uint64_t *a, const uint64_t *b, int64_t words)
{
    int64_t count = 0;
    for (int64_t i = 0; i < words; i++)
        count += __builtin_popcountll(a[i] & b[i]);
    return count;
}

void NAMED(plane_product_, SET)(const uint64_t *a, int32_t a_bits, int64_t first, int64_t last, const uint64_t *b,
                                int32_t b_bits, int64_t b_rows, int64_t words, int64_t *out);

void NAMED(plane_product_, SET)(const uint64_t *a, int32_t a_bits, int64_t first, int64_t last, const uint64_t *b,
                                int32_t b_bits, int64_t b_rows, int64_t words, int64_t *out)
{
    enum { NEAR = 8 }; /* rows of b that stay in the cache while those of a pass */
    for (int64_t near = 0; near < b_rows; near += NEAR)
        for (int64_t r = first; r < last; r++)
            for (int64_t c = near; c < near + NEAR && c < b_rows; c++) {
                int64_t sum = 0;
                for (int32_t i = 0; i < a_bits; i++)
                    for (int32_t j = 0; j < b_bits; j++)
                        sum += both(a + (r * a_bits + i) * words, b + (c * b_bits + j) * words, words) << (i + j);
                out[r * b_rows + c] = sum;
            }
}

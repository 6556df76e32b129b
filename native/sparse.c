/* Products with a sparse matrix of fp16 numbers in compressed rows, added to what is there. */
#include "bytes.h"
#include "kernels.h"

#define OF_INDEX(NAME, INDEX)                                                                                          \
    static inline float row_##NAME(const uint16_t *value, const INDEX *column, int64_t count, const float *x)          \
    {                                                                                                                  \
        reals sum = {0};                                                                                               \
        int64_t i = 0;                                                                                                 \
        for (; i + LANES_OUT <= count; i += LANES_OUT) {                                                               \
            float product[LANES_OUT];                                                                                  \
            for (int l = 0; l < LANES_OUT; l++)                                                                        \
                product[l] = half_to_float(value[i + l]) * x[column[i + l]];                                           \
            reals all;                                                                                                 \
            memcpy(&all, product, sizeof all);                                                                         \
            sum += all;                                                                                                \
        }                                                                                                              \
        float rest = 0;                                                                                                \
        for (; i < count; i++)                                                                                         \
            rest += half_to_float(value[i]) * x[column[i]];                                                            \
        return total(sum) + rest;                                                                                      \
    }                                                                                                                  \
    static void rows_##NAME(const uint16_t *value, const void *columns, const int32_t *row, const float *x,            \
                            int64_t tokens, int64_t x_stride, int64_t first, int64_t last, float *out,                 \
                            int64_t out_stride)                                                                        \
    {                                                                                                                  \
        for (int64_t r = first; r < last; r++)                                                                         \
            if (row[r + 1] > row[r])                                                                                   \
                for (int64_t t = 0; t < tokens; t++)                                                                   \
                    out[t * out_stride + r] += row_##NAME(value + row[r], (const INDEX *)columns + row[r],             \
                                                          row[r + 1] - row[r], x + t * x_stride);                      \
    }
OF_INDEX(1, uint8_t)
OF_INDEX(2, uint16_t)
OF_INDEX(4, int32_t)

void NAMED(sparse_rows_, SET)(const isoloss_weight *w, const float *x, int64_t tokens, float *out, int64_t first,
                              int64_t last);

void NAMED(sparse_rows_, SET)(const isoloss_weight *w, const float *x, int64_t tokens, float *out, int64_t first,
                              int64_t last)
{
    (w->outlier_bytes == 1   ? rows_1
     : w->outlier_bytes == 2 ? rows_2
                             : rows_4)(w->outlier, w->outlier_column, w->outlier_row, x, tokens, w->columns, first, last,
                                       out, w->rows);
}

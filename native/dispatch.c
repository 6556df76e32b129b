/* Which instruction set runs: asked of the processor at each call. */
#include "isoloss.h"

#include <stddef.h>

#ifndef ISOLOSS_SOURCE
#define ISOLOSS_SOURCE ""
#endif

typedef int32_t kmeans_rows(const void *, int32_t, int64_t, int64_t, const void *, int32_t, int32_t, int32_t, double *,
                            uint8_t *, double *);

typedef int32_t round_columns(float *, int64_t, int64_t, const float *, int32_t, const int32_t *, int32_t, const float *,
                              const float *, const uint8_t *, uint8_t *, float *);

/* All kernels in one instruction set. */
typedef struct {
    kmeans_rows *kmeans;
    round_columns *columns;
} Kernels;

kmeans_rows kmeans_rows_plain;
round_columns round_columns_plain;
static const Kernels plain = {kmeans_rows_plain, round_columns_plain};

int32_t isoloss_abi(void) { return ISOLOSS_ABI; }

const char *isoloss_source(void) { return ISOLOSS_SOURCE; }

#ifdef ISOLOSS_AVX2
kmeans_rows kmeans_rows_avx2;
round_columns round_columns_avx2;
static const Kernels avx2 = {kmeans_rows_avx2, round_columns_avx2};

static int has_avx2(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") != 0;
}

const char *isoloss_sets(void) { return has_avx2() ? "avx2 plain" : "plain"; }

static const Kernels *chosen(int32_t set)
{
    static const Kernels *const all[] = {&avx2, &plain};
    const int32_t place = set + !has_avx2();
    return set < 0 || place > 1 ? NULL : all[place];
}
#else
const char *isoloss_sets(void) { return "plain"; }

static const Kernels *chosen(int32_t set) { return set == 0 ? &plain : NULL; }
#endif

int32_t isoloss_kmeans_rows(const void *x, int32_t x_double, int64_t rows, int64_t columns, const void *w,
                            int32_t w_double, int32_t w_shared, int32_t levels, double *centres, uint8_t *codes,
                            double *cost, int32_t set)
{
    const Kernels *run = chosen(set);
    if (!run || rows < 0 || columns < 1 || columns > INT32_MAX / 4 || levels < 1 || levels > 256)
        return 2;
    return run->kmeans(x, x_double, rows, columns, w, w_double, w_shared, levels, centres, codes, cost);
}

int32_t isoloss_round_columns(float *x, int64_t columns, int64_t rows, const float *levels, int32_t count,
                              const int32_t *group, int32_t groups, const float *moves, const float *old,
                              const uint8_t *kept, uint8_t *codes, float *moved, int32_t set)
{
    const Kernels *run = chosen(set);
    if (!run || rows < 0 || columns < 0 || columns > INT32_MAX / 4 || count < 1 || count > 256 || groups < 1)
        return 2;
    for (int64_t j = 0; j < columns; j++)
        if (group[j] < 0 || group[j] >= groups)
            return 2;
    return run->columns(x, columns, rows, levels, count, group, groups, moves, old, kept, codes, moved);
}

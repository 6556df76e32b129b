/* Which instruction set runs: asked of the processor at each call. */
#include "isoloss.h"

#include <stddef.h>

#ifndef ISOLOSS_SOURCE
#define ISOLOSS_SOURCE ""
#endif

typedef int32_t kmeans_rows(const void *, int32_t, int64_t, int64_t, const void *, int32_t, int32_t, int32_t, double *,
                            uint8_t *, double *);

kmeans_rows kmeans_rows_plain;

int32_t isoloss_abi(void) { return ISOLOSS_ABI; }

const char *isoloss_source(void) { return ISOLOSS_SOURCE; }

#ifdef ISOLOSS_AVX2
kmeans_rows kmeans_rows_avx2;

static int has_avx2(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") != 0;
}

const char *isoloss_sets(void) { return has_avx2() ? "avx2 plain" : "plain"; }

static kmeans_rows *chosen(int32_t set)
{
    static kmeans_rows *const all[] = {kmeans_rows_avx2, kmeans_rows_plain};
    const int32_t place = set + !has_avx2();
    return set < 0 || place > 1 ? NULL : all[place];
}
#else
const char *isoloss_sets(void) { return "plain"; }

static kmeans_rows *chosen(int32_t set) { return set == 0 ? kmeans_rows_plain : NULL; }
#endif

int32_t isoloss_kmeans_rows(const void *x, int32_t x_double, int64_t rows, int64_t columns, const void *w,
                            int32_t w_double, int32_t w_shared, int32_t levels, double *centres, uint8_t *codes,
                            double *cost, int32_t set)
{
    kmeans_rows *run = chosen(set);
    if (!run || rows < 0 || columns < 1 || columns > INT32_MAX / 4 || levels < 1 || levels > 256)
        return 2;
    return run(x, x_double, rows, columns, w, w_double, w_shared, levels, centres, codes, cost);
}

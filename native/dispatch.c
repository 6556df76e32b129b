/* Which instruction set runs: asked of the processor at each call. */
#define _GNU_SOURCE /* with -std=c11 the system says less */
#include "kernels.h"

#include <stddef.h>
#ifdef ISOLOSS_X86
#include <stdatomic.h>
#endif
#ifdef ISOLOSS_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#ifndef ISOLOSS_SOURCE
#define ISOLOSS_SOURCE ""
#endif

#define DECLARED(SET)                                                                                                  \
    round_tokens round_tokens_##SET;                                                                                   \
    order_tokens order_tokens_##SET;                                                                                   \
    product_rows table_rows_##SET, float_rows_##SET, level_rows_##SET;                                                 \
    add_rows sparse_rows_##SET;                                                                                        \
    plane_product plane_product_##SET;                                                                                 \
    real_product halves_##SET, small_floats_##SET, wide_tables_##SET, vectors_##SET, n_of_m_##SET, blocks_##SET;       \
    read_bytes read_bytes_##SET;                                                                                       \
    decode_tokens decode_tokens_##SET;
/* Products in the order of ISOLOSS_TABLES, ISOLOSS_FLOATS, ISOLOSS_LEVELS, then those of isoloss_reals in the order of their
 * kinds. */
#define DEPLOYED(SET, TURNS, TURNED, UNIT)                                                                             \
    round_tokens_##SET, order_tokens_##SET, TURNS, TURNED, {table_rows_##UNIT, float_rows_##SET, level_rows_##UNIT},   \
        {halves_##SET, small_floats_##SET, wide_tables_##SET, vectors_##SET, n_of_m_##SET, blocks_##SET},              \
        sparse_rows_##SET, plane_product_##SET, read_bytes_##SET, decode_tokens_##SET

kmeans_rows kmeans_rows_plain;
round_columns round_columns_plain;
DECLARED(plain)
static const Kernels plain = {kmeans_rows_plain, round_columns_plain, DEPLOYED(plain, NULL, NULL, plain)};

int32_t isoloss_abi(void) { return ISOLOSS_ABI; }

const char *isoloss_source(void) { return ISOLOSS_SOURCE; }

#ifdef ISOLOSS_X86
kmeans_rows kmeans_rows_avx2;
round_columns round_columns_avx2;
DECLARED(avx2)
DECLARED(avx512)
static const Kernels avx2 = {kmeans_rows_avx2, round_columns_avx2, DEPLOYED(avx2, NULL, NULL, avx2)};
/* k-means and columns are no faster in wider registers. */
static const Kernels avx512 = {kmeans_rows_avx2, round_columns_avx2, DEPLOYED(avx512, NULL, NULL, avx512)};

#ifdef ISOLOSS_AMX
product_rows table_rows_amx, level_rows_amx;
reads_turned reads_turned_amx;
turn_tokens turn_tokens_amx;
static const Kernels amx = {kmeans_rows_avx2, round_columns_avx2,
                            DEPLOYED(avx512, reads_turned_amx, turn_tokens_amx, amx)};

/* Whether the processor has the matrix unit, and the system lets this process use it. */
static int has_amx(void)
{
    enum { TILES = 1 << 24, BYTES = 1 << 25, ASK_FOR = 0x1023, TILE_DATA = 18 };
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & TILES) && (d & BYTES) &&
           !syscall(SYS_arch_prctl, ASK_FOR, TILE_DATA);
}
#else
static int has_amx(void) { return 0; }
#endif

/* How many of plain, avx2, avx512 and amx this processor runs; avx512 with the byte permutes and dot products of 2019. */
static int32_t found(void)
{
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2"))
        return 1;
    if (!__builtin_cpu_supports("fma") || !__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512vbmi") || !__builtin_cpu_supports("avx512vnni") ||
        !__builtin_cpu_supports("avx512vpopcntdq"))
        return 2;
    return 3 + has_amx();
}

/* The same, asked once: it takes microseconds, in a virtual machine tens of them. */
static int32_t known(void)
{
    static atomic_int count;
    int32_t have = atomic_load_explicit(&count, memory_order_relaxed);
    if (!have) {
        have = found();
        atomic_store_explicit(&count, have, memory_order_relaxed);
    }
    return have;
}

const char *isoloss_sets(void)
{
    static const char *const sets[] = {"plain", "avx2 plain", "avx512 avx2 plain", "amx avx512 avx2 plain"};
    return sets[known() - 1];
}

const Kernels *isoloss_kernels(int32_t set)
{
    static const Kernels *const all[] = {
        &plain,
        &avx2,
        &avx512,
#ifdef ISOLOSS_AMX
        &amx,
#endif
    };
    const int32_t count = known();
    return set < 0 || set >= count ? NULL : all[count - 1 - set];
}
#else
const char *isoloss_sets(void) { return "plain"; }

const Kernels *isoloss_kernels(int32_t set) { return set == 0 ? &plain : NULL; }
#endif

int32_t isoloss_kmeans_rows(const void *x, int32_t x_double, int64_t rows, int64_t columns, const void *w,
                            int32_t w_double, int32_t w_shared, int32_t levels, double *centres, uint8_t *codes,
                            double *cost, int32_t set)
{
    const Kernels *run = isoloss_kernels(set);
    if (!run || rows < 0 || columns < 1 || columns > INT32_MAX / 4 || levels < 1 || levels > 256)
        return 2;
    return run->kmeans(x, x_double, rows, columns, w, w_double, w_shared, levels, centres, codes, cost);
}

int32_t isoloss_round_columns(float *x, int64_t columns, int64_t rows, const float *levels, int32_t count,
                              const int32_t *group, int32_t groups, const float *moves, const float *old,
                              const uint8_t *kept, uint8_t *codes, float *moved, int32_t set)
{
    const Kernels *run = isoloss_kernels(set);
    if (!run || rows < 0 || columns < 0 || columns > INT32_MAX / 4 || count < 1 || count > 256 || groups < 1)
        return 2;
    for (int64_t j = 0; j < columns; j++)
        if (group[j] < 0 || group[j] >= groups)
            return 2;
    return run->columns(x, columns, rows, levels, count, group, groups, moves, old, kept, codes, moved);
}

int32_t isoloss_plane_product(const uint64_t *a, int32_t a_bits, int64_t first, int64_t last, const uint64_t *b,
                              int32_t b_bits, int64_t b_rows, int64_t words, int64_t *out, int32_t set)
{
    const Kernels *run = isoloss_kernels(set);
    if (!run || a_bits < 1 || a_bits > 8 || b_bits < 1 || b_bits > 8 || first < 0 || last < first || b_rows < 0 ||
        words < 0 || words > INT32_MAX)
        return 2;
    run->planes(a, a_bits, first, last, b, b_bits, b_rows, words, out);
    return 0;
}

/* A model whose own sizes agree with each other; what its arrays hold is looked at where it is made. */
static int model_fits(const isoloss_model *m)
{
    const int64_t most = INT32_MAX;
    return m->layers >= 0 && m->layers <= most && m->width >= 1 && m->width <= most && m->heads >= 1 &&
           m->heads <= most && m->kv_heads >= 1 && m->heads % m->kv_heads == 0 && m->size >= 2 && m->size <= 256 &&
           m->size % 2 == 0 && m->inner >= 1 && m->inner <= most && m->vocabulary >= 1 && m->vocabulary <= most &&
           m->context >= 1;
}

int64_t isoloss_decode(const isoloss_model *model, const int64_t *ids, const int64_t *position, int64_t tokens,
                       float *const *cache, const int64_t *room, float *hidden, float *logits, uint8_t *scratch,
                       int64_t scratch_bytes, int32_t threads, int32_t set)
{
    const Kernels *run = isoloss_kernels(set);
    if (!run || !model_fits(model) || tokens < 1 || tokens > INT32_MAX || threads < 1 || threads > 1024)
        return -2;
    for (int64_t t = 0; t < tokens; t++)
        if (ids[t] < 0 || ids[t] >= model->vocabulary || position[t] < 0 || position[t] >= model->context ||
            position[t] >= room[t])
            return -2;
    return run->decode(model, ids, position, tokens, cache, room, hidden, logits, scratch, scratch_bytes, threads, set);
}

int32_t isoloss_read_bytes(const uint8_t *from, int64_t count, int32_t set)
{
    const Kernels *run = isoloss_kernels(set);
    return run && count >= 0 ? run->read(from, count) : -1;
}

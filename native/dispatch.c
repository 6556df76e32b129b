/* Which instruction set runs: asked of the processor at each call. */
#define _GNU_SOURCE /* with -std=c11 the system says less */
#include "kernels.h"

#include <stddef.h>
#include <string.h>
#include <stdatomic.h>
#if defined(ISOLOSS_DOTPROD) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(ISOLOSS_DOTPROD) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#ifdef ISOLOSS_X86
#include <cpuid.h>
#endif
#ifdef ISOLOSS_AMX
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

typedef struct {
    const char *name;
    const Kernels *kernels;
} Set;

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

#ifdef ISOLOSS_AVXVNNI
product_rows table_rows_avxvnni, level_rows_avxvnni;
static const Kernels avxvnni = {kmeans_rows_avx2, round_columns_avx2, DEPLOYED(avx2, NULL, NULL, avxvnni)};
#endif

enum { PLAIN, AVX2, AVXVNNI, AVX512, AMX };
static const Set all[] = {
    {"plain", &plain},
    {"avx2", &avx2},
#ifdef ISOLOSS_AVXVNNI
    [AVXVNNI] = {"avxvnni", &avxvnni},
#endif
    [AVX512] = {"avx512", &avx512},
#ifdef ISOLOSS_AMX
    [AMX] = {"amx", &amx},
#endif
};

/* Those that this processor runs, a bit each; avx512 with the byte permutes and dot products of 2019. */
static int32_t found(void)
{
    enum { HALVES = 1 << 29, DOTS = 1 << 4 }; /* older compilers do not know them by name */
    unsigned a, b, c, d;
    int32_t have = 1 << PLAIN;
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__get_cpuid(1, &a, &b, &c, &d) || !(c & HALVES))
        return have;
    have |= 1 << AVX2;
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & DOTS))
        have |= 1 << AVXVNNI;
    if (!__builtin_cpu_supports("fma") || !__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512vbmi") || !__builtin_cpu_supports("avx512vnni") ||
        !__builtin_cpu_supports("avx512vpopcntdq"))
        return have;
    return have | 1 << AVX512 | has_amx() << AMX;
}
#elif defined(ISOLOSS_DOTPROD)
product_rows table_rows_dotprod, level_rows_dotprod;
/* All else is the same: halves to floats and look-ups are in every 64-bit ARM. */
static const Kernels dotprod = {kmeans_rows_plain, round_columns_plain, DEPLOYED(plain, NULL, NULL, dotprod)};
#ifdef ISOLOSS_I8MM
product_rows table_rows_i8mm, level_rows_i8mm;
static const Kernels i8mm = {kmeans_rows_plain, round_columns_plain, DEPLOYED(plain, NULL, NULL, i8mm)};
#endif

#if defined(__linux__)
static int has_dotprod(void) { return (getauxval(AT_HWCAP) >> 20) & 1; } /* HWCAP_ASIMDDP */
static int has_i8mm(void) { return (getauxval(AT_HWCAP2) >> 13) & 1; }   /* HWCAP2_I8MM */
#elif defined(__APPLE__)
static int has(const char *name)
{
    int32_t answer = 0;
    size_t size = sizeof answer;
    return !sysctlbyname(name, &answer, &size, NULL, 0) && answer;
}
static int has_dotprod(void) { return has("hw.optional.arm.FEAT_DotProd"); }
static int has_i8mm(void) { return has("hw.optional.arm.FEAT_I8MM"); }
#else
static int has_dotprod(void) { return 0; }
static int has_i8mm(void) { return 0; }
#endif

enum { PLAIN, DOTPROD, I8MM };
static const Set all[] = {
    {"plain", &plain},
    {"dotprod", &dotprod},
#ifdef ISOLOSS_I8MM
    {"i8mm", &i8mm},
#endif
};

/* Those that this processor runs, a bit each. */
static int32_t found(void) { return 1 << PLAIN | has_dotprod() << DOTPROD | (has_dotprod() && has_i8mm()) << I8MM; }
#else
static const Set all[] = {{"plain", &plain}};

static int32_t found(void) { return 1; }
#endif

enum { COUNT = sizeof all / sizeof *all };

/* Those that are compiled in too, asked once: it takes microseconds, in a virtual machine tens of them. */
static int32_t known(void)
{
    static atomic_int asked;
    int32_t have = atomic_load_explicit(&asked, memory_order_relaxed);
    if (!have) {
        have = found();
        for (int32_t i = 0; i < 31; i++)
            if (i >= COUNT || !all[i].kernels)
                have &= ~(1 << i);
        atomic_store_explicit(&asked, have, memory_order_relaxed);
    }
    return have;
}

const char *isoloss_sets(void)
{
    static char text[64]; /* whoever else writes it writes the same */
    const int32_t have = known();
    char *to = text;
    for (int32_t i = COUNT - 1; i >= 0; i--)
        if (have >> i & 1) {
            const size_t length = strlen(all[i].name);
            if (to > text)
                *to++ = ' ';
            memcpy(to, all[i].name, length);
            to += length;
        }
    return text;
}

const Kernels *isoloss_kernels(int32_t set)
{
    const int32_t have = known();
    for (int32_t i = COUNT - 1; i >= 0 && set >= 0; i--)
        if (have >> i & 1 && set-- == 0)
            return all[i].kernels;
    return NULL;
}

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

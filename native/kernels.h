/* What the kernels of products are given, and how they are found; between C files alone. */
#ifndef ISOLOSS_KERNELS_H
#define ISOLOSS_KERNELS_H

#include "isoloss.h"

#ifndef SET
#define SET plain
#endif
#define JOINED(a, b) a##b
#define NAMED(a, b) JOINED(a, b)

/* Activations in 8 bits, or in 16 as two tokens of 8: code = 256 high + low, high first. */
typedef struct {
    int8_t *codes;      /* tokens * width, at multiples of 64 bytes; what no column has is 0 */
    float *scale;       /* tokens * runs; high: times 256; NaN where a number is NaN or infinite */
    int32_t *sum;       /* tokens * runs: of the codes */
    float *segment_sum; /* tokens * segments: sum of scale * sum, in order */
} Rounded;

/* Rounded activations once more, as amx.c reads them: 16 tokens side by side. */
typedef struct {
    int8_t *codes;      /* tokens of 16, runs, 128, 16, 4 */
    float *scale;       /* tokens of 16, runs, 16 */
    float *segment_sum; /* tokens of 16, segments, 16 */
} Turned;

typedef struct {
    const isoloss_weight *weight;
    int64_t tokens; /* with 16 bits two for each */
    Rounded x;
    Turned turned;
    const float *floats; /* tokens * runs * 512, in the order that floats.c reads */
    float *out;          /* tokens * rows */
} Product;

/* Tokens first to last, rounded into `to` or laid out in order. */
typedef void round_tokens(const isoloss_weight *weight, const float *x, int32_t parts, Rounded to, int64_t first,
                          int64_t last);
typedef void order_tokens(const isoloss_weight *weight, const float *x, float *to, int64_t first, int64_t last);
/* Up to 16 tokens from `first` (a multiple of 16) on. */
typedef void turn_tokens(const Product *product, int64_t first);
/* Whether products with so many tokens read turned ones. */
typedef int32_t reads_turned(const isoloss_weight *weight, int64_t tokens);
/* Rows first (a multiple of 16) to last of all tokens. */
typedef void product_rows(const Product *product, int64_t first, int64_t last);
/* Adds rows first to last; `beside`: the same activations, 16 tokens side by side (tokens of 16, columns, 16), or NULL. */
typedef void add_rows(const isoloss_weight *weight, const float *x, const float *beside, int64_t tokens, float *out,
                      int64_t first, int64_t last);

/* Rows first to last of tokens that stay floats; 0, or 1: no memory. */
typedef int32_t real_product(const isoloss_reals *matrix, const float *x, int64_t tokens, int64_t first, int64_t last,
                             float *out, int64_t stride);

typedef int32_t kmeans_rows(const void *, int32_t, int64_t, int64_t, const void *, int32_t, int32_t, int32_t, double *,
                            uint8_t *, double *);
typedef int32_t round_columns(float *, int64_t, int64_t, const float *, int32_t, const int32_t *, int32_t, const float *,
                              const float *, const uint8_t *, uint8_t *, float *);
typedef void plane_product(const uint64_t *, int32_t, int64_t, int64_t, const uint64_t *, int32_t, int64_t, int64_t,
                           int64_t *);
typedef int32_t read_bytes(const uint8_t *, int64_t);
typedef int64_t decode_tokens(const isoloss_model *, const int64_t *, const int64_t *, int64_t, float *const *,
                              const int64_t *, float *, float *, uint8_t *, int64_t, int32_t, int32_t);

/* All kernels in one instruction set. */
typedef struct {
    kmeans_rows *kmeans;
    round_columns *columns;
    round_tokens *rounded;
    order_tokens *ordered;
    reads_turned *turns; /* NULL: none does */
    turn_tokens *turned;
    product_rows *product[3]; /* by kind of isoloss_weight */
    real_product *reals[6];   /* by kind of isoloss_reals */
    add_rows *sparse;
    plane_product *planes;
    read_bytes *read;
    decode_tokens *decode;
} Kernels;

/* Those of a place in isoloss_sets(), or NULL. */
const Kernels *isoloss_kernels(int32_t set);

/* work(context, 0) to work(context, chunks - 1), in any order, by up to `threads` threads, this one among them; returns when
 * all are done. */
typedef void work_chunk(void *context, int64_t chunk);
void isoloss_share(work_chunk *work, void *context, int64_t chunks, int32_t threads);

#endif

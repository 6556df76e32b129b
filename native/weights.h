/* What kernels of one kind of weight share. */
#ifndef ISOLOSS_WEIGHTS_H
#define ISOLOSS_WEIGHTS_H

#include "bytes.h"
#include "kernels.h"

enum { TILE = LANES_OUT };

/* How far ahead codes are asked for: whole tiles, so that each line of the next is asked for once, whatever the order. */
ALWAYS int64_t ahead_of(int64_t tile_bytes)
{
    enum { LEAST = 1 << 14 };
    return tile_bytes < LEAST ? (LEAST + tile_bytes - 1) / (tile_bytes > 0 ? tile_bytes : 1) * tile_bytes : tile_bytes;
}

/* Scales of a tile, from place `at` on. */
ALWAYS reals scales_of(const isoloss_weight *m, int64_t at)
{
    reals v;
    if (!m->half) {
        memcpy(&v, (const float *)m->scale + at, sizeof v);
        return v;
    }
    const uint16_t *from = (const uint16_t *)m->scale + at;
#if defined(__AVX512F__)
    return (reals)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
#else
    float all[TILE];
    for (int i = 0; i < TILE; i++)
        all[i] = half_to_float(from[i]);
    memcpy(&v, all, sizeof v);
    return v;
#endif
}

/* Its zero-points. */
ALWAYS whole zeros_of(const isoloss_weight *m, int64_t at)
{
#if defined(__AVX512F__)
    return (whole)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(m->zero + at)));
#else
    int32_t all[TILE];
    for (int i = 0; i < TILE; i++)
        all[i] = m->zero[at + i];
    whole v;
    memcpy(&v, all, sizeof v);
    return v;
#endif
}

#endif

/* What kernels of one kind of weight share. */
#ifndef ISOLOSS_WEIGHTS_H
#define ISOLOSS_WEIGHTS_H

#include "bytes.h"
#include "kernels.h"

enum { TILE = LANES_OUT };

/* Tokens multiplied at once, so that codes are looked up once for them; more than four want more registers than AVX2 has. */
#if defined(ISOLOSS_AVX2)
enum { MOST_TOKENS = 4 };
#define WITH_COUNTS(OF, BITS) OF(BITS, 1) OF(BITS, 2) OF(BITS, 3) OF(BITS, 4)
#else
enum { MOST_TOKENS = 8 };
#define WITH_COUNTS(OF, BITS) OF(BITS, 1) OF(BITS, 2) OF(BITS, 3) OF(BITS, 4) OF(BITS, 8)
#endif

/* Of so many tokens that are left, one of these counts, and its place among them. */
ALWAYS int count_of(int64_t left) { return left >= MOST_TOKENS ? MOST_TOKENS : left >= 4 ? 4 : (int)left; }
ALWAYS int place_of_count(int count) { return count < 8 ? count - 1 : 4; }

/* How far ahead codes are asked for: whole tiles, so that each line of the next is asked for once, whatever the order. */
ALWAYS int64_t ahead_of(int64_t tile_bytes)
{
    enum { LEAST = 1 << 14 };
    return tile_bytes < LEAST ? (LEAST + tile_bytes - 1) / (tile_bytes > 0 ? tile_bytes : 1) * tile_bytes : tile_bytes;
}

/* Scales of a tile, from place `at` on. */
ALWAYS reals scales_of(const isoloss_weight *m, int64_t at)
{
    if (m->half)
        return halves_at((const uint16_t *)m->scale + at);
    reals v;
    memcpy(&v, (const float *)m->scale + at, sizeof v);
    return v;
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

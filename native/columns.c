/* Columns of a matrix rounded one after another, each error passed on to other columns; compiled once per set (SET).
 *
 * The matrix lies column by column, so that rows are the lanes. A tile of rows is copied out and stays in the cache.
 */
#include "isoloss.h"

#include <stdlib.h>
#include <string.h>

#ifndef SET
#define SET plain
#endif
#define JOINED(a, b) a##b
#define NAMED(a, b) JOINED(a, b)

enum { TILE = 64 };

/* The nearest of ascending values; of two the lower. */
static inline void nearest(const float *x, const float *levels, int32_t count, int64_t stride, float *value,
                           int32_t *place)
{
    for (int i = 0; i < TILE; i++) {
        value[i] = levels[i];
        place[i] = 0;
    }
    for (int32_t l = 1; l < count; l++) {
        const float *low = levels + (l - 1) * stride, *high = low + stride;
        for (int i = 0; i < TILE; i++) {
            const int32_t above = x[i] + x[i] > low[i] + high[i];
            value[i] = above ? high[i] : value[i];
            place[i] += above;
        }
    }
}

int32_t NAMED(round_columns_, SET)(float *x, int64_t columns, int64_t rows, const float *levels, int32_t count,
                                   const int32_t *group, int32_t groups, const float *moves, const float *old,
                                   const uint8_t *kept, uint8_t *codes, float *moved);

int32_t NAMED(round_columns_, SET)(float *x, int64_t columns, int64_t rows, const float *levels, int32_t count,
                                   const int32_t *group, int32_t groups, const float *moves, const float *old,
                                   const uint8_t *kept, uint8_t *codes, float *moved)
{
    float *tile = calloc((size_t)columns * TILE, sizeof *tile);
    float *grid = calloc((size_t)groups * (size_t)count * TILE, sizeof *grid);
    if (!tile || !grid) {
        free(tile);
        free(grid);
        return 1;
    }
    for (int64_t first = 0; first < rows; first += TILE) {
        const int64_t wide = rows - first < TILE ? rows - first : TILE;
        for (int64_t j = 0; j < columns; j++)
            memcpy(tile + j * TILE, x + j * rows + first, (size_t)wide * sizeof *tile);
        for (int64_t l = 0; l < (int64_t)groups * count; l++)
            memcpy(grid + l * TILE, levels + l * rows + first, (size_t)wide * sizeof *grid);
        for (int64_t j = 0; j < columns; j++) {
            const int64_t at = j * rows + first;
            float *here = tile + j * TILE;
            float value[TILE], gap[TILE];
            int32_t place[TILE];
            nearest(here, grid + (int64_t)group[j] * count * TILE, count, TILE, value, place);
            if (kept)
                for (int64_t i = 0; i < wide; i++)
                    value[i] = kept[at + i] ? here[i] : value[i];
            for (int i = 0; i < TILE; i++)
                gap[i] = value[i] - here[i];
            if (old)
                for (int64_t i = 0; i < wide; i++)
                    gap[i] = value[i] - old[at + i];
            for (int64_t i = 0; i < wide; i++)
                codes[at + i] = (uint8_t)place[i];
            memcpy(moved + at, gap, (size_t)wide * sizeof *gap);
            for (int64_t k = old ? 0 : j + 1; k < columns; k++) {
                const float share = moves[j * columns + k];
                float *to = tile + k * TILE;
                if (k != j)
                    for (int i = 0; i < TILE; i++)
                        to[i] += share * gap[i];
            }
        }
        for (int64_t j = 0; j < columns; j++)
            memcpy(x + j * rows + first, tile + j * TILE, (size_t)wide * sizeof *tile);
    }
    free(tile);
    free(grid);
    return 0;
}

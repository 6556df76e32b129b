/* Activations rounded to 8 or 16 bits, a scale per token and run of columns; compiled once per set (SET).
 *
 * 16 bits are two tokens of 8 bits: code = 256 high + low, with scales of that ratio.
 */
#include "bytes.h"
#include "kernels.h"

#include <math.h>

#define TINY 0x1p-126f /* scales below are 0, and so are their codes */

/* To the nearest whole number, ties to even, up to 2^22 in size. */
static inline float nearest(float v) { return (v + 0x1.8p23f) - 0x1.8p23f; }

/* The largest size; NaN where a number is NaN or infinite. The bits of sizes rise with them, and whole numbers are compared
 * in any order. */
static float largest(const float *x, int32_t count)
{
    const int32_t infinite = 0x7f800000;
    int32_t most = 0;
    for (int32_t i = 0; i < count; i++) {
        int32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= INT32_MAX;
        most = bits > most ? bits : most;
    }
    float size;
    memcpy(&size, &most, sizeof size);
    return most >= infinite ? NAN : size;
}

void NAMED(round_tokens_, SET)(const isoloss_weight *w, const float *x, int32_t parts, Rounded to, int64_t first,
                               int64_t last);

void NAMED(round_tokens_, SET)(const isoloss_weight *w, const float *x, int32_t parts, Rounded to, int64_t first,
                               int64_t last)
{
    const float levels = parts == 2 ? 32512 : 127;
    memset(to.codes + first * parts * w->width, 0, (size_t)((last - first) * parts * w->width));
    memset(to.segment_sum + first * parts * w->segments, 0,
           (size_t)((last - first) * parts * w->segments) * sizeof *to.segment_sum);
    for (int64_t t = first; t < last; t++)
        for (int64_t b = 0; b < w->runs; b++) {
            const int32_t count = w->count[b], wide = w->wide[b];
            const float *from = x + t * w->columns + w->start[b];
            const float most = largest(from, count), ratio = most / levels;
            const float unit = ratio < TINY ? 0 : ratio, divisor = unit > 0 ? unit : 1;
            int32_t low_sum = 0, high_sum = 0;
            int8_t *const one = to.codes + t * parts * w->width + w->place[b], *const other = one + w->width;
            if (unit > 0)
                for (int32_t done = 0, plane = 0; done < count; done += wide, plane++) {
                    const int32_t left = count - done, here = left < wide ? left : wide;
                    int8_t *const high_to = one + plane * w->stride, *const low_to = other + plane * w->stride;
                    if (parts == 1)
                        for (int32_t i = 0; i < here; i++) {
                            const int32_t code = (int32_t)nearest(from[done + i] / divisor);
                            high_to[i] = (int8_t)code;
                            low_sum += code;
                        }
                    else
                        for (int32_t i = 0; i < here; i++) {
                            const int32_t code = (int32_t)nearest(from[done + i] / divisor);
                            const int32_t low = ((code + 128) & 255) - 128, high = (code - low) / 256;
                            high_to[i] = (int8_t)high;
                            low_to[i] = (int8_t)low;
                            high_sum += high;
                            low_sum += low;
                        }
                }
            for (int32_t part = 0; part < parts; part++) {
                const int64_t row = t * parts + part;
                const int is_high = parts == 2 && part == 0;
                const float own = is_high ? 256 * unit : unit;
                const int32_t own_sum = is_high ? high_sum : low_sum;
                to.scale[row * w->runs + b] = own;
                to.sum[row * w->runs + b] = own_sum;
                to.segment_sum[row * w->segments + w->segment[b]] += own * (float)own_sum;
            }
        }
}

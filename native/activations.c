/* Activations rounded to 8 or 16 bits, a scale per token and run of columns; compiled once per set (SET).
 *
 * 16 bits are two tokens of 8 bits: code = 256 high + low, with scales of that ratio.
 */
#include "bytes.h"
#include "isoloss.h"

#include <math.h>

#ifndef SET
#define SET plain
#endif
#define JOINED(a, b) a##b
#define NAMED(a, b) JOINED(a, b)

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

void NAMED(activations_, SET)(const float *x, int64_t tokens, int64_t columns, const int32_t *start,
                              const int32_t *count, const int32_t *wide, int32_t stride, const int64_t *place,
                              const int32_t *segment, int64_t runs, int64_t segments, int64_t width, int32_t parts,
                              int8_t *codes, float *scale, int32_t *sum, float *whole_sum);

void NAMED(activations_, SET)(const float *x, int64_t tokens, int64_t columns, const int32_t *start,
                              const int32_t *count, const int32_t *wide, int32_t stride, const int64_t *place,
                              const int32_t *segment, int64_t runs, int64_t segments, int64_t width, int32_t parts,
                              int8_t *codes, float *scale, int32_t *sum, float *whole_sum)
{
    const float levels = parts == 2 ? 32512 : 127;
    memset(codes, 0, (size_t)(tokens * parts * width));
    memset(whole_sum, 0, (size_t)(tokens * parts * segments) * sizeof *whole_sum);
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t b = 0; b < runs; b++) {
            const float *from = x + t * columns + start[b];
            const float most = largest(from, count[b]), ratio = most / levels;
            const float unit = ratio < TINY ? 0 : ratio, divisor = unit > 0 ? unit : 1;
            int32_t low_sum = 0, high_sum = 0;
            int8_t *const first = codes + t * parts * width + place[b], *const second = first + width;
            if (unit > 0)
                for (int32_t done = 0, plane = 0; done < count[b]; done += wide[b], plane++) {
                    const int32_t left = count[b] - done, here = left < wide[b] ? left : wide[b];
                    int8_t *const to = first + (int64_t)plane * stride, *const beside = second + (int64_t)plane * stride;
                    if (parts == 1)
                        for (int32_t i = 0; i < here; i++) {
                            const int32_t code = (int32_t)nearest(from[done + i] / divisor);
                            to[i] = (int8_t)code;
                            low_sum += code;
                        }
                    else
                        for (int32_t i = 0; i < here; i++) {
                            const int32_t code = (int32_t)nearest(from[done + i] / divisor);
                            const int32_t low = ((code + 128) & 255) - 128, high = (code - low) / 256;
                            to[i] = (int8_t)high;
                            beside[i] = (int8_t)low;
                            high_sum += high;
                            low_sum += low;
                        }
                }
            for (int32_t part = 0; part < parts; part++) {
                const int64_t row = t * parts + part;
                const int is_high = parts == 2 && part == 0;
                const float own = is_high ? 256 * unit : unit;
                const int32_t own_sum = is_high ? high_sum : low_sum;
                scale[row * runs + b] = own;
                sum[row * runs + b] = own_sum;
                whole_sum[row * segments + segment[b]] += own * (float)own_sum;
            }
        }
}

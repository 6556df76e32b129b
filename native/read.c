/* Memory read and nothing else: how fast that goes; compiled once per set (SET). */
#include "bytes.h"
#include "kernels.h"

int32_t NAMED(read_bytes_, SET)(const uint8_t *from, int64_t count);

/* All bytes of whole blocks of 256, by OR. */
int32_t NAMED(read_bytes_, SET)(const uint8_t *from, int64_t count)
{
    enum { STREAMS = 4 * WIDE / PART, AHEAD = 1024 };
    longs seen[STREAMS] = {{0}};
    for (int64_t at = 0; at + STREAMS * PART <= count; at += STREAMS * PART)
        UNROLLED(16)
        for (int k = 0; k < STREAMS; k++) {
            if (k * PART % WIDE == 0)
                __builtin_prefetch(from + at + k * PART + AHEAD);
            seen[k] |= (longs)load_bytes(from + at + k * PART);
        }
    longs all = {0};
    for (int k = 0; k < STREAMS; k++)
        all |= seen[k];
    int64_t bits = 0;
    for (int i = 0; i < PART / 8; i++)
        bits |= all[i];
    return (int32_t)(bits & 255);
}

/* Memory read and nothing else: how fast that goes; compiled once per set (SET). */
#include "bytes.h"
#include "kernels.h"

int32_t NAMED(read_bytes_, SET)(const uint8_t *from, int64_t count);

/* All bytes of whole blocks of 256, by OR. */
int32_t NAMED(read_bytes_, SET)(const uint8_t *from, int64_t count)
{
    enum { STREAMS = 4, AHEAD = 1024 };
    longs seen[STREAMS] = {{0}};
    for (int64_t at = 0; at + STREAMS * WIDE <= count; at += STREAMS * WIDE)
        UNROLLED(4)
        for (int k = 0; k < STREAMS; k++) {
            __builtin_prefetch(from + at + k * WIDE + AHEAD);
            seen[k] |= (longs)load_bytes(from + at + k * WIDE);
        }
    longs all = (seen[0] | seen[1]) | (seen[2] | seen[3]);
    int64_t bits = 0;
    for (int i = 0; i < 8; i++)
        bits |= all[i];
    return (int32_t)(bits & 255);
}

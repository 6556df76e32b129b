/* Calls of the library that a file holds, with every set of instructions: `replay CALLS ANSWERS`.
 *
 * CALLS: 64-bit numbers: bytes of the memory, how many pointers lie in it, how many calls; of each pointer its place and what it
 * points to; of each call which function it is and its arguments, 16 numbers; then the memory. Pointers are places in it, 0 is
 * NULL. ANSWERS: of each set its name in 16 bytes, what each call gave, the memory afterwards.
 */
#include "isoloss.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NUMBERS = 16, NAME = 16, ALIGNED = 64 };

typedef struct {
    int64_t bytes, pointers, calls;
} Header;

static char *memory;

static void *at(int64_t place) { return place ? memory + place : NULL; }

static int64_t call(const int64_t *a, int32_t set)
{
    enum { FITS, PRODUCT, PLANES, KMEANS, COLUMNS, READ, DECODE };
    const int64_t *const g = a + 1;
    switch (a[0]) {
    case FITS:
        return isoloss_weight_fits(at(g[0]));
    case PRODUCT:
        return isoloss_product(at(g[0]), at(g[1]), g[2], (int32_t)g[3], at(g[4]), at(g[5]), (int32_t)g[6], set);
    case PLANES:
        return isoloss_plane_product(at(g[0]), (int32_t)g[1], g[2], g[3], at(g[4]), (int32_t)g[5], g[6], g[7], at(g[8]), set);
    case KMEANS:
        return isoloss_kmeans_rows(at(g[0]), (int32_t)g[1], g[2], g[3], at(g[4]), (int32_t)g[5], (int32_t)g[6],
                                   (int32_t)g[7], at(g[8]), at(g[9]), at(g[10]), set);
    case COLUMNS:
        return isoloss_round_columns(at(g[0]), g[1], g[2], at(g[3]), (int32_t)g[4], at(g[5]), (int32_t)g[6], at(g[7]),
                                     at(g[8]), at(g[9]), at(g[10]), at(g[11]), set);
    case READ:
        return isoloss_read_bytes(at(g[0]), g[1], set);
    case DECODE:
        return isoloss_decode(at(g[0]), at(g[1]), at(g[2]), g[3], at(g[4]), at(g[5]), at(g[6]), at(g[7]), at(g[8]), g[9],
                              (int32_t)g[10], set);
    default:
        return -99;
    }
}

static int64_t *read_numbers(int64_t count, FILE *from)
{
    int64_t *const numbers = malloc((size_t)count * sizeof *numbers + 1);
    if (!numbers || fread(numbers, sizeof *numbers, (size_t)count, from) != (size_t)count)
        exit(2);
    return numbers;
}

int main(int count, char **words)
{
    Header header;
    FILE *const from = count == 3 ? fopen(words[1], "rb") : NULL, *const to = from ? fopen(words[2], "wb") : NULL;
    if (!to || fread(&header, sizeof header, 1, from) != 1)
        return 2;
    const int64_t *const pointers = read_numbers(2 * header.pointers, from);
    const int64_t *const calls = read_numbers(NUMBERS * header.calls, from);
    const size_t bytes = (size_t)header.bytes;
    char *const kept = malloc(bytes), *const room = malloc(bytes + ALIGNED);
    if (!kept || !room || fread(kept, 1, bytes, from) != bytes)
        return 2;
    memory = room + (ALIGNED - (intptr_t)room % ALIGNED);
    const char *name = isoloss_sets();
    for (int32_t set = 0; *name; set++) {
        char own[NAME] = {0};
        const size_t letters = strcspn(name, " ");
        memcpy(own, name, letters < NAME ? letters : NAME - 1);
        name += letters + strspn(name + letters, " ");
        fwrite(own, 1, NAME, to);
        memcpy(memory, kept, bytes);
        for (int64_t i = 0; i < header.pointers; i++) {
            char *const goal = at(pointers[2 * i + 1]);
            memcpy(memory + pointers[2 * i], &goal, sizeof goal);
        }
        for (int64_t i = 0; i < header.calls; i++) {
            const int64_t answer = call(calls + i * NUMBERS, set);
            fwrite(&answer, sizeof answer, 1, to);
        }
        fwrite(memory, 1, bytes, to);
    }
    return fclose(to) ? 2 : 0;
}

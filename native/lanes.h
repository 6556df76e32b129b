/* A few doubles at once, in the vector types of GCC and Clang, as wide as the instruction set compiled for.
 *
 * Each operation rounds each number once whatever the width, and the compiler may not contract, so that all
 * instruction sets give the same bits.
 */
#ifndef ISOLOSS_LANES_H
#define ISOLOSS_LANES_H

#include <stdint.h>

/* Eight lanes of AVX-512 are slower here: most searches are over fewer places. */
#if defined(__AVX2__)
#define LANES 4
#else
#define LANES 2
#endif

typedef double lanes __attribute__((vector_size(8 * LANES)));
typedef int64_t marks __attribute__((vector_size(8 * LANES))); /* places, or all bits where a comparison holds */
typedef double unaligned __attribute__((vector_size(8 * LANES), aligned(8), may_alias));

static inline lanes load(const double *from) { return *(const unaligned *)from; }

static inline lanes lanes_of(double one)
{
    lanes all;
    for (int i = 0; i < LANES; i++)
        all[i] = one;
    return all;
}

static inline marks marks_from(int64_t first)
{
    marks all;
    for (int i = 0; i < LANES; i++)
        all[i] = first + i;
    return all;
}

static inline marks choose_marks(marks where, marks yes, marks no) { return (where & yes) | (~where & no); }

static inline lanes choose(marks where, lanes yes, lanes no)
{
    return (lanes)choose_marks(where, (marks)yes, (marks)no);
}

#ifdef __clang__
#define SHUFFLED(v, ...) __builtin_shufflevector(v, v, __VA_ARGS__)
#else
#define SHUFFLED(v, ...) __builtin_shuffle(v, (marks){__VA_ARGS__})
#endif

/* The lower of two values, at equal values the lower place: no branch, as none could be foreseen. */
static inline void keep_lower(lanes *value, marks *place, lanes other, marks other_place)
{
    const marks take = (other < *value) | ((other == *value) & (other_place < *place));
    *value = choose(take, other, *value);
    *place = choose_marks(take, other_place, *place);
}

/* The lowest value of all lanes, and the lowest place that has it. */
static inline double lowest(lanes value, marks place, int32_t *at)
{
#if LANES == 4
    keep_lower(&value, &place, SHUFFLED(value, 2, 3, 0, 1), SHUFFLED(place, 2, 3, 0, 1));
    keep_lower(&value, &place, SHUFFLED(value, 1, 0, 3, 2), SHUFFLED(place, 1, 0, 3, 2));
#else
    keep_lower(&value, &place, SHUFFLED(value, 1, 0), SHUFFLED(place, 1, 0));
#endif
    *at = (int32_t)place[0];
    return value[0];
}

#endif

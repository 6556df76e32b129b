/* The best partition of m ordered, weighted points into K runs: sum over runs of w (x - mean of the run)^2.
 *
 * A boundary is a place between points, 0 .. m; run (i, j] costs c(i, j), from prefix sums. c satisfies the quadrangle
 * inequality c(a, c) + c(b, d) <= c(a, d) + c(b, c) for a <= b <= c <= d, and three facts follow from it:
 *
 * 1. If start i' > i is the better of two for end j, it is so for every later end. So best starts never move back,
 *    and those of many ends are found by halving (`best_starts`).
 * 2. With a price per run instead of a number of runs, a partition of least cost plus price is also the best of all
 *    with its number of runs (`partition_at_price`), and that number falls as the price rises.
 * 3. From a best partition p into k runs, one into k + 1 has its i-th boundary in [p(i-1), p(i)] (`one_more_run`;
 *    Aggarwal, Schieber and Tokuyama 1994, "Finding a minimum-weight k-link path in graphs with the concave Monge
 *    property").
 *
 * `partition` looks for a price at which the best partition has K runs, on every few points first. Each try costs
 * m log m whatever K is. If no price gives K (ties), it goes on from fewer runs, one by one.
 */
#ifndef PARTITION_H
#define PARTITION_H

#include "lanes.h"

#include <math.h>
#include <string.h>

/* Prefix sums of w, w x and w x^2 at the boundaries, LANES more entries allocated than boundaries. */
typedef struct {
    const double *w, *wx, *wxx;
} Sums;

/* What the search writes on; see `workspace` in kmeans.c for the sizes. */
typedef struct {
    double *least, *before; /* least cost up to a boundary */
    int32_t *from;          /* and the start of its last run */
    double *w, *wx, *wxx;   /* sums at some boundaries */
    int32_t *path, *next;   /* boundaries of a partition */
} Scratch;

/* min over starts i in [low, high] of least[i] + c(i, j), and the first i that reaches it. */
static inline double best_start(const Sums *s, const double *least, int32_t j, int32_t low, int32_t high, int32_t *at)
{
    const lanes w = lanes_of(s->w[j]), wx = lanes_of(s->wx[j]), wxx = lanes_of(s->wxx[j]);
    lanes best = lanes_of(INFINITY);
    marks start = marks_from(low), best_at = start;
    int32_t i = low;
    for (; i + LANES <= high + 1; i += LANES, start += LANES) {
        const lanes dw = w - load(s->w + i), dx = wx - load(s->wx + i), dxx = wxx - load(s->wxx + i);
        const lanes value = load(least + i) + (dxx - dx * dx / dw);
        const marks better = value < best;
        best = choose(better, value, best);
        best_at = choose_marks(better, start, best_at);
    }
    if (i <= high) { /* the last few: lanes past `high` hold no number that counts */
        const lanes dw = w - load(s->w + i), dx = wx - load(s->wx + i), dxx = wxx - load(s->wxx + i);
        const lanes value = load(least + i) + (dxx - dx * dx / dw);
        const marks better = (value < best) & (start <= (int64_t)high);
        best = choose(better, value, best);
        best_at = choose_marks(better, start, best_at);
    }
    return lowest(best, best_at, at);
}

static inline int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }
static inline int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }

/* Best starts in [low, high] for the ends first .. last (each end after its start), by halving. */
static void best_starts(const Sums *s, const double *least, int32_t first, int32_t last, int32_t low, int32_t high,
                        double price, double *out, int32_t *from)
{
    out[last] = best_start(s, least, last, low, smaller(high, last - 1), &from[last]) + price;
    int32_t step = 1;
    while (step <= last - first)
        step *= 2;
    for (; step > 0; step /= 2)
        for (int32_t j = first - 1 + step; j < last; j += 2 * step) {
            const int32_t after = smaller(j + step, last);
            const int32_t begin = j - step < first ? low : from[j - step];
            out[j] = best_start(s, least, j, begin, smaller(from[after], j - 1), &from[j]) + price;
        }
}

/* Boundaries of the partition of least cost + price * runs, to `path` if it has at most `room` runs; the runs. */
static int32_t partition_at_price(const Sums *s, int32_t m, double price, double *least, int32_t *from, int32_t room,
                                  int32_t *path)
{
    int32_t done = 0, size = 1;
    least[0] = 0;
    from[0] = 0;
    /* Ends are taken in blocks, as if no run began inside their block. */
    while (done < m) {
        const int32_t last = smaller(done + size, m);
        best_starts(s, least, done + 1, last, from[done], done, price, least, from);
        if (last - done > 1) {
            /* One that would, and were better for an end in the block, would by fact 1 be better for its last end. */
            int32_t at;
            if (best_start(s, least, last, done + 1, last - 1, &at) + price < least[last]) {
                size = (last - done) / 2;
                continue;
            }
        }
        done = last;
        size = larger(1, smaller(2 * size, (done - from[done]) / 2));
    }
    int32_t runs = 0;
    for (int32_t j = m; j > 0; j = from[j])
        runs++;
    if (runs <= room) {
        int32_t i = runs;
        for (int32_t j = m; i >= 0; j = from[j])
            path[i--] = j;
    }
    return runs;
}

/* From the best partition t->path into k runs the best into k + 1, to t->next. */
static void one_more_run(const Sums *s, int32_t k, Scratch *t)
{
    const int32_t *path = t->path;
    double *least = t->least, *before = t->before;
    before[0] = 0;
    /* Windows share their ends, so that window i keeps its starts i places further on. */
    for (int32_t i = 1; i <= k; i++) {
        const int32_t low = i > 1 ? path[i - 2] : 0;
        best_starts(s, before, larger(path[i - 1], 1), path[i], low, path[i - 1], 0, least, t->from + i);
        double *swap = least;
        least = before;
        before = swap;
    }
    int32_t j = path[k];
    t->next[k + 1] = j;
    best_start(s, before, j, path[k - 1], j - 1, &j);
    for (int32_t i = k; i > 0; i--) {
        t->next[i] = j;
        j = t->from[i + j];
    }
    t->next[0] = 0;
}

static void swap_paths(Scratch *t)
{
    int32_t *swap = t->path;
    t->path = t->next;
    t->next = swap;
}

/* A first price: for many levels the least cost is (integral of density^(1/3))^3 / 12 K^2 (Panter and Dite 1951), and
 * the price is how much one more run saves. */
static double first_price(const Sums *s, const double *x, int32_t m, int32_t levels)
{
    const int32_t step = larger(1, m / (4 * levels));
    double total = 0;
    for (int32_t i = 0; i + 1 < m; i += step) {
        const int32_t j = smaller(i + step, m - 1);
        const double width = x[j] - x[i];
        total += cbrt((s->w[j] - s->w[i]) * width * width);
    }
    return total * total * total / (6.0 * levels * levels * levels);
}

/* Sums at some boundaries only, `few` of w (width)^2 apart, or next to each other where one gap is more; how many. */
static int32_t thin(const Sums *s, const double *x, int32_t m, double few, Scratch *t)
{
    int32_t places = 0, last = 0;
    for (int32_t j = 0; j <= m; j++) {
        const double width = x[smaller(j, m - 1)] - x[last];
        if (j > 0 && j < m && (s->w[j] - s->w[last]) * width * width < few)
            continue;
        t->w[places] = s->w[j];
        t->wx[places] = s->wx[j];
        t->wxx[places++] = s->wxx[j];
        last = j;
    }
    return places - 1;
}

typedef struct {
    double low, high; /* prices known to give too many runs, too few */
    double price;
} Search;

/* The next price to try, after `runs` at the last: runs go about as price^(-1/3). */
static void next_price(Search *search, int32_t runs, int32_t levels)
{
    const double ratio = (double)runs / levels;
    if (runs > levels)
        search->low = search->price;
    else
        search->high = search->price;
    double price = search->price * ratio * ratio * ratio;
    if (!(price > search->low && price < search->high))
        price = sqrt(search->low) * sqrt(search->high);
    search->price = price;
}

/* Boundaries t->path[0] = 0 < ... < t->path[levels] = m of a best partition; needs levels < m. */
static void partition(const Sums *s, const double *x, int32_t m, int32_t levels, Scratch *t)
{
    enum { FEW_LEVELS = 3, CELLS_PER_RUN = 32, TRIES = 12 };
    int32_t runs = 1;
    t->path[0] = 0;
    t->path[1] = m;
    if (levels > FEW_LEVELS) {
        Search search = {0, INFINITY, first_price(s, x, m, levels)};
        /* On some boundaries the right price is found at little cost, nearly. */
        const double few = 6.0 / CELLS_PER_RUN / CELLS_PER_RUN / CELLS_PER_RUN;
        for (int tries = m > 2 * CELLS_PER_RUN * levels ? TRIES : 0; tries > 0; tries--) {
            const int32_t places = thin(s, x, m, search.price * few, t);
            const Sums thinned = {t->w, t->wx, t->wxx};
            const int32_t found = partition_at_price(&thinned, places, search.price, t->least, t->from, 0, NULL);
            if (found == levels)
                break;
            next_price(&search, found, levels);
        }
        /* One run too few is as good as none: the last comes at the cost of another try. */
        search.low = 0;
        search.high = INFINITY;
        for (int tries = TRIES; tries > 0 && runs < levels - 1; tries--) {
            const int32_t found = partition_at_price(s, m, search.price, t->least, t->from, levels, t->next);
            if (found <= levels && found > runs) {
                runs = found;
                swap_paths(t);
            }
            next_price(&search, found, levels);
        }
    }
    for (; runs < levels; runs++) {
        one_more_run(s, runs, t);
        swap_paths(t);
    }
}

#endif

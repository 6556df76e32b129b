/* Exact weighted k-means of every row of numbers on a line; compiled once per instruction set (SET).
 *
 * A row is sorted, equal numbers are merged, and the best partition is found on prefix sums (partition.h).
 */
#include "isoloss.h"
#include "partition.h"

#include <stdlib.h>

#ifndef SET
#define SET plain
#endif
#define JOINED(a, b) a##b
#define NAMED(a, b) JOINED(a, b)

/* A weight below this share of the row's total is lost in a float64 sum: it counts in the cost alone. */
#define LOST_SHARE 0x1p-48

enum { DIGIT = 11, DIGITS = 3, PLACES = 1 << DIGIT };

typedef struct {
    int32_t n;
    double *x, *w;               /* the row as it came */
    uint64_t *key, *spare;       /* sort key above, place in the row below */
    int32_t *point;              /* of each number in order: its point, -1 if its weight is lost */
    double *value, *at, *mass;   /* the points: distinct numbers, from the weighted median, their weights */
    double *sum_w, *sum_wx, *sum_wxx;
    Scratch t;
} Row;

/* Sort by the upper 32 bits, keeping the order of equals. */
static void sort_by_upper(Row *r)
{
    static const int shifts[DIGITS] = {32, 32 + DIGIT, 32 + 2 * DIGIT};
    uint32_t count[DIGITS][PLACES];
    memset(count, 0, sizeof count);
    for (int32_t i = 0; i < r->n; i++)
        for (int d = 0; d < DIGITS; d++)
            count[d][r->key[i] >> shifts[d] & (PLACES - 1)]++;
    for (int d = 0; d < DIGITS; d++) {
        if (count[d][r->key[0] >> shifts[d] & (PLACES - 1)] == (uint32_t)r->n)
            continue; /* all alike here */
        uint32_t before = 0;
        for (int p = 0; p < PLACES; p++) {
            const uint32_t here = count[d][p];
            count[d][p] = before;
            before += here;
        }
        for (int32_t i = 0; i < r->n; i++)
            r->spare[count[d][r->key[i] >> shifts[d] & (PLACES - 1)]++] = r->key[i];
        uint64_t *swap = r->key;
        r->key = r->spare;
        r->spare = swap;
    }
}

/* Bits of a float as an integer that grows with it. */
static inline uint32_t rising_float(const float *x)
{
    uint32_t bits;
    memcpy(&bits, x, sizeof bits);
    return bits ^ (bits >> 31 ? UINT32_MAX : UINT32_C(1) << 31);
}

static inline uint64_t rising_double(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits ^ (bits >> 63 ? UINT64_MAX : UINT64_C(1) << 63);
}

static void sort_floats(Row *r, const float *x)
{
    for (int32_t i = 0; i < r->n; i++)
        r->key[i] = (uint64_t)rising_float(x + i) << 32 | (uint32_t)i;
    sort_by_upper(r);
}

static void sort_doubles(Row *r)
{
    for (int32_t i = 0; i < r->n; i++)
        r->key[i] = rising_double(r->x[i]) << 32 | (uint32_t)i;
    sort_by_upper(r);
    for (int32_t i = 0; i < r->n; i++) {
        const uint32_t place = (uint32_t)r->key[i];
        r->key[i] = (rising_double(r->x[place]) >> 32) << 32 | place;
    }
    sort_by_upper(r);
}

/* The power of two that brings `most` to [1/2, 1): exact to multiply by. */
static double unit(double most)
{
    int exponent;
    frexp(most, &exponent);
    return most > 0 ? ldexp(1, -(exponent > 1000 ? 1000 : exponent < -1000 ? -1000 : exponent)) : 1;
}

static inline int32_t place_of(const Row *r, int32_t i) { return (int32_t)(uint32_t)r->key[i]; }

/* The points of the sorted row: returns how many. Weights that are all zero count as all one. */
static int32_t merge(Row *r, double scale)
{
    double most = 0, total = 0;
    for (int32_t i = 0; i < r->n; i++)
        most = r->w[i] > most ? r->w[i] : most;
    const double weigh = unit(most), even = most > 0 ? 0 : 1;
    for (int32_t i = 0; i < r->n; i++)
        total += r->w[i] * weigh + even;
    const double lost = total * LOST_SHARE;

    int32_t m = 0;
    double previous = NAN;
    for (int32_t i = 0; i < r->n; i++) {
        const int32_t place = place_of(r, i);
        const double x = r->x[place], w = r->w[place] * weigh + even;
        r->point[i] = -1;
        if (w <= lost)
            continue;
        if (x != previous) {
            r->value[m] = x * scale;
            r->mass[m++] = 0;
            previous = x;
        }
        r->mass[m - 1] += w;
        r->point[i] = m - 1;
    }
    return m;
}

/* Prefix sums at the boundaries 0 .. m, numbers from the weighted median on and sums outward from it, so that what
 * lies far out takes no digits from what lies in the middle. */
static void sum_up(Row *r, int32_t m)
{
    double total = 0, half = 0;
    for (int32_t i = 0; i < m; i++)
        total += r->mass[i];
    int32_t middle = 0;
    while (middle < m - 1 && half + r->mass[middle] < total / 2)
        half += r->mass[middle++];
    for (int32_t i = 0; i < m; i++)
        r->at[i] = r->value[i] - r->value[middle];

    double w = 0, wx = 0, wxx = 0;
    r->sum_w[middle] = r->sum_wx[middle] = r->sum_wxx[middle] = 0;
    for (int32_t i = middle; i < m; i++) {
        r->sum_w[i + 1] = w += r->mass[i];
        r->sum_wx[i + 1] = wx += r->mass[i] * r->at[i];
        r->sum_wxx[i + 1] = wxx += r->mass[i] * r->at[i] * r->at[i];
    }
    w = wx = wxx = 0;
    for (int32_t i = middle - 1; i >= 0; i--) {
        r->sum_w[i] = w -= r->mass[i];
        r->sum_wx[i] = wx -= r->mass[i] * r->at[i];
        r->sum_wxx[i] = wxx -= r->mass[i] * r->at[i] * r->at[i];
    }
}

/* Mean of the points (first, last], not outside of them. */
static double mean(const Row *r, int32_t first, int32_t last)
{
    const double base = r->value[first], wide = r->value[last - 1] - base;
    double w = 0, wx = 0;
    for (int32_t i = first; i < last; i++) {
        w += r->mass[i];
        wx += r->mass[i] * (r->value[i] - base);
    }
    return base + (wx / w < wide ? wx / w : wide);
}

/* One row, loaded into r->x and r->w with its keys sorted. */
static void solve(Row *r, int32_t levels, double *centres, uint8_t *codes, double *cost)
{
    const double low = fabs(r->x[place_of(r, 0)]), high = fabs(r->x[place_of(r, r->n - 1)]);
    const double scale = unit(low > high ? low : high);
    const int32_t m = merge(r, scale);
    const int32_t used = smaller(levels, m);
    sum_up(r, m);
    if (m > levels) {
        const Sums sums = {r->sum_w, r->sum_wx, r->sum_wxx};
        partition(&sums, r->at, m, levels, &r->t);
    } else
        for (int32_t k = 0; k <= m; k++)
            r->t.path[k] = k;
    /* Where a run more wins less than rounding, some may have come out empty: each takes a point of its neighbour. */
    for (int32_t k = 1; k < used; k++)
        if (r->t.path[k] <= r->t.path[k - 1])
            r->t.path[k] = r->t.path[k - 1] + 1;
    for (int32_t k = used - 1; k > 0; k--)
        if (r->t.path[k] >= r->t.path[k + 1])
            r->t.path[k] = r->t.path[k + 1] - 1;
    const int32_t *path = r->t.path;
    for (int32_t k = 0; k < levels; k++)
        centres[k] = k < used ? mean(r, path[k], path[k + 1]) : centres[used - 1];

    double total = 0, most = 0;
    for (int32_t i = 0; i < r->n; i++)
        most = r->w[i] > most ? r->w[i] : most;
    const double weigh = unit(most);
    int32_t run = 0, near = 0;
    for (int32_t i = 0; i < r->n; i++) {
        const int32_t place = place_of(r, i), point = r->point[i];
        const double x = r->x[place] * scale;
        int32_t code;
        if (point >= 0) {
            while (point >= path[run + 1])
                run++;
            code = run;
        } else { /* no say in the partition: the nearest centre */
            while (near + 1 < used && x - centres[near] > centres[near + 1] - x)
                near++;
            code = near;
        }
        codes[place] = (uint8_t)code;
        total += r->w[place] * weigh * (x - centres[code]) * (x - centres[code]);
    }
    *cost = total / weigh / scale / scale;
    for (int32_t k = 0; k < levels; k++)
        centres[k] /= scale;
}

/* All arrays of a row in one piece of memory, NULL if there is none. */
static void *workspace(Row *r, int32_t n, int32_t levels)
{
    const size_t doubles = (size_t)n + 1 + LANES, starts = (size_t)n + 2 + levels;
    double **const of_doubles[] = {&r->x,      &r->w,       &r->value, &r->at,   &r->mass, &r->sum_w,   &r->sum_wx,
                                   &r->sum_wxx, &r->t.least, &r->t.before, &r->t.w, &r->t.wx, &r->t.wxx};
    enum { DOUBLES = sizeof of_doubles / sizeof *of_doubles };
    const size_t bytes = doubles * sizeof(double) * DOUBLES + 2 * (size_t)n * sizeof(uint64_t) +
                         (n + starts + 2 * ((size_t)levels + 2)) * sizeof(int32_t);
    char *const memory = calloc(bytes, 1), *next = memory;
    if (!memory)
        return NULL;
    for (int i = 0; i < DOUBLES; i++, next += doubles * sizeof(double))
        *of_doubles[i] = (double *)next;
    r->n = n;
    r->key = (uint64_t *)next;
    r->spare = r->key + n;
    r->point = (int32_t *)(r->spare + n);
    r->t.from = r->point + n;
    r->t.path = r->t.from + starts;
    r->t.next = r->t.path + levels + 2;
    return memory;
}

static void load_row(double *out, const void *in, int32_t is_double, int64_t row, int32_t n)
{
    if (is_double)
        memcpy(out, (const double *)in + row * n, n * sizeof(double));
    else
        for (int32_t i = 0; i < n; i++)
            out[i] = ((const float *)in)[row * n + i];
}

int32_t NAMED(kmeans_rows_, SET)(const void *x, int32_t x_double, int64_t rows, int64_t columns, const void *w,
                                 int32_t w_double, int32_t w_shared, int32_t levels, double *centres, uint8_t *codes,
                                 double *cost);

int32_t NAMED(kmeans_rows_, SET)(const void *x, int32_t x_double, int64_t rows, int64_t columns, const void *w,
                                 int32_t w_double, int32_t w_shared, int32_t levels, double *centres, uint8_t *codes,
                                 double *cost)
{
    const int32_t n = (int32_t)columns;
    Row r;
    void *memory = workspace(&r, n, levels);
    if (!memory)
        return 1;
    for (int32_t i = 0; i < n && !w; i++)
        r.w[i] = 1;
    for (int64_t row = 0; row < rows; row++) {
        load_row(r.x, x, x_double, row, n);
        if (w && (row == 0 || !w_shared))
            load_row(r.w, w, w_double, row, n);
        if (x_double)
            sort_doubles(&r);
        else
            sort_floats(&r, (const float *)x + row * n);
        solve(&r, levels, centres + row * levels, codes + row * columns, cost + row);
    }
    free(memory);
    return 0;
}

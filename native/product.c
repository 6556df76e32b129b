/* The whole of a product: activations rounded, rows shared among threads, outliers and bias added. */
#include "kernels.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { TILE = 16, BLOCK_COLUMNS = 32, RUN = 512, PLANE = 64, LINE = 64, MOST_TOKENS = 1 << 20, TURNS = 2, BESIDE_FROM = 3 };

/* Stored bytes times tokens that a thread should have at least: what waking it costs is read in that time. */
#define SHARE (1 << 14)

typedef struct {
    Product product;
    const Kernels *kernels;
    const float *x;
    int64_t tokens; /* of x */
    int32_t parts, turns;
    const float *bias;
    float *out;
    int64_t rows; /* of a chunk */
    Rounded rounded;
    float *floats;
    float *beside; /* what outliers of several tokens are multiplied with */
    atomic_int failed; /* no memory */
} Task;

static int64_t blocks_of(int32_t count) { return (count + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS; }

/* Runs within the columns, their activations within a token's. */
static int runs_fit(const isoloss_weight *w)
{
    int64_t bytes = 0;
    for (int64_t b = 0; b < w->runs; b++) {
        const int64_t start = w->start[b], count = w->count[b], wide = w->wide[b], place = w->place[b];
        if (start < 0 || count < 1 || count > RUN || count > w->columns - start || wide < 1)
            return 0;
        const int64_t planes = (count - 1) / wide, left = count - planes * wide;
        if (place < 0 || place > w->width || planes * w->stride + (planes ? wide : left) > w->width - place ||
            (planes && w->stride < wide))
            return 0;
        if (w->segment[b] < (b ? w->segment[b - 1] : 0) || w->segment[b] >= w->segments)
            return 0;
        if (w->kind == ISOLOSS_LEVELS) {
            if (place != bytes) /* blocks lie one after another */
                return 0;
            bytes += blocks_of((int32_t)count) * BLOCK_COLUMNS;
        } else {
            if (wide > PLANE || place != b * RUN)
                return 0;
            bytes += wide;
        }
    }
    if (w->kind == ISOLOSS_LEVELS)
        return bytes == w->width && w->row_bytes == w->width / BLOCK_COLUMNS * w->bits * PLANE;
    return w->width == w->runs * RUN && w->row_bytes == bytes * w->bits;
}

/* Whether all sizes are what the kernel of its kind reads. */
static int reals_fit(const isoloss_reals *m)
{
    const int64_t most = INT32_MAX;
    const int typed = m->type >= 0 && m->type <= 2;
    if (m->rows < 1 || m->rows > most || m->columns < 1 || m->columns > most || m->group < 1 || m->group > most)
        return 0;
    switch (m->kind) {
    case 0:
        return m->value && m->type >= 1 && m->type <= 3;
    case 1:
        return m->code && m->exponent >= -1 && m->exponent <= 5 && m->bits >= 1 && m->bits <= 8 &&
               (m->exponent >= 0 ? m->bits > m->exponent : m->bits <= 4 && m->value) && m->n >= 1 && m->n <= 2 &&
               m->bias >= -256 && m->bias <= 256 && m->scale_type >= 0 && m->scale_type <= 5;
    case 2:
        return m->code && m->value && m->bits >= 5 && m->bits <= 8;
    case 3:
        return m->code && m->value && m->bits >= 1 && m->bits <= 16;
    case 4:
        return m->code && m->value && m->index && typed && m->bits >= 1 && m->bits <= 8 && m->n >= 1 && m->kept >= 0 &&
               m->kept <= most && m->kept % 16 == 0;
    case 5:
        return m->start && typed;
    default:
        return 0;
    }
}

int32_t isoloss_weight_fits(const isoloss_weight *w)
{
    const int64_t most = INT32_MAX;
    const int64_t bits = w->kind == ISOLOSS_TABLES ? 6 : w->kind == ISOLOSS_FLOATS || w->table ? 4 : 8;
    if (w->kind < 0 || w->kind > ISOLOSS_ADDED || w->rows < 0 || w->rows > most || w->columns < 0 || w->columns > most / 8)
        return 2;
    if (w->outlier_row && w->outlier_bytes != 1 && w->outlier_bytes != 2 && w->outlier_bytes != 4)
        return 2;
    if (w->kind == ISOLOSS_REALS)
        return w->reals && reals_fit(w->reals) && w->reals->rows == w->rows && w->reals->columns == w->columns ? 0 : 2;
    if (w->kind == ISOLOSS_ADDED)
        return 0;
    if (w->bits < 1 || w->bits > bits || w->runs < 0 || w->runs > most / RUN || w->segments < 0 || w->segments > most ||
        w->width < 0 || w->stride < 1 || w->stride > RUN)
        return 2;
    if (w->kind == ISOLOSS_LEVELS && (w->times < 1 || w->times > 2 || w->offset < -256 || w->offset > 256))
        return 2;
    return runs_fit(w) ? 0 : 2;
}

/* Whether activations are rounded. */
static int rounds(const isoloss_weight *w) { return w->kind == ISOLOSS_TABLES || w->kind == ISOLOSS_LEVELS; }

static void round_chunk(void *context, int64_t token)
{
    const Task *const task = context;
    const isoloss_weight *const w = task->product.weight;
    if (rounds(w))
        task->kernels->rounded(w, task->x, task->parts, task->rounded, token, token + 1);
    else
        task->kernels->ordered(w, task->x, task->floats, token, token + 1);
}

static void turn_chunk(void *context, int64_t chunk)
{
    const Task *const task = context;
    task->kernels->turned(&task->product, chunk * TILE);
}

/* So many columns of 16 tokens, side by side. */
static void beside_chunk(void *context, int64_t chunk)
{
    const Task *const task = context;
    const int64_t columns = task->product.weight->columns, parts = (columns + RUN - 1) / RUN;
    const int64_t token = chunk / parts * TILE, first = chunk % parts * RUN, left = task->tokens - token;
    const int64_t last = columns - first < RUN ? columns : first + RUN, tokens = left < TILE ? left : TILE;
    float *const to = task->beside + token * columns;
    memset(to + first * TILE, 0, (size_t)((last - first) * TILE) * sizeof *to);
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t c = first; c < last; c++)
            to[c * TILE + t] = task->x[(token + t) * columns + c];
}

static void rows_chunk(void *context, int64_t chunk)
{
    Task *const task = context;
    const Product *const product = &task->product;
    const isoloss_weight *const w = product->weight;
    const int64_t first = chunk * task->rows, last = w->rows - first < task->rows ? w->rows : first + task->rows;
    if (w->kind < ISOLOSS_REALS)
        task->kernels->product[w->kind](product, first, last);
    else if (w->kind == ISOLOSS_REALS &&
             task->kernels->reals[w->reals->kind](w->reals, task->x, task->tokens, first, last, task->out, w->rows))
        atomic_store(&task->failed, 1);
    if (task->parts == 2)
        for (int64_t t = 0; t < task->tokens; t++)
            for (int64_t r = first; r < last; r++)
                task->out[t * w->rows + r] = product->out[2 * t * w->rows + r] + product->out[(2 * t + 1) * w->rows + r];
    if (w->outlier_row)
        task->kernels->sparse(w, task->x, task->beside, task->tokens, task->out, first, last);
    if (task->bias)
        for (int64_t t = 0; t < task->tokens; t++)
            for (int64_t r = first; r < last; r++)
                task->out[t * w->rows + r] += task->bias[r];
}

/* The next place for so many bytes, at a multiple of 64; before there is memory, counts them. */
static void *place(char *from, int64_t *used, int64_t bytes)
{
    char *const at = from ? from + *used : NULL;
    *used += (bytes + LINE - 1) / LINE * LINE;
    return at;
}

/* What the product needs to write to, in memory at `from`; how much that is. */
static int64_t laid_out(Task *task, char *from)
{
    const isoloss_weight *const w = task->product.weight;
    const int64_t tokens = task->product.tokens, f = sizeof(float);
    int64_t used = 0;
    if (w->kind == ISOLOSS_FLOATS) {
        task->floats = place(from, &used, tokens * w->runs * RUN * f);
    } else if (rounds(w)) {
        task->rounded.codes = place(from, &used, tokens * w->width);
        task->rounded.scale = place(from, &used, tokens * w->runs * f);
        task->rounded.sum = place(from, &used, tokens * w->runs * f);
        task->rounded.segment_sum = place(from, &used, tokens * w->segments * f);
    }
    if (w->outlier_row && task->tokens >= BESIDE_FROM)
        task->beside = place(from, &used, (task->tokens + TILE - 1) / TILE * TILE * w->columns * f);
    if (task->turns) {
        const int64_t many = (tokens + TILE - 1) / TILE * TILE;
        task->product.turned.codes = place(from, &used, many * w->width);
        task->product.turned.scale = place(from, &used, many * w->runs * f);
        task->product.turned.segment_sum = place(from, &used, many * w->segments * f);
    }
    task->product.x = task->rounded;
    task->product.floats = task->floats;
    task->product.out = task->parts == 2 ? place(from, &used, tokens * w->rows * f) : task->out;
    return used;
}

/* Rows of a chunk: whole tiles, several chunks for a thread, so that one that is held up holds up little. */
static int64_t chunk_of(const isoloss_weight *w, int32_t threads)
{
    const int64_t tiles = (w->rows + TILE - 1) / TILE, chunks = threads > 1 ? (int64_t)threads * TURNS : 1;
    const int64_t own = (tiles + chunks - 1) / chunks;
    return (own + own % 2) * TILE; /* two tiles go together */
}

int32_t isoloss_product(const isoloss_weight *w, const float *x, int64_t tokens, int32_t parts, const float *bias,
                        float *out, int32_t threads, int32_t set)
{
    const Kernels *const kernels = isoloss_kernels(set);
    if (!kernels || tokens < 0 || tokens > MOST_TOKENS || parts < 1 || parts > (rounds(w) ? 2 : 1))
        return 2;
    if (!tokens || !w->rows)
        return 0;
    Task task = {.product = {.weight = w, .tokens = tokens * parts}, .kernels = kernels, .x = x, .tokens = tokens,
                 .parts = parts, .bias = bias, .out = out};
    task.turns = kernels->turns && kernels->turns(w, task.product.tokens);
    char *const memory = malloc((size_t)(laid_out(&task, NULL) + LINE));
    if (!memory)
        return 1;
    laid_out(&task, memory + (LINE - (intptr_t)memory % LINE));
    const int64_t worth = w->rows * w->row_bytes / (w->kind == ISOLOSS_LEVELS ? TILE : 1) * task.product.tokens / SHARE;
    const int32_t useful = worth < threads ? (int32_t)worth : threads;
    if (w->kind < ISOLOSS_REALS)
        isoloss_share(round_chunk, &task, tokens, useful);
    if (task.beside)
        isoloss_share(beside_chunk, &task, (tokens + TILE - 1) / TILE * ((w->columns + RUN - 1) / RUN), useful);
    if (task.turns)
        isoloss_share(turn_chunk, &task, (task.product.tokens + TILE - 1) / TILE, useful);
    task.rows = chunk_of(w, useful);
    isoloss_share(rows_chunk, &task, (w->rows + task.rows - 1) / task.rows, useful);
    free(memory);
    return atomic_load(&task.failed);
}

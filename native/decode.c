/* Tokens through a whole model of the Llama kind, one after the other layer, from its stored weights and a cache of keys
 * and values; compiled once per set (SET).
 *
 * A token is too little work for a call from outside per layer: what stands between the products (norms, rotation,
 * attention over the cache, gates) is done here. All sums have one order, so that all sets give the same bits.
 */
#include "bytes.h"
#include "kernels.h"

#include <math.h>

/* Compilers keep vectors in memory that are wider than a register: long loops take the lanes in parts, and of the columns as
 * many at a time as stay in the cache while all parts pass. */
#if defined(__AVX512F__)
enum { REGISTER = 64 };
#elif defined(__AVX2__)
enum { REGISTER = 32 };
#else
enum { REGISTER = 16 };
#endif
enum { TILE = LANES_OUT, STEP = REGISTER / 4, TOGETHER = 4, BLOCK_COLUMNS = 32, NEAR = 16, AHEAD = 1 << 13, NEAR_COLUMNS = 512 };
#define ALONE (1 << 16) /* bytes that a thread reads sooner than another one begins */
typedef uint16_t uppers __attribute__((vector_size(WIDE / 2)));
typedef float floats __attribute__((vector_size(REGISTER)));
typedef int32_t some_whole __attribute__((vector_size(REGISTER)));
typedef uint16_t some_uppers __attribute__((vector_size(REGISTER / 2)));
typedef isoloss_matrix Matrix;
typedef isoloss_layer Layer;
typedef isoloss_model Model;

static inline int64_t filled(int64_t n) { return (n + TILE - 1) / TILE * TILE; }

ALWAYS reals load_reals(const float *from)
{
    reals v;
    memcpy(&v, from, sizeof v);
    return v;
}

/* The first `count` numbers, zeros behind. */
ALWAYS reals load_few(const float *from, int64_t count)
{
    if (count >= TILE)
        return load_reals(from);
    reals v = {0};
    memcpy(&v, from, (size_t)count * sizeof *from);
    return v;
}

/* bfloat16 is the upper half of a float. */
ALWAYS reals load_upper(const uint16_t *from, int64_t count)
{
    uppers v = {0};
    memcpy(&v, from, count >= TILE ? sizeof v : (size_t)count * sizeof *from);
    return (reals)(__builtin_convertvector(v, whole) << TILE);
}

/* A register of floats, or of such upper halves. */
ALWAYS floats load_floats(const float *from)
{
    floats v;
    memcpy(&v, from, sizeof v);
    return v;
}

ALWAYS floats load_uppers(const uint16_t *from)
{
#if defined(__aarch64__)
    return (floats)vshlq_n_u32(vmovl_u16(vld1_u16(from)), TILE);
#else
    some_uppers v;
    memcpy(&v, from, sizeof v);
    return (floats)(__builtin_convertvector(v, some_whole) << TILE);
#endif
}

/* Everything that a step works on. */
typedef struct {
    const Model *model;
    int64_t tokens, layer;
    float *const *cache;
    const int64_t *room, *position;
    float *x, *h, *q, *k, *v, *mixed, *gate, *up, *score;
    int64_t q_stride, kv_stride; /* of a token: where q has the rows of k and v behind its own they are one buffer */
    int64_t score_stride, jobs;  /* of a chunk of heads */
    int32_t threads, set, failed;
} Step;

/* A product with floats, shared by rows. */
typedef struct {
    const Matrix *matrix;
    const float *x;
    float *out;
    int64_t tokens, rows;
} Dense;

/* Sums over columns `begin` to `end`, of their lanes those from `part` on, added to `even` and `odd`. */
ALWAYS void dense_part(const float *w, const uint16_t *u, int64_t n, const int rows, const float *x, const int count,
                       const int upper, int64_t begin, int64_t end, int64_t part, reals (*even)[TOGETHER],
                       reals (*odd)[TOGETHER])
{
    floats evens[2][TOGETHER], odds[2][TOGETHER];
UNROLLED(2)
    for (int k = 0; k < rows; k++)
UNROLLED(4)
        for (int t = 0; t < count; t++) {
            evens[k][t] = load_floats((const float *)(even[k] + t) + part);
            odds[k][t] = load_floats((const float *)(odd[k] + t) + part);
        }
    for (int64_t c = begin + part; c < end; c += 2 * TILE) {
        floats a[2], b[2];
UNROLLED(2)
        for (int k = 0; k < rows; k++) {
            const int64_t at = k * n + c;
            a[k] = upper ? load_uppers(u + at) : load_floats(w + at);
            b[k] = upper ? load_uppers(u + at + TILE) : load_floats(w + at + TILE);
            if (part > 0)
                continue;
            __builtin_prefetch((const uint8_t *)(upper ? (const void *)(u + at) : w + at) + AHEAD, 0, 2);
            if (!upper)
                __builtin_prefetch((const uint8_t *)(w + at + TILE) + AHEAD, 0, 2);
        }
UNROLLED(4)
        for (int t = 0; t < count; t++) {
            const floats one = load_floats(x + t * n + c), other = load_floats(x + t * n + c + TILE);
UNROLLED(2)
            for (int k = 0; k < rows; k++) {
                evens[k][t] += a[k] * one;
                odds[k][t] += b[k] * other;
            }
        }
    }
UNROLLED(2)
    for (int k = 0; k < rows; k++)
UNROLLED(4)
        for (int t = 0; t < count; t++) {
            memcpy((float *)(even[k] + t) + part, evens[k] + t, sizeof **evens);
            memcpy((float *)(odd[k] + t) + part, odds[k] + t, sizeof **odds);
        }
}

/* One row of a matrix of floats, or two, of which each number of x is read once, with up to TOGETHER tokens. */
ALWAYS void dense_some(const Matrix *m, int64_t r, const int rows, const float *x, const int count, float *out,
                       int64_t stride, const int upper)
{
    const int64_t n = m->columns, whole_part = n / (2 * TILE) * (2 * TILE);
    const float *const w = (const float *)m->floats + r * n;
    const uint16_t *const u = (const uint16_t *)m->floats + r * n;
    reals even[2][TOGETHER] = {{{0}}}, odd[2][TOGETHER] = {{{0}}};
    const int64_t span = STEP < TILE ? NEAR_COLUMNS : n;
    for (int64_t begin = 0; begin < whole_part; begin += span) {
        const int64_t end = whole_part - begin < span ? whole_part : begin + span;
        for (int64_t part = 0; part < TILE; part += STEP)
            dense_part(w, u, n, rows, x, count, upper, begin, end, part, even, odd);
    }
    for (int64_t c = whole_part; c < n; c += TILE) {
        const int64_t left = n - c < TILE ? n - c : TILE;
        for (int k = 0; k < rows; k++) {
            const reals a = upper ? load_upper(u + k * n + c, left) : load_few(w + k * n + c, left);
            for (int t = 0; t < count; t++)
                even[k][t] += a * load_few(x + t * n + c, left);
        }
    }
    for (int k = 0; k < rows; k++)
        for (int t = 0; t < count; t++)
            out[t * stride + r + k] = total(even[k][t] + odd[k][t]);
}

#define OF_COUNT(NAME, UPPER, COUNT)                                                                                   \
    static void dense_##NAME##_##COUNT(const Matrix *m, int64_t first, int64_t last, const float *x, float *out)       \
    {                                                                                                                  \
        int64_t r = first;                                                                                             \
        for (; r + 2 <= last; r += 2)                                                                                  \
            dense_some(m, r, 2, x, COUNT, out, m->rows, UPPER);                                                        \
        if (r < last)                                                                                                  \
            dense_some(m, r, 1, x, COUNT, out, m->rows, UPPER);                                                        \
    }
#define OF_UPPER(NAME, UPPER) OF_COUNT(NAME, UPPER, 1) OF_COUNT(NAME, UPPER, 2) OF_COUNT(NAME, UPPER, 3) OF_COUNT(NAME, UPPER, 4)
OF_UPPER(float, 0) OF_UPPER(upper, 1)
typedef void dense_rows(const Matrix *, int64_t, int64_t, const float *, float *);
static dense_rows *const dense[2][TOGETHER] = {{dense_float_1, dense_float_2, dense_float_3, dense_float_4},
                                               {dense_upper_1, dense_upper_2, dense_upper_3, dense_upper_4}};

static void dense_chunk(void *given, int64_t chunk)
{
    const Dense *const d = given;
    const Matrix *const m = d->matrix;
    const int64_t begin = chunk * d->rows, end = m->rows - begin < d->rows ? m->rows : begin + d->rows;
    for (int64_t first = begin; first < end; first += NEAR) { /* rows that stay in the cache while all tokens pass */
        const int64_t last = end - first < NEAR ? end : first + NEAR;
        for (int64_t t = 0; t < d->tokens;) {
            const int64_t left = d->tokens - t, count = left < TOGETHER ? left : TOGETHER;
            dense[!!m->upper][count - 1](m, first, last, d->x + t * m->columns, d->out + t * m->rows);
            t += count;
        }
        if (m->bias)
            for (int64_t t = 0; t < d->tokens; t++)
                for (int64_t r = first; r < last; r++)
                    d->out[t * m->rows + r] += m->bias[r];
    }
}

/* (tokens, columns) to (tokens, rows). */
static void product(Step *s, const Matrix *m, float *out, const float *x)
{
    if (m->weight) {
        s->failed |= isoloss_product(m->weight, x, s->tokens, (int32_t)m->parts, m->bias, out, s->threads, s->set);
        return;
    }
    const int64_t tiles = (m->rows + NEAR - 1) / NEAR, bytes = m->rows * m->columns * (m->upper ? 2 : 4) * s->tokens;
    const int64_t chunks = bytes < 2 * ALONE ? 1 : 4 * s->threads, own = (tiles + chunks - 1) / chunks * NEAR;
    Dense d = {m, x, out, s->tokens, own};
    isoloss_share(dense_chunk, &d, (m->rows + own - 1) / own, s->threads);
}

/* x / sqrt(mean x^2 + eps), times the weight if there is one. */
static void normed(const float *x, const float *weight, float eps, int64_t n, float *out)
{
    reals sum = {0};
    int64_t i = 0;
    for (; i + TILE <= n; i += TILE) {
        const reals v = load_reals(x + i);
        sum += v * v;
    }
    if (i < n) {
        const reals v = load_few(x + i, n - i);
        sum += v * v;
    }
    const float factor = 1 / sqrtf(total(sum) / (float)n + eps);
    if (weight)
        for (i = 0; i < n; i++)
            out[i] = weight[i] * (x[i] * factor);
    else
        for (i = 0; i < n; i++)
            out[i] = x[i] * factor;
}

/* e^v of each, within 2 units of the last place; below -87 what e^-87 is, which is nothing beside 1. */
ALWAYS reals powers_of_e(reals v)
{
    const reals low = (reals){0} - 87, high = (reals){0} + 88, shift = (reals){0} + 0x1.8p23f;
    v = (reals)(((whole)low & (v < low)) | ((whole)v & ~(v < low)));
    v = (reals)(((whole)high & (v > high)) | ((whole)v & ~(v > high)));
    const reals moved_k = v * 0x1.715476p+0f + shift, k = moved_k - shift;
    const reals r = (v - k * 0x1.62e400p-1f) - k * 0x1.7f7d1cp-20f;
    reals p = r * 0x1.6850e4p-10f + 0x1.123bccp-7f;
    p = p * r + 0x1.555b98p-5f;
    p = p * r + 0x1.55548ep-3f;
    p = p * r + 0x1.fffff8p-2f;
    p = p * (r * r) + r + 1;
    const whole power = ((whole)moved_k - (whole)shift + 127) << 23;
    return p * (reals)power;
}

/* Keys and values of a layer for a token's text, (2, heads, room, size filled up). */
static float *held(const Step *s, int64_t token)
{
    const Model *m = s->model;
    return s->cache[token] + s->layer * 2 * m->kv_heads * s->room[token] * filled(m->size);
}

/* Rotates a head's two halves. */
static void turned(float *x, const float *cosine, const float *sine, int64_t half)
{
    for (int64_t i = 0; i < half; i++) {
        const float a = x[i], b = x[half + i];
        x[i] = a * cosine[i] - b * sine[i];
        x[half + i] = b * cosine[i] + a * sine[i];
    }
}

static void ready(const Model *m, float *x, const float *weight, int64_t at)
{
    const int64_t half = m->size / 2;
    if (m->normed_heads)
        normed(x, weight, m->head_eps, m->size, x);
    turned(x, m->cosine + at * half, m->sine + at * half, half);
}

/* Queries and keys normalised and rotated, keys and values kept. */
static void kept(Step *s, const Layer *layer)
{
    const Model *m = s->model;
    const int64_t size = m->size, wide = filled(size);
    for (int64_t t = 0; t < s->tokens; t++) {
        const int64_t at = s->position[t], room = s->room[t];
        float *const keys = held(s, t), *const values = keys + m->kv_heads * room * wide;
        for (int64_t head = 0; head < m->heads; head++)
            ready(m, s->q + t * s->q_stride + head * size, layer->q_norm, at);
        for (int64_t head = 0; head < m->kv_heads; head++) {
            float *const k = s->k + t * s->kv_stride + head * size, *const v = s->v + t * s->kv_stride + head * size;
            float *const key = keys + (head * room + at) * wide, *const value = values + (head * room + at) * wide;
            ready(m, k, layer->k_norm, at);
            memset(key, 0, (size_t)wide * sizeof *key);
            memset(value, 0, (size_t)wide * sizeof *value);
            memcpy(key, k, (size_t)size * sizeof *key);
            memcpy(value, v, (size_t)size * sizeof *value);
        }
    }
}

/* One head of one token: weights of all positions up to its own, and the mean of their values. */
static void attended(const Step *s, int64_t token, int64_t head, float *score)
{
    enum { MOST = 16 }; /* registers of a head: 256 numbers */
    const Model *m = s->model;
    const int64_t size = m->size, wide = filled(size), room = s->room[token], length = s->position[token] + 1;
    const int64_t pieces = wide / TILE, own = head / (m->heads / m->kv_heads);
    const float *keys = held(s, token) + own * room * wide, *values = keys + m->kv_heads * room * wide;
    const float *query = s->q + token * s->q_stride + head * size;
    reals q[MOST], sum[MOST];
    for (int64_t i = 0; i < pieces; i++) {
        q[i] = load_few(query + i * TILE, size - i * TILE < TILE ? size - i * TILE : TILE) * m->score_scale;
        sum[i] = (reals){0};
    }
    float largest = -INFINITY;
    for (int64_t p = 0; p < length; p++) {
        reals product;
        for (int64_t part = 0; part < TILE; part += STEP) {
            const float *const own_q = (const float *)q + part, *const own_key = keys + p * wide + part;
            floats sum_part = load_floats(own_q) * load_floats(own_key);
            for (int64_t i = 1; i < pieces; i++)
                sum_part += load_floats(own_q + i * TILE) * load_floats(own_key + i * TILE);
            memcpy((float *)&product + part, &sum_part, sizeof sum_part);
        }
        score[p] = total(product);
        largest = score[p] > largest ? score[p] : largest;
    }
    reals weights = {0};
    for (int64_t p = 0; p < length; p += TILE) {
        const int64_t left = length - p < TILE ? length - p : TILE;
        reals e = powers_of_e(load_few(score + p, left) - largest);
        float few[TILE] = {0};
        memcpy(few, &e, (size_t)left * sizeof *few);
        memcpy(&e, few, sizeof e);
        weights += e;
        memcpy(score + p, &e, sizeof e);
    }
    const float whole_weight = total(weights);
    for (int64_t p = 0; p < length; p++)
        for (int64_t i = 0; i < wide; i += STEP) {
            const floats more = load_floats((const float *)sum + i) + load_floats(values + p * wide + i) * score[p];
            memcpy((float *)sum + i, &more, sizeof more);
        }
    float *const out = s->mixed + (token * m->heads + head) * size;
    for (int64_t i = 0; i < pieces; i++) {
        const reals mean = sum[i] / whole_weight;
        memcpy(out + i * TILE, &mean, (size_t)(size - i * TILE < TILE ? size - i * TILE : TILE) * sizeof *out);
    }
}

static void heads_chunk(void *given, int64_t chunk)
{
    const Step *s = given;
    const int64_t heads = s->model->heads, all = heads * s->tokens, first = chunk * s->jobs;
    const int64_t last = all - first < s->jobs ? all : first + s->jobs;
    for (int64_t job = first; job < last; job++)
        attended(s, job / heads, job % heads, s->score + chunk * s->score_stride);
}

static void attention(Step *s, int64_t longest)
{
    const Model *m = s->model;
    const int64_t all = m->heads * s->tokens, bytes = all * longest * m->size * 8;
    const int64_t chunks = bytes < 2 * ALONE ? 1 : s->threads < all ? s->threads : all;
    s->jobs = (all + chunks - 1) / chunks;
    isoloss_share(heads_chunk, s, (all + s->jobs - 1) / s->jobs, s->threads);
}

/* What goes into the last product of an MLP, written over what the first gave. */
static void gated(const Step *s)
{
    const int64_t n = s->model->inner * s->tokens;
    if (s->model->act == ISOLOSS_SQUARED) {
        for (int64_t i = 0; i < n; i++) {
            const float positive = s->up[i] < 0 ? 0 : s->up[i];
            s->up[i] = positive * positive;
        }
        return;
    }
    for (int64_t i = 0; i < n; i += TILE) {
        const int64_t left = n - i < TILE ? n - i : TILE;
        const reals g = load_few(s->gate + i, left), made = g / (powers_of_e(-g) + 1) * load_few(s->up + i, left);
        memcpy(s->up + i, &made, left == TILE ? sizeof made : (size_t)left * sizeof *s->up);
    }
}

static void added(float *x, const float *more, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] += more[i];
}

/* A row of a matrix as numbers. */
static void decoded(const Matrix *matrix, int64_t row, float *out)
{
    const isoloss_weight *const m = matrix->weight;
    const int64_t columns = matrix->columns;
    if (!m) {
        if (!matrix->upper)
            memcpy(out, (const float *)matrix->floats + row * columns, (size_t)columns * sizeof *out);
        for (int64_t c = 0; matrix->upper && c < columns; c++) {
            const uint32_t bits = (uint32_t)((const uint16_t *)matrix->floats)[row * columns + c] << 16;
            memcpy(out + c, &bits, sizeof bits);
        }
        return;
    }
    const int bits = (int)m->bits;
    const uint8_t *const bytes_of = m->table;
    const uint16_t *const halves = m->table;
    const int64_t tile = row / TILE, lane = row % TILE;
    const uint8_t *code = m->codes + (m->kind == ISOLOSS_LEVELS ? tile : row) * m->row_bytes;
    for (int64_t b = 0; b < m->runs; b++) {
        const int32_t wide = m->kind == ISOLOSS_LEVELS ? 4 : m->wide[b], count = m->count[b];
        const int64_t own = m->kind == ISOLOSS_LEVELS ? (tile * m->segments + m->segment[b]) * TILE + lane
                                                      : row * m->segments + m->segment[b];
        float scale = 0;
        if (m->kind == ISOLOSS_LEVELS)
            scale = m->half ? half_to_float(((const uint16_t *)m->scale)[own]) : ((const float *)m->scale)[own];
        const int32_t zero = m->kind == ISOLOSS_LEVELS && m->zero ? m->zero[own] : 0;
        for (int32_t c = 0; c < count; c += PLANES * wide) {
            uint8_t all[PLANES][WIDE];
            const int32_t here = m->kind == ISOLOSS_LEVELS ? WIDE : wide;
            for (int32_t part = 0; part < WIDE; part += PART) {
                bytes in[8];
                for (int k = 0; k < bits; k++)
                    in[k] = load_some(code + k * here + part, here - part);
                for (int p = 0; p < PLANES; p++) {
                    const bytes some = alone(plane(in, bits, p), bits);
                    memcpy(all[p] + part, &some, sizeof some);
                }
            }
            code += bits * here;
            for (int p = 0; p < PLANES; p++) {
                const uint8_t *const codes = all[p];
                for (int32_t i = 0; i < wide && c + p * wide + i < count; i++) {
                    float *const to = out + m->start[b] + c + p * wide + i;
                    if (m->kind == ISOLOSS_LEVELS) {
                        const int32_t at = codes[4 * lane + i], level = bytes_of ? bytes_of[at] : at;
                        *to = (float)(level * (int32_t)m->times + (int32_t)m->offset - zero) * scale;
                    } else if (m->kind == ISOLOSS_TABLES)
                        *to = m->low[own] + m->step[own] * (float)bytes_of[(own << bits) + codes[i]];
                    else
                        *to = half_to_float(halves[(own << bits) + codes[i]]);
                }
            }
        }
    }
    if (m->outlier_row)
        for (int32_t i = m->outlier_row[row]; i < m->outlier_row[row + 1]; i++) {
            const int64_t column = m->outlier_bytes == 1   ? ((const uint8_t *)m->outlier_column)[i]
                                   : m->outlier_bytes == 2 ? ((const uint16_t *)m->outlier_column)[i]
                                                           : ((const int32_t *)m->outlier_column)[i];
            out[column] += half_to_float(m->outlier[i]);
        }
}

/* Room for a step, in bytes, or where its pieces lie. */
static int64_t laid_out(Step *s, int64_t longest, uint8_t *at)
{
    const Model *const m = s->model;
    const int64_t tokens = s->tokens;
    int64_t used = 0;
    s->score_stride = filled(longest);
#define PLACED(WHERE, COUNT)                                                                                           \
    s->WHERE = at ? (float *)(void *)(at + used) : NULL;                                                               \
    used += filled(COUNT) * (int64_t)sizeof *s->WHERE;
    PLACED(x, tokens * m->width)
    PLACED(h, tokens * m->width)
    PLACED(q, tokens * (m->heads + 2 * m->kv_heads) * m->size)
    PLACED(k, tokens * m->kv_heads * m->size)
    PLACED(v, tokens * m->kv_heads * m->size)
    PLACED(mixed, tokens * m->heads * m->size)
    PLACED(gate, m->act == ISOLOSS_SQUARED ? 0 : tokens * m->inner)
    PLACED(up, tokens * m->inner)
    PLACED(score, s->threads * s->score_stride)
#undef PLACED
    return used;
}

decode_tokens NAMED(decode_tokens_, SET);

int64_t NAMED(decode_tokens_, SET)(const isoloss_model *m, const int64_t *ids, const int64_t *position, int64_t tokens,
                                   float *const *cache, const int64_t *room, float *hidden, float *logits,
                                   uint8_t *scratch, int64_t scratch_bytes, int32_t threads, int32_t set)
{
    int64_t longest = 1;
    for (int64_t t = 0; t < tokens; t++)
        longest = position[t] + 1 > longest ? position[t] + 1 : longest;
    Step s = {.model = m, .tokens = tokens, .cache = cache, .room = room, .position = position, .threads = threads, .set = set};
    const int64_t needed = laid_out(&s, longest, NULL), width = m->width;
    if (needed > scratch_bytes)
        return needed;
    laid_out(&s, longest, scratch);
    float *const k = s.k, *const v = s.v;
    for (int64_t t = 0; t < tokens; t++)
        decoded(&m->embedding, ids[t], s.x + t * width);
    for (int64_t i = 0; i < m->layers; i++) {
        const Layer *const l = m->layer + i;
        const int fused = !l->k.rows;
        s.layer = i;
        s.q_stride = fused ? (m->heads + 2 * m->kv_heads) * m->size : m->heads * m->size;
        s.kv_stride = fused ? s.q_stride : m->kv_heads * m->size;
        s.k = fused ? s.q + m->heads * m->size : k;
        s.v = fused ? s.k + m->kv_heads * m->size : v;
        for (int64_t t = 0; t < tokens; t++)
            normed(s.x + t * width, l->attention_norm, m->eps, width, s.h + t * width);
        product(&s, &l->q, s.q, s.h);
        if (!fused) {
            product(&s, &l->k, s.k, s.h);
            product(&s, &l->v, s.v, s.h);
        }
        kept(&s, l);
        attention(&s, longest);
        product(&s, &l->out, s.h, s.mixed);
        added(s.x, s.h, tokens * width);
        for (int64_t t = 0; t < tokens; t++)
            normed(s.x + t * width, l->mlp_norm, m->eps, width, s.h + t * width);
        if (m->act == ISOLOSS_GATED)
            product(&s, &l->gate, s.gate, s.h);
        product(&s, &l->up, s.up, s.h);
        gated(&s);
        product(&s, &l->down, s.h, s.up);
        added(s.x, s.h, tokens * width);
    }
    for (int64_t t = 0; t < tokens; t++)
        normed(s.x + t * width, m->norm, m->eps, width, hidden + t * width);
    if (logits)
        product(&s, &m->head, logits, hidden);
    return s.failed ? -1 : 0;
}

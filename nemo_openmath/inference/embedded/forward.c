/* The forward pass of Qwen2, Qwen3 and Llama in float32: any number of tokens of any slots in one call, prompts and
 * decoding alike. Compiled for the model's HEAD_DIM (a multiple of 16) and GROUP (query heads of a KV head) on first
 * use; see kernels.py.
 *
 * Every number of a row comes from the same operations in the same order whatever else is in the batch: a token has
 * the same logits, bit for bit, alone or among others, and computed again or read from the cache.
 *
 * Matrices are packed in panels (products.h); of gate and up, a panel holds LANES of each.
 * keys    [slots, kv_heads, capacity / SPAN, HEAD_DIM, SPAN]   scores of SPAN positions at once, no sums across lanes
 * values  [slots, kv_heads, capacity, HEAD_DIM] */

#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "forward.h"
#include "products.h"

#define SPAN 32  /* positions; capacity is a multiple */
#define ROWS 96  /* rows that go through a layer together: they stay in the cache of the core */
#define MIX (HEAD_DIM % (4 * LANES) == 0 ? 4 : HEAD_DIM % (2 * LANES) == 0 ? 2 : 1)

void lay_out(int64_t trees, const int64_t *nodes, const int64_t *starts, const int64_t *parents, int64_t *stored,
             int64_t *body, int64_t *tail, int64_t *tails) {
    int64_t used = 0;
    for (int64_t t = 0; t < trees; stored += nodes[t], body += nodes[t], tail += nodes[t], parents += nodes[t], t++)
        for (int64_t i = 0, in_order = 1; i < nodes[t]; i++) {
            stored[i] = starts[t] + i;
            tail[i] = used;
            in_order = in_order && (i == 0 || parents[i] == i - 1);
            body[i] = in_order ? starts[t] + i + 1 : body[parents[i]];
            if (in_order) continue;
            const int64_t seen = tail[parents[i] + 1] - tail[parents[i]]; /* what the parent sees */
            memcpy(tails + used, tails + tail[parents[i]], seen * sizeof *tails);
            used += seen;
            tails[used++] = stored[i];
        }
}

void keep(const Model *m, int64_t slot, int64_t start, const int64_t *path, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const int64_t to = start + i, from = start + path[i];
        if (to == from) continue;
        for (int64_t l = 0; l < m->layers; l++)
            for (int64_t h = 0; h < m->kv_heads; h++) {
                const int64_t row = (slot * m->kv_heads + h) * m->capacity;
                float *keys = m->layer[l].keys + row * HEAD_DIM, *values = m->layer[l].values + row * HEAD_DIM;
                float *key = keys + to / SPAN * SPAN * HEAD_DIM + to % SPAN;
                const float *source = keys + from / SPAN * SPAN * HEAD_DIM + from % SPAN;
                for (int d = 0; d < HEAD_DIM; d++) key[d * SPAN] = source[d * SPAN];
                memcpy(values + to * HEAD_DIM, values + from * HEAD_DIM, HEAD_DIM * sizeof(float));
            }
    }
}

static Range part(int64_t n, int64_t i, int64_t parts) { return (Range){n * i / parts, n * (i + 1) / parts}; }

int64_t constant(int64_t which) { return (const int64_t[]){LANES, PANEL, SPAN, ROWS}[which]; }

void *make_barrier(int64_t threads) {
    pthread_barrier_t *barrier = malloc(sizeof *barrier);
    if (barrier && pthread_barrier_init(barrier, NULL, (unsigned)threads)) { free(barrier); return NULL; }
    return barrier;
}

void free_barrier(void *barrier) {
    pthread_barrier_destroy(barrier);
    free(barrier);
}

/* floats of a thread's scratch */
int64_t scratch_size(int64_t kv_heads, int64_t intermediate, int64_t capacity) {
    return ROWS * (1 + kv_heads * GROUP * HEAD_DIM + intermediate) + GROUP * (capacity + SPAN);
}

/* [out, in] -> panels; `pair`: rows i and out / 2 + i are gate and up. Rows beyond `out` are zero. */
void pack(const float *matrix, int64_t out, int64_t in, int64_t pair, float *packed) {
    const int64_t panels = (out + PANEL - 1) / PANEL;
    for (int64_t p = 0; p < panels; p++)
        for (int64_t c = 0; c < PANEL; c++) {
            const int64_t row = pair ? p * LANES + c % LANES + c / LANES * (out / 2) : p * PANEL + c;
            for (int64_t k = 0; k < in; k++) packed[(p * in + k) * PANEL + c] = row < out ? matrix[row * in + k] : 0;
        }
}

/* 1 / rms of each row */
static void scales(const float *x, int64_t rows, int64_t n, float eps, float *out) {
    for (int64_t r = 0; r < rows; r++) {
        vec squares = all(0.0f);
        for (int64_t i = 0; i < n; i += LANES) { vec v = load(x + r * n + i); squares += v * v; }
        out[r] = 1.0f / sqrtf(sum(squares) / n + eps);
    }
}

/* -- attention ---------------------------------------------------------------------------------------------------- */

/* Norm (Qwen3) and rotation of q_1 .. q_G and k of row r; k and v go into the cache. */
static void place(const Model *m, const Layer *l, const Batch *b, float *qkv, int64_t r, Range kv_heads) {
    const float *turn = m->rotation + b->positions[r] * HEAD_DIM;
    const int64_t slot = b->slots[r], at = b->stored[r];
    for (int64_t h = kv_heads.first; h < kv_heads.last; h++) {
        float *head = qkv + h * (GROUP + 2) * HEAD_DIM;
        for (int g = 0; g <= GROUP; g++) {
            float *x = head + g * HEAD_DIM;
            if (l->qk_norm) {
                float scale;
                scales(x, 1, HEAD_DIM, m->eps, &scale);
                for (int d = 0; d < HEAD_DIM; d++) x[d] *= scale * l->qk_norm[g * HEAD_DIM + d];
            }
            for (int d = 0; d < HEAD_DIM; d += 2) {
                const float a = x[d], b = x[d + 1];
                x[d] = a * turn[d] - b * turn[d + 1];
                x[d + 1] = a * turn[d + 1] + b * turn[d];
            }
        }
        const int64_t row = (slot * m->kv_heads + h) * m->capacity;
        float *key = l->keys + (row + at / SPAN * SPAN) * HEAD_DIM + at % SPAN;
        for (int d = 0; d < HEAD_DIM; d++) key[d * SPAN] = head[GROUP * HEAD_DIM + d];
        memcpy(l->values + (row + at) * HEAD_DIM, head + (GROUP + 1) * HEAD_DIM, HEAD_DIM * sizeof(float));
    }
}

INLINE void score(const int heads, const float *q, const float *key, float *scores, int64_t stride) {
    vec sums[2][SPAN / LANES];
    for (int g = 0; g < heads; g++)
        for (int p = 0; p < SPAN / LANES; p++) sums[g][p] = all(0.0f);
    for (int d = 0; d < HEAD_DIM; d++) {
        vec k[SPAN / LANES];
        for (int p = 0; p < SPAN / LANES; p++) k[p] = load(key + d * SPAN + p * LANES);
        for (int g = 0; g < heads; g++) {
            const vec value = all(q[g * HEAD_DIM + d]);
            for (int p = 0; p < SPAN / LANES; p++) sums[g][p] += value * k[p];
        }
    }
    for (int g = 0; g < heads; g++)
        for (int p = 0; p < SPAN / LANES; p++) store(scores + g * stride + p * LANES, sums[g][p]);
}

/* Where a slot's positions lie: the first `body` at their own places, the next `more` at tail[0], tail[1], .. */
typedef struct { int64_t body, more; const int64_t *tail; } View;

/* The keys of positions j .. j + SPAN - 1, in order, in `block`. */
static const float *gather(const float *keys, int64_t j, View view, float *block) {
    memcpy(block, keys + j * HEAD_DIM, SPAN * HEAD_DIM * sizeof(float));
    for (int64_t i = view.body > j ? 0 : j - view.body; i < view.more && view.body + i < j + SPAN; i++) {
        const float *key = keys + view.tail[i] / SPAN * SPAN * HEAD_DIM + view.tail[i] % SPAN;
        float *to = block + view.body + i - j;
        for (int d = 0; d < HEAD_DIM; d++) to[d * SPAN] = key[d * SPAN];
    }
    return block;
}

INLINE void mix(const int heads, const float *weights, int64_t stride, const float *values, View view, float *out) {
    for (int part = 0; part < HEAD_DIM; part += MIX * LANES) {
        vec sums[2][MIX];
        for (int g = 0; g < heads; g++)
            for (int p = 0; p < MIX; p++) sums[g][p] = all(0.0f);
#define ADD_VALUE(j, place)                                                                                       \
    {                                                                                                             \
        vec v[MIX];                                                                                               \
        for (int p = 0; p < MIX; p++) v[p] = load(values + (place) * HEAD_DIM + part + p * LANES);                \
        for (int g = 0; g < heads; g++) {                                                                         \
            const vec weight = all(weights[g * stride + (j)]);                                                    \
            for (int p = 0; p < MIX; p++) sums[g][p] += weight * v[p];                                            \
        }                                                                                                         \
    }
        for (int64_t j = 0; j < view.body; j++) ADD_VALUE(j, j)
        for (int64_t i = 0; i < view.more; i++) ADD_VALUE(view.body + i, view.tail[i])
#undef ADD_VALUE
        for (int g = 0; g < heads; g++)
            for (int p = 0; p < MIX; p++) store(out + g * HEAD_DIM + part + p * LANES, sums[g][p]);
    }
}

/* out [kv_heads, GROUP, HEAD_DIM]: attention of row r over its own position and those before it. Scores and values
 * are taken in the order of the positions, wherever they lie: so a token of a tree has the bits of a plain one. */
static void attend(const Model *m, const Layer *l, const Batch *b, const float *qkv, int64_t r, Range kv_heads,
                   float *scores, float *out) {
    const int64_t slot = b->slots[r], length = b->positions[r] + 1;
    const int64_t padded = (length + SPAN - 1) / SPAN * SPAN, stride = m->capacity + SPAN;
    const int64_t body = b->body ? b->body[r] : length;
    const View view = {body, length - body, b->body ? b->tails + b->tail[r] : NULL};
    float block[SPAN * HEAD_DIM];
    for (int64_t h = kv_heads.first; h < kv_heads.last; h++) {
        const float *q = qkv + h * (GROUP + 2) * HEAD_DIM;
        const int64_t row = (slot * m->kv_heads + h) * m->capacity;
        const float *keys = l->keys + row * HEAD_DIM, *values = l->values + row * HEAD_DIM;
        float *o = out + h * GROUP * HEAD_DIM;
        for (int64_t j = 0; j < padded; j += SPAN) {
            const float *key = view.more && j + SPAN > body ? gather(keys, j, view, block) : keys + j * HEAD_DIM;
            int g = 0;
            for (; g + 2 <= GROUP; g += 2) score(2, q + g * HEAD_DIM, key, scores + g * stride + j, stride);
            if (g < GROUP) score(1, q + g * HEAD_DIM, key, scores + g * stride + j, stride);
        }
        float shrink[GROUP];
        for (int g = 0; g < GROUP; g++) {
            float *s = scores + g * stride;
            for (int64_t j = length; j < padded; j++) s[j] = -INFINITY;
            vec most = load(s), total = all(0.0f);
            for (int64_t j = LANES; j < padded; j += LANES) { vec v = load(s + j); most = pick(v > most, v, most); }
            const float top = greatest(most);
            for (int64_t j = 0; j < padded; j += LANES) {
                const vec e = exp_vec(load(s + j) - top);
                store(s + j, e);
                total += e;
            }
            shrink[g] = 1.0f / sum(total);
        }
        int g = 0;
        for (; g + 2 <= GROUP; g += 2) mix(2, scores + g * stride, stride, values, view, o + g * HEAD_DIM);
        if (g < GROUP) mix(1, scores + g * stride, stride, values, view, o + g * HEAD_DIM);
        for (g = 0; g < GROUP; g++)
            for (int d = 0; d < HEAD_DIM; d++) o[g * HEAD_DIM + d] *= shrink[g];
    }
}

static void write_states(const float *x, int64_t rows, int64_t n, const float *scale, float *out) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < n; i++) out[r * n + i] = x[r * n + i] * scale[r];
}

/* -- the whole pass ----------------------------------------------------------------------------------------------- */

void forward(const Model *m, const Batch *b, float *scratch, int64_t first, int64_t last) {
    const int64_t hidden = m->hidden, heads = m->kv_heads * GROUP * HEAD_DIM;
    const int64_t width = m->kv_heads * (GROUP + 2) * HEAD_DIM, inner = m->intermediate;
    const Range kv_heads = whole(m->kv_heads), columns = whole(hidden / PANEL);
    float *scale = scratch, *mixed = scale + ROWS, *gated = mixed + ROWS * heads, *scores = gated + ROWS * inner;
    int64_t begin = 0, end; /* of this thread's wanted rows */
    while (begin < b->logit_rows && b->wanted[begin] < first) begin++;
    for (end = begin; end < b->logit_rows && b->wanted[end] < last; end++) {}

    for (int64_t r = first; r < last; r++)
        memcpy(b->x + r * hidden, m->embedding + b->tokens[r] * hidden, hidden * sizeof(float));
    for (int64_t i = 0; i < m->layers; i++) {
        const Layer *l = m->layer + i;
        for (int64_t r = first; r < last; r += ROWS) {
            const int64_t n = last - r < ROWS ? last - r : ROWS;
            float *x = b->x + r * hidden, *qkv = b->qkv + r * width;
            scales(x, n, hidden, m->eps, scale);
            multiply(STORE, x, n, hidden, l->qkv, whole(width / PANEL), scale, l->qkv_bias, qkv, width);
            for (int64_t j = 0; j < n; j++) place(m, l, b, qkv + j * width, r + j, kv_heads);
        }
        if (b->barrier) pthread_barrier_wait(b->barrier);
        /* after the last layer's keys and values, only the wanted rows matter: they move to the front of x */
        const int only = i + 1 == m->layers;
        const int64_t rows = only ? end - begin : last - first;
        for (int64_t done = 0; done < rows; done += ROWS) {
            const int64_t n = rows - done < ROWS ? rows - done : ROWS;
            float *x = b->x + (first + done) * hidden;
            for (int64_t j = 0; j < n; j++) {
                const int64_t r = only ? b->wanted[begin + done + j] : first + done + j;
                attend(m, l, b, b->qkv + r * width, r, kv_heads, scores, mixed + j * heads);
                if (only && r != first + done + j) memcpy(x + j * hidden, b->x + r * hidden, hidden * sizeof(float));
            }
            multiply(ADD, mixed, n, heads, l->o, columns, NULL, l->o_bias, x, hidden);
            scales(x, n, hidden, m->eps, scale);
            multiply(GATE, x, n, hidden, l->gate_up, whole(inner / LANES), scale, m->zeros, gated, inner);
            multiply(ADD, gated, n, inner, l->down, columns, NULL, m->zeros, x, hidden);
        }
    }
    const int64_t panels = (m->vocab + PANEL - 1) / PANEL;
    for (int64_t done = 0; done < end - begin; done += ROWS) {
        const int64_t n = end - begin - done < ROWS ? end - begin - done : ROWS;
        const float *x = b->x + (first + done) * hidden;
        scales(x, n, hidden, m->eps, scale);
        if (b->states) write_states(x, n, hidden, scale, b->states + (begin + done) * hidden);
        multiply(STORE, x, n, hidden, m->head, whole(panels), scale, m->zeros, b->logits + (begin + done) * panels * PANEL,
                 panels * PANEL);
    }
}

/* -- few rows: each thread has a part of every matrix ----------------------------------------------------------------- */

typedef struct {
    atomic_long arrived, round;
} Meeting; /* zero before the first forward_wide */

/* Wait for the other threads. They are microseconds apart where each has a core; where not, the core is given up. */
static void meet(Meeting *meeting, int64_t threads) {
    const long round = atomic_load_explicit(&meeting->round, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&meeting->arrived, 1, memory_order_acq_rel) == threads - 1) {
        atomic_store_explicit(&meeting->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&meeting->round, round + 1, memory_order_release);
        return;
    }
    for (int spin = 0; atomic_load_explicit(&meeting->round, memory_order_acquire) == round; spin++)
        if (spin > 4000) sched_yield();
}

/* The same as `forward` for all rows of a batch (at most ROWS), the same bits: the work of one of `threads` threads that
 * all call it. `shared`: scratch of all of them, `own`: of this one. */
void forward_wide(const Model *m, const Batch *b, Meeting *meeting, float *shared, float *own, int64_t rows,
                  int64_t thread, int64_t threads) {
    const int64_t hidden = m->hidden, heads = m->kv_heads * GROUP * HEAD_DIM;
    const int64_t width = m->kv_heads * (GROUP + 2) * HEAD_DIM, inner = m->intermediate;
    const Range kv_heads = part(m->kv_heads, thread, threads), columns = part(hidden / PANEL, thread, threads);
    float *scale = own, *scores = own + ROWS; /* the norms are computed by each: cheaper than to meet once more */
    float *mixed = shared, *gated = mixed + ROWS * heads, *x = b->x;

    if (thread == 0)
        for (int64_t r = 0; r < rows; r++)
            memcpy(x + r * hidden, m->embedding + b->tokens[r] * hidden, hidden * sizeof(float));
    meet(meeting, threads);
    int64_t n = rows;
    for (int64_t i = 0; i < m->layers; i++) {
        const Layer *l = m->layer + i;
        scales(x, rows, hidden, m->eps, scale);
        multiply(STORE, x, rows, hidden, l->qkv, part(width / PANEL, thread, threads), scale, l->qkv_bias, b->qkv, width);
        meet(meeting, threads);
        for (int64_t r = 0; r < rows; r++) place(m, l, b, b->qkv + r * width, r, kv_heads);
        const int only = i + 1 == m->layers;
        n = only ? b->logit_rows : rows;
        for (int64_t j = 0; j < n; j++) {
            const int64_t r = only ? b->wanted[j] : j;
            attend(m, l, b, b->qkv + r * width, r, kv_heads, scores, mixed + j * heads);
            if (thread == 0 && r != j) memcpy(x + j * hidden, x + r * hidden, hidden * sizeof(float));
        }
        meet(meeting, threads);
        multiply(ADD, mixed, n, heads, l->o, columns, NULL, l->o_bias, x, hidden);
        meet(meeting, threads);
        scales(x, n, hidden, m->eps, scale);
        multiply(GATE, x, n, hidden, l->gate_up, part(inner / LANES, thread, threads), scale, m->zeros, gated, inner);
        meet(meeting, threads);
        multiply(ADD, gated, n, inner, l->down, columns, NULL, m->zeros, x, hidden);
        meet(meeting, threads);
    }
    const int64_t panels = (m->vocab + PANEL - 1) / PANEL;
    scales(x, n, hidden, m->eps, scale);
    if (b->states && thread == 0) write_states(x, n, hidden, scale, b->states);
    multiply(STORE, x, n, hidden, m->head, part(panels, thread, threads), scale, m->zeros, b->logits, panels * PANEL);
}

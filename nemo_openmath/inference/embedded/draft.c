/* The drafter (models/drafters.py) by beam search: for each row a tree of guesses, from the model's hidden state and
 * its newest token. */

#include <stdlib.h>

#include "products.h"

#define BEAMS 8  /* at most */
#define ROWS 96  /* beams that are computed together */

typedef struct {
    int64_t hidden, layers, head_rows, linear; /* linear: the recurrence has no activation */
    const float *w, *u, *u_bias;               /* panels [hidden, hidden] */
    const float *const *blocks, *const *biases; /* of each layer: panels [2 hidden, 2 hidden], [2 hidden] */
    const float *head;                         /* panels [head_rows, 2 hidden] */
    const int64_t *ids;                        /* [head_rows]: the token of each row of the head, or NULL */
    const float *embedding;                    /* [vocab, hidden], of the model */
    const float *zeros, *ones;
} Drafter;

static int64_t padded(const Drafter *d) { return (d->head_rows + PANEL - 1) / PANEL * PANEL; }

/* floats of a thread's scratch */
int64_t draft_size(const Drafter *d) { return ROWS * (7 * d->hidden + 2 * d->hidden + padded(d)); }

static void silu(float *x, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES) {
        const vec v = load(x + i), low = pick(v < -80.0f, all(-80.0f), v);
        store(x + i, v / (1.0f + exp_vec(-low)));
    }
}

/* The `width` likeliest of a row of logits, likeliest first, with their log-probabilities. */
static void likeliest(float *logits, int64_t n, int64_t width, int64_t *rows, float *scores) {
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++) {
        if (kept == width && logits[i] <= scores[width - 1]) continue;
        int64_t at = kept < width ? kept++ : width - 1;
        for (; at > 0 && scores[at - 1] < logits[i]; at--) {
            scores[at] = scores[at - 1];
            rows[at] = rows[at - 1];
        }
        scores[at] = logits[i];
        rows[at] = i;
    }
    const float most = scores[0];
    const int64_t end = n / LANES * LANES;
    vec sums = all(0.0f);
    for (int64_t i = 0; i < end; i += LANES) sums += exp_vec(load(logits + i) - most);
    double total = sum(sums);
    for (int64_t i = end; i < n; i++) total += expf(logits[i] - most);
    const float shift = most + (float)log(total);
    for (int64_t k = 0; k < width; k++) scores[k] -= shift;
}

/* One step of some beams: their states [n, hidden] read `tokens`; logits [n, padded] of what comes next.
 * hidden [n, hidden]: the model's, of each beam's row. */
static void step(const Drafter *d, const int64_t *tokens, const float *hidden, float *states, int64_t n, float *room,
                 float *logits) {
    const int64_t h = d->hidden, wide = 2 * h;
    float *read = room, *next = read + n * h, *x = next + n * h, *y = x + n * wide;
    for (int64_t r = 0; r < n; r++) memcpy(read + r * h, d->embedding + tokens[r] * h, h * sizeof(float));
    multiply(STORE, read, n, h, d->w, whole(h / PANEL), d->ones, d->zeros, next, h);
    multiply(ADD, states, n, h, d->u, whole(h / PANEL), NULL, d->u_bias, next, h);
    if (!d->linear) silu(next, n * h);
    memcpy(states, next, n * h * sizeof(float));
    for (int64_t r = 0; r < n; r++) {
        memcpy(x + r * wide, hidden + r * h, h * sizeof(float));
        memcpy(x + r * wide + h, states + r * h, h * sizeof(float));
    }
    for (int64_t i = 0; i < d->layers; i++) {
        multiply(STORE, x, n, wide, d->blocks[i], whole(wide / PANEL), d->ones, d->biases[i], y, wide);
        silu(y, n * wide);
        for (int64_t j = 0; j < n * wide; j += LANES) store(x + j, load(x + j) + load(y + j));
    }
    multiply(STORE, x, n, wide, d->head, whole(padded(d) / PANEL), d->ones, d->zeros, logits, padded(d));
}

/* Rows first .. last - 1. hidden [rows, hidden], tokens [rows]: the model's states, and what it drew from them.
 * Of each row, step and beam, the likeliest beam first: guesses [rows, length, width], the beam of the step before that
 * each continues, and its log-probability with all before it. width <= BEAMS and <= head_rows. */
void draft(const Drafter *d, const float *hidden, const int64_t *tokens, int64_t first, int64_t last, int64_t length,
           int64_t width, float *room, int64_t *guesses, int64_t *parents, float *scores) {
    const int64_t h = d->hidden, most = ROWS / width;
    float *own = room, *states = own + ROWS * h, *moved = states + ROWS * h, *work = moved + ROWS * h;
    float *logits = work + ROWS * 6 * h;
    for (int64_t begin = first; begin < last; begin += most) {
        const int64_t rows = last - begin < most ? last - begin : most;
        int64_t reads[ROWS], beams = 1;
        memset(states, 0, rows * h * sizeof(float));
        for (int64_t r = 0; r < rows; r++) reads[r] = tokens[begin + r];
        for (int64_t t = 0; t < length; t++) {
            for (int64_t r = 0; r < rows * beams; r++)
                memcpy(own + r * h, hidden + (begin + r / beams) * h, h * sizeof(float));
            step(d, reads, own, states, rows * beams, work, logits);
            int64_t next[ROWS];
            for (int64_t r = 0; r < rows; r++) {
                float best[BEAMS * BEAMS];
                int64_t row[BEAMS * BEAMS];
                const int64_t at = ((begin + r) * length + t) * width, before = at - width;
                for (int64_t b = 0; b < beams; b++) {
                    likeliest(logits + (r * beams + b) * padded(d), d->head_rows, width, row + b * width, best + b * width);
                    for (int64_t k = 0; k < width; k++) best[b * width + k] += t ? scores[before + b] : 0.0f;
                }
                for (int64_t k = 0; k < width; k++) { /* the best of all beams' */
                    int64_t top = 0;
                    for (int64_t i = 1; i < beams * width; i++) top = best[i] > best[top] ? i : top;
                    scores[at + k] = best[top];
                    parents[at + k] = top / width;
                    guesses[at + k] = d->ids ? d->ids[row[top]] : row[top];
                    best[top] = -INFINITY;
                    next[r * width + k] = guesses[at + k];
                    memcpy(moved + (r * width + k) * h, states + (r * beams + top / width) * h, h * sizeof(float));
                }
            }
            float *spare = states;
            states = moved;
            moved = spare;
            beams = width;
            memcpy(reads, next, rows * width * sizeof *reads);
        }
    }
}

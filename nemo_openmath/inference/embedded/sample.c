/* Draws tokens: the same distribution as sampling.py, one row after the other, no row depending on another. */

#include <stdlib.h>

#include "vectors.h"

/* Buckets of probabilities, eight to a factor of two: of 1 the last, of 2^-40 and all below it the first. */
#define LOWEST 0x2b8 /* 2^-40's bits, shifted as below */
#define BUCKETS (0x3f8 - LOWEST + 1)
#define SPARE 64

static inline int bucket(float p) {
    uint32_t bits;
    memcpy(&bits, &p, sizeof bits);
    const int b = (int)(bits >> 20) - LOWEST;
    return b < 0 ? 0 : b < BUCKETS ? b : BUCKETS - 1;
}

static int descending(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

/* the members of one bucket, greatest first */
static int64_t members(const float *p, int64_t vocab, int which, float *out) {
    int64_t n = 0;
    for (int64_t i = 0; i < vocab; i++) {
        out[n] = p[i];
        n += bucket(p[i]) == which;
    }
    qsort(out, n, sizeof *out, descending);
    return n;
}

/* The least probability kept by top-k (0: off), then by top-p of what that leaves. p: greatest is 1; `room` [vocab+1] */
static float least_kept(const float *p, int64_t vocab, double total, int64_t top_k, float top_p, float *room) {
    double mass[BUCKETS] = {0};
    int64_t count[BUCKETS] = {0};
    for (int64_t i = 0; i < vocab; i++) {
        const int b = bucket(p[i]);
        mass[b] += p[i];
        count[b]++;
    }
    float least = 0;
    if (top_k > 0 && top_k < vocab) {
        int64_t before = 0;
        int b = BUCKETS - 1;
        for (total = 0; before + count[b] < top_k; b--) { before += count[b]; total += mass[b]; }
        members(p, vocab, b, room);
        for (int64_t i = 0; i < top_k - before; i++) total += room[i];
        least = room[top_k - before - 1];
    }
    if (top_p < 1) {
        const double target = (double)top_p * total;
        double before = 0;
        int b = BUCKETS - 1;
        for (; b > 0 && before + mass[b] < target; b--) before += mass[b];
        const int64_t n = members(p, vocab, b, room);
        int64_t i = 0;
        for (; i + 1 < n && before + room[i] < target; i++) before += room[i];
        if (n && room[i] > least) least = room[i];
    }
    return least;
}

int64_t room_size(int64_t vocab) { return 2 * (vocab + SPARE); }

/* logits [rows, stride], of which the first `vocab` count; room [room_size(vocab)];
 * logprob: of the token drawn, at temperature 1, or NULL. */
void sample(const float *logits, int64_t stride, int64_t vocab, const float *temperature, const float *top_p,
            const int64_t *top_k, const float *min_p, const double *u, int64_t first, int64_t last, float *room,
            int64_t *tokens, float *logprob) {
    for (int64_t r = first; r < last; r++) {
        const float *l = logits + r * stride;
        float *p = room, *spare = room + vocab + SPARE;
        float most = -INFINITY;
        int64_t whole = vocab / LANES * LANES, token = 0;
        if (whole) {
            vec v = load(l);
            for (int64_t i = LANES; i < whole; i += LANES) { const vec w = load(l + i); v = pick(w > v, w, v); }
            most = greatest(v);
        }
        for (int64_t i = whole; i < vocab; i++) most = l[i] > most ? l[i] : most;
        while (token + 1 < vocab && l[token] != most) token++;
        if (temperature[r] > 0 && top_k[r] != 1 && min_p[r] < 1) {
            const float heat = 1.0f / temperature[r];
            vec sums = all(0.0f);
            memcpy(spare, l + whole, (vocab - whole) * sizeof(float));
            for (int64_t i = vocab - whole; i < LANES; i++) spare[i] = -INFINITY;
            for (int64_t i = 0; i < vocab; i += LANES) {
                const vec e = exp_vec(((i < whole ? load(l + i) : load(spare)) - most) * heat);
                store(p + i, e);
                sums += e;
            }
            const double total = sum(sums);
            if (total * top_p[r] > 1) { /* else the most probable token alone is the nucleus */
                float least = min_p[r];
                if (top_p[r] < 1 || (top_k[r] > 0 && top_k[r] < vocab)) {
                    const float cut = least_kept(p, vocab, total, top_k[r], top_p[r], spare);
                    least = cut > least ? cut : least;
                }
                double kept = 0;
                for (int64_t i = 0; i < vocab; i++) {
                    p[i] = p[i] >= least ? p[i] : 0;
                    kept += p[i];
                }
                double left = u[r] * kept;
                int64_t i = 0;
                for (int64_t j = 0; j < vocab; j++) {
                    if (p[j] <= 0) continue;
                    i = j; /* what rounding leaves over goes to the last one kept */
                    if (left < p[j]) break;
                    left -= p[j];
                }
                token = i;
            }
        }
        tokens[r] = token;
        if (logprob) {
            vec sums = all(0.0f);
            for (int64_t i = 0; i < whole; i += LANES) sums += exp_vec(load(l + i) - most);
            double total = sum(sums);
            for (int64_t i = whole; i < vocab; i++) total += expf(l[i] - most);
            logprob[r] = (float)(l[token] - most - log(total));
        }
    }
}

/* Products of rows and matrices. Matrices are packed in panels, [out / PANEL][in][PANEL], so that a tile of TALL rows and
 * one panel is computed in registers with one pass over the panel. A row has the same bits in a tile of any height. */

#ifndef PRODUCTS_H
#define PRODUCTS_H

#include "vectors.h"

#define TALL 6
#define PANEL (2 * LANES)

typedef struct { int64_t first, last; } Range;
static inline Range whole(int64_t n) { return (Range){0, n}; }

enum { STORE, ADD, GATE };

INLINE void tile(const int tall, const int what, const float *x, const float *panel, int64_t in, const float *scale,
                 const float *bias, float *out, int64_t stride) {
    vec sums[TALL][2];
    for (int r = 0; r < tall; r++) sums[r][0] = sums[r][1] = all(0.0f);
    for (int64_t k = 0; k < in; k++) {
        const vec a = load(panel + k * PANEL), b = load(panel + k * PANEL + LANES);
        for (int r = 0; r < tall; r++) {
            const vec value = all(x[r * in + k]);
            sums[r][0] += value * a;
            sums[r][1] += value * b;
        }
    }
    /* each case in one expression: whether a product is fused with a sum must not depend on the tile's height */
    for (int r = 0; r < tall; r++) {
        float *o = out + r * stride;
        const vec a = sums[r][0], b = sums[r][1];
        if (what == GATE) {
            const vec gate = a * scale[r], low = pick(gate < -80.0f, all(-80.0f), gate);
            store(o, gate / (1.0f + exp_vec(-low)) * (b * scale[r]));
        } else if (what == ADD) {
            store(o, load(o) + (a + load(bias)));
            store(o + LANES, load(o + LANES) + (b + load(bias + LANES)));
        } else {
            store(o, a * scale[r] + load(bias));
            store(o + LANES, b * scale[r] + load(bias + LANES));
        }
    }
}

/* out (+)= x @ matrix.T, rows of x scaled (the norm before a matrix), gate applied: all in one pass. */
INLINE void multiply(const int what, const float *x, int64_t rows, int64_t in, const float *matrix, Range panels,
                     const float *scale, const float *bias, float *out, int64_t stride) {
    const int step = what == GATE ? LANES : PANEL;
    for (int64_t p = panels.first; p < panels.last; p++) {
        const float *panel = matrix + p * in * PANEL, *shift = bias + p * PANEL;
        float *o = out + p * step;
        int64_t r = 0;
#define TILE(tall) tile(tall, what, x + r * in, panel, in, scale ? scale + r : NULL, shift, o + r * stride, stride)
        while (r < rows) { /* tiles of like height: a low one takes nearly as long as a high one */
            const int64_t left = rows - r, tiles = (left + TALL - 1) / TALL, tall = (left + tiles - 1) / tiles;
            switch (tall) {
                case 1: TILE(1); break;
                case 2: TILE(2); break;
                case 3: TILE(3); break;
                case 4: TILE(4); break;
                case 5: TILE(5); break;
                default: TILE(TALL); break;
            }
            r += tall;
        }
#undef TILE
    }
}

#endif

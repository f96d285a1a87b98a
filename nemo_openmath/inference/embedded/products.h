/* Products of rows and matrices. Matrices are packed in panels, [out / PANEL][in][PANEL], so that a tile of TALL rows and
 * one panel is computed in registers with one pass over the panel. A row has the same bits in a tile of any height. */

#ifndef PRODUCTS_H
#define PRODUCTS_H

#include "vectors.h"

#define TALL 6
#define NEAR 256 /* floats */

typedef struct { int64_t first, last; } Range;
static inline Range whole(int64_t n) { return (Range){0, n}; }

enum { STORE, ADD, GATE };

/* ahead: what is fetched into the cache meanwhile, `pace` floats of it for each of the panel's rows */
INLINE void tile(const int tall, const int what, const float *x, const float *panel, int64_t in, const float *scale,
                 const float *bias, float *out, int64_t stride, const float *ahead, int64_t pace) {
    vec sums[TALL][2];
    for (int r = 0; r < tall; r++) sums[r][0] = sums[r][1] = all(0.0f);
    for (int64_t k = 0; k < in; k++) {
        vec a = load(panel + k * PANEL), b = load(panel + k * PANEL + LANES);
        if (tall > 1) __builtin_prefetch(ahead + k * pace);
        if (tall > 2) { IN_REGISTER(a); IN_REGISTER(b); }
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

/* A function for each kind and height: inlined into one, gcc keeps some of their sums in memory. */
typedef void Tile(const float *x, const float *panel, int64_t in, const float *scale, const float *bias, float *out,
                  int64_t stride, const float *ahead, int64_t pace);
#define TILE(what, tall)                                                                                          \
    static __attribute__((noinline)) void what##_##tall(const float *x, const float *panel, int64_t in,             \
                                                        const float *scale, const float *bias, float *out,          \
                                                        int64_t stride, const float *ahead, int64_t pace) {         \
        tile(tall, what, x, panel, in, scale, bias, out, stride, ahead, pace);                                      \
    }
#define TILES(what) TILE(what, 1) TILE(what, 2) TILE(what, 3) TILE(what, 4) TILE(what, 5) TILE(what, 6)
TILES(STORE)
TILES(ADD)
TILES(GATE)
#define HEIGHTS(what) {what##_1, what##_2, what##_3, what##_4, what##_5, what##_6}
static Tile *const OF_HEIGHT[3][TALL] = {[STORE] = HEIGHTS(STORE), [ADD] = HEIGHTS(ADD), [GATE] = HEIGHTS(GATE)};
#undef HEIGHTS
#undef TILES
#undef TILE

/* out (+)= x @ matrix.T, rows of x scaled (the norm before a matrix), gate applied: all in one pass.
 *
 * While one panel is multiplied the next one comes from memory: the tiles over a panel each fetch a part of it, so that
 * memory and arithmetic are both busy all the time. A single tile is over too soon for that and fetches what is near in
 * its own panel; a single row asks for so little arithmetic that the processor's own fetching is as fast as memory. */
INLINE void multiply(const int what, const float *x, int64_t rows, int64_t in, const float *matrix, Range panels,
                     const float *scale, const float *bias, float *out, int64_t stride) {
    const int width = what == GATE ? LANES : PANEL;
    const int64_t tiles = (rows + TALL - 1) / TALL, pace = (PANEL + tiles - 1) / tiles;
    for (int64_t p = panels.first; p < panels.last; p++) {
        const float *panel = matrix + p * in * PANEL, *shift = bias + p * PANEL;
        const float *ahead = tiles == 1 ? panel + NEAR : panel + in * PANEL;
        float *o = out + p * width;
        /* tiles of like height: a low one takes nearly as long as a high one */
        for (int64_t r = 0, left = tiles; left > 0; left--) {
            const int64_t tall = (rows - r + left - 1) / left;
            OF_HEIGHT[what][tall - 1](x + r * in, panel, in, scale ? scale + r : NULL, shift, o + r * stride, stride,
                                      ahead, pace);
            r += tall;
            ahead += in * pace;
        }
    }
}

#endif

/* Short vectors of floats by the compiler's own extension: one source for AVX2, AVX-512 and NEON. Nothing here may be
 * reordered by the compiler: a row's result must not depend on which loop computed it. */

#ifndef VECTORS_H
#define VECTORS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
#define PANEL (2 * LANES) /* columns of a packed matrix that lie together: products.h */
/* Without it gcc reads a vector from memory again in each operation with it, and loads bound the products. */
#if defined(__x86_64__)
#define IN_REGISTER(v) __asm__("" : "+x"(v))
#elif defined(__aarch64__)
#define IN_REGISTER(v) __asm__("" : "+w"(v))
#else
#define IN_REGISTER(v)
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t ivec __attribute__((vector_size(LANES * sizeof(int32_t))));

INLINE vec load(const float *p) { vec v; memcpy(&v, p, sizeof v); return v; }
INLINE void store(float *p, vec v) { memcpy(p, &v, sizeof v); }
INLINE vec all(float x) { return x - (vec){0}; }
INLINE vec pick(ivec where, vec a, vec b) { return (vec)(((ivec)a & where) | ((ivec)b & ~where)); }

INLINE float sum(vec v) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
}

INLINE float greatest(vec v) {
    float most = v[0];
    for (int i = 1; i < LANES; i++) most = v[i] > most ? v[i] : most;
    return most;
}

/* exp(x) for x <= 88, within 2 ulp, 0 below -87: 2^n times a polynomial on [-ln2/2, ln2/2] (Cephes' expf). */
INLINE vec exp_vec(vec x) {
    const ivec tiny = x < -87.0f;
    x = pick(tiny, all(-87.0f), x);
    vec n = x * 1.44269504088896341f;
    ivec whole = __builtin_convertvector(n + pick(n < 0.0f, all(-0.5f), all(0.5f)), ivec);
    n = __builtin_convertvector(whole, vec);
    x = x - n * 0.693359375f;
    x = x - n * -2.12194440e-4f;
    vec y = all(1.9875691500e-4f);
    y = y * x + 1.3981999507e-3f;
    y = y * x + 8.3334519073e-3f;
    y = y * x + 4.1665795894e-2f;
    y = y * x + 1.6666665459e-1f;
    y = y * x + 5.0000001201e-1f;
    y = y * x * x + x + 1.0f;
    vec scale = (vec)((whole + 127) << 23);
    return pick(tiny, all(0.0f), y * scale);
}

#endif

/* What torch does slowly when one token is computed for each row: rotary embedding and grouped-query attention over a
 * KV cache in which every row has its own length, normalisation, and the gated activation. Compiled for the model's
 * HEAD_DIM (a multiple of 16) and GROUP (query heads of a KV head) on first use; see kernels.py.
 *
 * No result of a row depends on another row, nor on how many there are. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 16
#define PARTS (HEAD_DIM / LANES)

typedef float vec __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t ivec __attribute__((vector_size(LANES * sizeof(int32_t))));

static inline vec load(const float *p) { vec v; memcpy(&v, p, sizeof v); return v; }
static inline void store(float *p, vec v) { memcpy(p, &v, sizeof v); }
static inline vec all(float x) { return x - (vec){0}; }

static inline vec pick(ivec where, vec a, vec b) { return (vec)(((ivec)a & where) | ((ivec)b & ~where)); }

static inline float sum(vec v) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
}

/* exp(x) for x <= 88, within 2 ulp: 2^n times a polynomial on [-ln2/2, ln2/2] (Cephes' expf). */
static inline vec exp_vec(vec x) {
    x = pick(x < -87.0f, all(-87.0f), x);
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
    ivec power = (whole + 127) << 23;
    vec scale;
    memcpy(&scale, &power, sizeof scale);
    return y * scale;
}

static void norm_row(const float *x, float *out, int64_t n, float eps) {
    vec squares = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) { vec v = load(x + i); squares += v * v; }
    float total = sum(squares);
    for (; i < n; i++) total += x[i] * x[i];
    float scale = 1.0f / sqrtf(total / n + eps);
    for (i = 0; i < n; i++) out[i] = x[i] * scale;
}

/* out[row] = x[row] / rms(x[row]); both [rows, n] */
void rms_norm(const float *x, float *out, int64_t rows, int64_t n, float eps) {
    for (int64_t r = 0; r < rows; r++) norm_row(x + r * n, out + r * n, n, eps);
}

/* out = silu(gate) * up; gate_up [rows, 2 n], out [rows, n], n a multiple of 16 */
void gated(const float *gate_up, float *out, int64_t rows, int64_t n) {
    for (int64_t r = 0; r < rows; r++) {
        const float *gate = gate_up + 2 * r * n, *up = gate + n;
        for (int64_t i = 0; i < n; i += LANES) {
            vec g = load(gate + i);
            store(out + r * n + i, g / (1.0f + exp_vec(-pick(g < -80.0f, all(-80.0f), g))) * load(up + i));
        }
    }
}

/* One token of each row.
 *
 * qkv       [rows, kv_heads, GROUP + 2, HEAD_DIM]   q_1 .. q_G, k, v; q holds the softmax scale
 * qk_norm   [GROUP + 1, HEAD_DIM] or NULL
 * rotation  [rows, HEAD_DIM / 2, 2]                 cos, sin of neighbouring dimensions
 * keys, values [slots, kv_heads, capacity, HEAD_DIM]; the row's k and v are written at position[row]
 * scores    [GROUP, capacity + 16]                  scratch
 * out       [rows, kv_heads, GROUP, HEAD_DIM]       attention over positions 0 .. position[row]; where live[row] is
 *                                                   0 the row only keeps its place
 */
void attend(float *qkv, const float *qk_norm, const float *rotation, float *keys, float *values,
            const int64_t *position, const uint8_t *live, float *scores, float *out, int64_t first, int64_t rows,
            int64_t kv_heads, int64_t capacity, float eps) {
    for (int64_t r = first; r < rows; r++) {
        if (!live[r]) continue;
        const int64_t at = position[r], length = at + 1, padded = (length + LANES - 1) / LANES * LANES;
        for (int64_t h = 0; h < kv_heads; h++) {
            float *head = qkv + (r * kv_heads + h) * (GROUP + 2) * HEAD_DIM;
            const float *turn = rotation + r * HEAD_DIM;
            for (int g = 0; g <= GROUP; g++) {
                float *x = head + g * HEAD_DIM;
                if (qk_norm) {
                    norm_row(x, x, HEAD_DIM, eps);
                    for (int d = 0; d < HEAD_DIM; d++) x[d] *= qk_norm[g * HEAD_DIM + d];
                }
                for (int d = 0; d < HEAD_DIM; d += 2) {
                    float a = x[d], b = x[d + 1];
                    x[d] = a * turn[d] - b * turn[d + 1];
                    x[d + 1] = a * turn[d + 1] + b * turn[d];
                }
            }
            float *K = keys + (r * kv_heads + h) * capacity * HEAD_DIM;
            float *V = values + (r * kv_heads + h) * capacity * HEAD_DIM;
            memcpy(K + at * HEAD_DIM, head + GROUP * HEAD_DIM, HEAD_DIM * sizeof(float));
            memcpy(V + at * HEAD_DIM, head + (GROUP + 1) * HEAD_DIM, HEAD_DIM * sizeof(float));

            const int64_t stride = capacity + LANES;
            vec q[GROUP][PARTS];
            float most[GROUP];
            for (int g = 0; g < GROUP; g++) {
                for (int p = 0; p < PARTS; p++) q[g][p] = load(head + g * HEAD_DIM + p * LANES);
                most[g] = -INFINITY;
            }
            for (int64_t j = 0; j < length; j++) {
                vec k[PARTS];
                for (int p = 0; p < PARTS; p++) k[p] = load(K + j * HEAD_DIM + p * LANES);
                for (int g = 0; g < GROUP; g++) {
                    vec product = q[g][0] * k[0];
                    for (int p = 1; p < PARTS; p++) product += q[g][p] * k[p];
                    float score = sum(product);
                    scores[g * stride + j] = score;
                    most[g] = score > most[g] ? score : most[g];
                }
            }
            vec mixed[GROUP][PARTS];
            float scale[GROUP];
            for (int g = 0; g < GROUP; g++) {
                float *s = scores + g * stride;
                for (int64_t j = length; j < padded; j++) s[j] = -INFINITY;
                vec total = {0};
                for (int64_t j = 0; j < padded; j += LANES) {
                    vec shifted = load(s + j) - most[g];
                    vec e = exp_vec(shifted);
                    e = pick(shifted < -87.0f, all(0.0f), e);
                    store(s + j, e);
                    total += e;
                }
                scale[g] = 1.0f / sum(total);
                for (int p = 0; p < PARTS; p++) mixed[g][p] = all(0.0f);
            }
            for (int64_t j = 0; j < length; j++) {
                vec v[PARTS];
                for (int p = 0; p < PARTS; p++) v[p] = load(V + j * HEAD_DIM + p * LANES);
                for (int g = 0; g < GROUP; g++) {
                    const float weight = scores[g * stride + j];
                    for (int p = 0; p < PARTS; p++) mixed[g][p] += v[p] * weight;
                }
            }
            float *o = out + (r * kv_heads + h) * GROUP * HEAD_DIM;
            for (int g = 0; g < GROUP; g++)
                for (int p = 0; p < PARTS; p++) store(o + g * HEAD_DIM + p * LANES, mixed[g][p] * scale[g]);
        }
    }
}

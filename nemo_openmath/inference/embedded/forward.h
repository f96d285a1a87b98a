/* What a pass computes with, and its functions: forward.c says what they do. */

#ifndef FORWARD_H
#define FORWARD_H

#include <pthread.h>
#include <stdint.h>

typedef struct {
    const float *qkv, *qkv_bias, *qk_norm, *o, *o_bias, *gate_up, *down;
    float *keys, *values;
} Layer;

typedef struct {
    int64_t hidden, kv_heads, intermediate, vocab, layers, capacity;
    const float *embedding, *head, *rotation; /* rotation [positions, HEAD_DIM / 2, 2]: cos, sin */
    const float *zeros;                       /* the bias of what has none */
    const Layer *layer;
    double eps;
} Model;

/* A row is a token. It lies in the cache of its slot at `stored`, which is its position but in a tree of drafts, where
 * several rows have one position. It sees the `body` first positions of the slot, which lie where they should, and
 * then its ancestors and itself, position after position: tails[tail], tails[tail + 1], .. say where these lie.
 * The rows of a slot follow each other, ancestors first. */
typedef struct {
    const int64_t *tokens, *slots, *positions, *stored; /* [rows] */
    const int64_t *body, *tail, *tails;                 /* [rows], [rows], those of all rows; NULL: there is no tree */
    const int64_t *wanted;                     /* [logit_rows], ascending: rows whose logits are computed */
    int64_t logit_rows;
    float *x, *qkv;   /* [rows, hidden], [rows, kv_heads * (GROUP + 2) * HEAD_DIM] */
    float *logits;    /* [logit_rows, vocab rounded up to PANEL] */
    float *states;    /* [logit_rows, hidden], normed but for the norm's weights; or NULL */
    pthread_barrier_t *barrier; /* NULL where no thread needs what another one computes */
} Batch;

/* Rows first .. last - 1 of the batch, by one of the threads that share it. */
void forward(const Model *m, const Batch *b, float *scratch, int64_t first, int64_t last);

/* Lay out trees, one after the other, as a batch's rows: of each its nodes, the position of its first one, and of each
 * node its parent in the tree. The first branch of each tree lies in order and sees no tail. `tails`: room for the depths
 * of all nodes. */
void lay_out(int64_t trees, const int64_t *nodes, const int64_t *starts, const int64_t *parents, int64_t *stored,
             int64_t *body, int64_t *tail, int64_t *tails);

/* Put the nodes of a path, which lie at positions start + path[i] of a slot, at start + i. */
void keep(const Model *m, int64_t slot, int64_t start, const int64_t *path, int64_t n);

#endif

/* Turns of rows, one after the other without the interpreter between them: guess, compute, draw, append. A turn of few
 * rows of a small model takes a tenth of a millisecond; what Python does around it takes longer, all the more as the pass
 * has driven the interpreter out of the processor's cache. */

#include <time.h>

#include "forward.h"
#include "guess.h"
#include "vectors.h"

#define MOST_TOKENS 128 /* of a pass */

void sample(const float *logits, int64_t stride, int64_t vocab, const float *temperature, const float *top_p,
            const int64_t *top_k, const float *min_p, const double *u, int64_t first, int64_t last, float *room,
            int64_t *tokens, float *logprob);
void draft(const void *d, const float *hidden, const int64_t *tokens, int64_t first, int64_t last, int64_t length,
           int64_t width, float *room, int64_t *guesses, int64_t *parents, float *scores);

int64_t turn_constant(int64_t which) { return (const int64_t[]){MOST_TOKENS}[which]; }

/* The rows of rows.py, and what draws their tokens. */
typedef struct {
    int32_t *ids;                                      /* [rows, capacity] */
    int64_t capacity, *length;                         /* [rows] */
    const int64_t *full_length, *prompt_length, *stop_set, *top_k;
    const float *temperature, *top_p, *min_p;
    const double *uniforms;                            /* [rows, capacity], by place in the completion */
    const unsigned char *wants_logprobs;
    float *logprobs;                                   /* [rows, capacity], by place in the completion */
    float *states;                                     /* [rows, hidden], where they are kept */
} Rows;

/* What guesses. `log` is NULL where nothing does, `drafter` where n-grams alone do. */
typedef struct {
    const Texts *texts;
    Log *log;
    const Chances *chances;
    const Trees *proposed, *chosen;
    Node *nodes;                                       /* room for choose() */
    const Classes *classes;
    const void *drafter;
    int64_t length, width, sure;                       /* of the search; the first class of guesses beside which nobody is asked */
    float *hidden, *room;                              /* [rows, hidden], and a search's */
    int64_t *guesses, *beams;                          /* [rows, length, width] */
    float *scores;
} Guessing;

/* One turn: tokens of its pass, guesses among them, whether they were looked for; seconds of looking for them and of the pass; what was
 * chosen makes and takes (choose() of guess.c). */
typedef struct {
    int64_t tokens, guessed, looked;
    double look, pass, made, took;
} Turn;

static double now(void) { /* of this thread: what other processes take of the machine decides nothing */
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Trees for rows, of which none has guesses where the result is 0. */
static int64_t look(const Guessing *g, const Rows *r, int64_t hidden, const int64_t *rows, int64_t n, int64_t level,
                    int64_t most, const double *seconds, double token, double *worth) {
    int64_t left[MOST_TOKENS], some[MOST_TOKENS], newest[MOST_TOKENS], asked = 0;
    ahead(g->texts, rows, n, most, left);
    look_up(g->log, g->texts, rows, n, left, g->proposed);
    for (int64_t i = 0; level > 1 && i < n; i++) {
        if (left[i] < 1 || (g->proposed->count[i] && g->proposed->kinds[i * NODES] >= g->sure)) continue;
        memcpy(g->hidden + asked * hidden, r->states + rows[i] * hidden, hidden * sizeof(float));
        newest[asked] = r->ids[rows[i] * r->capacity + r->length[rows[i]] - 1];
        some[asked++] = i;
    }
    if (asked) draft(g->drafter, g->hidden, newest, 0, asked, g->length, g->width, g->room, g->guesses, g->beams, g->scores);
    for (int64_t k = 0; k < asked; k++) {
        const int64_t at = k * g->length * g->width;
        join(g->guesses + at, g->beams + at, g->scores + at, g->length, g->width, left[some[k]], g->classes, g->proposed, some[k]);
    }
    return choose(g->chances, g->texts, rows, n, g->proposed, seconds, token, g->chosen, worth, g->nodes);
}

/* The rows of a pass: of rows[0 .. n-1] their newest tokens and, if there are `guesses`, what may follow them. nodes,
 * starts [n]: of each row its nodes and its newest token's position; parents [MOST_TOKENS]: of each node, in its tree. */
static void fill(Batch *b, const Rows *r, const Trees *guesses, const int64_t *slot, const int64_t *rows, int64_t n,
                 int64_t *nodes, int64_t *starts, int64_t *parents) {
    int64_t *tokens = (int64_t *)b->tokens, *slots = (int64_t *)b->slots, *positions = (int64_t *)b->positions;
    int64_t *stored = (int64_t *)b->stored, total = 0, chains = 1;
    for (int64_t i = 0; i < n; i++) {
        starts[i] = r->length[rows[i]] - 1;
        nodes[i] = guesses ? guesses->count[i] : 1;
        for (int64_t k = 0; k < nodes[i]; k++, total++) {
            const int64_t at = i * NODES + k, depth = k ? guesses->kinds[at] : 0;
            tokens[total] = k ? guesses->tokens[at] : r->ids[rows[i] * r->capacity + starts[i]];
            parents[total] = k ? guesses->parents[at] : -1;
            slots[total] = slot[rows[i]];
            positions[total] = stored[total] = starts[i] + depth;
            chains = chains && depth == k;
        }
    }
    b->logit_rows = total;
    if (chains) b->body = NULL;
    else lay_out(n, nodes, starts, parents, stored, (int64_t *)b->body, (int64_t *)b->tail, (int64_t *)b->tails);
}

/* Draw the tokens of a row, whose nodes are those from `first` on, as far as its guesses are right, and append them: the
 * path that was gone, of `*steps` nodes. right [NODES]: guesses that were right are counted, by their depth. Tells whether
 * one of the tokens may end the request. */
static int draw(const Batch *b, const Rows *r, int64_t vocab, const unsigned char *could_end, float *room, int64_t row,
                int64_t first, int64_t nodes, const int64_t *parents, int64_t *path, int64_t *steps, int64_t *right) {
    const int64_t base = row * r->capacity, place = base + r->length[row] - r->prompt_length[row];
    const int64_t stride = (vocab + PANEL - 1) / PANEL * PANEL;
    const unsigned char *ends = could_end + r->stop_set[row] * vocab;
    int64_t depth = 0, node = 0, drawn;
    int may_end = 0;
    for (;; depth++) {
        path[depth] = node;
        sample(b->logits + (first + node) * stride, stride, vocab, r->temperature + row, r->top_p + row, r->top_k + row,
               r->min_p + row, r->uniforms + place + depth, 0, 1, room, &drawn,
               r->wants_logprobs[row] ? r->logprobs + place + depth : NULL);
        r->ids[base + r->length[row]++] = (int32_t)drawn;
        may_end |= ends[drawn] || r->length[row] >= r->full_length[row];
        int64_t child = node + 1;
        while (child < nodes && (parents[first + child] != node || b->tokens[first + child] != drawn)) child++;
        if (child == nodes) break;
        node = child;
        right[depth]++;
    }
    *steps = depth + 1;
    return may_end;
}

/* Do turns with rows[0 .. n-1], all of which decode and have memory for NODES tokens more, until `turns` are done, `limit`
 * seconds are over, or a token came that may end its request (could_end [stop sets, vocab]; or its length is full_length).
 * level: how to look for guesses, 0: not at all; each `plain`th turn does not, the first one being turn `phase`.
 * most, seconds, token: as choose() and ahead() take them.
 * batch: room for MOST_TOKENS tokens, whose `wanted` are 0, 1, ..; body, tail and tails are room for trees, too.
 * norm: weights of the model's last norm; slot [rows]; scratch, room: of forward() and sample().
 * done [turns]; right [NODES]: how many guesses were right, by their depth, is added;
 * before [n]: gets of each row the length before the last turn if one of that turn's tokens may end the request, else the
 * length. Returns the number of turns. */
int64_t run(const Model *m, Batch *batch, const float *norm, const int64_t *slot, float *scratch, float *room, const Rows *r,
            const Guessing *g, const unsigned char *could_end, const int64_t *rows, int64_t n, int64_t level, int64_t phase,
            int64_t plain, int64_t most, const double *seconds, double token, int64_t turns, double limit, Turn *done, int64_t *right, int64_t *before) {
    const double began = now();
    double last = began;
    int64_t turn = 0;
    int ended = 0;
    for (; turn < turns && !ended && last - began < limit; turn++) {
        Batch b = *batch;
        Turn *d = done + turn;
        double worth[2] = {0, 0};
        int64_t starts[MOST_TOKENS], nodes[MOST_TOKENS], parents[MOST_TOKENS];
        d->looked = level && (phase + turn) % plain;
        d->guessed = d->looked ? look(g, r, m->hidden, rows, n, level, most, seconds, token, worth) : 0;
        const double looked = d->looked ? now() : last;
        fill(&b, r, d->guessed ? g->chosen : NULL, slot, rows, n, nodes, starts, parents);
        forward(m, &b, scratch, 0, b.logit_rows);
        for (int64_t i = 0, first = 0; i < n; first += nodes[i], i++) {
            const int64_t row = rows[i], length = r->length[row];
            int64_t path[NODES], steps;
            const int may_end = draw(&b, r, m->vocab, could_end, room, row, first, nodes[i], parents, path, &steps, right);
            before[i] = may_end ? length : r->length[row];
            ended |= may_end;
            keep(m, slot[row], starts[i], path, steps);
            const int64_t state = (first + path[steps - 1]) * m->hidden;
            for (int64_t k = 0; b.states && k < m->hidden; k++)
                r->states[row * m->hidden + k] = b.states[state + k] * norm[k];
        }
        const double drawn = now();
        *d = (Turn){b.logit_rows, d->guessed, d->looked, looked - last, drawn - looked, worth[0], worth[1]};
        last = drawn;
    }
    return turn;
}

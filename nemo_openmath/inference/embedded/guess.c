/* Guesses of the next tokens of rows: looked up in texts, joined with a drafter's, learned from, and chosen by what they
 * are worth. ngrams.py, drafters.py, pace.py and drafting.py say why; here is what is done for every token. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "guess.h"

int64_t guess_constant(int64_t which) { return (const int64_t[]){NODES, LENGTHS, SHARES}[which]; }

/* Put a guess into tree i and return its place there; one that is there already stays as it is. -1: there is no room. */
static int64_t put(const Trees *t, int64_t i, int64_t parent, int64_t token, int64_t kind) {
    int64_t *tokens = t->tokens + i * NODES, *parents = t->parents + i * NODES, at = 0;
    while (at < t->count[i] && (parents[at] != parent || tokens[at] != token)) at++;
    if (at == NODES) return -1;
    if (at == t->count[i]) {
        tokens[at] = token;
        parents[at] = parent;
        t->kinds[i * NODES + at] = kind;
        t->count[i]++;
    }
    return at;
}

void ahead(const Texts *t, const int64_t *rows, int64_t n, int64_t most, int64_t *tokens) {
    for (int64_t i = 0; i < n; i++) {
        const int64_t end = t->full_length[rows[i]] - 1, length = t->length[rows[i]];
        const int64_t left = (end < t->room ? end : t->room) - length;
        tokens[i] = left < 0 ? 0 : left < most ? left : most;
    }
}

/* -- n-grams -------------------------------------------------------------------------------------------------------- */

/* Forget all texts. Those of the rows are read again. */
void forget(Log *g) {
    g->used = 0;
    memset(g->newest_pair, -1, g->buckets * sizeof *g->newest_pair);
    memset(g->newest_single, -1, g->vocab * sizeof *g->newest_single);
    for (int64_t r = 0; r < g->rows; r++) { g->newest[r] = -1; g->known[r] = 0; }
}

/* The bucket of a pair of tokens: that of the newest place with the pair, or an empty one. */
static int64_t bucket(const Log *g, int32_t a, int32_t b) {
    const uint64_t hash = ((uint64_t)(uint32_t)a << 32 | (uint32_t)b) * 0x9e3779b97f4a7c15u;
    for (int64_t i = (int64_t)(hash >> 24) & (g->buckets - 1);; i = (i + 1) & (g->buckets - 1)) {
        const int32_t at = g->newest_pair[i];
        if (at < 0 || (g->token[at] == b && g->token[g->before[at]] == a)) return i;
    }
}

/* Add tokens to text `number`, of which `last` is the newest place, or -1; return the newest one. There is room. */
int64_t add_text(Log *g, int64_t number, int64_t last, const int32_t *ids, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const int64_t at = g->used++;
        g->token[at] = ids[i];
        g->text[at] = (int32_t)number;
        g->before[at] = (int32_t)last;
        g->after[at] = g->pair[at] = -1;
        g->single[at] = g->newest_single[ids[i]];
        g->newest_single[ids[i]] = (int32_t)at;
        if (last >= 0) {
            g->after[last] = (int32_t)at;
            const int64_t b = bucket(g, g->token[last], ids[i]);
            g->pair[at] = g->newest_pair[b];
            g->newest_pair[b] = (int32_t)at;
        }
        last = at;
    }
    return last;
}

/* Tokens at and before two places that are the same, LONGEST at most. */
static int64_t common(const Log *g, int64_t a, int64_t b) {
    int64_t n = 0;
    for (; n < LONGEST && a >= 0 && b >= 0 && g->token[a] == g->token[b]; n++) { a = g->before[a]; b = g->before[b]; }
    return n;
}

/* Places that say what may follow the end of a text, the longest match first, of equal ones the most recent. `at` [depth]:
 * the place in that text which as many tokens behind lies. */
typedef struct {
    int64_t length, own;
    double weight;
    int32_t at[AHEAD + 1];
} Place;

static int64_t insert(const Log *g, Place *places, int64_t n, int64_t at, int64_t end, int64_t length) {
    int64_t k = n;
    for (; k > 0 && places[k - 1].length < length; k--) places[k] = places[k - 1];
    Place *p = places + k;
    p->length = length;
    p->own = g->text[at] == g->text[end];
    p->weight = p->own ? 10 : 1; /* 3 for each token that matches */
    for (int64_t i = 0; i < length && i < 8; i++) p->weight *= 3;
    p->at[0] = (int32_t)at;
    return n + 1;
}

static int64_t places_of(const Log *g, int64_t end, Place *places) {
    int64_t n = 0, others = 0, at = g->pair[end];
    for (int64_t looked = 0; at >= 0 && looked < LOOKED && n < PLACES; looked++, at = g->pair[at]) {
        const int own = g->text[at] == g->text[end];
        if (g->after[at] < 0 || (!own && others == OTHERS)) continue; /* of another row's newest token nothing is known */
        others += !own;
        n = insert(g, places, n, at, end, common(g, at, end));
    }
    at = g->single[end];
    for (int64_t looked = 0, more = SINGLES; at >= 0 && looked < LOOKED && more && n < PLACES; looked++, at = g->single[at])
        if (g->after[at] >= 0 && common(g, at, end) == 1) {
            n = insert(g, places, n, at, end, 1);
            more--;
        }
    return n;
}

static int64_t kind_of(int64_t length, double share, int64_t own) {
    static const signed char by_length[16] = {0, 0, 1, 2, 3, 4, 4, 5, 5, 5, 6, 6, 6, 6, 6, 6};
    const int64_t l = length < 16 ? by_length[length] : LENGTHS - 1;
    const int64_t s = share < 0.2 ? 0 : share < 0.4 ? 1 : share < 0.6 ? 2 : share < 0.8 ? 3 : share < 0.999 ? 4 : 5;
    return (l * SHARES + s) * 2 + own;
}

/* A guess that may be made: what the places in `said` say. */
typedef struct {
    uint32_t said;
    int64_t token, parent, depth, kind;
    double weight, chance;
} Idea;

/* Add what the places of `before`, guess `parent`, say of the token behind it, in which they differ. */
static int64_t extend(const Log *g, Place *places, const Idea *before, int64_t parent, Idea *ideas, int64_t n, int64_t most) {
    const int64_t depth = before->depth + 1, first = n;
    for (uint32_t left = before->said; left; left &= left - 1) {
        Place *p = places + __builtin_ctz(left);
        const int32_t at = g->after[p->at[depth]];
        if (at < 0) continue; /* its text ends there */
        int64_t k = first;
        p->at[depth + 1] = at;
        while (k < n && ideas[k].token != g->token[at]) k++;
        if (k == most) continue;
        if (k == n) ideas[n++] = (Idea){0, g->token[at], parent, depth, kind_of(p->length + depth, 0, p->own), 0, 0};
        ideas[k].said |= left & -left;
        ideas[k].weight += p->weight;
    }
    int64_t kept = first;
    for (int64_t k = first; k < n; k++) {
        const int64_t alone = kind_of(1, ideas[k].weight / before->weight, 0); /* the longest match gave the rest */
        ideas[k].kind += alone;
        ideas[k].chance = before->chance * g->share[ideas[k].kind];
        if (ideas[k].chance > LEAST) ideas[kept++] = ideas[k];
    }
    return kept;
}

/* Tree i: the likeliest guesses of what follows place `end`, at most `most` tokens ahead. Its likeliest branch comes
 * first: what is accepted lies in its place already. */
static void grow(const Log *g, int64_t end, int64_t most, const Trees *into, int64_t i) {
    Place places[PLACES];
    Idea ideas[4 * PLACES], made[GUESSED];
    int64_t n = 0, count = 0, order[GUESSED], node[GUESSED], ordered = 0;
    const int64_t found = places_of(g, end, places);
    Idea root = {0, -1, -1, -1, 0, 0, 1};
    for (int64_t k = 0; k < found; k++) {
        root.said |= (uint32_t)1 << k;
        root.weight += places[k].weight;
    }
    n = extend(g, places, &root, -1, ideas, 0, 4 * PLACES);
    for (; n && count < GUESSED; count++) {
        int64_t best = 0;
        for (int64_t k = 1; k < n; k++) best = ideas[k].chance > ideas[best].chance ? k : best;
        made[count] = ideas[best];
        ideas[best] = ideas[--n];
        if (made[count].depth + 1 < most) n = extend(g, places, made + count, count, ideas, n, 4 * PLACES);
    }
    for (int64_t k = 0, at = -1; k < count; k++) {
        node[k] = -1;
        if (made[k].parent != at) continue;
        order[ordered] = k;
        node[k] = ordered++;
        at = k;
    }
    for (int64_t k = 0; k < count; k++)
        if (node[k] < 0) { order[ordered] = k; node[k] = ordered++; }
    for (int64_t k = 0; k < count; k++) {
        const Idea *idea = made + order[k];
        into->tokens[i * NODES + k] = idea->token;
        into->parents[i * NODES + k] = idea->parent < 0 ? -1 : node[idea->parent];
        into->kinds[i * NODES + k] = idea->kind;
    }
    into->count[i] = count;
}

void look_up(Log *g, const Texts *t, const int64_t *rows, int64_t n, const int64_t *most, const Trees *into) {
    for (int64_t i = 0; i < n; i++) {
        const int64_t row = rows[i], unread = t->length[row] - g->known[row];
        if (unread > g->most - g->used) forget(g);
        if (t->length[row] - g->known[row] > g->most - g->used) continue;
        g->newest[row] = add_text(g, g->number[row], g->newest[row], t->ids + row * t->capacity + g->known[row],
                                  t->length[row] - g->known[row]);
        g->known[row] = t->length[row];
    }
    for (int64_t i = 0; i < n; i++) {
        const int64_t end = g->newest[rows[i]], all = most[i] < AHEAD ? most[i] : AHEAD;
        into->count[i] = 0;
        if (all > 0 && end >= 0) grow(g, end, all, into, i);
    }
}

/* -- a drafter's guesses ----------------------------------------------------------------------------------------------- */

void join(const int64_t *guesses, const int64_t *beams, const float *scores, int64_t length, int64_t width, int64_t most,
          const Classes *c, const Trees *t, int64_t i) {
    const int64_t had = t->count[i], whole = length < NODES / width ? length : NODES / width;
    const int64_t steps = whole < most ? whole : most;
    int64_t tokens[NODES], parents[NODES], kinds[NODES], place[NODES], order[NODES], nodes = 0;
    memcpy(tokens, t->tokens + i * NODES, sizeof tokens);
    memcpy(parents, t->parents + i * NODES, sizeof parents);
    memcpy(kinds, t->kinds + i * NODES, sizeof kinds);
    t->count[i] = 0;
    for (int64_t step = steps - 1, beam = 0; step >= 0; step--) {
        order[step] = step * width + beam;
        beam = beams[order[step]];
        nodes++;
    }
    for (int64_t node = 0; node < steps * width && nodes < NODES; node++)
        if (order[node / width] != node) order[nodes++] = node;
    for (int64_t k = 0; k < nodes; k++) {
        const int64_t node = order[k], step = node / width, before = step ? (step - 1) * width + beams[node] : -1;
        const float chance = expf(scores[node] - (step ? scores[before] : 0.0f));
        int64_t sure = 0;
        while (sure < c->borders && c->sure[sure] <= chance) sure++;
        place[node] = put(t, i, step ? place[before] : -1, guesses[node], c->drafted + step * (c->borders + 1) + sure);
    }
    const int64_t drafted = t->count[i];
    int64_t depth[NODES];
    for (int64_t k = 0; k < had; k++) {
        const int64_t parent = parents[k] < 0 ? -1 : place[parents[k]];
        depth[k] = parents[k] < 0 ? 0 : depth[parents[k]] + 1;
        const int beside = parent < drafted && depth[k] < steps; /* the drafter has looked there, and says something else */
        place[k] = parents[k] >= 0 && parent < 0 ? -1 : put(t, i, parent, tokens[k], beside ? c->against + kinds[k] : kinds[k]);
        if (place[k] < 0 || place[k] >= drafted) continue;
        int64_t *kind = t->kinds + i * NODES + place[k];
        const double chance = c->share[kinds[k]];
        const int64_t level = chance < 0.2 ? 0 : chance < 0.4 ? 1 : chance < 0.7 ? 2 : 3;
        *kind = c->agreed + (*kind - c->drafted) * AGREEMENTS + level;
    }
}

/* -- what they are worth ----------------------------------------------------------------------------------------------- */

/* Learn from the guesses that are watched of a row, where all is known of those whose place the text has come to; tell
 * whether it is. */
static int learn(const Chances *c, const Texts *t, int64_t row) {
    const int64_t *tokens = c->watched.tokens + row * NODES, *parents = c->watched.parents + row * NODES;
    const int64_t *kinds = c->watched.kinds + row * NODES, count = c->watched.count[row];
    const int64_t known = t->length[row] - c->start[row];
    const int32_t *text = t->ids + row * t->capacity + c->start[row];
    int64_t depth[NODES];
    signed char right[NODES]; /* -1: what is before it was not */
    for (int64_t k = 0; k < count; k++) {
        right[k] = -1;
        if (parents[k] >= 0 && right[parents[k]] != 1) continue;
        depth[k] = parents[k] < 0 ? 0 : depth[parents[k]] + 1;
        if (depth[k] >= known) return 0;
        right[k] = tokens[k] == text[depth[k]];
    }
    for (int64_t k = 0; k < count; k++)
        if (right[k] >= 0) {
            double *tried = c->tried + kinds[k], *share = c->share + kinds[k];
            *tried = *tried + 1 < c->memory ? *tried + 1 : c->memory;
            *share += (right[k] - *share) / *tried;
        }
    return 1;
}

static int likelier(const void *a, const void *b) {
    const Node *x = a, *y = b;
    if (x->chance != y->chance) return x->chance < y->chance ? 1 : -1;
    return x->place < y->place ? -1 : 1; /* a guess stays behind what is before it */
}

int64_t choose(const Chances *c, const Texts *t, const int64_t *rows, int64_t n, const Trees *trees,
               const double *seconds, double token, const Trees *chosen, double *worth, Node *room) {
    int64_t nodes = 0, taken = 0, total = 0;
    signed char *is_taken = (signed char *)(room + n * NODES);
    for (int64_t i = 0; i < n; i++) {
        const int64_t row = rows[i], count = trees->count[i], at = row * NODES, from = i * NODES;
        if (!c->watched.count[row] || learn(c, t, row)) {
            c->watched.count[row] = count;
            c->start[row] = t->length[row];
            memcpy(c->watched.tokens + at, trees->tokens + from, count * sizeof(int64_t));
            memcpy(c->watched.parents + at, trees->parents + from, count * sizeof(int64_t));
            memcpy(c->watched.kinds + at, trees->kinds + from, count * sizeof(int64_t));
        }
        double chance[NODES];
        for (int64_t k = 0; k < count; k++) {
            const int64_t parent = trees->parents[from + k];
            chance[k] = c->share[trees->kinds[from + k]] * (parent < 0 ? 1 : chance[parent]);
            is_taken[from + k] = !seconds;
            if (seconds && chance[k] > LEAST) room[nodes++] = (Node){chance[k], from + k};
        }
    }
    if (seconds) {
        qsort(room, nodes, sizeof *room, likelier);
        double tokens = (double)n, best = 1 / token;
        worth[0] = worth[1] = n * token;
        for (int64_t k = 0; k < nodes && k < c->most - n; k++) {
            tokens += room[k].chance;
            if (tokens > best * seconds[n + k + 1]) {
                best = tokens / seconds[n + k + 1];
                taken = k + 1;
                worth[0] = tokens * token;
                worth[1] = seconds[n + k + 1];
            }
        }
        for (int64_t k = 0; k < taken; k++) is_taken[room[k].place] = 1;
    }
    for (int64_t i = 0; i < n; i++) {
        const int64_t from = i * NODES, most = t->room - t->length[rows[i]];
        int64_t node[NODES], count = 0;
        chosen->kinds[from] = 0;
        for (int64_t k = 0; k < trees->count[i] && count < most && count < NODES - 1; k++) {
            const int64_t parent = trees->parents[from + k];
            if (!is_taken[from + k]) continue;
            chosen->tokens[from + ++count] = trees->tokens[from + k];
            chosen->parents[from + count] = parent < 0 ? 0 : node[parent];
            chosen->kinds[from + count] = chosen->kinds[from + chosen->parents[from + count]] + 1;
            node[k] = count;
        }
        chosen->tokens[from] = t->ids[rows[i] * t->capacity + t->length[rows[i]] - 1];
        chosen->parents[from] = -1;
        chosen->count[i] = count + 1;
        total += count;
    }
    return total;
}

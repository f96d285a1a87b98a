/* Trees of guesses, and what is done with them for every token: guess.c says how. */

#ifndef GUESS_H
#define GUESS_H

#include <stdint.h>

#define NODES 64    /* guesses of a row, at most */
#define LONGEST 16  /* tokens that are compared */
#define AHEAD 16    /* tokens that are guessed behind a match */
#define LOOKED 64   /* places behind the newest pair of tokens that are looked at; the most recent */
#define PLACES 32   /* of which so many say what may follow, */
#define OTHERS 24   /* so many of them in other texts; */
#define SINGLES 4   /* and places behind the newest token alone, where these are few */
#define GUESSED 24  /* guesses of n-grams */
#define LEAST 0.02  /* chance of a guess that is thought of at all */
#define LENGTHS 8   /* classes of n-grams' guesses: by the length of the match, */
#define SHARES 6    /* by the share of the places that say so, and by whether the longest match is in the own text */
#define AGREEMENTS 4 /* classes of a drafter's guesses that n-grams make as well: by their chance */

/* What is known of the running rows: columns of rows.py. Turns are about some of them: rows[0 .. n-1]. */
typedef struct {
    const int32_t *ids; /* [rows, capacity] */
    int64_t capacity;
    const int64_t *length, *full_length; /* [rows] */
    int64_t room;                        /* positions of a row in the decoder */
} Texts;

/* Trees of guesses without their roots: of each tree the number of guesses, and of each guess its token, the guess that it
 * follows (an earlier one; -1: the newest token), and its class. */
typedef struct {
    int64_t *count;                    /* [trees] */
    int64_t *tokens, *parents, *kinds; /* [trees, NODES] */
} Trees;

/* All texts, token after token as they came, those of several rows in turns. A place is a token's index in it. */
typedef struct {
    int64_t used, most, vocab;            /* places, places, tokens */
    int32_t *token, *before, *after;      /* [most]: and the place before and behind it in its text, or -1 */
    int32_t *text;                        /* [most]: the text's number */
    int32_t *pair, *single;               /* [most]: the place before with the same two, or one, last tokens, or -1 */
    int64_t buckets;                      /* a power of two, at least 2 * most */
    int32_t *newest_pair, *newest_single; /* [buckets], [vocab]: the newest such place, or -1 */
    int64_t *newest, *known, *number;     /* [rows]: of each row's text the newest place or -1, tokens, and number */
    int64_t rows;
    const double *share;                  /* of each class, how often a guess is right */
} Log;

/* Classes of guesses, of which n-grams' are the first: the first one of those that the drafter alone makes, of those that
 * n-grams make as well, and of n-grams' beside the drafter's. `sure`: borders between a drafter's classes, by its
 * probability. share: of each class, how often a guess is right. */
typedef struct {
    int64_t drafted, agreed, against, borders;
    const float *sure;
    const double *share;
} Classes;

/* How often guesses of each class are right [classes], and of how many that is known. */
typedef struct {
    double *share, *tried, memory;
    Trees watched;   /* of each row: guesses whose outcome will be known when the text has grown, verified or not */
    int64_t *start;  /* of each row: the tokens of the text before them */
    int64_t most;    /* guesses of a turn */
} Chances;

typedef struct { double chance; int64_t place; } Node; /* place: tree * NODES + guess */

/* How many tokens may be guessed of rows[0 .. n-1], `most` at most: the last token of a request is drawn and not
 * computed, and what follows it is not even drawn. */
void ahead(const Texts *t, const int64_t *rows, int64_t n, int64_t most, int64_t *tokens);

/* The trees of what texts say of rows[0 .. n-1]: what followed where the last tokens stood before, the likelier the longer
 * the match and the more places say so. */
void look_up(Log *g, const Texts *t, const int64_t *rows, int64_t n, const int64_t *most, const Trees *into);

/* Make tree i one of the guesses of a drafter's search, for one row [length, width] each, of which those `most` tokens
 * ahead count, and of what is in the tree. The likeliest branch comes first: what is accepted lies in its place already. */
void join(const int64_t *guesses, const int64_t *beams, const float *scores, int64_t length, int64_t width, int64_t most,
          const Classes *c, const Trees *t, int64_t i);

/* Learn from earlier guesses of rows[0 .. n-1], watch those of `trees`, and choose of these the ones that make the most
 * tokens a second, or, without `seconds`, all. They come to `chosen` in their order, as nodes: node 0 of each tree is the
 * row's newest token, parents are nodes, and in place of classes there are depths.
 * seconds: of passes of 0, 1, .. tokens with guesses; token: of one token of plain decoding.
 * worth: tokens of the turn, and the seconds of its pass. `room` [n * NODES]. Returns the number of guesses. */
int64_t choose(const Chances *c, const Texts *t, const int64_t *rows, int64_t n, const Trees *trees,
               const double *seconds, double token, const Trees *chosen, double *worth, Node *room);

#endif

"""The most similar of many texts, by the Jaccard index of their sets of character n-grams, computed exactly.

Similarity is |A & B| / |A | B| of the n-grams of two normalised texts (letters and digits in lower case). To compare a
text with each of 20,000 would take milliseconds; three facts leave a small part of that, and the same result:

- **Grams that stand in the same texts are one class.** Texts of one template share hundreds of grams that nothing tells
  apart. What a class adds is the number of its grams that the text has.
- **A similar text shares a rare gram.** One of similarity t has at least t times as many grams in common with this text
  as this text has grams. So it is among the texts of this text's rarest classes: the commonest ones, with fewer grams
  than that in all, need not be looked at to find it.
- **Few can still reach t.** What these share is counted to the end, through their own classes or through those that
  were left out, whichever is less.

A gram is known by 64 bits of a hash. Two of ten million grams have the same bits in one of 400,000 indexes.

Memory: 13 bytes for each (gram, text) and 12 for each different gram; about 50 while it is built.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import numpy as np

_WORDS = re.compile(r"[^\W_]+")
_ROUNDING = 1e-6  # of bounds, in grams: none of them may exclude what they should let pass


class NgramIndex:
    """Finds the texts whose similarity to a given one is at least ``threshold`` (0 to 1).

    ``texts``: (id, text) pairs. ``ngram``: characters of a gram.
    """

    def __init__(self, texts: Iterable[tuple[str, str]], *, ngram: int, threshold: float):
        self._ngram, self._threshold = ngram, threshold
        self._multipliers = np.random.default_rng(0).integers(1, 2**63, ngram, np.uint64) * np.uint64(2) + np.uint64(1)
        self._texts = list(texts)
        grams = [self._keys(text) for _, text in self._texts]
        self._sizes = np.array([len(keys) for keys in grams], np.int64)
        keys = np.concatenate([*grams, np.empty(0, np.uint64)])
        del grams
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        owners = np.repeat(np.arange(len(self._texts), dtype=np.int32), self._sizes)[order]
        del order
        first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.empty(0, np.int64)
        self._grams = keys[first]
        self._classes, self._where, self._lengths, self._postings = _classes(first, owners, len(self._texts))
        # the other way round: the classes of each text
        of_text = np.argsort(self._postings, kind="stable")
        self._forward = np.repeat(np.arange(len(self._lengths), dtype=np.int32), self._lengths)[of_text]
        self._forward_lengths = np.bincount(self._postings, minlength=len(self._texts))
        self._forward_where = np.cumsum(self._forward_lengths) - self._forward_lengths
        self._weights = np.zeros(len(self._lengths), np.int64)  # of classes, all 0 between two calls

    def nearest(self, text: str, count: int) -> list[tuple[float, str, str]]:
        """Return at most ``count`` times (similarity, id, text), the most similar first. Ties keep the texts' order."""
        keys = self._keys(text)
        least = max(1, math.ceil(self._threshold * len(keys) - _ROUNDING))  # grams in common with a similar text
        at = np.searchsorted(self._grams, keys)
        at[at == len(self._grams)] = 0
        known = self._classes[at[self._grams[at] == keys]] if len(self._grams) else self._classes
        if len(known) < least:
            return []
        classes, weights = np.unique(known, return_counts=True)
        rarest = np.argsort(self._lengths[classes], kind="stable")
        classes, weights = classes[rarest], weights[rarest]
        remaining = np.cumsum(weights[::-1])[::-1]  # grams of this class and the commoner ones
        probed = int(np.count_nonzero(remaining >= least))
        candidates, shared = self._count(classes[:probed], weights[:probed])
        tail = int(remaining[probed]) if probed < len(remaining) else 0
        candidates, shared = self._finish(candidates, shared, len(keys), classes, weights, probed, tail)
        scores = shared / (len(keys) + self._sizes[candidates] - shared)
        bound = self._threshold
        if len(scores) > count:  # no lower one than the last of the best
            bound = max(bound, np.partition(scores, -count)[-count])
        candidates, scores = candidates[scores >= bound], scores[scores >= bound]
        best = np.lexsort((candidates, -scores))[:count]
        return [(float(scores[i]), *self._texts[candidates[i]]) for i in best]

    def _count(self, classes: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the texts that are in any of the classes, in order, and the sum of the weights of theirs."""
        lengths = self._lengths[classes]
        texts = self._postings[ranges(self._where[classes], lengths)]
        added = np.repeat(weights, lengths)
        if len(texts) > len(self._texts) // 8:
            sums = np.bincount(texts, added, len(self._texts))
            texts = np.flatnonzero(sums)
            return texts, sums[texts].astype(np.int64)
        texts, inverse = np.unique(texts, return_inverse=True)
        return texts, np.bincount(inverse, added, len(texts)).astype(np.int64)

    def _finish(
        self,
        candidates: np.ndarray,
        shared: np.ndarray,
        size: int,
        classes: np.ndarray,
        weights: np.ndarray,
        probed: int,
        tail: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the candidates that may reach the threshold with all that they share. ``shared``: what they share
        through the first ``probed`` classes; the others have ``tail`` grams."""
        if not tail:
            return candidates, shared
        share = self._threshold / (1 + self._threshold)
        possible = shared + tail >= share * (size + self._sizes[candidates]) - _ROUNDING
        candidates, shared = candidates[possible], shared[possible]
        lengths = self._forward_lengths[candidates]
        if lengths.sum() > self._lengths[classes[probed:]].sum():
            also, more = self._count(classes[probed:], weights[probed:])
            at = np.searchsorted(also, candidates)
            at[at == len(also)] = 0
            return candidates, shared + np.where(also[at] == candidates, more[at], 0)
        if len(candidates):
            self._weights[classes] = weights
            theirs = self._weights[self._forward[ranges(self._forward_where[candidates], lengths)]]
            self._weights[classes] = 0
            shared = np.add.reduceat(theirs, np.cumsum(lengths) - lengths)
        return candidates, shared

    def _keys(self, text: str) -> np.ndarray:
        """Return the hashes of a text's grams, sorted, each once."""
        plain = normalised(text)
        codes = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
        if len(codes) < self._ngram:  # a shorter text is one gram
            codes = np.concatenate([codes, np.zeros(self._ngram - len(codes), np.uint64)])
        hashes = codes[: len(codes) - self._ngram + 1] * self._multipliers[0]
        for n in range(1, self._ngram):
            hashes += codes[n : len(codes) - self._ngram + 1 + n] * self._multipliers[n]
        hashes.sort()
        return hashes[np.concatenate([[True], hashes[1:] != hashes[:-1]])]


def normalised(text: str) -> str:
    """Return the letters and digits of a text in lower case, with one space between words."""
    return " ".join(_WORDS.findall(text.lower()))


def _classes(
    first: np.ndarray, owners: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Put grams that stand in the same texts into one class.

    ``owners``: the texts of all grams, gram after gram; ``first``: where those of each gram begin. ``count``: texts.
    Returns the class of each gram; and of each class where its texts begin in the last array, and their number."""
    if not len(first):
        nothing = np.empty(0, np.int64)
        return np.empty(0, np.int32), nothing, nothing, owners
    lengths = np.diff(first, append=len(owners))
    marks = np.random.default_rng(1).integers(0, 2**64, count, np.uint64)
    sums = np.add.reduceat(marks[owners], first)  # equal for equal sets of texts
    _, example, classes = np.unique(sums, return_index=True, return_inverse=True)
    lengths = lengths[example]
    return classes.astype(np.int32), np.cumsum(lengths) - lengths, lengths, owners[ranges(first[example], lengths)]


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the indices starts[i] .. starts[i] + lengths[i] - 1 of all i in a row."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)

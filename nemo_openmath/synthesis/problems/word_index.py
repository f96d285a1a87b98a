"""The most similar of many texts by their words, numbers and signs: cosine of TF-IDF vectors, computed exactly.

A text is cut as statement.py cuts it, and three things are left out that other words for the same problem change:

- the names of variables and points: single letters, and the products and segments that they form ("xy", "ABC");
- the order;
- words that only ask or connect.

Numbers are one token each, also in words and with separators ("twenty-four", "6,000,000"), and each counts twice: other
words for a problem keep them, and another problem of the same template has others. A token counts the more the fewer
texts hold it: its weight is (1 + log n) * log((N + 1) / df), where n is how often it stands in the text, and df of the
N texts hold it. One that none of them holds counts as the rarest, in the length of the vector alone.

To add up the texts of a token costs as much as it has texts. Those of the commonest tokens, a few dozen, are rows of a
matrix, which is five times as fast; no token is left out.

Memory: 8 bytes for each different (token, text), some 100 for each different token, and four a text for each of the
common ones.
"""

from __future__ import annotations

import math
import re
from array import array
from collections import Counter
from collections.abc import Iterable

import numpy as np

from nemo_openmath.synthesis.problems.ngram_index import ranges
from nemo_openmath.synthesis.problems.statement import Statement

NUMBERS = 2
"""A number counts as if it stood so often where it stands once."""
COMMON = 16
"""A token of more than one in so many texts is a common one."""
_VALUES = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50,
    "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90, "hundred": 100, "thousand": 1000, "million": 1_000_000,
}  # fmt: skip
_NUMBERS = {word: str(value) for word, value in _VALUES.items()}
_TENS = "|".join(word for word, value in _VALUES.items() if value in range(20, 100))
_UNITS = "|".join(word for word, value in _VALUES.items() if value in range(1, 10))
_COMPOUND = re.compile(rf"\b({_TENS})[- ]({_UNITS})\b", re.I)
_SEPARATOR = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


class WordIndex:
    """Finds the texts whose cosine with a given one is at least ``threshold`` (0 to 1)."""

    def __init__(self, texts: Iterable[str], *, threshold: float):
        self._threshold = threshold
        self._terms: dict[str, int] = {}
        terms, counts, sizes = array("i"), array("f"), array("i")
        for text in texts:
            words = _words(text)
            terms.extend(self._terms.setdefault(word, len(self._terms)) for word in words)
            counts.extend(words.values())
            sizes.append(len(words))
        self._count = len(sizes)
        of_entry = np.frombuffer(terms, np.int32) if terms else np.empty(0, np.int32)
        self._lengths = np.bincount(of_entry, minlength=len(self._terms))
        self._weights: list[float] = np.log((self._count + 1) / np.maximum(self._lengths, 1)).tolist()
        owners = np.repeat(np.arange(self._count, dtype=np.int32), np.frombuffer(sizes, np.int32) if sizes else 0)
        frequencies = np.frombuffer(counts, np.float32) if counts else np.empty(0)
        values = (1 + np.log(frequencies)) * np.array(self._weights)[of_entry]
        norms = np.sqrt(np.bincount(owners, values**2, self._count))
        values /= np.maximum(norms, 1e-12)[owners]
        order = np.argsort(of_entry, kind="stable")
        self._owners, self._values = owners[order], values[order].astype(np.float32)
        self._where = np.cumsum(self._lengths) - self._lengths
        common = np.flatnonzero(self._lengths * COMMON > self._count)
        self._row = np.full(len(self._terms), -1)
        self._row[common] = np.arange(len(common))
        self._rows = np.zeros((len(common), self._count), np.float32)
        for row, term in enumerate(common.tolist()):
            part = slice(self._where[term], self._where[term] + self._lengths[term])
            self._rows[row, self._owners[part]] = self._values[part]

    def nearest(self, text: str, count: int) -> list[tuple[float, int]]:
        """Return at most ``count`` times (similarity, number of the text), the most similar first. Ties keep the texts'
        order. What shares no token with a text that counts is not similar to it."""
        vector = self._vector(text)
        known = [(at, weight) for word, weight in vector.items() if (at := self._terms.get(word)) is not None]
        if not known:
            return []
        terms = np.array([term for term, _ in known])
        weights = np.array([weight for _, weight in known], np.float32)
        rows = self._row[terms]
        scores = weights[rows >= 0] @ self._rows[rows[rows >= 0]]
        terms, weights = terms[rows < 0], weights[rows < 0]
        if len(terms):
            part = ranges(self._where[terms], self._lengths[terms])
            added = self._values[part] * np.repeat(weights, self._lengths[terms])
            scores = scores + np.bincount(self._owners[part], added, self._count)
        least = max(self._threshold, 1e-9)
        if self._count > count:  # no lower one than the last of the best
            least = max(least, np.partition(scores, -count)[-count])
        near = np.flatnonzero(scores >= least)
        best = near[np.lexsort((near, -scores[near]))[:count]]
        return [(min(float(scores[n]), 1.0), int(n)) for n in best]

    def similarity(self, first: str, second: str) -> float:
        """Return the cosine of two texts, whose tokens weigh what they weigh among the given ones."""
        vector, other = self._vector(first), self._vector(second)
        return min(sum(weight * other[word] for word, weight in vector.items() if word in other), 1.0)

    def _vector(self, text: str) -> dict[str, float]:
        """Return token -> weight, of a vector of length 1; of length 0 where no token weighs anything."""
        rarest = math.log(self._count + 1)
        weights = {
            word: (1 + math.log(n)) * (rarest if (at := self._terms.get(word)) is None else self._weights[at])
            for word, n in _words(text).items()
        }
        norm = math.sqrt(sum(weight**2 for weight in weights.values())) or 1.0
        return {word: weight / norm for word, weight in weights.items()}


def _words(text: str) -> Counter[str]:
    """Return the tokens that count, and how often each stands there."""
    text = _COMPOUND.sub(lambda m: str(_VALUES[m[1].lower()] + _VALUES[m[2].lower()]), text)
    words = Counter(
        _NUMBERS.get(token, token)
        for token, mathematics in Statement.of(_SEPARATOR.sub("", text)).tokens
        if not (mathematics and token.isascii() and token.isalpha() and (len(token) == 1 or token.isupper()))
    )
    for word in words:
        if word[0].isdigit():
            words[word] *= NUMBERS
    return words

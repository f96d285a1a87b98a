"""Propose, for a problem, the problems of the benchmarks that could be the same. A retriever drops nothing.

``lexical`` needs no model. It knows two similarities:

- the cosine of words, numbers and signs (word_index.py), which other words for a part of the text, another order and
  other names of variables leave high;
- the Jaccard index of n-grams of characters (ngram_index.py), which other constants in a formula, misspelt words and
  scripts without spaces leave high.

Neither can be compared with the other: two problems of one template share nine tenths of their n-grams, whatever their
numbers, and a paraphrase a third of its words. So the two take turns: after two candidates by words comes one by
n-grams, each list from its most similar text on.

By words every problem is somewhat similar to some other one. A leak is more similar than most of those, so a text by
words is proposed only if it stands out: if its similarity is at least ``stand_out`` times that of the twentieth. One of
``SURE`` or more is always proposed: where a benchmark has twenty problems of one template, nothing stands out.

``embedding`` (embedding_retriever.py) compares what a sentence-transformers model makes of the texts.
"""

from __future__ import annotations

import asyncio
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeAlias, TypeVar

from nemo_openmath.synthesis.problems.benchmark_problems import folded
from nemo_openmath.synthesis.problems.ngram_index import NgramIndex
from nemo_openmath.synthesis.problems.word_index import WordIndex

P = ParamSpec("P")
T = TypeVar("T")

Near: TypeAlias = list[tuple[float, int]]
"""(similarity, number of a text) pairs, in the order in which they are proposed."""

OWN = -1
"""The number of the text that :meth:`Retriever.nearest_with` is given."""
AMONG = 20
"""A text by words stands out from the one at this place."""
SURE = 0.5
"""A text of so high a similarity by words is proposed, whatever the others have."""
GRAMS = 0.2
"""The least similarity by n-grams."""
IN_TURN = 2
"""So many candidates by words stand before each one by n-grams."""


class Retriever(ABC):
    """Finds the most similar of many texts."""

    block: int = 1
    """So many texts are looked up at once."""

    @abstractmethod
    def nearest(self, texts: Sequence[str], count: int) -> list[Near]:
        """Return for each text at most ``count`` of those that are similar enough."""

    @abstractmethod
    def nearest_with(self, text: str, own: str, count: int) -> Near:
        """Return what :meth:`nearest` would for a text if there were one text more, ``own``. Its number is ``OWN``."""


class LexicalRetriever(Retriever):
    """Compares words, numbers and signs, and n-grams of characters.

    ``threshold``: the least similarity. ``stand_out``: see above; 0: nothing has to.
    """

    def __init__(self, texts: Sequence[str], *, ngram: int, threshold: float, stand_out: float = 0.0):
        self._words = WordIndex(map(folded, texts), threshold=threshold)
        self._ngram, self._threshold, self._stand_out = ngram, threshold, stand_out
        self._grams = self._index_of(texts)

    def nearest(self, texts: Sequence[str], count: int) -> list[Near]:
        return [self._chosen(*self._similar(text, count), count) for text in texts]

    def nearest_with(self, text: str, own: str, count: int) -> Near:
        words, grams = self._similar(text, count)
        if (score := self._words.similarity(folded(text), folded(own))) >= self._threshold:
            words.append((score, OWN))
        grams += [(score, OWN) for score, _, _ in self._index_of([own]).nearest(_characters(text), 1)]
        return self._chosen(_sorted(words), _sorted(grams), count)

    def _similar(self, text: str, count: int) -> tuple[Near, Near]:
        """Return the most similar texts by words and by n-grams, the most similar first."""
        words = self._words.nearest(folded(text), max(count, AMONG) if self._stand_out else count)
        return words, [(score, int(number)) for score, number, _ in self._grams.nearest(_characters(text), count)]

    def _chosen(self, words: Near, grams: Near, count: int) -> Near:
        """Return what is proposed of the most similar texts, in turn, with the greater of its similarities."""
        least = self._stand_out * words[AMONG - 1][0] if len(words) >= AMONG else 0.0
        by_words = [number for score, number in words if score >= min(least, SURE)]
        by_grams = [number for _, number in grams]
        order: dict[int, None] = {}
        while by_words or by_grams:
            order |= dict.fromkeys(by_words[:IN_TURN])
            del by_words[:IN_TURN]
            if by_grams := [number for number in by_grams if number not in order]:
                order[by_grams.pop(0)] = None
        scores = {number: score for score, number in words}
        for score, number in grams:
            scores[number] = max(score, scores.get(number, 0.0))
        return [(scores[number], number) for number in list(order)[:count]]

    def _index_of(self, texts: Sequence[str]) -> NgramIndex:
        numbered = ((str(number), _characters(text)) for number, text in enumerate(texts))
        return NgramIndex(numbered, ngram=self._ngram, threshold=max(self._threshold, GRAMS))


def _sorted(near: Near) -> Near:
    return sorted(near, key=lambda pair: -pair[0])


def _characters(text: str) -> str:
    return unicodedata.normalize("NFKC", folded(text))


class Lookup:
    """Texts that a retriever looks up together, once the first of them is asked for."""

    def __init__(self, retriever: Retriever, texts: Sequence[str], count: int):
        self._retriever, self._texts, self._count = retriever, texts, count
        self._lock = asyncio.Lock()
        self._nearest: list[Near] | None = None

    async def nearest(self, number: int) -> Near:
        """Return what is similar to the text ``number`` of these."""
        async with self._lock:
            if self._nearest is None:
                self._nearest = await _call(self._retriever, self._retriever.nearest, self._texts, self._count)
        return self._nearest[number]


async def look_up_with(retriever: Retriever, text: str, own: str, count: int) -> Near:
    """Return ``retriever.nearest_with`` of a text, looked up as others are."""
    return await _call(retriever, retriever.nearest_with, text, own, count)


async def _call(retriever: Retriever, look_up: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Look something up. A model is run in a thread: other units go on."""
    if retriever.block > 1:
        return await asyncio.to_thread(look_up, *args, **kwargs)
    return look_up(*args, **kwargs)

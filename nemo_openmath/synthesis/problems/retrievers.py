"""Propose, for a problem, the problems of the benchmarks that could be the same. A retriever drops nothing.

``lexical`` needs no model. Its similarity is the greater of two:

- the cosine of words, numbers and signs (word_index.py), which other words for a part of the text, another order and
  other names of variables leave high;
- the Jaccard index of n-grams of characters (ngram_index.py), which other constants in a formula, misspelt words and
  scripts without spaces leave high.

``embedding`` (embedding_retriever.py) compares what a sentence-transformers model makes of the texts.
"""

from __future__ import annotations

import asyncio
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeAlias

from nemo_openmath.synthesis.problems.benchmark_problems import folded
from nemo_openmath.synthesis.problems.ngram_index import NgramIndex
from nemo_openmath.synthesis.problems.word_index import WordIndex

Near: TypeAlias = list[tuple[float, int]]
"""(similarity, number of a text) pairs, the most similar first; of equally similar ones the first text."""


class Retriever(ABC):
    """Finds the most similar of many texts."""

    block: int = 1
    """So many texts are looked up at once."""

    @abstractmethod
    def nearest(self, texts: Sequence[str], count: int) -> list[Near]:
        """Return for each text at most ``count`` of those that are similar enough."""

    @abstractmethod
    def similarity(self, first: str, second: str) -> float:
        """Return how similar two texts are, measured as those that were given."""


class LexicalRetriever(Retriever):
    """Compares words, numbers and signs, and n-grams of characters. ``threshold``: the least similarity."""

    def __init__(self, texts: Sequence[str], *, ngram: int, threshold: float):
        self._words = WordIndex(map(folded, texts), threshold=threshold)
        self._ngram, self._threshold = ngram, threshold
        self._grams = self._index_of(texts)

    def nearest(self, texts: Sequence[str], count: int) -> list[Near]:
        return [self._nearest(text, count) for text in texts]

    def similarity(self, first: str, second: str) -> float:
        words = self._words.similarity(folded(first), folded(second))
        return max([words, *(score for score, _, _ in self._index_of([second]).nearest(_characters(first), 1))])

    def _nearest(self, text: str, count: int) -> Near:
        scores = {number: score for score, number in self._words.nearest(folded(text), count)}
        for score, number, _ in self._grams.nearest(_characters(text), count):
            scores[int(number)] = max(score, scores.get(int(number), 0.0))
        best = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
        return [(score, number) for number, score in best[:count]]

    def _index_of(self, texts: Sequence[str]) -> NgramIndex:
        numbered = ((str(number), _characters(text)) for number, text in enumerate(texts))
        return NgramIndex(numbered, ngram=self._ngram, threshold=self._threshold)


def _characters(text: str) -> str:
    return unicodedata.normalize("NFKC", folded(text))


class Lookup:
    """Texts that a retriever looks up together, once the first of them is asked for."""

    def __init__(self, retriever: Retriever, texts: Sequence[str], count: int):
        self._retriever, self._texts, self._count = retriever, texts, count
        self._lock = asyncio.Lock()
        self._nearest: list[Near] | None = None

    async def nearest(self, number: int) -> Near:
        """Return what is similar to the text ``number`` of these. A model is run in a thread: other units go on."""
        async with self._lock:
            if self._nearest is None:
                if self._retriever.block > 1:
                    self._nearest = await asyncio.to_thread(self._retriever.nearest, self._texts, self._count)
                else:
                    self._nearest = self._retriever.nearest(self._texts, self._count)
        return self._nearest[number]

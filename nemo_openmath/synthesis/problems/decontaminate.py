"""Remove the problems that a benchmark holds (paper section 2.1, step 5): candidates by similarity, then a model.

Similarity is the Jaccard index of the sets of character n-grams of two normalised texts (letters and digits in lower
case). It needs no model, and a reworded problem keeps its numbers and most of its words. The model is shown the most
similar benchmark problems one by one. An identical normalised text is dropped without asking.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from nemo_openmath.core.bounds import PositiveInt, Share
from nemo_openmath.core.records import Drop, Problem
from nemo_openmath.core.stage import Result, StageContext
from nemo_openmath.synthesis.problems.prompted import PromptedConfig, PromptedStage


@dataclass(frozen=True)
class DecontaminateConfig(PromptedConfig):
    """Settings of ``problems.decontaminate``."""

    candidates: PositiveInt = 5
    """At most so many benchmark problems, the most similar ones, are shown to the model. Paper section 2.1."""
    threshold: Share = 0.3
    """Benchmark problems of a lower similarity (0 to 1) are not shown."""
    ngram: PositiveInt = 8
    """Length of the n-grams that are compared, in characters."""


class Decontaminate(PromptedStage[DecontaminateConfig, Problem]):
    """Drop the problems that are in the benchmark, word for word or reworded."""

    kind = "problems.decontaminate"
    prompt = "decontaminate"
    Config = DecontaminateConfig
    ports = {"problems": "problems", "benchmark": "problems that must not be trained on"}
    takes = {"problems": "Problem", "benchmark": "Problem"}
    record = Problem

    async def prepare(self, context: StageContext) -> None:
        await super().prepare(context)
        self._index = NgramIndex([(p.id, p.problem) for p in context.read("benchmark", Problem)], self.config.ngram)

    def units(self, context: StageContext) -> Iterable[tuple[str, Problem]]:
        return ((problem.id, problem) for problem in context.read("problems", Problem))

    async def process(self, unit: Problem, context: StageContext) -> Result:
        asked = False
        for score, identifier, text in self._index.nearest(unit.problem, self.config.candidates):
            if score == 1.0:
                return Result(
                    drops=[Drop("in the benchmark, word for word", f"{identifier}: {unit.problem}")], asked=asked
                )
            if score < self.config.threshold:
                break
            asked = True
            same, reply = await self.question(
                context, f"{unit.id}:{identifier}", parse_bool, problem=unit.problem, candidate=text
            )
            if same is None:
                return Result(drops=[Drop("unparsable answer", reply)])
            if same:
                return Result(drops=[Drop("in the benchmark, reworded", f"{identifier}: {unit.problem}")])
        return Result([unit], asked=asked)


class NgramIndex:
    """Find the most similar of many texts, by the Jaccard index of their sets of character n-grams.

    ``texts``: (id, text) pairs.
    """

    def __init__(self, texts: Iterable[tuple[str, str]], ngram: int):
        self._ngram = ngram
        self._texts = list(texts)
        self._sizes: list[int] = []
        self._where: dict[str, list[int]] = defaultdict(list)
        for n, (_, text) in enumerate(self._texts):
            grams = self._grams(text)
            self._sizes.append(len(grams))
            for gram in grams:
                self._where[gram].append(n)

    def nearest(self, text: str, count: int) -> list[tuple[float, str, str]]:
        """Return at most ``count`` times (similarity, id, text), the most similar first. Ties keep the texts' order."""
        grams = self._grams(text)
        shared: Counter[int] = Counter()
        for gram in grams:
            shared.update(self._where.get(gram, ()))
        scored = [(both / (len(grams) + self._sizes[n] - both), n) for n, both in shared.items()]
        scored.sort(key=lambda pair: (-pair[0], pair[1]))
        return [(score, *self._texts[n]) for score, n in scored[:count]]

    def _grams(self, text: str) -> set[str]:
        plain = " ".join(re.findall(r"[^\W_]+", text.lower()))
        return {plain[i : i + self._ngram] for i in range(max(1, len(plain) - self._ngram + 1))}


def parse_bool(text: str) -> bool | None:
    """Return the last "true" or "false" of the reply, None where it has neither."""
    words = re.findall(r"\b(true|false)\b", text.lower())
    return words[-1] == "true" if words else None

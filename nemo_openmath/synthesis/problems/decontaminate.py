"""Remove the problems that a benchmark holds (paper section 2.1, step 5): candidates by similarity, then a model.

Similarity is that of ngram_index.py. It needs no model, and a reworded problem keeps its numbers and most of its words.
The model is shown the most similar benchmark problems one by one. An identical normalised text is dropped without
asking.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from nemo_openmath.core.bounds import PositiveInt, Share
from nemo_openmath.core.records import Drop, Problem
from nemo_openmath.core.stage import Result, StageContext
from nemo_openmath.synthesis.controls.cases import BENCHMARK, DecontaminateCase
from nemo_openmath.synthesis.problems.ngram_index import NgramIndex
from nemo_openmath.synthesis.problems.prompted import OnePromptConfig, PromptedStage, Rejected


@dataclass(frozen=True)
class DecontaminateConfig(OnePromptConfig):
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
    case = DecontaminateCase
    version = 2  # problems that differ in a sign alone are no longer taken for one without asking
    prompt = "decontaminate"
    Config = DecontaminateConfig
    ports = {"problems": "problems", "benchmark": "problems that must not be trained on"}
    takes = {"problems": "Problem", "benchmark": "Problem"}
    record = Problem

    async def prepare(self, context: StageContext) -> None:
        await super().prepare(context)
        benchmark = ((p.id, p.problem) for p in context.read("benchmark", Problem))
        self._index = self._indexed(benchmark)

    def _indexed(self, texts: Iterable[tuple[str, str]]) -> NgramIndex:
        return NgramIndex(texts, ngram=self.config.ngram, threshold=self.config.threshold)

    def _nearest(self, problem: Problem, context: StageContext) -> list[tuple[float, str, str]]:
        """Return (similarity, id, text) of the most similar benchmark problems. To a planted problem the benchmark has
        one more, which no real problem is compared with."""
        nearest = self._index.nearest(problem.problem, self.config.candidates)
        if context.planted:
            of_its_own = self._indexed([(problem.id, problem.extra[BENCHMARK])])
            nearest = [*of_its_own.nearest(problem.problem, 1), *nearest]
            nearest = sorted(nearest, key=lambda candidate: -candidate[0])[: self.config.candidates]
        return nearest

    def units(self, context: StageContext) -> Iterable[tuple[str, Problem]]:
        return ((problem.id, problem) for problem in context.read("problems", Problem))

    async def process(self, unit: Problem, context: StageContext) -> Result:
        asked = False
        for score, identifier, text in self._nearest(unit, context):
            if score == 1.0 and _without_form(unit.problem) == _without_form(text):
                return Result(
                    drops=[Drop("in the benchmark, word for word", f"{identifier}: {unit.problem}")], asked=asked
                )
            asked = True
            same, reply = await self.question(
                context, f"{unit.id}:{identifier}", parse_bool, problem=unit.problem, candidate=text
            )
            if isinstance(same, Rejected):
                return Result(drops=[Drop(same.reason, reply)])
            if same:
                return Result(drops=[Drop("in the benchmark, reworded", f"{identifier}: {unit.problem}")])
        return Result([unit], asked=asked)


def _without_form(text: str) -> str:
    """Return a text without spaces, punctuation and the marks of formulas. Signs count, which the similarity does not
    see: x + 5 is not x - 5."""
    return re.sub(r"[\s$\\{}.,;:?]", "", text.casefold()).rstrip("!")


def parse_bool(text: str) -> bool | Rejected:
    """Return the last "true" or "false" of the reply."""
    words = re.findall(r"\b(true|false)\b", text.lower())
    return words[-1] == "true" if words else Rejected("unparsable answer")

"""Choose problems by what is known of them."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from nemo_openmath.core.bounds import NonNegativeInt, Words
from nemo_openmath.core.records import Drop, Problem
from nemo_openmath.core.records.ids import unit_key
from nemo_openmath.core.stage import ADDED, Result, StageContext, UnitStage

ProblemType = Literal["has_answer_extracted", "no_answer_extracted", "converted_proof"]


@dataclass(frozen=True)
class SelectProblemsConfig:
    """Settings of ``problems.select``."""

    types: tuple[ProblemType, ...] = ()
    """Only problems of these types, the published names of where an answer is from; none: of all types."""
    sources: Annotated[tuple[str, ...], Words()] = ()
    """Only problems whose source contains one of these words, in any case; none: of all sources."""
    not_sources: Annotated[tuple[str, ...], Words()] = ()
    """No problems whose source contains one of these words, in any case."""
    limit: NonNegativeInt = field(default=0, metadata=ADDED)
    """Of all that were read only so many, those that ``rollout.generate`` chooses by the same limit; 0 means all."""


class SelectProblems(UnitStage[SelectProblemsConfig, Problem]):
    """Keep the problems of the types and sources that are named."""

    kind = "problems.select"
    Config = SelectProblemsConfig
    ports = {"problems": "problems"}
    takes = {"problems": "Problem"}
    record = Problem
    concurrency = 1

    async def prepare(self, context: StageContext) -> None:
        self._within: frozenset[str] | None = None
        if self.config.limit:
            ids = (problem.id for problem in replace(context, divided=()).read("problems", Problem))
            self._within = frozenset(heapq.nsmallest(self.config.limit, ids, key=unit_key))

    def units(self, context: StageContext) -> Iterable[tuple[str, Problem]]:
        return ((problem.id, problem) for problem in context.read("problems", Problem))

    async def process(self, unit: Problem, context: StageContext) -> Result:
        reason = self._reason(unit)
        return Result([unit]) if reason is None else Result(drops=[Drop(reason, unit.problem)])

    def _reason(self, problem: Problem) -> str | None:
        config, source = self.config, problem.source.lower()
        if self._within is not None and problem.id not in self._within:
            return "beyond the limit"
        if config.types and problem.problem_type not in config.types:
            return "other problem type"
        if config.sources and not any(word.lower() in source for word in config.sources):
            return "other problem source"
        if any(word.lower() in source for word in config.not_sources):
            return "a problem source that is left out"
        return None

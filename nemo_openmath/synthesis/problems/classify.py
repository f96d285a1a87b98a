"""What kind of problem it is; the kinds that cannot be checked by an answer are dropped (paper section 2.1, step 2)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nemo_openmath.core.records import Drop, Problem
from nemo_openmath.core.stage import Result, StageContext
from nemo_openmath.synthesis.problems.prompted import PromptedConfig, PromptedStage

CATEGORIES = ("proof", "multiple-choice", "binary", "invalid", "answer")


@dataclass(frozen=True)
class ClassifyConfig(PromptedConfig):
    """``drop``: categories that go no further."""

    drop: tuple[str, ...] = ("multiple-choice", "binary", "invalid")

    def __post_init__(self) -> None:
        if unknown := set(self.drop) - set(CATEGORIES):
            raise ValueError(f"drop: unknown category {sorted(unknown)[0]!r}; known: {', '.join(CATEGORIES)}")


class Classify(PromptedStage[ClassifyConfig, Problem]):
    """Problem -> the same problem with its category."""

    kind = "problems.classify"
    prompt = "classify"
    Config = ClassifyConfig
    ports = {"problems": "extracted problems"}
    takes = {"problems": "Problem"}
    record = Problem

    def units(self, context: StageContext) -> Iterable[tuple[str, Problem]]:
        return ((problem.id, problem) for problem in context.read("problems", Problem))

    async def process(self, unit: Problem, context: StageContext) -> Result:
        category, answer = await self.question(context, unit.id, parse_category, problem=unit.problem)
        if category is None:
            return Result(drops=[Drop("unparsable answer", answer)])
        if category in self.config.drop:
            return Result(drops=[Drop(category, unit.problem)])
        return Result([unit.with_(category=category)])


def parse_category(text: str) -> str | None:
    """One of CATEGORIES, or None."""
    word = text.strip(" .\n*`").lower()
    return word if word in CATEGORIES else None

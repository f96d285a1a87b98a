"""Ask what kind of problem each is, and drop those that no answer can check (paper section 2.1, step 2)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nemo_openmath.core.records import Drop, Problem
from nemo_openmath.core.stage import Result, StageContext
from nemo_openmath.synthesis.controls.cases import ClassifyCase
from nemo_openmath.synthesis.problems.prompted import PromptedConfig, PromptedStage

CATEGORIES = ("proof", "multiple-choice", "binary", "invalid", "answer")


@dataclass(frozen=True)
class ClassifyConfig(PromptedConfig):
    """Settings of ``problems.classify``."""

    drop: tuple[str, ...] = ("multiple-choice", "binary", "invalid")
    """Categories that are dropped. The others of proof, multiple-choice, binary, invalid and answer go on. Paper
    section 2.1."""

    def __post_init__(self) -> None:
        if unknown := set(self.drop) - set(CATEGORIES):
            raise ValueError(f"drop: unknown category {sorted(unknown)[0]!r}; known: {', '.join(CATEGORIES)}")


class Classify(PromptedStage[ClassifyConfig, Problem]):
    """Give each problem its category, and drop the categories that the recipe names.

    The reason of such a drop is the category.
    """

    kind = "problems.classify"
    case = ClassifyCase
    prompt = "classify"
    Config = ClassifyConfig
    ports = {"problems": "extracted problems"}
    takes = {"problems": "Problem"}
    record = Problem

    def units(self, context: StageContext) -> Iterable[tuple[str, Problem]]:
        return ((problem.id, problem) for problem in context.read("problems", Problem))

    def outcome(self, result: Result) -> str:
        record = next(iter(result.records), None)
        return record.category or "kept" if isinstance(record, Problem) else super().outcome(result)

    async def process(self, unit: Problem, context: StageContext) -> Result:
        category, reply = await self.question(context, unit.id, parse_category, problem=unit.problem)
        if category is None:
            return Result(drops=[Drop("unparsable answer", reply)])
        if category in self.config.drop:
            return Result(drops=[Drop(category, unit.problem)])
        return Result([unit.with_(category=category)])


def parse_category(text: str) -> str | None:
    """Return the one of CATEGORIES that the reply is, else None."""
    word = text.strip(" .\n*`").lower()
    return word if word in CATEGORIES else None

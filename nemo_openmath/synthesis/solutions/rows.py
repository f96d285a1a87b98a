"""Make training rows of solutions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nemo_openmath.core.records import Drop, Generation, SftRow
from nemo_openmath.core.stage import Result, StageContext, UnitStage
from nemo_openmath.synthesis.solutions.shown import shown


@dataclass(frozen=True)
class RowsConfig:
    """Settings of ``solutions.rows``. There are none: the transcript says what a row holds."""


class MakeRows(UnitStage[RowsConfig, Generation]):
    """Make a training row of each finished generation. Two generations with the same text are one row."""

    kind = "solutions.rows"
    Config = RowsConfig
    ports = {"generations": "solutions to train on"}
    takes = {"generations": "Generation"}
    record = SftRow
    concurrency = 1

    def units(self, context: StageContext) -> Iterable[tuple[str, Generation]]:
        return ((g.id, g) for g in context.read("generations", Generation))

    async def process(self, unit: Generation, context: StageContext) -> Result:
        if not unit.finished:
            return Result(drops=[Drop("unfinished", shown(unit))])
        row = SftRow.make(
            unit,
            problem_id=unit.problem_id,
            mode=unit.mode,
            transcript=unit.transcript,
            expected_answer=unit.expected_answer,
            problem_source=str(unit.extra.get("source", "")),
        )
        return Result([row])

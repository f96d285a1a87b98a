"""Make training rows of solutions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nemo_openmath.core.records import Drop, Generation, Problem, SftRow
from nemo_openmath.core.stage import Result, StageContext, UnitStage
from nemo_openmath.synthesis.solutions.shown import shown


@dataclass(frozen=True)
class RowsConfig:
    """Settings of ``solutions.rows``. There are none: the transcript says what a row holds."""


Told = tuple[str, float | None]
"""The source and the pass rate of a problem."""


class MakeRows(UnitStage[RowsConfig, tuple[Generation, Told | None]]):
    """Make a training row of each finished generation. Two generations with the same text are one row.

    Port ``problems``, when given, brings the sources and pass rates by which ``sft.select`` chooses rows; they are
    joined by id.
    """

    kind = "solutions.rows"
    Config = RowsConfig
    ports = {"generations": "solutions to train on", "problems?": "problems whose sources and pass rates rows get"}
    takes = {"generations": "Generation", "problems": "Problem"}
    divided_inputs = ("problems",)
    record = SftRow
    concurrency = 1

    def units(self, context: StageContext) -> Iterable[tuple[str, tuple[Generation, Told | None]]]:
        told: dict[str, Told] = {p.id: (p.source, p.pass_rate) for p in context.read("problems", Problem)}
        return ((g.id, (g, told.get(g.problem_id))) for g in context.read("generations", Generation))

    async def process(self, unit: tuple[Generation, Told | None], context: StageContext) -> Result:
        generation, told = unit
        if not generation.finished:
            return Result(drops=[Drop("unfinished", shown(generation))])
        source, pass_rate = told or ("", None)
        row = SftRow.make(
            generation,
            problem_id=generation.problem_id,
            mode=generation.mode,
            transcript=generation.transcript,
            expected_answer=generation.expected_answer,
            problem_source=source or str(generation.extra.get("source", "")),
            pass_rate=pass_rate,
        )
        return Result([row])

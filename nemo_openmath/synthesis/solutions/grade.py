"""Grade solutions: compare the answer in the box with the expected one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from nemo_openmath.core.bounds import PositiveInt
from nemo_openmath.core.grader import Grade, not_equal, unknown
from nemo_openmath.core.records import Generation, Problem
from nemo_openmath.core.records.types import NOT_TRIED
from nemo_openmath.core.stage import RUNTIME, Result, StageContext, UnitStage
from nemo_openmath.inference.rollout.answer import answer_of

NO_ANSWER = "no answer"


@dataclass(frozen=True)
class GradeConfig:
    """Settings of ``solutions.grade``."""

    fallback: bool = False
    """Where a solution has no box, accept a phrase such as "the final answer is ..."."""
    concurrency: PositiveInt = field(default=256, metadata=RUNTIME)
    """Solutions in flight at once. It changes the speed alone."""


class GradeSolutions(UnitStage[GradeConfig, tuple[Generation, str | None]]):
    """Give each generation its ``predicted_answer``, its ``verdict`` and the verdict's reason.

    The verdict of a solution without an answer is not_equal ("no answer"). The verdict is unknown where the problem has
    no expected answer, or the model could not be asked. Port ``problems``, when given, brings newer expected answers;
    they are joined by id.
    """

    kind = "solutions.grade"
    Config = GradeConfig
    ports = {"generations": "solutions", "problems?": "problems whose expected answers are to be used"}
    takes = {"generations": "Generation", "problems": "Problem"}
    record = Generation
    divided_inputs = ("problems",)

    def __init__(self, config: GradeConfig):
        super().__init__(config)
        self.concurrency = config.concurrency

    async def prepare(self, context: StageContext) -> None:
        self._pool = await context.services.grading()

    def units(self, context: StageContext) -> Iterable[tuple[str, tuple[Generation, str | None]]]:
        expected = {p.id: p.expected_answer for p in context.read("problems", Problem)}
        for generation in context.read("generations", Generation):
            yield generation.id, (generation, expected.get(generation.problem_id, generation.expected_answer))

    async def process(self, unit: tuple[Generation, str | None], context: StageContext) -> Result:
        generation, expected = unit
        predicted = answer_of(generation, fallback=self.config.fallback)
        grade = await grade_of(generation, predicted, expected, self._pool.grade)
        counted = str(grade.verdict) if generation.tried else "untried"
        context.metrics[counted] = context.metrics.get(counted, 0) + 1
        graded = generation.with_(
            expected_answer=expected, predicted_answer=predicted, verdict=grade.verdict, verdict_reason=grade.reason
        )
        return Result([graded])


async def grade_of(
    generation: Generation,
    predicted: str | None,
    expected: str | None,
    compare: Callable[[str, str], Awaitable[Grade]],
) -> Grade:
    """Return the grade of a generation with this answer. ``compare`` is asked where there are two answers."""
    if not generation.tried:
        return unknown(NOT_TRIED)
    if predicted is None:
        return not_equal(NO_ANSWER)
    return unknown("no expected answer") if expected is None else await compare(predicted, expected)

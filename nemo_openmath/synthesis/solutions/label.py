"""Learn from many solutions of a problem: its answer where it has none, and how hard it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from nemo_openmath.core.bounds import Length, PositiveInt, Share
from nemo_openmath.core.records import Drop, Generation, Problem
from nemo_openmath.core.stage import Result, StageContext, UnitStage
from nemo_openmath.inference.rollout.answer import answer_of


@dataclass(frozen=True)
class MajorityConfig:
    """Settings of ``solutions.majority_answers``."""

    share: Share = 0.5
    """The majority must hold at least this share of a problem's answers."""
    count: PositiveInt = 2
    """The majority must hold at least so many answers."""


class MajorityAnswers(UnitStage[MajorityConfig, tuple[Problem, list[str | None]]]):
    """Give each problem without an answer the majority answer of its solutions (paper section 2.3)."""

    kind = "solutions.majority_answers"
    Config = MajorityConfig
    ports = {"problems": "problems", "generations": "solutions of them"}
    takes = {"problems": "Problem", "generations": "Generation"}
    divided_inputs = ("generations",)
    record = Problem
    concurrency = 1

    def units(self, context: StageContext) -> Iterable[tuple[str, tuple[Problem, list[str | None]]]]:
        answers: dict[str, list[str | None]] = defaultdict(list)
        missing = {p.id for p in context.read("problems", Problem) if p.expected_answer is None}
        for generation in context.read("generations", Generation):
            if generation.problem_id in missing:
                answers[generation.problem_id].append(answer_of(generation))
        for problem in context.read("problems", Problem):
            yield problem.id, (problem, sorted(answers[problem.id], key=str))

    async def prepare(self, context: StageContext) -> None:
        self._pool = await context.services.grading()

    async def process(self, unit: tuple[Problem, list[str | None]], context: StageContext) -> Result:
        problem, answers = unit
        if problem.expected_answer is not None:
            return Result([problem])
        votes = [answer for answer in answers if answer is not None]
        vote = await self._pool.majority(votes)
        if vote.answer is None:
            return Result(drops=[Drop("no expected answer and no solution with one", problem.problem)])
        if vote.tie or vote.count < self.config.count or vote.count < self.config.share * len(votes):
            return Result(
                drops=[Drop("no majority among the answers", f"{problem.problem} {vote.groups[:4]} {vote.reason}")]
            )
        return Result([problem.with_(expected_answer=vote.answer)])


@dataclass(frozen=True)
class HardnessConfig:
    """Settings of ``solutions.hardness``."""

    keep: Annotated[tuple[Share, ...], Length(2, 2)] = (0.0, 1.0)
    """Smallest and largest pass rate of the problems that go on. [0, 1] keeps all."""


class Hardness(UnitStage[HardnessConfig, tuple[Problem, list[bool]]]):
    """Give each problem its pass rate, the share of its graded solutions that are correct (paper section 2.3)."""

    kind = "solutions.hardness"
    Config = HardnessConfig
    ports = {"problems": "problems with answers", "generations": "graded solutions"}
    takes = {"problems": "Problem", "generations": "Generation"}
    divided_inputs = ("generations",)
    record = Problem
    concurrency = 1

    def units(self, context: StageContext) -> Iterable[tuple[str, tuple[Problem, list[bool]]]]:
        passed: dict[str, list[bool]] = defaultdict(list)
        for generation in context.read("generations", Generation):
            if generation.tried:
                passed[generation.problem_id].append(generation.correct)
        for problem in context.read("problems", Problem):
            yield problem.id, (problem, passed[problem.id])

    async def process(self, unit: tuple[Problem, list[bool]], context: StageContext) -> Result:
        problem, passed = unit
        if not passed:
            return Result(drops=[Drop("no solution to measure by", problem.problem)])
        rate = sum(passed) / len(passed)
        low, high = self.config.keep
        if not low <= rate <= high:
            return Result(drops=[Drop("pass rate out of range", f"{rate:.2f} {problem.problem}")])
        return Result([problem.with_(pass_rate=rate)])

"""Learn from many solutions of a problem: its answer where it needs one, and how hard it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Literal

from nemo_openmath.core.bounds import Length, PositiveInt, Share
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.grader import Majority, Verdict
from nemo_openmath.core.records import Drop, Generation, Problem
from nemo_openmath.core.records.answer_note import AnswerNote, AnswerOrigin, forum_answer, origin_of
from nemo_openmath.core.stage import ADDED, Result, StageContext, UnitStage
from nemo_openmath.synthesis.answers.gather import GivenAnswer, gather_answers
from nemo_openmath.synthesis.answers.origins import report_origins
from nemo_openmath.synthesis.answers.repair import Reach, relation, support_of
from nemo_openmath.synthesis.judge.agreement import DECIDED

ProblemType = Literal["has_answer_extracted", "no_answer_extracted", "converted_proof"]


@dataclass(frozen=True)
class MajorityConfig:
    """Settings of ``solutions.majority_answers``. The paper takes the most common answer and states no thresholds:
    those below are ours."""

    replace: tuple[ProblemType, ...] = ("converted_proof",)
    """Types of problems whose answer is replaced by the majority, beside those without an answer. Paper section 2.3:
    converted proofs."""
    share: Share = 0.5
    """The majority must hold at least this share of a problem's answers (ours)."""
    count: PositiveInt = 2
    """The majority must hold at least so many answers (ours)."""
    repair: Literal["keep", "majority", "drop"] = "keep"
    """What becomes of an answer that no solution reaches, where at least ``repair_least`` solutions have answers:
    ``keep`` it, replace it by the ``majority`` where that is clear, or ``drop`` the problem (ours)."""
    repair_least: PositiveInt = 8
    """With fewer answers of solutions no answer is taken for unreached (ours)."""
    repair_share: Share = 0.5
    """The majority that replaces an unreached answer must hold at least this share of a problem's answers (ours)."""


Labelled = tuple[Problem, list[GivenAnswer]]


class MajorityAnswers(UnitStage[MajorityConfig, Labelled]):
    """Give problems the majority answer of their solutions: those without an answer, and those of the types
    ``replace`` (paper section 2.3). Repair answers that no solution reaches, as ``repair`` says.

    - Answers are equal where the grader says so; where it cannot tell, a judge's verdict on the same pair decides.
      Where there is none, the answer of the forum stays.
    - A majority that is equal to the answer of the forum leaves its spelling.
    - Without a clear majority an answer that is there stays, and a problem that has none is dropped.
    - ``extra["answer"]`` of each problem says where its answer is from: ``from`` (forum, majority, repaired), the
      answer of the ``forum``, the ``votes`` and ``why``.
    """

    kind = "solutions.majority_answers"
    version = 2  # converted proofs get the majority's answer, and each problem says where its answer is from
    Config = MajorityConfig
    ports = {"problems": "problems", "generations": "solutions of them"}
    takes = {"problems": "Problem", "generations": "Generation"}
    divided_inputs = ("generations",)
    record = Problem
    concurrency = 1

    def units(self, context: StageContext) -> Iterable[tuple[str, Labelled]]:
        answers_of = gather_answers(context, {p.id for p in context.read("problems", Problem) if self._votes_on(p)})
        for problem in context.read("problems", Problem):
            yield problem.id, (problem, answers_of(problem.id))

    def _votes_on(self, problem: Problem) -> bool:
        return self._replaces(problem) or self.config.repair != "keep"

    def _replaces(self, problem: Problem) -> bool:
        return problem.expected_answer is None or problem.problem_type in self.config.replace

    async def prepare(self, context: StageContext) -> None:
        self._pool = await context.services.grading()

    async def process(self, unit: Labelled, context: StageContext) -> Result:
        problem, given = unit
        if not self._votes_on(problem):
            return self._stays(problem, (), "")
        vote = await self._pool.majority([g.answer for g in given])
        clear = self._is_clear(vote, self.config.share)
        if problem.expected_answer is None:
            if vote.answer is None:
                return Result(drops=[Drop("no expected answer and no solution with one", problem.problem)])
            if not clear:
                return Result(
                    drops=[Drop("no majority among the answers", f"{problem.problem} {vote.groups[:4]} {vote.reason}")]
                )
            return self._labelled(problem, AnswerOrigin.MAJORITY, vote)
        if self._replaces(problem) and clear and vote.answer is not None:
            if await relation(vote.answer, problem.expected_answer, given, self._pool) is Verdict.EQUAL:
                return self._stays(problem, vote.groups, "the majority agrees")
            return self._labelled(problem, AnswerOrigin.MAJORITY, vote)
        return await self._repaired(problem, given, vote)

    async def _repaired(self, problem: Problem, given: list[GivenAnswer], vote: Majority) -> Result:
        """Apply the rule of repair to a problem that has an answer."""
        config, answer = self.config, problem.expected_answer
        assert answer is not None
        support = await support_of(answer, given, self._pool)
        if support.total < config.repair_least:
            why = f"{support.equal} of {support.total} solutions reach it"
        elif support.reach is not Reach.UNREACHED:
            why = f"{support.reach}: {support.equal} of {support.total} solutions, {support.undecided} undecided"
        elif config.repair == "drop":
            return Result(
                drops=[Drop("no solution reaches the answer", f"{problem.problem} {answer!r} {vote.groups[:4]}")]
            )
        elif config.repair == "majority" and self._is_clear(vote, config.repair_share):
            return self._labelled(problem, AnswerOrigin.REPAIRED, vote)
        else:
            why = f"unreached by {support.total} solutions" + (", which disagree" if config.repair != "keep" else "")
        return self._stays(problem, vote.groups, why)

    def _is_clear(self, vote: Majority, share: float) -> bool:
        """Whether a majority holds enough answers to be believed."""
        votes = vote.total - vote.missing
        return vote.answer is not None and not vote.tie and vote.count >= max(self.config.count, share * votes)

    def _labelled(self, problem: Problem, origin: AnswerOrigin, vote: Majority) -> Result:
        assert vote.answer is not None
        why = f"{vote.count} of {vote.total} solutions agree"
        return Result([AnswerNote(origin, forum_answer(problem), vote.groups, why).put(problem, vote.answer)])

    def _stays(self, problem: Problem, votes: tuple[tuple[str, int], ...], why: str) -> Result:
        assert problem.expected_answer is not None
        note = AnswerNote(origin_of(problem), forum_answer(problem), votes, why)
        return Result([note.put(problem, problem.expected_answer)])

    async def run(self, context: StageContext) -> None:
        await super().run(context)
        report_origins(context)


@dataclass(frozen=True)
class HardnessConfig:
    """Settings of ``solutions.hardness``."""

    keep: Annotated[tuple[Share, ...], Length(2, 2)] = (0.0, 1.0)
    """Smallest and largest pass rate of the problems that go on. [0, 1] keeps all."""
    unmeasured: Literal["drop", "keep"] = field(default="drop", metadata=ADDED)
    """What becomes of a problem without a solution to measure by, such as one without an answer. ``keep`` leaves its
    pass rate as it is."""


class Hardness(UnitStage[HardnessConfig, tuple[Problem, list[bool]]]):
    """Give each problem its pass rate, the share of its graded solutions that are correct (paper section 2.3).

    Solutions whose verdict is open say neither, and are counted as ``undecided``. For the pass rate in TIR mode (5.1)
    wire solutions with code alone to it.
    """

    kind = "solutions.hardness"
    version = 2  # an open verdict is no wrong answer
    Config = HardnessConfig
    ports = {"problems": "problems with answers", "generations": "graded solutions"}
    takes = {"problems": "Problem", "generations": "Generation"}
    divided_inputs = ("generations",)
    record = Problem
    concurrency = 1

    def units(self, context: StageContext) -> Iterable[tuple[str, tuple[Problem, list[bool]]]]:
        passed: dict[str, list[bool]] = defaultdict(list)
        undecided = 0
        for generation in context.read("generations", Generation):
            if generation.verdict is None and generation.tried:
                raise UserError(
                    f"{context.name}: solution {generation.id} was not graded, so nobody knows whether it is correct",
                    remedy="put a stage solutions.grade before it",
                )
            if generation.verdict in DECIDED:
                passed[generation.problem_id].append(generation.correct)
            undecided += generation.tried and generation.verdict not in DECIDED
        if undecided:
            context.metrics["undecided"] = context.metrics.get("undecided", 0) + undecided
        for problem in context.read("problems", Problem):
            yield problem.id, (problem, passed[problem.id])

    async def process(self, unit: tuple[Problem, list[bool]], context: StageContext) -> Result:
        problem, passed = unit
        if not passed and self.config.unmeasured == "keep":
            return Result([problem])
        if not passed:
            return Result(drops=[Drop("no solution to measure by", problem.problem)])
        rate = sum(passed) / len(passed)
        low, high = self.config.keep
        if not low <= rate <= high:
            return Result(drops=[Drop("pass rate out of range", f"{rate:.2f} {problem.problem}")])
        return Result([problem.with_(pass_rate=rate)])

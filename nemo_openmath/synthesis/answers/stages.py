"""The stages ``solutions.answer_votes`` and ``solutions.calibrated_answers``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from nemo_openmath.core.bounds import NonNegativeFloat, NonNegativeInt, Share
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.grader import Verdict
from nemo_openmath.core.records import Drop, Problem
from nemo_openmath.core.records.answer_note import AnswerNote, AnswerOrigin, forum_answer
from nemo_openmath.core.stage import Result, StageContext, UnitStage
from nemo_openmath.synthesis.answers.gather import GivenAnswer, gather_answers
from nemo_openmath.synthesis.answers.latent import describe, fit, posterior
from nemo_openmath.synthesis.answers.noise import BestAnswers, kept_patterns, label_noise
from nemo_openmath.synthesis.answers.origins import report_origins
from nemo_openmath.synthesis.answers.patterns import Table, pattern_of
from nemo_openmath.synthesis.answers.reliability import Reliability
from nemo_openmath.synthesis.answers.votes import FORUM, KEY, ProblemVotes, count_votes
from nemo_openmath.synthesis.judge.agreement import DECIDED

WITNESSES = 3
FEW = "which of them errs rests on what is assumed beforehand; add solutions of another model"


@dataclass(frozen=True)
class AnswerVotesConfig:
    """Settings of ``solutions.answer_votes``: there is none."""


class AnswerVotes(UnitStage[AnswerVotesConfig, tuple[Problem, list[GivenAnswer]]]):
    """Count, for each problem, who gave which answer by meaning, for ``solutions.calibrated_answers``.

    Every problem passes, with the votes in ``extra["answer_votes"]``: those of the forum and of each model in each
    mode. Graded solutions bring the judges' verdicts, too, where ``judging.judge`` was asked.
    """

    kind = "solutions.answer_votes"
    Config = AnswerVotesConfig
    ports = {"problems": "problems", "generations": "solutions of them, of all models and modes"}
    takes = {"problems": "Problem", "generations": "Generation"}
    divided_inputs = ("generations",)
    record = Problem
    concurrency = 1

    async def prepare(self, context: StageContext) -> None:
        self._pool = await context.services.grading()

    def units(self, context: StageContext) -> Iterable[tuple[str, tuple[Problem, list[GivenAnswer]]]]:
        answers_of = gather_answers(context, {p.id for p in context.read("problems", Problem)})
        for problem in context.read("problems", Problem):
            yield problem.id, (problem, answers_of(problem.id))

    async def process(self, unit: tuple[Problem, list[GivenAnswer]], context: StageContext) -> Result:
        problem, given = unit
        votes = await count_votes(problem, given, self._pool)
        return Result([problem.with_(extra=problem.extra | {KEY: votes.to_json()})])


@dataclass(frozen=True)
class CalibratedConfig:
    """Settings of ``solutions.calibrated_answers``. The paper has no such step: all numbers are ours."""

    threshold: Share = 0.5
    """Keep a problem where its most probable answer is right with at least this probability."""
    budget: NonNegativeFloat | None = None
    """Keep, of these, the most probable ones among which at most so many wrong answers are expected. null: all."""
    resamples: NonNegativeInt = 50
    """Resamples of the problems by which the interval of the wrong answers is made."""


class CalibratedAnswers(UnitStage[CalibratedConfig, Problem]):
    """Give each problem its most probable answer, and the probability that it is right (synthesis/answers/latent.py).

    - The forum, each model in each mode, and the judges are witnesses whose reliability is estimated from all problems
      at once, with the difficulty of problems and with how much alike the errors of one model are.
    - ``extra["answer"]`` says where the answer is from (forum, or calibrated where it is another one), its probability
      ``p`` and the ``votes``.
    - The expected number of wrong answers among the kept ones, with its 95% interval, stands among the metrics.
    - ``truth``, when given, are problems whose answers are certain; by them calibration is measured, joined by id.

    With fewer than three witnesses (the forum, and two models) nothing says which one errs where they differ, and the
    run says so. All problems are read at once: about 2 kB for each different pattern of votes. Each job of an array
    fits the same model, so one job is enough.
    """

    kind = "solutions.calibrated_answers"
    Config = CalibratedConfig
    ports = {"problems": "problems with votes", "truth?": "problems whose answers are certain"}
    takes = {"problems": "Problem", "truth": "Problem"}
    record = Problem

    async def prepare(self, context: StageContext) -> None:
        config, whole = self.config, replace(context, divided=())
        table = Table.build(_votes_of(problem, context) for problem in whole.read("problems", Problem))
        self._table, self._place, self._kept = table, table.place(), None
        if not table.patterns:
            return
        fitted = fit(table)
        self._p = posterior(table, fitted.parameters)
        self._choice = BestAnswers.of(table, self._p)
        self._kept = kept_patterns(self._choice, table.weights, config.threshold, config.budget)
        if context.shard:
            return  # the metrics of all jobs are summed
        noise = label_noise(table, fitted, self._choice, self._kept, seed=context.seed, resamples=config.resamples)
        context.metrics |= {
            "wrong_answers_expected": round(noise.wrong, 2),
            "wrong_answers_low": noise.low,
            "wrong_answers_high": noise.high,
            "label_noise": round(noise.share, 5),
            "answer_model": describe(table, fitted),
        }
        log = context.progress.log
        log(f"{noise.wrong:.1f} of {noise.problems} answers are wrong ({noise.low:.0f} to {noise.high:.0f})")
        context.metrics["witnesses"] = len({source[0] for source in table.sources})
        if context.metrics["witnesses"] < WITNESSES:
            log(f"{context.metrics['witnesses']} witnesses (forum, models): {FEW}")
        if not fitted.converged:
            log("the model of answers has not converged: its probabilities may still change")
        await self._measure(whole)

    async def _measure(self, context: StageContext) -> None:
        """Compare probabilities with the truth where it is known."""
        truth = {p.id: p.expected_answer for p in context.read("truth", Problem) if p.expected_answer is not None}
        if not truth:
            return
        pool = await context.services.grading()
        probabilities, right, undecided = list[float](), list[bool](), 0
        for problem in context.read("problems", Problem):
            votes = _votes_of(problem, context)
            if votes.classes and problem.id in truth:
                answer, p = self._best(votes)
                verdict = (await pool.grade(votes.classes[answer].answer, truth[problem.id])).verdict
                undecided += verdict not in DECIDED
                if verdict in DECIDED:
                    probabilities.append(p)
                    right.append(verdict is Verdict.EQUAL)
        calibration = Reliability.of(probabilities, right)
        context.metrics["calibration"] = calibration.to_json() | {"undecided": undecided}

    def _best(self, votes: ProblemVotes) -> tuple[int, float]:
        """Return the index of the most probable answer of a problem, and its probability."""
        place = self._place[pattern_of(votes)]
        return int(self._choice.answer[place] - self._table.first_answer[place]), float(self._choice.p[place])

    def units(self, context: StageContext) -> Iterable[tuple[str, Problem]]:
        return ((problem.id, problem) for problem in context.read("problems", Problem))

    async def process(self, unit: Problem, context: StageContext) -> Result:
        votes = _votes_of(unit, context)
        if not votes.classes:
            return Result(drops=[Drop("no expected answer and no solution with one", unit.problem)])
        best, p = self._best(votes)
        chosen, forum = votes.classes[best], forum_answer(unit)
        counts = [(c.answer, sum(n for source, n in c.votes if source[0] != FORUM)) for c in votes.classes]
        assert self._kept is not None
        if not self._kept[self._place[pattern_of(votes)]]:
            detail = f"p {p:.3f}: {unit.problem} forum {forum!r}, {counts[:4]}"
            if p >= self.config.threshold:
                return Result(drops=[Drop("beyond the budget of wrong answers", detail)])
            return Result(drops=[Drop("no answer is probable enough", detail)])
        same = forum is not None and chosen.answer == forum.strip()
        origin = AnswerOrigin.FORUM if same else AnswerOrigin.CALIBRATED
        bare: dict[str, Any] = {key: value for key, value in unit.extra.items() if key != KEY}
        note = AnswerNote(origin, forum, [vote for vote in counts if vote[1]], p=p)
        return Result([note.put(unit.with_(extra=bare), chosen.answer)])

    async def run(self, context: StageContext) -> None:
        await super().run(context)
        report_origins(context)


def _votes_of(problem: Problem, context: StageContext) -> ProblemVotes:
    votes = ProblemVotes.of(problem)
    if votes is None:
        raise UserError(
            f"{context.name}: nobody counted the votes on the answer of problem {problem.id}",
            remedy="put a stage solutions.answer_votes before it",
        )
    return votes

"""The competition as a stage: problems one after the other, a time bank over all of them.

The folder has a unit for each problem: its submission, a generation of mode ``competition``, and behind it the
attempts, the generations that voted. An attempt names its submission as its parent and has its times in ``extra``
(``core.records.notes.Timing``): that is what the contest laboratory replays.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nemo_openmath.chat import load_template
from nemo_openmath.competition.bank import TimeBank
from nemo_openmath.competition.batch import sameness
from nemo_openmath.competition.policy import Reason
from nemo_openmath.competition.solver import Answer, Solver, SolverSettings
from nemo_openmath.competition.trials import Trial
from nemo_openmath.competition.waiting import Leftovers, Stopwatch
from nemo_openmath.core.bounds import NonNegativeFloat, NonNegativeInt, PositiveFloat
from nemo_openmath.core.clock import Clock, SystemClock
from nemo_openmath.core.engine import ContextOverflow, Finish
from nemo_openmath.core.errors import Refused, UserError
from nemo_openmath.core.grader import Grade, Grader, Verdict
from nemo_openmath.core.records import Generation, Mode, Problem, RecordWriter, content_id, read_records
from nemo_openmath.core.records.notes import Submission
from nemo_openmath.core.stage import Stage, StageContext
from nemo_openmath.inference.rollout.formats import template_of

CLOSING_SECONDS = 10.0  # after the last problem, for tasks that did not end when they were cancelled


@dataclass(frozen=True)
class CompeteConfig:
    """Which engine competes, and how much time each problem has."""

    engine: str
    """``teacher``, the name of a stage that made a model, or a folder with a Hugging Face model."""
    mode: Literal[Mode.COT, Mode.TIR] = Mode.TIR
    """Prompt of the solutions: ``cot`` for text, ``tir`` for text with code."""
    base_seconds: PositiveFloat = 350.0
    """Seconds of every problem: 350 for 50 problems in 5 hours. Paper section 6.3.4."""
    bank_seconds: NonNegativeFloat = 210.0
    """Seconds that a problem may have besides, at most, from what others left over. Paper section 6.3.4."""
    total_seconds: PositiveFloat | None = None
    """Seconds of the whole contest, which nothing exceeds: no problem is allowed more than is left, less
    ``reserve_seconds`` for each that is still to come. null: as many times ``base_seconds`` as there are problems.
    Paper section 6: 5 hours."""
    reserve_seconds: NonNegativeFloat = 10.0
    """Seconds that each problem keeps whatever happened before it, at most its base time."""
    limit: NonNegativeInt = 0
    """Solve only the first so many problems; 0 means all."""
    prompt: Path | None = None
    """Prompt file to use instead of the mode's own."""
    select_prompt: Path | None = None
    """Prompt file of selections to use instead of the shipped one."""
    solver: SolverSettings = field(default_factory=SolverSettings)
    """How each problem is solved."""

    def bank(self, problems: int) -> TimeBank:
        """Return the bank of a contest of so many problems."""
        total = self.base_seconds * max(1, problems) if self.total_seconds is None else self.total_seconds
        return TimeBank(self.base_seconds, self.bank_seconds, total=total, reserve=self.reserve_seconds)


class Compete(Stage[CompeteConfig]):
    """Problem -> its one submitted answer, judged, and the attempts behind it. Answers depend on the machine's speed,
    as in the competition."""

    kind = "competition.solve"
    version = 2  # 2: attempts beside the submissions; partial answers; the total; each solution draws its own budget
    Config = CompeteConfig
    ports = {"problems": "problems with expected answers"}
    takes = {"problems": "Problem"}
    record = Generation
    clock: Clock = SystemClock()

    def engines(self) -> tuple[str, ...]:
        return (self.config.engine,)

    async def run(self, context: StageContext) -> None:
        limit = self.config.limit
        problems = [p for n, p in enumerate(context.read("problems", Problem)) if not limit or n < limit]
        with RecordWriter(context.output, flush_units=1) as writer:
            context.progress.begin(len(problems), writer.recovered)
            submitted = {g.id: g for g in read_records(context.output, Generation) if g.mode == Mode.COMPETITION}
            keys = [content_id("submission", problem.id, context.seed) for problem in problems]
            contest = await Contest.open(self.config, context, self.clock, len(problems))
            for key in keys:  # of an interrupted run
                if writer.done(key):
                    contest.recall(submitted[key])
            try:
                for key, problem in zip(keys, problems, strict=True):
                    if not writer.done(key):
                        writer.commit(key, await contest.submit(key, problem))
                        context.progress.advance(note=f"{contest.right} right, bank {contest.bank.saved:.0f} s")
            finally:
                await contest.close()
        contest.report(len(problems), context)


@dataclass
class Contest:
    """The state of a competition: its time bank and its counts."""

    solver: Solver
    grader: Grader
    config: CompeteConfig
    bank: TimeBank
    context: StageContext
    to_come: int
    """Problems that have no answer yet."""
    mark: float
    """When the contest's clock went on after the last answer."""
    right: int = 0
    finished: int = 0
    tokens: int = 0
    left_running: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    @classmethod
    async def open(cls, config: CompeteConfig, context: StageContext, clock: Clock, problems: int) -> Contest:
        """Begin a competition over so many problems: borrow what it needs, and say where its batches waste time."""
        engine, tokenizer = await context.services.engine(config.engine)
        sandbox = await context.services.sandbox()
        grader = await context.services.grading()
        solver = Solver(
            engine,
            tokenizer,
            sandbox,
            template_of(config.mode, config.solver.rollout, config.prompt),
            config.solver,
            clock=clock,
            vote=grader.majority,
            selecting_template=load_template("genselect", config.select_prompt),
            leftovers=Leftovers(),
        )
        if line := sameness(solver.means, config.solver.batch, context.seed):
            context.progress.log(line)
        bank = config.bank(problems)
        if (bank.total or 0.0) < (least := bank.least_total(problems)):
            context.progress.log(
                f"{bank.total:g} s for {problems} problems are less than the {bank.kept:g} s that each keeps, "
                f"{least:g} in all: none is sure of more than its share"
            )
        return cls(solver, grader, config, bank, context, problems, clock.now())

    def recall(self, submission: Generation) -> None:
        """Account for a problem that an interrupted run has solved."""
        note = Submission.of(submission)
        self.bank.spend(note.seconds if note.spent is None else note.spent)
        self.to_come -= 1
        self.right += submission.correct
        self.tokens += submission.completion_tokens
        self.finished += note.finished
        self.ended[str(submission.finish)] += 1
        self._count_details(note.details)

    async def submit(self, key: str, problem: Problem) -> list[Generation]:
        """Solve a problem and return the submission, graded, and its attempts."""
        self.to_come -= 1
        late = max(0.0, self.solver.clock.now() - self.mark)  # what was done since the last answer counts, too
        allowed = max(0.0, self.bank.allowance(self.to_come) - late)
        answer = await self.solver.solve(problem.problem, seconds=allowed, seed=self.context.seed)
        now = self.solver.clock.now()
        spent = max(0.0, now - self.mark)
        note = Submission(answer.votes, answer.finished, answer.seconds, spent, allowed, _details(answer))
        self._count(answer, note)
        written = dict.fromkeys([answer.answer, *(t.answer.answer for t in answer.trials)])
        grades = await self._grades([*written], problem.expected_answer)
        self.mark = self.solver.clock.now()  # a contest knows no expected answers: its clock stands while we grade
        self.right += grades[answer.answer].is_equal
        submission = self._submission(key, problem, answer, note, grades[answer.answer])
        return [submission, *(self._attempt(key, problem, t, grades) for t in answer.trials if t.outcome is not None)]

    async def _grades(self, answers: list[str | None], expected: str | None) -> dict[str | None, Grade]:
        """Return the verdict on each answer. One that takes too long is unknown: it must not hold up the contest."""
        tasks = {a: asyncio.ensure_future(self._grade(a, expected)) for a in answers}
        time, bound = Stopwatch(self.solver.clock), self.config.solver.grading_seconds
        try:
            await time.all(list(tasks.values()), bound)
        finally:
            for task in tasks.values():
                task.cancel()
            self.solver.leftovers.add(list(tasks.values()))
        late = Grade(Verdict.UNKNOWN, f"the grader did not answer in {bound:g} s")
        return {a: task.result() if task.done() and not task.cancelled() else late for a, task in tasks.items()}

    async def _grade(self, answer: str | None, expected: str | None) -> Grade:
        try:
            return await self.grader.grade(answer, expected)
        except Exception as error:
            return Grade(Verdict.UNKNOWN, f"the grader failed: {error}")

    def _submission(self, key: str, problem: Problem, answer: Answer, note: Submission, grade: Grade) -> Generation:
        return Generation(
            id=key,
            parents=(problem.id,),
            problem_id=problem.id,
            mode=Mode.COMPETITION,
            model=self.solver.means.engine.model,
            sample=0,
            transcript={"messages": [], "pieces": []},
            finish=answer.finish,
            expected_answer=problem.expected_answer,
            predicted_answer=answer.answer,
            verdict=grade.verdict,
            verdict_reason=grade.reason,
            completion_tokens=answer.completion_tokens,
            extra=note.to_extra(),
        )

    def _attempt(self, key: str, problem: Problem, trial: Trial, grades: dict[str | None, Grade]) -> Generation:
        assert trial.outcome is not None
        outcome, cost, model = trial.outcome, trial.outcome.cost, self.solver.means.engine.model
        grade, transcript = grades[trial.answer.answer], trial.outcome.transcript.without_ids()
        return Generation(
            id=content_id("attempt", key, model, trial.sample),
            parents=(problem.id, key),
            problem_id=problem.id,
            mode=self.config.mode,
            model=model,
            sample=trial.sample,
            transcript=transcript.to_json(),
            thinks=transcript.thinks,
            finish=Finish.TIME if trial.cut else outcome.finish,
            expected_answer=problem.expected_answer,
            predicted_answer=trial.answer.answer,
            verdict=grade.verdict,
            verdict_reason=grade.reason,
            prompt_tokens=cost.prompt_tokens,
            completion_tokens=cost.completion_tokens,
            runner_tokens=cost.tool_tokens,
            code_calls=cost.code_calls,
            budget=trial.budget or None,
            extra={} if trial.timing is None else trial.timing.to_extra(),
        )

    def _count(self, answer: Answer, note: Submission) -> None:
        """Account for a problem. Raises what ended all solutions of the first problems."""
        self.finished += answer.finished
        if answer.last_error is not None:
            if not self.finished and answer.failed == len(answer.trials):
                _check_engine(answer.last_error)
            self.context.progress.log(f"{answer.failed} solutions were lost, the last one: {answer.last_error}")
        self.bank.spend(note.spent or 0.0)
        self.ended[str(answer.finish)] += 1
        self.tokens += answer.completion_tokens
        self._count_details(note.details)

    def _count_details(self, details: dict[str, Any]) -> None:
        if "reason" in details:
            self.reasons[details["reason"]] += 1
        for name in ("lost", "partial", "selected", "grader_failures", "left_behind"):
            self.counts[name] += int(details.get(name, 0))
        for name, count in details.get("became", {}).items():
            self.counts[f"answers_{name}"] += count

    async def close(self) -> None:
        """Give tasks that did not end when they were cancelled a last chance to."""
        self.left_running = await self.solver.leftovers.close(self.solver.clock, CLOSING_SECONDS)
        if self.left_running:
            self.context.progress.log(
                f"{self.left_running} requests or sessions were cancelled and did not end; they end with the run"
            )

    def report(self, problems: int, context: StageContext) -> None:
        """Write what the competition came to into the stage's metrics."""
        counts, metrics = self.counts, context.metrics
        if counts["lost"]:
            metrics["solutions_lost"] = counts["lost"]
            context.progress.log(f"{counts['lost']} solutions were lost to the engine or the sandbox and have no vote")
        shown = {"answers_reduced", "answers_out_of_range", "answers_not_integer", "grader_failures", "left_behind"}
        metrics |= {name: counts[name] for name in sorted(shown) if counts[name]}
        metrics.update(
            right=self.right,
            problems=problems,
            ended={str(f): self.ended[str(f)] for f in (Finish.AGREEMENT, Finish.FINISHED, Finish.TIME)},
            reasons={str(reason): self.reasons[reason] for reason in Reason if self.reasons[reason]},
            partial_answers=counts["partial"],
            selected=counts["selected"],
            seconds=round(self.bank.spent, 1),
            completion_tokens=self.tokens,
        )


def _details(answer: Answer) -> dict[str, Any]:
    details: dict[str, Any] = {
        "reason": str(answer.reason),
        "weight": round(answer.weight, 4),
        "samples": len(answer.trials),
        "lost": answer.failed,
        "partial": answer.partial,
        "selected": answer.selected,
        "became": answer.became,
    }
    details |= {"second": answer.second, "second_weight": round(answer.second_weight, 4)} if answer.second else {}
    more = {"grader_failures": answer.grader_failures, "left_behind": answer.left_behind}
    return details | {name: count for name, count in more.items() if count}


def _check_engine(error: Exception) -> None:
    """Raise what ended all solutions of the first problems, unless that was the length of the problem: an engine that
    never answers would lose the competition without a word."""
    if isinstance(error, ContextOverflow):
        return
    if isinstance(error, Refused):
        remedy = "put the engine's settings right and run the same command again"
        raise UserError(f"the engine refused every solution: {error}", remedy=remedy) from error
    raise error

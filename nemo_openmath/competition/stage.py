"""The competition as a stage: problems one after the other, a time bank over all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nemo_openmath.chat import Template
from nemo_openmath.competition.bank import TimeBank
from nemo_openmath.competition.solver import Answer, SolverSettings, solve
from nemo_openmath.core.bounds import NonNegativeFloat, NonNegativeInt, PositiveFloat
from nemo_openmath.core.clock import Clock, SystemClock
from nemo_openmath.core.engine import ContextOverflow, Engine, EngineError, Finish
from nemo_openmath.core.errors import Refused, UserError
from nemo_openmath.core.grader import Grader
from nemo_openmath.core.records import Generation, Mode, Problem, RecordWriter, content_id, read_records
from nemo_openmath.core.records.notes import Submission
from nemo_openmath.core.sandbox import Sandbox, SandboxError
from nemo_openmath.core.stage import Stage, StageContext
from nemo_openmath.core.tokenizer import Tokenizer
from nemo_openmath.inference.rollout.formats import template_of


@dataclass(frozen=True)
class CompeteConfig:
    """Which engine competes, and how much time each problem has."""

    engine: str
    """``teacher``, the name of a stage that made a model, or a folder with a Hugging Face model."""
    mode: Literal[Mode.COT, Mode.TIR] = Mode.TIR
    """Prompt of the solutions: ``cot`` for text, ``tir`` for text with code."""
    base_seconds: PositiveFloat = 350.0
    """Seconds of every problem: 350 for 50 problems in 5 hours. Paper section 6."""
    bank_seconds: NonNegativeFloat = 210.0
    """Seconds that a problem may have besides, at most, from what others left over. Paper section 6."""
    limit: NonNegativeInt = 0
    """Solve only the first so many problems; 0 means all."""
    prompt: Path | None = None
    """Prompt file to use instead of the mode's own."""
    solver: SolverSettings = field(default_factory=SolverSettings)
    """How each problem is solved."""


class Compete(Stage[CompeteConfig]):
    """Problem -> its one submitted answer, judged. Answers depend on the machine's speed, as in the competition."""

    kind = "competition.solve"
    Config = CompeteConfig
    ports = {"problems": "problems with expected answers"}
    takes = {"problems": "Problem"}
    record = Generation

    def engines(self) -> tuple[str, ...]:
        return (self.config.engine,)

    async def run(self, context: StageContext) -> None:
        limit = self.config.limit
        problems = [p for n, p in enumerate(context.read("problems", Problem)) if not limit or n < limit]
        contest = await _Contest.open(self.config, context)
        with RecordWriter(context.output, flush_units=1) as writer:
            context.progress.begin(len(problems), writer.recovered)
            submitted = {g.id: g for g in read_records(context.output, Generation)}  # of an interrupted run
            for problem in problems:
                key = content_id("submission", problem.id, context.seed)
                if writer.done(key):
                    contest.recall(submitted[key])
                    continue
                writer.commit(key, [await contest.submit(key, problem)])
                context.progress.advance(note=f"{contest.right} right, bank {contest.bank.saved:.0f} s")
        contest.report(len(problems), context)


@dataclass
class _Contest:
    """The state of a competition: its time bank and its counts."""

    config: CompeteConfig
    engine: Engine
    tokenizer: Tokenizer
    sandbox: Sandbox
    grader: Grader
    template: Template
    seed: int
    bank: TimeBank
    right: int = 0
    finished: int = 0
    lost: int = 0
    tokens: int = 0
    clock: Clock = field(default_factory=SystemClock)
    ended: dict[str, int] = field(
        default_factory=lambda: {str(finish): 0 for finish in (Finish.AGREEMENT, Finish.FINISHED, Finish.TIME)}
    )

    @classmethod
    async def open(cls, config: CompeteConfig, context: StageContext) -> _Contest:
        engine, tokenizer = await context.services.engine(config.engine)
        sandbox = await context.services.sandbox()
        grader = await context.services.grading()
        template = template_of(config.mode, config.solver.rollout, config.prompt)
        bank = TimeBank(config.base_seconds, config.bank_seconds)
        return cls(config, engine, tokenizer, sandbox, grader, template, context.seed, bank)

    def recall(self, submission: Generation) -> None:
        """Account for a problem that an interrupted run has solved."""
        self.bank.spend(Submission.of(submission).seconds)
        self.right += submission.correct

    async def submit(self, key: str, problem: Problem) -> Generation:
        """Solve a problem and return the submission, graded."""
        answer = await solve(
            self.engine,
            self.tokenizer,
            self.sandbox,
            self.template,
            problem.problem,
            self.config.solver,
            seconds=self.bank.allowance(),
            seed=self.seed,
            clock=self.clock,
            vote=self.grader.majority,
        )
        self._count(answer)
        grade = await self.grader.grade(answer.answer, problem.expected_answer)
        self.right += grade.is_equal
        return Generation(
            id=key,
            parents=(problem.id,),
            problem_id=problem.id,
            mode=Mode.COMPETITION,
            model=self.engine.model,
            sample=0,
            transcript={"messages": [], "pieces": []},
            finish=answer.finish,
            expected_answer=problem.expected_answer,
            predicted_answer=answer.answer,
            verdict=grade.verdict,
            verdict_reason=grade.reason,
            completion_tokens=answer.completion_tokens,
            extra=Submission(answer.votes, answer.finished, answer.seconds).to_extra(),
        )

    def _count(self, answer: Answer) -> None:
        """Account for a problem. Raises what ended all solutions of the first problems."""
        self.finished += answer.finished
        self.lost += answer.failed
        if not self.finished and answer.last_error and answer.failed == self.config.solver.batch:
            _check_engine(answer.last_error)
        self.bank.spend(answer.seconds)
        self.ended[str(answer.finish)] += 1
        self.tokens += answer.completion_tokens

    def report(self, problems: int, context: StageContext) -> None:
        if self.lost:
            context.metrics["solutions_lost"] = self.lost
            context.progress.log(f"{self.lost} solutions were lost to the engine or the sandbox and have no vote")
        context.metrics.update(right=self.right, problems=problems, ended=self.ended, completion_tokens=self.tokens)


def _check_engine(error: EngineError | SandboxError) -> None:
    """Raise what ended all solutions of the first problems, unless that was the length of the problem: an engine that
    never answers would lose the competition without a word."""
    if isinstance(error, ContextOverflow):
        return
    if isinstance(error, Refused):
        remedy = "put the engine's settings right and run the same command again"
        raise UserError(f"the engine refused every solution: {error}", remedy=remedy) from error
    raise error

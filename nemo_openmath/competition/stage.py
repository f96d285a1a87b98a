"""The competition as a stage: problems one after the other, a time bank over all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nemo_openmath.chat import load_template
from nemo_openmath.competition.bank import TimeBank
from nemo_openmath.competition.solver import SolverSettings, solve
from nemo_openmath.core.bounds import NonNegativeFloat, NonNegativeInt, PositiveFloat
from nemo_openmath.core.clock import SystemClock
from nemo_openmath.core.engine import ContextOverflow, EngineError, Finish
from nemo_openmath.core.errors import Refused, UserError
from nemo_openmath.core.records import Generation, Mode, Problem, RecordWriter, content_id, read_records
from nemo_openmath.core.records.notes import Submission
from nemo_openmath.core.sandbox import SandboxError
from nemo_openmath.core.stage import Stage, StageContext


@dataclass(frozen=True)
class CompeteConfig:
    """``base_seconds`` for every problem and up to ``bank_seconds`` more from what others left: 350 and 210 for 50
    problems in 5 hours (section 6). ``limit``: only the first so many problems (0: all)."""

    engine: str
    mode: Literal[Mode.COT, Mode.TIR] = Mode.TIR  # the prompt
    base_seconds: PositiveFloat = 350.0
    bank_seconds: NonNegativeFloat = 210.0
    limit: NonNegativeInt = 0
    prompt: Path | None = None
    solver: SolverSettings = field(default_factory=SolverSettings)


def _check_engine(error: EngineError | SandboxError) -> None:
    """Raise what ended all solutions of the first problems, unless that was the length of the problem: an engine that
    never answers would lose the competition without a word."""
    if isinstance(error, ContextOverflow):
        return
    if isinstance(error, Refused):
        remedy = "put the engine's settings right and run the same command again"
        raise UserError(f"the engine refused every solution: {error}", remedy=remedy) from error
    raise error


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
        config, clock = self.config, SystemClock()
        engine, tokenizer = await context.services.engine(config.engine)
        sandbox = await context.services.sandbox()
        pool = await context.services.grading()
        template = load_template(config.mode, config.prompt)
        problems = [p for n, p in enumerate(context.read("problems", Problem)) if not config.limit or n < config.limit]
        bank = TimeBank(config.base_seconds, config.bank_seconds)
        ended = {str(finish): 0 for finish in (Finish.AGREEMENT, Finish.FINISHED, Finish.TIME)}
        right = tokens = lost = finished = 0
        with RecordWriter(context.output, flush_units=1) as writer:
            context.progress.begin(len(problems), writer.recovered)
            before = {g.id: g for g in read_records(context.output, Generation)}  # of an interrupted run
            for problem in problems:
                key = content_id("submission", problem.id, context.seed)
                if writer.done(key):
                    bank.spend(Submission.of(before[key]).seconds)
                    right += before[key].correct
                    continue
                answer = await solve(
                    engine, tokenizer, sandbox, template, problem.problem, config.solver,
                    seconds=bank.allowance(), seed=context.seed, clock=clock, vote=pool.majority,
                )  # fmt: skip
                finished, lost = finished + answer.finished, lost + answer.failed
                if not finished and answer.lost_to and answer.failed == config.solver.batch:
                    _check_engine(answer.lost_to)
                bank.spend(answer.seconds)
                grade = await pool.grade(answer.answer, problem.expected_answer)
                ended[str(answer.finish)] += 1
                right += grade.is_equal
                tokens += answer.completion_tokens
                record = Generation(
                    id=key,
                    parents=(problem.id,),
                    problem_id=problem.id,
                    mode=Mode.COMPETITION,
                    model=engine.model,
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
                writer.commit(key, [record])
                context.progress.advance(note=f"{right} right, bank {bank.saved:.0f} s")
        if lost:
            context.metrics["solutions_lost"] = lost
            context.progress.log(f"{lost} solutions were lost to the engine or the sandbox and have no vote")
        context.metrics.update(right=right, problems=len(problems), ended=ended, completion_tokens=tokens)

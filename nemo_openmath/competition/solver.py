"""One problem: many solutions at once, the answer that enough of them agree on, and the rest cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nemo_openmath.chat import Template
from nemo_openmath.core.bounds import PositiveInt
from nemo_openmath.core.clock import Clock
from nemo_openmath.core.engine import Engine, EngineError, Finish
from nemo_openmath.core.records.ids import derive_seed
from nemo_openmath.core.sandbox import Sandbox, SandboxError
from nemo_openmath.core.tokenizer import Tokenizer
from nemo_openmath.grading import Majority, extract_answer, majority
from nemo_openmath.inference.rollout import RolloutSettings, roll_out

Vote = Callable[[Sequence[str | None]], Awaitable[Majority]]
"""Counts answers: ``GradingPool.majority``, whose workers keep hard limits, or the like."""


@dataclass(frozen=True)
class SolverSettings:
    """How one problem is solved (paper section 6).

    At temperature 0 the solutions of a batch differ by their code budgets and by what the sandbox answers. Give a
    temperature where the engine decodes deterministically.
    """

    batch: PositiveInt = 16
    """Solutions that are begun together. Paper section 6."""
    agree: PositiveInt = 4
    """End the batch when the first so many solutions that finish have equal answers, or later, when one more than that
    have. Paper section 6."""
    rollout: RolloutSettings = field(
        default_factory=lambda: RolloutSettings(temperature=0.0, budgets=(6, 6), code_seconds=2.0, output_chars=200)
    )
    """How each solution is sampled: temperature 0, 6 code calls of 2 seconds and 200 characters of output. Paper
    section 6."""

    def __post_init__(self) -> None:
        if not 1 <= self.agree <= self.batch:
            raise ValueError("agree: choose it from 1 to batch")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the solver found out about one problem."""

    answer: str | None
    """The answer with the most votes; None where no solution had one."""
    votes: int
    finished: int
    """Solutions that finished: those that could vote."""
    finish: Finish
    """Why the batch ended: AGREEMENT, FINISHED (all of it) or TIME."""
    seconds: float
    completion_tokens: int
    failed: int = 0
    """Solutions that the engine or the sandbox lost."""
    last_error: EngineError | SandboxError | None = None
    """The error that lost the last of them."""


@dataclass(slots=True)
class _Tally:
    """The solutions of a batch that have ended."""

    answers: list[str | None] = field(default_factory=list)
    completion_tokens: int = 0
    failed: int = 0
    last_error: EngineError | SandboxError | None = None

    def add(self, solution: asyncio.Future[tuple[str | None, int]]) -> None:
        try:
            answer, tokens = solution.result()
        except (EngineError, SandboxError) as error:
            self.failed, self.last_error = self.failed + 1, error
        else:
            self.answers.append(answer)
            self.completion_tokens += tokens


async def solve(
    engine: Engine,
    tokenizer: Tokenizer,
    sandbox: Sandbox | None,
    template: Template,
    problem: str,
    settings: SolverSettings,
    *,
    seconds: float,
    seed: int,
    clock: Clock,
    vote: Vote | None = None,
) -> Answer:
    """Return the answer to a problem within ``seconds``.

    Solutions that still run at the end are cancelled on the engine and in the sandbox; those that fail are counted and
    left out. ``vote`` counts answers; by default they are counted in this process.
    """
    began, tally = clock.now(), _Tally()
    budget = settings.rollout.budgets[1] if "total_code_executions" in template.fields else 0
    messages = template.messages(problem=problem, **({"total_code_executions": budget} if budget else {}))

    async def solution(sample: int) -> tuple[str | None, int]:
        sample_seed = derive_seed(seed, problem, sample)
        outcome = await roll_out(
            engine,
            tokenizer,
            messages,
            settings.rollout,
            seed=sample_seed,
            key=f"{sample_seed}",
            sandbox=sandbox,
            budget=budget,
        )
        finished = outcome.finish is Finish.STOP
        answer = extract_answer(outcome.transcript.said).answer if finished else None
        return answer, outcome.cost.completion_tokens

    solutions = [asyncio.ensure_future(solution(sample)) for sample in range(settings.batch)]
    alarm = asyncio.ensure_future(clock.sleep(seconds))
    try:
        finish, result = await _until_agreed(solutions, alarm, tally, settings.agree, vote or _count_here)
    finally:
        for task in (alarm, *solutions):
            task.cancel()
        await asyncio.gather(*solutions, alarm, return_exceptions=True)
    return Answer(
        result.answer,
        result.count,
        len(tally.answers),
        finish,
        clock.now() - began,
        tally.completion_tokens,
        tally.failed,
        tally.last_error,
    )


async def _until_agreed(
    solutions: Sequence[asyncio.Future[tuple[str | None, int]]],
    alarm: asyncio.Future[None],
    tally: _Tally,
    agree: int,
    vote: Vote,
) -> tuple[Finish, Majority]:
    """Tally solutions as they end; return why no more are waited for, and the vote."""
    pending, result = list(solutions), majority([])
    while pending:
        waited_for: list[asyncio.Future[Any]] = [*pending, alarm]
        await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
        ended, pending = [s for s in pending if s.done()], [s for s in pending if not s.done()]
        for solution in ended:
            tally.add(solution)
        result = await vote(tally.answers)
        if agreed(result, agree):
            return Finish.AGREEMENT, result
        if alarm.done():
            return Finish.TIME, result
    return Finish.FINISHED, result


def agreed(vote: Majority, agree: int) -> bool:
    """Tell whether the first ``agree`` answers are all equal, or ``agree + 1`` of all are, and no other answer has as
    many."""
    enough = agree if vote.total == agree else agree + 1
    return vote.total >= agree and vote.answer is not None and vote.count >= enough and not vote.tie


async def _count_here(answers: Sequence[str | None]) -> Majority:
    return majority(answers)

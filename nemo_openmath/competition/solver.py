"""One problem: many solutions at once, the answer that enough of them agree on, and the rest cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class SolverSettings:
    """Paper section 6: 16 solutions in a batch, ended when the first 4 agree, or 5 where fewer have finished by then;
    6 code calls of 2 seconds, 200 characters of output, temperature 0.

    ``agree``: equal answers among the first ``agree`` that finish end the batch; later, ``agree + 1`` equal ones do.
    At temperature 0 a batch differs by its code budgets and by what the sandbox answers; give a temperature where the
    engine decodes deterministically.
    """

    batch: PositiveInt = 16  # solutions that are begun together
    agree: PositiveInt = 4
    rollout: RolloutSettings = field(
        default_factory=lambda: RolloutSettings(temperature=0.0, budgets=(6, 6), code_seconds=2.0, output_chars=200)
    )

    def __post_init__(self) -> None:
        if not 1 <= self.agree <= self.batch:
            raise ValueError("agree: choose it from 1 to batch")


@dataclass(frozen=True, slots=True)
class Answer:
    """``answer``: None where no solution had one. ``votes`` of ``finished`` solutions; ``finish``: AGREEMENT, FINISHED
    (all of the batch) or TIME. ``failed``: solutions lost to the engine or the sandbox, ``lost_to`` the last error."""

    answer: str | None
    votes: int
    finished: int
    finish: Finish
    seconds: float
    completion_tokens: int
    failed: int = 0
    lost_to: EngineError | SandboxError | None = None


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
    """The answer within ``seconds``. Solutions still running at the end are cancelled on the engine and in the
    sandbox; those that fail are counted and left out. ``vote``: counts answers (``GradingPool.majority``, whose
    workers keep hard limits); by default ``majority`` in this process."""
    begun = clock.now()
    count = vote or _count_here
    answers: list[str | None] = []
    counted = majority(answers)
    tokens = failed = 0
    lost_to: EngineError | SandboxError | None = None
    tools = "total_code_executions" in template.fields

    async def one(sample: int) -> tuple[str | None, int]:
        own = derive_seed(seed, problem, sample)
        budget = settings.rollout.budgets[1] if tools else 0
        fields = {"problem": problem} | ({"total_code_executions": budget} if tools else {})
        outcome = await roll_out(
            engine, tokenizer, template.messages(**fields), settings.rollout,
            seed=own, key=f"{own}", sandbox=sandbox, budget=budget,
        )  # fmt: skip
        finished = outcome.finish is Finish.STOP
        return (extract_answer(outcome.transcript.said).answer if finished else None), outcome.cost.completion_tokens

    tasks = [asyncio.ensure_future(one(sample)) for sample in range(settings.batch)]
    alarm = asyncio.ensure_future(clock.sleep(seconds))
    finish = Finish.FINISHED
    pending = tasks
    try:
        while pending:
            await asyncio.wait([*pending, alarm], return_when=asyncio.FIRST_COMPLETED)
            ready, pending = [t for t in pending if t.done()], [t for t in pending if not t.done()]
            for task in ready:
                try:
                    answer, used = task.result()
                except (EngineError, SandboxError) as error:
                    failed, lost_to = failed + 1, error
                    continue
                answers.append(answer)
                tokens += used
            if agreed(counted := await count(answers), settings.agree):
                finish = Finish.AGREEMENT
                break
            if alarm.done():
                finish = Finish.TIME
                break
    finally:
        alarm.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, alarm, return_exceptions=True)
    return Answer(counted.answer, counted.count, len(answers), finish, clock.now() - begun, tokens, failed, lost_to)


def agreed(vote: Majority, agree: int) -> bool:
    """Whether the first ``agree`` answers are all equal, or ``agree + 1`` of all are, and no other answer has as
    many."""
    enough = agree if vote.total == agree else agree + 1
    return vote.total >= agree and vote.answer is not None and vote.count >= enough and not vote.tie


async def _count_here(answers: Sequence[str | None]) -> Majority:
    return majority(answers)

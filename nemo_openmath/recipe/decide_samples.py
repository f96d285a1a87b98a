"""The samples of one of two models that are compared: made, graded, stored, and read again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_openmath.core import activity
from nemo_openmath.core.errors import Refused, RetryableError
from nemo_openmath.core.grader import Verdict
from nemo_openmath.core.records import Generation, Problem, RecordWriter, read_records
from nemo_openmath.grading import GradingPool
from nemo_openmath.inference.rollout.answer import answer_of
from nemo_openmath.inference.rollout.sampler import Sampler

ATTEMPTS = 3
"""How often a sample is made whose engine or sandbox failed."""


@contextlib.asynccontextmanager
async def first_error() -> AsyncIterator[None]:
    """Raise the first error of a group of tasks in place of the group: the others were ended because of it."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


@dataclass(frozen=True, slots=True)
class _Kept:
    right: bool
    tokens: int
    tried: bool
    undecided: bool


class SideSamples:
    """The samples of one model, in a folder of records."""

    def __init__(self, folder: Path, sampler: Sampler, pool: GradingPool, concurrency: int):
        self._sampler, self._pool = sampler, pool
        self._gate = asyncio.Semaphore(concurrency)
        self._writer = RecordWriter(folder)  # cuts off what a kill left torn
        self._kept = {record.id: _kept(record) for record in read_records(folder, Generation)}
        self._apart = {record.problem_id for record in read_records(folder, Generation) if not record.tried}

    def close(self) -> None:
        """Write what is not written yet."""
        self._writer.close()

    @property
    def stored(self) -> int:
        """Samples that are there."""
        return len(self._kept)

    @property
    def undecided(self) -> int:
        """Samples that the grader could not decide, which count as wrong."""
        return sum(kept.undecided for kept in self._kept.values())

    def is_apart(self, problem: Problem) -> bool:
        """Return whether the model could not be asked."""
        return problem.id in self._apart

    def right(self, problem: Problem, first: int, count: int) -> int:
        """Return how many of ``count`` samples from number ``first`` on are right."""
        return sum(kept.right for kept in self._range(problem, first, count))

    def tokens(self, problem: Problem, first: int, count: int) -> int:
        """Return what these samples took."""
        return sum(kept.tokens for kept in self._range(problem, first, count))

    def _range(self, problem: Problem, first: int, count: int) -> list[_Kept]:
        return [self._kept[self._sampler.id_of(problem, n)] for n in range(first, first + count)]

    async def make(self, wanted: Sequence[tuple[Problem, range]], made: Callable[[], None]) -> None:
        """Make the samples that are not there. ``made`` is called for each."""
        async with first_error(), asyncio.TaskGroup() as group:
            for problem, numbers in wanted:
                for number in numbers:
                    if self._sampler.id_of(problem, number) not in self._kept:
                        await self._gate.acquire()
                        group.create_task(self._make(problem, number, made))
        self._writer.flush()

    async def _make(self, problem: Problem, number: int, made: Callable[[], None]) -> None:
        try:
            record = await self._graded(problem, number)
        finally:
            self._gate.release()
        self._writer.commit(record.id, [record], tokens=record.completion_tokens)
        self._kept[record.id] = _kept(record)
        if not record.tried:
            self._apart.add(problem.id)
        activity.happened()
        made()

    async def _graded(self, problem: Problem, number: int) -> Generation:
        for attempt in range(ATTEMPTS):
            try:
                outcome = await self._sampler.roll_out(problem, number)
                break
            except Refused as error:
                return self._sampler.untried(problem, number, error)
            except RetryableError as error:
                if not error.retryable or attempt == ATTEMPTS - 1:
                    raise
        record = self._sampler.record(problem, number, outcome)
        answer = answer_of(record)
        grade = await self._pool.grade(answer, record.expected_answer)
        return record.with_(predicted_answer=answer, verdict=grade.verdict, verdict_reason=grade.reason)


def _kept(record: Generation) -> _Kept:
    undecided = record.tried and record.verdict in (Verdict.UNKNOWN, Verdict.TIMEOUT)
    return _Kept(record.correct, record.completion_tokens, record.tried, undecided)

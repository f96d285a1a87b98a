"""Sampling until the answers of a problem agree: batches that follow each other, problems side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from nemo_openmath.core.records import Problem
from nemo_openmath.grading import Majority
from nemo_openmath.inference.rollout.counts import AgreementRule

AnswerOf = Callable[[Problem, int], Awaitable[str | None]]
"""Makes sample number n of a problem, or reads the stored one, and returns its answer. Raises SampleFailed."""

Vote = Callable[[Sequence[str | None]], Awaitable[Majority]]


class SampleFailed(Exception):
    """A sample could not be made and has been noted among the failures."""


async def sample_until_agreed(problem: Problem, rule: AgreementRule, answer_of: AnswerOf, vote: Vote) -> int | None:
    """Make batches of samples until ``rule`` needs no more.

    Returns the number of samples; None where one failed, so that the problem is undecided and the next run goes on
    there.
    """
    answers: list[str | None] = []
    lead = (0, 0)
    while size := rule.next_batch(*lead, len(answers)):
        first = len(answers)
        tasks = [asyncio.ensure_future(answer_of(problem, first + i)) for i in range(size)]
        try:
            results = await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            for task in tasks:
                task.cancel()
        for result in results:
            if isinstance(result, SampleFailed):
                return None
            if isinstance(result, BaseException):
                raise result
            answers.append(result)
        lead = (await vote(answers)).lead
    return len(answers)

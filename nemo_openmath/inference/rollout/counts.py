"""How many samples a problem gets: a fixed number, more for harder problems, or until more cannot matter.

By agreement, samples come in batches, each the smallest that could settle the vote, and the votes are counted in the
order of their sample numbers. What is decided depends on the answers alone, not on which sample finished first, so an
interrupted run goes on to the same set.

With ``confidence`` 1 a problem ends when no answers that are still to come could change its majority, so labels equal
those of the full count. The leader is counted without spellings that fit two answers, its rivals with them
(``Majority.lead``). One case is not foreseen: an answer to come that makes one of the leader's own spellings fit two
(5, once both 5 cm and 5 m are there).

With ``confidence`` below 1 a problem ends when the leading answer is the more likely one of the two best with that
probability, under a uniform prior: P(Beta(first + 1, second + 1) > 1/2), the rule of Adaptive-Consistency
(arXiv 2305.11860). It saves more and may now and then change a label.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


def by_hardness(pass_rate: float | None, least: int, most: int) -> int:
    """Return the samples of a problem: ``least`` where it was always solved, ``most`` where never or where its pass
    rate is not known."""
    hardness = 1.0 if pass_rate is None else 1.0 - min(1.0, max(0.0, pass_rate))
    return least + math.floor((most - least) * hardness + 0.5)


def chance_of_lead(first: int, second: int) -> float:
    """Return P(p > 1/2) for p ~ Beta(first + 1, second + 1). With n = first + second + 1, it is the probability of at
    most ``first`` heads among n tosses of a fair coin."""
    n = first + second + 1
    return math.ldexp(sum(math.comb(n, k) for k in range(first + 1)), -n)


@dataclass(frozen=True, slots=True)
class AgreementRule:
    """Make from ``least`` to ``most`` samples of a problem, until the vote is settled with ``confidence``."""

    least: int
    most: int
    confidence: float

    def settled(self, first: int, second: int, remaining: int) -> bool:
        """Tell whether ``remaining`` more answers are useless after votes of ``first`` and ``second`` for the two best
        answers."""
        if first - second > remaining:
            return True
        return self.confidence < 1 and first > 0 and chance_of_lead(first, second) >= self.confidence

    def next_batch(self, first: int, second: int, samples: int) -> int:
        """Return how many samples to make now, after ``samples``; 0 where no more are needed.

        After the ``least`` first ones, it is the fewest that settle the vote if all of them agree with the leading
        answer.
        """
        if samples < self.least:
            return self.least - samples
        remaining = self.most - samples
        if remaining <= 0 or self.settled(first, second, remaining):
            return 0
        sizes = range(1, remaining)
        return next((k for k in sizes if self.settled(first + k, second, remaining - k)), remaining)
